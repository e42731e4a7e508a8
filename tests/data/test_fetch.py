"""Fetching, from a server on this machine that breaks off, lies and sends hostile archives."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jaxrf.cli import main as cli
from jaxrf.core.errors import InputError
from jaxrf.data import fetch


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


LEGO = {
    "nerf_example_data/nerf_synthetic/lego/transforms_train.json": b"{}",
    "nerf_example_data/nerf_synthetic/lego/train/r_0.png": bytes(range(256)) * 4000,
    "nerf_example_data/nerf_llff_data/fern/poses_bounds.npy": b"fern",
    "nerf_example_data/nerf_synthetic/lego/../../../../escaped": b"out",
    "__MACOSX/nerf_synthetic/lego/._x": b"",
}


class Server(BaseHTTPRequestHandler):
    """Sends `content`; of the first `breaks` answers only a part."""

    content: ClassVar[bytes] = b""
    breaks: ClassVar[int] = 0
    tag: ClassVar[str] = '"one"'
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        expected = self.headers.get("Range")
        Server.asked.append(expected)
        if self.path.endswith("missing.zip"):
            self.send_error(404, "Not Found")
            return
        begin = 0
        if expected and self.headers.get("If-Range") == Server.tag:
            begin = int(expected.removeprefix("bytes=").rstrip("-"))
            if begin >= len(Server.content):
                self.send_error(416, "Range Not Satisfiable")
                return
        rest = Server.content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", Server.tag)
        self.end_headers()
        if Server.breaks:
            Server.breaks -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Server.content, Server.breaks, Server.tag, Server.asked = make_zip(LEGO), 0, '"one"', []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/data.zip"
    server.shutdown()
    server.server_close()


def test_fetch_unpacks_into_the_search_path(address: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    place, digest = fetch.fetch(
        "lego", tmp_path, address, progress=lambda done, total: seen.append((done, total))
    )
    assert place == tmp_path / "nerf_synthetic" / "lego"
    names = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
    assert names == ["train/r_0.png", "transforms_train.json"]
    assert (place / "train" / "r_0.png").read_bytes() == bytes(range(256)) * 4000
    assert digest == hashlib.sha256(Server.content).hexdigest()
    assert seen[-1] == (len(Server.content), len(Server.content))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fetched.json", "nerf_synthetic"]
    # It is not fetched again.
    assert fetch.fetch("lego", tmp_path, address) == (place, digest)
    assert len(Server.asked) == 1


def test_fetch_resumes_an_interrupted_download(address: str, tmp_path: Path) -> None:
    Server.breaks = 2
    for _ in range(2):
        with pytest.raises(InputError, match="run the same command again") as caught:
            fetch.fetch("lego", tmp_path, address)
        assert "\n" not in str(caught.value)
    place, digest = fetch.fetch("lego", tmp_path, address)
    assert digest == hashlib.sha256(Server.content).hexdigest() and place.is_dir()
    half = len(Server.content) // 2
    assert Server.asked[:2] == [None, f"bytes={half}-"] and Server.asked[2] is not None


def test_fetch_restarts_when_the_file_has_changed(address: str, tmp_path: Path) -> None:
    Server.breaks = 1
    with pytest.raises(InputError):
        fetch.fetch("lego", tmp_path, address)
    Server.tag = '"two"'
    Server.content = make_zip(LEGO | {"nerf_synthetic/lego/new": b"1"})
    _, digest = fetch.fetch("lego", tmp_path, address)
    assert digest == hashlib.sha256(Server.content).hexdigest()


def test_fetch_accepts_a_complete_download(address: str, tmp_path: Path) -> None:
    (tmp_path / ".data.zip.part").write_bytes(Server.content)
    (tmp_path / ".data.zip.part.tag").write_text(Server.tag)
    assert fetch.fetch("lego", tmp_path, address)[0].is_dir()


def test_fetch_rejects_a_wrong_checksum(address: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not 00ff"):
        fetch.fetch("lego", tmp_path, address, sha256="00ff")
    assert not (tmp_path / "nerf_synthetic" / "lego").exists()
    digest = hashlib.sha256(Server.content).hexdigest()
    place, _ = fetch.fetch("lego", tmp_path, address, sha256=digest.upper())
    # What was fetched once is what is expected from then on.
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()
    Server.content = make_zip(LEGO | {"other": b"x"})
    with pytest.raises(InputError, match=f"not {digest}"):
        fetch.fetch("lego", tmp_path, address)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive at all", "is damaged"),
        (make_zip(LEGO)[:-30], "is damaged"),
        (make_zip({"other/file": b"x"}), "holds no nerf_synthetic/lego"),
    ],
)
def test_fetch_rejects_invalid_archives(
    content: bytes, message: str, address: str, tmp_path: Path
) -> None:
    Server.content = content
    with pytest.raises(InputError, match=message):
        fetch.fetch("lego", tmp_path, address)
    assert not (tmp_path / "nerf_synthetic" / "lego").exists()


def test_fetch_detects_a_flipped_bit(address: str, tmp_path: Path) -> None:
    files = {"nerf_synthetic/lego/a": bytes(1000)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    data = bytearray(buffer.getvalue())
    data[500] ^= 1
    Server.content = bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        fetch.fetch("lego", tmp_path, address)


def test_fetch_explains_missing_files_and_network_errors(address: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answers 404 Not Found.*with url"):
        fetch.fetch("lego", tmp_path, address.replace("data.zip", "missing.zip"))
    with pytest.raises(InputError, match="check the network"):
        fetch.fetch("lego", tmp_path, "http://127.0.0.1:9/data.zip")
    with pytest.raises(InputError, match="check the network"):
        fetch.fetch("lego", tmp_path, "http://no-such-host.invalid/data.zip")
    with pytest.raises(InputError, match="is not an address"):
        fetch.fetch("lego", tmp_path, "data.zip")
    with pytest.raises(InputError, match="no public set 'none': name one of lego, fern"):
        fetch.fetch("none", tmp_path)


def test_data_fetch_command(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Server.content = b"an npz, as far as fetching goes"
    command = ["data", "fetch", "tiny_nerf", "--url", address, "--output", str(tmp_path)]
    assert cli.main(command) == 0
    assert (tmp_path / "tiny_nerf_data.npz").read_bytes() == Server.content
    said = capsys.readouterr()
    assert hashlib.sha256(Server.content).hexdigest() in said.out
    assert cli.main(["data", "fetch", "nothing"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["data", "fetch"])
    assert cli.main(["data"]) == 2

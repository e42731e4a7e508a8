"""Downloads public data sets: resumes interrupted downloads, checks and unpacks them safely."""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxrf.core.errors import InputError

NERF = "http://cseweb.ucsd.edu/~viscomp/projects/LF/papers/ECCV20/nerf"
CHUNK = 1 << 18
SECONDS = 30.0
MAX_UNPACKED_BYTES = 1 << 36
RECORD = "fetched.json"


class PublicSet(NamedTuple):
    """A data set that its authors publish.

    url: of the file.
    member: folder of the data set in an archive; None if the file is the data set itself.
    target: path of the data set under the folder of data sets.
    description: one line for people.
    """

    url: str
    member: str | None
    target: str
    description: str


SETS = {
    "lego": PublicSet(
        f"{NERF}/nerf_example_data.zip",
        "nerf_synthetic/lego",
        "nerf_synthetic/lego",
        "NeRF-synthetic lego, 400x400, and fern in one archive (Mildenhall et al. 2020)",
    ),
    "fern": PublicSet(
        f"{NERF}/nerf_example_data.zip",
        "nerf_llff_data/fern",
        "nerf_llff_data/fern",
        "LLFF fern, forward-facing, and lego in one archive (Mildenhall et al. 2019)",
    ),
    "tiny_nerf": PublicSet(
        f"{NERF}/tiny_nerf_data.npz",
        None,
        "tiny_nerf_data.npz",
        "106 images of lego, 100x100, in one file",
    ),
}

NETWORK = (urllib.error.URLError, TimeoutError, ConnectionError)
Progress = Callable[[int, int | None], None]


def fetch(
    name: str,
    root: Path,
    url: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, str]:
    """Downloads and unpacks a data set; returns its path and the SHA-256 of the file.

    Does nothing if the data set exists. Resumes an interrupted download unless the file has changed
    on the server. Verifies the checksums in an archive, and compares the SHA-256 of the download
    with `sha256`, or else with that of the previous download.

    Args:
      name: one of `SETS`.
      root: folder of data sets.
      url: of another server that has the same file.
      sha256: expected checksum, in hexadecimal digits.
      progress: called with the number of bytes downloaded and the total number, if known.

    Raises:
      InputError: unknown name, no network, not enough disk space, or an unexpected file.
    """
    if name not in SETS:
        raise InputError(f"There is no public set {name!r}: name one of {', '.join(SETS)}.")
    public_set = SETS[name]
    target = root / public_set.target
    record = _read_record(root)
    if target.exists():
        known = record.get(name, {}).get("sha256", "unknown")
        return target, known
    source = url or public_set.url
    target.parent.mkdir(parents=True, exist_ok=True)
    part = root / f".{PurePosixPath(source).name}.part"
    with _explain(source, part):
        _download(source, part, progress)
    digest = _hash(part)
    expected = sha256 or record.get(name, {}).get("sha256")
    if expected and digest != expected.lower():
        part.unlink()
        raise InputError(
            f"{source} has the SHA-256 {digest}, not {expected}: it is not the expected file and "
            "was removed; check the address, or --sha256."
        )
    if public_set.member is None:
        os.replace(part, target)
    else:
        _unpack(part, public_set.member, target, source)
        part.unlink()
    _write_record(root, record | {name: {"url": source, "sha256": digest}})
    return target, digest


def _download(source: str, part: Path, progress: Progress | None) -> None:
    """Downloads into a file; appends to it if it holds the beginning of the same file."""
    tag_file = part.with_name(f"{part.name}.tag")
    received = part.stat().st_size if part.exists() else 0
    tag = tag_file.read_text() if received and tag_file.exists() else ""
    request = urllib.request.Request(source, headers={"User-Agent": "jaxrf"})
    if received and tag:
        request.add_header("Range", f"bytes={received}-")
        # The server then sends the range only if the file is unchanged.
        request.add_header("If-Range", tag)
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(urllib.request.urlopen(request, timeout=SECONDS))
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # The requested range is empty: the download is complete.
            return
        received = received if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = received + int(length) if length and length.isdigit() else None
        new_tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        tag_file.write_text(new_tag)
        with part.open("ab" if received else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                if progress:
                    progress(received, total)
    if total is not None and received < total:
        raise http.client.IncompleteRead(b"", total - received)
    tag_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _explain(source: str, part: Path) -> Iterator[None]:
    """Turns errors of the network and of the disk into an InputError."""
    again = f"run the same command again to resume ({part} holds the part that was downloaded)"
    try:
        yield
    except urllib.error.HTTPError as error:
        raise InputError(
            f"{source} answers {error.code} {error.reason}: give another address of the file with "
            "--url."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, NETWORK):
            raise InputError(f"{part} cannot be written ({error.strerror}); {again}.") from error
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{source} cannot be reached or was interrupted ({reason}): check the network; {again}."
        ) from error
    except ValueError as error:
        raise InputError(f"{source!r} is not an address ({error}): give one with --url.") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, member: str, target: Path, source: str) -> None:
    """Unpacks one folder of an archive, which may be inside another folder of the archive."""
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            paths = [(info, _path_in_member(info.filename, member)) for info in file.infolist()]
            members = [(info, path) for info, path in paths if path and not info.is_dir()]
            if not members:
                raise InputError(f"{source} holds no {member}: give another address with --url.")
            size = sum(info.file_size for info, _ in members)
            free = shutil.disk_usage(target.parent).free
            if size > min(MAX_UNPACKED_BYTES, free):
                raise InputError(
                    f"{source} unpacks to {size >> 20} MiB, {free >> 20} MiB are free: free some "
                    "disk space."
                )
            for info, path in members:
                assert path is not None
                destination = temporary / path
                destination.parent.mkdir(parents=True, exist_ok=True)
                # Reading to the end verifies the checksum.
                with file.open(info) as stream, destination.open("wb") as out:
                    shutil.copyfileobj(stream, out)
        os.replace(temporary, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink(missing_ok=True)
        raise InputError(
            f"The download from {source} is damaged ({error}) and was removed: fetch it again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _path_in_member(name: str, member: str) -> PurePosixPath | None:
    """A file's path relative to a folder of an archive; None if it is outside or unsafe."""
    parts, folder = PurePosixPath(name).parts, PurePosixPath(member).parts
    for start in range(len(parts) - len(folder)):
        if parts[start : start + len(folder)] == folder:
            unsafe = any(part in ("..", "/") or "\\" in part or "\0" in part for part in parts)
            if unsafe or "__MACOSX" in parts:
                return None
            return PurePosixPath(*parts[start + len(folder) :])
    return None


def _read_record(root: Path) -> dict[str, dict[str, str]]:
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(root: Path, record: dict[str, dict[str, str]]) -> None:
    (root / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

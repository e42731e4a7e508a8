"""Downloads public data sets: resumed where they broke off, checked, unpacked with care."""

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
    """A data set that its authors offer.

    url: of the file.
    member: of an archive, the folder that is wanted; None if the file is the data set itself.
    place: where it goes, under the folder of data sets.
    about: one line for people.
    """

    url: str
    member: str | None
    place: str
    about: str


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
        "106 pictures of lego of 100x100 in one file",
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
    """Downloads and unpacks a data set; returns where it is and the file's SHA-256.

    What was fetched before is taken as it is. A download that broke off is gone on with, unless the
    file has changed on the server meanwhile. An archive's own checksums are verified; the SHA-256
    of what was downloaded is compared with the one given, or else with that of the last time.

    Args:
      name: one of `SETS`.
      root: folder of data sets.
      url: of another place that has the same file.
      sha256: that the file must have, in hexadecimal digits.
      progress: told how many bytes are there, and of how many if that is known.

    Raises:
      InputError: there is no such set, no network, not enough room, or another file than expected.
    """
    if name not in SETS:
        raise InputError(f"There is no public set {name!r}: name one of {', '.join(SETS)}.")
    wanted = SETS[name]
    target = root / wanted.place
    record = _read_record(root)
    if target.exists():
        known = record.get(name, {}).get("sha256", "unknown")
        return target, known
    source = url or wanted.url
    target.parent.mkdir(parents=True, exist_ok=True)
    part = root / f".{PurePosixPath(source).name}.part"
    with _explain(source, part):
        _download(source, part, progress)
    found = _hash(part)
    expected = sha256 or record.get(name, {}).get("sha256")
    if expected and found != expected.lower():
        part.unlink()
        raise InputError(
            f"{source} has the SHA-256 {found}, not {expected}: it is another file than "
            "expected and was removed; check the address, or --sha256."
        )
    if wanted.member is None:
        os.replace(part, target)
    else:
        _unpack(part, wanted.member, target, source)
        # It may hold another set that is wanted too.
        part.unlink()
    _write_record(root, record | {name: {"url": source, "sha256": found}})
    return target, found


def _download(source: str, part: Path, progress: Progress | None) -> None:
    """Downloads into a file, from where it ends."""
    tag_file = part.with_name(f"{part.name}.tag")
    begun = part.stat().st_size if part.exists() else 0
    tag = tag_file.read_text() if begun and tag_file.exists() else ""
    request = urllib.request.Request(source, headers={"User-Agent": "jaxrf"})
    if begun and tag:
        request.add_header("Range", f"bytes={begun}-")
        # Only if it is the same file still.
        request.add_header("If-Range", tag)
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(urllib.request.urlopen(request, timeout=SECONDS))
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # There is nothing after what is here already.
            return
        begun = begun if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = begun + int(length) if length and length.isdigit() else None
        new_tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        tag_file.write_text(new_tag)
        with part.open("ab" if begun else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                begun += len(chunk)
                if progress:
                    progress(begun, total)
    if total is not None and begun < total:
        raise http.client.IncompleteRead(b"", total - begun)
    tag_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _explain(source: str, part: Path) -> Iterator[None]:
    """What goes wrong on the network and on the disk, in one sentence."""
    again = f"what is there already ({part}) is kept: run the same command again to go on"
    try:
        yield
    except urllib.error.HTTPError as error:
        raise InputError(
            f"{source} answers {error.code} {error.reason}: look for the file elsewhere and "
            "give its address with --url."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, NETWORK):
            raise InputError(f"{part} cannot be written ({error.strerror}); {again}.") from error
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{source} cannot be reached or broke off ({reason}): check the network; {again}."
        ) from error
    except ValueError as error:
        raise InputError(f"{source!r} is no address ({error}): give one with --url.") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, member: str, target: Path, source: str) -> None:
    """One folder of an archive, whichever folder of the archive that itself is in."""
    beside = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            chosen = [(info, _inside(info.filename, member)) for info in file.infolist()]
            kept = [(info, path) for info, path in chosen if path and not info.is_dir()]
            if not kept:
                raise InputError(f"{source} holds no {member}: give another address with --url.")
            size = sum(info.file_size for info, _ in kept)
            room = shutil.disk_usage(target.parent).free
            if size > min(MAX_UNPACKED_BYTES, room):
                raise InputError(
                    f"{source} unpacks to {size >> 20} MiB, {room >> 20} MiB are free: make room."
                )
            for info, path in kept:
                assert path is not None
                place = beside / path
                place.parent.mkdir(parents=True, exist_ok=True)
                # Reading to the end verifies the checksum.
                with file.open(info) as stream, place.open("wb") as out:
                    shutil.copyfileobj(stream, out)
        os.replace(beside, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink(missing_ok=True)
        raise InputError(
            f"What came from {source} is damaged ({error}) and was removed: fetch it again."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _inside(name: str, member: str) -> PurePosixPath | None:
    """A file's path below a folder of an archive; None if it is not in it or leads out of it."""
    parts, wanted = PurePosixPath(name).parts, PurePosixPath(member).parts
    for start in range(len(parts) - len(wanted)):
        if parts[start : start + len(wanted)] == wanted:
            rest = parts[start + len(wanted) :]
            hostile = any(part in ("..", "/") or "\\" in part or "\0" in part for part in parts)
            return None if hostile or "__MACOSX" in parts else PurePosixPath(*rest)
    return None


def _read_record(root: Path) -> dict[str, dict[str, str]]:
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(root: Path, record: dict[str, dict[str, str]]) -> None:
    (root / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

"""Reads a file of another program; its first bytes tell the file format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrf.convert.files.flax_msgpack import read_msgpack
from jaxrf.convert.files.limits import MAX_BYTES
from jaxrf.convert.files.npy import read_array_list
from jaxrf.convert.files.npz import check_zip, read_npz
from jaxrf.convert.files.snapshot import read_snapshot
from jaxrf.convert.files.torch_file import read_torch
from jaxrf.convert.files.unreadable import (
    HEAD_BYTES,
    READ_PROGRAMS,
    is_snapshot,
    name_unreadable,
)
from jaxrf.core.errors import InputError

FileFormat = Literal["torch", "npy", "msgpack", "npz", "instant-ngp"]


class Content(NamedTuple):
    """The content of a file.

    path: of the file.
    file_format: as which it was read.
    tree: dicts and lists of arrays, numbers and text.
    """

    path: Path
    file_format: FileFormat
    tree: Any


def read_file(path: Path) -> Content:
    """Returns the content of a file of another program. Nothing in the file is run.

    Raises:
      InputError: if it is missing, damaged, too large, of an unknown format, or holds something
        other than arrays, numbers and text.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        file_size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name another file.") from error
    if file_size > MAX_BYTES:
        raise InputError(
            f"{path} has {file_size >> 30} GiB, more than the weights of a field: name another "
            "file."
        )
    if (sentence := name_unreadable(path, head)) is not None:
        raise InputError(sentence)
    readers: dict[FileFormat, Callable[[Path], Any]] = {
        "torch": read_torch,
        "npy": read_array_list,
        "msgpack": read_msgpack,
        "npz": read_npz,
        "instant-ngp": read_snapshot,
    }
    try:
        file_format = detect_file_format(path, head)
        return Content(path, file_format, readers[file_format](path))
    except InputError:
        raise
    except (MemoryError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged, as it asks for more memory than there is: copy it again."
        ) from error
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
        raise InputError(
            f"{path} is damaged, or of an unknown program ({reason}): copy it again, or name "
            f"weights of {READ_PROGRAMS}."
        ) from error


def detect_file_format(path: Path, start: bytes) -> FileFormat:
    """Returns the format of a file that starts with these bytes.

    Raises:
      InputError: if it is a zip file that unpacks to too much.
      ValueError: if the format is unknown, or a zip file is damaged.
    """
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if is_snapshot(start):
        return "instant-ngp"
    if start.startswith(b"PK"):
        return "npz" if all(name.endswith(".npy") for name in check_zip(path)) else "torch"
    # A bare pickle, as torch wrote before 1.6.
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "torch"
    if not start or not (0x80 <= start[0] < 0x90 or start[0] in (0xDE, 0xDF)):
        raise ValueError("its first bytes are of no known format")
    return "msgpack"

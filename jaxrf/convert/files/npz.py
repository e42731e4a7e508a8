"""Reads zip files of numpy arrays (.npz), and the headers of .npy files."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.convert.files.limits import MAX_BYTES, MAX_COMPRESSION_RATIO, MIN_UNPACKED_BYTES
from jaxrf.core.errors import InputError


def check_zip(path: Path) -> list[str]:
    """Returns the names of a zip file's parts after checking its unpacked size and checksums.

    Raises:
      InputError: if it unpacks to far more than its size.
      ValueError: if a checksum is wrong.
    """
    file_size = path.stat().st_size
    with zipfile.ZipFile(path) as file:
        parts = file.infolist()
        unpacked = sum(part.file_size for part in parts)
        limit = max(MAX_COMPRESSION_RATIO * file_size, MIN_UNPACKED_BYTES)
        if unpacked > limit or unpacked > MAX_BYTES:
            raise InputError(
                f"{path} claims to unpack to {unpacked / 2**30:.1f} GiB, more than any file of "
                "weights: name another file."
            )
        if corrupt_part := file.testzip():
            raise ValueError(f"the checksum of its part {corrupt_part} is wrong")
    return [part.filename for part in parts]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz by name.

    Raises:
      ValueError: if an array holds Python objects, or is shorter than its header says.
    """
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            with file.open(name) as part:
                shape, dtype = read_header(part)
            if dtype.hasobject:
                raise ValueError(f"{name} holds objects")
            if math.prod(shape) * dtype.itemsize > file.getinfo(name).file_size:
                raise ValueError(f"{name} is shorter than its header says")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and dtype of an open .npy, and leaves the file at its data."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype

"""Text files of numbers, in which some data sets keep poses and intrinsics."""

import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError
from jaxrf.data.files import natural_key

MAX_TEXT_BYTES = 1 << 16


def read_pose(path: Path) -> Float[np.ndarray, "4 4"]:
    """The pose in a text file: a rigid camera-to-world matrix.

    Raises:
      InputError: the file is missing, or holds none.
    """
    values = [value for row in read_rows(path) for value in row]
    rows = [values[4 * i : 4 * i + 4] for i in range(4)] if len(values) == 16 else values
    return check_pose(rows, str(path), "The pose")


def read_rows(path: Path) -> list[list[float]]:
    """Numbers of a text file, by line, without empty lines.

    Raises:
      InputError: the file is missing, too long, or does not hold only finite numbers.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(f"{path} is longer than {MAX_TEXT_BYTES} bytes; write it again.")
        text = path.read_text(encoding="utf-8")
        rows = [[float(word) for word in line.split()] for line in text.splitlines()]
    except FileNotFoundError:
        raise InputError(f"There is no {path}; complete the scene.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not hold only numbers ({error}); correct it.") from error
    if not all(math.isfinite(value) for row in rows for value in row):
        raise InputError(f"{path} holds a number that is not finite; correct it.")
    return [row for row in rows if row]


def list_stems(folder: Path) -> list[str]:
    """Stems of the text files in a folder, in natural order.

    Raises:
      InputError: it cannot be read, or has none.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); complete it.") from error
    stems = [n[:-4] for n in names if n.lower().endswith(".txt") and not n.startswith(".")]
    if not stems:
        raise InputError(f"{folder} has no *.txt; complete it.")
    return sorted(stems, key=natural_key)

"""Reads an .npy of objects: the pickled list of a network's arrays, as the first NeRF saved it."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.convert.files.limits import SizeBudget
from jaxrf.convert.files.npz import read_header
from jaxrf.convert.files.numpy_pickle import ArrayUnpickler, PickledArray, check_memo_indices
from jaxrf.core.errors import InputError


def read_array_list(path: Path) -> list[Any]:
    """Returns the list of arrays of an .npy; an .npy of numbers is a list of one array.

    Raises:
      InputError: if the pickle names something other than arrays.
      ValueError: if the file is damaged, or holds something other than arrays.
    """
    data = path.read_bytes()
    file = io.BytesIO(data)
    shape, dtype = read_header(file)
    if not dtype.hasobject:
        if math.prod(shape) * dtype.itemsize > len(data):
            raise ValueError("it is shorter than its header says")
        return [np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)]
    check_memo_indices(data[file.tell() :])
    try:
        unpickled = ArrayUnpickler(file, encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path} is no list of arrays. {error.for_command_line}") from error
    budget = SizeBudget(len(data))
    items = unpickled.decode(budget) if isinstance(unpickled, PickledArray) else unpickled
    if not isinstance(items, list) or len(items) != math.prod(shape):
        raise ValueError("it holds something other than a list of arrays")
    arrays = [item.decode(budget) if isinstance(item, PickledArray) else item for item in items]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError("it holds something other than a list of arrays")
    return arrays

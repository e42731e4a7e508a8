"""Decodes numpy arrays and numbers in pickles without calling numpy's constructors.

The classes here stand in for the constructors that pickles name. They record the arguments, which
are checked against the size of the file before an array is made of them.
"""

import math
import pickle
import pickletools
from typing import Any, NamedTuple

import numpy as np

from jaxrf.convert.files.limits import SizeBudget
from jaxrf.core.errors import InputError

NUMBER_CODES = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}
OBJECT_CODES = {"O8", "O"}


class PickledDType:
    """A dtype in a pickle."""

    def __init__(self, code: Any, *flags: Any) -> None:
        del flags
        if code not in NUMBER_CODES | OBJECT_CODES:
            raise ValueError(f"it holds numbers of type {str(code)[:20]!r}")
        self.code, self.byte_order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.byte_order = state[1].replace("|", "<")

    @property
    def is_object(self) -> bool:
        """Whether arrays of it hold Python objects."""
        return self.code in OBJECT_CODES

    def to_dtype(self) -> np.dtype[Any]:
        """Returns the dtype of numpy."""
        fixed_order = self.is_object or self.code == "b1"
        return np.dtype(self.code if fixed_order else self.byte_order + self.code)


class PickledBytes(NamedTuple):
    """Bytes in a pickle that are stored as Latin-1 text, as protocol 2 does."""

    text: str


class PickledArray:
    """An array in a pickle, filled by the state that follows its constructor."""

    def __init__(self) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def decode(self, budget: SizeBudget) -> Any:
        """Returns the array, or a list for a one-dimensional array of objects.

        Raises:
          ValueError: if the state is no array, or exceeds the budget.
        """
        if not isinstance(self._state, tuple) or len(self._state) != 5:
            raise ValueError("it holds an array without a state")
        _, shape, dtype, is_fortran, data = self._state
        if not isinstance(dtype, PickledDType) or not isinstance(shape, tuple | list):
            raise ValueError("it holds an array without a shape or a type")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("it holds an array without a shape")
        count = math.prod(shape)
        if dtype.is_object:
            if not isinstance(data, list) or len(data) != count or len(shape) != 1:
                raise ValueError("it holds an array of objects that is no list")
            budget.spend(count)
            return data
        element = dtype.to_dtype()
        array = np.frombuffer(_decode_bytes(data, count * element.itemsize, budget), element)
        return array.reshape(shape, order="F" if is_fortran else "C")


class PickledNumber(NamedTuple):
    """A numpy scalar in a pickle."""

    dtype: Any
    data: Any

    def decode(self, budget: SizeBudget) -> Any:
        """Returns the number; ValueError if it is none."""
        if not isinstance(self.dtype, PickledDType) or self.dtype.is_object:
            raise ValueError("it holds a number without a type")
        element = self.dtype.to_dtype()
        return np.frombuffer(_decode_bytes(self.data, element.itemsize, budget), element)[0].item()


class ArrayUnpickler(pickle.Unpickler):
    """Admits the constructors of numpy arrays and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        stand_ins = {f"{m}.{n}": stand_in for stand_in, m, n in list_stand_ins()}
        if f"{module}.{name}" in stand_ins:
            return stand_ins[f"{module}.{name}"]
        raise InputError(
            f"It names {module}.{name}, which is no part of an array and could run code; the file "
            "was not opened."
        )


def list_stand_ins() -> list[tuple[Any, str, str]]:
    """Returns (stand-in, module, name) for each name in pickles of numpy arrays and numbers."""
    stand_ins: list[tuple[Any, str, str]] = [
        (PickledArray, "numpy", "ndarray"),
        (PickledDType, "numpy", "dtype"),
    ]
    # numpy 2 renamed the module.
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        stand_ins += [(_reconstruct, module, "_reconstruct"), (PickledNumber, module, "scalar")]
    return [*stand_ins, (_encode, "_codecs", "encode")]


def check_memo_indices(pickled: bytes) -> None:
    """ValueError if a memo index exceeds the number of opcodes, as the memo grows to that index."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if "PUT" in opcode.name and int(argument or 0) > count:
            raise ValueError("it asks for more memory than it can use")


def _reconstruct(array_class: Any, shape: Any, dtype: Any) -> PickledArray:
    """Returns the empty array that numpy's pickles begin with and then fill."""
    del dtype
    if array_class is not PickledArray or tuple(shape) != (0,):
        raise ValueError("it begins an array that is not empty")
    return PickledArray()


def _encode(text: Any, encoding: Any) -> PickledBytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("it encodes bytes otherwise than as Latin-1 text")
    return PickledBytes(text)


def _decode_bytes(data: Any, num_bytes: int, budget: SizeBudget) -> bytes:
    """Returns the bytes of numbers; ValueError unless there are exactly `num_bytes`."""
    content = data.text if isinstance(data, PickledBytes) else data
    if not isinstance(content, bytes | bytearray | str) or len(content) != num_bytes:
        raise ValueError("it holds more or fewer numbers than it claims")
    budget.spend(0, num_bytes)
    return content.encode("latin-1") if isinstance(content, str) else bytes(content)

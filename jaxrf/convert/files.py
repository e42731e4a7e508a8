"""Files of other programs, opened such that nothing in them can run or fill the memory."""

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrf.core.errors import InputError

Form = Literal["torch", "pickled arrays", "msgpack", "npz"]
# Weights of radiance fields are far smaller.
MOST_BYTES = 16 << 30
# Nor do they hold so many things, so deep in one another, or so little of them in so much.
MOST_NODES, MOST_DEPTH, MOST_LISTED = 1 << 16, 32, 1 << 12
MOST_COMPRESSED, FEW_BYTES = 8, 64 << 20
# What torch.compile and data-parallel training put before names.
PREFIXES = ("_orig_mod.", "module.")


class Content(NamedTuple):
    """What a file holds.

    path: of the file.
    form: how it is written.
    tree: dicts and lists of arrays, numbers and text.
    """

    path: Path
    form: Form
    tree: Any


def read_file(path: Path) -> Content:
    """What a file of another program holds.

    Raises:
      InputError: if it is missing, damaged, too large, of an unknown form, or holds something else
        than arrays, numbers and text.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name another file.") from error
    if size > MOST_BYTES:
        raise InputError(
            f"{path} has {size >> 30} GiB, more than weights of a field: name another."
        )
    try:
        if start.startswith(b"\x93NUMPY"):
            return Content(path, "pickled arrays", _read_pickled_arrays(path))
        if start.startswith(b"PK"):
            names = _check_zip(path)
            if all(name.endswith(".npy") for name in names):
                return Content(path, "npz", _read_npz(path))
            return Content(path, "torch", _read_torch(path))
        # A pickle, as torch wrote before 1.6.
        if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            return Content(path, "torch", _read_torch(path))
        if not start or not (0x80 <= start[0] < 0x90 or start[0] in (0xDE, 0xDF)):
            raise ValueError("it begins with nothing that is known")
        return Content(path, "msgpack", _read_msgpack(path))
    except InputError:
        raise
    except (MemoryError, RecursionError) as error:
        raise InputError(f"{path} asks for more memory than there is: it is damaged.") from error
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
        raise InputError(
            f"{path} is damaged, or of a program that is not known ({reason}): copy it again."
        ) from error


def _check_zip(path: Path) -> list[str]:
    """Names of the parts of a zip file that unpacks to about what it takes."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as file:
        parts = file.infolist()
        unpacked = sum(part.file_size for part in parts)
        if unpacked > max(MOST_COMPRESSED * size, FEW_BYTES) or unpacked > MOST_BYTES:
            raise InputError(
                f"{path} says that it unpacks to {unpacked / 2**30:.1f} GiB: it is no file of "
                "weights."
            )
        if broken := file.testzip():
            raise ValueError(f"its part {broken} has another checksum")
    return [part.filename for part in parts]


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} is a file of PyTorch, which is not installed: pip install torch, or "
            "save the arrays of its state dict as .npz."
        ) from error
    # Files hold arrays and numbers of numpy's beside tensors.
    harmless: list[Any] = [torch.device, torch.Size]
    harmless += [(stub, f"{module}.{name}") for stub, module, name in _list_stubs()]
    try:
        with torch.serialization.safe_globals(harmless):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, which may be code that would run here; it was not "
            "opened: save its state dict alone."
        ) from error
    return _to_arrays(tree, torch, _SizeBudget(path.stat().st_size))


class _SizeBudget:
    """How much a file may still turn out to hold, given its size."""

    def __init__(self, size: int) -> None:
        self._nodes, self._bytes = MOST_NODES, MOST_COMPRESSED * size + FEW_BYTES

    def count(self, nodes: int, size: int = 0) -> None:
        """Counts things, and what they take in memory."""
        self._nodes, self._bytes = self._nodes - nodes, self._bytes - size
        if min(self._nodes, self._bytes) < 0:
            raise ValueError("it holds more than any checkpoint does")


def _to_arrays(node: Any, torch: Any, allowance: _SizeBudget, depth: int = 0) -> Any:
    """Tensors as arrays, all the way down."""
    allowance.count(1)
    if depth > MOST_DEPTH:
        raise ValueError("it nests deeper than any checkpoint does")
    if isinstance(node, torch.Tensor):
        node = node.detach()
        if node.is_sparse or node.is_quantized:
            raise ValueError("it holds sparse or quantised tensors")
        # A tensor may claim to be one number repeated very often.
        if node.numel() * node.element_size() > node.untyped_storage().nbytes():
            raise ValueError("it holds a tensor that is larger than its numbers")
        # numpy has no bfloat16.
        return (node.float() if node.dtype == torch.bfloat16 else node).numpy()
    if isinstance(node, Mapping):
        return {
            str(key): _to_arrays(value, torch, allowance, depth + 1) for key, value in node.items()
        }
    if isinstance(node, torch.device):
        return str(node)
    if isinstance(node, _Array | _Number):
        return node.decode(allowance)
    if isinstance(node, list | tuple):
        return [_to_arrays(value, torch, allowance, depth + 1) for value in node]
    return node


class _DType:
    """What a pickle says of a type of numbers; nothing of numpy is called before it is checked."""

    def __init__(self, code: Any, *flags: Any) -> None:
        del flags
        known = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} | {"b1", "O8", "O"}
        if code not in known - {"f1"}:
            raise ValueError(f"it holds numbers of type {str(code)[:20]!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = state[1].replace("|", "<")

    def make(self) -> np.dtype[Any]:
        """The type of numbers."""
        return np.dtype(self.code if self.code in ("b1", "O8", "O") else self.order + self.code)


class _Latin(NamedTuple):
    """Bytes that are kept as text, as Python 2 pickled them."""

    text: str


def _to_bytes(data: Any, size: int, allowance: _SizeBudget) -> bytes:
    """The bytes of numbers, of which there must be so many."""
    text = data.text if isinstance(data, _Latin) else data
    if not isinstance(text, bytes | bytearray | str) or len(text) != size:
        raise ValueError("it holds numbers that are more or fewer than it says")
    allowance.count(0, size)
    return text.encode("latin-1") if isinstance(text, str) else bytes(text)


class _Array:
    """What a pickle says of an array, filled in by the state that follows."""

    def __init__(self) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def decode(self, allowance: _SizeBudget) -> Any:
        """The array, or the list of objects that it is.

        Raises:
          ValueError: if it is none, or larger than what is allowed.
        """
        if not isinstance(self._state, tuple) or len(self._state) != 5:
            raise ValueError("it holds an array that is not filled")
        _, shape, dtype, fortran, data = self._state
        if not isinstance(dtype, _DType) or not isinstance(shape, tuple | list):
            raise ValueError("it holds an array without shape or type")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("it holds an array without shape")
        count = math.prod(shape)
        if dtype.code.startswith("O"):
            if not isinstance(data, list) or len(data) != count or len(shape) != 1:
                raise ValueError("it holds objects that are no list")
            allowance.count(count)
            return data
        kind = dtype.make()
        array = np.frombuffer(_to_bytes(data, count * kind.itemsize, allowance), kind)
        return array.reshape(shape, order="F" if fortran else "C")


class _Number(NamedTuple):
    """What a pickle says of a number of numpy's."""

    dtype: Any
    data: Any

    def decode(self, allowance: _SizeBudget) -> Any:
        """The number; ValueError if it is none."""
        if not isinstance(self.dtype, _DType) or self.dtype.code.startswith("O"):
            raise ValueError("it holds a number of no type")
        kind = self.dtype.make()
        return np.frombuffer(_to_bytes(self.data, kind.itemsize, allowance), kind)[0].item()


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what stands for numpy's arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {f"{m}.{n}": stub for stub, m, n in _list_stubs()}
        if f"{module}.{name}" in known:
            return known[f"{module}.{name}"]
        raise InputError(
            f"It asks for {module}.{name}, which is no part of an array and might run code; it was "
            "not opened."
        )


def _list_stubs() -> list[tuple[Any, str, str]]:
    """What stands for the parts of numpy that pickles of arrays and numbers name."""
    stubs: list[tuple[Any, str, str]] = [(_Array, "numpy", "ndarray"), (_DType, "numpy", "dtype")]
    # By either of its module's names.
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        stubs += [(_make_array, core, "_reconstruct"), (_Number, core, "scalar")]
    return [*stubs, (_encode, "_codecs", "encode")]


def _make_array(kind: Any, shape: Any, dtype: Any) -> _Array:
    """The empty array that numpy's pickles begin with and then fill."""
    del dtype
    if kind is not _Array or tuple(shape) != (0,):
        raise ValueError("it begins an array that is not empty")
    return _Array()


def _encode(text: Any, encoding: Any) -> _Latin:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("it holds text that is no bytes")
    return _Latin(text)


def _check_opcodes(pickled: bytes) -> None:
    """ValueError if a pickle numbers what it remembers higher than it has things to remember."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if "PUT" in opcode.name and int(argument or 0) > count:
            raise ValueError("it asks for more memory than it has use for")


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an .npy."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _read_pickled_arrays(path: Path) -> list[Any]:
    """The objects of an .npy of objects: the list of a network's arrays."""
    data = path.read_bytes()
    file = io.BytesIO(data)
    shape, dtype = _read_header(file)
    if not dtype.hasobject:
        if math.prod(shape) * dtype.itemsize > len(data):
            raise ValueError("it is shorter than its header says")
        return [np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)]
    _check_opcodes(data[file.tell() :])
    try:
        unpickled = _ArrayUnpickler(file, encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path} is no list of arrays. {error}") from error
    allowance = _SizeBudget(len(data))
    parts = unpickled.decode(allowance) if isinstance(unpickled, _Array) else unpickled
    if not isinstance(parts, list) or len(parts) != math.prod(shape):
        raise ValueError("it holds something else than a list of arrays")
    arrays = [part.decode(allowance) if isinstance(part, _Array) else part for part in parts]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError("it holds something else than a list of arrays")
    return arrays


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            with file.open(name) as part:
                shape, dtype = _read_header(part)
            if dtype.hasobject:
                raise ValueError(f"{name} holds objects")
            if math.prod(shape) * dtype.itemsize > file.getinfo(name).file_size:
                raise ValueError(f"{name} is shorter than its header says")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _read_msgpack(path: Path) -> Any:
    import msgpack
    from flax import serialization

    data = path.read_bytes()
    allowance = _SizeBudget(len(data))

    def count(things: Any) -> None:
        allowance.count(1 + len(things))

    # Read once for nothing but the number of things, which is held against what is allowed.
    msgpack.unpackb(
        data,
        strict_map_key=False,
        list_hook=count,
        object_pairs_hook=count,
        ext_hook=lambda code, data: None,
        max_array_len=MOST_LISTED,
        max_map_len=MOST_NODES,
    )
    tree = serialization.msgpack_restore(data)
    _check_depth(tree)
    return tree


def _check_depth(tree: Any) -> None:
    """ValueError if dicts and lists lie too deep in one another."""
    level, depth = [tree], 0
    while level:
        if (depth := depth + 1) > MOST_DEPTH:
            raise ValueError("it nests deeper than any checkpoint does")
        parts = [list(p.values()) if isinstance(p, Mapping) else p for p in level]
        level = [x for part in parts if isinstance(part, list | tuple) for x in part]


def list_leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots between, and what is there, of all that is no dict or list."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from list_leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        for index, value in enumerate(tree):
            yield from list_leaves(value, f"{name}.{index}" if name else str(index))
    else:
        yield name, tree


def describe(content: Content, most: int = 40) -> str:
    """What a file holds, a line for each array, for people who know what wrote it."""
    lines = []
    for name, leaf in list_leaves(content.tree):
        if isinstance(leaf, np.ndarray):
            lines.append(f"  {name}: {leaf.dtype} {'x'.join(map(str, leaf.shape)) or 'scalar'}")
        elif isinstance(leaf, int) and abs(leaf) >= 1 << 64:
            lines.append(f"  {name}: a very large number")
        else:
            lines.append(f"  {name}: {str(leaf)[:60]!r}")
    more = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([f"{content.path} ({content.form}) holds:", *lines[:most], *more])


def find_states(tree: Any) -> list[tuple[str, dict[str, np.ndarray]]]:
    """All dicts of arrays in a tree, the outermost first, without what wrappers put before names.

    A state dict has flat names with dots in them; dicts of dicts of arrays are made flat.
    """
    states: list[tuple[str, dict[str, np.ndarray]]] = []

    def gather(node: Any, name: str, listed: bool) -> dict[str, np.ndarray]:
        """Arrays below a node by their names there; dicts that are not in lists join the states."""
        if isinstance(node, np.ndarray):
            return {"": node}
        if not isinstance(node, Mapping | list | tuple):
            return {}
        listed = listed or not isinstance(node, Mapping)
        place, arrays = len(states), {}
        if not listed:
            states.append((name, {}))
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            for path, leaf in gather(value, f"{name}.{key}" if name else str(key), listed).items():
                arrays[f"{key}.{path}" if path else str(key)] = leaf
        if not listed:
            states[place] = (name, {strip_prefixes(path): leaf for path, leaf in arrays.items()})
        return arrays

    gather(tree, "", False)
    return [(name, arrays) for name, arrays in states if arrays]


def require_keys(found: Sequence[Any], path: Path) -> Any:
    """The one network that a file holds, None if there is none; InputError if there are more."""
    if len(found) > 1:
        raise InputError(
            f"{path} holds {len(found)} networks of one kind: save the one that is meant."
        )
    return found[0] if found else None


def strip_prefixes(name: str) -> str:
    """A name without the prefixes of wrappers, in whatever order they were wrapped."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def check_numbers(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """InputError if some array holds a number that is not finite."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise InputError(
                f"{name} in {path} holds numbers that are not finite: its training has failed, use "
                "an earlier checkpoint."
            )


def take_number(
    numbers: Mapping[str, Any], key: str, low: float | int, high: float | int, path: Path
) -> float:
    """A number of a file that says what its field is like.

    Raises:
      InputError: if it is missing, no number, or not from `low` to `high`.
    """
    value = np.asarray(numbers.get(key))
    number = float(value) if value.size == 1 and value.dtype.kind in "fiub" else math.nan
    if not low <= number <= high:
        raise InputError(
            f"{key} in {path} is {str(numbers.get(key))[:40]}, not a number from {low:g} to "
            f"{high:g}: the file is damaged, or of another program."
        )
    return number

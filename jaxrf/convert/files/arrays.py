"""Finds, names and checks arrays and numbers in the tree of a file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxrf.convert.files.read import Content
from jaxrf.core.errors import InputError

# torch.compile and data-parallel training put these before names.
WRAPPER_PREFIXES = ("_orig_mod.", "module.")

T = TypeVar("T")


def list_leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (name, leaf) of everything that is no dict or list; names are joined with dots."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from list_leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        for index, value in enumerate(tree):
            yield from list_leaves(value, f"{name}.{index}" if name else str(index))
    else:
        yield name, tree


def describe(content: Content, max_lines: int = 40) -> str:
    """Returns a text that lists the arrays and numbers of a file, one per line."""
    lines = []
    for name, leaf in list_leaves(content.tree):
        if isinstance(leaf, np.ndarray):
            lines.append(f"  {name}: {leaf.dtype} {'x'.join(map(str, leaf.shape)) or 'scalar'}")
        elif isinstance(leaf, int) and abs(leaf) >= 1 << 64:
            lines.append(f"  {name}: a very large number")
        else:
            lines.append(f"  {name}: {str(leaf)[:60]!r}")
    omitted = [f"  ... and {len(lines) - max_lines} more"] if len(lines) > max_lines else []
    title = f"{content.path} ({content.file_format}) holds:"
    return "\n".join([title, *lines[:max_lines], *omitted])


def find_state_dicts(tree: Any) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns (name, arrays) of all dicts in a tree that hold arrays, the outermost first.

    The arrays have flat names with dots in them, as in a state dict, without the prefixes of
    wrappers; nested dicts are flattened.
    """
    states: list[tuple[str, dict[str, np.ndarray]]] = []

    def gather(node: Any, name: str, in_list: bool) -> dict[str, np.ndarray]:
        """Returns the arrays below a node; appends dicts that are in no list to the states."""
        if isinstance(node, np.ndarray):
            return {"": node}
        if not isinstance(node, Mapping | list | tuple):
            return {}
        in_list = in_list or not isinstance(node, Mapping)
        position, arrays = len(states), {}
        if not in_list:
            # Appended before its children, so that the outermost comes first.
            states.append((name, {}))
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            child = gather(value, f"{name}.{key}" if name else str(key), in_list)
            for path, leaf in child.items():
                arrays[f"{key}.{path}" if path else str(key)] = leaf
        if not in_list:
            stripped = {strip_prefixes(path): leaf for path, leaf in arrays.items()}
            states[position] = (name, stripped)
        return arrays

    gather(tree, "", False)
    return [(name, arrays) for name, arrays in states if arrays]


def strip_prefixes(name: str) -> str:
    """Returns a name without the prefixes of wrappers, in whatever order they were applied."""
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def single_or_none(networks: Sequence[T], path: Path) -> T | None:
    """Returns the only network of a file, None if there is none; InputError if there are more."""
    if len(networks) > 1:
        raise InputError(
            f"{path} holds {len(networks)} networks of the same program: save only the one to "
            "convert."
        )
    return networks[0] if networks else None


def check_finite(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """InputError if an array holds a number that is not finite."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise InputError(
                f"{name} in {path} holds numbers that are not finite, as its training has failed: "
                "use an earlier checkpoint."
            )


def read_number(
    numbers: Mapping[str, Any], key: str, low: float | int, high: float | int, path: Path
) -> float:
    """Returns a number of a file that describes its field.

    Raises:
      InputError: if it is missing, no number, or not between `low` and `high`.
    """
    value = np.asarray(numbers.get(key))
    number = float(value) if value.size == 1 and value.dtype.kind in "fiub" else math.nan
    if not low <= number <= high:
        raise InputError(
            f"{key} in {path} is {str(numbers.get(key))[:40]}, not a number from {low:g} to "
            f"{high:g}: the file is damaged, or of another program."
        )
    return number


def read_step(value: Any) -> int:
    """Returns the number of steps a file was trained for; 0 if the value is no number."""
    return int(value) if isinstance(value, int | float | np.number) else 0

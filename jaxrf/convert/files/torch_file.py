"""Reads and writes files of PyTorch; in what is read, only tensors and arrays are unpickled."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.convert.files.limits import MAX_DEPTH, SizeBudget
from jaxrf.convert.files.numpy_pickle import PickledArray, PickledNumber, list_stand_ins
from jaxrf.core.errors import InputError


def read_torch(path: Path) -> Any:
    """Returns the tree of a torch file, its tensors as arrays.

    Raises:
      InputError: without PyTorch, or if the pickle could run code.
      ValueError: if the file exceeds the limits.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} is a file of PyTorch, which is not installed: pip install torch, or "
            "save the arrays of its state dict as .npz."
        ) from error
    # Checkpoints hold numpy arrays and numbers beside tensors.
    allowed: list[Any] = [torch.device, torch.Size]
    allowed += [(stand_in, f"{module}.{name}") for stand_in, module, name in list_stand_ins()]
    try:
        with torch.serialization.safe_globals(allowed):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, which could run code, and was not opened: save its "
            "state dict alone."
        ) from error
    return _to_arrays(tree, torch, SizeBudget(path.stat().st_size))


def write_torch(tree: Any, path: Path) -> None:
    """Writes a tree as a torch file; arrays become tensors, those of bytes stay arrays.

    Raises:
      ImportError: without PyTorch.
    """
    import torch

    def to_tensors(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: to_tensors(value) for name, value in node.items()}
        if isinstance(node, np.ndarray) and node.dtype != np.uint8:
            return torch.tensor(node)
        return node

    torch.save(to_tensors(tree), path)


def _to_arrays(node: Any, torch: Any, budget: SizeBudget, depth: int = 0) -> Any:
    """Returns a tree with numpy arrays in place of tensors and stand-ins."""
    budget.spend(1)
    if depth > MAX_DEPTH:
        raise ValueError("it nests deeper than any checkpoint does")
    if isinstance(node, torch.Tensor):
        node = node.detach()
        if node.is_sparse or node.is_quantized:
            raise ValueError("it holds sparse or quantized tensors")
        # A stride of 0 would let one stored number stand for any number of elements.
        if node.numel() * node.element_size() > node.untyped_storage().nbytes():
            raise ValueError("it holds a tensor that is larger than its storage")
        # numpy has no bfloat16.
        return (node.float() if node.dtype == torch.bfloat16 else node).numpy()
    if isinstance(node, Mapping):
        return {
            str(key): _to_arrays(value, torch, budget, depth + 1) for key, value in node.items()
        }
    if isinstance(node, torch.device):
        return str(node)
    if isinstance(node, PickledArray | PickledNumber):
        return node.decode(budget)
    if isinstance(node, list | tuple):
        return [_to_arrays(value, torch, budget, depth + 1) for value in node]
    return node

"""Linear layers of state dicts, and the type of reference networks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# Raw outputs by name: encoding, trunk, features, density, color.
Outputs = dict[str, Tensor]
# Takes positions and directions (..., 3).
Network = Callable[[Tensor, Tensor], Outputs]


class StateDict(NamedTuple):
    """A state dict and the precision to compute in."""

    arrays: Mapping[str, np.ndarray]
    dtype: torch.dtype

    def layer(self, name: str) -> nn.Linear:
        """Returns the linear layer of that name."""
        return make_linear(self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"], self.dtype)

    def layers(self, prefix: str, stride: int = 1) -> list[nn.Linear]:
        """Returns the layers `prefix`.0, `prefix`.stride, ... up to the first missing one."""
        layers: list[nn.Linear] = []
        while self.has(f"{prefix}.{stride * len(layers)}"):
            layers.append(self.layer(f"{prefix}.{stride * len(layers)}"))
        return layers

    def has(self, name: str) -> bool:
        """Whether there is a layer of that name."""
        return f"{name}.weight" in self.arrays


def make_linear(weight: Any, bias: Any, dtype: torch.dtype) -> nn.Linear:
    """Returns a layer of a weight (out, in) and a bias (out,)."""
    weight, bias = (
        torch.as_tensor(np.array(v) if isinstance(v, np.ndarray) else v).to(dtype)
        for v in (weight, bias)
    )
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def apply_mlp(layers: list[nn.Linear], x: Tensor) -> Tensor:
    """Returns the output of layers with ReLUs between them."""
    for layer in layers[:-1]:
        x = torch.relu(layer(x))
    return layers[-1](x)


def to_tensor(array: Any, dtype: torch.dtype) -> Tensor:
    """Returns a copy of an array as a tensor."""
    return torch.as_tensor(np.array(array), dtype=dtype)

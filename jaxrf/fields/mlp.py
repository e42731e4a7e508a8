"""The small multilayer perceptron that fields share, and the precision of its layers."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ComputeType = Literal["float32", "bfloat16", "float16"]


def cast_for_compute(x: Array, compute: ComputeType) -> Array:
    """An array in the type that layers are computed in; for float32 the array itself."""
    return x if compute == "float32" else x.astype(compute)


def linear(features: int, compute: ComputeType, last: bool = False, **options: Any) -> nn.Dense:
    """A linear layer whose weights are stored in float32 and cast to `compute`.

    The `last` layer of a network returns its float32 sums without rounding them.
    """
    if compute == "float32":
        return nn.Dense(features, **options)
    if last:
        options["dot_general"] = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    return nn.Dense(features, dtype=jnp.dtype(compute), **options)


class MLP(nn.Module):
    """Hidden layers of one width with ReLU, then a linear layer.

    Attributes:
      width: of every hidden layer.
      layers: number of hidden layers.
      outputs: output channels, without activation.
      bias: whether layers have biases.
      compute: type that layers are computed in.
    """

    width: int
    layers: int
    outputs: int
    bias: bool = True
    compute: ComputeType = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch outputs"]:
        uniform = nn.initializers.he_uniform()
        for _ in range(self.layers):
            layer = linear(self.width, self.compute, use_bias=self.bias, kernel_init=uniform)
            x = nn.relu(layer(x))
        return linear(self.outputs, self.compute, last=True, use_bias=self.bias)(x)

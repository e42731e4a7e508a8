"""BitNeRF: a NeRF whose layers have ternary weights and 8-bit activations.

Ma et al.: The era of 1-bit LLMs, all large language models are in 1.58 bits (2024).
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.fields.mlp import ComputeType, cast_for_compute, linear
from jaxrf.fields.nerf import NeRF, Network

# Scales are at least this, lest an all-zero row or matrix divide by zero.
LEAST_SCALE = 1e-5


@jax.custom_jvp
def _straight_through(quantised: Array, x: Array) -> Array:
    """The quantised values, with the gradient of what they were made of."""
    del x
    return quantised


# Not x + stop_gradient(quantised - x), which is rounded: whole numbers are to stay whole.
_straight_through.defjvps(None, lambda tangent, *_: tangent)


def quantise_weights(
    weights: Float[Array, "i o"],
) -> tuple[Float[Array, "i o"], Float[Array, ""]]:
    """Weights as -1, 0, 1 times a scale, the mean of their absolute values.

    Gradients pass the rounding straight through, and none flows through the scale.
    """
    mean = jnp.mean(jnp.abs(jax.lax.stop_gradient(weights)))
    scale = jnp.maximum(mean, LEAST_SCALE)
    ratio = weights / scale
    return _straight_through(jnp.clip(jnp.round(ratio), -1.0, 1.0), ratio), scale


def quantise_activations(
    x: Float[Array, "*batch i"],
) -> tuple[Float[Array, "*batch i"], Float[Array, "*batch 1"]]:
    """Rows as whole numbers from -128 to 127 times a scale of each row, its maximum over 127.

    What is between two whole numbers goes to the one nearer to zero. Gradients pass the rounding
    straight through, and none flows through the scales.
    """
    most = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    scale = jnp.maximum(most / 127.0, LEAST_SCALE)
    ratio = x / scale
    # Sums of whole numbers, which come out of a layer without bias, often lie exactly in between.
    # Which way these are rounded shall not hang on the last bit of a scale.
    less = 1.0 - 8.0 * float(jnp.finfo(x.dtype).eps)
    return _straight_through(jnp.clip(jnp.round(ratio * less), -128.0, 127.0), ratio), scale


def normalise(x: Float[Array, "*batch i"], epsilon: float = 1e-6) -> Float[Array, "*batch i"]:
    """Rows divided by the root of their mean square (RMSNorm without gain)."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


class BitDense(nn.Module):
    """A linear layer of ternary weights on normalised 8-bit activations.

    y = (Xq Wq) s_x s_w + b. Gradients pass the rounding straight through and see the quantised
    operands; none flows through the scales. If the parameters hold a "scale" beside the kernel, the
    kernel is ternary already: the mean of its absolute values would be another scale.

    Attributes:
      features: channels that come out.
      gain: whether what is normalised is scaled channel by channel, by a learnt gain.
      epsilon: of the normalisation.
      compute: type of the operands of the product, which holds them exactly.
    """

    features: int
    gain: bool = False
    epsilon: float = 1e-6
    compute: ComputeType = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        if self.has_variable("params", "scale"):
            ternary, weight_scale = kernel, self.get_variable("params", "scale")
        else:
            ternary, weight_scale = quantise_weights(kernel)
        x = normalise(x, self.epsilon)
        if self.gain:
            gain = self.param("gain", nn.initializers.ones_init(), x.shape[-1:])
            x = x * gain.reshape((1,) * (x.ndim - 1) + (-1,))
        whole, row_scale = quantise_activations(x)
        # Sums of whole numbers, which are exact in whatever order and precision they are taken.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        whole, ternary = (cast_for_compute(part, self.compute) for part in (whole, ternary))
        sums = jnp.matmul(whole, ternary, preferred_element_type=wide)
        product = sums * row_scale * weight_scale
        return product + bias.reshape((1,) * (x.ndim - 1) + (-1,))


@dataclasses.dataclass(frozen=True)
class BitNeRF(NeRF):
    """A NeRF whose layers have ternary weights and 8-bit activations."""

    norm_gain: bool = False
    """A layer's normalized input is scaled by a learned gain of each channel."""
    norm_epsilon: float = 1e-6
    """Epsilon of that normalization."""
    full_precision_io: bool = False
    """The projection before the trunk and the heads have full weights."""

    def _network(self) -> Network:
        compute = self.compute_dtype
        norm = {"gain": self.norm_gain, "epsilon": self.norm_epsilon}
        dense: Any = partial(BitDense, **norm, compute=compute)
        full: Any = partial(linear, compute=compute, last=True)
        return self._make_network(dense, full if self.full_precision_io else dense)

    def quantizes_activations(self) -> bool:
        """To 8 bits."""
        return True

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

# A smaller scale would divide by zero in a row or matrix of zeros.
MIN_SCALE = 1e-5


@jax.custom_jvp
def _straight_through(quantized: Array, x: Array) -> Array:
    """The quantized values, with the gradient of the values they were made of."""
    del x
    return quantized


# Not x + stop_gradient(quantized - x), whose rounding would not keep integers.
_straight_through.defjvps(None, lambda tangent, *_: tangent)


def quantize_weights(
    weights: Float[Array, "i o"],
) -> tuple[Float[Array, "i o"], Float[Array, ""]]:
    """Weights as -1, 0, 1 times a scale, the mean of their absolute values.

    Gradients pass straight through the rounding, and none flows through the scale.
    """
    mean = jnp.mean(jnp.abs(jax.lax.stop_gradient(weights)))
    scale = jnp.maximum(mean, MIN_SCALE)
    ratio = weights / scale
    return _straight_through(jnp.clip(jnp.round(ratio), -1.0, 1.0), ratio), scale


def quantize_activations(
    x: Float[Array, "*batch i"],
) -> tuple[Float[Array, "*batch i"], Float[Array, "*batch 1"]]:
    """Rows as integers from -128 to 127 times a scale of each row, its maximum over 127.

    A value halfway between two integers is rounded towards zero. Gradients pass straight through
    the rounding, and none flows through the scales.
    """
    maximum = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    scale = jnp.maximum(maximum / 127.0, MIN_SCALE)
    ratio = x / scale
    # Sums of integers, which a layer without bias gives, often lie exactly halfway. The last bit of
    # a scale must not decide how these are rounded.
    towards_zero = 1.0 - 8.0 * float(jnp.finfo(x.dtype).eps)
    rounded = jnp.clip(jnp.round(ratio * towards_zero), -128.0, 127.0)
    return _straight_through(rounded, ratio), scale


def normalize(x: Float[Array, "*batch i"], epsilon: float = 1e-6) -> Float[Array, "*batch i"]:
    """Rows divided by the root of their mean square (RMSNorm without gain)."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


class BitDense(nn.Module):
    """A linear layer of ternary weights on normalized 8-bit activations.

    y = (Xq Wq) s_x s_w + b. Gradients pass straight through the rounding and see the quantized
    operands; none flows through the scales. If the parameters hold a "scale" beside the kernel, the
    kernel is ternary already: the mean of its absolute values would be another scale.

    Attributes:
      features: output channels.
      gain: whether the normalized input is scaled channel by channel by a learned gain.
      epsilon: of the normalization.
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
            ternary, weight_scale = quantize_weights(kernel)
        x = normalize(x, self.epsilon)
        if self.gain:
            gain = self.param("gain", nn.initializers.ones_init(), x.shape[-1:])
            x = x * gain.reshape((1,) * (x.ndim - 1) + (-1,))
        integers, row_scale = quantize_activations(x)
        # Sums of integers are exact in whatever order and precision they are taken.
        accumulated = jnp.promote_types(x.dtype, jnp.float32)
        integers, ternary = (cast_for_compute(part, self.compute) for part in (integers, ternary))
        sums = jnp.matmul(integers, ternary, preferred_element_type=accumulated)
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
        """True: activations are quantized to 8 bits."""
        return True

"""Activations of outputs, with slopes that keep training alive where the functions themselves are
flat or steep."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Slope at which a saturated sigmoid can still be pulled back by errors of other pixels.
MIN_SLOPE = 0.01


@jax.custom_jvp
def clamped_exp(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The exponential, of at most e^80, whose gradient is that at x clamped to [-15, 15]."""
    return jnp.exp(jnp.minimum(x, 80.0))


@clamped_exp.defjvp
def _clamped_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return clamped_exp(x), jnp.exp(jnp.clip(x, -15.0, 15.0)) * tangent


@jax.custom_jvp
def leaky_sigmoid(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The sigmoid, whose gradient is at least `MIN_SLOPE`, which the sigmoid's is within +-4.6.

    In float32 a sigmoid is exactly 1 from 17 on and has no gradient. The first steps of Adam are
    as long as the learning rate, however small an error is: images of which most pixels are white
    push all colors there, from where nothing brings them back.
    """
    return jax.nn.sigmoid(x)


@leaky_sigmoid.defjvp
def _leaky_sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    value = leaky_sigmoid(x)
    return value, jnp.maximum(value * (1.0 - value), MIN_SLOPE) * tangent

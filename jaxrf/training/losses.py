"""Errors between rendered and target colors, and their means over a batch.

Letters in shapes: r rays or pixels. Losses on ray weights are in `rendering.ray_losses`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# (rgb, target_rgb) -> error of each pixel, not negative.
ErrorFn = Callable[[Float[Array, "r 3"], Float[Array, "r 3"]], Float[Array, "r"]]


def squared_error(rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"]) -> Float[Array, "r"]:
    """Squared difference of each pixel, mean over channels."""
    return jnp.mean(jnp.square(rgb - target_rgb), axis=-1)


def huber_error(
    rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"], delta: float
) -> Float[Array, "r"]:
    """Huber error of each pixel, mean over channels (Huber 1964).

    d^2 / 2 where the difference |d| <= delta, else delta (|d| - delta / 2).
    """
    size = jnp.abs(rgb - target_rgb)
    quadratic = jnp.minimum(size, delta)
    return jnp.mean(0.5 * jnp.square(quadratic) + delta * (size - quadratic), axis=-1)


def charbonnier_error(
    rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"], epsilon: float
) -> Float[Array, "r"]:
    """sqrt(d^2 + epsilon^2) of the difference d, mean over channels (Charbonnier et al. 1994)."""
    return jnp.mean(jnp.sqrt(jnp.square(rgb - target_rgb) + epsilon**2), axis=-1)


def masked_mean(values: Float[Array, "r"], mask: Bool[Array, "r"]) -> Float[Array, ""]:
    """Mean of the values where the mask is True; 0 if it is nowhere.

    Masked values may be infinite or NaN.
    """
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def mean_squared_error(
    rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"], mask: Bool[Array, "r"]
) -> Float[Array, ""]:
    """Mean squared difference over channels and the rays in the mask; 0 if there are none."""
    return masked_mean(squared_error(rgb, target_rgb), mask)

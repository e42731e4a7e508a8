"""Losses: pure functions of predictions and truth."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def mean_squared_error(
    predicted: Float[Array, "r 3"], truth: Float[Array, "r 3"], used: Bool[Array, "r"]
) -> Float[Array, ""]:
    """Mean over the rays that are used, and over channels; zero if none is."""
    squared = jnp.mean(jnp.square(predicted - truth), axis=-1)
    count = jnp.sum(used)
    return jnp.sum(jnp.where(used, squared, 0.0)) / jnp.maximum(count, 1)

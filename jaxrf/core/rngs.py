"""Random numbers from batches of PRNG keys: one key for everything, or one key for each ray.

With a key for each ray, its random numbers do not depend on the rays that are computed beside it,
so that neither microbatches nor the number of devices change the result. The shape of the keys
leads the shape of the numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def fold_in(key: Key[Array, "*lead"], number: int) -> Key[Array, "*lead"]:
    """`jax.random.fold_in` of each key."""
    return _map_keys(lambda single: jax.random.fold_in(single, np.uint32(number)), key)


def uniform(
    key: Key[Array, "*lead"],
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    low: float = 0.0,
    high: float = 1.0,
) -> Float[Array, "..."]:
    """Uniform numbers in [low, high); `shape` begins with the shape of the keys."""
    per_key = _shape_per_key(key, shape)
    return _map_keys(lambda single: jax.random.uniform(single, per_key, dtype, low, high), key)


def normal(
    key: Key[Array, "*lead"], shape: tuple[int, ...], dtype: Any = jnp.float32
) -> Float[Array, "..."]:
    """Standard normal numbers; `shape` begins with the shape of the keys."""
    per_key = _shape_per_key(key, shape)
    return _map_keys(lambda single: jax.random.normal(single, per_key, dtype), key)


def _map_keys(sample: Callable[[jax.Array], jax.Array], key: jax.Array) -> jax.Array:
    for _ in range(key.ndim):
        sample = jax.vmap(sample)
    return sample(key)


def _shape_per_key(key: jax.Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    assert shape[: key.ndim] == key.shape
    return shape[key.ndim :]

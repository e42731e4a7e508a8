"""Keys of chance: one for all, or one for each ray.

A ray that has a key of its own sees the same chance whatever rays are computed beside it, so that
neither passes nor devices change what a step does. Shapes of keys lead the shapes drawn.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def fold_in(key: Key[Array, "*lead"], number: int) -> Key[Array, "*lead"]:
    """New keys, as `jax.random.fold_in` makes one."""
    return _map(lambda one: jax.random.fold_in(one, np.uint32(number)), key)


def uniform(
    key: Key[Array, "*lead"],
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    low: float = 0.0,
    high: float = 1.0,
) -> Float[Array, "..."]:
    """Uniform numbers in [low, high); `shape` begins with the keys' own."""
    rest = _drop_lead(key, shape)
    return _map(lambda one: jax.random.uniform(one, rest, dtype, low, high), key)


def normal(
    key: Key[Array, "*lead"], shape: tuple[int, ...], dtype: Any = jnp.float32
) -> Float[Array, "..."]:
    """Standard normal numbers; `shape` begins with the keys' own."""
    rest = _drop_lead(key, shape)
    return _map(lambda one: jax.random.normal(one, rest, dtype), key)


def _map(draw: Callable[[jax.Array], jax.Array], key: jax.Array) -> jax.Array:
    for _ in range(key.ndim):
        draw = jax.vmap(draw)
    return draw(key)


def _drop_lead(key: jax.Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    assert shape[: key.ndim] == key.shape
    return shape[key.ndim :]

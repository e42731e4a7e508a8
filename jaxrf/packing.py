"""Packing: the few elements of a large array that matter, in a fixed number of places."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Packed(NamedTuple):
    """A fixed number of places for the samples that matter, out of many.

    sample: (m,) flat index of each sample; one past the last for an empty place.
    valid: (m,) whether the place is taken.
    """

    sample: Int[Array, "m"]
    valid: Bool[Array, "m"]


def rank_samples(mask: Bool[Array, "r n"]) -> Int[Array, "r n"]:
    """How many wanted samples come before each one, in ray-major order."""
    within = jnp.cumsum(mask.astype(jnp.int32), axis=1)
    before = jnp.cumsum(within[:, -1]) - within[:, -1]
    return before[:, None] + within - mask


def pack(
    mask: Bool[Array, "r n"], rank: Int[Array, "r n"], budget: int, start: int | Int[Array, ""] = 0
) -> Packed:
    """Gathers the samples of ranks start, start + 1, ..., start + budget - 1 that are wanted."""
    place = rank - start
    place = jnp.where(mask & (place >= 0) & (place < budget), place, budget)
    empty = jnp.full((budget,), mask.size, jnp.int32)
    flat = jnp.arange(mask.size, dtype=jnp.int32)
    sample = empty.at[place.ravel()].set(flat, mode="drop", unique_indices=False)
    return Packed(sample, sample < mask.size)

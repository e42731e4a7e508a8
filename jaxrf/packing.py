"""Packing: the few elements of a large array that matter, in a fixed number of places."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import population_count
from jaxtyping import Array, Bool, Int, UInt32


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


def pack_bits(mask: Bool[Array, "r n"]) -> UInt32[Array, "r words"]:
    """A mask as words of 32 bits, the first element being the lowest bit of the first word."""
    padded = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % 32)))
    bits = padded.reshape(mask.shape[0], padded.shape[1] // 32, 32).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32).reshape(1, 1, 32), axis=-1)


def find_bit(
    words: UInt32[Array, "r words"], start: Int[Array, "r"], nothing: int
) -> Int[Array, "r"]:
    """Index of each row's first bit that is set at or after `start`; `nothing` if there is none."""
    found = jnp.full_like(start, nothing)
    for index in reversed(range(words.shape[1])):
        below = jnp.clip(start - 32 * index, 0, 32).astype(jnp.uint32)
        # A shift by 32 is not defined.
        high = jnp.where(below < 32, jnp.uint32(0xFFFFFFFF) << jnp.minimum(below, 31), 0)
        bits = words[:, index] & high.astype(jnp.uint32)
        lowest = bits & (~bits + jnp.uint32(1))
        place = population_count(lowest - jnp.uint32(1)).astype(jnp.int32)
        found = jnp.where(bits > 0, 32 * index + place, found)
    return found

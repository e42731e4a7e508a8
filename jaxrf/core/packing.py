"""Packed arrays: the selected elements of a large array in a fixed number of slots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import population_count
from jaxtyping import Array, Bool, Float, Int, UInt32


class Packed(NamedTuple):
    """Selected samples in a fixed number of slots.

    sample: (m,) flat index of the sample in each slot; the number of samples for an empty slot.
    valid: (m,) whether the slot holds a sample.
    """

    sample: Int[Array, "m"]
    valid: Bool[Array, "m"]


def rank_samples(mask: Bool[Array, "r n"]) -> Int[Array, "r n"]:
    """Number of selected samples before each sample, in ray-major order."""
    within = jnp.cumsum(mask.astype(jnp.int32), axis=1)
    before = jnp.cumsum(within[:, -1]) - within[:, -1]
    return before[:, None] + within - mask


def pack(
    mask: Bool[Array, "r n"], rank: Int[Array, "r n"], budget: int, start: int | Int[Array, ""] = 0
) -> Packed:
    """Packs the selected samples of ranks start to start + budget - 1.

    Args:
      mask: selected samples.
      rank: of each sample (`rank_samples`).
      budget: number of slots.
      start: rank of the sample in the first slot.
    """
    slot = rank - start
    slot = jnp.where(mask & (slot >= 0) & (slot < budget), slot, budget)
    empty = jnp.full((budget,), mask.size, jnp.int32)
    flat = jnp.arange(mask.size, dtype=jnp.int32)
    sample = empty.at[slot.ravel()].set(flat, mode="drop", unique_indices=False)
    return Packed(sample, sample < mask.size)


def pack_bits(mask: Bool[Array, "r n"]) -> UInt32[Array, "r words"]:
    """A mask as 32-bit words; the first element is the lowest bit of the first word."""
    padded = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % 32)))
    bits = padded.reshape(mask.shape[0], padded.shape[1] // 32, 32).astype(jnp.uint32)
    shifted = bits << jnp.arange(32, dtype=jnp.uint32).reshape(1, 1, 32)
    # In 64-bit mode the default type of the sum would be wider.
    return jnp.sum(shifted, axis=-1, dtype=jnp.uint32)


def find_bit(
    words: UInt32[Array, "r words"], start: Int[Array, "r"], default: int
) -> Int[Array, "r"]:
    """Index of the first set bit of each row at or after `start`; `default` if there is none."""
    first = jnp.full_like(start, default)
    for index in reversed(range(words.shape[1])):
        below = jnp.clip(start - 32 * index, 0, 32).astype(jnp.uint32)
        # A shift by 32 is undefined.
        high = jnp.where(below < 32, jnp.uint32(0xFFFFFFFF) << jnp.minimum(below, 31), 0)
        bits = words[:, index] & high.astype(jnp.uint32)
        lowest = bits & (~bits + jnp.uint32(1))
        position = population_count(lowest - jnp.uint32(1)).astype(jnp.int32)
        first = jnp.where(bits > 0, 32 * index + position, first)
    return first


@jax.custom_vjp
def sum_before(values: Float[Array, "m"], owner: Int[Array, "m"]) -> Float[Array, "m"]:
    """Exclusive cumulative sum of packed values within each segment of equal `owner`.

    Doubles the distance over which it adds until that exceeds every segment (Hillis and Steele
    1986). The loop makes a few passes over the array and compiles quickly. Differences of one
    cumulative sum over the entire array would lose precision.

    Args:
      values: (m,).
      owner: (m,) ascending; the ray that each value belongs to.
    """
    return _sum_before(values, owner)


def _sum_before(values: Float[Array, "m"], owner: Int[Array, "m"]) -> Float[Array, "m"]:
    count = values.shape[0]
    lowest = jnp.full_like(owner, jnp.iinfo(owner.dtype).min)
    owners = jnp.concatenate([lowest, owner])

    def shift(padded: Array, distance: int | Int[Array, ""]) -> Array:
        # dynamic_slice counts a negative start from the end.
        return jax.lax.dynamic_slice(padded, (jnp.maximum(count - distance, 0),), (count,))

    def add(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        sums, distance, _ = carry
        same = shift(owners, distance) == owner
        before = shift(jnp.concatenate([jnp.zeros_like(sums), sums]), distance)
        return sums + jnp.where(same, before, 0.0), 2 * distance, jnp.any(same)

    one_before = jnp.concatenate([jnp.zeros_like(values), values])
    start = jnp.where(shift(owners, 1) == owner, shift(one_before, 1), 0.0)
    sums, _, _ = jax.lax.while_loop(
        lambda carry: carry[2], add, (start, jnp.asarray(1, jnp.int32), jnp.asarray(True))
    )
    return sums


def _sum_before_forward(
    values: Float[Array, "m"], owner: Int[Array, "m"]
) -> tuple[Float[Array, "m"], Int[Array, "m"]]:
    return _sum_before(values, owner), owner


def _sum_before_backward(
    owner: Int[Array, "m"], gradient: Float[Array, "m"]
) -> tuple[Float[Array, "m"], None]:
    return _sum_before(gradient[::-1], -owner[::-1])[::-1], None


sum_before.defvjp(_sum_before_forward, _sum_before_backward)

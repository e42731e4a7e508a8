"""Packing: the few elements of a large array that matter, in a fixed number of places."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import population_count
from jaxtyping import Array, Bool, Float, Int, UInt32


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
    places = bits << jnp.arange(32, dtype=jnp.uint32).reshape(1, 1, 32)
    # Sums of whole numbers are wider where numbers are of 64 bits.
    return jnp.sum(places, axis=-1, dtype=jnp.uint32)


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


@jax.custom_vjp
def sum_before(values: Float[Array, "m"], owner: Int[Array, "m"]) -> Float[Array, "m"]:
    """For each packed value the sum of those before it that have the same owner.

    Doubles the distance over which it adds until no owner reaches as far (Hillis, Steele 1986), in
    a loop: a few passes over the array and a program that compiles quickly. No digits are lost as
    in differences of one running sum.

    Args:
      values: (m,).
      owner: (m,) ascending.
    """
    return _sum_before(values, owner)


def _sum_before(values: Float[Array, "m"], owner: Int[Array, "m"]) -> Float[Array, "m"]:
    count = values.shape[0]
    lowest = jnp.full_like(owner, jnp.iinfo(owner.dtype).min)
    owners = jnp.concatenate([lowest, owner])

    def shift(padded: Array, distance: int | Int[Array, ""]) -> Array:
        # A negative start would count from the end.
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

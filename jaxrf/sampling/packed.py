"""Packed samples: those of many rays in one array of constant length."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class PackedSamples(NamedTuple):
    """Samples of many rays one after the other, those of a ray in order, in a fixed budget.

    t_starts, t_ends: (m,) distances along the ray between which each lies; both 0 if unused.
    ray_indices: (m,) the ray of each, ascending; unused slots repeat the last ray.
    mask: (m,) whether the slot is used.
    """

    t_starts: Float[Array, "m"]
    t_ends: Float[Array, "m"]
    ray_indices: Int[Array, "m"]
    mask: Bool[Array, "m"]

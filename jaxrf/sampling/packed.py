"""Packed samples: samples of many rays in one array of fixed size."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class PackedSamples(NamedTuple):
    """Intervals along many rays, concatenated ray by ray, in an array of fixed size m.

    Within a ray the samples are in order of distance. Unused slots are at the end.

    Attributes:
      t_starts: (m,) distance along the ray at which each sample starts; 0 in unused slots.
      t_ends: (m,) distance at which it ends; 0 in unused slots.
      ray_indices: (m,) index of the sample's ray, ascending; the last ray in unused slots.
      mask: (m,) True in slots that hold a sample.
    """

    t_starts: Float[Array, "m"]
    t_ends: Float[Array, "m"]
    ray_indices: Int[Array, "m"]
    mask: Bool[Array, "m"]

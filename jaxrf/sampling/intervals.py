"""Samplers of ray intervals: rays to sorted interval edges, all of the same number.

Randomness comes from a PRNG key: one for all rays, or one for each ray. Without a key, samplers are
deterministic.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core import rngs
from jaxrf.core.rays import Rays, normalize_distances
from jaxrf.core.stepfun import integrate_weights, invert_cdf, midpoints

Spacing = Literal["linear", "disparity", "power"]

# Zip-NeRF's exponent: distances are about even up to half a unit, and beyond it between even and
# even in disparity.
POWER = -1.5


def stratified(
    key: jax.Array | None,
    rays: Rays,
    count: int,
    spacing: Spacing = "linear",
    unit: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch count_plus_1"]:
    """Edges of `count` intervals that tile each ray from near to far.

    With a key, each interior edge is uniform in a cell of one interval's size around its evenly
    spaced position, independently for each ray (NeRF, eq. 2, for edges instead of points). Without
    a key, edges are evenly spaced. The first edge is always near and the last is always far.

    Args:
      key: PRNG key, one for all rays or one for each; None for even spacing.
      rays: any batch shape.
      count: number of intervals.
      spacing: "linear" in distance, in "disparity", the inverse of the distance, or in its "power"
        (Barron et al.: Zip-NeRF, ICCV 2023). Disparity needs a near above 0; for interior
        edges, a near below 1e-3 far is replaced by 1e-3 far.
      unit: distance that the power is of.

    >>> rays = Rays(
    ...     origins=jnp.zeros((1, 3)),
    ...     directions=jnp.array([[0.0, 0.0, 1.0]]),
    ...     near=jnp.ones(1),
    ...     far=jnp.full(1, 4.0),
    ...     radii=jnp.zeros(1),
    ...     camera_index=jnp.zeros(1, int),
    ... )
    >>> stratified(None, rays, 3).tolist()
    [[1.0, 2.0, 3.0, 4.0]]
    >>> stratified(jax.random.key(0), rays, 64).shape
    (1, 65)
    """
    sdist = _linspace_s(rays, count + 1)
    if key is not None:
        shift = rngs.uniform(key, sdist.shape, sdist.dtype, -0.5, 0.5) / count
        sdist = sdist.at[..., 1:-1].add(shift[..., 1:-1])
    return _apply_spacing(rays, sdist, spacing, unit)


def stratified_legacy(
    key: jax.Array | None,
    rays: Rays,
    count: int,
    spacing: Spacing = "linear",
) -> Float[Array, "*batch count"]:
    """`count` ordered points on each ray, placed as by NeRF's original code.

    Without a key they are evenly spaced from near to far, both included. With a key, each point is
    uniform between the midpoints to its neighbors; the first is not before near and the last not
    after far.
    """
    even = _apply_spacing(rays, _linspace_s(rays, count), spacing)
    if key is None:
        return even
    middle = midpoints(even)
    lower = jnp.concatenate([even[..., :1], middle], axis=-1)
    upper = jnp.concatenate([middle, even[..., -1:]], axis=-1)
    return lower + (upper - lower) * rngs.uniform(key, even.shape, even.dtype)


def _linspace_s(rays: Rays, count: int) -> Float[Array, "*batch count"]:
    """`count` evenly spaced numbers from 0 to 1 for each ray."""
    even = jnp.linspace(0.0, 1.0, count, dtype=rays.near.dtype)
    shape = (*rays.near.shape, count)
    return jnp.broadcast_to(even.reshape((1,) * rays.near.ndim + (-1,)), shape)


def _apply_spacing(
    rays: Rays,
    sdist: Float[Array, "*batch n"],
    spacing: Spacing,
    unit: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch n"]:
    """Metric distances of normalized ones, where 0 is near and 1 is far."""
    near, far = rays.near[..., None], rays.far[..., None]
    if spacing == "disparity":
        # Avoids the inverse of 0 for rays without length at distance 0.
        positive_far = jnp.where(far > 0.0, far, 1.0)
        inverse_near = 1.0 / jnp.maximum(near, 1e-3 * positive_far)
        inverse = inverse_near + sdist * (1.0 / positive_far - inverse_near)
        interior = jnp.clip(1.0 / inverse, near, far)
        return jnp.where(sdist > 0.0, jnp.where(sdist < 1.0, interior, far), near)
    if spacing == "power":
        first, last = (_raise(2.0 * distance / unit) for distance in (near, far))
        interior = 0.5 * unit * _lower(first + sdist * (last - first))
        interior = jnp.clip(interior, near, far)
        return jnp.where(sdist > 0.0, jnp.where(sdist < 1.0, interior, far), near)
    # Rounding must not move the last edge before or beyond far.
    return jnp.where(sdist < 1.0, jnp.minimum(near + sdist * (far - near), far), far)


def _raise(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Zip-NeRF's P(x) = (|p - 1| / p) ((x / |p - 1| + 1)^p - 1) with p = `POWER`, of x from 0."""
    width = abs(POWER - 1.0)
    return width / POWER * (jnp.power(x / width + 1.0, POWER) - 1.0)


def _lower(y: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Inverse of `_raise`."""
    width = abs(POWER - 1.0)
    # Rounding must not reach the limit, which is that of an infinite distance.
    base = jnp.maximum(1.0 + y * POWER / width, 1e-7)
    return width * (jnp.power(base, 1.0 / POWER) - 1.0)


def undo_spacing(
    rays: Rays,
    tdist: Float[Array, "*batch n"],
    spacing: Spacing,
    unit: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch n"]:
    """Normalized distances, in which `stratified` spreads edges evenly, of metric ones.

    0 is near and 1 is far; rays without length are 0 throughout.
    """
    near, far = rays.near[..., None], rays.far[..., None]
    if spacing == "disparity":
        positive_far = jnp.where(far > 0.0, far, 1.0)
        first = jnp.maximum(near, 1e-3 * positive_far)
        inverse_near, inverse_far = 1.0 / first, 1.0 / positive_far
        span = inverse_near - inverse_far
        inverse = 1.0 / jnp.maximum(tdist, first)
        return jnp.where(
            span > 0.0, (inverse_near - inverse) / jnp.where(span > 0.0, span, 1.0), 0.0
        )
    if spacing == "power":
        first, last, height = (_raise(2.0 * distance / unit) for distance in (near, far, tdist))
        span = last - first
        return jnp.where(span > 0.0, (height - first) / jnp.where(span > 0.0, span, 1.0), 0.0)
    return normalize_distances(rays, tdist)


def resample_intervals(
    key: jax.Array | None,
    tdist: Float[Array, "*batch n_plus_1"],
    weights: Float[Array, "*batch n"],
    count: int,
) -> Float[Array, "*batch count_plus_1"]:
    """Edges of `count` intervals distributed by the weights (Mip-NeRF 360, section 3).

    The first and the last edge are those of `tdist`. Each weight is padded by 1e-2 / n, so that
    every interval can be sampled. No gradient flows through.

    Args:
      key: PRNG key, one for all rays or one for each; None for a deterministic result.
      tdist: (..., n + 1) interval edges, ascending.
      weights: (..., n) of the intervals, not negative.
      count: number of new intervals.

    Examples:
      >>> tdist, weights = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 0.0])
      >>> edges = resample_intervals(None, tdist, weights, 5)
      >>> [round(edge, 2) for edge in edges.tolist()]
      [0.0, 1.12, 1.37, 1.63, 1.88, 3.0]
    """
    weights = jax.lax.stop_gradient(weights)
    cdf = integrate_weights(weights, padding=0.01 / weights.shape[-1])
    uniforms = stratified_uniforms(key, (*weights.shape[:-1], count - 1), weights.dtype)
    interior = invert_cdf(uniforms, tdist, cdf)
    edges = jnp.concatenate([tdist[..., :1], interior, tdist[..., -1:]], axis=-1)
    return jax.lax.stop_gradient(edges)


def hierarchical_sample(
    key: jax.Array | None,
    tdist: Float[Array, "*batch n_plus_1"],
    weights: Float[Array, "*batch n"],
    count: int,
) -> Float[Array, "*batch m"]:
    """Edges of n + count intervals: those of `tdist` and `count` drawn by the weights, sorted.

    Hierarchical sampling (NeRF, section 5.2) in which the fine pass uses the union of both sets.
    The weights are blurred by the mean of the maxima of neighbors (Mip-NeRF, eq. 18) and padded by
    1e-2, so that a surface that the coarse pass misses can still be sampled. No gradient flows
    through.

    Args:
      key: PRNG key, one for all rays or one for each; None for a deterministic result.
      tdist: (..., n + 1) interval edges, ascending.
      weights: (..., n) of the intervals, not negative.
      count: number of edges to draw.
    """
    weights = jax.lax.stop_gradient(weights)
    padded = jnp.concatenate([weights[..., :1], weights, weights[..., -1:]], axis=-1)
    maxima = jnp.maximum(padded[..., :-1], padded[..., 1:])
    cdf = integrate_weights(midpoints(maxima), padding=0.01)
    uniforms = stratified_uniforms(key, (*weights.shape[:-1], count), weights.dtype)
    drawn = invert_cdf(uniforms, tdist, cdf)
    return jax.lax.stop_gradient(jnp.sort(jnp.concatenate([tdist, drawn], axis=-1), axis=-1))


def hierarchical_legacy(
    key: jax.Array | None,
    points: Float[Array, "*batch n"],
    weights: Float[Array, "*batch n"],
    count: int,
    padded: bool = True,
) -> Float[Array, "*batch m"]:
    """The points and `count` more drawn by the weights, sorted, as in NeRF's original code.

    The weight of a point extends between the midpoints to its neighbors and is padded by 1e-5; the
    first and the last weight are not used. Without a key the new points are evenly spaced in the
    distribution, from 0 to 1. No gradient flows through.

    Args:
      key: PRNG key, one for all rays or one for each; None for a deterministic result.
      points: (..., n) ascending distances, n at least 3.
      weights: (..., n) of the points, not negative.
      count: number of points to draw.
      padded: False draws as jaxnerf does since 2021: weights are padded only where they sum to less
        than 1e-5, and evenly spaced numbers end at 1 minus the epsilon of float32.
    """
    points, weights = jax.lax.stop_gradient((points, weights))
    shape = (*weights.shape[:-1], count)
    if key is None:
        last = 1.0 if padded else 1.0 - float(jnp.finfo(jnp.float32).eps)
        even = jnp.linspace(0.0, last, count, dtype=weights.dtype)
        uniforms = jnp.broadcast_to(even.reshape((1,) * (weights.ndim - 1) + (-1,)), shape)
    else:
        uniforms = rngs.uniform(key, shape, weights.dtype)
    interior = weights[..., 1:-1]
    if padded:
        invert = jnp.vectorize(_invert_cdf_legacy, signature="(m),(n),(n)->(m)")
        drawn = invert(uniforms, midpoints(points), _integrate_padded(interior))
    else:
        drawn = invert_cdf(uniforms, midpoints(points), _integrate_unpadded(interior))
    return jax.lax.stop_gradient(jnp.sort(jnp.concatenate([points, drawn], axis=-1), axis=-1))


def _integrate_padded(weights: Float[Array, "*batch n"]) -> Float[Array, "*batch n_plus_1"]:
    """The CDF at the edges of intervals whose weights are padded by 1e-5 each."""
    padded = weights + 1e-5
    cdf = jnp.cumsum(padded / jnp.sum(padded, axis=-1, keepdims=True), axis=-1)
    return jnp.concatenate([jnp.zeros_like(cdf[..., :1]), cdf], axis=-1)


def _integrate_unpadded(weights: Float[Array, "*batch n"]) -> Float[Array, "*batch n_plus_1"]:
    """The CDF, from exactly 0 to exactly 1, of weights whose sum is raised to 1e-5 if below."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    missing = jnp.maximum(1e-5 - total, 0.0)
    probability = (weights + missing / weights.shape[-1]) / (total + missing)
    cdf = jnp.minimum(jnp.cumsum(probability[..., :-1], axis=-1), 1.0)
    first = jnp.zeros_like(weights[..., :1])
    return jnp.concatenate([first, cdf, jnp.ones_like(first)], axis=-1)


def _invert_cdf_legacy(
    uniforms: Float[Array, "m"], tdist: Float[Array, "n"], cdf: Float[Array, "n"]
) -> Float[Array, "m"]:
    """Inverts a CDF as NeRF's original code does, including its treatment of flat intervals."""
    above = jnp.searchsorted(cdf, uniforms, side="right")
    below, above = jnp.maximum(above - 1, 0), jnp.minimum(above, cdf.shape[0] - 1)
    probability = cdf[above] - cdf[below]
    fraction = (uniforms - cdf[below]) / jnp.where(probability < 1e-5, 1.0, probability)
    return tdist[below] + fraction * (tdist[above] - tdist[below])


def stratified_uniforms(
    key: jax.Array | None, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> Float[Array, "*batch m"]:
    """Sorted numbers in [0, 1), one in each of m equal strata, m being the last axis' size.

    With a key, or one for each ray, each number is uniform within its stratum; without a key it is
    the center of the stratum.
    """
    count = shape[-1]
    offset = 0.5 if key is None else rngs.uniform(key, shape, dtype)
    strata = jnp.arange(count, dtype=dtype).reshape((1,) * (len(shape) - 1) + (count,))
    below_one = 1.0 - jnp.finfo(dtype).eps
    return jnp.broadcast_to(jnp.minimum((strata + offset) / count, below_one), shape)

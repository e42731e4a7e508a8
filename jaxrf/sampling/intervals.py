"""Samplers: rays in, interval edges along them out.

Every source of chance is a key, one for all rays or one for each.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core import rngs
from jaxrf.core.rays import Rays
from jaxrf.core.stepfun import integrate_weights, invert_cdf, midpoints


def stratified(
    key: jax.Array | None,
    rays: Rays,
    count: int,
    spacing: Literal["linear", "disparity"] = "linear",
) -> Float[Array, "*batch count_plus_1"]:
    """Edges of `count` intervals that tile each ray from near to far.

    With a key, every inner edge is uniform in the cell around its even place, independently for
    each ray (NeRF, eq. 2, with edges for points); without, the edges are even. The first edge is
    near and the last is far, always. With a `spacing` in disparity they are even in the inverse of
    the distance; near must then be above 0 (one below 1e-3 of far counts as that for inner edges).
    """
    sdist = _count_evenly(rays, count + 1)
    if key is not None:
        shift = rngs.uniform(key, sdist.shape, sdist.dtype, -0.5, 0.5) / count
        sdist = sdist.at[..., 1:-1].add(shift[..., 1:-1])
    return _space(rays, sdist, spacing)


def stratified_legacy(
    key: jax.Array | None,
    rays: Rays,
    count: int,
    spacing: Literal["linear", "disparity"] = "linear",
) -> Float[Array, "*batch count"]:
    """Ordered points on each ray, as the original code of NeRF places them.

    Without a key they are even from near to far, both included; with one, each is uniform between
    the middles to its neighbours, the first and the last not beyond their even places.
    """
    even = _space(rays, _count_evenly(rays, count), spacing)
    if key is None:
        return even
    between = midpoints(even)
    lower = jnp.concatenate([even[..., :1], between], axis=-1)
    upper = jnp.concatenate([between, even[..., -1:]], axis=-1)
    return lower + (upper - lower) * rngs.uniform(key, even.shape, even.dtype)


def _count_evenly(rays: Rays, count: int) -> Float[Array, "*batch count"]:
    even = jnp.linspace(0.0, 1.0, count, dtype=rays.near.dtype)
    shape = (*rays.near.shape, count)
    return jnp.broadcast_to(even.reshape((1,) * rays.near.ndim + (-1,)), shape)


def _space(
    rays: Rays, sdist: Float[Array, "*batch n"], spacing: Literal["linear", "disparity"]
) -> Float[Array, "*batch n"]:
    """Distances of which near is 0 and far is 1, in distance or in its inverse."""
    near, far = rays.near[..., None], rays.far[..., None]
    if spacing == "disparity":
        # A ray that ends where it begins at 0 has no inverse, and gets none.
        positive_far = jnp.where(far > 0.0, far, 1.0)
        inverse_near = 1.0 / jnp.maximum(near, 1e-3 * positive_far)
        inverse = inverse_near + sdist * (1.0 / positive_far - inverse_near)
        inner = jnp.clip(1.0 / inverse, near, far)
        return jnp.where(sdist > 0.0, jnp.where(sdist < 1.0, inner, far), near)
    # Rounding must neither pass far nor stop short of it.
    return jnp.where(sdist < 1.0, jnp.minimum(near + sdist * (far - near), far), far)


def resample(
    key: jax.Array | None,
    tdist: Float[Array, "*batch n_plus_1"],
    weights: Float[Array, "*batch n"],
    count: int,
) -> Float[Array, "*batch count_plus_1"]:
    """Edges of `count` intervals where the weights are, from near to far (Mip-NeRF 360, section 3).

    The weights are padded by 1e-2 of an even share, so that nothing is never looked at. The first
    and the last edge are those given. No gradient flows through.
    """
    weights = jax.lax.stop_gradient(weights)
    cdf = integrate_weights(weights, padding=0.01 / weights.shape[-1])
    uniforms = stratified_uniforms(key, (*weights.shape[:-1], count - 1), weights.dtype)
    inner = invert_cdf(uniforms, tdist, cdf)
    edges = jnp.concatenate([tdist[..., :1], inner, tdist[..., -1:]], axis=-1)
    return jax.lax.stop_gradient(edges)


def importance(
    key: jax.Array | None,
    tdist: Float[Array, "*batch n_plus_1"],
    weights: Float[Array, "*batch n"],
    count: int,
) -> Float[Array, "*batch m"]:
    """The given edges and `count` more drawn where the weights are, sorted: n + count intervals.

    Hierarchical sampling (NeRF, section 5.2) with the fine pass over the union of both sets. The
    weights are blurred by the mean of the maxima of neighbours (Mip-NeRF, eq. 18) and padded by
    1e-2, so that an edge missed by the coarse pass can still be found. No gradient flows through.
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
) -> Float[Array, "*batch m"]:
    """The given points and `count` more where the weights are, sorted, as in NeRF's original code.

    The weight of a point, the first and the last left out, counts between the middles to its
    neighbours, padded by 1e-5. Without a key the new points are even in the distribution. No
    gradient flows through.

    Args:
      key: of the chance, if any.
      points: ordered, 3 or more.
      weights: of the points.
      count: how many more.
    """
    points, weights = jax.lax.stop_gradient((points, weights))
    inner = weights[..., 1:-1] + 1e-5
    cdf = jnp.cumsum(inner / jnp.sum(inner, axis=-1, keepdims=True), axis=-1)
    cdf = jnp.concatenate([jnp.zeros_like(cdf[..., :1]), cdf], axis=-1)
    shape = (*weights.shape[:-1], count)
    if key is None:
        even = jnp.linspace(0.0, 1.0, count, dtype=weights.dtype)
        uniforms = jnp.broadcast_to(even.reshape((1,) * (weights.ndim - 1) + (-1,)), shape)
    else:
        uniforms = rngs.uniform(key, shape, weights.dtype)

    def invert(u: Array, t: Array, c: Array) -> Array:
        # As that code has it, stretches that are nearly flat included.
        above = jnp.searchsorted(c, u, side="right")
        below, above = jnp.maximum(above - 1, 0), jnp.minimum(above, c.shape[0] - 1)
        span = c[above] - c[below]
        share = (u - c[below]) / jnp.where(span < 1e-5, 1.0, span)
        return t[below] + share * (t[above] - t[below])

    drawn = jnp.vectorize(invert, signature="(m),(n),(n)->(m)")(uniforms, midpoints(points), cdf)
    return jax.lax.stop_gradient(jnp.sort(jnp.concatenate([points, drawn], axis=-1), axis=-1))


def stratified_uniforms(
    key: jax.Array | None, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> Float[Array, "*batch m"]:
    """Ordered numbers in [0, 1), one in each of the last axis' m equal strata.

    With a key, or one for each ray, each is uniform within its stratum; without, each is its
    stratum's centre.
    """
    count = shape[-1]
    offset = 0.5 if key is None else rngs.uniform(key, shape, dtype)
    strata = jnp.arange(count, dtype=dtype).reshape((1,) * (len(shape) - 1) + (count,))
    largest = 1.0 - jnp.finfo(dtype).eps
    return jnp.broadcast_to(jnp.minimum((strata + offset) / count, largest), shape)

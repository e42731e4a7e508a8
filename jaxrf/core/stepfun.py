"""Step functions along a ray: n values between n + 1 edges."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def midpoints(tdist: Float[Array, "*batch n_plus_1"]) -> Float[Array, "*batch n"]:
    """Midpoint of each interval."""
    return 0.5 * (tdist[..., 1:] + tdist[..., :-1])


def integrate_weights(
    weights: Float[Array, "*batch n"], padding: float = 0.0
) -> Float[Array, "*batch n_plus_1"]:
    """Cumulative distribution at the n + 1 edges, from exactly 0 to exactly 1.

    Args:
      weights: non-negative; they need not sum to one.
      padding: added to every weight, which moves the distribution towards a uniform one. A ray
        whose weights are all zero gets a uniform distribution with any padding.
    """
    padded = weights + padding
    total = jnp.sum(padded, axis=-1, keepdims=True)
    uniform = jnp.ones_like(padded) / padded.shape[-1]
    pdf = jnp.where(total > 0, padded / jnp.where(total > 0, total, 1.0), uniform)
    interior = jnp.minimum(jnp.cumsum(pdf[..., :-1], axis=-1), 1.0)
    zero = jnp.zeros_like(interior, shape=(*interior.shape[:-1], 1))
    return jnp.concatenate([zero, interior, zero + 1.0], axis=-1)


def invert_cdf(
    uniforms: Float[Array, "*batch m"],
    tdist: Float[Array, "*batch n_plus_1"],
    cdf: Float[Array, "*batch n_plus_1"],
) -> Float[Array, "*batch m"]:
    """Distances at which the piecewise-linear CDF takes given values in [0, 1].

    Inverse transform sampling of a histogram (NeRF, section 5.2). A flat part of the CDF has
    probability 0 and gets no samples.
    """

    def invert(u: Array, t: Array, c: Array) -> Array:
        # A search from the right steps over flat parts, but for one at the last value.
        edges = jax.lax.stop_gradient(c)
        below_last = jnp.minimum(u, jnp.nextafter(edges[-1], jnp.zeros_like(edges[-1])))
        upper = jnp.clip(jnp.searchsorted(edges, below_last, side="right"), 1, c.shape[0] - 1)
        lower = upper - 1
        span = c[upper] - c[lower]
        fraction = jnp.where(span > 0, (u - c[lower]) / jnp.where(span > 0, span, 1.0), 0.0)
        return t[lower] + jnp.clip(fraction, 0.0, 1.0) * (t[upper] - t[lower])

    return jnp.vectorize(invert, signature="(m),(n),(n)->(m)")(uniforms, tdist, cdf)


def blur(
    tdist: Float[Array, "*batch n_plus_1"],
    values: Float[Array, "*batch n"],
    radius: float,
) -> tuple[Float[Array, "*batch knots"], Float[Array, "*batch knots"]]:
    """A step function blurred by a box of a half width: a piecewise linear one (Zip-NeRF, eq. 9).

    Args:
      tdist: (..., n + 1) edges, ascending.
      values: (..., n) between them; 0 outside.
      radius: half the width of the box, above 0.

    Returns:
      Positions (..., 2 n + 2), ascending, and the blurred function there, which is 0 at both ends.
    """
    padded = jnp.concatenate([values, jnp.zeros_like(values[..., :1])], axis=-1)
    jump = padded - jnp.roll(padded, 1, axis=-1)
    slope_change = jump / (2.0 * radius)
    knots = jnp.concatenate([tdist - radius, tdist + radius], axis=-1)
    order = jnp.argsort(knots, axis=-1)
    knots = jnp.take_along_axis(knots, order, axis=-1)
    changes = jnp.concatenate([slope_change, -slope_change], axis=-1)
    slopes = jnp.cumsum(jnp.take_along_axis(changes, order, axis=-1)[..., :-1], axis=-1)
    rises = jnp.cumsum(slopes * jnp.diff(knots, axis=-1), axis=-1)
    blurred = jnp.concatenate([jnp.zeros_like(rises[..., :1]), rises], axis=-1)
    # Rounding must not make it negative.
    return knots, jnp.maximum(blurred, 0.0)


def integrate_linear(
    queries: Float[Array, "*batch m"],
    knots: Float[Array, "*batch k"],
    values: Float[Array, "*batch k"],
) -> Float[Array, "*batch m"]:
    """Integral of a piecewise linear function up to each query.

    Args:
      queries: ascending or not; before the first knot the integral is 0, past the last it stays.
      knots: (..., k) ascending.
      values: (..., k) of the function there.
    """
    lengths = jnp.diff(knots, axis=-1)
    areas = lengths * midpoints(values)
    before = jnp.concatenate([jnp.zeros_like(areas[..., :1]), jnp.cumsum(areas, axis=-1)], axis=-1)

    def integrate(q: Array, x: Array, y: Array, total: Array) -> Array:
        index = jnp.clip(jnp.searchsorted(x, q, side="right") - 1, 0, x.shape[0] - 2)
        length = x[index + 1] - x[index]
        step = jnp.clip(q - x[index], 0.0, length)
        slope = (y[index + 1] - y[index]) / jnp.where(length > 0.0, length, 1.0)
        return total[index] + step * (y[index] + 0.5 * slope * step)

    return jnp.vectorize(integrate, signature="(m),(k),(k),(k)->(m)")(
        queries, knots, values, before
    )

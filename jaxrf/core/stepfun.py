"""Step functions along a ray: n values between n + 1 edges."""

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
        # A search from the right steps over flat parts; at the last value, one from the left does.
        after, before = (jnp.searchsorted(c, u, side=side) for side in ("right", "left"))
        upper = jnp.clip(jnp.where(u < c[-1], after, before), 1, c.shape[0] - 1)
        lower = upper - 1
        span = c[upper] - c[lower]
        fraction = jnp.where(span > 0, (u - c[lower]) / jnp.where(span > 0, span, 1.0), 0.0)
        return t[lower] + jnp.clip(fraction, 0.0, 1.0) * (t[upper] - t[lower])

    return jnp.vectorize(invert, signature="(m),(n),(n)->(m)")(uniforms, tdist, cdf)

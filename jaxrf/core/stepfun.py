"""Step functions along a ray: n values between n + 1 edges."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def midpoints(tdist: Float[Array, "*batch n_plus_1"]) -> Float[Array, "*batch n"]:
    """The middle of each interval."""
    return 0.5 * (tdist[..., 1:] + tdist[..., :-1])


def integrate_weights(
    weights: Float[Array, "*batch n"], padding: float = 0.0
) -> Float[Array, "*batch n_plus_1"]:
    """The cumulative distribution at the n + 1 edges, from exactly 0 to exactly 1.

    Args:
      weights: non-negative, not necessarily summing to one.
      padding: added to every weight, so that a ray that saw nothing is sampled evenly. A ray whose
        weights are all zero is sampled evenly whatever the padding.
    """
    padded = weights + padding
    total = jnp.sum(padded, axis=-1, keepdims=True)
    even = jnp.ones_like(padded) / padded.shape[-1]
    pdf = jnp.where(total > 0, padded / jnp.where(total > 0, total, 1.0), even)
    inner = jnp.minimum(jnp.cumsum(pdf[..., :-1], axis=-1), 1.0)
    zero = jnp.zeros_like(inner, shape=(*inner.shape[:-1], 1))
    return jnp.concatenate([zero, inner, zero + 1.0], axis=-1)


def invert_cdf(
    uniforms: Float[Array, "*batch m"],
    tdist: Float[Array, "*batch n_plus_1"],
    cdf: Float[Array, "*batch n_plus_1"],
) -> Float[Array, "*batch m"]:
    """Distances at which the piecewise-linear CDF takes the given values in [0, 1].

    Inverse transform sampling of a histogram (NeRF, section 5.2). A flat stretch of the CDF has no
    probability and is never landed in.
    """

    def invert(u: Array, t: Array, c: Array) -> Array:
        # From the right, flat stretches are stepped over; at the very end, from the left.
        after, before = (jnp.searchsorted(c, u, side=side) for side in ("right", "left"))
        upper = jnp.clip(jnp.where(u < c[-1], after, before), 1, c.shape[0] - 1)
        lower = upper - 1
        span = c[upper] - c[lower]
        fraction = jnp.where(span > 0, (u - c[lower]) / jnp.where(span > 0, span, 1.0), 0.0)
        return t[lower] + jnp.clip(fraction, 0.0, 1.0) * (t[upper] - t[lower])

    return jnp.vectorize(invert, signature="(m),(n),(n)->(m)")(uniforms, tdist, cdf)

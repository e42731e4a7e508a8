"""Losses on the weights and opacities of rays.

Letters in shapes: r rays, n intervals of a ray, k intervals of a proposal, m packed samples.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrf.core import stepfun
from jaxrf.core.packing import sum_before
from jaxrf.core.stepfun import midpoints

# Added to weights before their logarithm, so that its gradient is finite.
WEIGHT_EPS = 1e-5


def opacity_entropy(opacity: Float[Array, "r"]) -> Float[Array, "r"]:
    """Binary entropy of each ray's opacity in nats; minimizing it pulls opacities to 0 or 1.

    Opacities are clipped to [1e-5, 1 - 1e-5], so that the gradient is finite.
    """
    p = jnp.clip(opacity, 1e-5, 1.0 - 1e-5)
    return -(p * jnp.log(p) + (1.0 - p) * jnp.log1p(-p))


def distortion_loss(
    weights: Float[Array, "*batch n"], sdist: Float[Array, "*batch n_plus_1"]
) -> Float[Array, "*batch"]:
    """Distortion of each ray's weights; minimizing it concentrates them (Mip-NeRF 360, eq. 15).

    sum_ij w_i w_j |s_i - s_j| + 1/3 sum_i w_i^2 (s_{i+1/2} - s_{i-1/2}), s_i being the midpoint of
    interval i. Computed in linear time: of each pair the farther interval counts twice.

    Args:
      weights: (..., n) of the intervals.
      sdist: (..., n + 1) interval edges, ascending, normalized to [0, 1].
    """
    middle = midpoints(sdist)
    moment = weights * middle
    weight_before = jnp.cumsum(weights, axis=-1) - weights
    moment_before = jnp.cumsum(moment, axis=-1) - moment
    between = 2.0 * jnp.sum(weights * (middle * weight_before - moment_before), axis=-1)
    return between + jnp.sum(jnp.square(weights) * jnp.diff(sdist, axis=-1), axis=-1) / 3.0


def packed_distortion_loss(
    weights: Float[Array, "m"],
    s_starts: Float[Array, "m"],
    s_ends: Float[Array, "m"],
    ray_indices: Int[Array, "m"],
    num_rays: int,
) -> Float[Array, "num_rays"]:
    """`distortion_loss` of rays whose samples are packed.

    Args:
      weights: (m,) of the samples; 0 in unused slots.
      s_starts, s_ends: (m,) edges of the samples, normalized to [0, 1], ascending along each ray.
      ray_indices: (m,) ray of each sample, ascending.
      num_rays: number of rays.
    """
    middle = 0.5 * (s_starts + s_ends)
    weight_before = sum_before(weights, ray_indices)
    moment_before = sum_before(weights * middle, ray_indices)
    within = jnp.square(weights) * (s_ends - s_starts) / 3.0
    terms = 2.0 * weights * (middle * weight_before - moment_before) + within
    return jnp.zeros((num_rays,), terms.dtype).at[ray_indices].add(terms, indices_are_sorted=True)


def depth_loss(
    weights: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
    depth: Float[Array, "*batch"],
    std: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Cross entropy of each ray's weights with a normal distribution around a known depth.

    -sum_i p_i log(w_i + 1e-5), p_i being the probability of interval i (DS-NeRF, eq. 6 and 7,
    where the density at its middle times its length stands for it).

    Args:
      weights: (..., n) of the intervals.
      tdist: (..., n + 1) interval edges, ascending.
      depth: (...) of the ray's end, in the unit of `tdist`.
      std: (...) standard deviation of the depth, above 0.
    """
    # Edges are not moved by this loss; those at infinity would make the gradient NaN.
    edges = jax.lax.stop_gradient(tdist)
    below = _normal_cdf((edges - depth[..., None]) / std[..., None])
    probability = jnp.diff(below, axis=-1)
    return -jnp.sum(probability * jnp.log(weights + WEIGHT_EPS), axis=-1)


def packed_depth_loss(
    weights: Float[Array, "m"],
    t_starts: Float[Array, "m"],
    t_ends: Float[Array, "m"],
    ray_indices: Int[Array, "m"],
    depth: Float[Array, "r"],
    std: Float[Array, "r"],
) -> Float[Array, "r"]:
    """`depth_loss` of rays whose samples are packed.

    Args:
      weights: (m,) of the samples.
      t_starts, t_ends: (m,) edges of the samples; equal in unused slots.
      ray_indices: (m,) ray of each sample, ascending.
      depth: (r,) of each ray's end.
      std: (r,) standard deviation of the depth, above 0.
    """
    known, width = depth[ray_indices], std[ray_indices]
    below, above = (_normal_cdf((t - known) / width) for t in (t_starts, t_ends))
    probability = above - below
    terms = -probability * jnp.log(weights + WEIGHT_EPS)
    return jnp.zeros_like(depth).at[ray_indices].add(terms, indices_are_sorted=True)


def _normal_cdf(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    return 0.5 * (1.0 + jax.lax.erf(x / math.sqrt(2.0)))


def interlevel_loss(
    tdist: Float[Array, "*batch n_plus_1"],
    weights: Float[Array, "*batch n"],
    proposal_tdist: Float[Array, "*batch k_plus_1"],
    proposal_weights: Float[Array, "*batch k"],
) -> Float[Array, "*batch"]:
    """Excess of the weights over the upper bound that a proposal sets (Mip-NeRF 360, eq. 12, 13).

    sum_i max(0, w_i - bound_i)^2 / w_i, bound_i being the sum of the proposal weights whose
    intervals overlap interval i. Gradients flow to the proposal weights only.

    Args:
      tdist: (..., n + 1) interval edges.
      weights: (..., n) of the intervals.
      proposal_tdist: (..., k + 1) interval edges of the proposal, in the same unit.
      proposal_weights: (..., k) of the proposal.
    """
    tdist, weights = jax.lax.stop_gradient((tdist, weights))
    cumulative = jnp.cumsum(proposal_weights, axis=-1)
    zero = jnp.zeros_like(cumulative[..., :1])
    cumulative = jnp.concatenate([zero, cumulative], axis=-1)
    signature = "(n),(k),(k)->(l)"
    bound = jnp.vectorize(_overlapping_weight, signature=signature)
    excess = jnp.maximum(weights - bound(tdist, proposal_tdist, cumulative), 0.0)
    return jnp.sum(jnp.square(excess) / (weights + 1e-7), axis=-1)


def _overlapping_weight(
    tdist: Float[Array, "n_plus_1"],
    proposal_tdist: Float[Array, "k_plus_1"],
    cumulative: Float[Array, "k_plus_1"],
) -> Float[Array, "n"]:
    """Sum of the proposal weights that overlap each interval, from their cumulative sums."""
    last = proposal_tdist.shape[0] - 1
    first = jnp.clip(jnp.searchsorted(proposal_tdist, tdist[:-1], side="right") - 1, 0, last)
    end = jnp.clip(jnp.searchsorted(proposal_tdist, tdist[1:], side="left"), 0, last)
    # An interval of zero length may have its end before its first; its sum must not be negative.
    return cumulative[jnp.maximum(first, end)] - cumulative[first]


def antialiased_interlevel_loss(
    sdist: Float[Array, "*batch n_plus_1"],
    weights: Float[Array, "*batch n"],
    proposal_sdist: Float[Array, "*batch k_plus_1"],
    proposal_weights: Float[Array, "*batch k"],
    pulse_width: float,
) -> Float[Array, "*batch"]:
    """Excess of the blurred weights over those of a proposal (Barron et al.: Zip-NeRF, eq. 10).

    sum_i max(0, v_i - w_i)^2 / (w_i + 1e-5), w_i being the proposal's weights and v_i the weights,
    blurred by a box and resampled into the proposal's intervals. Unlike `interlevel_loss` it is
    smooth in the distances, so that a thin surface does not flicker as a camera moves along its
    axis. Gradients flow to the proposal weights only.

    Args:
      sdist: (..., n + 1) interval edges, normalized to [0, 1].
      weights: (..., n) of the intervals.
      proposal_sdist: (..., k + 1) interval edges of the proposal, normalized alike.
      proposal_weights: (..., k) of the proposal.
      pulse_width: half the width of the box.
    """
    lengths = jnp.maximum(jnp.diff(sdist, axis=-1), 1e-7)
    knots, blurred = stepfun.blur(sdist, weights / lengths, pulse_width)
    below = stepfun.integrate_linear(proposal_sdist, knots, blurred)
    resampled = jax.lax.stop_gradient(jnp.diff(below, axis=-1))
    excess = jnp.maximum(resampled - proposal_weights, 0.0)
    return jnp.sum(jnp.square(excess) / (proposal_weights + 1e-5), axis=-1)

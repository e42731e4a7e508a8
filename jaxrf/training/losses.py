"""Losses: pure functions of predictions and truth.

Letters in shapes: r rays or pixels, n intervals of a ray, m packed samples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.packing import sum_before
from jaxrf.core.stepfun import midpoints

# (predicted, truth) -> error of each pixel, not negative.
ErrorFn = Callable[[Float[Array, "r 3"], Float[Array, "r 3"]], Float[Array, "r"]]


def squared_error(predicted: Float[Array, "r 3"], truth: Float[Array, "r 3"]) -> Float[Array, "r"]:
    """Mean square of the difference over channels."""
    return jnp.mean(jnp.square(predicted - truth), axis=-1)


def huber_error(
    predicted: Float[Array, "r 3"], truth: Float[Array, "r 3"], delta: float
) -> Float[Array, "r"]:
    """Quadratic up to a difference of delta, linear beyond, mean over channels (Huber 1964).

    Half the square of the difference d where |d| <= delta, else delta (|d| - delta / 2).
    """
    size = jnp.abs(predicted - truth)
    within = jnp.minimum(size, delta)
    return jnp.mean(0.5 * jnp.square(within) + delta * (size - within), axis=-1)


def charbonnier_error(
    predicted: Float[Array, "r 3"], truth: Float[Array, "r 3"], epsilon: float
) -> Float[Array, "r"]:
    """sqrt(d^2 + epsilon^2) of the difference, mean over channels (Charbonnier et al. 1994)."""
    return jnp.mean(jnp.sqrt(jnp.square(predicted - truth) + epsilon**2), axis=-1)


def masked_mean(values: Float[Array, "r"], used: Bool[Array, "r"]) -> Float[Array, ""]:
    """Mean over what is used; zero if nothing is."""
    return jnp.sum(jnp.where(used, values, 0.0)) / jnp.maximum(jnp.sum(used), 1)


def mean_squared_error(
    predicted: Float[Array, "r 3"], truth: Float[Array, "r 3"], used: Bool[Array, "r"]
) -> Float[Array, ""]:
    """Mean over the rays that are used, and over channels; zero if none is."""
    return masked_mean(squared_error(predicted, truth), used)


def opacity_entropy(opacity: Float[Array, "r"]) -> Float[Array, "r"]:
    """Entropy of a ray's being opaque or not, in nats: pulls opacities to 0 or 1."""
    p = jnp.clip(opacity, 1e-5, 1.0 - 1e-5)
    return -(p * jnp.log(p) + (1.0 - p) * jnp.log1p(-p))


def distortion(
    weights: Float[Array, "*batch n"], sdist: Float[Array, "*batch n_plus_1"]
) -> Float[Array, "*batch"]:
    """How far apart a ray's weights lie (Mip-NeRF 360, eq. 15).

    sum_ij w_i w_j |s_i - s_j| + 1/3 sum_i w_i^2 (length of i), s being the intervals' middles, in
    linear time: of each pair the farther one counts twice.

    Args:
      weights: of the intervals.
      sdist: their edges, ascending, between 0 and 1.
    """
    middle = midpoints(sdist)
    moment = weights * middle
    before = jnp.cumsum(weights, axis=-1) - weights
    moment_before = jnp.cumsum(moment, axis=-1) - moment
    apart = 2.0 * jnp.sum(weights * (middle * before - moment_before), axis=-1)
    return apart + jnp.sum(jnp.square(weights) * jnp.diff(sdist, axis=-1), axis=-1) / 3.0


def packed_distortion(
    weights: Float[Array, "m"],
    s_starts: Float[Array, "m"],
    s_ends: Float[Array, "m"],
    ray_indices: Int[Array, "m"],
    rays: int,
) -> Float[Array, "rays"]:
    """`distortion` of rays whose samples are packed, ascending by ray and along it."""
    middle = 0.5 * (s_starts + s_ends)
    before = sum_before(weights, ray_indices)
    moment_before = sum_before(weights * middle, ray_indices)
    own = jnp.square(weights) * (s_ends - s_starts) / 3.0
    parts = 2.0 * weights * (middle * before - moment_before) + own
    return jnp.zeros((rays,), parts.dtype).at[ray_indices].add(parts, indices_are_sorted=True)


def interlevel(
    tdist: Float[Array, "*batch n_plus_1"],
    weights: Float[Array, "*batch n"],
    proposed_tdist: Float[Array, "*batch k_plus_1"],
    proposed_weights: Float[Array, "*batch k"],
) -> Float[Array, "*batch"]:
    """By how much weights exceed what a proposal allows there (Mip-NeRF 360, eq. 12 and 13).

    sum_i max(0, w_i - bound_i)^2 / w_i, the bound being the sum of all proposed weights whose
    intervals overlap interval i. Gradients flow to the proposal alone.
    """
    tdist, weights = jax.lax.stop_gradient((tdist, weights))
    total = jnp.cumsum(proposed_weights, axis=-1)
    total = jnp.concatenate([jnp.zeros_like(total[..., :1]), total], axis=-1)

    def bound(t: Array, proposed_t: Array, summed: Array) -> Array:
        last = proposed_t.shape[0] - 1
        begin = jnp.clip(jnp.searchsorted(proposed_t, t[:-1], side="right") - 1, 0, last)
        end = jnp.clip(jnp.searchsorted(proposed_t, t[1:], side="left"), 0, last)
        # An interval without length may lie between two, and would count what is between backwards.
        return summed[jnp.maximum(begin, end)] - summed[begin]

    allowed = jnp.vectorize(bound, signature="(n),(k),(k)->(l)")(tdist, proposed_tdist, total)
    excess = jnp.maximum(weights - allowed, 0.0)
    return jnp.sum(jnp.square(excess) / (weights + 1e-7), axis=-1)


def mean_over_subrays(
    rendering: TrainRendering, supersample: int
) -> tuple[list[Float[Array, "p 3"]], Bool[Array, "p"]]:
    """Colors of pixels, the means of their sub-rays, by network; and which pixels are complete."""
    parts = supersample**2
    pixel_mask = ~jnp.any(rendering.overflowed.reshape(-1, parts), axis=1)
    return [jnp.mean(rgb.reshape(-1, parts, 3), axis=1) for rgb in rendering.rgb], pixel_mask


def total_loss(
    config: LossConfig,
    error_fn: ErrorFn,
    rendering: TrainRendering,
    batch: Batch,
    supersample: int,
    is_one_batch: bool,
) -> Float[Array, ""]:
    """The loss of a rendered batch: errors of pixels, and penalties on the rays' weights.

    Rays whose samples did not fit into the budgets are left out.

    Args:
      config: weights of the parts.
      error_fn: error of a pixel's color.
      rendering: of the batch.
      batch: gives the target colors.
      supersample: rays of a pixel along each axis.
      is_one_batch: whether the batch is a whole step.
    """
    pixel_rgb, pixel_mask = mean_over_subrays(rendering, supersample)
    # A pixel four times as large counts four times as much (Mip-NeRF, section 4.2), relative to
    # all pixels of the step, whose mean is 1.
    mean = masked_mean(batch.loss_mult, pixel_mask) if is_one_batch else 1.0
    loss_mult = batch.loss_mult / jnp.maximum(mean, 1e-9)
    terms = [
        masked_mean(loss_mult * error_fn(rgb, batch.target_rgb), pixel_mask) for rgb in pixel_rgb
    ]
    ray_mask = ~rendering.overflowed
    if rendering.interlevel is not None:
        terms.append(masked_mean(rendering.interlevel, ray_mask))
    if config.distortion_weight:
        terms.append(config.distortion_weight * masked_mean(rendering.distortion, ray_mask))
    if config.entropy_weight:
        entropy = masked_mean(opacity_entropy(rendering.opacity), ray_mask)
        terms.append(config.entropy_weight * entropy)
    return sum(terms, jnp.zeros(()))


def make_error_fn(config: LossConfig) -> ErrorFn:
    """The error of a pixel's color that a configuration names.

    Raises:
      InputError: if it is a function of the user's that is no error.
    """
    if config.source:
        return _load_error_fn(config.source)
    if config.error == "huber":
        return partial(huber_error, delta=config.huber_delta)
    if config.error == "charbonnier":
        return partial(charbonnier_error, epsilon=config.charbonnier_epsilon)
    return squared_error


def _load_error_fn(source: str) -> ErrorFn:
    error_fn = user_code.load(source, "--loss.source")
    try:
        shape = jax.eval_shape(error_fn, *(jax.ShapeDtypeStruct((5, 3), jnp.float32),) * 2).shape
        problem = f"gives {shape}" if shape != (5,) else ""
    except Exception as error:
        problem = user_code.describe(error, source.rpartition(":")[0])
    if problem:
        raise InputError(
            f"--loss.source {source} is no loss ({problem}): it must take two arrays (5, 3) and "
            "give one (5,)."
        )
    return error_fn

"""The training loss: RGB losses between rendered and target colors, and penalties on ray weights.

Letters in shapes: r rays or pixels. Losses on ray weights are in `rendering.ray_losses`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrf.core import user_code
from jaxrf.core.errors import InputError
from jaxrf.models.base import DepthTarget, TrainRendering
from jaxrf.rendering.ray_losses import opacity_entropy
from jaxrf.training.config import LossConfig
from jaxrf.training.pixels import Batch
from jaxrf.training.robust import find_inliers

# Of a depth, in scene units; it must not be 0.
MIN_DEPTH_STD = 1e-6

# (rgb, target_rgb) -> loss of each pixel, not negative.
RgbLossFn = Callable[[Float[Array, "r 3"], Float[Array, "r 3"]], Float[Array, "r"]]


def squared_error(rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"]) -> Float[Array, "r"]:
    """Squared difference of each pixel, mean over channels."""
    return jnp.mean(jnp.square(rgb - target_rgb), axis=-1)


def huber_loss(
    rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"], delta: float
) -> Float[Array, "r"]:
    """Huber loss of each pixel, mean over channels (Huber 1964).

    d^2 / 2 where the difference |d| <= delta, else delta (|d| - delta / 2).
    """
    size = jnp.abs(rgb - target_rgb)
    quadratic = jnp.minimum(size, delta)
    return jnp.mean(0.5 * jnp.square(quadratic) + delta * (size - quadratic), axis=-1)


def charbonnier_loss(
    rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"], epsilon: float
) -> Float[Array, "r"]:
    """sqrt(d^2 + epsilon^2) of the difference d, mean over channels (Charbonnier et al. 1994)."""
    return jnp.mean(jnp.sqrt(jnp.square(rgb - target_rgb) + epsilon**2), axis=-1)


def masked_mean(values: Float[Array, "r"], mask: Bool[Array, "r"]) -> Float[Array, ""]:
    """Mean of the values where the mask is True; 0 if it is nowhere.

    Masked values may be infinite or NaN.
    """
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def mean_squared_error(
    rgb: Float[Array, "r 3"], target_rgb: Float[Array, "r 3"], mask: Bool[Array, "r"]
) -> Float[Array, ""]:
    """Mean squared difference over channels and the rays in the mask; 0 if there are none."""
    return masked_mean(squared_error(rgb, target_rgb), mask)


def mean_over_subrays(
    rendering: TrainRendering, batch: Batch, supersample: int
) -> tuple[list[Float[Array, "p 3"]], Bool[Array, "p"]]:
    """Colors of pixels, the means of their sub-rays, by network; and which pixels count.

    Those count that are complete and in the batch's mask.
    """
    parts = supersample**2
    pixel_mask = ~jnp.any(rendering.overflowed.reshape(-1, parts), axis=1)
    if batch.mask is not None:
        pixel_mask = pixel_mask & batch.mask
    return [jnp.mean(rgb.reshape(-1, parts, 3), axis=1) for rgb in rendering.rgb], pixel_mask


def total_loss(
    config: LossConfig,
    rgb_loss_fn: RgbLossFn,
    rendering: TrainRendering,
    batch: Batch,
    supersample: int,
    is_one_batch: bool,
) -> Float[Array, ""]:
    """The loss of a rendered batch: losses of pixels, and penalties on the rays' weights.

    Rays whose samples did not fit into the budgets are left out, and so are outliers if
    the batch has an inlier quantile; each network has its own.

    Args:
      config: weights of the parts.
      rgb_loss_fn: loss of each pixel's color.
      rendering: of the batch.
      batch: gives the target colors.
      supersample: rays of a pixel along each axis.
      is_one_batch: whether the batch is a whole step.
    """
    pixel_rgb, pixel_mask = mean_over_subrays(rendering, batch, supersample)
    # A pixel four times as large counts four times as much (Mip-NeRF, section 4.2), relative to
    # all pixels of the step, whose mean is 1.
    mean = masked_mean(batch.loss_mult, pixel_mask) if is_one_batch else 1.0
    loss_mult = batch.loss_mult / jnp.maximum(mean, 1e-9)
    terms = []
    for rgb in pixel_rgb:
        rgb_loss, inliers = rgb_loss_fn(rgb, batch.target_rgb), pixel_mask
        if batch.inlier_quantile is not None:
            quantile = batch.inlier_quantile[0]
            inliers = find_inliers(rgb_loss, pixel_mask, quantile, config.patch_size)
        terms.append(masked_mean(loss_mult * rgb_loss, inliers))
    ray_mask = ~rendering.overflowed
    if batch.mask is not None:
        ray_mask = ray_mask & jnp.repeat(batch.mask, supersample**2)
    if rendering.interlevel_loss is not None:
        terms.append(masked_mean(rendering.interlevel_loss, ray_mask))
    if config.distortion_weight:
        terms.append(config.distortion_weight * masked_mean(rendering.distortion_loss, ray_mask))
    if config.entropy_weight:
        entropy = masked_mean(opacity_entropy(rendering.opacity), ray_mask)
        terms.append(config.entropy_weight * entropy)
    if rendering.depth_loss is not None and batch.distance is not None:
        known = ray_mask & jnp.isfinite(batch.distance)
        terms.append(config.depth_weight * masked_mean(rendering.depth_loss, known))
    return sum(terms, jnp.zeros(()))


def depth_target(config: LossConfig, batch: Batch) -> DepthTarget | None:
    """Known depths of the rays of a batch, with their standard deviations; None if it has none."""
    if batch.distance is None:
        return None
    known = jnp.isfinite(batch.distance)
    std = jnp.where(known, config.depth_std * batch.distance, 1.0)
    return DepthTarget(batch.distance, jnp.maximum(std, MIN_DEPTH_STD))


# What `LossConfig.rgb_loss` can name: makes the function from the configuration's numbers.
RGB_LOSSES: dict[str, Callable[[LossConfig], RgbLossFn]] = {
    "squared": lambda config: squared_error,
    "huber": lambda config: partial(huber_loss, delta=config.huber_delta),
    "charbonnier": lambda config: partial(charbonnier_loss, epsilon=config.charbonnier_epsilon),
}


def make_rgb_loss_fn(config: LossConfig) -> RgbLossFn:
    """The loss of a pixel's color that a configuration names.

    Raises:
      InputError: if there is none of that name, or if it is a function of the user's that is no
        loss.
    """
    if config.source:
        return _load_rgb_loss_fn(config.source)
    if config.rgb_loss not in RGB_LOSSES:
        raise InputError(
            f"--loss.rgb-loss is {config.rgb_loss!r}: give one of {', '.join(RGB_LOSSES)}."
        )
    return RGB_LOSSES[config.rgb_loss](config)


def _load_rgb_loss_fn(source: str) -> RgbLossFn:
    rgb_loss_fn = user_code.load(source, "--loss.source")
    try:
        shape = jax.eval_shape(rgb_loss_fn, *(jax.ShapeDtypeStruct((5, 3), jnp.float32),) * 2).shape
        problem = f"gives {shape}" if shape != (5,) else ""
    except Exception as error:
        problem = user_code.describe(error, source.rpartition(":")[0])
    if problem:
        raise InputError(
            f"--loss.source {source} is no loss ({problem}): it must take two arrays (5, 3) and "
            "give one (5,)."
        )
    return rgb_loss_fn

"""A robust loss: pixels that only few images show, such as those of passers-by, are left out.

Sabour, Vora, Duckworth, Krasin, Fleet, Tagliasacchi: RobustNeRF: ignoring distractors with robust
losses (CVPR 2023), section 3. Letters in shapes: p pixels, n patches, h rows, w columns.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrf.training.config import LossConfig

# Numbers of the paper (section 3.2). Width of the box filter, and share of inliers in it above
# which its center is an inlier.
FILTER_SIZE = 3
SMOOTHED_INLIER_SHARE = 0.5
# Share of inliers in a patch above which all of its center, half as wide, are inliers.
PATCH_INLIER_SHARE = 0.6


def inlier_quantile_at(config: LossConfig, progress: Float[Array, ""]) -> Float[Array, ""]:
    """The quantile at a progress of training: it falls from 1 over the warm-up.

    The paper has no warm-up. With it, pixels that fit late are trained on in the beginning; it
    gained 0.3 to 0.6 dB (docs/lab/data_sets.md).
    """
    done = progress / config.inlier_warmup if config.inlier_warmup else jnp.ones_like(progress)
    return 1.0 - (1.0 - config.inlier_quantile) * jnp.minimum(done, 1.0)


def find_inliers(
    residual: Float[Array, "p"],
    mask: Bool[Array, "p"],
    quantile: float | Float[Array, ""],
    patch_size: int,
) -> Bool[Array, "p"]:
    """The pixels that a model can be trained on, by how well it explains them and those around.

    A pixel is an inlier if any of these holds: its residual is at most the quantile of all; more
    than half of the 3 x 3 pixels around it are that; more than 0.6 of its patch are inliers by the
    first two, and it lies in the patch's center. Details, which are hard to learn, are thin and so
    remain among inliers; a distractor fills patches.

    The quantile is that of the given pixels, not of the step before as in the authors' code, so
    that nothing needs to be stored between steps.

    Args:
      residual: not negative, of pixels of patches, patch by patch and row by row. It gets no
        gradient.
      mask: pixels that count; others are no inliers, nor have they a share in anything.
      quantile: from 0 to 1.
      patch_size: width and height of a patch.
    """
    shape = (-1, patch_size, patch_size)
    residual = jnp.where(mask, jax.lax.stop_gradient(residual), jnp.nan)
    patch_mask = mask.reshape(shape)
    fits = (residual <= jnp.nanquantile(residual, quantile)).reshape(shape)
    inliers = fits | (_sum_box(fits) > SMOOTHED_INLIER_SHARE * _sum_box(patch_mask))
    sums = (jnp.sum(x, axis=(1, 2), keepdims=True) for x in (inliers & patch_mask, patch_mask))
    num_inliers, num_pixels = sums
    is_inlier_patch = num_inliers > PATCH_INLIER_SHARE * num_pixels
    in_center = jnp.asarray(_patch_center(patch_size))
    return (inliers | (is_inlier_patch & in_center)).ravel() & mask


def _sum_box(labels: Bool[Array, "n h w"]) -> Float[Array, "n h w"]:
    """How many of the pixels around each of a patch are True."""
    window = (1, FILTER_SIZE, FILTER_SIZE)
    return jax.lax.reduce_window(
        labels.astype(jnp.float32), 0.0, jax.lax.add, window, (1, 1, 1), "SAME"
    )


def _patch_center(patch_size: int) -> Bool[np.ndarray, "1 h w"]:
    """The pixels of a patch that lie in its center, half as wide as the patch."""
    center_size = patch_size // 2
    begin = (patch_size - center_size) // 2
    center = slice(begin, begin + center_size)
    in_center = np.zeros((1, patch_size, patch_size), bool)
    in_center[:, center, center] = True
    return in_center

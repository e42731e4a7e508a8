"""Color correction of each training image: an affine map of the colors that its rays render.

Exposure and white balance differ from picture to picture, and the field has one color for each.
Rematas et al.: Urban Radiance Fields (CVPR 2022), section 4.2, whose maps come from a network and a
code for each image; here they are parameters. They are normalized, so that a field and its
corrections cannot trade brightness: the mean over the images is the identity, and views are
rendered with that.

Letters in shapes: n images, r rays.
"""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ColorCorrection = Literal["none", "exposure", "affine"]

# Adam moves a parameter by its learning rate, whatever its unit, so this unit makes corrections
# learn at a tenth of the rate of networks: else they would explain colors before the field does.
UNIT = 0.1
# Coded values of sRGB are about this power of linear light, so a gain of light is a gain of them.
CODING_EXPONENT = 1.0 / 2.2


def init_color_correction(
    kind: ColorCorrection, num_images: int, exposures: Sequence[float] = ()
) -> Float[Array, "n *shape"] | None:
    """Parameters of every image's correction before the first step; None for `none`.

    `exposure` has the logarithm of a gain for each channel, (n, 3), `affine` the difference of a
    matrix from the identity, (n, 3, 4), both in `UNIT`s.

    Args:
      kind: of correction.
      num_images: of the training split.
      exposures: of the images in linear light, in any unit; without any all images look alike.
    """
    if kind == "none":
        return None
    log_exposures = np.log(np.asarray(exposures, np.float64)) if exposures else np.zeros(num_images)
    log_gains = CODING_EXPONENT * (log_exposures - log_exposures.mean())
    if kind == "exposure":
        return jnp.asarray(np.tile(log_gains[:, None] / UNIT, (1, 3)), jnp.float32)
    gains = np.exp(log_gains)
    difference = gains / gains.mean() - 1.0
    return jnp.asarray(difference[:, None, None] / UNIT * np.eye(3, 4), jnp.float32)


def color_matrices(
    kind: ColorCorrection, params: Float[Array, "n *shape"]
) -> Float[Array, "n 3 4"]:
    """The correction of every image: a matrix and, in the last column, an offset.

    Their mean over the images is the identity: the arithmetic mean for `affine`, the geometric mean
    of the gains for `exposure`.
    """
    centered = UNIT * (params - jnp.mean(params, axis=0, keepdims=True))
    if kind == "affine":
        return jnp.eye(3, 4)[None] + centered
    return jnp.exp(centered)[..., None] * jnp.eye(3, 4)[None]


def correct_rgb(
    matrices: Float[Array, "n 3 4"],
    camera_index: Int[Array, "r"],
    rgb: Float[Array, "r 3"],
    opacity: Float[Array, "r"],
    background: Float[Array, "r 3"],
) -> Float[Array, "r 3"]:
    """Colors of rays as their images show them, which may be outside of [0, 1].

    The background is that of the target, so only the light of the field, its color premultiplied by
    the opacity, is corrected.

    Args:
      matrices: of `color_matrices`.
      camera_index: the image of each ray.
      rgb: rendered, over the background.
      opacity: of the rays.
      background: behind the rays.
    """
    background_light = (1.0 - opacity)[:, None] * background
    light = jnp.concatenate([rgb - background_light, opacity[:, None]], axis=-1)
    return (
        jnp.einsum("rij,rj->ri", matrices[camera_index], light, precision="highest")
        + background_light
    )

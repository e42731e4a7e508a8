"""Patches: squares of neighboring pixels, which a robust loss samples in place of single pixels.

Sabour, Vora, Duckworth, Krasin, Fleet, Tagliasacchi: RobustNeRF (CVPR 2023), section 3.2. A patch
lies around a random pixel of those to sample from, moved into the image where it would reach out.
Pixels of it that are not to be sampled from (outside masks, beside an image that is smaller than
the others, filtered) do not count. Letters in shapes: n patches, p pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.errors import InputError
from jaxrf.models.base import StageSpec
from jaxrf.training.pixels import (
    PixelDataset,
    SampledPixels,
    SamplingRegion,
    sample_pixel_slots,
    unravel_pixels,
)


def require_patches_fit(size: tuple[int, ...], scales: tuple[int, ...], patch_size: int) -> None:
    """Requires patches to fit into images of all sizes.

    Args:
      size: height and width of the images in full size.
      scales: factors by which images are smaller in each size that is trained on.
      patch_size: width and height of a patch.

    Raises:
      InputError: if the smallest images are smaller than a patch.
    """
    height, width = (side // max(scales) for side in size)
    if min(height, width) < patch_size:
        raise InputError(
            f"Patches of {patch_size}x{patch_size} pixels do not fit into images of "
            f"{width}x{height}: lower --loss.patch-size, or train on larger images."
        )


def sample_patches(
    pixels: PixelDataset, key: jax.Array, stage: StageSpec, region: SamplingRegion
) -> SampledPixels:
    """The pixels of random patches, those of a patch one after the other, row by row.

    Args:
      pixels: to sample from.
      key: of the batch.
      stage: gives number and size of the patches.
      region: of the images that patches lie around; with a crop they may reach out of it.
    """
    key_pixel, _ = jax.random.split(key)
    slots = sample_pixel_slots(pixels, key_pixel, stage.num_patches(), region.size)
    pixel_ids = patch_pixel_ids(pixels, pixels.pixel_ids[slots], stage.patch_size, region.crop)
    return SampledPixels(pixel_ids, mask=find_listed(pixels, pixel_ids))


def patch_pixel_ids(
    pixels: PixelDataset,
    centers: Int[Array, "n"],
    patch_size: int,
    crop: float | Float[Array, ""] = 1.0,
) -> Int[Array, "p"]:
    """Flat indices of the pixels of patches around pixels, given by their flat indices."""
    center = unravel_pixels(pixels, centers, crop)
    offset = np.arange(patch_size, dtype=np.int32)
    corner_ids, widths = jnp.zeros_like(centers), jnp.zeros_like(centers)
    begin = 0
    for number, images in enumerate((pixels.images, *pixels.smaller_images)):
        count, height, width = images.shape[:3]
        top, left = (
            jnp.clip(at - patch_size // 2, 0, side - patch_size)
            for at, side in ((center.row, height), (center.column, width))
        )
        corner = begin + (center.image * height + top) * width + left
        corner_ids = jnp.where(center.size == number, corner, corner_ids)
        widths = jnp.where(center.size == number, width, widths)
        begin += count * height * width
    rows, columns = offset[None, :, None], offset[None, None, :]
    pixel_ids = corner_ids[:, None, None] + widths[:, None, None] * rows + columns
    return pixel_ids.ravel()


def find_listed(pixels: PixelDataset, pixel_ids: Int[Array, "p"]) -> Bool[Array, "p"]:
    """Which pixels, given by their flat indices, are among those to sample from."""
    slots = jnp.searchsorted(pixels.pixel_ids, pixel_ids)
    return pixels.pixel_ids[slots] == pixel_ids

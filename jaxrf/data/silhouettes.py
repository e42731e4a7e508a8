"""Boxes of objects from their silhouettes before transparency, white or black."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxrf.cameras.base import Cameras, project
from jaxrf.data.scene import PLAIN_TOLERANCE, Split, find_split_background

# Cells along each side of the box in which a visual hull is computed.
HULL_CELLS = 48
# More images hardly change the visual hull.
MAX_HULL_VIEWS = 50
# Share of the borders of images that is plain behind an object; a sky fills less.
MIN_PLAIN_BORDER = 0.9
# Share of the images that may take a part of an object for a background of its color.
PLAIN_ERRORS = 0.2


def object_aabb(split: Split, aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"] | None:
    """Box within `aabb` of an object that all images show in front of transparency; None without.

    Opaque images may show it in front of white or of black instead, which then reaches around it
    (`MIN_PLAIN_BORDER`), and their cameras stand outside of its box.
    """
    subset = np.arange(0, len(split), 1 + len(split) // MAX_HULL_VIEWS)
    transparent = split.images[subset, ..., 3] == 0
    color = find_split_background(split)
    if color is not None:
        transparent = _find_plain(split.images[subset], color)
    if split.masks is not None:
        # Pixels that are not used say nothing.
        transparent &= split.masks[subset]
    if len(transparent) < 2 or transparent.mean(axis=(1, 2)).min() < 0.05:
        return None
    errors = 0.0 if color is None else PLAIN_ERRORS
    hull = visual_hull_aabb(~transparent, split.cameras[subset], aabb, errors)
    if hull is None or color is None:
        return hull
    positions = np.asarray(split.cameras.T_world_camera)[:, :3, 3]
    if np.any(np.all((positions > hull[0]) & (positions < hull[1]), axis=-1)):
        return None
    return hull


def _find_plain(
    images: UInt8[np.ndarray, "n h w 4"], color: Literal["white", "black"]
) -> Bool[np.ndarray, "n h w"]:
    """Pixels of a plain color that reaches to the border; none if it fills too little of it."""
    from scipy import ndimage

    level = 255 if color == "white" else 0
    border = np.ones(images.shape[1:3], bool)
    border[1:-1, 1:-1] = False
    plain = np.empty(images.shape[:3], bool)
    # One by one, as differences of all images at once take much memory.
    for mask, image in zip(plain, images, strict=True):
        difference = np.abs(image[..., :3].astype(np.int16) - level)
        mask[...] = difference.max(axis=-1) <= PLAIN_TOLERANCE
    if plain[:, border].mean() < MIN_PLAIN_BORDER:
        return np.zeros_like(plain)
    for mask in plain:
        regions, _ = ndimage.label(mask)
        mask &= np.isin(regions, np.unique(regions[border & mask]))
    return plain


def visual_hull_aabb(
    masks: Bool[np.ndarray, "n h w"],
    cameras: Cameras,
    aabb: Float[np.ndarray, "2 3"],
    errors: float = 0.0,
) -> Float[np.ndarray, "2 3"] | None:
    """Bounding box of the visual hull of masks (Laurentini 1994), with a margin of one cell.

    A cell is in the hull if no image, or not too many of those that show its center, shows it
    outside the mask, and if the number of images that show it is at least half of the largest such
    number. The second rule excludes space beside the images' subject. None if the hull is empty.

    Args:
      masks: of the images, True where the object is.
      cameras: of the images.
      aabb: box that is divided into cells.
      errors: share of the images showing a cell that may have it outside of their masks.
    """
    axes = [np.linspace(0, 1, HULL_CELLS, endpoint=False) + 0.5 / HULL_CELLS] * 3
    unit = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    centers = aabb[0] + unit * (aabb[1] - aabb[0])
    num_outside, num_images = np.zeros(len(centers), int), np.zeros(len(centers), int)
    height, width = masks.shape[1:]
    for index, mask in enumerate(masks):
        pixels, depth = project(cameras, index, centers)
        with np.errstate(invalid="ignore"):
            column, row = np.floor(pixels).T
            visible = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        pixel = np.where(visible, row, 0).astype(int), np.where(visible, column, 0).astype(int)
        num_outside += visible & ~mask[pixel]
        num_images += visible
    inside = num_outside <= errors * num_images
    hull = centers[inside & (num_images >= max(2, (num_images.max() + 1) // 2))]
    if len(hull) == 0:
        return None
    margin = (aabb[1] - aabb[0]) / HULL_CELLS
    return np.stack([hull.min(axis=0) - margin, hull.max(axis=0) + margin])

"""Boxes of objects from the silhouettes that transparent images show."""

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.base import Cameras, project
from jaxrf.data.scene import Split

# Cells along each side of the box in which a visual hull is computed.
HULL_CELLS = 48
# More images hardly change the visual hull.
MAX_HULL_VIEWS = 50


def object_aabb(split: Split, aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"] | None:
    """Box within `box` of an object that all images show in front of transparency; None without."""
    subset = np.arange(0, len(split), 1 + len(split) // MAX_HULL_VIEWS)
    transparent = split.images[subset, ..., 3] == 0
    if split.masks is not None:
        # Pixels that are not used say nothing.
        transparent &= split.masks[subset]
    if len(transparent) < 2 or transparent.mean(axis=(1, 2)).min() < 0.05:
        return None
    return visual_hull_aabb(~transparent, split.cameras[subset], aabb)


def visual_hull_aabb(
    masks: Bool[np.ndarray, "n h w"], cameras: Cameras, aabb: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "2 3"] | None:
    """Bounding box of the visual hull of masks (Laurentini 1994), with a margin of one cell.

    A cell is in the hull if no image shows its center outside the mask, and if the number of images
    that show it is at least half of the largest such number. The second rule excludes space beside
    the images' subject. None if the hull is empty.

    Args:
      masks: of the images, True where the object is.
      cameras: of the images.
      aabb: box that is divided into cells.
    """
    axes = [np.linspace(0, 1, HULL_CELLS, endpoint=False) + 0.5 / HULL_CELLS] * 3
    unit = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    centers = aabb[0] + unit * (aabb[1] - aabb[0])
    inside, num_images = np.ones(len(centers), bool), np.zeros(len(centers), int)
    height, width = masks.shape[1:]
    for index, mask in enumerate(masks):
        pixels, depth = project(cameras, index, centers)
        with np.errstate(invalid="ignore"):
            column, row = np.floor(pixels).T
            visible = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        pixel = np.where(visible, row, 0).astype(int), np.where(visible, column, 0).astype(int)
        inside &= ~visible | mask[pixel]
        num_images += visible
    hull = centers[inside & (num_images >= max(2, (num_images.max() + 1) // 2))]
    if len(hull) == 0:
        return None
    margin = (aabb[1] - aabb[0]) / HULL_CELLS
    return np.stack([hull.min(axis=0) - margin, hull.max(axis=0) + margin])

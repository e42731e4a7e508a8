"""Views of captured scenes before decoding: splitting, loading, and bounds of what they show."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.base import Cameras, project
from jaxrf.cameras.transforms import UNIT_AABB
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.data.files import (
    check_downscale,
    common_image_size,
    image_names,
    read_images,
    read_masks,
)
from jaxrf.data.scene import Split, downscale_split

ChooseViews = Callable[[int], Sequence[int]]
# Cells along each side of the box in which a visual hull is computed.
HULL_CELLS = 48
# More images hardly change the visual hull.
MAX_HULL_VIEWS = 50


@dataclasses.dataclass(frozen=True)
class ViewIndex:
    """Paths of images, not yet decoded, and their cameras.

    Attributes:
      root: the data folder.
      listing: the file that lists the images.
      paths: of the images, one for each camera, relative to the root.
      cameras: for images of the size that they have on disk.
      masks: paths of the images' masks, if there are any; black pixels are not used.
    """

    root: Path
    listing: Path
    paths: tuple[Path, ...]
    cameras: Cameras
    masks: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def rescale_to_images(views: ViewIndex) -> ViewIndex:
    """Views whose cameras are scaled to the size of the images on disk.

    Raises:
      InputError: the aspect ratio differs, or an image is missing or damaged.
    """
    width, height = common_image_size([views.root / path for path in views.paths], views.listing)
    scale = np.array([width / views.cameras.width, height / views.cameras.height], np.float32)
    if abs(float(scale[0] / scale[1]) - 1.0) > 0.01:
        raise InputError(
            f"The images of {views.root} are {width}x{height} pixels, {views.listing} is for "
            f"{views.cameras.width}x{views.cameras.height}, which has another aspect ratio: use "
            "the images that it was made for."
        )
    cameras = dataclasses.replace(
        views.cameras,
        focal=views.cameras.focal * scale,
        principal_point=views.cameras.principal_point * scale,
        width=width,
        height=height,
    )
    return dataclasses.replace(views, cameras=cameras)


def select_views(views: ViewIndex, indices: Sequence[int]) -> ViewIndex:
    """The views with the given indices."""
    chosen = np.asarray(indices, np.int64)
    cameras = views.cameras[chosen]
    paths = tuple(views.paths[i] for i in chosen)
    masks = tuple(views.masks[i] for i in chosen) if views.masks else ()
    return dataclasses.replace(views, paths=paths, cameras=cameras, masks=masks)


def split_every_n(count: int, every: int = 8) -> dict[str, list[int]]:
    """Indices of the views of each split: every 8th, from the first on, is held out (LLFF).

    The held-out views are both the validation and the test split.
    """
    test = list(range(0, count, every)) if count > 1 else []
    return {"train": [i for i in range(count) if i not in set(test)], "val": test, "test": test}


def load_split(name: str, views: ViewIndex, downscale: int, choose: ChooseViews) -> Split:
    """Decodes the chosen views of a split.

    Args:
      name: of the split.
      views: all views of the split.
      downscale: factor along each side.
      choose: indices of the views to decode, given their number.

    Raises:
      MissingSplitError: there are no views.
      InputError: an image is damaged, or `downscale` does not fit.
    """
    if len(views) == 0:
        raise MissingSplitError(
            f"{views.listing} leaves no image to the split {name}: give it more images."
        )
    size = (views.cameras.width, views.cameras.height)
    check_downscale(downscale, size, views.root / views.paths[0])
    names, chosen = image_names(views.paths), list(choose(len(views)))
    selected = select_views(views, chosen)
    masks = [views.root / path for path in selected.masks]
    split = Split(
        name=name,
        names=tuple(names[index] for index in chosen),
        images=read_images([views.root / path for path in selected.paths], *size),
        cameras=selected.cameras,
        masks=read_masks(masks, *size) if masks else None,
    )
    return downscale_split(split, downscale)


def object_aabb(split: Split) -> Float[np.ndarray, "2 3"] | None:
    """Box within +-1 of an object that all images show in front of transparency; None without."""
    subset = np.arange(0, len(split), 1 + len(split) // MAX_HULL_VIEWS)
    transparent = split.images[subset, ..., 3] == 0
    if len(transparent) < 2 or transparent.mean(axis=(1, 2)).min() < 0.05:
        return None
    return visual_hull_aabb(~transparent, split.cameras[subset], np.array(UNIT_AABB))


def visual_hull_aabb(
    masks: Bool[np.ndarray, "n h w"], cameras: Cameras, box: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "2 3"] | None:
    """Bounding box of the visual hull of masks (Laurentini 1994), with a margin of one cell.

    A cell is in the hull if no image shows its center outside the mask, and if the number of images
    that show it is at least half of the largest such number. The second rule excludes space beside
    the images' subject. None if the hull is empty.

    Args:
      masks: of the images, True where the object is.
      cameras: of the images.
      box: box that is divided into cells.
    """
    axes = [np.linspace(0, 1, HULL_CELLS, endpoint=False) + 0.5 / HULL_CELLS] * 3
    unit = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    centers = box[0] + unit * (box[1] - box[0])
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
    margin = (box[1] - box[0]) / HULL_CELLS
    return np.stack([hull.min(axis=0) - margin, hull.max(axis=0) + margin])


def box_distance_range(
    cameras: Cameras, box: Float[np.ndarray, "2 3"], min_ratio: float = 0.05
) -> tuple[float, float]:
    """Smallest and largest distance of a box from cameras.

    The smallest one is at least `min_ratio` of the largest one.
    """
    positions = np.asarray(cameras.T_world_camera, np.float64)[:, :3, 3]
    outside = np.maximum(np.maximum(box[0] - positions, positions - box[1]), 0)
    nearest = np.linalg.norm(outside, axis=-1)
    far_corner = np.maximum(np.abs(positions - box[0]), np.abs(positions - box[1]))
    farthest = float(np.linalg.norm(far_corner, axis=-1).max())
    return max(float(nearest.min()), min_ratio * farthest), farthest

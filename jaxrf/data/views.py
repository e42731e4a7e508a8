"""What readers of captured scenes share: which views are held out, and how views become splits."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.base import Cameras, index_cameras, project
from jaxrf.cameras.transforms import UNIT_AABB
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.data.files import (
    check_downscale,
    common_image_size,
    image_names,
    read_masks,
    read_images,
)
from jaxrf.data.scene import Split, downscale_split

ChooseViews = Callable[[int], Sequence[int]]
# Cells along each side of the box in which a visual hull is looked for.
HULL_CELLS = 48
# More pictures carve little more.
MAX_HULL_VIEWS = 50


@dataclasses.dataclass(frozen=True)
class ViewIndex:
    """Pictures with cameras before any picture was decoded.

    Attributes:
      root: the data folder.
      listing: the file that named the pictures.
      paths: of the pictures, one for each camera, relative to the root.
      cameras: for pictures of the size that they have on disk.
      masks: of the pictures, relative to the root, if there are any; black is left out.
    """

    root: Path
    listing: Path
    paths: tuple[Path, ...]
    cameras: Cameras
    masks: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def rescale_to_images(views: ViewIndex) -> ViewIndex:
    """The views with cameras of the size that the pictures really have."""
    width, height = common_image_size([views.root / path for path in views.paths], views.listing)
    scale = np.array([width / views.cameras.width, height / views.cameras.height], np.float32)
    if abs(float(scale[0] / scale[1]) - 1.0) > 0.01:
        raise InputError(
            f"The pictures of {views.root} are {width}x{height} pixels, {views.listing} is for "
            f"{views.cameras.width}x{views.cameras.height}, which has another shape: use the "
            "pictures that it was made for."
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
    """Some of the views."""
    chosen = np.asarray(indices, np.int64)
    cameras = index_cameras(views.cameras, chosen)
    paths = tuple(views.paths[i] for i in chosen)
    masks = tuple(views.masks[i] for i in chosen) if views.masks else ()
    return dataclasses.replace(views, paths=paths, cameras=cameras, masks=masks)


def split_every_n(count: int, every: int = 8) -> dict[str, list[int]]:
    """Views for each split: every 8th, from the first on, is tested and validated on (LLFF)."""
    test = list(range(0, count, every)) if count > 1 else []
    return {"train": [i for i in range(count) if i not in set(test)], "val": test, "test": test}


def load_split(name: str, views: ViewIndex, downscale: int, choose: ChooseViews) -> Split:
    """Decodes the chosen ones of a split's views."""
    if len(views) == 0:
        raise MissingSplitError(
            f"{views.listing} leaves no picture to the split {name}: give it more pictures."
        )
    size = (views.cameras.width, views.cameras.height)
    check_downscale(downscale, size, views.root / views.paths[0])
    names, chosen = image_names(views.paths), list(choose(len(views)))
    taken = select_views(views, chosen)
    masks = [views.root / path for path in taken.masks]
    split = Split(
        name=name,
        names=tuple(names[index] for index in chosen),
        images=read_images([views.root / path for path in taken.paths], *size),
        cameras=taken.cameras,
        masks=read_masks(masks, *size) if masks else None,
    )
    return downscale_split(split, downscale)


def object_aabb(split: Split) -> Float[np.ndarray, "2 3"] | None:
    """The box of what all pictures show before transparency, within +-1; None if there is none."""
    some = np.arange(0, len(split), 1 + len(split) // MAX_HULL_VIEWS)
    clear = split.images[some, ..., 3] == 0
    if len(clear) < 2 or clear.mean(axis=(1, 2)).min() < 0.05:
        return None
    return visual_hull_aabb(~clear, index_cameras(split.cameras, some), np.array(UNIT_AABB))


def visual_hull_aabb(
    masks: Bool[np.ndarray, "n h w"], cameras: Cameras, box: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "2 3"] | None:
    """The smallest box, a cell of room around it, of what may be inside all masks.

    A cell stays if no picture that shows its center shows it outside of the mask, and at least half
    as many show it as show any cell (Laurentini 1994): what stands beside most pictures is not what
    they were taken of. None if nothing stays.

    Args:
      masks: of the pictures, True where the object is.
      cameras: of the pictures.
      box: to look in.
    """
    axes = [np.linspace(0, 1, HULL_CELLS, endpoint=False) + 0.5 / HULL_CELLS] * 3
    unit = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    centers = box[0] + unit * (box[1] - box[0])
    inside, shown = np.ones(len(centers), bool), np.zeros(len(centers), int)
    height, width = masks.shape[1:]
    for index, mask in enumerate(masks):
        pixels, depth = project(cameras, index, centers)
        with np.errstate(invalid="ignore"):
            column, row = np.floor(pixels).T
            seen = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = np.where(seen, row, 0).astype(int), np.where(seen, column, 0).astype(int)
        inside &= ~seen | mask[place]
        shown += seen
    kept = centers[inside & (shown >= max(2, (shown.max() + 1) // 2))]
    if len(kept) == 0:
        return None
    room = (box[1] - box[0]) / HULL_CELLS
    return np.stack([kept.min(axis=0) - room, kept.max(axis=0) + room])


def near_far_fn(
    cameras: Cameras, box: Float[np.ndarray, "2 3"], least: float = 0.05
) -> tuple[float, float]:
    """Distances from the cameras between which the box lies: not below `least` of the farthest."""
    places = np.asarray(cameras.T_world_camera, np.float64)[:, :3, 3]
    nearest = np.linalg.norm(np.maximum(np.maximum(box[0] - places, places - box[1]), 0), axis=-1)
    far_corner = np.maximum(np.abs(places - box[0]), np.abs(places - box[1]))
    farthest = float(np.linalg.norm(far_corner, axis=-1).max())
    return max(float(nearest.min()), least * farthest), farthest

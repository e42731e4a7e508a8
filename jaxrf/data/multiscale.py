"""Multi-scale Blender scenes: one `metadata.json` that lists every image in several sizes.

Barron et al.: Mip-NeRF (ICCV 2021), section 4.2; the format is that of its conversion script.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.core.json_files import read_json
from jaxrf.data.blender import BOX, FAR, NEAR
from jaxrf.data.files import check_file_path, check_folder, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import ChooseViews, ViewIndex, load_split, rescale_to_images

LISTING = "metadata.json"
COLUMNS = ("file_path", "cam2world", "width", "height")


def is_multiscale(folder: Path) -> bool:
    """Whether a folder has a `metadata.json` but no `transforms.json`, unlike other formats."""
    return os.path.isfile(folder / LISTING) and not os.path.isfile(folder / "transforms.json")


def load_multiscale(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
) -> Scene:
    """Reads the images of the largest size, in the box +-1.5 with near 2 and far 6.

    The smaller sizes are area means of the largest one, which training can compute itself.

    Args:
      folder: holds `metadata.json` and the images that it names.
      splits, downscale, choose: see `blender.load_blender`.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    listing = folder / LISTING
    content = read_json(listing, "train, val and test")
    return Scene(
        name=name_scene(folder),
        splits={
            split: load_split(split, _read_views(folder, content, split), downscale, choose)
            for split in splits
        },
        aabb=np.array(BOX, np.float32),
        near=NEAR,
        far=FAR,
    )


def _read_views(folder: Path, content: dict[str, Any], split: str) -> ViewIndex:
    listing = folder / LISTING
    table = content.get(split)
    if not isinstance(table, dict):
        raise MissingSplitError(f"{listing} has no object {split!r}; use another split.")
    columns = [table.get(name) for name in COLUMNS]
    for name, column in zip(COLUMNS, columns, strict=True):
        if not isinstance(column, list) or len(column) != len(columns[0] or ()) or not column:
            raise InputError(
                f"{name} of {split} in {listing} is not a list with an entry for each image; "
                "correct it."
            )
    focal = _read_focal(table, len(columns[0] or ()), f"{split} in {listing}")
    rows = []
    for index, (path, pose, width, height) in enumerate(zip(*columns, strict=True)):  # type: ignore[arg-type]
        where = f"image {index} of {split} in {listing}"
        size = (width, height)
        if not all(isinstance(side, float) and 1.0 <= side < 1e5 for side in size):
            raise InputError(f"{where} has no width and height in pixels; correct them.")
        rows.append(
            (check_file_path(path, where), check_pose(pose, where, "cam2world"), size, focal[index])
        )
    largest = max(size for _, _, size, _ in rows)
    rows = [row for row in rows if row[2] == largest]
    if len({path for path, *_ in rows}) < len(rows):
        raise InputError(f"{split} in {listing} names an image twice; list each image once.")
    width, height = largest
    poses, lengths = np.stack([pose for _, pose, _, _ in rows]), np.array([f for *_, f in rows])
    cameras = pinhole_cameras(poses, int(width), int(height), lengths)
    paths = tuple(Path(path) for path, *_ in rows)
    return rescale_to_images(ViewIndex(folder, listing, paths, cameras))


def _read_focal(table: dict[str, Any], count: int, where: str) -> list[float]:
    """Focal lengths in pixels, from `focal` or from the matrices `pix2cam`."""
    values = table.get("focal")
    if values is None:
        matrices = table.get("pix2cam")
        try:
            values = [1.0 / matrix[0][0] for matrix in matrices]  # type: ignore[union-attr]
        except (TypeError, IndexError, KeyError, ZeroDivisionError):
            values = None
    if not isinstance(values, list) or len(values) != count:
        raise InputError(f"{where} has neither focal nor pix2cam for each image; add one.")
    for value in values:
        if not isinstance(value, float) or not math.isfinite(value) or not 0.0 < value < 1e7:
            raise InputError(f"{where} has an invalid focal length; give pixels, above 0.")
    return values

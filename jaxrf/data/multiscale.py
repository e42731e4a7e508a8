"""Multi-scale Blender scenes: one `metadata.json` that lists every image in several sizes.

Barron et al.: Mip-NeRF (ICCV 2021), section 4.2; the format is that of its conversion script.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.core.json_files import read_json
from jaxrf.data.files import DataFolder, check_folder
from jaxrf.data.frames import ALL, Frame, Intrinsics, Listing, ObjectRegion
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.options import LoadOptions

SPLITS = ("train", "val", "test")
LISTING = "metadata.json"
COLUMNS = ("file_path", "cam2world", "width", "height")


def is_multiscale(folder: Path) -> bool:
    """Whether a folder has a `metadata.json` but no `transforms.json`, unlike other formats."""
    return os.path.isfile(folder / LISTING) and not os.path.isfile(folder / "transforms.json")


def read_multiscale(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists the images of the largest size.

    The smaller sizes are area means of the largest one, which training can compute itself.

    Args:
      folder: holds `metadata.json` and the images that it names.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    listing = folder / LISTING
    content, files = read_json(listing, "train, val and test"), DataFolder(folder)
    existing = [name for name in SPLITS if isinstance(content.get(name), dict)]
    if "train" not in existing:
        raise MissingSplitError(f"{listing} has no object 'train'; use another split.")
    needed = [name for name in existing if name == "train" or set(splits) - {"train"}]
    frames = {
        split: _read_frames(files, content[split], split, listing, options) for split in needed
    }
    if existing == ["train"]:
        frames = {ALL: frames["train"]}
    poses = np.stack([frame.pose for frame in next(iter(frames.values()))])
    return Listing(folder, listing, frames, ObjectRegion(), poses)


def _read_frames(
    files: DataFolder, table: dict[str, Any], split: str, listing: Path, options: LoadOptions
) -> list[Frame]:
    columns = [table.get(name) for name in COLUMNS]
    for name, column in zip(COLUMNS, columns, strict=True):
        if not isinstance(column, list) or len(column) != len(columns[0] or ()) or not column:
            raise InputError(
                f"{name} of {split} in {listing} is not a list with an entry for each image; "
                "correct it."
            )
    focal = _read_focal(table, len(columns[0] or ()), f"{split} in {listing}")
    frames = []
    for index, (value, matrix, width, height) in enumerate(zip(*columns, strict=True)):  # type: ignore[arg-type]
        where = f"image {index} of {split} in {listing}"
        if not all(isinstance(side, float) and 1.0 <= side < 1e5 for side in (width, height)):
            raise InputError(f"{where} has no width and height in pixels; correct them.")
        pose = check_pose(matrix, where, "cam2world")
        if options.axes == "opencv":
            pose = pose @ FLIP_YZ
        intrinsics = Intrinsics(focal=(focal[index], focal[index]), size=(width, height))
        frames.append(Frame(files.find_listed(value, where), listing, pose, intrinsics))
    largest = max(frame.intrinsics.size or (0.0, 0.0) for frame in frames)
    frames = [frame for frame in frames if frame.intrinsics.size == largest]
    if len({frame.path for frame in frames}) < len(frames):
        raise InputError(f"{split} in {listing} names an image twice; list each image once.")
    return frames


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

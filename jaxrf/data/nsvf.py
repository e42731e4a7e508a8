"""NSVF scenes: `rgb`, `pose`, `intrinsics.txt` and, of objects, `bbox.txt`.

Liu et al.: Neural sparse voxel fields (NeurIPS 2020), whose versions of the synthetic scenes, Tanks
and Temples and BlendedMVS other programs use, too.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrf.core.errors import InputError
from jaxrf.data.files import DataFolder, check_folder, format_count, format_names
from jaxrf.data.frames import (
    ALL,
    BoxRegion,
    CaptureRegion,
    Frame,
    Intrinsics,
    Listing,
    Region,
    check_focal,
)
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.options import LoadOptions
from jaxrf.data.text_files import list_stems, read_pose, read_rows

INTRINSICS, BOX = "intrinsics.txt", "bbox.txt"
# First characters of the names of images and poses, by split.
PREFIXES = {"train": "0_", "val": "1_", "test": "2_"}
# The boxes of some scenes cut into what they hold; TensoRF enlarges them by the same factor.
BOX_MARGIN = 1.2


def is_nsvf(folder: Path) -> bool:
    """Whether a folder has NSVF's `intrinsics.txt`, `pose` and `rgb`."""
    folders = all(os.path.isdir(folder / name) for name in ("pose", "rgb"))
    return folders and os.path.isfile(folder / INTRINSICS)


def read_nsvf(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists an NSVF scene.

    Names begin with 0_ for training, 1_ for validation and 2_ for testing; of names without, every
    8th is held out. Poses are camera-to-world with x right, y down, z forwards.

    Args:
      folder: holds the files.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    del splits
    check_folder(folder)
    intrinsics = _read_intrinsics(folder / INTRINSICS)
    images = {path.stem: path for path in DataFolder(folder).list_images(Path("rgb"))}
    stems = list_stems(folder / "pose")
    posed = [stem for stem in stems if stem in images]
    if not posed:
        raise InputError(
            f"None of the {format_count(len(stems), 'pose')} in {folder / 'pose'} has an image of "
            f"the same name in {folder / 'rgb'} ({stems[0]}); add the images."
        )
    flip = np.eye(4) if options.axes == "opengl" else FLIP_YZ
    frames = {
        stem: Frame(
            images[stem],
            folder / "pose",
            read_pose(folder / "pose" / f"{stem}.txt") @ flip,
            intrinsics,
        )
        for stem in posed
    }
    by_split = {
        split: [frame for stem, frame in frames.items() if stem.startswith(prefix)]
        for split, prefix in PREFIXES.items()
    }
    if not by_split["train"] or sum(map(len, by_split.values())) < len(frames):
        by_split = {ALL: list(frames.values())}
    elif not by_split["val"] and not by_split["test"]:
        by_split = {ALL: by_split["train"]}
    without_image = [stem for stem in stems if stem not in images]
    notes = []
    if without_image:
        count = format_count(len(without_image), "pose")
        notes.append(f"Not used: {count} without an image ({format_names(without_image)}).")
    return Listing(folder, folder / "pose", by_split, _read_box(folder / BOX), notes=tuple(notes))


def _read_intrinsics(path: Path) -> Intrinsics:
    """Focal length and center: a matrix of 3x3 or 4x4, or a first line with these numbers."""
    rows = read_rows(path)
    center: tuple[float | None, float | None]
    width = len(rows[0]) if rows else 0
    if len(rows) >= 3 and width >= 3 and all(len(row) == width for row in rows[:3]):
        focal, center = (rows[0][0], rows[1][1]), (rows[0][2], rows[1][2])
        size = None
    elif width in (3, 4):
        focal, center = (rows[0][0], rows[0][0]), (rows[0][1], rows[0][2])
        # DeepVoxels' lines end with height and width.
        size = (rows[-1][1], rows[-1][0]) if len(rows[-1]) == 2 else None
    elif width in (1, 2):
        focal, center, size = (rows[0][0], rows[0][0]), (None, None), None
    else:
        raise InputError(
            f"{path} has neither a matrix of 3x3 or 4x4 numbers nor a line with focal length and "
            "center; correct it."
        )
    if size is not None and not all(1.0 <= side < 1e5 for side in size):
        raise InputError(f"{path} has an invalid height or width; correct it.")
    return Intrinsics(
        focal=(check_focal(focal[0], str(path)), check_focal(focal[1], str(path))),
        center=center,
        size=size,
    )


def _read_box(path: Path) -> Region:
    if not os.path.isfile(path):
        return CaptureRegion()
    numbers = [value for row in read_rows(path) for value in row]
    low, high = np.array(numbers[:3]), np.array(numbers[3:6])
    if len(high) != 3 or not np.all(low < high):
        raise InputError(
            f"{path} does not begin with the low and the high corner of a box, x y z x y z; "
            "correct it, or take it out."
        )
    center, half = 0.5 * (low + high), 0.5 * BOX_MARGIN * (high - low)
    return BoxRegion(np.stack([center - half, center + half]))

"""Exports of Record3D: frames of a phone's video with the poses of its tracking.

"EXR + RGB" in the app: `metadata.json`, and `rgb` with the frames, named by their numbers.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.cameras.poses import rotation_from_quaternion
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import read_json
from jaxrf.data.files import DataFolder, check_folder, format_count, format_names
from jaxrf.data.frames import ALL, CaptureRegion, Frame, Intrinsics, Listing, check_focal
from jaxrf.data.nerf_json import FLIP_YZ, read_number
from jaxrf.data.options import LoadOptions

LISTING, IMAGES = "metadata.json", "rgb"
# Frames of a video, many each second, differ little.
MAX_FRAMES = 300


def is_record3d(folder: Path) -> bool:
    """Whether a folder has Record3D's `metadata.json` and `rgb`."""
    return os.path.isfile(folder / LISTING) and os.path.isdir(folder / IMAGES)


def read_record3d(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists an export of Record3D: `MAX_FRAMES` frames at most, of which every 8th is held out.

    Poses are camera-to-world with OpenGL's axes, each a quaternion x, y, z, w and a position.

    Args:
      folder: holds `metadata.json` and `rgb`.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    del splits
    check_folder(folder)
    listing, files = folder / LISTING, DataFolder(folder)
    content = read_json(listing, "poses, K, w and h")
    poses = content.get("poses")
    if not isinstance(poses, list) or not poses:
        raise InputError(f"{listing} has no list poses; export the video again (EXR + RGB).")
    images = files.list_images(Path(IMAGES))
    numbered = [path for path in images if path.stem.isdecimal() and int(path.stem) < len(poses)]
    if not numbered:
        raise InputError(
            f"None of the {format_count(len(images), 'image')} in {folder / IMAGES} is named by "
            f"the number of one of the {len(poses)} poses of {listing}: keep the names that "
            "Record3D wrote."
        )
    notes = []
    posed = set(numbered)
    others = [path.name for path in images if path not in posed]
    if others:
        count = format_count(len(others), "image")
        notes.append(f"Not used: {count} without a pose ({format_names(others)}).")
    stride = -(-len(numbered) // MAX_FRAMES)
    if stride > 1:
        notes.append(f"Used: one in {stride} of the {len(numbered)} frames.")
    chosen = numbered[::stride]
    frames = [
        Frame(
            path,
            listing,
            _read_pose(poses[int(path.stem)], f"poses[{int(path.stem)}] of {listing}", options),
            _read_intrinsics(content, int(path.stem), listing),
        )
        for path in chosen
    ]
    return Listing(folder, listing, {ALL: frames}, CaptureRegion(), notes=tuple(notes))


def _read_pose(value: object, where: str, options: LoadOptions) -> np.ndarray:
    numbers = _read_numbers(value, 7, where)
    rotation = rotation_from_quaternion(numbers[[3, 0, 1, 2]])
    if rotation is None:
        raise InputError(f"{where} does not begin with a unit quaternion; export the video again.")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, numbers[4:]
    return pose @ FLIP_YZ if options.axes == "opencv" else pose


def _read_intrinsics(content: dict[str, Any], index: int, listing: Path) -> Intrinsics:
    """The intrinsics of a frame: its own, or those of all."""
    size = [read_number(content, key, str(listing)) for key in ("w", "h")]
    per_frame = content.get("perFrameIntrinsicCoeffs")
    if isinstance(per_frame, list) and index < len(per_frame):
        where = f"perFrameIntrinsicCoeffs[{index}] of {listing}"
        fx, fy, cx, cy = _read_numbers(per_frame[index], 4, where)
    else:
        where = f"K of {listing}"
        # Column by column.
        fx, fy, cx, cy = _read_numbers(content.get("K"), 9, where)[[0, 4, 6, 7]]
    return Intrinsics(
        focal=(check_focal(float(fx), where), check_focal(float(fy), where)),
        center=(float(cx), float(cy)),
        size=None if size[0] is None or size[1] is None else (size[0], size[1]),
    )


def _read_numbers(value: object, count: int, where: str) -> np.ndarray:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != count or not all(isinstance(n, float) and abs(n) < 1e9 for n in numbers):
        raise InputError(f"{where} is not {count} finite numbers; export the video again.")
    return np.array(numbers)

"""DeepVoxels scenes: a folder with `intrinsics.txt`, `pose/` and `rgb/` for each split.

Sitzmann et al.: DeepVoxels (CVPR 2019).
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.data.files import check_folder, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import (
    ChooseViews,
    ViewIndex,
    box_distance_range,
    load_split,
    rescale_to_images,
)

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
INTRINSICS = "intrinsics.txt"
MAX_TEXT_BYTES = 1 << 16
# Half the side of the box, relative to the mean distance of the cameras from its center.
BOX_RATIO = 0.4


def find_deepvoxels(folder: Path) -> str | None:
    """Name of the scene in a folder, which has `train/<name>/intrinsics.txt`; None without."""
    train = folder / FOLDERS["train"]
    try:
        names = sorted(os.listdir(train)) if train.is_dir() else []
    except OSError:
        return None
    return next((name for name in names if os.path.isfile(train / name / INTRINSICS)), None)


def load_deepvoxels(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
) -> Scene:
    """Reads a DeepVoxels scene: an object around the origin, on a background of one color.

    Poses are camera-to-world with x right, y down, z forwards. The box is a cube around the
    barycenter that the file gives; half its side is `BOX_RATIO` times the mean camera distance.

    Args:
      folder: holds `train/<name>`, `validation/<name>` and `test/<name>`.
      splits, downscale, choose: see `blender.load_blender`.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    name = find_deepvoxels(folder)
    if name is None:
        raise InputError(f"{folder} has no train/NAME/{INTRINSICS}; give a DeepVoxels scene.")
    train, center = _read_views(folder, "train", name)
    poses = np.asarray(train.cameras.T_world_camera)
    half = BOX_RATIO * float(np.linalg.norm(poses[:, :3, 3] - center, axis=-1).mean())
    box = np.stack([center - half, center + half])
    near, far = box_distance_range(train.cameras, box)
    loaded = {}
    for split in splits:
        views = train if split == "train" else _read_views(folder, split, name)[0]
        loaded[split] = load_split(split, views, downscale, choose)
    return Scene(name_scene(folder), loaded, box.astype(np.float32), near, far)


def _read_views(folder: Path, split: str, name: str) -> tuple[ViewIndex, Float[np.ndarray, "3"]]:
    """The views of a split, and the barycenter in its file."""
    subfolder = Path(FOLDERS[split], name)
    if not (folder / subfolder).is_dir():
        raise MissingSplitError(f"{folder} has no {subfolder}; complete it, or use another split.")
    path = folder / subfolder / INTRINSICS
    rows = _read_rows(path)
    if len(rows) < 5 or len(rows[0]) < 3 or len(rows[1]) != 3 or len(rows[-1]) != 2:
        raise InputError(
            f"{path} must have lines of focal length and center, barycenter, near plane, scale, "
            "height and width; correct it."
        )
    focal, *center = rows[0][:3]
    height, width = rows[-1]
    if not (focal > 0 and 1 <= width < 1e5 and 1 <= height < 1e5):
        raise InputError(f"{path} has an invalid focal length or size; correct it.")
    names = _list_files(folder / subfolder / "pose", ".txt")
    images = _list_files(folder / subfolder / "rgb", ".png")
    if names != images:
        raise InputError(
            f"{folder / subfolder} has {len(names)} poses and {len(images)} images, which must "
            "have the same names; complete it."
        )
    poses = [_read_pose(folder / subfolder / "pose" / f"{stem}.txt") for stem in names]
    cameras = pinhole_cameras(
        np.stack(poses), int(width), int(height), focal, (center[0], center[1])
    )
    paths = tuple(subfolder / "rgb" / f"{stem}.png" for stem in names)
    return rescale_to_images(ViewIndex(folder, path, paths, cameras)), np.array(rows[1])


def _read_pose(path: Path) -> Float[np.ndarray, "4 4"]:
    """A pose with OpenGL axes."""
    values = [value for row in _read_rows(path) for value in row]
    rows = [values[4 * i : 4 * i + 4] for i in range(4)] if len(values) == 16 else values
    return check_pose(rows, str(path), "The pose") @ np.diag([1.0, -1.0, -1.0, 1.0])


def _read_rows(path: Path) -> list[list[float]]:
    """Numbers of a text file, by line, without empty lines."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(f"{path} is longer than {MAX_TEXT_BYTES} bytes; write it again.")
        text = path.read_text(encoding="utf-8")
        rows = [[float(word) for word in line.split()] for line in text.splitlines()]
    except FileNotFoundError:
        raise InputError(f"There is no {path}; complete the scene.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not hold only numbers ({error}); correct it.") from error
    if not all(math.isfinite(value) for row in rows for value in row):
        raise InputError(f"{path} holds a number that is not finite; correct it.")
    return [row for row in rows if row]


def _list_files(folder: Path, suffix: str) -> list[str]:
    """Sorted stems of the files in a folder that have a suffix."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); complete it.") from error
    stems = sorted(name[: -len(suffix)] for name in names if name.lower().endswith(suffix))
    if not stems:
        raise InputError(f"{folder} has no *{suffix}; complete it.")
    return stems

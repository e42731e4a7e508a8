"""DeepVoxels scenes: for each split a folder with `intrinsics.txt`, `pose/` and `rgb/`.

Sitzmann et al.: DeepVoxels (CVPR 2019).
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.data.files import check_folder, check_pose, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import ChooseViews, ViewIndex, rescale_to_images, load_split, near_far_fn

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
INTRINSICS = "intrinsics.txt"
MAX_TEXT_BYTES = 1 << 16
# What is modeled reaches so far from the middle, in parts of the cameras' mean distance from it.
REACH = 0.4


def find_deepvoxels(folder: Path) -> str | None:
    """The name of the scene that a folder holds in this layout; None if it does not.

    The folder holds `train/<name>/intrinsics.txt`, or is `train/<name>` 's parent's parent.
    """
    train = folder / FOLDERS["train"]
    try:
        names = sorted(os.listdir(train)) if train.is_dir() else []
    except OSError:
        return None
    found = [name for name in names if os.path.isfile(train / name / INTRINSICS)]
    return found[0] if found else None


def load_deepvoxels(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
) -> Scene:
    """Reads a DeepVoxels scene: an object around the origin, before one color.

    Poses are camera-to-world with x right, y down, z forwards. The box is a cube around the file's
    barycenter, of `REACH` times the cameras' mean distance to each side.

    Args:
      folder: holds `train/<name>`, `validation/<name>` and `test/<name>`.
      splits, downscale, choose: see `blender.load_blender`.

    Raises:
      InputError: something is missing, broken, or not what this layout holds.
    """
    check_folder(folder)
    name = find_deepvoxels(folder)
    if name is None:
        raise InputError(f"{folder} has no train/NAME/{INTRINSICS}; give a DeepVoxels scene.")
    train, center = _read_views(folder, "train", name)
    poses = np.asarray(train.cameras.T_world_camera)
    reach = REACH * float(np.linalg.norm(poses[:, :3, 3] - center, axis=-1).mean())
    box = np.stack([center - reach, center + reach])
    near, far = near_far_fn(train.cameras, box)
    loaded = {}
    for split in splits:
        views = train if split == "train" else _read_views(folder, split, name)[0]
        loaded[split] = load_split(split, views, downscale, choose)
    return Scene(name_scene(folder), loaded, box.astype(np.float32), near, far)


def _read_views(folder: Path, split: str, name: str) -> tuple[ViewIndex, Float[np.ndarray, "3"]]:
    """A split's views and the barycenter that its file names."""
    place = Path(FOLDERS[split], name)
    if not (folder / place).is_dir():
        raise MissingSplitError(f"{folder} has no {place}; complete it, or ask for another split.")
    path = folder / place / INTRINSICS
    rows = _read_rows(path)
    if len(rows) < 5 or len(rows[0]) < 3 or len(rows[1]) != 3 or len(rows[-1]) != 2:
        raise InputError(
            f"{path} must have lines of focal length and center, barycenter, near plane, scale, "
            "height and width; correct it."
        )
    focal, *center = rows[0][:3]
    height, width = rows[-1]
    if not (focal > 0 and 1 <= width < 1e5 and 1 <= height < 1e5):
        raise InputError(f"{path} has a focal length or size that is none; correct it.")
    names = _list_files(folder / place / "pose", ".txt")
    pictures = _list_files(folder / place / "rgb", ".png")
    if names != pictures:
        raise InputError(
            f"{folder / place} has {len(names)} poses and {len(pictures)} pictures, which must "
            "have the same names; complete it."
        )
    poses = [_read_pose(folder / place / "pose" / f"{stem}.txt") for stem in names]
    cameras = pinhole_cameras(
        np.stack(poses), int(width), int(height), focal, (center[0], center[1])
    )
    paths = tuple(place / "rgb" / f"{stem}.png" for stem in names)
    return rescale_to_images(ViewIndex(folder, path, paths, cameras)), np.array(rows[1])


def _read_pose(path: Path) -> Float[np.ndarray, "4 4"]:
    """A pose with OpenGL axes."""
    values = [value for row in _read_rows(path) for value in row]
    rows = [values[4 * i : 4 * i + 4] for i in range(4)] if len(values) == 16 else values
    return check_pose(rows, str(path), "The pose") @ np.diag([1.0, -1.0, -1.0, 1.0])


def _read_rows(path: Path) -> list[list[float]]:
    """The numbers of a text file, line by line; empty lines are left out."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(f"{path} is too long for what it is to hold; write it again.")
        text = path.read_text(encoding="utf-8")
        rows = [[float(word) for word in line.split()] for line in text.splitlines()]
    except FileNotFoundError:
        raise InputError(f"There is no {path}; complete the scene.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds something else than numbers ({error}).") from error
    if not all(math.isfinite(value) for row in rows for value in row):
        raise InputError(f"{path} holds a number that is not finite; correct it.")
    return [row for row in rows if row]


def _list_files(folder: Path, suffix: str) -> list[str]:
    """Stems of the files of one kind in a folder, sorted."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); complete it.") from error
    stems = sorted(name[: -len(suffix)] for name in names if name.lower().endswith(suffix))
    if not stems:
        raise InputError(f"{folder} has no *{suffix}; complete it.")
    return stems

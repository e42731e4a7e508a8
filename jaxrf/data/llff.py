"""LLFF scenes: `poses_bounds.npy` and pictures, facing forward (in NDC) or taken all around.

Mildenhall et al.: Local light field fusion (SIGGRAPH 2019).
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras, pinhole_cameras
from jaxrf.cameras.transforms import (
    UNIT_AABB,
    center_and_scale,
    looks_forward,
    transform_poses,
    recenter_poses,
)
from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError
from jaxrf.data.files import POSE_TOLERANCE, check_folder, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import (
    ChooseViews,
    ViewIndex,
    rescale_to_images,
    load_split,
    split_every_n,
    select_views,
)

LISTING = "poses_bounds.npy"
PICTURES = re.compile(r"images(_([1-9]\d*))?")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_VIEWS = 100_000
# Distance of the plane from which rays begin in NDC; the nearest thing is 4/3 away.
PLANE = 1.0


def is_llff(folder: Path) -> bool:
    """Whether a folder has a `poses_bounds.npy`."""
    return os.path.isfile(folder / LISTING)


def load_llff(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
) -> Scene:
    """Reads an LLFF scene; every 8th picture, in the order of their names, is held out.

    If all cameras look about the same way, the scene faces forward (`recenter_poses`) and is
    seen in normalized device coordinates; else it is set upright around the origin (`center_and_scale`),
    with cameras within +-1, and has no bounds. Pictures are those of `images_K` for a downscale of
    K, if there are such, else those of the largest folder, averaged.

    Args:
      folder: holds `poses_bounds.npy` and `images` or `images_K`.
      splits, downscale, choose: see `blender.load_blender`.

    Raises:
      InputError: something is missing, broken, or not what this layout holds.
    """
    check_folder(folder)
    poses, hwf, bounds = read_poses_bounds(folder / LISTING)
    pictures, factor = _find_pictures(folder, downscale)
    paths = _list_pictures(folder / pictures, len(poses))
    height, width, focal = hwf[0]
    if np.any(np.abs(hwf - hwf[0]) > 1e-3 * hwf[0]):
        raise InputError(f"{folder / LISTING} mixes sizes or focal lengths; split it by camera.")
    forward = looks_forward(poses)
    frame = recenter_poses(poses, float(bounds.min())) if forward else center_and_scale(poses)
    cameras = pinhole_cameras(transform_poses(frame, poses), int(width), int(height), float(focal))
    if forward:
        slopes = 0.5 * np.array([width, height]) / focal
        cameras = dataclasses.replace(cameras, ndc=(float(slopes[0]), float(slopes[1]), PLANE))
    shown = tuple(Path(pictures, path) for path in paths)
    views = rescale_to_images(ViewIndex(folder, folder / LISTING, shown, cameras))
    indices = split_every_n(len(views))
    bounds = bounds * frame.scale
    return Scene(
        name=name_scene(folder),
        splits={
            split: load_split(split, select_views(views, indices[split]), factor, choose)
            for split in splits
        },
        aabb=_enclose_ndc(cameras) if forward else np.array(UNIT_AABB, np.float32),
        near=float(0.9 * bounds.min()),
        far=float(bounds.max()),
        unbounded=not forward,
        frame=frame,
    )


def read_poses_bounds(
    path: Path,
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 3"], Float[np.ndarray, "n 2"]]:
    """Poses with OpenGL axes, (height, width, focal length), (nearest, farthest) of each view.

    The columns of the file's rotations are down, right, back.
    """
    try:
        table = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except FileNotFoundError:
        raise InputError(f"There is no {path}; give the folder of an LLFF scene.") from None
    except NUMPY_LOAD_ERRORS as error:
        raise InputError(f"{path} is not a whole .npy file ({error}); write it again.") from error
    if table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind != "f":
        raise InputError(
            f"{path} is {table.dtype} of shape {table.shape}; it must hold 17 floats for each view."
        )
    if not 1 <= len(table) <= MAX_VIEWS:
        raise InputError(f"{path} is of {len(table)} views; it must be 1 to {MAX_VIEWS}.")
    values = np.array(table, np.float64)
    if not np.all(np.isfinite(values)) or np.abs(values).max() > 1e9:
        raise InputError(f"{path} holds numbers that are not finite; make it anew.")
    columns, bounds = values[:, :15].reshape(-1, 3, 5), values[:, 15:]
    down, right, back, place, hwf = (columns[..., i] for i in range(5))
    rotation = np.stack([right, -down, back], axis=-1)
    apart = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    if apart.max() > POSE_TOLERANCE or np.linalg.det(rotation).min() < 0:
        worst = int(apart.argmax())
        raise InputError(f"The pose of view {worst} in {path} is no rotation; make it anew.")
    if hwf.min() < 1.0 or hwf[:, :2].max() > 1e5:
        raise InputError(f"{path} has a height, width or focal length below 1; make it anew.")
    if np.any(bounds[:, 0] <= 0) or np.any(bounds[:, 1] <= bounds[:, 0]):
        raise InputError(f"{path} has a view whose nearest depth is not below its farthest.")
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotation, place
    return poses, hwf, bounds


def _find_pictures(folder: Path, downscale: int) -> tuple[str, int]:
    """The folder of pictures to read, and how many times smaller they are still to be made."""
    factors = {}
    for entry in sorted(os.listdir(folder)):
        match = PICTURES.fullmatch(entry)
        if match and (folder / entry).is_dir():
            factors[int(match[2] or 1)] = entry
    if not factors:
        raise InputError(f"{folder} has no images, nor images_K; add the pictures.")
    if downscale in factors:
        return factors[downscale], 1
    least = min(factors)
    if downscale > least and downscale % least == 0:
        return factors[least], downscale // least
    if downscale == 1:
        return factors[least], 1
    found = ", ".join(factors[factor] for factor in sorted(factors))
    raise InputError(
        f"Pictures at 1/{downscale} of {folder} are not there and cannot be made (found: {found}); "
        "choose another --downscale."
    )


def _list_pictures(folder: Path, count: int) -> list[str]:
    paths = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if len(paths) != count:
        raise InputError(
            f"{folder} has {len(paths)} pictures and {LISTING} {count} poses; they must be as many."
        )
    return paths


def _enclose_ndc(cameras: Cameras) -> Float[np.ndarray, "2 3"]:
    """The box in NDC of all that any camera sees, from the near plane to infinity."""
    assert cameras.ndc is not None
    slopes, plane = np.array(cameras.ndc[:2]), cameras.ndc[2]
    poses = np.asarray(cameras.T_world_camera, np.float64)
    corners = np.array([[x, y, -1.0] for x in (-1, 1) for y in (-1, 1)])
    corners[:, :2] *= slopes
    directions = np.einsum("nij,kj->nki", poses[:, :3, :3], corners)
    ahead = np.maximum(-directions[..., 2:], 1e-3)
    origins = np.broadcast_to(poses[:, None, :3, 3], directions.shape)
    near = origins + (plane + origins[..., 2:]) / ahead * directions
    ends = np.concatenate(
        [near[..., :2] / (slopes * plane), directions[..., :2] / (slopes * ahead)], axis=0
    ).reshape(-1, 2)
    low, high = ends.min(axis=0), ends.max(axis=0)
    assert math.isfinite(low.sum() + high.sum())
    return np.array([[*low, -1.0], [*high, 1.0]], np.float32)

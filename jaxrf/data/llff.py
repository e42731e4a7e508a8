"""LLFF scenes: `poses_bounds.npy` and images, facing forward (in NDC) or captured all around.

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
from jaxrf.cameras.poses import POSE_TOLERANCE
from jaxrf.cameras.transforms import (
    UNIT_AABB,
    center_and_scale,
    looks_forward,
    recenter_poses,
    transform_poses,
)
from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError
from jaxrf.data.files import check_folder, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import (
    ChooseViews,
    ViewIndex,
    load_split,
    rescale_to_images,
    select_views,
    split_every_n,
)

LISTING = "poses_bounds.npy"
IMAGE_FOLDER = re.compile(r"images(_([1-9]\d*))?")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_VIEWS = 100_000
# Distance of the near plane of NDC; the nearest object has distance 4/3 (`recenter_poses`).
NEAR_PLANE = 1.0


def is_llff(folder: Path) -> bool:
    """Whether a folder has a `poses_bounds.npy`."""
    return os.path.isfile(folder / LISTING)


def load_llff(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
) -> Scene:
    """Reads an LLFF scene; every 8th image, in the order of their names, is held out.

    If all cameras look in about the same direction, the scene is recentered (`recenter_poses`) and
    rays are in normalized device coordinates. Otherwise it is upright and centered, with cameras
    within +-1 (`center_and_scale`), and unbounded. For a downscale of K, reads the images of
    `images_K` if there is such a folder, else downscales those of the largest folder.

    Args:
      folder: holds `poses_bounds.npy` and `images` or `images_K`.
      splits, downscale, choose: see `blender.load_blender`.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    poses, hwf, bounds = read_poses_bounds(folder / LISTING)
    image_folder, factor = _find_images(folder, downscale)
    names = _list_images(folder / image_folder, len(poses))
    height, width, focal = hwf[0]
    if np.any(np.abs(hwf - hwf[0]) > 1e-3 * hwf[0]):
        raise InputError(f"{folder / LISTING} mixes sizes or focal lengths; split it by camera.")
    forward = looks_forward(poses)
    transform = recenter_poses(poses, float(bounds.min())) if forward else center_and_scale(poses)
    poses = transform_poses(transform, poses)
    cameras = pinhole_cameras(poses, int(width), int(height), float(focal))
    if forward:
        slopes = 0.5 * np.array([width, height]) / focal
        cameras = dataclasses.replace(cameras, ndc=(float(slopes[0]), float(slopes[1]), NEAR_PLANE))
    paths = tuple(Path(image_folder, name) for name in names)
    views = rescale_to_images(ViewIndex(folder, folder / LISTING, paths, cameras))
    indices = split_every_n(len(views))
    bounds = bounds * transform.scale
    return Scene(
        name=name_scene(folder),
        splits={
            split: load_split(split, select_views(views, indices[split]), factor, choose)
            for split in splits
        },
        aabb=_ndc_aabb(cameras) if forward else np.array(UNIT_AABB, np.float32),
        near=float(0.9 * bounds.min()),
        far=float(bounds.max()),
        unbounded=not forward,
        frame=transform,
    )


def read_poses_bounds(
    path: Path,
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 3"], Float[np.ndarray, "n 2"]]:
    """Poses with OpenGL axes, (height, width, focal length), (nearest, farthest) of each view.

    The columns of the rotations in the file are down, right, back.

    Raises:
      InputError: the file is missing, damaged or not in this format.
    """
    try:
        table = np.lib.format.open_memmap(path, mode="r")  # Never unpickles.
    except FileNotFoundError:
        raise InputError(f"There is no {path}; give the folder of an LLFF scene.") from None
    except NUMPY_LOAD_ERRORS as error:
        raise InputError(
            f"{path} is not a complete .npy file ({error}); write it again."
        ) from error
    if table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind != "f":
        raise InputError(
            f"{path} is {table.dtype} of shape {table.shape}; it must hold 17 floats for each view."
        )
    if not 1 <= len(table) <= MAX_VIEWS:
        raise InputError(f"{path} has {len(table)} views; it must have 1 to {MAX_VIEWS}.")
    values = np.array(table, np.float64)
    if not np.all(np.isfinite(values)) or np.abs(values).max() > 1e9:
        raise InputError(f"{path} holds numbers that are not finite; write it again.")
    columns, bounds = values[:, :15].reshape(-1, 3, 5), values[:, 15:]
    down, right, back, position, hwf = (columns[..., i] for i in range(5))
    rotation = np.stack([right, -down, back], axis=-1)
    deviation = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    if deviation.max() > POSE_TOLERANCE or np.linalg.det(rotation).min() < 0:
        worst = int(deviation.argmax())
        raise InputError(f"The pose of view {worst} in {path} is not a rotation; write it again.")
    if hwf.min() < 1.0 or hwf[:, :2].max() > 1e5:
        raise InputError(f"{path} has a height, width or focal length below 1; write it again.")
    if np.any(bounds[:, 0] <= 0) or np.any(bounds[:, 1] <= bounds[:, 0]):
        raise InputError(
            f"{path} has a view whose nearest depth is not below its farthest; write it again."
        )
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotation, position
    return poses, hwf, bounds


def _find_images(folder: Path, downscale: int) -> tuple[str, int]:
    """The folder of images to read, and the factor by which to downscale them."""
    factors = {}
    for entry in sorted(os.listdir(folder)):
        match = IMAGE_FOLDER.fullmatch(entry)
        if match and (folder / entry).is_dir():
            factors[int(match[2] or 1)] = entry
    if not factors:
        raise InputError(f"{folder} has no images, nor images_K; add the images.")
    if downscale in factors:
        return factors[downscale], 1
    smallest = min(factors)
    if downscale > smallest and downscale % smallest == 0:
        return factors[smallest], downscale // smallest
    if downscale == 1:
        return factors[smallest], 1
    existing = ", ".join(factors[factor] for factor in sorted(factors))
    raise InputError(
        f"Images at 1/{downscale} of {folder} do not exist and cannot be computed (found: "
        f"{existing}); choose another --downscale."
    )


def _list_images(folder: Path, count: int) -> list[str]:
    paths = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if len(paths) != count:
        raise InputError(
            f"{folder} has {len(paths)} images and {LISTING} {count} poses; their numbers must be "
            "equal."
        )
    return paths


def _ndc_aabb(cameras: Cameras) -> Float[np.ndarray, "2 3"]:
    """Box in NDC around the views of all cameras, from the near plane to infinity."""
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

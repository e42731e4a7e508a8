"""NeRF's tiny example: one file, `tiny_nerf_data.npz`, of images, poses and a focal length."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.cameras.poses import check_pose
from jaxrf.cameras.transforms import transform_poses
from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError
from jaxrf.data.frames import ObjectRegion
from jaxrf.data.loading import ChooseViews
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.options import LoadOptions
from jaxrf.data.placing import find_placement
from jaxrf.data.scene import Scene, Split, downscale_split

ARRAYS = ("images", "poses", "focal")
# The example trains on the first 100 images and displays the next one.
TRAIN_VIEWS = 100
MAX_BYTES = 1 << 30


def is_tiny_nerf(path: Path) -> bool:
    """Whether a path is an .npz file."""
    return path.is_file() and path.suffix == ".npz"


def load_tiny_nerf(
    path: Path, splits: Sequence[str], options: LoadOptions, choose: ChooseViews = range
) -> Scene:
    """Reads the images and poses of the tiny example: an object on black.

    See `divide_views` for the splits.

    Args:
      path: of the .npz.
      splits, options, choose: see `loading.load_listing`.

    Raises:
      InputError: the file is missing, damaged or not in this format.
    """
    arrays = _read_arrays(path)
    images, poses, focal = (arrays[name] for name in ARRAYS)
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or images.dtype.kind not in "fu":
        raise InputError(
            f"images in {path} are {images.dtype} of shape {images.shape}, not (n, h, w, 3)."
        )
    count, height, width = images.shape[:3]
    if poses.shape != (count, 4, 4) or poses.dtype.kind not in "fiu":
        raise InputError(
            f"poses in {path} are {poses.dtype} of shape {poses.shape}, not ({count}, 4, 4)."
        )
    if count < 2 or min(height, width) < 1:
        raise InputError(f"images in {path} are of shape {images.shape}; give two or more.")
    length = float(focal) if focal.size == 1 and focal.dtype.kind == "f" else math.nan
    if not 0.0 < length < 1e7:
        raise InputError(f"focal in {path} is not a focal length in pixels; correct it.")
    rigid = [
        check_pose(np.asarray(pose, np.float64).tolist(), str(path), f"poses[{index}]")
        for index, pose in enumerate(poses)
    ]
    factor = options.downscale or 1
    if factor > min(width, height):
        raise InputError(
            f"The downscale factor {factor} is larger than the {width}x{height} pixels of {path}; "
            "make it smaller."
        )
    files_poses = np.stack(rigid)
    if options.axes == "opencv":
        files_poses = files_poses @ FLIP_YZ
    slopes = (0.5 * width / length, 0.5 * height / length)
    placement = find_placement(ObjectRegion(), files_poses, slopes, options)
    placed = transform_poses(placement.transform, files_poses)
    indices = divide_views(count)
    loaded = {}
    for split in splits:
        chosen = [indices[split][i] for i in choose(len(indices[split]))]
        cameras = pinhole_cameras(placed[chosen].reshape(-1, 4, 4), width, height, length)
        names = tuple(f"{i:03d}" for i in chosen)
        rgba = _to_rgba(images[chosen], path)
        loaded[split] = downscale_split(Split(split, names, rgba, cameras), factor)
    return Scene(
        name=path.stem,
        splits=loaded,
        aabb=placement.aabb.astype(np.float32),
        near=placement.near,
        far=placement.far,
        unbounded=placement.unbounded,
        frame=placement.transform,
        folder=path,
        options=options,
    )


def divide_views(count: int) -> dict[str, range]:
    """Indices of each split's images, of two or more.

    The first 100 images are for training, or all but the last one if there are fewer. The first
    third of the others is for validation, the remaining ones for testing; a single one is both.
    """
    num_train = min(TRAIN_VIEWS, count - 1)
    held_out = count - num_train
    first_test = num_train + (max(held_out // 3, 1) if held_out > 1 else 0)
    return {
        "train": range(num_train),
        "val": range(num_train, max(first_test, num_train + 1)),
        "test": range(first_test, count),
    }


def _read_arrays(path: Path) -> dict[str, Any]:
    """Arrays of the file, after a check of their sizes."""
    try:
        with zipfile.ZipFile(path) as file:
            sizes = {info.filename: info.file_size for info in file.infolist()}
            if sum(sizes.values()) > MAX_BYTES:
                raise InputError(f"{path} unpacks to more than {MAX_BYTES >> 30} GiB; shrink it.")
            missing = [name for name in ARRAYS if f"{name}.npy" not in sizes]
            if missing:
                raise InputError(f"{path} has no array {missing[0]!r}; it must hold {ARRAYS}.")
            for name in ARRAYS:
                with file.open(f"{name}.npy") as stream:
                    shape, _, dtype = _read_header(stream)
                    # numpy would allocate what a header declares, even if the file is shorter.
                    if math.prod(shape) * dtype.itemsize > sizes[f"{name}.npy"]:
                        raise ValueError(f"{name} is shorter than its header says")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ARRAYS}
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; name a tiny_nerf_data.npz.") from None
    except NUMPY_LOAD_ERRORS as error:
        raise InputError(f"{path} is damaged or not an .npz ({error}); copy it again.") from error


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _to_rgba(images: np.ndarray, path: Path) -> np.ndarray:
    """8-bit RGBA of images that are floats in [0, 1] or 8-bit."""
    if images.dtype.kind == "f":
        low, high = images.min(initial=0.0), images.max(initial=0.0)
        if not np.all(np.isfinite(images)) or low < -0.01 or high > 1.01:
            raise InputError(f"images in {path} are not all between 0 and 1; scale them.")
        images = np.rint(255.0 * np.clip(images, 0.0, 1.0)).astype(np.uint8)
    if images.dtype != np.uint8:
        raise InputError(f"images in {path} are {images.dtype}; make them float32 or uint8.")
    if images.shape[-1] == 4:
        return images
    return np.concatenate([images, np.full((*images.shape[:3], 1), 255, np.uint8)], axis=-1)

"""The one file of NeRF's tiny example, `tiny_nerf_data.npz`: pictures, poses, a focal length."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError
from jaxrf.data.blender import BOX, FAR, NEAR
from jaxrf.data.files import check_downscale, check_pose
from jaxrf.data.scene import Scene, Split, downscale_split
from jaxrf.data.views import ChooseViews

ARRAYS = ("images", "poses", "focal")
# The example trains on the first hundred and looks at the next.
TRAIN_VIEWS = 100
MAX_BYTES = 1 << 30


def is_tiny_nerf(path: Path) -> bool:
    """Whether a path is an .npz file."""
    return path.is_file() and path.suffix == ".npz"


def load_tiny_nerf(
    path: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
) -> Scene:
    """Reads the pictures and poses of the tiny example: an object before black.

    The first 100 pictures are trained on (or all but the last, if there are fewer). Of the others
    the first third is validated on, among them the one that the example watches, and the rest is
    tested on; one alone is both. The box is +-1.5, as that of the Blender scenes it was made of.

    Args:
      path: of the .npz.
      splits, downscale, choose: see `blender.load_blender`.

    Raises:
      InputError: the file is missing, broken, or holds something else.
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
        raise InputError(f"focal in {path} is no focal length in pixels; correct it.")
    rigid = [
        check_pose(np.asarray(pose, np.float64).tolist(), str(path), f"poses[{index}]")
        for index, pose in enumerate(poses)
    ]
    check_downscale(downscale, (width, height), path)
    indices = divide_views(count)
    loaded = {}
    for split in splits:
        chosen = [indices[split][i] for i in choose(len(indices[split]))]
        poses = np.array([rigid[i] for i in chosen]).reshape(-1, 4, 4)
        cameras = pinhole_cameras(poses, width, height, length)
        names = tuple(f"{i:03d}" for i in chosen)
        pictures = _to_rgba(images[chosen], path)
        loaded[split] = downscale_split(Split(split, names, pictures, cameras), downscale)
    return Scene(path.stem, loaded, np.array(BOX, np.float32), NEAR, FAR)


def divide_views(count: int) -> dict[str, range]:
    """Which of two or more pictures each split has; no picture is in two if three are there."""
    trained = min(TRAIN_VIEWS, count - 1)
    held_out = count - trained
    tested = trained + (max(held_out // 3, 1) if held_out > 1 else 0)
    return {
        "train": range(trained),
        "val": range(trained, max(tested, trained + 1)),
        "test": range(tested, count),
    }


def _read_arrays(path: Path) -> dict[str, Any]:
    """The file's arrays, once their sizes are known to be sane."""
    try:
        with zipfile.ZipFile(path) as file:
            sizes = {info.filename: info.file_size for info in file.infolist()}
            if sum(sizes.values()) > MAX_BYTES:
                raise InputError(f"{path} unpacks to more than {MAX_BYTES >> 30} GiB; shrink it.")
            missing = [name for name in ARRAYS if f"{name}.npy" not in sizes]
            if missing:
                raise InputError(f"{path} has no array {missing[0]!r}; it must hold {ARRAYS}.")
            for name in ARRAYS:
                with file.open(f"{name}.npy") as part:
                    shape, _, dtype = _read_header(part)
                    # A header may promise more than the file holds, and numpy would believe it.
                    if math.prod(shape) * dtype.itemsize > sizes[f"{name}.npy"]:
                        raise ValueError(f"{name} is shorter than its header says")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ARRAYS}
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; name a tiny_nerf_data.npz.") from None
    except NUMPY_LOAD_ERRORS as error:
        raise InputError(f"{path} is damaged, or no .npz ({error}); copy it again.") from error


def _read_header(part: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(part)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(part)
    return np.lib.format.read_array_header_2_0(part)


def _to_rgba(images: np.ndarray, path: Path) -> np.ndarray:
    """8-bit RGBA of pictures in [0, 1] or in 8 bits."""
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

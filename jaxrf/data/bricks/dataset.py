"""The built-in scene as a data set in the Blender format, cached in a folder of the user's."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from jaxtyping import Float64

from jaxrf.core.user_cache import cache_folder
from jaxrf.data.bricks.model import build_model
from jaxrf.data.bricks.rendering import CAMERA_ANGLE_X, render_view

VERSION = 1  # Part of the cache folder's name: raise it whenever a rendered pixel changes.
CAMERA_DISTANCE = 4.03
MIN_ELEVATION, MAX_ELEVATION = math.radians(-5.0), math.radians(85.0)
FIRST_POSE = {"train": 0, "val": 10_000, "test": 20_000}


def write_bricks(
    folder: Path,
    width: int = 100,
    height: int = 100,
    train_views: int = 100,
    val_views: int = 10,
    test_views: int = 25,
    supersamples: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders the scene into a folder in the format of NeRF's synthetic ("Blender") scenes.

    Writes `<split>/r_<i>.png` and its exact depth, `<split>/r_<i>_depth.npy` (see `render_view`).
    The folder appears only when it is complete. If two processes write the same folder, the first
    one to finish wins.

    Args:
      folder: must not exist yet; its parents are created.
      width: in pixels.
      height: in pixels.
      train_views: number of training poses, which cover the upper hemisphere evenly.
      val_views: number of validation poses, different from those.
      test_views: number of test poses, different from those; they do not depend on the other
        numbers.
      supersamples: rays per pixel along each side.
      progress: called with (finished images, all images) after each image.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder exists already.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: delete it or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = build_model()
    counts = {"train": train_views, "val": val_views, "test": test_views}
    finished = 0
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        scene = Path(scratch) / folder.name
        for split, count in counts.items():
            (scene / split).mkdir(parents=True)
            poses = [sequence_pose(FIRST_POSE[split] + i) for i in range(count)]
            for i, pose in enumerate(poses):
                rgba, depth = render_view(model, pose, width, height, supersamples)
                iio.imwrite(scene / split / f"r_{i}.png", rgba)
                np.save(scene / split / f"r_{i}_depth.npy", depth)
                finished += 1
                if progress is not None:
                    progress(finished, sum(counts.values()))
            frames = [
                {"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()}
                for i, pose in enumerate(poses)
            ]
            transforms = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
            (scene / f"transforms_{split}.json").write_text(json.dumps(transforms, indent=2))
        _publish(scene, folder)
    return folder


def _publish(scene: Path, folder: Path) -> None:
    """Moves the finished scene into place, unless another process did so first."""
    try:
        scene.rename(folder)
    except OSError:
        if not (folder / "transforms_test.json").exists():
            raise


def sequence_pose(index: int) -> Float64[np.ndarray, "4 4"]:
    """Pose number `index` of a sequence of cameras that look at the origin.

    The poses follow the low-discrepancy sequence of the plastic number (Roberts 2018): any
    consecutive poses cover the hemisphere evenly, and no two poses are the same.
    """
    plastic = 1.324717957244746
    u, v = (0.5 + index / plastic) % 1.0, (0.5 + index / plastic**2) % 1.0
    z = math.sin(MIN_ELEVATION) + u * (math.sin(MAX_ELEVATION) - math.sin(MIN_ELEVATION))
    azimuth, across = 2.0 * math.pi * v, math.sqrt(1.0 - z * z)
    back = np.array([across * math.cos(azimuth), across * math.sin(azimuth), z])
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, CAMERA_DISTANCE * back], axis=-1)
    return pose


def cached_bricks(
    cache: Path | None = None,
    width: int = 100,
    height: int = 100,
    train_views: int = 100,
    val_views: int = 10,
    test_views: int = 25,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder of the scene, which the first call writes with `write_bricks`.

    Args:
      cache: folder that holds cached scenes; by default `jaxrf` in `$XDG_CACHE_HOME` or `~/.cache`.
      width: in pixels.
      height: in pixels.
      train_views: number of training images.
      val_views: number of validation images.
      test_views: number of held-out images.
      progress: called with (finished images, all images) after each image.

    Raises:
      OSError: the cache cannot be written.
    """
    cache = cache_folder() if cache is None else Path(cache)
    views = f"{train_views}-{val_views}-{test_views}"
    folder = cache / f"bricks-v{VERSION}-{width}x{height}-{views}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return write_bricks(
            folder, width, height, train_views, val_views, test_views, progress=progress
        )
    except OSError as error:
        if folder.is_dir():  # Another process has just written it.
            return folder
        raise type(error)(
            f"The built-in scene cannot be written to {folder} ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that you can write to."
        ) from error

"""Where a data set comes from: a folder that the user names, the usual places, or the built-in."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.data import (
    blender,
    bricks,
    colmap,
    deepvoxels,
    llff,
    multiscale,
    tiny_nerf,
    transforms,
)
from jaxrf.data.scene import Scene
from jaxrf.data.views import ChooseViews
from jaxrf.training.config import SyntheticSceneConfig, TrainConfig

DEFAULT_PATH = Path("nerf_synthetic/lego")


class DataSource(NamedTuple):
    """A data set that was found.

    folder: None for the built-in scene, which may have to be rendered first.
    reason: one line for the user that says which data set is used and why.
    """

    folder: Path | None
    reason: str


def search_paths() -> list[Path]:
    """Folders in which data sets are looked for: ./data, then the one in JAXRF_DATA."""
    extra = os.environ.get("JAXRF_DATA")
    return [Path("data"), *([Path(extra)] if extra else [])]


def find_source(config: TrainConfig) -> DataSource:
    """The data set of a configuration: --data, else the usual place, else the built-in scene."""
    if config.data is not None:
        folder = find_data(config.data)
        return DataSource(folder, f"Data: {folder} (--data).")
    for root in search_paths():
        if (root / DEFAULT_PATH).is_dir():
            return DataSource(root / DEFAULT_PATH, f"Data: {root / DEFAULT_PATH} (found; --data names another).")
    size = config.bricks.size
    return DataSource(
        None,
        f"Data: the built-in scene bricks at {size}x{size}, as {Path('data') / DEFAULT_PATH} is not "
        "there (--data names a folder).",
    )


def find_data(data: Path) -> Path:
    """A data set that was named: as it stands, or in one of `search_paths`."""
    candidates = [data]
    if not data.is_absolute():
        candidates += [root / data for root in search_paths()]
    for folder in candidates:
        if folder.exists():
            return folder
    raise InputError(
        f"--data {data} does not exist: give the folder that holds transforms_train.json or "
        "another listing of pictures, or leave --data out for the built-in scene."
    )


def ensure_bricks(
    config: SyntheticSceneConfig, progress: Callable[[int, int], None] | None = None
) -> Path:
    """The folder of the built-in scene, rendered into the user's cache if it is not there yet."""
    return bricks.cached_bricks(
        width=config.size,
        height=config.size,
        train_views=config.train_views,
        test_views=config.test_views,
        progress=progress,
    )


class Format(NamedTuple):
    """A way in which data sets are stored.

    name: of it, for people.
    mark: the file by which it is known.
    fits: whether a path holds it.
    load: (path, splits, downscale, choose, skip_missing) -> scene.
    """

    name: str
    mark: str
    fits: Callable[[Path], bool]
    load: Callable[[Path, Sequence[str], int, ChooseViews, bool], Scene]


# What is recognized, in order: an LLFF folder has a COLMAP model too.
FORMATS = (
    Format(
        "NeRF's tiny example",
        "*.npz",
        tiny_nerf.is_tiny_nerf,
        lambda path, splits, downscale, choose, _: tiny_nerf.load_tiny_nerf(
            path, splits, downscale, choose
        ),
    ),
    Format(
        "multi-scale Blender",
        multiscale.LISTING,
        multiscale.is_multiscale,
        lambda path, splits, downscale, choose, _: multiscale.load_multiscale(
            path, splits, downscale, choose
        ),
    ),
    Format(
        "Blender (NeRF-synthetic)",
        "transforms_train.json",
        blender.is_blender,
        blender.load_blender,
    ),
    Format(
        "nerfstudio or instant-ngp",
        transforms.LISTING,
        transforms.is_transforms,
        transforms.load_transforms,
    ),
    Format(
        "LLFF",
        llff.LISTING,
        llff.is_llff,
        lambda path, splits, downscale, choose, _: llff.load_llff(path, splits, downscale, choose),
    ),
    Format(
        "COLMAP",
        "sparse/0/images.bin",
        lambda path: colmap.find_model(path) is not None,
        colmap.load_colmap,
    ),
    Format(
        "DeepVoxels",
        f"train/NAME/{deepvoxels.INTRINSICS}",
        lambda path: deepvoxels.find_deepvoxels(path) is not None,
        lambda path, splits, downscale, choose, _: deepvoxels.load_deepvoxels(
            path, splits, downscale, choose
        ),
    ),
)


def detect_format(path: Path) -> Format:
    """How the data set at a path is stored; InputError if that is not known."""
    for layout in FORMATS:
        if layout.fits(path):
            return layout
    if not path.exists():
        raise InputError(f"There is no folder {path}; give the path of a scene's folder.")
    marks = ", ".join(f"{layout.sentinel_file} ({layout.name})" for layout in FORMATS)
    raise InputError(f"{path} holds no data set that is known: there is none of {marks}.")


def load_scene(
    path: Path,
    splits: Sequence[str],
    downscale: int = 1,
    choose: ChooseViews = range,
    skip_missing: bool = False,
) -> Scene:
    """The scene at a path: only the splits that are asked for, and of these the chosen views."""
    return detect_format(path).load(path, splits, downscale, choose, skip_missing)


def has_split(path: Path, split: str) -> bool:
    """Whether a data set has views of a split; InputError if what says so is damaged."""
    try:
        load_scene(path, [split], choose=lambda count: range(0), skip_missing=True)
    except MissingSplitError:
        return False
    return True


def describe_scene(path: Path, scene: Scene) -> str:
    """One line for the user: what was found, and how it is seen."""
    split = next(iter(scene.splits.values()))
    cameras = split.cameras
    parts = [f"{detect_format(path).name} layout", f"{cameras.width}x{cameras.height} pixels"]
    counts = ", ".join(f"{len(views)} {name}" for name, views in scene.splits.items())
    parts.append(f"{counts} views")
    if cameras.distortion is not None or cameras.lens != "perspective":
        parts.append(f"{cameras.lens} lens, undistorted exactly")
    if cameras.ndc is not None:
        parts.append("facing forward, in normalized device coordinates")
    if scene.unbounded:
        parts.append("without bounds: space around the cameras is contracted")
    return "; ".join(parts) + "."

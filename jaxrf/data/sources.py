"""Where a data set comes from: a folder that the user names, the usual places, or the built-in."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrf.config import BricksConfig, TrainConfig
from jaxrf.data import blender, bricks
from jaxrf.data.base import Scene
from jaxrf.errors import InputError

USUAL = Path("nerf_synthetic/lego")


class Source(NamedTuple):
    """A data set that was found.

    folder: None for the built-in scene, which may have to be rendered first.
    reason: one line for the user that says which data set is used and why.
    """

    folder: Path | None
    reason: str


def roots() -> list[Path]:
    """Folders in which data sets are looked for: ./data, then the one in JAXRF_DATA."""
    extra = os.environ.get("JAXRF_DATA")
    return [Path("data"), *([Path(extra)] if extra else [])]


def find_source(config: TrainConfig) -> Source:
    """The data set of a configuration: --data, else the usual place, else the built-in scene."""
    if config.data is not None:
        candidates = [config.data]
        if not config.data.is_absolute():
            candidates += [root / config.data for root in roots()]
        for folder in candidates:
            if folder.exists():
                return Source(folder, f"Data: {folder} (--data).")
        raise InputError(
            f"--data {config.data} does not exist: give the folder that holds "
            "transforms_train.json, or leave --data out to use the built-in scene."
        )
    for root in roots():
        if (root / USUAL).is_dir():
            return Source(root / USUAL, f"Data: {root / USUAL} (found; --data names another).")
    size = config.bricks.size
    return Source(
        None,
        f"Data: the built-in scene bricks at {size}x{size}, as {Path('data') / USUAL} is not "
        "there (--data names a folder).",
    )


def ensure_bricks(config: BricksConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the built-in scene, rendered into the user's cache if it is not there yet."""
    return bricks.cached_bricks(
        width=config.size,
        height=config.size,
        train_views=config.train_views,
        test_views=config.test_views,
        progress=progress,
    )


def load_scene(
    folder: Path,
    splits: Sequence[str],
    downscale: int = 1,
    choose: blender.ChooseViews = range,
) -> Scene:
    """The scene in a folder: only the splits that are asked for, and of these the chosen views."""
    return blender.load_blender(folder, splits, downscale, choose)

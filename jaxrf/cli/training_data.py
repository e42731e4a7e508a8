"""The images that a training uses."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from jaxrf.core.errors import MissingSplitError
from jaxrf.core.progress import ProgressBar
from jaxrf.data import report, sources
from jaxrf.data.options import load_options
from jaxrf.data.scene import Scene, Split, find_split_background
from jaxrf.data.sources import DataSource
from jaxrf.evaluation import scoring
from jaxrf.parallel import processes
from jaxrf.training.config import TrainConfig
from jaxrf.training.runs import SceneMetadata


class TrainingData(NamedTuple):
    """Images that a training uses.

    Attributes:
      folder: of the data set.
      is_builtin: whether it is the built-in scene.
      scene: with its training split.
      val: views to validate on; None if the data set has none or no validation is wanted.
      metadata: of the scene, as it is stored with the run.
    """

    folder: Path
    is_builtin: bool
    scene: Scene
    val: Split | None
    metadata: SceneMetadata


def locate(source: DataSource, config: TrainConfig) -> Path:
    """Returns the folder of the data set; the built-in scene is rendered if it has to be."""
    if source.folder is not None:
        folder = source.folder
        # One process finds the poses of photos; the others then only look them up.
        processes.main_process_first(lambda: sources.ensure_poses(folder, config.photos))
        return sources.ensure_poses(folder, config.photos, lambda sentence: None)
    # One process renders; the others then only look the folder up.
    processes.main_process_first(lambda: _render_builtin(config))
    return _render_builtin(config)


def load(folder: Path, source: DataSource, config: TrainConfig) -> TrainingData:
    """Loads the images to train and validate on.

    Raises:
      InputError: the data set is damaged, or its train or test split is missing.
    """
    # The test split is needed last, but a fault in it has to be found first. No image is decoded.
    sources.load_scene(folder, ["test"], config, lambda count: range(0))
    use_depth = config.depth or config.loss.depth_weight > 0.0
    options = dataclasses.replace(load_options(config), depth=use_depth)
    scene = sources.load_scene(folder, ["train"], options)
    is_builtin = source.folder is None
    if is_builtin:
        scene = dataclasses.replace(scene, name="bricks")
    else:
        print(f"Found: {sources.describe_scene(folder, scene)}")
        for note in (*scene.notes, *report.find_warnings(scene)):
            print(note)
    val = load_val(folder, config)
    return TrainingData(folder, is_builtin, scene, val, SceneMetadata.from_scene(scene, folder))


def load_val(folder: Path, config: TrainConfig) -> Split | None:
    """Loads the views to validate on.

    Returns None if the data set has none or `config` asks for no validation.
    """
    if config.validate_every <= 0:
        return None

    def choose(count: int) -> list[int]:
        return scoring.evenly_spaced_indices(count, config.validation_views)

    try:
        scene = sources.load_scene(folder, ["val"], config, choose)
    except MissingSplitError:
        return None
    return scene.splits["val"]


def background_warning(config: TrainConfig, scene: Scene) -> str | None:
    """Returns a warning if opaque images have another color around the object than `config`."""
    if scene.unbounded or scene.splits["train"].cameras.ndc is not None:
        return None
    color = find_split_background(scene.splits["train"])
    if color is None or config.background in (color, "random"):
        return None
    return (
        f"Background: {config.background}, but the pictures are {color} around the object, and the "
        f"field will model that as geometry; use --background {color}."
    )


def _render_builtin(config: TrainConfig) -> Path:
    is_silent = not processes.is_main_process()
    with ProgressBar(None, "render bricks", "view", disable=is_silent) as bar:
        return sources.ensure_bricks(config.synthetic_scene, bar.update_to)

"""Converted weights as a run, which renders, is scored and goes on training like any other."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrf.convert.networks import Converted
from jaxrf.data.scene import Scene
from jaxrf.models.methods import Stage
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import train, transitions
from jaxrf.training.config import TensoRFConfig, TrainConfig
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata

# The checksum of training pictures that nobody has seen.
UNKNOWN_CHECKSUM = -1
# Of the original rate: what is trained already is not to be thrown off.
FINETUNE_LR_MULT = 0.2
BOX = np.array([[-1.5] * 3, [1.5] * 3], np.float32)


def make_run(
    converted: Converted,
    name: str,
    folder: Path,
    scene: Scene | None,
    data: Path | None,
    downscale: int,
    steps: int,
) -> Run:
    """A run at step 0 of fine-tuning.

    Args:
      converted: the weights.
      name: of the data set, if there is none.
      folder: of the run.
      scene, data, downscale: the data set, where it is and by how much it was shrunk, if any.
      steps: of fine-tuning.
    """
    config = _plan_training(converted.config, folder, data, steps)
    config = dataclasses.replace(config, downscale=downscale)
    if scene is not None:
        config = transitions.resolve_config(config, scene)
    box = BOX if scene is None else scene.aabb
    stage, grid = place(converted, config, box)
    state = train.init_state(config, stage, grid)
    params = jax.tree.map(jnp.asarray, converted.params)
    average = None if state.average is None else params
    state = dataclasses.replace(state, params=params, average=average)
    summary = default_scene_metadata(converted, name)
    if scene is not None and data is not None:
        summary = SceneMetadata.from_scene(scene, data)
    return Run(folder, config, summary, stage, state, 0.0)


def place(
    converted: Converted, config: TrainConfig, box: Float[np.ndarray, "2 3"]
) -> tuple[Stage, OccupancyGrid]:
    """The shapes of the field and its grid: the file's own, or one that fills the box."""
    found = converted.grid
    if found is None:
        stage = transitions.first_stage(config, box)
        return stage, transitions.init_grid(config.field, stage, box)
    if not isinstance(config.field, TensoRFConfig):
        stage = transitions.first_stage(config, found.aabb)
        return stage, transitions.init_grid(config.field, stage, found.aabb)
    x, y, z = found.occupied.shape
    stage = Stage(found.resolution, (x, y, z), config.batch_rays, 1, pruned=found.pruned)
    stage = transitions.set_budgets(config, stage, found.aabb)
    grid = OccupancyGrid(jnp.asarray(found.occupied), jnp.asarray(found.aabb))
    return stage, transitions.watch_grid(config.field, stage, grid)


def _plan_training(config: TrainConfig, folder: Path, data: Path | None, steps: int) -> TrainConfig:
    rates = config.optimizer
    rates = dataclasses.replace(
        rates,
        grid_lr=FINETUNE_LR_MULT * rates.grid_lr,
        mlp_lr=FINETUNE_LR_MULT * rates.mlp_lr,
    )
    where = None if data is None else data.absolute()
    return dataclasses.replace(config, optimizer=rates, run_dir=folder, data=where, steps=steps)


def default_scene_metadata(converted: Converted, name: str) -> SceneMetadata:
    """An object at the origin, as NeRF-synthetic's cameras see it."""
    return SceneMetadata(
        name=name,
        data="",
        near=converted.near,
        far=converted.far,
        width=400,
        height=400,
        focal=555.5555,
        focus=(0.0, 0.0, 0.0),
        radius=0.5 * (converted.near + converted.far),
        train_views=0,
        checksum=UNKNOWN_CHECKSUM,
    )

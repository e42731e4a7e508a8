"""Makes a run of converted weights, which renders, is scored and trains on like any other."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrf.convert.networks import Converted
from jaxrf.data.scene import Scene
from jaxrf.models.base import StageSpec
from jaxrf.models.packed import PackedModel
from jaxrf.sampling.alpha_mask import attach_mask
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.sampling.weight_tracking import track_weights
from jaxrf.training import transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.state import init_state

# The checksum of training images that are not available.
UNKNOWN_CHECKSUM = -1
# Fine-tuning uses smaller learning rates, so that trained weights are not thrown off.
FINETUNE_LR_MULT = 0.2
DEFAULT_AABB = np.array([[-1.5] * 3, [1.5] * 3], np.float32)


def to_run(
    converted: Converted,
    name: str,
    folder: Path,
    scene: Scene | None,
    data: Path | None,
    downscale: int,
    steps: int,
) -> Run:
    """Returns a run at step 0 of fine-tuning.

    Args:
      converted: the weights.
      name: of the scene, if there is no data set.
      folder: of the run.
      scene, data, downscale: the data set, its path and the factor it was shrunk by, if any.
      steps: of fine-tuning.
    """
    config = make_finetune_config(converted.config, folder, data, steps)
    config = dataclasses.replace(config, downscale=downscale)
    if scene is not None:
        config = transitions.resolve_config(config, scene)
    stage, grid = init_stage(converted, config, DEFAULT_AABB if scene is None else scene.aabb)
    state = init_state(config, stage, grid)
    params = jax.tree.map(jnp.asarray, converted.params)
    ema_params = None if state.ema_params is None else params
    state = dataclasses.replace(state, params=params, ema_params=ema_params)
    metadata = default_scene_metadata(converted, name)
    if scene is not None and data is not None:
        metadata = SceneMetadata.from_scene(scene, data)
    return Run(folder, config, metadata, stage, state, 0.0)


def init_stage(
    converted: Converted, config: TrainConfig, aabb: Float[np.ndarray, "2 3"]
) -> tuple[StageSpec, OccupancyGrid]:
    """Returns the stage and the occupancy grid: the file's, or a full grid in the box `aabb`."""
    file_grid, model = converted.grid, config.model
    if file_grid is None or file_grid.occupied is None:
        aabb = aabb if file_grid is None else file_grid.aabb
        stage = transitions.first_stage(config, aabb)
        return stage, transitions.init_grid(config, stage, aabb)
    assert isinstance(model, PackedModel), "only grids that are marched through have cells"
    x, y, z = file_grid.occupied.shape
    stage = StageSpec(config.field, (x, y, z), config.batch_rays, 1)
    stage = transitions.set_budgets(config, stage, file_grid.aabb)
    grid = OccupancyGrid(jnp.asarray(file_grid.occupied), jnp.asarray(file_grid.aabb))
    tracked = track_weights(grid, model.dilation_cells(stage, file_grid.aabb))
    if file_grid.alpha_mask is None:
        return stage, tracked
    return stage, attach_mask(tracked, *file_grid.alpha_mask)


def make_finetune_config(
    config: TrainConfig, folder: Path, data: Path | None, steps: int
) -> TrainConfig:
    """Returns the configuration of fine-tuning, with reduced learning rates."""
    optimizer = dataclasses.replace(
        config.optimizer,
        grid_lr=FINETUNE_LR_MULT * config.optimizer.grid_lr,
        mlp_lr=FINETUNE_LR_MULT * config.optimizer.mlp_lr,
    )
    data = None if data is None else data.absolute()
    return dataclasses.replace(
        config, optimizer=optimizer, run_dir=folder, data=data, num_steps=steps
    )


def default_scene_metadata(converted: Converted, name: str) -> SceneMetadata:
    """Returns the metadata of an object at the origin, seen by cameras as in NeRF-synthetic."""
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

"""Makes a run of converted weights, which renders, is scored and trains on like any other."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrf.convert import instant_ngp
from jaxrf.convert.networks import Converted
from jaxrf.data.scene import Scene
from jaxrf.models.base import StageSpec
from jaxrf.models.packed import PackedModel
from jaxrf.sampling.alpha_mask import attach_mask
from jaxrf.sampling.density_tracking import track_density
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
# Low and high corner in the coordinates of a data set's files, as `LoadOptions.box`.
FileBox = tuple[float, float, float, float, float, float]
DEFAULT_AABB = np.array([[-1.5] * 3, [1.5] * 3], np.float32)


def file_box(converted: Converted) -> FileBox | None:
    """Returns the box to read the data set with; None to leave it to the data set."""
    if not converted.in_file_coordinates:
        return None
    assert converted.grid is not None
    low_x, low_y, low_z, high_x, high_y, high_z = map(float, converted.grid.aabb.ravel())
    return low_x, low_y, low_z, high_x, high_y, high_z


def move_to_scene(converted: Converted, scene: Scene) -> Converted:
    """Returns a field where a scene is, which was read with `file_box`."""
    if not converted.in_file_coordinates:
        return converted._replace(near=scene.near, far=scene.far)
    placed = instant_ngp.move_to_scene(converted, scene.frame)
    return placed._replace(near=max(placed.near, scene.near), far=scene.far)


def to_run(
    converted: Converted,
    name: str,
    folder: Path,
    scene: Scene | None,
    data: Path | None,
    downscale: int,
    steps: int,
    box: FileBox | None = None,
) -> Run:
    """Returns a run at step 0 of fine-tuning.

    Args:
      converted: the weights, as `move_to_scene` returns them.
      name: of the scene, if there is no data set.
      folder: of the run.
      scene, data, downscale: the data set, its path and the factor it was shrunk by, if any.
      steps: of fine-tuning.
      box: that the data set was read with.
    """
    config = make_finetune_config(converted.config, folder, data, steps)
    config = dataclasses.replace(config, downscale=downscale)
    if scene is not None:
        config = dataclasses.replace(config, box=box)
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
    dilation = model.dilation_cells(stage, file_grid.aabb)
    if not config.field.prunes_grid:
        return stage, track_density(grid, dilation)
    tracked = track_weights(grid, dilation)
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
    """Returns the metadata of the cameras that the file lists.

    Without them, of an object at the origin, seen by cameras as in NeRF-synthetic.
    """
    if converted.cameras is not None:
        return SceneMetadata.from_cameras(
            converted.cameras,
            name=name,
            data="",
            near=converted.near,
            far=converted.far,
            checksum=UNKNOWN_CHECKSUM,
        )
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

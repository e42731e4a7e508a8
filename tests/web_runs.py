"""Runs of random fields that pages show."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scenes import first_state, make_scene

from jaxrf.models.packed import PackedModel
from jaxrf.sampling.density_tracking import track_density
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata

MARCHING = {"model": PackedModel(occupancy_resolution=8, steps_per_diagonal=24)}


def make_web_run(config: TrainConfig, seed: int = 0) -> runs.Run:
    """A run with random parameters and, for a BitNeRF, holes in its occupancy grid."""
    stage, state = first_state(config)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.0, 0.4, x.shape), x.dtype), state.params
    )
    grid = state.grid
    if config.field.name == "bitnerf":
        occupied = rng.random(stage.grid_resolution) < 0.7
        occupied[:2] = False
        grid = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
        grid = track_density(grid, stage.dilation_cells)
    state = dataclasses.replace(
        state, params=params, ema_params=None, grid=grid, step=jnp.asarray(7, jnp.int32)
    )
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    scene = dataclasses.replace(scene, name="ball </script>")
    return runs.Run(Path("runs/ball"), config, scene, stage, state, 2.5)

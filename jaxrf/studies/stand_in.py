"""Scenes that have the sizes of published ones and nothing in their images.

A program depends on the sizes of its arrays alone, so these suffice to compile for.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from jaxrf.cameras.base import apply_ray_convention, make_cameras
from jaxrf.cameras.paths import orbit_path
from jaxrf.data.placing import OBJECT_AABB, OBJECT_DISTANCE, OBJECT_FAR, OBJECT_NEAR
from jaxrf.data.scene import Scene, Split
from jaxrf.models.base import StageSpec
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.pixels import PixelDataset
from jaxrf.training.state import TrainState, init_state

# Images, width and height of a scene of NeRF-synthetic, and of Mip-NeRF 360's garden, a quarter.
OBJECT_SIZE, CAPTURE_SIZE = (100, 800, 800), (161, 1297, 840)
CAMERA_ANGLE = 0.69
# Radii of the shell that stands for an object's surface, in half widths of the box: 6 % of the box.
SHELL = (0.55, 0.65)


def make_object() -> Scene:
    """A scene with the sizes, box and cameras of Lego in NeRF-synthetic."""
    return _make("lego-sized", OBJECT_SIZE, np.array(OBJECT_AABB), OBJECT_DISTANCE, False)


def make_capture() -> Scene:
    """A scene without bounds, with the sizes of Mip-NeRF 360's garden at a quarter."""
    box = np.array([[-1.0] * 3, [1.0] * 3])
    return _make("garden-sized", CAPTURE_SIZE, box, 0.8, True)


def _make(
    name: str, size: tuple[int, int, int], aabb: np.ndarray, distance: float, unbounded: bool
) -> Scene:
    count, width, height = size
    cameras = make_cameras(orbit_path(count, distance, 0.5), width, height, CAMERA_ANGLE)
    images = np.broadcast_to(np.zeros((), np.uint8), (count, height, width, 4))
    split = Split("train", tuple(str(n) for n in range(count)), images, cameras)
    return Scene(name, {"train": split}, aabb, OBJECT_NEAR, OBJECT_FAR, unbounded)


def abstract_pixels(config: TrainConfig, split: Split) -> PixelDataset:
    """The shapes of `pixels.to_device`."""
    count, height, width, _ = split.images.shape
    scales = config.image_scales()
    sizes = [(count, height // scale, width // scale, 4) for scale in scales]
    total = sum(n * h * w for n, h, w, _ in sizes)
    cameras = apply_ray_convention(split.cameras, config.ray_convention)

    def shape(*dims: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype)

    return PixelDataset(
        images=shape(*sizes[0], dtype=np.uint8),
        cameras=jax.tree.map(lambda x: shape(*x.shape, dtype=np.float32), cameras),
        pixel_ids=shape(total),
        total=shape(),
        smaller_images=tuple(shape(*size, dtype=np.uint8) for size in sizes[1:]),
        scales=shape(len(scales)),
        starts=shape(len(scales)),
    )


def last_stage(config: TrainConfig, scene: Scene, num_devices: int) -> tuple[StageSpec, TrainState]:
    """The last stage of a training, and the shapes of its state.

    Prunings leave the cells of a shell, as training would find the surface of an object.

    Args:
      config: resolved for the scene.
      scene: its box.
      num_devices: that share the rays.
    """
    stage = transitions.first_stage(config, scene.aabb, num_devices)
    grid = transitions.init_grid(config, stage, scene.aabb)
    for transition in transitions.plan_transitions(config):
        params = jax.eval_shape(partial(init_state, config, stage), grid).params
        if transition.prune and not config.model.contract:
            grid = dataclasses.replace(grid, occupied=grid.occupied & in_shell(grid, scene.aabb))
        # What is pruned is decided above, as there is nothing trained to decide by.
        transition = transition._replace(prune=False)
        changed = stage.field.apply_transition(transition, params.field, grid)
        grid, aabb = changed.grid, np.asarray(changed.grid.aabb)
        stage = dataclasses.replace(
            stage,
            field=changed.field,
            supersample=transition.supersample,
            grid_resolution=changed.field.grid_resolution(aabb) or stage.grid_resolution,
        )
        stage = transitions.set_budgets(config, stage, aabb, grid.bounds)
    return stage, jax.eval_shape(partial(init_state, config, stage), grid)


def in_shell(grid: OccupancyGrid, aabb: np.ndarray) -> Bool[np.ndarray, "x y z"]:
    """The cells of a grid whose centers lie in the shell (`SHELL`) within a box."""
    low, high = np.asarray(grid.aabb)
    shape = grid.occupied.shape
    middle, half = 0.5 * (aabb[0] + aabb[1]), 0.5 * (aabb[1] - aabb[0])
    axes = [
        (low[axis] + (np.arange(n) + 0.5) * (high[axis] - low[axis]) / n - middle[axis])
        / half[axis]
        for axis, n in enumerate(shape)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    radius = np.sqrt(x**2 + y**2 + z**2)
    return (radius > SHELL[0]) & (radius < SHELL[1])

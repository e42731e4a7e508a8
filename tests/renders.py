"""Training batches and views of the ball scene, as models render them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scenes import BOX, make_scene

from jaxrf.cameras.base import image_rays
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.rays import Rays
from jaxrf.fields import tensor_factors
from jaxrf.fields.base import Params
from jaxrf.fields.tensorf import TensoRF
from jaxrf.models.base import Model, ModelParams, RenderSpec, StageSpec, TrainRendering, render_rays
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.sampling.weight_tracking import WeightTrackedGrid
from jaxrf.training import pixels
from jaxrf.training.config import TrainConfig
from jaxrf.training.state import TrainState


def train_rays(count: int = 512) -> Rays:
    """Rays of random pixels of the training images."""
    dataset = pixels.to_device(make_scene().splits["train"])
    return pixels.sample_batch(dataset, jax.random.key(1), count, (2.0, 6.0), "white").rays


def axis_rays() -> Rays:
    """24 rays along the axes, through the middle, along a face and an edge, and past the box."""
    rows = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            for offset in ((0.0, 0.0), (1.5, 0.2), (1.5, -1.5), (1.7, 0.0)):
                other_axes = [a for a in range(3) if a != axis]
                origin, direction = np.zeros(3), np.zeros(3)
                origin[axis], direction[axis] = -4.0 * sign, sign
                origin[other_axes] = offset
                rows.append((origin, direction))
    origins, directions = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*rows, strict=True))
    return dataclasses.replace(train_rays(len(rows)), origins=origins, directions=directions)


def outgoing_rays(count: int = 40) -> Rays:
    """Rays from within the box to all sides."""
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = rng.uniform(-1.0, 1.0, (count, 3))
    return dataclasses.replace(
        train_rays(count),
        origins=jnp.asarray(origins, jnp.float32),
        directions=jnp.asarray(directions, jnp.float32),
        near=jnp.full((count,), 0.1),
    )


# Compiled: operation by operation they take much longer.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _render_train(
    model: Model, convention: RayConvention, stage: StageSpec, *arguments: Any
) -> TrainRendering:
    return model.render_train(stage, *arguments, convention)


_render_rays = jax.jit(render_rays, static_argnums=0)


def render_batch(
    config: TrainConfig,
    stage: StageSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    key: jax.Array,
    rays: Rays,
    background: jax.Array,
) -> TrainRendering:
    """A training batch, rendered."""
    arguments = (params, grid, key, rays, background)
    return _render_train(config.model, config.ray_convention, stage, *arguments)


def render_image(
    config: TrainConfig,
    stage: StageSpec,
    num_samples: int,
    params: ModelParams,
    grid: OccupancyGrid,
    rays: Rays,
    background: jax.Array,
    aabb: jax.Array | None = None,
    crop_aabb: jax.Array | None = None,
) -> Rendering:
    """Rays rendered as those of images are."""
    spec = RenderSpec(config.model, stage, config.ray_convention, num_samples)
    return _render_rays(spec, params, grid, rays, background, aabb, crop_aabb)


def ample(stage: StageSpec) -> StageSpec:
    """The stage with budgets that suffice for some thousand rays."""
    colors = stage.color_budget and 1 << 16
    return dataclasses.replace(
        stage, block_budget=1 << 16, sample_budget=1 << 16, color_budget=colors
    )


def render_training_views(config: TrainConfig, stage: StageSpec, state: TrainState) -> TrainState:
    """The state whose grid has recorded the weights of all training rays a few times."""
    rays, grid = train_rays(2048), state.grid
    for number in range(3):
        arguments = (grid, jax.random.key(number), rays, jnp.ones((2048, 3)))
        rendering = render_batch(config, ample(stage), state.params, *arguments)
        assert not np.any(rendering.overflowed)
        grid = rendering.grid
    assert isinstance(grid, WeightTrackedGrid)
    return dataclasses.replace(state, grid=grid)


def render_view(
    config: TrainConfig, stage: StageSpec, params: ModelParams, grid: OccupancyGrid
) -> np.ndarray:
    """Colors of the first test view's pixels."""
    rays = image_rays(make_scene().splits["test"].cameras, 0, 2.0, 6.0)
    rays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rays)
    background = jnp.array([0.0, 0.9, 0.9])
    rendering = render_image(config, stage, 1 << 13, params, grid, rays, background, grid.aabb)
    return np.asarray(rendering.rgb)


def ball_params(stage: StageSpec, params: ModelParams, aabb: np.ndarray = BOX) -> ModelParams:
    """Factors whose raw density is a bump in the middle: x^2 + y^2 + z^2 is a sum of products."""
    assert isinstance(stage.field, TensoRF)
    resolution = stage.field.resolution

    def bump(size: int, axis: int) -> jax.Array:
        return jnp.exp(-2.0 * jnp.linspace(*aabb[:, axis], size) ** 2)

    density = jax.tree.map(jnp.zeros_like, params.field["density"])
    planes = list(density["planes"])
    lines = list(density["lines"])
    for index, ((across, down), axis) in enumerate(
        zip(tensor_factors.PLANE_AXES, tensor_factors.LINE_AXES, strict=True)
    ):
        plane = bump(resolution[down], down)[:, None] * bump(resolution[across], across)[None]
        planes[index] = planes[index].at[..., 0].set(10.0 * plane)
        lines[index] = lines[index].at[..., 0].set(bump(resolution[axis], axis))
    bumps = {"planes": tuple(planes), "lines": tuple(lines)}
    return params._replace(field={**params.field, "density": bumps})


def random_params(params: Params, seed: int = 0) -> Any:
    """Parameters out of numpy, such that density and color vary."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.6, x.shape), x.dtype), params)


def make_opaque(config: TrainConfig) -> TrainConfig:
    """The configuration of a field so dense that its first sample hides all others."""
    field: Any = config.field
    return dataclasses.replace(config, field=dataclasses.replace(field, density_scale=1e9))

"""Poses of views that were not trained on, fitted to their images before these are scored.

Training that refines cameras is free to move cameras and field together, so that given poses of
other views no longer fit. As in NeRF-- and BARF, each view's pose is fitted to its image with the
field as it is: Wang et al.: NeRF-- (2021), section 4.2; Lin et al.: BARF (ICCV 2021), section 4.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxrf.cameras.base import Cameras, apply_ray_convention, pixels_to_rays
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.cameras.refinement import CameraAdjustment, adjust_cameras, make_preconditioner
from jaxrf.cameras.transforms import SimilarityTransform, transform_poses
from jaxrf.data.scene import Split, composite
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.models.base import Model, ModelParams, StageSpec
from jaxrf.sampling.occupancy import OccupancyGrid

# Adam's steps for a view, pixels of each, and the first and last learning rate, in pixels by which
# the image moves.
NUM_STEPS, NUM_PIXELS = 80, 1024
FIRST_LR, LAST_LR = 0.3, 0.01


class FitSpec(NamedTuple):
    """Static facts about fitting poses: they decide which program is compiled.

    model, convention: of the training.
    stage: of a step with `NUM_PIXELS` rays.
    """

    model: Model
    convention: RayConvention
    stage: StageSpec


class View(NamedTuple):
    """An image, and what its pose is fitted with.

    camera: a single one, of any width and height: they are static, and the program must not depend
      on them.
    near_far: distances along rays.
    preconditioner: of the pose.
    image: over the background.
    pixel_ids: flat indices of the pixels to fit.
    background: color of rays that hit nothing.
    """

    camera: Cameras
    near_far: Float[Array, "2"]
    preconditioner: Float[Array, "6 6"]
    image: Float[Array, "h w 3"]
    pixel_ids: Int[Array, "p"]
    background: Float[Array, "3"]


def move_cameras(transform: SimilarityTransform, cameras: Cameras) -> Cameras:
    """Cameras moved by a similarity."""
    poses = transform_poses(transform, np.asarray(cameras.T_world_camera))
    return dataclasses.replace(cameras, T_world_camera=poses.astype(np.float32))


def fit_poses(trained: TrainedField, split: Split, seed: int = 0) -> Cameras:
    """The cameras of a split with their poses fitted to its images, one after the other.

    Args:
      trained: the field, whose arrays are on a device of this process.
      split: its cameras are near the right ones, a few pixels off at most.
      seed: of the pixels and samples of the steps.
    """
    config, params, grid = trained.config, trained.params, trained.grid
    if params.appearance is not None:
        # Views that were not trained on look like the mean of those that were.
        mean = jnp.mean(params.appearance.codes, axis=0, keepdims=True)
        params = params._replace(appearance=params.appearance._replace(codes=mean))
    count = min(NUM_PIXELS, trained.stage.num_rays)
    stage = dataclasses.replace(
        trained.stage, num_rays=count, supersample=1, num_shards=1, num_microbatches=1
    )
    spec = FitSpec(config.model, config.ray_convention, stage)
    cameras = apply_ray_convention(split.cameras, config.ray_convention)
    endless = grid.bounds is not None or cameras.ndc is not None
    box = np.asarray(grid.aabb if grid.bounds is None else grid.bounds)
    fitted = []
    for index in range(len(split)):
        camera = cameras[index]
        near_far = trained.scene_range
        if callable(near_far):
            near_far = near_far(cameras, index)
        preconditioner = make_preconditioner(
            camera, "poses", near_far, box.mean(axis=0) if endless else None
        )
        image = composite(split.images[index], trained.background)
        height, width = image.shape[:2]
        mask = np.ones((height, width), bool) if split.masks is None else split.masks[index]
        allowed = np.flatnonzero(mask)
        # One shape for all views, whatever their masks are.
        pixel_ids = np.resize(allowed, height * width) if allowed.size else np.arange(mask.size)
        view = View(
            camera=jax.tree.map(jnp.asarray, dataclasses.replace(camera, width=1, height=1)),
            near_far=jnp.asarray(near_far, jnp.float32),
            preconditioner=jnp.asarray(preconditioner[0]),
            image=jnp.asarray(image),
            pixel_ids=jnp.asarray(pixel_ids, jnp.int32),
            background=jnp.asarray(trained.background, jnp.float32),
        )
        key = jax.random.fold_in(jax.random.key(seed), index)
        fitted.append(np.asarray(_fit_pose(spec, params, grid, view, key)))
    adjustment = CameraAdjustment(np.stack(fitted))
    return adjust_cameras(split.cameras, adjustment, np)


@partial(jax.jit, static_argnums=0)
def _fit_pose(
    spec: FitSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    view: View,
    key: jax.Array,
) -> Float[Array, "6"]:
    """The change of a camera's pose after `NUM_STEPS` steps."""
    rates = optax.exponential_decay(FIRST_LR, NUM_STEPS - 1, LAST_LR / FIRST_LR)
    optimizer = optax.adam(rates)
    start = jnp.zeros(6)

    def loss(coordinates: Array, key: jax.Array) -> Array:
        pose = jnp.sum(view.preconditioner * coordinates[None], axis=1)
        return _view_error(spec, params, grid, view, pose, key)

    def improve(number: Array, carry: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        coordinates, state = carry
        gradient = jax.grad(loss)(coordinates, jax.random.fold_in(key, number))
        # A ray that is nowhere finite must not spoil the pose.
        gradient = jnp.where(jnp.all(jnp.isfinite(gradient)), gradient, 0.0)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(coordinates, updates), state

    coordinates, _ = jax.lax.fori_loop(0, NUM_STEPS, improve, (start, optimizer.init(start)))
    return jnp.sum(view.preconditioner * coordinates[None], axis=1)


def _view_error(
    spec: FitSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    view: View,
    pose: Float[Array, "6"],
    key: jax.Array,
) -> Float[Array, ""]:
    """Mean squared error of random pixels of an image."""
    key_pixel, key_samples = jax.random.split(key)
    count, width = spec.stage.num_rays, view.image.shape[1]
    flat = view.pixel_ids[jax.random.randint(key_pixel, (count,), 0, view.pixel_ids.shape[0])]
    center = jnp.stack([flat % width, flat // width], axis=-1).astype(jnp.float32) + 0.5
    adjusted = adjust_cameras(view.camera, CameraAdjustment(pose[None]))
    rays = pixels_to_rays(adjusted, jnp.zeros_like(flat), center, *view.near_far)
    background_rgb = jnp.broadcast_to(view.background, (count, 3))
    rendering = spec.model.render_train(
        spec.stage, params, grid, key_samples, rays, background_rgb, spec.convention
    )
    error = jnp.mean(jnp.square(rendering.rgb[-1] - view.image.reshape(-1, 3)[flat]), axis=-1)
    return jnp.mean(jnp.where(rendering.overflowed, 0.0, error))

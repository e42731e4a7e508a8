"""Renderings of a run from its training cameras, and the surface that these cameras see."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.cameras import base as cams
from jaxrf.cameras.base import Cameras
from jaxrf.cameras.ndc import ndc_to_distance
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.evaluation.scoring import evenly_spaced_indices
from jaxrf.export.progress import ProgressFn, no_progress
from jaxrf.models.base import ModelParams, RenderSpec, render_rays
from jaxrf.rendering.image import HostRendering, render_image
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata

# Maximum width of the rendered views, in pixels.
MAX_VIEW_WIDTH = 400
# A camera sees a surface if the cosine between the normal and the direction to it exceeds this.
MIN_VIEW_COSINE = 0.1


class TrainingView(NamedTuple):
    """A training camera and its rendering.

    cameras: this camera only, without lens distortion.
    rendering: of the run, in front of black.
    """

    cameras: Cameras
    rendering: HostRendering


def render_training_views(
    run: Run, num_views: int, max_width: int = MAX_VIEW_WIDTH, progress: ProgressFn = no_progress
) -> list[TrainingView]:
    """Renders a run from its training cameras, without lens distortion.

    Args:
      run: with the poses of its training cameras.
      num_views: maximum number of cameras, evenly spaced among all.
      max_width: of a rendering, in pixels.
      progress: reports the cameras.

    Raises:
      InputError: the run does not hold the poses of its training cameras.
    """
    scene = run.scene
    poses = scene.pose_matrices()
    if not len(poses):
        raise InputError(
            f"{run.folder} does not hold the poses of its training images, which show where its "
            "surface is visible: convert it again with --data, or export a mesh with --keep-hidden."
        )
    poses = poses[evenly_spaced_indices(len(poses), num_views)]
    cameras = cams.pinhole_cameras(poses, scene.width, scene.height, scene.focal)
    width = min(max_width, scene.width)
    cameras = cams.resize_cameras(cameras, width, max(width * scene.height // scene.width, 1))
    cameras = cams.apply_ray_convention(cameras, run.config.ray_convention)
    render = make_render_rays(run)
    views = []
    for index in progress(range(len(poses)), "views"):
        camera = dataclasses.replace(cameras[np.array([index])], ndc=scene.ndc)
        rays = cams.image_rays(camera, 0, scene.near, scene.far)
        views.append(TrainingView(camera, render(rays)))
    return views


def distances_in_space(
    scene: SceneMetadata, cameras: Cameras, index: int, distances: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Distances along the rays of a camera in space, of those that were rendered.

    Args:
      scene: of the run that was rendered.
      cameras: with the normalized device coordinates of the scene, if it has any.
      index: of the camera.
      distances: of a rendering; in normalized device coordinates if the scene has them.
    """
    if scene.ndc is None:
        return distances
    in_space = dataclasses.replace(cameras, ndc=None)
    rays, ndc_rays = (
        cams.image_rays(both, index, scene.near, scene.far) for both in (in_space, cameras)
    )
    return np.asarray(ndc_to_distance(rays, ndc_rays, jnp.asarray(distances), scene.ndc[2]))


def make_render_rays(run: Run) -> Callable[[Rays], HostRendering]:
    """A function of rays of any batch shape that renders them in front of black."""
    config, grid = run.config, run.state.grid
    model, convention, num_samples = config.model, config.ray_convention, config.render_samples
    stage, aabb = model.eval_stage(run.stage, grid, convention, crop=True)
    spec = RenderSpec(model, stage, convention, num_samples)

    def render_chunks(rays: Rays) -> Rendering:
        return _render_chunks(spec, run.state.eval_params, grid, rays, jnp.asarray(aabb))

    return lambda rays: render_image(render_chunks, rays, model.rays_per_chunk(num_samples))


@functools.partial(jax.jit, static_argnums=0)
def _render_chunks(
    spec: RenderSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    rays: Rays,
    aabb: Float[Array, "2 3"],
) -> Rendering:
    def render(chunk: Rays) -> Rendering:
        return render_rays(spec, params, grid, chunk, jnp.zeros(3), aabb)

    return jax.lax.map(render, rays)


def unpremultiply(rendering: HostRendering) -> Float[np.ndarray, "*batch 3"]:
    """Colors divided by opacity, of a rendering in front of black; in [0, 1]."""
    return np.clip(rendering.rgb / np.maximum(rendering.opacity, 1e-3)[..., None], 0.0, 1.0)


def normalize_vectors(vectors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Vectors scaled to unit length; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def visibility_and_view_dirs(
    positions: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    views: Iterable[TrainingView],
    tolerance: float,
) -> Float[np.ndarray, "n 3"]:
    """Mean unit direction in which cameras see each surface position; zero where none sees it.

    A camera sees a position that is in front of it, faces it, and is at most `tolerance` farther
    away than the median depth of its pixel. The weight of a camera is the fourth power of the
    cosine between the normal and the direction to the camera.

    Args:
      positions: (n, 3) on the surface, in scene units.
      normals: (n, 3) of unit length, outwards.
      views: training cameras and their renderings.
      tolerance: in scene units.
    """
    total = np.zeros_like(positions)
    for cameras, rendering in views:
        pixel, depth = cams.project(cameras, 0, positions)
        column, row = np.moveaxis(np.floor(pixel), -1, 0)
        in_image = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
        index = np.flatnonzero(in_image & (depth > 0))
        center = np.asarray(cameras.T_world_camera[0, :3, 3], np.float64)
        to_camera = center - positions[index]
        distance = np.linalg.norm(to_camera, axis=-1)
        cosine = np.sum(to_camera * normals[index], axis=-1) / distance
        pixel_index = row[index].astype(int), column[index].astype(int)
        hit = rendering.opacity[pixel_index] > 0.5
        surface = np.where(hit, rendering.median_depth[pixel_index], np.inf)
        visible = (cosine > MIN_VIEW_COSINE) & (distance <= surface + tolerance)
        weight = np.where(visible, cosine**4 / distance, 0.0)
        total[index] -= weight[:, None] * to_camera
    return normalize_vectors(total)

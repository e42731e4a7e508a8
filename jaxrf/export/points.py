"""A point cloud of a run: the points where the rays of its training cameras hit a surface."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.cameras import base as cams
from jaxrf.cameras.transforms import SimilarityTransform, transform_positions
from jaxrf.core.errors import InputError
from jaxrf.export.progress import ProgressFn, no_progress
from jaxrf.export.training_views import (
    TrainingView,
    distances_in_space,
    normalize_vectors,
    render_training_views,
    unpremultiply,
)
from jaxrf.training.runs import Run

# Points farther from the center of the scene's box than this many of its half sides are dropped.
MAX_DISTANCE_HALF_SIDES = 10.0
# In normalized device coordinates: points farther away than this many near planes are dropped.
MAX_DISTANCE_NEAR_PLANES = 100.0


class Points(NamedTuple):
    """A point cloud.

    positions: (n, 3).
    normals: (n, 3) of unit length, towards the cameras; zero where they are unknown.
    colors: (n, 3) in [0, 1], encoded like images (sRGB).
    """

    positions: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    colors: Float[np.ndarray, "n 3"]


def extract_points(
    run: Run, max_points: int, num_views: int, seed: int = 0, progress: ProgressFn = no_progress
) -> Points:
    """Points where rays of the training cameras reach half of their opacity, in scene units.

    Rays with an opacity below one half give no point. The points of a run in normalized device
    coordinates are in Euclidean space.

    Args:
      run: of any field.
      max_points: size of the random subset that is returned.
      num_views: number of training cameras, evenly spaced among all.
      seed: of the random subset.
      progress: reports the views.

    Raises:
      InputError: the run does not hold the poses of its cameras, or no ray hits a surface.
    """
    views = render_training_views(run, num_views, progress=progress)
    clouds = [surface_points(run, view) for view in views]
    cloud = Points(*(np.concatenate(parts) for parts in zip(*clouds, strict=True)))
    if not len(cloud.positions):
        raise InputError(
            "No ray of the training cameras hits a surface: the field is empty, train it longer."
        )
    subset = np.random.default_rng(seed).permutation(len(cloud.positions))[:max_points]
    return Points(*(values[subset] for values in cloud))


def surface_points(run: Run, view: TrainingView) -> Points:
    """The points at the median depth of the rays of one view, in Euclidean space."""
    scene, (cameras, rendering) = run.scene, view
    euclidean = dataclasses.replace(cameras, ndc=None)
    rays = cams.image_rays(euclidean, 0, scene.near, scene.far)
    distance = distances_in_space(scene, cameras, 0, rendering.median_depth)
    origins, directions = (np.asarray(x, np.float64) for x in (rays.origins, rays.directions))
    positions = origins + distance[..., None] * directions
    hit = rendering.opacity > 0.5
    if scene.ndc is not None:
        hit &= distance < MAX_DISTANCE_NEAR_PLANES * scene.ndc[2]
    elif (bounds := run.state.grid.bounds) is not None:
        low, high = np.asarray(bounds, np.float64)
        half_sides = np.abs(positions - 0.5 * (low + high)) / (0.5 * (high - low))
        hit &= half_sides.max(axis=-1) < MAX_DISTANCE_HALF_SIDES
    normals = estimate_pixel_normals(positions, directions)
    return Points(positions[hit], normals[hit], unpremultiply(rendering)[hit])


def estimate_pixel_normals(
    positions: Float[np.ndarray, "h w 3"], directions: Float[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "h w 3"]:
    """Unit normals of a surface given as an image of positions, against the rays' directions.

    A normal is perpendicular to the differences to the nearer of the two neighbors along each
    image axis, so that a neighbor across a depth edge does not count.
    """
    tangents = []
    for axis in (0, 1):
        step = np.diff(positions, axis=axis)
        if not step.size:
            return np.zeros_like(positions)
        # There is no neighbor beyond the border of the image.
        border = np.full_like(np.take(step, [0], axis=axis), np.inf)
        before, after = (np.concatenate(p, axis=axis) for p in ((border, step), (step, border)))
        closer = np.linalg.norm(before, axis=-1) < np.linalg.norm(after, axis=-1)
        tangents.append(np.where(closer[..., None], before, after))
    normals = normalize_vectors(np.cross(tangents[1], tangents[0]))
    return np.where(np.sum(normals * directions, -1, keepdims=True) > 0, -normals, normals)


def transform_points(frame: SimilarityTransform, points: Points) -> Points:
    """Points moved by a similarity transform."""
    return points._replace(
        positions=transform_positions(frame, points.positions),
        normals=points.normals @ frame.rotation.T,
    )

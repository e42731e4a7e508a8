"""Visibility of surfaces from training cameras."""

import dataclasses

import numpy as np
from scenes import make_scene

from jaxrf.cameras.base import image_rays, make_cameras
from jaxrf.export.training_views import (
    TrainingView,
    distances_in_space,
    visibility_and_view_dirs,
)
from jaxrf.rendering.image import HostRendering
from jaxrf.training.scene_metadata import SceneMetadata


def test_visibility_needs_a_facing_surface_that_is_not_occluded() -> None:
    pose = np.eye(4)[None]
    pose[0, 2, 3] = 4.0
    cameras = make_cameras(pose, 20, 20, 0.7)
    full = np.ones((20, 20), np.float32)
    opaque = HostRendering(np.zeros((20, 20, 3), np.float32), full, 3.0 * full, 3.0 * full)
    # On the surface, facing away, occluded, behind the camera, outside of the image.
    positions = np.array([[0, 0, 1.0], [0, 0, 1.0], [0, 0, 0.5], [0, 0, 5.0], [9.0, 0, 1.0]])
    normals = np.array([[0, 0, 1.0], [0, 0, -1.0], [0, 0, 1.0], [0, 0, -1.0], [0, 0, 1.0]])
    views = [TrainingView(cameras, opaque)]
    view_dirs = visibility_and_view_dirs(positions, normals, views, tolerance=0.1)
    np.testing.assert_allclose(view_dirs[0], [0, 0, -1.0], atol=1e-6)
    np.testing.assert_array_equal(view_dirs[1:], 0.0)
    views = [TrainingView(cameras, opaque._replace(opacity=0.0 * full))]
    view_dirs = visibility_and_view_dirs(positions, normals, views, tolerance=0.1)
    visible = np.any(view_dirs != 0, axis=-1)
    np.testing.assert_array_equal(visible, [True, False, True, False, False])


def test_distances_are_those_in_space_of_positions_in_ndc() -> None:
    """By the equations of NeRF, appendix C: x' = -x / (s_x z), z' = 1 + 2 n / z."""
    slopes, plane = np.array([0.4, 0.3]), 1.5
    scene = dataclasses.replace(
        SceneMetadata.from_scene(make_scene(), None), ndc=(0.4, 0.3, plane), near=0.0, far=1.0
    )
    pose = np.eye(4)[None]
    pose[0, :3, 3] = [0.1, -0.2, 0.3]
    cameras = dataclasses.replace(make_cameras(pose, 8, 6, 0.7), ndc=scene.ndc)
    distances = np.random.default_rng(0).uniform(0.05, 0.9, (6, 8)).astype(np.float32)
    found = distances_in_space(scene, cameras, 0, distances)
    ndc_rays = image_rays(cameras, 0, 0.0, 1.0)
    rays = image_rays(dataclasses.replace(cameras, ndc=None), 0, 0.0, 1.0)
    in_space = np.asarray(rays.origins) + found[..., None] * np.asarray(rays.directions)
    x, y, z = np.moveaxis(in_space.astype(np.float64), -1, 0)
    expected = np.stack([-x / (slopes[0] * z), -y / (slopes[1] * z), 1.0 + 2.0 * plane / z], -1)
    directions = np.asarray(ndc_rays.directions)
    positions = np.asarray(ndc_rays.origins) + distances[..., None] * directions
    np.testing.assert_allclose(positions, expected, atol=1e-4)
    without = dataclasses.replace(scene, ndc=None)
    assert distances_in_space(without, cameras, 0, distances) is distances

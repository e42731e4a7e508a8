"""Conversions between the browser's cameras and jaxrf's."""

import numpy as np
import pytest
from scenes import make_scene

from jaxrf.cameras.base import image_rays, project
from jaxrf.cameras.poses import look_at
from jaxrf.viewer.poses import (
    View,
    fit_camera,
    from_browser,
    list_views,
    ray_distance_to_z_depth,
    to_browser,
)


def test_from_browser_looks_along_z_with_y_down() -> None:
    pose = from_browser(np.array([1.0, 0.0, 0.0, 0.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(pose[:3, 3], [1, 2, 3])
    np.testing.assert_allclose(-pose[:3, 2], [0, 0, 1])  # forward
    np.testing.assert_allclose(pose[:3, 1], [0, -1, 0])  # up


def test_to_browser_inverts_from_browser() -> None:
    for seed in range(20):
        position, target = np.random.default_rng(seed).normal(size=(2, 3))
        pose = look_at(position, target)
        wxyz, browser_position = to_browser(pose)
        assert np.linalg.norm(wxyz) == pytest.approx(1.0)
        np.testing.assert_allclose(from_browser(wxyz, browser_position), pose, atol=1e-12)


@pytest.mark.parametrize("aspect", [0.4, 1.0, 1.7])
def test_fit_camera_has_the_aspect_and_field_of_view_of_the_window(aspect: float) -> None:
    camera = fit_camera(View(np.eye(4), 0.8, aspect), 400)
    assert max(camera.width, camera.height) == 400
    assert camera.width / camera.height == pytest.approx(aspect, rel=0.01)
    up = np.array([0.0, np.tan(0.4), -1.0])
    row = project(camera, 0, up)[0][1]
    assert row == pytest.approx(0.0, abs=1e-3)


def test_ray_distance_to_z_depth_gives_the_depth_of_points_on_the_rays() -> None:
    camera = fit_camera(View(np.eye(4), 1.1, 1.5), 60)
    rays = image_rays(camera, 0, 0.0, 1.0)
    distances = np.random.default_rng(0).uniform(1.0, 4.0, rays.near.shape)
    points = np.asarray(rays.directions) * distances[..., None]
    np.testing.assert_allclose(
        ray_distance_to_z_depth(distances, camera), -points[..., 2], rtol=1e-5
    )


def test_list_views_has_the_fields_of_view_of_the_cameras() -> None:
    cameras = make_scene().splits["train"].cameras
    views = list_views(cameras, [0, 2])
    np.testing.assert_allclose(views[1].pose, cameras.T_world_camera[2])
    again = fit_camera(views[1], cameras.width)
    np.testing.assert_allclose(again.focal[0], cameras.focal[2], rtol=1e-5)

"""Conversions between the browser's cameras and jaxrf's."""

from typing import Any

import numpy as np
import pytest
from scenes import make_scene
from simulated_browser import SimulatedClient

from jaxrf.cameras.base import image_rays, project
from jaxrf.cameras.poses import look_at
from jaxrf.core.errors import InputError
from jaxrf.viewer.poses import (
    View,
    fit_camera,
    from_browser,
    list_views,
    ray_distance_to_z_depth,
    read_view,
    to_browser,
)


def test_from_browser_looks_along_z_with_y_down() -> None:
    pose = from_browser(np.array([1.0, 0.0, 0.0, 0.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(pose[:3, 3], [1, 2, 3])
    np.testing.assert_allclose(-pose[:3, 2], [0, 0, 1])  # forward
    np.testing.assert_allclose(pose[:3, 1], [0, -1, 0])  # up


@pytest.mark.parametrize(
    "changes",
    [
        {"fov": np.nan},
        {"aspect": np.inf},
        {"wxyz": np.zeros(4)},
        {"position": np.array([0.0, np.nan, 0.0])},
        {"position": np.array([0.0, 1e300, 0.0])},
    ],
)
def test_read_view_refuses_what_is_no_camera(changes: dict[str, Any]) -> None:
    client = SimulatedClient(View(np.eye(4), 0.8, 1.5))
    for name, value in changes.items():
        setattr(client.camera, name, value)
    with pytest.raises(InputError, match="reload the page"):
        read_view(client.camera)


def test_images_of_any_view_are_of_the_size_that_is_asked_for() -> None:
    for fov, aspect in ((1e9, 1e9), (0.0, 0.0), (-3.0, -1.0), (np.pi, 1e-12)):
        client = SimulatedClient(View(np.eye(4), fov, aspect))
        camera = fit_camera(read_view(client.camera), 256)
        assert max(camera.width, camera.height) == 256 and min(camera.width, camera.height) >= 8
        assert np.all(np.isfinite(camera.focal)) and np.all(camera.focal > 0.0)


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

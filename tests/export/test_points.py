"""Point clouds of runs: positions, normals and colors against exact shapes."""

import dataclasses

import numpy as np
import pytest
from ball_run import CENTER, RADIUS

from jaxrf.cameras.base import image_rays, make_cameras
from jaxrf.cameras.transforms import (
    SimilarityTransform,
    invert_transform,
    rotate_onto,
    transform_positions,
)
from jaxrf.core.errors import InputError
from jaxrf.export.points import (
    Points,
    estimate_pixel_normals,
    extract_points,
    surface_points,
    transform_points,
)
from jaxrf.export.training_views import TrainingView
from jaxrf.rendering.image import HostRendering
from jaxrf.training import runs


def test_extract_points_lie_on_the_surface(ball: runs.Run) -> None:
    points = extract_points(ball, 500, 12)
    assert len(points.positions) == 500
    offset = points.positions - CENTER
    radius = np.linalg.norm(offset, axis=-1)
    assert np.abs(radius - RADIUS).max() < 0.05
    outwards = offset / radius[:, None]
    assert np.median(np.sum(points.normals * outwards, axis=-1)) > 0.98
    assert np.abs(points.colors - (0.5 + 0.5 * outwards)).mean() < 0.02
    again = extract_points(ball, 500, 12)
    np.testing.assert_array_equal(points.positions, again.positions)


def test_extract_points_refuses_a_run_without_poses(ball: runs.Run) -> None:
    run = dataclasses.replace(ball, scene=dataclasses.replace(ball.scene, poses=()))
    with pytest.raises(InputError, match="does not hold the poses"):
        extract_points(run, 10, 2)


def test_surface_points_of_ndc_are_in_euclidean_space(ball: runs.Run) -> None:
    run = dataclasses.replace(ball, scene=dataclasses.replace(ball.scene, ndc=(0.4, 0.4, 1.0)))
    cameras = dataclasses.replace(make_cameras(np.eye(4)[None], 5, 5, 0.7), ndc=run.scene.ndc)
    ndc_rays = image_rays(cameras, 0, 0.0, 1.0)
    halfway = 0.5 * np.asarray(ndc_rays.far)
    ones = np.ones((5, 5), np.float32)
    rendering = HostRendering(np.ones((5, 5, 3), np.float32), ones, halfway, halfway)
    points = surface_points(run, TrainingView(cameras, rendering))
    # Halfway to infinity is at a depth of two near planes (NeRF, appendix C).
    np.testing.assert_allclose(points.positions[:, 2], -2.0, rtol=1e-4)
    euclidean = dataclasses.replace(cameras, ndc=None)
    directions = np.asarray(image_rays(euclidean, 0, 0.0, 1.0).directions).reshape(-1, 3)
    expected = directions / -directions[:, 2:] * 2.0
    np.testing.assert_allclose(points.positions, expected, rtol=1e-3, atol=1e-4)


def test_estimate_pixel_normals_of_a_plane_is_its_normal() -> None:
    cameras = make_cameras(np.eye(4)[None], 12, 9, 0.7)
    directions = np.asarray(image_rays(cameras, 0, 0.0, 1.0).directions, np.float64)
    normal = np.array([0.3, -0.2, 1.0]) / np.linalg.norm([0.3, -0.2, 1.0])
    positions = directions * (-2.0 / (directions @ normal))[..., None]
    # A depth edge down the middle changes no normal.
    positions[:, 6:] *= 1.5
    np.testing.assert_allclose(
        estimate_pixel_normals(positions, directions),
        np.broadcast_to(normal, (9, 12, 3)),
        atol=1e-6,
    )
    assert not estimate_pixel_normals(positions[:1, :1], directions[:1, :1]).any()


def test_transform_points_by_the_inverse_restores_the_cloud() -> None:
    rotation = rotate_onto(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0]))
    frame = SimilarityTransform(0.3, rotation, np.array([1.0, -2.0, 0.5]))
    positions, normals = np.random.default_rng(0).normal(size=(2, 7, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    moved = Points(transform_positions(frame, positions), normals @ rotation.T, normals)
    restored = transform_points(invert_transform(frame), moved)
    np.testing.assert_allclose(restored.positions, positions, atol=1e-12)
    np.testing.assert_allclose(restored.normals, normals, atol=1e-12)

"""Voxels that learn from a run: which views, what images, and how much they look like it."""

import dataclasses

import numpy as np
import pytest
from scenes import ball_poses

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.core.errors import InputError
from jaxrf.export import distill
from jaxrf.export.distill import DistillConfig, distill_voxels, poses_between
from jaxrf.fields.voxels import Voxels
from jaxrf.rendering.image import HostRendering
from jaxrf.training.runs import Run


def test_poses_between_cameras_are_rigid_and_lie_between_neighbors() -> None:
    poses = ball_poses("train", 12)
    found = poses_between(poses, 50, np.random.default_rng(0))
    assert found.shape == (50, 4, 4)
    rotations = found[:, :3, :3]
    products = rotations @ rotations.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.tile(np.eye(3), (50, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    positions = poses[:, :3, 3]
    # On a chord between two cameras: both distances add up to its length.
    lengths = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    for pose in found:
        away = np.linalg.norm(positions - pose[:3, 3], axis=-1)
        excess = away[:, None] + away[None] - lengths
        assert np.min(excess[~np.eye(len(poses), dtype=bool)]) < 1e-9


def test_two_cameras_are_enough() -> None:
    assert poses_between(ball_poses("train", 2), 3, np.random.default_rng(0)).shape == (3, 4, 4)


@pytest.mark.parametrize("background", [0.0, 1.0, 0.3])
def test_images_of_objects_have_their_own_color_and_opacity(background: float) -> None:
    opacity = np.array([[0.0, 0.5, 1.0]], np.float32)
    color = np.array([0.2, 0.4, 0.6], np.float32)
    rgb = opacity[..., None] * color + (1.0 - opacity[..., None]) * background
    rendering = HostRendering(rgb, opacity, opacity, opacity)
    behind = np.full(3, background, np.float32)
    image = distill._to_rgba(rendering, behind, True)
    np.testing.assert_array_equal(image[..., 3], [[0, 128, 255]])
    np.testing.assert_allclose(image[0, 1:, :3], np.rint(255 * color)[None].repeat(2, 0), atol=1)
    opaque = distill._to_rgba(rendering, behind, False)
    np.testing.assert_array_equal(opaque[..., 3], 255)
    np.testing.assert_allclose(opaque[..., :3], np.rint(255 * rgb), atol=1)


def test_known_depths_are_the_median_depths_of_opaque_pixels(
    ball: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    renderings = []
    for _ in range(3):
        opacity, median = rng.uniform(0.8, 1.0, (5, 7)), rng.uniform(2.0, 6.0, (5, 7))
        renderings.append(HostRendering(np.zeros((5, 7, 3)), opacity, median, median))
    cameras = pinhole_cameras(ball_poses("train", 3), 7, 5, 4.0)
    known = distill._list_surface(ball, cameras, renderings, 0)
    assert known is not None
    expected = {
        (image, row, column): rendering.median_depth[row, column]
        for image, rendering in enumerate(renderings)
        for row in range(5)
        for column in range(7)
        if rendering.opacity[row, column] > 0.9 and rendering.median_depth[row, column] < 5.7
    }
    assert ball.scene.far == 6.0 and 0 < len(expected) < 105
    pixels = zip(known.image.tolist(), known.row.tolist(), known.column.tolist(), strict=True)
    assert dict(zip(pixels, known.distance.tolist(), strict=True)) == expected
    monkeypatch.setattr(distill, "MAX_KNOWN_DEPTHS", 10)
    fewer = distill._list_surface(ball, cameras, renderings, 0)
    assert fewer is not None and fewer.distance.shape == (10,)
    nothing = [r._replace(opacity=np.zeros((5, 7))) for r in renderings]
    assert distill._list_surface(ball, cameras, nothing, 0) is None


@pytest.mark.slow
def test_voxels_look_like_the_run_that_they_learn_from(ball: Run) -> None:
    config = DistillConfig(num_views=24, num_steps=120, max_size=24)
    voxels, psnr = distill_voxels(ball, config)
    assert isinstance(voxels.config.field, Voxels) and voxels.scene == ball.scene
    assert psnr > 22.0
    assert voxels.config.background == ball.config.background
    coarse = dataclasses.replace(config, divisions=-1, num_steps=20)
    field = distill_voxels(ball, coarse)[0].stage.field
    assert isinstance(field, Voxels) and field.num_subdivisions == 0


def test_a_run_without_poses_is_named(ball: Run) -> None:
    bare = dataclasses.replace(ball, scene=dataclasses.replace(ball.scene, poses=()))
    with pytest.raises(InputError, match="does not hold the poses of its training images"):
        distill_voxels(bare, DistillConfig())

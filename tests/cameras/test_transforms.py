"""Frames: what their rules say, and that they can be undone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrf.cameras.poses import focus_point, look_at
from jaxrf.cameras.transforms import (
    SimilarityTransform,
    align_up,
    center_and_scale,
    compose_transforms,
    fit_pose_similarity,
    fit_similarity,
    identity_transform,
    invert_transform,
    looks_forward,
    recenter_poses,
    rotate_onto,
    transform_poses,
    transform_positions,
)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def random_frame(seed: int) -> SimilarityTransform:
    rng = np.random.default_rng(seed)
    return SimilarityTransform(
        float(rng.uniform(0.1, 9.0)), random_rotation(rng), rng.normal(size=3) * 5.0
    )


def ring(count: int = 12, radius: float = 3.0, height: float = 1.0) -> np.ndarray:
    """Poses around the z axis that look at the origin."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    places = np.stack([radius * np.cos(angles), radius * np.sin(angles), height + 0 * angles], -1)
    return np.stack([look_at(place, np.zeros(3)) for place in places])


@given(st.integers(0, 10_000))
def test_transform_and_its_inverse_compose_to_identity(seed: int) -> None:
    frame, other = random_frame(seed), random_frame(seed + 1)
    points = np.random.default_rng(seed).normal(size=(5, 3))
    np.testing.assert_allclose(
        transform_positions(invert_transform(frame), transform_positions(frame, points)),
        points,
        atol=1e-9,
    )
    both = transform_positions(other, transform_positions(frame, points))
    np.testing.assert_allclose(
        transform_positions(compose_transforms(frame, other), points), both, atol=1e-9
    )
    poses = transform_poses(frame, ring())
    rotation = poses[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (12, 1, 1)), atol=1e-9
    )
    np.testing.assert_allclose(transform_poses(invert_transform(frame), poses), ring(), atol=1e-8)


def test_transforms_preserve_projections() -> None:
    frame, pose = random_frame(3), ring()[2]
    point = pose[:3, 3] + pose[:3, :3] @ np.array([0.1, 0.2, -2.0])
    moved = transform_poses(frame, pose[None])[0]
    local = moved[:3, :3].T @ (transform_positions(frame, point) - moved[:3, 3])
    np.testing.assert_allclose(local, frame.scale * np.array([0.1, 0.2, -2.0]), atol=1e-9)


@pytest.mark.parametrize("target", [[0, 0, 1.0], [1.0, 0, 0], [0, 0, -1.0], [1.0, 2.0, -0.5]])
def test_rotate_onto_maps_source_to_target(target: list[float]) -> None:
    rotation = rotate_onto(np.array([0.0, 0.0, 2.0]), np.array(target))
    result = rotation @ np.array([0.0, 0.0, 1.0])
    np.testing.assert_allclose(result, np.array(target) / np.linalg.norm(target), atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_center_and_scale_is_upright_around_the_origin() -> None:
    for seed in range(5):
        poses = transform_poses(random_frame(seed), ring())
        moved = transform_poses(center_and_scale(poses), poses)
        np.testing.assert_allclose(focus_point(moved), np.zeros(3), atol=1e-6)
        np.testing.assert_allclose(np.abs(moved[:, :3, 3]).max(), 1.0, atol=1e-9)
        up = moved[:, :3, 1].mean(axis=0)
        np.testing.assert_allclose(up[:2], 0.0, atol=1e-9)
        assert up[2] > 0
        # The ring is level again.
        assert np.ptp(moved[:, 2, 3]) < 1e-6


def test_center_and_scale_uses_mean_position_for_outward_cameras() -> None:
    poses = ring(radius=2.0, height=0.0)
    poses[:, :3, 0] *= -1
    poses[:, :3, 2] *= -1
    shifted = transform_poses(SimilarityTransform(1.0, np.eye(3), np.array([5.0, 1.0, 2.0])), poses)
    moved = transform_poses(center_and_scale(shifted), shifted)
    np.testing.assert_allclose(moved[:, :3, 3].mean(axis=0), 0.0, atol=1e-9)


def test_center_and_scale_of_one_position() -> None:
    for poses in (ring()[:1], np.repeat(ring()[:1], 3, axis=0)):
        moved = transform_poses(center_and_scale(poses), poses)
        assert np.all(np.isfinite(moved))
    upside_down = np.stack([np.eye(4), np.diag([1.0, -1.0, -1.0, 1.0])])
    assert align_up(upside_down).scale == identity_transform().scale


def test_recenter_poses_faces_forward() -> None:
    rng = np.random.default_rng(0)
    target = np.array([0.0, 0.0, -6.0])
    poses = np.stack(
        [look_at(rng.normal(0, 0.5, 3), target, np.array([0, 1.0, 0])) for _ in "12345"]
    )
    assert looks_forward(poses) and not looks_forward(ring())
    moved_away = transform_poses(random_frame(7), poses)
    nearest = 2.5 * random_frame(7).scale
    moved = transform_poses(recenter_poses(moved_away, nearest), moved_away)
    np.testing.assert_allclose(moved[:, :3, 3].mean(axis=0), 0.0, atol=1e-9)
    ahead = -moved[:, :3, 2].mean(axis=0)
    np.testing.assert_allclose(ahead / np.linalg.norm(ahead), [0, 0, -1.0], atol=1e-9)
    assert moved[:, :3, 1].mean(axis=0)[1] > 0.9
    assert recenter_poses(moved_away, nearest).scale * nearest == pytest.approx(4 / 3)


@given(st.integers(0, 2**16), st.floats(0.01, 100.0))
def test_fit_similarity_finds_the_similarity_of_moved_points(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(9, 3))
    rotation = random_rotation(rng)
    moved = scale * points @ rotation.T + rng.normal(size=3)
    found = fit_similarity(points, moved)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-6)
    np.testing.assert_allclose(transform_positions(found, points), moved, rtol=1e-6, atol=1e-6)


def _posed(rng: np.random.Generator, positions: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    for pose, position in zip(poses, positions, strict=True):
        pose[:3, :3], pose[:3, 3] = random_rotation(rng), position
    return poses


@pytest.mark.parametrize("places", ["anywhere", "on a line", "one"])
def test_fit_pose_similarity_recovers_a_similarity_wherever_cameras_are(places: str) -> None:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(6, 3))
    if places == "on a line":
        positions = np.linspace(0.0, 1.0, 6)[:, None] * rng.normal(size=3)
    if places == "one":
        positions = np.tile(positions[:1], (6, 1))
    poses = _posed(rng, positions)
    rotation = random_rotation(rng)
    scale = 1.0 if places == "one" else 1.7
    wanted = SimilarityTransform(scale, rotation, np.array([0.3, -2.0, 1.0]))
    found = fit_pose_similarity(poses, transform_poses(wanted, poses))
    assert found.scale == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-9)
    np.testing.assert_allclose(
        transform_poses(found, poses), transform_poses(wanted, poses), atol=1e-9
    )


def test_fit_pose_similarity_averages_disturbed_poses() -> None:
    """It is nearer to the similarity than one that a single camera would give."""
    rng = np.random.default_rng(1)
    poses = _posed(rng, rng.normal(size=(40, 3)))
    disturbed = poses.copy()
    disturbed[:, :3, 3] += 0.02 * rng.normal(size=(40, 3))
    found = fit_pose_similarity(poses, disturbed)
    assert abs(found.scale - 1.0) < 0.01
    assert np.abs(found.rotation - np.eye(3)).max() < 0.01
    assert np.abs(found.shift).max() < 0.02

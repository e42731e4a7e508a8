"""Bundle adjustment: tracks, triangulation, slopes, and recovery of disturbed poses."""

import dataclasses

import numpy as np
import pytest

from jaxrf.cameras import bundle_adjustment, lenses
from jaxrf.cameras.base import Cameras, project
from jaxrf.cameras.bundle_adjustment import Tracks, adjust_bundle, join_matches, triangulate
from jaxrf.cameras.poses import look_at
from jaxrf.cameras.refinement import CameraAdjustment, adjust_cameras
from jaxrf.cameras.transforms import fit_pose_similarity, transform_poses

LENSES: list[tuple[lenses.Lens, float]] = [("perspective", 0.0), ("perspective", -0.1),
                                           ("fisheye", 0.05)]  # fmt: skip


def make_ring(lens: lenses.Lens = "perspective", k1: float = 0.0, count: int = 8) -> Cameras:
    """Cameras on a ring around the origin that look at it, each with another focal length."""
    angles = np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
    poses = np.stack([look_at(4.0 * np.array([np.cos(a), np.sin(a), 0.3 * np.sin(2.0 * a)]),
                              np.zeros(3)) for a in angles])  # fmt: skip
    distortion = np.zeros((count, len(lenses.COEFFICIENTS[lens])))
    distortion[:, 0] = k1
    return Cameras(
        T_world_camera=poses.astype(np.float64),
        focal=np.linspace(90.0, 110.0, 2 * count).reshape(count, 2),
        principal_point=np.tile([[64.0, 48.0]], (count, 1)),
        width=128,
        height=96,
        lens=lens,
        distortion=distortion if k1 else None,
    )


def observe(cameras: Cameras, positions: np.ndarray, noise: float = 0.0, seed: int = 0) -> Tracks:
    """Each position in four neighboring images."""
    rng = np.random.default_rng(seed)
    count = len(cameras)
    point = np.repeat(np.arange(len(positions)), 4)
    camera = (
        np.repeat(rng.integers(count, size=len(positions)), 4) + np.tile(range(4), len(positions))
    ) % count
    pixels, depth = project(cameras, camera, positions[point])
    assert np.all(depth > 0.0)
    return Tracks(camera, point, pixels + noise * rng.normal(size=pixels.shape))


def disturb(cameras: Cameras, degrees: float, distance: float, seed: int = 1) -> Cameras:
    turn, shift = np.random.default_rng(seed).normal(size=(2, len(cameras), 3))
    turn *= np.radians(degrees) / np.linalg.norm(turn, axis=-1, keepdims=True)
    shift *= distance / np.linalg.norm(shift, axis=-1, keepdims=True)
    return adjust_cameras(cameras, CameraAdjustment(np.concatenate([turn, shift], axis=-1)), np)


def pose_error(poses: np.ndarray, exact: np.ndarray) -> float:
    aligned = transform_poses(fit_pose_similarity(poses, exact), poses)
    return float(np.abs(aligned - exact).max())


def test_matches_that_share_a_place_are_one_track_and_contradictions_none() -> None:
    """0-1 and 1-2 meet in image 1; 3-4 is alone; 0-2 and 2-0 lead to two places of image 0."""
    places = {
        (0, 1): ((1.0, 1.0), (2.0, 2.0)),
        (1, 2): ((2.0, 2.0), (3.0, 3.0)),
        (3, 4): ((5.0, 5.0), (6.0, 6.0)),
        (0, 2): ((7.0, 7.0), (8.0, 8.0)),
        (2, 0): ((8.0, 8.0), (9.0, 9.0)),
    }
    first, second = np.array(list(places)).T
    pixels, other_pixels = np.array(list(places.values())).swapaxes(0, 1)
    tracks = join_matches(first, second, pixels, other_pixels)
    found = set()
    for point in range(tracks.point.max() + 1):
        mine = tracks.point == point
        at = zip(
            tracks.camera[mine].tolist(), map(tuple, tracks.pixels[mine].tolist()), strict=True
        )
        found.add(frozenset(at))
    assert found == {
        frozenset({(0, (1.0, 1.0)), (1, (2.0, 2.0)), (2, (3.0, 3.0))}),
        frozenset({(3, (5.0, 5.0)), (4, (6.0, 6.0))}),
    }


def test_no_match_is_no_track() -> None:
    none, nowhere = np.zeros(0, int), np.zeros((0, 2))
    tracks = join_matches(none, none, nowhere, nowhere)
    positions, kept = triangulate(make_ring(), tracks)
    assert len(tracks.camera) == len(positions) == len(kept.camera) == 0


@pytest.mark.parametrize(("lens", "k1"), LENSES)
def test_triangulation_finds_points_and_leaves_out_those_without_depth(
    lens: lenses.Lens, k1: float
) -> None:
    cameras = make_ring(lens, k1)
    positions = np.random.default_rng(2).uniform(-0.8, 0.8, (20, 3))
    tracks = observe(cameras, positions)
    found, kept = triangulate(cameras, tracks)
    np.testing.assert_allclose(found, positions, atol=1e-5)
    assert len(kept.camera) == len(tracks.camera)
    # The same rays twice meet nowhere in particular.
    twice = Tracks(tracks.camera[[0, 0]], np.zeros(2, int), tracks.pixels[[0, 0]])
    assert len(triangulate(cameras, twice)[0]) == 0


@pytest.mark.parametrize(("lens", "k1"), LENSES)
def test_slopes_against_differences(lens: lenses.Lens, k1: float) -> None:
    cameras = make_ring(lens, k1)
    positions = np.random.default_rng(3).uniform(-0.8, 0.8, (5, 3))
    tracks = observe(cameras, positions)
    by_pose, by_point = bundle_adjustment._slopes(cameras, tracks, positions)
    step = 1e-6
    for k in range(6):
        change = np.zeros((len(cameras), 6))
        change[:, k] = step
        ends = [
            project(adjust_cameras(cameras, CameraAdjustment(sign * change), np), tracks.camera,
                    positions[tracks.point])[0] for sign in (1.0, -1.0)
        ]  # fmt: skip
        np.testing.assert_allclose(by_pose[:, :, k], (ends[0] - ends[1]) / (2 * step), atol=2e-4)
    for k in range(3):
        axis = step * np.eye(3)[k]
        ends = [
            project(cameras, tracks.camera, positions[tracks.point] + sign * axis)[0]
            for sign in (1.0, -1.0)
        ]
        np.testing.assert_allclose(by_point[:, :, k], (ends[0] - ends[1]) / (2 * step), atol=2e-4)


@pytest.mark.parametrize(("lens", "k1"), LENSES)
@pytest.mark.parametrize("degrees", [0.5, 5.0])
def test_disturbed_poses_are_recovered(lens: lenses.Lens, k1: float, degrees: float) -> None:
    """Exactly, but for the similarity that no image shows and the weak pull of the given poses."""
    cameras = make_ring(lens, k1)
    exact = np.asarray(cameras.T_world_camera)
    positions = np.random.default_rng(4).uniform(-0.8, 0.8, (200, 3))
    tracks = observe(cameras, positions)
    given = disturb(cameras, degrees, 0.04)
    bundle = adjust_bundle(given, tracks, 1.0, np.ones(len(cameras), bool))
    assert np.median(bundle.error) < 0.02
    assert pose_error(bundle.poses, exact) < 0.02 * pose_error(given.T_world_camera, exact)


def test_wrong_matches_count_little() -> None:
    """Poses are about as exact as without them, however far they are off."""
    cameras = make_ring()
    exact = np.asarray(cameras.T_world_camera)
    tracks = observe(cameras, np.random.default_rng(5).uniform(-0.8, 0.8, (300, 3)), noise=0.1)
    rng = np.random.default_rng(6)
    wrong = rng.random(len(tracks.camera)) < 0.1
    shift = np.where(wrong[:, None], rng.uniform(-30.0, 30.0, tracks.pixels.shape), 0.0)
    given = disturb(cameras, 1.0, 0.04)
    errors = [
        pose_error(adjust_bundle(given, t, 0.5, np.ones(len(cameras), bool)).poses, exact)
        for t in (tracks, tracks._replace(pixels=tracks.pixels + shift))
    ]
    assert errors[1] < 2.0 * errors[0] < 0.5 * pose_error(given.T_world_camera, exact)


def test_cameras_that_must_not_move_do_not_and_those_without_points_stay() -> None:
    cameras = make_ring()
    tracks = observe(cameras, np.random.default_rng(7).uniform(-0.8, 0.8, (200, 3)))
    given = disturb(cameras, 1.0, 0.04)
    seen = tracks.camera != 2
    tracks = Tracks(tracks.camera[seen], tracks.point[seen], tracks.pixels[seen])
    moves = np.arange(len(cameras)) != 5
    bundle = adjust_bundle(given, tracks, 1.0, moves)
    for index in (2, 5):
        np.testing.assert_array_equal(bundle.poses[index], given.T_world_camera[index])
    assert not np.allclose(bundle.poses[0], given.T_world_camera[0])
    # With cameras held, only points move.
    held = adjust_bundle(given, tracks, 1.0, np.zeros(len(cameras), bool))
    np.testing.assert_array_equal(held.poses, given.T_world_camera)
    assert np.median(held.error) > 5.0 * np.median(bundle.error)


def test_exact_poses_stay() -> None:
    cameras = make_ring()
    tracks = observe(cameras, np.random.default_rng(8).uniform(-0.8, 0.8, (100, 3)))
    bundle = adjust_bundle(cameras, tracks, 1.0, np.ones(len(cameras), bool))
    np.testing.assert_allclose(bundle.poses, cameras.T_world_camera, atol=1e-6)


def test_a_system_is_solved_as_a_dense_one() -> None:
    cameras = dataclasses.replace(make_ring(count=3))
    positions = np.random.default_rng(9).uniform(-0.8, 0.8, (4, 3))
    tracks = Tracks(np.tile(range(3), 4), np.repeat(range(4), 3), np.zeros((12, 2)))
    pixels, _ = project(cameras, tracks.camera, positions[tracks.point])
    rng = np.random.default_rng(10)
    tracks = tracks._replace(pixels=pixels + rng.normal(size=pixels.shape))
    bundle = bundle_adjustment._measure(cameras, cameras.T_world_camera, positions, tracks)
    prior, damping = np.full(6, 0.5), 0.1
    system = bundle_adjustment._linearize(
        cameras, bundle, np.zeros((3, 6)), prior, 1.0, np.ones(3, bool)
    )
    camera_step, point_step = system.solve(damping)
    by_pose, by_point = bundle_adjustment._slopes(cameras, tracks, positions)
    jacobian = np.zeros((12, 2, 18 + 12))
    for o in range(12):
        c, p = tracks.camera[o], tracks.point[o]
        jacobian[o, :, 6 * c : 6 * c + 6] = by_pose[o]
        jacobian[o, :, 18 + 3 * p : 21 + 3 * p] = by_point[o]
    weight = 1.0 / (1.0 + bundle.error**2)
    square = np.einsum("o,oki,okj->ij", weight, jacobian, jacobian)
    square[:18, :18] += np.diag(np.tile(prior, 3))
    residual = pixels - tracks.pixels
    right = -np.einsum("o,oki,ok->i", weight, jacobian, residual)
    step = np.linalg.solve(square + damping * np.diag(np.diag(square)), right)
    np.testing.assert_allclose(camera_step.ravel(), step[:18], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(point_step.ravel(), step[18:], rtol=1e-6, atol=1e-9)

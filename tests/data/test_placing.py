"""Where scenes are placed: captures of every kind, objects of every size, and options."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import (
    SimilarityTransform,
    transform_poses,
    transform_positions,
)
from jaxrf.core.errors import InputError
from jaxrf.data.frames import BoxRegion, CaptureRegion, ObjectRegion
from jaxrf.data.options import LoadOptions
from jaxrf.data.placing import faces_forward, find_outliers, find_placement

SLOPES = (0.5, 0.4)


def ring(count: int = 24, radius: float = 3.0, height: float = 1.5) -> np.ndarray:
    angles = 2 * np.pi * np.arange(count) / count
    return np.stack(
        [
            look_at(np.array([radius * np.cos(a), radius * np.sin(a), height]), np.zeros(3))
            for a in angles
        ]
    )


def nadir(seed: int, tilt: float = 0.1) -> np.ndarray:
    """A drone that looks straight down from 50 above the ground, but for noise (degrees)."""
    rng, poses = np.random.default_rng(seed), []
    for x, y in np.ndindex(6, 6):
        lean = np.tan(np.radians(rng.normal(0, tilt, 2)))
        at = np.array([10.0 * x, 10.0 * y, 50.0])
        poses.append(look_at(at, at + np.array([*lean, -1.0]), np.array([0.0, 1.0, 0.0])))
    return np.stack(poses)


def test_a_wrong_pose_far_away_is_found_and_no_other() -> None:
    poses = ring(30)
    assert not find_outliers(poses).any()
    poses[17, :3, 3] = [300.0, -40.0, 20.0]
    np.testing.assert_array_equal(np.flatnonzero(find_outliers(poses)), [17])
    # A walk along a street has no outlier, and neither has a second place far away.
    street = ring(40)
    street[:, :3, 3] = np.linspace([0, 0, 0], [500.0, 0, 0], 40)
    assert not find_outliers(street).any()
    two = ring(30)
    two[:10, :3, 3] += 500.0
    assert not find_outliers(two).any()


@pytest.mark.parametrize("seed", range(8))
def test_nearly_parallel_cameras_keep_the_ground_in_reach(seed: int) -> None:
    poses = nadir(seed)
    placement = find_placement(CaptureRegion(), poses, SLOPES, LoadOptions())
    moved = transform_poses(placement.transform, poses)
    positions = moved[:, :3, 3]
    assert np.abs(positions).max() == pytest.approx(1.0)
    ground = transform_positions(placement.transform, poses[:, :3, 3] - np.array([0, 0, 50.0]))
    distance = np.linalg.norm(ground - positions, axis=-1)
    assert np.all(distance > placement.near) and np.all(distance < placement.far)


def test_tracks_in_opposite_directions_look_down() -> None:
    poses = nadir(0)
    poses[::2] = poses[::2] @ np.diag([-1.0, -1.0, 1.0, 1.0])
    placement = find_placement(CaptureRegion(), poses, SLOPES, LoadOptions())
    up = placement.transform.rotation @ np.array([0.0, 0.0, 1.0])
    np.testing.assert_allclose(up, [0, 0, 1], atol=0.01)


@given(
    st.floats(0.01, 100.0),
    st.tuples(*[st.floats(-50, 50)] * 3),
    st.integers(0, 2**16),
)
def test_captures_are_placed_alike_wherever_their_files_put_them(
    scale: float, shift: tuple[float, float, float], seed: int
) -> None:
    poses = ring()
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    moved = transform_poses(SimilarityTransform(scale, turn, np.array(shift)), poses)
    first = find_placement(CaptureRegion(), poses, SLOPES, LoadOptions())
    second = find_placement(CaptureRegion(), moved, SLOPES, LoadOptions())
    a = transform_poses(first.transform, poses)[:, :3, 3]
    b = transform_poses(second.transform, moved)[:, :3, 3]
    # The same shape, upright; heading and with it the largest coordinate are free.
    a, b = (p / np.linalg.norm(p, axis=-1).mean() for p in (a, b))
    np.testing.assert_allclose(a[:, 2], b[:, 2], atol=1e-4)
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-4)


def arc(degrees: float, count: int = 24) -> np.ndarray:
    angles = np.radians(np.linspace(-0.5 * degrees, 0.5 * degrees, count))
    return np.stack(
        [
            look_at(np.array([3 * np.sin(a), -3 * np.cos(a), 1.2]), np.array([0, 0, 0.2]))
            for a in angles
        ]
    )


@pytest.mark.parametrize(
    ("degrees", "slope", "forward"),
    [(20.0, 0.6, True), (110.0, 0.77, False), (60.0, 1.2, False), (110.0, 0.1, False)],
)
def test_ndc_need_lens_and_spread_to_stay_within_a_half_space(
    degrees: float, slope: float, forward: bool
) -> None:
    assert faces_forward(arc(degrees), (slope, 0.75 * slope)) == forward
    place = CaptureRegion(1.5, 30.0, 1.7)
    placement = find_placement(place, arc(degrees), (slope, 0.75 * slope), LoadOptions())
    assert (placement.near_plane is not None) == forward
    assert placement.unbounded != forward
    assert np.abs(placement.aabb).max() < 10.0
    never = find_placement(place, arc(degrees), (slope, slope), LoadOptions(ndc=False))
    assert never.near_plane is None


@pytest.mark.parametrize("factor", [1e-3, 0.2, 5.0, 1e4])
def test_objects_of_any_size_are_scaled_to_that_of_nerf(factor: float) -> None:
    poses = ring(radius=3.6, height=1.8)
    usual = find_placement(ObjectRegion(), poses, SLOPES, LoadOptions())
    assert (usual.near, usual.far, usual.transform.scale) == (2.0, 6.0, 1.0)
    poses[:, :3, 3] *= factor
    placement = find_placement(ObjectRegion(), poses, SLOPES, LoadOptions())
    distance = np.linalg.norm(transform_poses(placement.transform, poses)[:, :3, 3], axis=-1)
    np.testing.assert_allclose(distance, 4.03, rtol=1e-3)
    assert placement.may_carve and not placement.unbounded
    assert placement.near < 4.03 < placement.far


def test_cameras_inside_a_room_make_a_capture_of_it() -> None:
    poses = ring(radius=1.0, height=0.0)
    poses[:, :3, :3] = poses[:, :3, :3] @ np.diag([-1.0, 1.0, -1.0])  # look outwards
    assert find_placement(ObjectRegion(), poses, SLOPES, LoadOptions()).unbounded


@pytest.mark.parametrize(
    "place", [ObjectRegion(), CaptureRegion(), BoxRegion(np.array([[-1.0] * 3, [1.0] * 3]))]
)
def test_options_override_every_format(place: ObjectRegion | CaptureRegion | BoxRegion) -> None:
    poses = ring(radius=30.0)
    options = LoadOptions(near=12.0, far=60.0, box=(-5.0, -4.0, -3.0, 5.0, 4.0, 3.0))
    placement = find_placement(place, poses, SLOPES, options)
    scale = placement.transform.scale
    assert placement.near == pytest.approx(12.0 * scale)
    assert placement.far == pytest.approx(60.0 * scale)
    corners = transform_positions(placement.transform, np.array([[-5.0, -4, -3], [5.0, 4, 3]]))
    np.testing.assert_allclose(placement.aabb, corners)
    np.testing.assert_allclose(placement.transform.rotation, np.eye(3))
    assert not placement.unbounded
    options = LoadOptions(center=(1.0, 2.0, 3.0), scale_to=2.0)
    moved = find_placement(place, poses, SLOPES, options).transform
    middle = transform_positions(moved, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(middle, 0.0, atol=1e-9)
    positions = transform_positions(moved, poses[:, :3, 3])
    assert np.abs(positions).max() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": 2.0, "far": 1.0}, "near 2.0 is not below far 1.0"),
        ({"near": -1.0}, "near is -1.0"),
        ({"box": (0.0, 0.0, 0.0, 1.0, -1.0, 1.0)}, "box has y from 0 to -1"),
        ({"scale_to": float("inf")}, "are finite"),
        ({"hold_out": 1}, "hold_out is 1"),
        ({"downscale": 0}, "downscale is 0"),
    ],
)
def test_options_that_cannot_be_used_are_named(options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=message):
        LoadOptions(**options)

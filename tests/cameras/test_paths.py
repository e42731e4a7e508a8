"""Paths of a camera: where the made-up ones lead, and what files of others hold."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import assert_looks

from jaxrf.cameras import paths
from jaxrf.cameras.paths import ellipse_path, interpolate_path, orbit_path, read_path, spiral_path
from jaxrf.cameras.poses import focus_point, look_at
from jaxrf.core.errors import InputError


def test_orbit_path_is_an_even_circle_around_its_target() -> None:
    target = np.array([1.0, -2.0, 0.5])
    poses = orbit_path(6, radius=3.0, elevation=0.4, target=target)
    assert poses.shape == (6, 4, 4)
    azimuths = []
    for pose in poses:
        position = pose[:3, 3]
        assert_looks(pose, position, target)
        assert np.linalg.norm(position - target) == pytest.approx(3.0)
        assert position[2] - target[2] == pytest.approx(3.0 * math.sin(0.4))
        azimuths.append(math.atan2(position[1] - target[1], position[0] - target[0]))
    steps = np.diff(np.unwrap([*azimuths, azimuths[0] + 2 * math.pi]))
    np.testing.assert_allclose(steps, 2 * math.pi / 6)


def test_focus_point_is_where_all_cameras_look() -> None:
    target = np.array([0.3, -0.2, 0.1])
    poses = orbit_path(7, 2.5, 0.4, target)
    np.testing.assert_allclose(focus_point(poses), target, atol=1e-9)


def is_rigid(poses: np.ndarray) -> bool:
    rotation = poses[:, :3, :3]
    products = rotation @ rotation.transpose(0, 2, 1)
    return bool(
        np.allclose(products, np.eye(3), atol=1e-9) and np.allclose(np.linalg.det(rotation), 1.0)
    )


def ring(count: int = 12, radius: float = 3.0, height: float = 1.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    places = [np.array([radius * np.cos(a), 2.0 * radius * np.sin(a), height]) for a in angles]
    return np.stack([look_at(place, np.array([0.1, 0.0, 0.2])) for place in places])


def test_spiral_path_stays_near_and_looks_at_one_point() -> None:
    spread = np.array([0.4, 0.3, 0.2])
    poses = spiral_path(16, spread, 5.0)
    assert is_rigid(poses) and len(poses) == 16
    assert np.all(np.abs(poses[:, :3, 3]) <= spread + 1e-9)
    for pose in poses:
        towards = np.array([0.0, 0.0, -5.0]) - pose[:3, 3]
        np.testing.assert_allclose(-pose[:3, 2], towards / np.linalg.norm(towards), atol=1e-9)


def test_ellipse_path_is_as_wide_as_the_cameras() -> None:
    poses = ellipse_path(24, ring())
    assert is_rigid(poses)
    places = poses[:, :3, 3]
    np.testing.assert_allclose(places[:, 2], 1.0)
    x, y = np.abs(places - np.array([0.1, 0.0, 0.0]))[:, :2].max(axis=0)
    assert 2.5 < x < 3.2 and 5.0 < y < 6.1
    for pose in poses:
        towards = np.array([0.1, 0.0, 0.2]) - pose[:3, 3]
        np.testing.assert_allclose(-pose[:3, 2], towards / np.linalg.norm(towards), atol=1e-6)


def test_interpolate_path_passes_every_keyframe() -> None:
    given = ring(5)
    poses = interpolate_path(41, given)
    assert is_rigid(poses)
    np.testing.assert_allclose(poses[::10], given, atol=1e-9)
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1)
    assert steps.max() < 1.0 and steps.min() > 0.0


def write_path(path: Path, **changes: Any) -> Path:
    cameras = [
        {"camera_to_world": ring()[i].ravel().tolist(), "fov": 50 + i, "aspect": 1.5}
        for i in range(3)
    ]
    content = {
        "camera_type": "perspective", "render_width": 300, "render_height": 200, "fps": 12,
        "camera_path": cameras,
    }  # fmt: skip
    path.write_text(json.dumps(content | changes))
    return path


def test_read_path_of_nerfstudio(tmp_path: Path) -> None:
    result = read_path(write_path(tmp_path / "path.json"))
    assert result.fps == 12.0 and len(result.cameras) == 3
    assert (result.cameras.width, result.cameras.height) == (300, 200)
    np.testing.assert_allclose(result.cameras.T_world_camera, ring()[:3], rtol=1e-6)
    for index in range(3):
        angle = 2 * math.atan(100.0 / float(result.cameras.focal[index, 1]))
        assert math.degrees(angle) == pytest.approx(50 + index, rel=1e-6)


def test_read_path_inverts_the_dataparser_transform(tmp_path: Path) -> None:
    given = read_path(write_path(tmp_path / "path.json")).cameras.T_world_camera
    turn = np.array([[0.0, -1.0, 0.0, 0.3], [1.0, 0.0, 0.0, -0.2], [0.0, 0.0, 1.0, 0.5]])
    written = {"transform": turn.tolist(), "scale": 0.25}
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps(written))
    result = np.asarray(read_path(tmp_path / "path.json").cameras.T_world_camera, np.float64)
    for before, after in zip(np.asarray(given, np.float64), result, strict=True):
        # nerfstudio turns and shifts first, then scales.
        moved = 0.25 * (turn[:, :3] @ after[:3, 3] + turn[:, 3])
        np.testing.assert_allclose(moved, before[:3, 3], atol=1e-5)
        np.testing.assert_allclose(turn[:, :3] @ after[:3, :3], before[:3, :3], atol=1e-6)
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps({"transform": turn.tolist()}))
    with pytest.raises(InputError, match="scale of"):
        read_path(tmp_path / "path.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_type": "fisheye"}, "perspective path"),
        ({"render_width": -1}, "render_width"),
        ({"render_height": None}, "render_height"),
        ({"camera_path": []}, "not a list of 1"),
        ({"camera_path": [3]}, "not an object"),
        ({"camera_path": [{"camera_to_world": [1.0], "fov": 50}]}, "4 rows of 4"),
        ({"camera_path": [{"camera_to_world": np.eye(4).tolist()}]}, "fov of"),
        ({"camera_path": [{"camera_to_world": np.zeros((4, 4)).tolist(), "fov": 9}]}, "rotation"),
        ({"fps": 0}, "fps"),
    ],
)
def test_read_path_explains_mistakes(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_path(write_path(tmp_path / "path.json", **changes))
    assert "\n" not in str(caught.value)


def test_write_path_can_be_read(tmp_path: Path) -> None:
    cameras = read_path(write_path(tmp_path / "path.json")).cameras
    (tmp_path / "again.json").write_text(paths.write_path(cameras, 17.0))
    again = read_path(tmp_path / "again.json")
    assert again.fps == 17.0
    assert (again.cameras.width, again.cameras.height) == (cameras.width, cameras.height)
    np.testing.assert_allclose(again.cameras.T_world_camera, cameras.T_world_camera, atol=1e-6)
    np.testing.assert_allclose(again.cameras.focal, cameras.focal, rtol=1e-5)


def test_interpolate_path_that_loops_has_even_steps() -> None:
    given = ring(5)
    poses = interpolate_path(50, given, loops=True)
    assert is_rigid(poses) and len(poses) == 50
    np.testing.assert_allclose(poses[::10], given, atol=1e-9)
    back = np.linalg.norm(poses[0, :3, 3] - poses[-1, :3, 3])
    assert 0.0 < back < 1.0


def test_orbit_path_turns_and_swings() -> None:
    target = np.array([1.0, -2.0, 0.5])
    poses = orbit_path(40, 3.0, 0.3, target, turns=2, swing=0.4)
    assert is_rigid(poses)
    offsets = poses[:, :3, 3] - target
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=-1), 3.0)
    elevations = np.arcsin(offsets[:, 2] / 3.0)
    assert elevations.max() == pytest.approx(0.7) and elevations.min() == pytest.approx(-0.1)
    azimuths = np.unwrap(np.arctan2(offsets[:, 1], offsets[:, 0]))
    np.testing.assert_allclose(np.diff(azimuths), 4.0 * np.pi / 40)
    # However far it swings, the picture stays upright.
    assert is_rigid(orbit_path(8, 3.0, 1.2, target, swing=2.0))


def shuffled_walk(kind: str, count: int, seed: int) -> np.ndarray:
    """Cameras on a ring, or on an arc in front of a wall, in any order and with noise."""
    rng = np.random.default_rng(seed)
    turn = 2 * np.pi if kind == "ring" else 1.5
    poses = []
    for angle in rng.permutation(np.linspace(0, turn, count, endpoint=False)):
        at = np.array([3 * np.cos(angle), 3 * np.sin(angle), 1.0]) + rng.normal(0, 0.05, 3)
        poses.append(look_at(at, rng.normal(0, 0.05, 3)))
    return np.stack(poses)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["ring", "arc"])
def test_a_tour_is_smooth_of_constant_speed_and_stays_among_the_cameras(
    kind: str, seed: int
) -> None:
    poses = shuffled_walk(kind, 50, seed)
    path = paths.tour_path(90, poses)
    assert is_rigid(path)
    positions, axes = path[:, :3, 3], -path[:, :3, 2]
    low, high = poses[:, :3, 3].min(axis=0), poses[:, :3, 3].max(axis=0)
    assert np.all(positions > low - 0.05) and np.all(positions < high + 0.05)
    # The path comes back to its beginning, without a jump.
    steps = np.linalg.norm(np.diff(np.concatenate([positions, positions[:1]]), axis=0), axis=-1)
    assert steps.max() < 2.0 * np.median(steps)
    turns = np.sum(axes * np.roll(axes, 1, axis=0), axis=-1)
    assert turns.min() > np.cos(np.radians(15))
    # It looks at what the cameras look at.
    to_middle = -positions / np.linalg.norm(positions, axis=-1, keepdims=True)
    assert np.sum(to_middle * axes, axis=-1).min() > 0.95
    # All of the ring, or of the arc, is passed.
    angles = np.sort(np.unwrap(np.arctan2(positions[:, 1], positions[:, 0])))
    assert np.ptp(angles) > (5.5 if kind == "ring" else 1.1)


def test_a_tour_of_few_or_equal_cameras_is_finite() -> None:
    pose = look_at(np.array([1.0, 2.0, 3.0]), np.zeros(3))
    for count in (1, 2, 3, 7):
        path = paths.tour_path(5, np.repeat(pose[None], count, axis=0))
        assert path.shape == (5, 4, 4) and np.all(np.isfinite(path))

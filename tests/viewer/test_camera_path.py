"""Camera paths through keyframes: interpolation and files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import SimilarityTransform, rotate_onto
from jaxrf.viewer.camera_path import (
    MAX_KEYFRAMES,
    CameraPath,
    encode_camera_path,
    interpolate_keyframes,
    read_camera_path,
)
from jaxrf.viewer.poses import View


def make_keyframes(count: int = 3) -> tuple[View, ...]:
    angles = np.linspace(0.0, 2.0, count)
    positions = [4.0 * np.array([np.cos(a), np.sin(a), 0.5]) for a in angles]
    return tuple(
        View(look_at(position, np.zeros(3)), 0.6 + 0.1 * index, 1.5)
        for index, position in enumerate(positions)
    )


def test_interpolate_keyframes_passes_poses_and_fields_of_view() -> None:
    path = CameraPath(make_keyframes(3), seconds=1.0, fps=21.0)
    cameras = interpolate_keyframes(path, 60, 40)
    assert len(cameras) == path.num_frames == 21 and (cameras.width, cameras.height) == (60, 40)
    for index, keyframe in zip((0, 10, 20), path.keyframes, strict=True):
        np.testing.assert_allclose(cameras.T_world_camera[index], keyframe.pose, atol=1e-6)
        fov = 2.0 * np.arctan(20.0 / cameras.focal[index, 1])
        assert fov == pytest.approx(keyframe.fov, rel=1e-5)


def test_interpolate_keyframes_of_a_loop_ends_one_step_before_its_start() -> None:
    path = CameraPath(make_keyframes(3), seconds=1.0, fps=30.0, loops=True)
    cameras = interpolate_keyframes(path, 60, 40)
    positions = np.asarray(cameras.T_world_camera)[:, :3, 3]
    for index in (0, 1, 2):
        expected = path.keyframes[index].pose[:3, 3]
        np.testing.assert_allclose(positions[10 * index], expected, atol=1e-5)
    last_step = np.linalg.norm(positions[0] - positions[-1])
    assert 0.0 < last_step < 3.0 * np.linalg.norm(positions[-1] - positions[-2])
    assert cameras.focal[29, 1] > cameras.focal[20, 1]  # returns to the first field of view


def test_camera_path_file_roundtrip_in_the_coordinates_of_the_data_set(tmp_path: Path) -> None:
    rotation = rotate_onto(np.array([0.1, 0.2, 1.0]), np.array([0.0, 1.0, 0.3]))
    frame = SimilarityTransform(0.25, rotation, np.array([0.3, -0.2, 0.1]))
    path = CameraPath(make_keyframes(2), seconds=0.5, fps=20.0)
    cameras = interpolate_keyframes(path, 64, 48)
    file = tmp_path / "camera-path.json"
    file.write_text(encode_camera_path(cameras, path.fps, frame))
    loaded = read_camera_path(file, frame)
    assert (loaded.fps, loaded.seconds, len(loaded.keyframes)) == (20.0, 0.5, 10)
    for keyframe, pose in zip(loaded.keyframes, cameras.T_world_camera, strict=True):
        np.testing.assert_allclose(keyframe.pose, pose, atol=1e-5)
    assert loaded.keyframes[0].fov == pytest.approx(0.6, rel=1e-5)
    # Another frame gives other poses.
    other = read_camera_path(file, dataclasses.replace(frame, shift=np.zeros(3)))
    difference = other.keyframes[0].pose[:3, 3] - loaded.keyframes[0].pose[:3, 3]
    assert np.abs(difference).max() > 0.05


def test_read_camera_path_limits_keyframes_but_keeps_first_and_last(tmp_path: Path) -> None:
    path = CameraPath(make_keyframes(3), seconds=10.0, fps=24.0)
    cameras = interpolate_keyframes(path, 64, 48)
    frame = SimilarityTransform(1.0, np.eye(3), np.zeros(3))
    file = tmp_path / "long.json"
    file.write_text(encode_camera_path(cameras, 24.0, frame))
    loaded = read_camera_path(file, frame)
    assert len(loaded.keyframes) == MAX_KEYFRAMES
    np.testing.assert_allclose(loaded.keyframes[0].pose, cameras.T_world_camera[0], atol=1e-5)
    np.testing.assert_allclose(loaded.keyframes[-1].pose, cameras.T_world_camera[-1], atol=1e-5)

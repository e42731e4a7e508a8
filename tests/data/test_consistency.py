"""Epipolar errors: right cameras fit their images, wrong ones do not and are explained."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from textured import textured_scene

import jaxrf
from jaxrf.cameras import lenses
from jaxrf.cameras.base import project
from jaxrf.cameras.transforms import SimilarityTransform, transform_poses
from jaxrf.data import consistency, report
from jaxrf.data.matches import Matches, match_pairs
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.scene import Scene


def with_cameras(scene: Scene, **changes: Any) -> Scene:
    cameras = dataclasses.replace(scene.train.cameras, **changes)
    split = dataclasses.replace(scene.train, cameras=cameras)
    return dataclasses.replace(scene, splits={"train": split})


@pytest.fixture(scope="module")
def scene() -> Scene:
    return textured_scene(36, 240, 180)


def poses_of(scene: Scene) -> np.ndarray:
    return np.asarray(scene.train.cameras.T_world_camera, np.float64)


def test_right_cameras_fit(scene: Scene) -> None:
    assert consistency.find_better_cameras(scene) is None
    pairs = consistency._neighbors(poses_of(scene))
    matches = match_pairs(scene.train, pairs, {})
    assert len(matches.first) > 200
    assert np.median(consistency.epipolar_error(scene.train.cameras, matches)) < 0.5


def test_few_matches_of_each_pair_are_enough_together() -> None:
    """The usual pairs have fewer than a hundred matches, which alone say nothing."""
    sparse = textured_scene(24, 96, 72)
    poses = poses_of(sparse)
    pairs = consistency._neighbors(poses) + consistency._successors(24)
    assert len(match_pairs(sparse.train, list(dict.fromkeys(pairs)), {}).first) < 100
    assert consistency.find_better_cameras(sparse) is None
    warning = consistency.find_better_cameras(with_cameras(sparse, T_world_camera=poses @ FLIP_YZ))
    assert warning is not None and "--axes opencv" in warning


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda poses: poses @ FLIP_YZ, r"look like OpenCV's .*--axes opencv"),
        (np.linalg.inv, r"look like world-to-camera: invert them"),
        (lambda poses: np.linalg.inv(poses @ FLIP_YZ), r"world-to-camera with OpenCV's axes"),
        (lambda poses: poses[np.random.default_rng(0).permutation(36)], r"do not fit their images"),
    ],
)
def test_wrong_poses_are_explained(scene: Scene, wrong: Any, message: str) -> None:
    broken = with_cameras(scene, T_world_camera=wrong(poses_of(scene)))
    warning = consistency.find_better_cameras(broken)
    assert warning is not None and re.search(message, warning)
    assert warning in report.find_warnings(broken)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_wrong_focal_lengths_are_named_with_their_factor(scene: Scene, factor: float) -> None:
    broken = with_cameras(scene, focal=np.asarray(scene.train.cameras.focal) * factor)
    warning = consistency.find_better_cameras(broken)
    assert warning is not None
    named = re.search(r"focal length of about ([\d.]+) times", warning)
    assert named is not None and float(named[1]) * factor == pytest.approx(1.0, rel=0.1)


def test_a_slightly_wrong_focal_length_and_exact_poses_of_others_say_nothing(scene: Scene) -> None:
    focal = np.asarray(scene.train.cameras.focal)
    assert consistency.find_better_cameras(with_cameras(scene, focal=focal * 1.03)) is None
    rng = np.random.default_rng(0)
    turns = Rotation.from_rotvec(np.radians(0.1) * rng.normal(size=(36, 3))).as_matrix()
    poses = poses_of(scene)
    poses[:, :3, :3] = poses[:, :3, :3] @ turns
    assert consistency.find_better_cameras(with_cameras(scene, T_world_camera=poses)) is None


def test_a_wrong_lens_is_named(scene: Scene) -> None:
    distorted = with_cameras(scene, distortion=np.tile([-0.4, 0.1], (36, 1)))
    warning = consistency.find_better_cameras(distorted)
    assert warning is not None and "fit better without lens distortion" in warning


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"lens": "fisheye", "distortion": None}, "a perspective lens fits better"),
        ({"factor": 0.8}, r"focal length of about 1\.[23]\d* times"),
        ({"factor": 1.25}, r"focal length of about 0\.[78]\d* times"),
    ],
)
def test_cameras_of_photos(real_data: Path, changes: dict[str, Any], message: str | None) -> None:
    if not (real_data / "fox_270x480").is_dir():
        pytest.skip("no fox_270x480 in the folder of real scenes")
    scene = jaxrf.load_scene(real_data / "fox_270x480", splits=("train",))
    factor = changes.pop("factor", None)
    if factor is not None:
        changes = {"focal": np.asarray(scene.train.cameras.focal) * factor}
    warning = consistency.find_better_cameras(with_cameras(scene, **changes))
    assert warning is None if message is None else re.search(message, str(warning))


def test_images_of_a_turned_frame_are_judged_in_the_axes_of_the_files(scene: Scene) -> None:
    # The matrices of the files are the inverse ones; their frame is placed and scaled.
    inverse = np.linalg.inv(poses_of(scene))
    frame = SimilarityTransform(0.2, np.eye(3), np.array([1.0, 2.0, 3.0]))
    broken = with_cameras(scene, T_world_camera=transform_poses(frame, inverse))
    warning = consistency.find_better_cameras(dataclasses.replace(broken, frame=frame))
    assert warning is not None and "world-to-camera: invert them" in warning


def test_images_full_of_corners_of_which_no_two_match_are_named(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (len(scene.train), 18, 24, 3), dtype=np.uint8)
    strangers = np.repeat(np.repeat(blocks, 10, axis=1), 10, axis=2)
    images = np.concatenate([strangers, np.full((*strangers.shape[:3], 1), 255, np.uint8)], axis=-1)
    assert images.shape == scene.train.images.shape
    split = dataclasses.replace(scene.train, images=images)
    warning = consistency.find_better_cameras(dataclasses.replace(scene, splits={"train": split}))
    assert warning is not None and warning.startswith("The cameras could not be checked: ")


def test_little_texture_few_images_and_masked_pixels_say_nothing(scene: Scene) -> None:
    broken = with_cameras(scene, T_world_camera=poses_of(scene) @ FLIP_YZ)
    flat = dataclasses.replace(broken.train, images=np.full_like(broken.train.images, 200))
    masked = dataclasses.replace(broken.train, masks=np.zeros(flat.images.shape[:3], bool))
    clear = dataclasses.replace(flat, images=broken.train.images * np.array([1, 1, 1, 0], np.uint8))
    for split in (flat, masked, clear):
        silent = dataclasses.replace(broken, splits={"train": split})
        assert consistency.find_better_cameras(silent) is None
    assert consistency.find_better_cameras(textured_scene(3, 160, 120)) is None


@pytest.mark.parametrize(
    ("lens", "coefficients"),
    [
        ("perspective", None),
        ("perspective", [0.1, -0.02, 0, 0, 0, 0, 1e-3, 2e-3]),
        ("fisheye", None),
    ],
)
def test_errors_of_exact_points_are_zero_and_of_shifted_ones_their_shift(
    scene: Scene, lens: lenses.Lens, coefficients: list[float] | None
) -> None:
    distortion = None if coefficients is None else np.tile(coefficients, (36, 1))
    cameras = dataclasses.replace(scene.train.cameras, lens=lens, distortion=distortion)
    positions = np.random.default_rng(1).uniform(-0.4, 0.4, (50, 3))
    first, second = project(cameras, 0, positions)[0], project(cameras, 2, positions)[0]
    indices = np.zeros(50, int), np.full(50, 2)
    exact = Matches(*indices, first, second)
    np.testing.assert_allclose(consistency.epipolar_error(cameras, exact), 0.0, atol=1e-3)
    # Both cameras stand at one height: points move off their epipolar lines downwards.
    moved = Matches(*indices, first, second + np.array([0.0, 1.0]))
    error = consistency.epipolar_error(cameras, moved)
    assert np.all((error > 0.3) & (error < 1.2))

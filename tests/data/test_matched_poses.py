"""Poses of a data set that are corrected by matched points of its images."""

import dataclasses
import re

import numpy as np
import pytest
from textured import textured_scene

from jaxrf.cameras.refinement import CameraAdjustment, adjust_cameras
from jaxrf.cameras.transforms import fit_pose_similarity, identity_transform, transform_poses
from jaxrf.data.matched_poses import match_poses, pose_difference
from jaxrf.data.scene import Split


@pytest.fixture(scope="module")
def split() -> Split:
    return textured_scene(24, 240, 180).train


def disturb(split: Split, degrees: float, distance: float) -> Split:
    turn, shift = np.random.default_rng(1).normal(size=(2, len(split), 3))
    turn *= np.radians(degrees) / np.linalg.norm(turn, axis=-1, keepdims=True)
    shift *= distance / np.linalg.norm(shift, axis=-1, keepdims=True)
    change = CameraAdjustment(np.concatenate([turn, shift], axis=-1).astype(np.float32))
    return dataclasses.replace(split, cameras=adjust_cameras(split.cameras, change, np))


def poses_of(split: Split) -> np.ndarray:
    return np.asarray(split.cameras.T_world_camera, np.float64)


def mean_distance(poses: np.ndarray, exact: np.ndarray) -> float:
    aligned = transform_poses(fit_pose_similarity(poses, exact), poses)
    return float(np.linalg.norm((aligned - exact)[:, :3], axis=(1, 2)).mean())


def test_right_poses_are_kept(split: Split) -> None:
    assert match_poses(split) is None


@pytest.mark.parametrize("degrees", [1.0, 4.0])
def test_wrong_poses_are_corrected(split: Split, degrees: float) -> None:
    given = disturb(split, degrees, 0.04)
    matched = match_poses(given)
    assert matched is not None
    corrected = adjust_cameras(given.cameras, matched.adjustment, np)
    poses, exact = np.asarray(corrected.T_world_camera, np.float64), poses_of(split)
    assert mean_distance(poses, exact) < 0.3 * mean_distance(poses_of(given), exact)
    assert matched.error < 0.3 * matched.error_before
    sentence = re.fullmatch(
        r"24 of 24 poses are corrected by matched points of \d+ pairs of images: they usually lay "
        r"([\d.]+) pixels off and now ([\d.]+); training refines them further\.",
        matched.describe(),
    )
    assert sentence and float(sentence[1]) > float(sentence[2])
    # All cameras together stay where they were.
    frame = fit_pose_similarity(poses, poses_of(given))
    np.testing.assert_allclose(frame.rotation, identity_transform().rotation, atol=2e-3)
    np.testing.assert_allclose(frame.shift, 0.0, atol=1e-2)
    assert frame.scale == pytest.approx(1.0, abs=1e-2)


def test_a_single_wrong_pose_is_corrected_alone(split: Split) -> None:
    poses = poses_of(split).copy()
    poses[7] = poses_of(disturb(split, 3.0, 0.05))[7]
    cameras = dataclasses.replace(split.cameras, T_world_camera=poses.astype(np.float32))
    matched = match_poses(dataclasses.replace(split, cameras=cameras))
    assert matched is not None and matched.num_moved <= 3
    corrected = np.asarray(adjust_cameras(cameras, matched.adjustment, np).T_world_camera)
    # Its neighbors may move a little, all others stay.
    far = np.abs(np.arange(24) - 7) > 1
    np.testing.assert_allclose(corrected[far], cameras.T_world_camera[far], atol=1e-6)
    before, after = (np.abs(p - poses_of(split)).max(axis=(1, 2)) for p in (poses, corrected))
    assert after[7] < 0.3 * before[7] and after.max() < 0.3 * before.max()


def test_images_without_texture_say_nothing(split: Split) -> None:
    plain = dataclasses.replace(split, images=np.full_like(split.images, 128))
    assert match_poses(disturb(plain, 2.0, 0.04)) is None


def test_two_images_say_nothing(split: Split) -> None:
    pair = dataclasses.replace(
        split,
        names=split.names[:2],
        images=split.images[:2],
        cameras=split.cameras[np.arange(2)],
    )
    assert match_poses(pair) is None


def test_pose_difference_inverts_an_adjustment(split: Split) -> None:
    other = disturb(split, 20.0, 0.5)
    difference = pose_difference(poses_of(split), poses_of(other))
    again = adjust_cameras(split.cameras, difference, np)
    np.testing.assert_allclose(again.T_world_camera, other.cameras.T_world_camera, atol=1e-5)

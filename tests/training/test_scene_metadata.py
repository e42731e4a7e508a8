"""Facts about a scene that a run keeps."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scenes import DISTANCE, SIZE, first_state, make_scene, tiny_nerf

from jaxrf.training.scene_metadata import SceneMetadata, near_far_fn


def test_scene_metadata_describes_the_scene() -> None:
    scene = make_scene()
    metadata = SceneMetadata.from_scene(scene, Path("ball"))
    assert metadata.name == "ball" and Path(metadata.data) == Path("ball").absolute()
    assert (metadata.near, metadata.far, metadata.width, metadata.height) == (2.0, 6.0, SIZE, SIZE)
    assert metadata.focal == pytest.approx(0.5 * SIZE / np.tan(0.35), rel=1e-5)
    assert metadata.radius == pytest.approx(DISTANCE, rel=1e-5)
    assert metadata.train_views == 6
    assert json.loads(json.dumps(dataclasses.asdict(metadata)))["checksum"] == metadata.checksum
    images = scene.splits["train"].images.copy()
    images[2, 3, 4, 0] ^= 1
    split = dataclasses.replace(scene.splits["train"], images=images)
    other = dataclasses.replace(scene, splits={"train": split})
    assert SceneMetadata.from_scene(other, Path("ball")).checksum != metadata.checksum


def test_pose_matrices_are_the_poses_of_the_training_cameras() -> None:
    scene = make_scene()
    metadata = SceneMetadata.from_scene(scene, None)
    poses = np.asarray(scene.splits["train"].cameras.T_world_camera)
    np.testing.assert_array_equal(metadata.pose_matrices(), poses)
    without = dataclasses.replace(metadata, poses=())
    assert without.pose_matrices().shape == (0, 4, 4)


def test_near_far_fn_follows_cameras_that_leave_the_training_cameras() -> None:
    scene = make_scene()
    metadata = SceneMetadata.from_scene(scene, Path("/data/ball"))
    _, state = first_state(tiny_nerf())
    near_far = near_far_fn(metadata, state.grid)
    assert callable(near_far)
    cameras = scene.splits["test"].cameras
    # Cameras at the distance of the training cameras use the scene's near and far.
    assert [near_far(cameras, i) for i in range(len(cameras))] == [(2.0, 6.0)] * len(cameras)
    poses = np.array(cameras.T_world_camera)
    poses[0, :3, 3] *= 3.0
    near, far = near_far(dataclasses.replace(cameras, T_world_camera=poses), 0)
    assert (near, far) == pytest.approx((10.0 - 0.05 * DISTANCE, 14.0 - 0.05 * DISTANCE), abs=0.1)
    # Without poses the mean distance is known.
    near_far = near_far_fn(dataclasses.replace(metadata, poses=()), state.grid)
    assert callable(near_far) and near_far(cameras, 0) == (2.0, 6.0)
    # In unbounded scenes near and far are the same for all cameras.
    assert near_far_fn(dataclasses.replace(metadata, ndc=(1.0, 1.0, 1.0)), state.grid) == (2, 6)
    unbounded = dataclasses.replace(state.grid, bounds=state.grid.aabb)
    assert near_far_fn(metadata, unbounded) == (2.0, 6.0)

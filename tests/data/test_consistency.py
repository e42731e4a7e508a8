"""The plane sweep: right poses fit their images, wrong ones do not and are explained."""

import dataclasses
import re

import numpy as np
import pytest
from textured import textured_scene

from jaxrf.cameras.base import Cameras
from jaxrf.data import consistency, report
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.scene import Scene


def with_poses(scene: Scene, poses: np.ndarray) -> Scene:
    cameras: Cameras = dataclasses.replace(scene.train.cameras, T_world_camera=poses)
    split = dataclasses.replace(scene.train, cameras=cameras)
    return dataclasses.replace(scene, splits={"train": split})


@pytest.fixture(scope="module")
def scene() -> Scene:
    return textured_scene()


def test_right_poses_fit(scene: Scene) -> None:
    assert consistency.find_better_poses(scene) is None
    views = consistency._shrink(scene.train, scene.frame)
    right = consistency.score_poses(views)
    assert right is not None and right > 0.5
    wrong = consistency.score_poses(dataclasses.replace(views, poses=views.poses[::-1].copy()))
    assert wrong is not None and wrong < right - 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda poses: poses @ FLIP_YZ, r"look like OpenCV's .*--axes opencv"),
        (np.linalg.inv, r"look like world-to-camera: invert them"),
    ],
)
def test_wrong_poses_are_explained(scene: Scene, wrong: object, message: str) -> None:
    poses = np.asarray(scene.train.cameras.T_world_camera, np.float64)
    broken = with_poses(scene, wrong(poses))  # type: ignore[operator]
    found = consistency.find_better_poses(broken)
    assert found is not None and re.search(message, found)
    assert found in report.find_warnings(broken)


def test_images_without_texture_say_nothing(scene: Scene) -> None:
    poses = np.asarray(scene.train.cameras.T_world_camera, np.float64) @ FLIP_YZ
    broken = with_poses(scene, poses)
    flat = dataclasses.replace(broken.train, images=np.full_like(broken.train.images, 200))
    assert (
        consistency.find_better_poses(dataclasses.replace(broken, splits={"train": flat})) is None
    )

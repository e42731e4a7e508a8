"""How near content is: matched points against a scene whose distances are known."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from textured import cast_rays, textured_scene

from jaxrf.cameras.base import pinhole_cameras, project
from jaxrf.cameras.poses import look_at
from jaxrf.data import nearest, sources
from jaxrf.data.matches import Matches
from jaxrf.data.options import LoadOptions
from jaxrf.data.scene import Split

WIDTH, HEIGHT, FOCAL = 240, 180, 55.0 * 240 / 64


@pytest.fixture(scope="module")
def split() -> Split:
    return textured_scene(36, WIDTH, HEIGHT).train


def true_distances(split: Split) -> np.ndarray:
    poses = np.asarray(split.cameras.T_world_camera, np.float64)
    distances = [cast_rays(pose, WIDTH, HEIGHT, FOCAL)[2] for pose in poses[::6]]
    return np.concatenate([d[np.isfinite(d)] for d in distances])


def test_rays_begin_in_front_of_all_content_but_not_far_in_front(split: Split) -> None:
    near = nearest.find_near(split)
    assert near is not None
    first = true_distances(split).min()
    assert 0.3 * first < near < 0.7 * first


def test_wrong_poses_or_few_images_say_nothing(split: Split) -> None:
    few = dataclasses.replace(
        split, names=split.names[:3], images=split.images[:3], cameras=split.cameras[:3]
    )
    assert nearest.find_near(few) is None
    poses = np.asarray(split.cameras.T_world_camera)
    shuffled = poses[np.random.default_rng(0).permutation(len(poses))]
    cameras = dataclasses.replace(split.cameras, T_world_camera=shuffled)
    assert nearest.find_near(dataclasses.replace(split, cameras=cameras)) is None
    gray = dataclasses.replace(split, images=np.full_like(split.images, 128))
    assert nearest.find_near(gray) is None


def test_ray_distances_equal_those_of_points_and_leave_the_others_out() -> None:
    poses = np.stack([look_at(np.array([x, -4.0, 1.0]), np.zeros(3)) for x in (-1.0, 1.0)])
    cameras = pinhole_cameras(poses, 100, 80, 90.0)
    points = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 3))
    pixels = [project(cameras, index, points)[0] for index in (0, 1)]
    matches = Matches(np.zeros(50, int), np.ones(50, int), *map(np.asarray, pixels))
    expected = [np.linalg.norm(points - pose[:3, 3], axis=-1) for pose in poses]
    np.testing.assert_allclose(
        nearest.ray_distances(cameras, matches), np.concatenate(expected), rtol=1e-6
    )
    # Cameras side by side: the same pixels are parallel, and outer ones meet behind both.
    poses = np.stack([look_at(np.array([x, -4.0, 1.0]), np.array([x, 0.0, 1.0])) for x in (-1, 1)])
    cameras = pinhole_cameras(poses, 100, 80, 90.0)
    left, right = np.full((50, 2), [20.0, 40.0]), np.full((50, 2), [80.0, 40.0])
    for pair in ((left, left), (left, right)):
        matches = Matches(np.zeros(50, int), np.ones(50, int), *pair)
        assert len(nearest.ray_distances(cameras, matches)) == 0
    matches = Matches(np.zeros(50, int), np.ones(50, int), right, left)
    assert len(nearest.ray_distances(cameras, matches)) == 100
    nothing = Matches(*(array[:0] for array in matches))
    assert nearest.ray_distances(cameras, nothing).shape == (0,)


def write_capture(folder: Path, split: Split) -> Path:
    (folder / "images").mkdir()
    frames = []
    poses = np.asarray(split.cameras.T_world_camera, np.float64)
    for name, image, pose in zip(split.names, split.images, poses, strict=True):
        Image.fromarray(image[..., :3]).save(folder / "images" / f"{name}.png")
        frames.append({"file_path": f"images/{name}.png", "transform_matrix": pose.tolist()})
    content = {"fl_x": FOCAL, "w": WIDTH, "h": HEIGHT, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def test_captures_without_points_get_their_near_from_their_images(
    split: Split, tmp_path: Path
) -> None:
    folder = write_capture(tmp_path, split)
    scene = sources.load_scene(folder, ["train"])
    assert scene.unbounded and scene.near > 0.05
    first = true_distances(split).min() * scene.frame.scale
    assert 0.3 * first < scene.near < 0.7 * first
    # What is said counts, and nothing is looked at where not all images are decoded.
    given = sources.load_scene(folder, ["train"], LoadOptions(near=0.25))
    assert given.near == pytest.approx(0.25 * scene.frame.scale)
    some = sources.load_scene(folder, ["train"], choose=lambda count: range(0, count, 2))
    assert some.near == 0.05

"""What is said of a data set, what looks wrong in it, and how it is drawn."""

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from data_formats import write_llff
from PIL import Image
from scenes import make_scene, write_scene

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.ndc import rays_to_ndc
from jaxrf.cameras.poses import look_at
from jaxrf.cli import main as cli
from jaxrf.core.rays import Rays
from jaxrf.data import plots, report, sources
from jaxrf.data.page import write_page
from jaxrf.data.scene import Scene, Split


def change_cameras(change: Callable[[Cameras], Cameras]) -> Callable[[Scene], Scene]:
    """A scene whose training cameras are others."""

    def apply(scene: Scene) -> Scene:
        split = scene.splits["train"]
        changed = dataclasses.replace(split, cameras=change(split.cameras))
        return dataclasses.replace(scene, splits={**scene.splits, "train": changed})

    return apply


def change_images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Scene], Scene]:
    def apply(scene: Scene) -> Scene:
        split = scene.splits["train"]
        changed = dataclasses.replace(split, images=change(split.images.copy()))
        return dataclasses.replace(scene, splits={**scene.splits, "train": changed})

    return apply


def set_image(index: int, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def apply(images: np.ndarray) -> np.ndarray:
        images[index] = value
        return images

    return apply


def move_cameras(factor: float) -> Callable[[Cameras], Cameras]:
    def apply(cameras: Cameras) -> Cameras:
        poses = np.array(cameras.T_world_camera)
        poses[:, :3, 3] *= factor
        return dataclasses.replace(cameras, T_world_camera=poses)

    return apply


def turn_round(cameras: Cameras) -> Cameras:
    poses = np.array(cameras.T_world_camera)
    poses[:, :3, :3] = poses[:, :3, :3] @ np.diag([-1.0, 1.0, -1.0]).astype(np.float32)
    return dataclasses.replace(cameras, T_world_camera=poses)


def stay_put(cameras: Cameras) -> Cameras:
    poses = np.array(cameras.T_world_camera)
    poses[:, :3, 3] = poses[0, :3, 3]
    return dataclasses.replace(cameras, T_world_camera=poses)


def take_poses_of_test(scene: Scene) -> Scene:
    poses = scene.splits["test"].cameras.T_world_camera
    change = change_cameras(
        lambda cameras: dataclasses.replace(
            cameras, T_world_camera=np.concatenate([poses, cameras.T_world_camera[len(poses) :]])
        )
    )
    return change(scene)


def aim(focal: tuple[float, float]) -> Callable[[Cameras], Cameras]:
    def apply(cameras: Cameras) -> Cameras:
        return dataclasses.replace(cameras, focal=np.tile(np.float32([focal]), (len(cameras), 1)))

    return apply


def test_find_warnings_of_a_valid_scene_is_only_few_images() -> None:
    assert report.find_warnings(make_scene()) == [
        "train has only 6 images, which is few for a field."
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_images(set_image(2, [9, 9, 9, 255])), "1 images of train are of one color"),
        (change_images(set_image(2, [9, 9, 9, 0])), "1 images of train are fully transparent"),
        (
            change_images(set_image(2, make_scene().splits["train"].images[4])),
            "r_4 and r_2 of train are the same image",
        ),
        (
            change_cameras(
                lambda c: dataclasses.replace(c, principal_point=c.principal_point + np.float32(3))
            ),
            "principal point of train is 19% of the image off",
        ),
        (change_cameras(aim((20.0, 23.0))), "differ by more than 5 %"),
        (change_cameras(aim((2.0, 2.0))), "field of view of train is 151.9 degrees"),
        (change_cameras(move_cameras(0.3)), "cameras stand inside of the box"),
        (change_cameras(move_cameras(0.7)), "rays begin at 2: nearer surfaces are cut off"),
        (change_cameras(move_cameras(2.0)), "rays end at 6"),
        (change_cameras(turn_round), "6 cameras look away from the box"),
        (change_cameras(stay_put), "All cameras are at one position"),
        (take_poses_of_test, "2 cameras of train stand where cameras of test do"),
    ],
)
def test_find_warnings_names_each_problem(change: Callable[[Scene], Scene], sentence: str) -> None:
    result = report.find_warnings(change(make_scene()))
    assert any(sentence in line for line in result), result
    assert all("\n" not in line for line in result)


def test_one_sentence_is_of_all_splits_of_which_it_is_true() -> None:
    scene = change_cameras(aim((20.0, 23.0)))(make_scene())
    (train,) = (w for w in report.find_warnings(scene) if "differ by more" in w)
    assert train.startswith("The focal lengths of train differ")
    both = dataclasses.replace(
        scene, splits={name: scene.train for name in ("train", "val", "test")}
    )
    (every,) = (w for w in report.find_warnings(both) if "differ by more" in w)
    assert every.startswith("The focal lengths of train, val and test differ")


def test_dataset_report_equals_the_scene() -> None:
    lines = report.dataset_report(make_scene())
    focal = 8.0 / np.tan(0.35)
    assert lines[0].startswith("train: 6 images of 16x16 pixels, ")
    assert f"focal length {focal:.4g} x {focal:.4g} pixels (40.1 x 40.1 degrees)" in lines[0]
    assert "principal point 8, 8, no distortion" in lines[0]
    assert lines[3:] == [
        "box: x -1.5 to 1.5; y -1.5 to 1.5; z -1.5 to 1.5",
        "rays: from 2 to 6 scene units",
        "cameras: 4 scene units from the middle of the box",
        "frame: 1 unit of the files is 1 scene units",
    ]


def forward_scene(folder: Path) -> Scene:
    rng = np.random.default_rng(5)
    target = np.array([1.0, 8.0, 0.5])
    poses = np.stack([look_at(rng.normal(0, 0.3, 3), target) for _ in range(6)])
    return sources.load_scene(write_llff(folder, poses), ["train", "test"])


def test_box_edges_of_ndc_scene_are_in_space(tmp_path: Path) -> None:
    scene = forward_scene(tmp_path)
    cameras = scene.splits["train"].cameras
    assert cameras.ndc is not None
    corners = np.concatenate(plots.box_edges(scene))
    low, high = np.asarray(scene.aabb, np.float64)
    # Along a ray out of the middle x and y stay what they are at its corner.
    directions = corners / np.linalg.norm(corners, axis=-1, keepdims=True)
    ones = jnp.ones((len(corners),))
    rays = Rays(
        origins=jnp.zeros(corners.shape),
        directions=jnp.asarray(directions, jnp.float32),
        near=ones,
        far=ones,
        radii=ones,
        camera_index=jnp.zeros((len(corners),), jnp.int32),
    )
    begun = rays_to_ndc(rays, jnp.asarray(cameras.ndc[:2], jnp.float32), cameras.ndc[2])
    z = 1.0 - 2.0 * cameras.ndc[2] / -corners[:, 2]
    result = np.concatenate([np.asarray(begun.origins)[:, :2], z[:, None]], axis=-1)
    expected = {
        (x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (-1.0, 1.0 / 3.0)
    }
    assert {tuple(np.round(p, 3)) for p in result} == {tuple(np.round(p, 3)) for p in expected}
    assert any("in normalized device coordinates" in line for line in report.dataset_report(scene))


def test_draw_scene_shows_every_camera() -> None:
    with Image.open(io.BytesIO(plots.draw_scene(make_scene()))) as image:
        image.load()
        assert image.size == (1400, 800)
        # Below are images, whose titles have the same colors.
        pixels = np.asarray(image.convert("RGB"))[:480].reshape(-1, 3).astype(int)
    for color in plots.COLORS.values():
        expected = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.sum(np.abs(pixels - expected).max(axis=-1) < 40) > 50, color


def test_write_page_holds_all_cameras_and_escapes_names() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    hostile = ("</script><!--<script>alert(1)</script>@DATA@", *split.names[1:])
    renamed = Split("train", hostile, split.images, split.cameras)
    scene = dataclasses.replace(scene, name="<b>@DATA@", splits={**scene.splits, "train": renamed})
    page = write_page(scene, ["a < b"], ["<i>odd</i>"])
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<b>" not in page and "&lt;b&gt;@DATA@" in page and "&lt;i&gt;odd" in page
    content = re.search(r"const scene = (.*);\n", page)
    assert content is not None
    data = json.loads(content[1])
    assert len(data["frusta"]) == 10 and len(data["box"]) == 12
    assert data["frusta"][0]["name"] == f"train {hostile[0]}"
    tip = data["frusta"][0]["points"][0]
    np.testing.assert_allclose(tip, split.cameras.T_world_camera[0, :3, 3], atol=1e-4)
    assert data["frusta"][0]["image"].startswith("data:image/jpeg;base64,")


def test_data_info_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_llff(tmp_path / "scene")
    assert cli.main(["data", "info", str(folder), "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "LLFF format" in output and "Looks wrong:" in output
    with Image.open(tmp_path / "out" / "cameras.png") as image:
        assert image.format == "PNG"
    assert "<canvas" in (tmp_path / "out" / "cameras.html").read_text()
    ball = write_scene(tmp_path / "ball")
    (ball / "transforms_val.json").unlink()
    assert cli.main(["data", "info", str(ball), "--output", str(tmp_path / "two")]) == 0
    assert "6 train, 2 val, 2 test views" in capsys.readouterr().out
    assert cli.main(["data", "info", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_of_images_of_several_sizes_the_remainder_is_not_transparent() -> None:
    split = make_scene().splits["train"]
    images = np.full_like(split.images, 255)
    images[0, :, 12:] = 0
    sizes = np.full((len(images), 2), 16)
    sizes[0] = 12, 16
    mixed = dataclasses.replace(split, images=images, sizes=sizes)
    assert report._describe_alpha(mixed) == "opaque"
    images[0, :, :6, 3] = 0
    assert report._describe_alpha(mixed) == f"{16 * 6 / (5 * 256 + 16 * 12):.0%} transparent"

"""What all formats share: sizes, orientations, hold-out, masks, and notes on what is not used."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_formats import (
    save_images,
    true_cameras,
    view_names,
    write_colmap,
    write_deepvoxels,
    write_llff,
    write_transforms,
)
from PIL import Image
from scenes import make_scene, write_scene

from jaxrf.cameras.base import image_rays
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.data.images import (
    EXIF_EXPOSURE_TIME,
    EXIF_F_NUMBER,
    EXIF_IFD,
    EXIF_ISO,
    EXIF_ORIENTATION,
)
from jaxrf.data.options import LoadOptions
from jaxrf.evaluation.scoring import score_split
from jaxrf.rendering.image import HostRendering
from jaxrf.training import pixels

FORMATS: dict[str, Callable[[Path], Path]] = {
    "transforms": lambda folder: write_transforms(folder, ".png"),
    "llff": write_llff,
    "colmap": write_colmap,
}
every_format = pytest.mark.parametrize("name", list(FORMATS))


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "") -> None:
    listing = folder / (name or "transforms.json")
    content = json.loads(listing.read_text())
    change(content)
    listing.write_text(json.dumps(content))


def write_mixed(folder: Path) -> Path:
    """Views of the ball of which every second is cropped to 12x16, from the left."""
    write_transforms(folder, ".png")

    def change(content: dict[str, Any]) -> None:
        for index, frame in enumerate(content["frames"]):
            path = folder / frame["file_path"]
            left = 4 * (index % 2)
            with Image.open(path) as image:
                cropped = image.crop((left, 0, 16, 16))
            cropped.save(path)
            frame |= {"w": 16 - left, "h": 16, "cx": 8.0 - left, "cy": 8.0}

    edit(folder, change)
    return folder


def test_images_of_several_sizes_are_trained_and_scored_on_together(tmp_path: Path) -> None:
    scene = sources.load_scene(write_mixed(tmp_path / "mixed"), ["train", "test"])
    whole = sources.load_scene(write_transforms(tmp_path / "whole", ".png"), ["train", "test"])
    split, full = scene.train, whole.train
    assert split.sizes is not None and split.masks is not None
    assert {split.image_size(i) for i in range(len(split))} == {(12, 16), (16, 16)}
    assert split.describe_size() == "12x16 to 16x16"
    for index in range(len(split)):
        width, _ = split.image_size(index)
        crop = full.images[index][:, 16 - width :]
        np.testing.assert_array_equal(split.crop(index), crop)
        assert split.masks[index].sum() == 16 * width
        rays = image_rays(split.cameras, index, 1.0, 2.0)
        expected = image_rays(full.cameras, index, 1.0, 2.0)
        np.testing.assert_allclose(
            rays.directions[:, :width], expected.directions[:, 16 - width :], atol=1e-6
        )
    dataset = pixels.to_device(split, (1, 2))
    assert int(dataset.starts[1]) == split.masks.sum()
    truth = [split.crop(index)[..., :3] / np.float32(255) for index in range(len(split))]

    def render(cameras: Any, index: int) -> HostRendering:
        # Right where there is an image, wrong beside it.
        rgb = np.full((cameras.height, cameras.width, 3), 0.5, np.float32)
        rgb[: truth[index].shape[0], : truth[index].shape[1]] = truth[index]
        return HostRendering(rgb, *[np.zeros(rgb.shape[:2], np.float32)] * 3)

    for view in score_split(render, split, np.ones(3, np.float32), range(len(split))):
        assert view.scores["psnr"] == np.inf and view.target_rgb.shape == truth[view.view].shape
        assert view.rendering.rgb.shape == view.target_rgb.shape
    small = sources.load_scene(tmp_path / "mixed", ["train"], LoadOptions(downscale=2)).train
    assert {small.image_size(i) for i in range(len(small))} == {(6, 8), (8, 8)}


@pytest.mark.parametrize("declared", [True, False])
def test_photos_on_their_side_are_turned_upright(declared: bool, tmp_path: Path) -> None:
    folder = write_transforms(tmp_path / "side", ".jpg")
    upright = sources.load_scene(folder, ["train"]).train
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            stored = image.transpose(Image.Transpose.ROTATE_90)
        stored.save(path, quality=95, subsampling=0, exif=exif)
    if not declared:
        edit(folder, lambda content: [content.pop(key) for key in ("w", "h", "cx", "cy")])
    turned = sources.load_scene(folder, ["train"]).train
    assert np.abs(turned.images.astype(int) - upright.images).mean() < 3
    np.testing.assert_allclose(turned.cameras.principal_point, upright.cameras.principal_point)


def test_cameras_of_the_stored_pixels_get_the_stored_pixels(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path, ".jpg", w=12, h=16, cx=6.0)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            stored = image.crop((2, 0, 14, 16))
        stored.save(path, quality=95, exif=exif)
    scene = sources.load_scene(folder, ["train"])
    assert scene.train.images.shape[1:3] == (16, 12)
    edit(folder, lambda content: content.update(w=16, h=12, cx=8.0, cy=6.0))
    assert sources.load_scene(folder, ["train"]).train.images.shape[1:3] == (12, 16)
    edit(folder, lambda content: content.update(w=20, h=12))
    with pytest.raises(InputError, match="another aspect ratio: use the images"):
        sources.load_scene(folder, ["train"])


@pytest.mark.parametrize("write", [write_transforms, write_colmap])
def test_exposures_of_photos_are_those_of_the_training_images(write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "photos")
    paths = sorted((folder / "images").iterdir())
    for number, path in enumerate(paths):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 1
        ifd = exif.get_ifd(EXIF_IFD)
        ifd[EXIF_EXPOSURE_TIME], ifd[EXIF_F_NUMBER], ifd[EXIF_ISO] = 0.01 * (number + 1), 2.0, 100
        with Image.open(path) as image:
            image.save(path, exif=exif)
    options = LoadOptions(hold_out=3)
    scene = sources.load_scene(folder, ["train", "test"], options)
    for split in (scene.train, scene.test):
        numbers = [int(Path(name).stem.removeprefix("p")) for name in split.names]
        expected = [0.25 * (number + 1) for number in numbers]
        np.testing.assert_allclose(split.exposures, expected, rtol=1e-5)
    half = sources.load_scene(folder, ["train"], dataclasses.replace(options, downscale=2)).train
    np.testing.assert_array_equal(half.exposures, scene.train.exposures)
    with Image.open(paths[1]) as image:
        image.save(paths[1], exif=Image.Exif())
    assert sources.load_scene(folder, ["train"], options).train.exposures is None


def test_swapped_width_and_height_are_named(tmp_path: Path) -> None:
    folder = write_mixed(tmp_path)
    edit(folder, lambda content: [f.update(w=f["h"], h=f["w"]) for f in content["frames"]])
    with pytest.raises(InputError, match="swap its width and height"):
        sources.load_scene(folder, ["train"])


@every_format
def test_the_hold_out_is_an_option_of_every_format(name: str, tmp_path: Path) -> None:
    folder = FORMATS[name](tmp_path)
    scene = sources.load_scene(folder, ["train", "val", "test"], LoadOptions(hold_out=3))
    assert scene.test.names == scene.val.names == ("p0", "p3")
    assert scene.train.names == ("p1", "p2", "p4", "p5")


@pytest.mark.parametrize("write", [lambda path: write_scene(path / "ball"), write_deepvoxels])
def test_without_test_images_some_of_training_are_held_out(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = write(tmp_path)
    for name in ("val", "test", "validation"):
        (folder / f"transforms_{name}.json").unlink(missing_ok=True)
        if (folder / name).is_dir():
            (folder / name).rename(folder / f"other_{name}")
    scene = sources.load_scene(folder, ["train", "test"], LoadOptions(hold_out=3))
    assert len(scene.test) == 2 and len(scene.train) == 4
    assert not {*scene.test.names} & {*scene.train.names}


def test_test_cameras_without_images_are_named_and_not_used(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "ball")
    for path in (folder / "test").iterdir():
        path.unlink()
    (folder / "transforms_val.json").unlink(missing_ok=True)
    scene = sources.load_scene(folder, ["train", "test"])
    assert len(scene.test) == 1
    assert any("Not used: the 2 cameras of transforms_test.json" in note for note in scene.notes)
    assert any("held out (--hold-out)" in note for note in scene.notes)


@every_format
def test_masks_beside_images_are_used_in_every_format(name: str, tmp_path: Path) -> None:
    folder = FORMATS[name](tmp_path)
    used = np.zeros((16, 16), bool)
    used[4:, 3:] = True
    (folder / "masks").mkdir()
    for number, name in enumerate(view_names()):
        suffix = ".png.png" if number % 2 else ".png"
        if name != "p5":
            Image.fromarray(np.uint8(255 * used)).save(folder / "masks" / f"{name}{suffix}")
    scene = sources.load_scene(folder, ["train", "test"])
    assert scene.train.masks is not None
    for name, mask in zip(scene.train.names, scene.train.masks, strict=True):
        np.testing.assert_array_equal(mask, np.ones_like(used) if name == "p5" else used)
    assert any("Masks: 5 of 6 images have one" in note for note in scene.notes)
    assert sources.load_scene(folder, ["train"], LoadOptions(masks=False)).train.masks is None


def test_dynamic_masks_leave_their_white_pixels_out(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path, ".png")
    moving = np.zeros((16, 16), bool)
    moving[5:9, 2:7] = True
    for name in view_names():
        path = folder / "images" / f"dynamic_mask_{name}.png"
        Image.fromarray(np.uint8(255 * moving)).save(path)
    scene = sources.load_scene(folder, ["train"])
    assert scene.train.masks is not None
    np.testing.assert_array_equal(scene.train.masks[0], ~moving)
    assert not any("without a pose" in note for note in scene.notes)


@every_format
def test_images_without_a_pose_are_named(name: str, tmp_path: Path) -> None:
    folder = FORMATS[name](tmp_path)
    if name == "llff":
        return  # It pairs poses and images by their order, so more images are refused.
    save_images(folder / "images", ["x1"])
    scene = sources.load_scene(folder, ["train"])
    assert any("Not used: 1 image in" in n and "(x1.png)" in n for n in scene.notes)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_poses_are_named_as_such(count: int, tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    edit(folder, lambda content: content.update(frames=content["frames"][:count]))
    word = "1 image" if count == 1 else "2 images"
    with pytest.raises(InputError, match=f"has poses for only {word}, which is too little"):
        sources.load_scene(folder, ["test"])


def test_the_largest_model_is_used_and_the_others_are_named(tmp_path: Path) -> None:
    folder = write_colmap(tmp_path, text=True)
    large, small = folder / "sparse" / "0", folder / "sparse" / "1"
    small.mkdir()
    for name in ("cameras.txt", "points3D.txt"):
        (small / name).write_bytes((large / name).read_bytes())
    lines = (large / "images.txt").read_text().splitlines()
    (small / "images.txt").write_text("\n".join(lines[:7]) + "\n")
    large.rename(folder / "sparse" / "2")
    scene = sources.load_scene(folder, ["train", "test"])
    assert len(scene.train) + len(scene.test) == 6
    assert scene.notes[0].startswith("Used: the model sparse/2 of 6 images, the largest; not used:")
    assert "sparse/1 (3 images)" in scene.notes[0]


def test_newer_lenses_of_colmap_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_colmap(
        tmp_path, "RAD_TAN_THIN_PRISM_FISHEYE", 11, [20.0, 20.0, 8.0, 8.0] + 12 * [0.0]
    )
    with pytest.raises(InputError, match="lens RAD_TAN_THIN_PRISM_FISHEYE, which is not read"):
        sources.load_scene(folder, ["train"])


def test_small_images_of_another_format_are_found(tmp_path: Path) -> None:
    folder = write_colmap(tmp_path)
    for path in (folder / "images").glob("*.png"):
        with Image.open(path) as image:
            small = image.resize((8, 8), Image.Resampling.BOX)
            small_path = folder / "images_2" / f"{path.stem}.webp"
            small_path.parent.mkdir(exist_ok=True)
            small.save(small_path, lossless=True)
            image.convert("RGB").save(path.with_suffix(".jpg"))
        path.unlink()
    scene = sources.load_scene(folder, ["train"], LoadOptions(downscale=2))
    assert scene.train.images.shape[1:3] == (8, 8)
    np.testing.assert_allclose(scene.train.cameras.focal * 2, true_cameras().focal[:5], rtol=1e-6)
    full = sources.load_scene(folder, ["train"], LoadOptions(downscale=4))
    assert full.train.images.shape[1:3] == (4, 4)


def test_intrinsics_of_instant_ngp_are_read_in_the_blender_layout(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "ball")
    for name in ("train", "val", "test"):
        if (folder / f"transforms_{name}.json").exists():
            numbers = {
                "fl_x": 20.0,
                "fl_y": 21.0,
                "cx": 7.0,
                "cy": 9.0,
                "w": 16,
                "h": 16,
                "k1": 0.1,
            }
            edit(folder, lambda content, n=numbers: content.update(n), f"transforms_{name}.json")
    cameras = sources.load_scene(folder, ["train"]).train.cameras
    np.testing.assert_allclose(cameras.focal[0], [20.0, 21.0])
    np.testing.assert_allclose(cameras.principal_point[0], [7.0, 9.0])
    assert cameras.distortion is not None and cameras.distortion[0, 0] == np.float32(0.1)


def test_k4_without_the_rational_model_is_the_factor_of_r8(tmp_path: Path) -> None:
    numbers = {"camera_model": "OPENCV", "k1": -0.04, "k2": 0.03, "k3": -0.1, "k4": 0.05}
    cameras = sources.load_scene(write_transforms(tmp_path, **numbers), ["train"]).train.cameras
    assert cameras.distortion is not None
    rays = image_rays(cameras, 0, 1.0, 2.0)
    local = np.asarray(rays.directions, np.float64) @ np.asarray(cameras.T_world_camera)[0, :3, :3]
    point = local[..., :2] * np.array([1.0, -1.0]) / -local[..., 2:]
    square = np.sum(point**2, axis=-1, keepdims=True)
    bent = point * (1 - 0.04 * square + 0.03 * square**2 - 0.1 * square**3 + 0.05 * square**4)
    columns, rows = np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5)
    pixels_ = bent * np.asarray(cameras.focal)[0] + 8.0
    np.testing.assert_allclose(pixels_, np.stack([columns, rows], -1), atol=1e-3)


def test_a_camera_far_away_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path, ".png")
    before = sources.load_scene(folder, ["train"])

    def change(content: dict[str, Any]) -> None:
        frame = content["frames"][0] | {"file_path": "images/far.png"}
        pose = np.array(frame["transform_matrix"])
        pose[:3, 3] += 3000.0
        content["frames"].append(frame | {"transform_matrix": pose.tolist()})

    save_images(folder / "images", ["far"])
    edit(folder, change)
    scene = sources.load_scene(folder, ["train"], LoadOptions(hold_out=8))
    assert scene.frame.scale == pytest.approx(before.frame.scale)
    assert any("Left out: 1 image (far.png)" in note for note in scene.notes)
    assert "far" not in scene.train.names


def test_the_listing_itself_stands_for_its_folder(tmp_path: Path) -> None:
    for path in (write_transforms(tmp_path / "a") / "transforms.json",
                 write_llff(tmp_path / "b") / "poses_bounds.npy",
                 write_scene(tmp_path / "c") / "transforms_train.json"):  # fmt: skip
        assert sources.find_data(path) == path.parent


def test_square_photos_are_turned_but_for_colmap_which_ignores_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for name, turned in (("transforms", True), ("colmap", False)):
        folder = FORMATS[name](tmp_path / name)
        before = sources.load_scene(folder, ["train"]).train.images
        for path in (folder / "images").iterdir():
            with Image.open(path) as image:
                image.load()
            image.save(path, exif=exif)
        after = sources.load_scene(folder, ["train"]).train.images
        expected = np.rot90(before, -1, axes=(1, 2)) if turned else before
        np.testing.assert_array_equal(after, expected)


def test_poses_of_llff_belong_to_the_images_that_colmap_placed(tmp_path: Path) -> None:
    folder = write_llff(tmp_path)
    write_colmap(tmp_path, text=True)
    save_images(folder / "images", ["p2b"])
    scene = sources.load_scene(folder, ["train", "test"])
    assert "p2b" not in {*scene.train.names, *scene.test.names}
    assert any("(p2b.png)" in note for note in scene.notes)


def test_folders_that_are_not_read_are_named(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    (folder / "depths").mkdir()
    assert "Not used: depths, as no file lists" in " ".join(
        sources.load_scene(folder, ["train"]).notes
    )


@pytest.mark.parametrize("place", [".", "photos/small", "images_4"])
def test_images_that_lie_elsewhere_are_found_by_their_names(place: str, tmp_path: Path) -> None:
    expected = sources.load_scene(write_transforms(tmp_path / "right", ".png"), ("train",))
    folder = write_transforms(tmp_path / "moved", ".png")
    (folder / place).mkdir(parents=True, exist_ok=True)
    for image in sorted((folder / "images").iterdir()):
        image.rename(folder / place / image.name)
    scene = sources.load_scene(folder, ("train",))
    np.testing.assert_array_equal(scene.splits["train"].images, expected.splits["train"].images)
    assert any("not where it says (images/" in note for note in scene.notes), scene.notes


def test_of_several_sizes_elsewhere_the_largest_is_taken(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path / "scene", ".png")
    shutil.copytree(folder / "images", folder / "images_2")
    (folder / "images").rename(folder / "images_10")
    assert sources.load_scene(folder, ("train",)).splits["train"].paths[0].startswith("images_2/")


def test_images_of_the_same_names_in_several_folders_are_ambiguous(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path / "scene", ".png")
    shutil.copytree(folder / "images", folder / "output" / "gt")
    (folder / "images").rename(folder / "output" / "renders")
    with pytest.raises(InputError, match=r"several folders .*output/gt, output/renders"):
        sources.load_scene(folder, ("train",))


def test_of_several_folders_the_one_with_images_of_the_declared_size_is_taken(
    tmp_path: Path,
) -> None:
    folder = write_transforms(tmp_path / "scene", ".png")
    (folder / "images").rename(folder / "photos")
    (folder / "undistorted").mkdir()
    for path in (folder / "photos").iterdir():
        Image.open(path).resize((17, 17)).save(folder / "undistorted" / path.name)
    scene = sources.load_scene(folder, ("train",))
    assert scene.train.paths[0].startswith("photos/")


def test_a_few_images_of_the_same_names_are_no_substitute(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path / "scene", ".png")
    images = sorted((folder / "images").iterdir())
    images[0].rename(folder / images[0].name)
    shutil.rmtree(folder / "images")
    with pytest.raises(InputError, match="None of the images"):
        sources.load_scene(folder, ("train",))


def test_images_of_another_split_or_camera_are_no_substitute(tmp_path: Path) -> None:
    blender = write_scene(tmp_path / "ball")
    shutil.rmtree(blender / "train")
    with pytest.raises(InputError, match="None of the images"):
        sources.load_scene(blender, ("train",))
    folder = write_transforms(tmp_path / "cameras", ".png")

    def rename(content: dict[str, Any]) -> None:
        for index, frame in enumerate(content["frames"]):
            frame["file_path"] = f"camera_{index % 2}/p{index // 2}.png"

    edit(folder, rename)
    with pytest.raises(InputError, match="None of the images"):
        sources.load_scene(folder, ("train",))


@pytest.mark.parametrize(
    ("size", "factor"), [((1600, 900), 1), ((1601, 900), 2), ((900, 4900), 4), ((64, 48), 1)]
)
def test_large_images_are_shrunk_unless_told_otherwise(
    size: tuple[int, int], factor: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    poses = make_scene().train.cameras.T_world_camera
    frames = []
    for index in range(3):
        Image.fromarray(coarse + index).resize(size).save(tmp_path / f"images/{index}.png")
        pose = np.asarray(poses[index], np.float64).tolist()
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": pose})
    content = {"fl_x": 1000.0, "w": size[0], "h": size[1], "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    scene = sources.load_scene(tmp_path, ("train",))
    asked = sources.load_scene(tmp_path, ("train",), LoadOptions(downscale=factor))
    np.testing.assert_array_equal(scene.train.images, asked.train.images)
    np.testing.assert_array_equal(scene.train.cameras.focal, asked.train.cameras.focal)
    assert scene.train.images.shape[1:3] == (size[1] // factor, size[0] // factor)
    said = [note for note in scene.notes if f"--downscale {factor};" in note]
    assert len(said) == (factor > 1)
    whole = sources.load_scene(tmp_path, ("train",), LoadOptions(downscale=1))
    assert whole.train.images.shape[1:3] == (size[1], size[0])

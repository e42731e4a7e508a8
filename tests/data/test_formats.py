"""Readers: the rays of every format are those of the cameras that it was written with."""

import dataclasses
import io
import json
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from data_formats import (
    METASHAPE_LENS,
    ORDER,
    POINTS,
    check_rays,
    true_cameras,
    view_names,
    write_alicevision,
    write_colmap,
    write_deepvoxels,
    write_llff,
    write_metashape,
    write_multiscale,
    write_nsvf,
    write_opensfm,
    write_polycam,
    write_reality_capture,
    write_record3d,
    write_rig,
    write_tiny_nerf,
    write_transforms,
)
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scenes import RADIUS, make_scene, write_scene

from jaxrf.cameras.base import Cameras, image_rays, pixels_to_rays, project
from jaxrf.cameras.lenses import COEFFICIENTS
from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import (
    center_and_scale,
    invert_transform,
    transform_poses,
    transform_positions,
)
from jaxrf.core.errors import InputError
from jaxrf.data import alicevision, colmap, colmap_files, llff, record3d, sources
from jaxrf.data.frames import ALL
from jaxrf.data.options import LoadOptions
from jaxrf.data.photos.prepare import PhotoOptions
from jaxrf.data.scene import Split, composite
from jaxrf.data.tiny_nerf import divide_views
from jaxrf.evaluation.scoring import score_split
from jaxrf.rendering.image import HostRendering
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import pixel_filter, pixels

# Of six views in the order of their names the first is held out.
TRAIN, TEST = list(ORDER[1:]), list(ORDER[:1])
WRITERS: dict[str, Callable[[Path], Path]] = {
    "transforms": write_transforms,
    "llff": write_llff,
    "colmap": write_colmap,
    "deepvoxels": write_deepvoxels,
    "tiny_nerf": lambda path: write_tiny_nerf(path / "ball.npz"),
    "blender": lambda path: write_scene(path / "ball"),
    "multiscale": write_multiscale,
    "nsvf": write_nsvf,
    "polycam": write_polycam,
    "record3d": write_record3d,
    "metashape": write_metashape,
    "rig": write_rig,
    "alicevision": write_alicevision,
    "opensfm": write_opensfm,
    "reality_capture": write_reality_capture,
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_format_is_detected_and_described(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path)
    scene = sources.load_scene(path, ["train", "val", "test"])
    # To look without decoding any image.
    nothing = sources.load_scene(path, ["test"], choose=lambda count: range(0))
    assert len(nothing.splits["test"]) == 0
    text = sources.describe_scene(path, scene)
    assert "16x16 pixels" in text and "views" in text and "\n" not in text
    for split in scene.splits.values():
        assert split.images.shape[1:] == (16, 16, 4) and len(split) == len(split.cameras) > 0
    small = sources.load_scene(path, ["train"], LoadOptions(downscale=2))
    assert small.splits["train"].images.shape[1:] == (8, 8, 4)
    some = sources.load_scene(path, ["test"], choose=lambda count: [count - 1])
    assert len(some.splits["test"]) == 1
    assert some.splits["test"].names == scene.splits["test"].names[-1:]


def test_unknown_format_is_rejected_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data set.*transforms_train\.json.*poses_bounds\.npy"):
        sources.load_scene(tmp_path, ["train"])
    with pytest.raises(InputError, match="There is no folder"):
        sources.load_scene(tmp_path / "none", ["train"])


# Exports of other programs


@pytest.mark.parametrize("corrected", [False, True])
def test_polycam_rays_equal_true_rays(corrected: bool, tmp_path: Path) -> None:
    folder = write_polycam(tmp_path / "scan", corrected)
    # A folder around it, as unpacking makes, and the one inside will do.
    for path in (folder, tmp_path, folder / "keyframes"):
        scene = sources.load_scene(path, ["train", "test"])
        check_rays(scene, "train", true_cameras(), TRAIN)
        check_rays(scene, "test", true_cameras(), TEST)
    assert scene.unbounded or scene.notes


@pytest.mark.parametrize("write", [write_polycam, write_nsvf])
def test_folders_of_two_data_sets_are_not_photos(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    for name in ("scan1", "scan2"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    with pytest.raises(InputError, match=r"2 data sets: give one, such as .*scan1"):
        sources.ensure_poses(tmp_path, PhotoOptions())


def test_polycam_cameras_without_images_and_depth_maps(tmp_path: Path) -> None:
    folder = write_polycam(tmp_path, corrected=False)
    (folder / "keyframes" / "images" / "p1.jpg").unlink()
    (folder / "keyframes" / "depth").mkdir()
    depth = np.full((8, 8), 4000, np.uint16)
    Image.fromarray(depth).save(folder / "keyframes" / "depth" / "p2.png")
    scene = sources.load_scene(folder, ["train", "test"], LoadOptions(depth=True))
    assert "Not used: 1 camera without an image (p1.json)." in scene.notes
    assert scene.splits["train"].names == ("p2", "p3", "p4", "p5")
    known = scene.splits["train"].known_depth
    assert known is not None and set(known.image.tolist()) == {0}
    # Along rays beside the axis it is a little longer.
    assert known.distance.min() == pytest.approx(4.0 * scene.frame.scale, rel=5e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fx": None}, "has no fx"),
        ({"fx": -1.0}, "focal length"),
        ({"width": 20}, "another aspect ratio"),
        ({"t_11": "x"}, "t_00 to t_23.* finite number"),
        ({"t_00": 5.0}, "not a rotation"),
    ],
)
def test_polycam_mistakes_are_explained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_polycam(tmp_path)
    camera = folder / "keyframes" / "corrected_cameras" / "p3.json"
    camera.write_text(json.dumps(json.loads(camera.read_text()) | changes))
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(folder, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("matrix", [False, True])
def test_nsvf_rays_equal_true_rays(matrix: bool, tmp_path: Path) -> None:
    scene = sources.load_scene(write_nsvf(tmp_path, matrix), ["train", "val", "test"])
    check_rays(scene, "train", true_cameras(), list(ORDER[:3]))
    check_rays(scene, "val", true_cameras(), list(ORDER[3:5]))
    check_rays(scene, "test", true_cameras(), list(ORDER[5:]))
    assert not scene.unbounded
    np.testing.assert_allclose(scene.aabb, [[-1.2] * 3, [1.2] * 3], rtol=1e-6)


def test_nsvf_without_box_or_splits_holds_every_8th_out(tmp_path: Path) -> None:
    folder = write_nsvf(tmp_path, prefixes="000000")
    (folder / "bbox.txt").unlink()
    (folder / "rgb" / "0_p4.png").unlink()
    scene = sources.load_scene(folder, ["train", "test"])
    assert scene.splits["test"].names == ("0_p0",)
    assert scene.splits["train"].names == ("0_p1", "0_p2", "0_p3", "0_p5")
    assert "Not used: 1 pose without an image (0_p4)." in scene.notes


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("intrinsics.txt", "1 2 3 4 5\n", "neither a matrix"),
        ("intrinsics.txt", "-3.0\n", "focal length"),
        ("intrinsics.txt", "9 8 8 0\n0 0\n", "height or width"),
        ("bbox.txt", "1 1 1 0 0 0\n", "low and the high corner"),
        ("bbox.txt", "0 0 0 1\n", "low and the high corner"),
        ("bbox.txt", "a box", "only numbers"),
        ("pose/0_p1.txt", "1 2 3\n", "4 rows of 4"),
    ],
)
def test_nsvf_mistakes_are_explained(file: str, text: str, message: str, tmp_path: Path) -> None:
    folder = write_nsvf(tmp_path)
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(folder, ["train"])
    assert "\n" not in str(caught.value)


def test_record3d_rays_equal_true_rays(tmp_path: Path) -> None:
    folder = write_record3d(tmp_path)
    listing = folder / "metadata.json"
    assert sources.find_data(listing) == folder
    for changes in ({}, {"perFrameIntrinsicCoeffs": [[20.0, 21.0, 7.0, 9.0]] * 6}):
        listing.write_text(json.dumps(json.loads(listing.read_text()) | changes))
        scene = sources.load_scene(folder, ["train", "test"])
        cameras = scene.splits["train"].cameras
        if changes:
            np.testing.assert_allclose(cameras.focal, [[20.0, 21.0]] * 5)
            np.testing.assert_allclose(cameras.principal_point, [[7.0, 9.0]] * 5)
        else:
            check_rays(scene, "train", true_cameras(), [1, 2, 3, 4, 5])
            check_rays(scene, "test", true_cameras(), [0])


def test_record3d_uses_some_of_many_frames_and_names_images_without_a_pose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_record3d(tmp_path, count=14)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "rgb" / "99.jpg")
    monkeypatch.setattr(record3d, "MAX_FRAMES", 5)
    scene = sources.load_scene(folder, ["train"])
    assert scene.splits["train"].names == ("3", "6", "9", "12")
    assert "Used: one in 3 of the 14 frames." in scene.notes
    assert "Not used: 1 image without a pose (99.jpg)." in scene.notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poses": []}, "no list poses"),
        ({"poses": [[0.0] * 7] * 6}, "unit quaternion"),
        ({"poses": [[0.0] * 6] * 6}, "not 7 finite numbers"),
        ({"K": [1, 2]}, "not 9 finite numbers"),
        ({"K": [0.0] * 9}, "focal length"),
    ],
)
def test_record3d_mistakes_are_explained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    listing = write_record3d(tmp_path) / "metadata.json"
    listing.write_text(json.dumps(json.loads(listing.read_text()) | changes))
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(tmp_path, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".jpg", ".JPG"])
def test_metashape_rays_equal_true_rays(suffix: str, tmp_path: Path) -> None:
    folder = write_metashape(tmp_path, suffix=suffix)
    assert sources.find_data(folder / "block.xml") == folder
    scene = sources.load_scene(folder, ["train", "test"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    check_rays(scene, "test", true_cameras(), TEST)


@pytest.mark.parametrize("kind", ["frame", "fisheye"])
def test_metashape_lens_is_that_of_its_manual(kind: str, tmp_path: Path) -> None:
    lens = METASHAPE_LENS + "<cx>1.0</cx><cy>-2.0</cy><b1>0.5</b1>"
    cameras = sources.load_scene(write_metashape(tmp_path, lens, kind), ["train"]).train.cameras
    focal = 2.0 * float(true_cameras().focal[0, 0])
    points = np.array([[0.3, -0.2, 1.0], [-0.1, 0.25, 1.0], [0.0, 0.0, 1.0]])
    for index in range(len(cameras)):
        # x right, y down, z forwards.
        pose = np.asarray(cameras.T_world_camera[index], np.float64) @ np.diag([1, -1, -1, 1])
        pixels, _ = project(cameras, index, points @ pose[:3, :3].T + pose[:3, 3])
        x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
        if kind == "fisheye":
            radius = np.maximum(np.hypot(x, y), 1e-12)
            x, y = x * np.arctan(radius) / radius, y * np.arctan(radius) / radius
        r2 = x**2 + y**2
        radial = 1.0 + 0.05 * r2 - 0.01 * r2**2 + 0.002 * r2**4
        p1, p2 = 0.001, -0.003
        bent_x = x * radial + p1 * (r2 + 2 * x**2) + 2 * p2 * x * y
        bent_y = y * radial + p2 * (r2 + 2 * y**2) + 2 * p1 * x * y
        u = 16.0 + 1.0 + (focal + 0.5) * bent_x
        v = 16.0 - 2.0 + focal * bent_y
        # Images are half as large as the calibration says.
        np.testing.assert_allclose(pixels, np.stack([u, v], -1) / 2.0, atol=2e-3)


def test_metashape_reads_calibrations_of_its_first_versions_as_opencv_has_them(
    tmp_path: Path,
) -> None:
    folder = write_metashape(tmp_path, "<k1>0.05</k1><p1>0.001</p1><p2>-0.003</p2>")
    listing = folder / "block.xml"
    focal = 2.0 * float(true_cameras().focal[0, 0])
    old = f"<fx>{focal + 1.0}</fx><fy>{focal}</fy><cx>17.0</cx><cy>14.0</cy>"
    listing.write_text(listing.read_text().replace(f"<f>{focal}</f>", old))
    cameras = sources.load_scene(folder, ["train"]).train.cameras
    np.testing.assert_allclose(cameras.focal[0], [0.5 * focal + 0.5, 0.5 * focal], rtol=1e-6)
    np.testing.assert_allclose(cameras.principal_point[0], [8.5, 7.0])
    assert cameras.distortion is not None
    by_key = dict(zip(COEFFICIENTS["perspective"], cameras.distortion[0], strict=True))
    assert by_key["p1"] == pytest.approx(0.001) and by_key["p2"] == pytest.approx(-0.003)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_rigs_of_metashape_are_placed_by_their_master(scale: float, tmp_path: Path) -> None:
    scene = sources.load_scene(write_rig(tmp_path, scale), ["train", "test"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    check_rays(scene, "test", true_cameras(), TEST)
    assert not any("without a pose" in note for note in scene.notes)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<rotation>", "<turn>", "not complete XML"),
        ("<location>", "<location>1 ", "has no location in its rig"),
        ("<rotation>", "<rotation>9 ", "has no rotation in its rig"),
        ("<scale>", "<scale>-", "scale of the transform"),
    ],
)
def test_mistakes_in_rigs_are_explained(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    listing = write_rig(tmp_path) / "block.xml"
    listing.write_text(listing.read_text().replace(before, after))
    with pytest.raises(InputError, match=message):
        sources.load_scene(tmp_path, ["train"])


def test_metashape_says_what_it_does_not_use(tmp_path: Path) -> None:
    extra = '<camera id="9" sensor_id="3" label="lost"/>'
    scene = sources.load_scene(write_metashape(tmp_path, "<b2>3.0</b2>", extra=extra), ["train"])
    assert "Not used: 1 camera without a pose or disabled (lost)." in scene.notes
    assert any(note.startswith("Left out: b2 of Sensor 3") for note in scene.notes)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<document", "<!DOCTYPE a><document", "declares a document type"),
        ("</document>", "", "not complete XML"),
        ('type="frame"><res', 'type="spherical"><res', "spherical, which is not read"),
        ('sensor_id="3"', 'sensor_id="7"', "has no sensor"),
        ('label="p1"', 'label="p0"', "two cameras with the label p0"),
        ("<transform>", "<transform>nine ", "not made of numbers"),
        ("<transform>", "<transform>9 ", "not 16 numbers"),
        ("<transform>", "<other>", "not complete XML"),
        ('width="32"', 'width="0"', "no width and height"),
        ("<f>", "<f>-", "focal length"),
        ('label="p', 'label="q', "None of the images"),
    ],
)
def test_metashape_mistakes_are_explained(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    listing = write_metashape(tmp_path) / "block.xml"
    text = listing.read_text()
    assert before in text
    listing.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(tmp_path, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [("1", "0", "0"), ("1", "2", "3"), ("1", "2", "6")])
def test_meshroom_rays_and_lens_are_those_of_alicevision(
    version: tuple[str, ...], tmp_path: Path
) -> None:
    folder = write_alicevision(tmp_path, version)
    assert sources.find_data(folder / "cameras.sfm") == folder
    scene = sources.load_scene(folder, ["train", "test"])
    assert "Not used: 1 view without a pose (lost.jpg)." in scene.notes
    cameras, true = scene.train.cameras, true_cameras()
    back = invert_transform(scene.frame)
    poses = transform_poses(back, np.asarray(cameras.T_world_camera))
    np.testing.assert_allclose(poses, true.T_world_camera[np.array(TRAIN)], atol=1e-5)
    focal = float(true.focal[0, 0])
    down = focal if version == ("1", "0", "0") else 2.0 * focal
    np.testing.assert_allclose(cameras.focal[0], [focal, down], rtol=1e-6)
    np.testing.assert_allclose(cameras.principal_point[0], [8.5, 7.0])
    assert cameras.distortion is not None
    by_key = dict(zip(COEFFICIENTS["perspective"], cameras.distortion[0], strict=True))
    assert {key: round(float(value), 6) for key, value in by_key.items() if value} == {
        "k1": 0.05, "k2": -0.01, "k3": 0.002,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"radial3"', '"equidistant"', "lens .equidistant., which is not one of"),
        ('"1", "2", "6"', '"1", "x", "6"', "version of .* 3 finite numbers"),
        ('"width": "32"', '"width": "0"', "no width and height"),
        ('"sensorWidth": "8"', '"sensorWidth": "0"', "no width of its sensor"),
        ('"intrinsicId": "7", "width"', '"intrinsicId": "8", "width"', "no intrinsics"),
        ('"rotation": ["', '"rotation": ["9', "not a rotation"),
        ('"poses"', '"pose"', "no list poses"),
        ('"poses": [', '"poses": [], "others": [', "no view with a pose"),
        ('"0.002"', "null", "3 finite numbers"),
    ],
)
def test_meshroom_mistakes_are_explained(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    listing = write_alicevision(tmp_path) / "cameras.sfm"
    text = listing.read_text()
    assert before in text
    listing.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(tmp_path, ["train"])
    assert "\n" not in str(caught.value)


def test_cameras_of_meshroom_in_several_folders_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_alicevision(tmp_path / name)
    assert alicevision.find_cameras(tmp_path) is None
    assert alicevision.find_cameras(tmp_path / "a") == tmp_path / "a" / "cameras.sfm"
    (tmp_path / "b" / "cameras.sfm").unlink()
    assert alicevision.find_cameras(tmp_path) == tmp_path / "a" / "cameras.sfm"


def test_opensfm_rays_equal_true_rays(tmp_path: Path) -> None:
    folder = write_opensfm(tmp_path)
    scene = sources.load_scene(folder, ["train", "test"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    check_rays(scene, "test", true_cameras(), TEST)
    assert any(note.startswith("Used: the largest of 2 reconstructions") for note in scene.notes)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("brown", ("k1", "k2", "k3", "p1", "p2")), ("fisheye_opencv", ("k1", "k2", "k3", "k4"))],
)
def test_opensfm_lenses_are_in_units_of_the_longer_side(
    kind: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    values = dict(zip(keys, (0.05, -0.01, 0.002, 0.001, -0.003), strict=False))
    camera = {"projection_type": kind, "width": 32, "height": 32, "focal_x": 1.5, "focal_y": 1.25}
    camera |= {"c_x": 0.03125, "c_y": -0.0625, **values}
    cameras = sources.load_scene(write_opensfm(tmp_path, camera), ["train"]).train.cameras
    np.testing.assert_allclose(cameras.focal[0], [24.0, 20.0])
    np.testing.assert_allclose(cameras.principal_point[0], [8.5, 7.0])
    assert cameras.distortion is not None
    by_key = dict(zip(COEFFICIENTS[cameras.lens], cameras.distortion[0], strict=True))
    assert {key: round(float(value), 6) for key, value in by_key.items() if value} == values


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"perspective"', '"spherical"', "projection .spherical., which is not one of"),
        ('"width": 32', '"width": 0', "no width and height"),
        ('"camera": "phone"', '"camera": "none"', "has no camera"),
        ('"camera": "phone"', '"camera": ["a"]', "has no camera"),
        ('"rotation": [', '"rotation": [1, ', "not 3 finite numbers"),
        ('"shots"', '"shot"', "no reconstruction with shots"),
        ('"focal": ', '"focal": -', "focal length"),
    ],
)
def test_opensfm_mistakes_are_explained(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    listing = write_opensfm(tmp_path) / "opensfm" / "reconstruction.json"
    text = listing.read_text()
    assert before in text
    listing.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(tmp_path, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["px,py,k1,k2,k3,k4,t1,t2", ""])
def test_reality_capture_rays_equal_true_rays(header: str, tmp_path: Path) -> None:
    folder = write_reality_capture(tmp_path, header)
    assert sources.find_data(folder / "cameras.csv") == folder
    scene = sources.load_scene(folder, ["train", "test"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    check_rays(scene, "test", true_cameras(), TEST)


def test_reality_capture_angles_and_lens_are_those_of_its_table(tmp_path: Path) -> None:
    listing = write_reality_capture(tmp_path) / "cameras.csv"
    rows = [
        # Without angles a camera looks down; pitch lifts it to the north, heading is clockwise.
        f"{name}.jpg,{5 * view},2,{3 + view % 2},90,90,0,27,0.03125,-0.0625,.1,.2,.3,.4,.5,.6"
        for view, name in enumerate(view_names())
    ]
    header = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"
    listing.write_text("\n".join([header, *rows]))
    scene = sources.load_scene(tmp_path, ["train"])
    cameras = scene.train.cameras
    pose = transform_poses(invert_transform(scene.frame), np.asarray(cameras.T_world_camera))[0]
    np.testing.assert_allclose(-pose[:3, 2], [1.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(pose[:3, 1], [0.0, 0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(cameras.focal[0], [12.0, 12.0])
    np.testing.assert_allclose(cameras.principal_point[0], [8.5, 7.0])
    assert cameras.distortion is not None
    by_key = dict(zip(COEFFICIENTS["perspective"], cameras.distortion[0], strict=True))
    assert {key: round(float(value), 6) for key, value in by_key.items() if value} == {
        "k1": 0.1, "k2": 0.2, "k3": 0.3, "r8": 0.4, "p1": 0.5, "p2": 0.6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,1,2,3,4,5,6,nan", "f of line 2 .* make it a finite number"),
        ("a.jpg,1,2", "alt of line 2 .* make it a finite number"),
        ("a.jpg,1,2,3,4,5,6,0", "focal length"),
        (",1,2,3,4,5,6,7", "not a file's name"),
        ("", "has no camera"),
    ],
)
def test_reality_capture_mistakes_are_explained(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cameras.csv").write_text(f"#name,x,y,alt,heading,pitch,roll,f\n{row}\n")
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(tmp_path, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", sorted(sources.FOREIGN_FILES))
def test_files_of_other_programs_are_answered_with_what_to_do(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=f"scan{suffix} cannot be trained on: ") as caught:
        sources.load_scene(sources.ensure_poses(path, PhotoOptions()), ["train"])
    assert str(caught.value).endswith((".", "photos.", "it.")) and "\n" not in str(caught.value)


# transforms.json


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_transforms_rays_equal_true_rays(suffix: str, tmp_path: Path) -> None:
    scene = sources.load_scene(write_transforms(tmp_path, suffix), ["train", "test"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    check_rays(scene, "test", true_cameras(), TEST)
    assert not scene.unbounded
    places = np.asarray(scene.splits["train"].cameras.T_world_camera)[:, :3, 3]
    assert np.abs(places).max() <= 1.0 + 1e-6
    truth = make_scene().splits["train"].images[TRAIN[0]]
    apart = np.abs(scene.splits["train"].images[0, ..., :3].astype(int) - truth[..., :3])
    assert np.mean(apart[truth[..., 3] == 255]) < 8


def test_transforms_frame_overrides_file(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path, camera_angle_x=0.1)
    listing = folder / "transforms.json"
    content = json.loads(listing.read_text())
    for index, frame in enumerate(content["frames"]):
        frame |= {"fl_x": 20.0 + index, "cx": 7.5}
    listing.write_text(json.dumps(content))
    cameras = sources.load_scene(folder, ["train"]).splits["train"].cameras
    np.testing.assert_allclose(cameras.focal[:, 0], [20.0 + view for view in TRAIN])
    np.testing.assert_allclose(cameras.focal[:, 1], true_cameras().focal[0, 1])
    np.testing.assert_allclose(cameras.principal_point, [[7.5, 8.0]] * 5)


def test_transforms_size_defaults_to_the_image(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path, w=None, h=None, cx=None, cy=None)
    check_rays(sources.load_scene(folder, ["train"]), "train", true_cameras(), TRAIN)


def test_transforms_lenses_distort_rays(tmp_path: Path) -> None:
    bent = {"k1": 0.05, "k2": -0.01, "p1": 0.001, "p2": -0.002}
    for number, (changes, lens) in enumerate(
        [(bent, "perspective"), (bent | {"camera_model": "OPENCV_FISHEYE"}, "fisheye")]
    ):
        folder = write_transforms(tmp_path / str(number), **changes)
        cameras = sources.load_scene(folder, ["train"]).splits["train"].cameras
        assert cameras.lens == lens and cameras.distortion is not None
        order = [0.05, -0.01, 0, 0, 0, 0, 0.001, -0.002, 0]
        order = order if lens == "perspective" else [0.05, -0.01, 0, 0, 0.001, -0.002, 0, 0]
        np.testing.assert_allclose(cameras.distortion[0], order, rtol=1e-6)
        rays = image_rays(cameras, 0, 1.0, 2.0)
        points = np.asarray(rays.origins + 2.0 * rays.directions, np.float64)
        pixels, _ = project(cameras, 0, points)
        columns, rows = np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5)
        np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=1e-3)


def test_transforms_filename_lists_give_the_splits(tmp_path: Path) -> None:
    name = "images/p{}.jpg".format
    folder = write_transforms(
        tmp_path,
        train_filenames=[name(1), name(2)],
        val_filenames=[name(0)],
        test_filenames=[name(3), name(4), name(5)],
    )
    scene = sources.load_scene(folder, ["train", "val", "test"])
    assert [split.names for split in scene.splits.values()] == [
        ("p1", "p2"), ("p0",), ("p3", "p4", "p5"),
    ]  # fmt: skip


def test_transforms_missing_images_are_rejected_or_skipped(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    (folder / "images" / "p2.jpg").unlink()
    with pytest.raises(InputError, match=r"p2\.jpg is missing"):
        sources.load_scene(folder, ["train"])
    scene = sources.load_scene(folder, ["train", "test"], LoadOptions(skip_missing=True))
    assert scene.splits["train"].names == ("p1", "p3", "p4", "p5")
    for image in (folder / "images").iterdir():
        image.unlink()
    with pytest.raises(InputError, match="None of the images"):
        sources.load_scene(folder, ["train"], LoadOptions(skip_missing=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fl_x": None, "fl_y": None}, "neither fl_x nor camera_angle_x"),
        ({"fl_x": float("nan")}, "fl_x of .* finite"),
        ({"fl_x": -3.0}, "focal length in pixels"),
        ({"h": 1e9}, "correct w and h"),
        ({"w": 40}, "another aspect ratio"),
        ({"frames": []}, "no list"),
        ({"frames": [3]}, "not an object"),
        ({"frames": [{"file_path": "a"}]}, "no transform_matrix"),
        ({"camera_model": "BOX"}, "not one of"),
        ({"camera_model": 5}, "not one of"),
        ({"k5": 0.5}, "FULL_OPENCV"),
        ({"k1": 1e9}, "beyond 1000"),
        ({"train_filenames": "all"}, "not a list"),
        ({"train_filenames": [".."]}, "names no file"),
        ({"train_filenames": []}, "no image to the split train"),
    ],
)
def test_transforms_mistakes_are_explained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_transforms(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(folder, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "images/../../x.png", ""])
def test_listings_cannot_leave_their_folder(path: str, tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    listing = folder / "transforms.json"
    content = json.loads(listing.read_text())
    content["frames"][0]["file_path"] = path
    listing.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"missing|names no file|not a file's name"):
        sources.load_scene(folder, ["train"])


@pytest.mark.parametrize("changes", [{}, {"scale": 0.25, "offset": [0.5, 0.25, 0.75]}])
def test_transforms_in_the_unit_cube_are_not_moved(changes: dict[str, Any], tmp_path: Path) -> None:
    scene = sources.load_scene(write_transforms(tmp_path, aabb_scale=1, **changes), ["train"])
    assert not scene.unbounded
    np.testing.assert_array_equal(scene.frame.rotation, np.eye(3))
    scale, offset = changes.get("scale", 0.33), np.array(changes.get("offset", [0.5] * 3))
    np.testing.assert_allclose(scale * scene.aabb + offset, [[0.0] * 3, [1.0] * 3], atol=1e-6)
    assert 0 < scene.near < 4.0 < scene.far
    check_rays(scene, "train", true_cameras(), TRAIN)


@pytest.mark.parametrize("level", [None, 255, 0, 128])
def test_silhouettes_give_the_box_of_the_visual_hull(level: int | None, tmp_path: Path) -> None:
    folder = write_transforms(tmp_path, ".png")
    for index, name in enumerate(view_names()):
        rgba = make_scene().splits["train"].images[index].copy()
        if level is not None:
            opacity = rgba[..., 3:] / 255.0
            rgba[..., :3] = np.rint(rgba[..., :3] * opacity + level * (1.0 - opacity))
            rgba[..., 3] = 255
        Image.fromarray(rgba).save(folder / "images" / f"{name}.png")
    scene = sources.load_scene(folder, ["train", "test"])
    assert any("before plain" in note for note in scene.notes) == (level in (255, 0))
    # A gray backdrop may be a wall.
    assert scene.unbounded == (level == 128)
    if scene.unbounded:
        return
    # The ball, and not much more: five images of 16 pixels carve a rough hull.
    low, high = transform_positions(
        invert_transform(scene.frame), np.asarray(scene.aabb, np.float64)
    )
    center, half = 0.5 * (low + high), 0.5 * np.abs(high - low)
    assert np.all(np.abs(center) < 0.5) and np.all(half > RADIUS) and np.all(half < 1.8 * RADIUS)
    splits = scene.splits.values()
    places = np.concatenate([np.asarray(s.cameras.T_world_camera)[:, :3, 3] for s in splits])
    corners = np.array(np.meshgrid(*scene.aabb.T)).reshape(3, -1).T
    away = np.linalg.norm(places[:, None] - corners[None], axis=-1)
    assert away.max() == pytest.approx(scene.far, rel=1e-5) and scene.near < away.min()


def test_masks_select_pixels_for_training_and_scoring(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    listing = folder / "transforms.json"
    content = json.loads(listing.read_text())
    masks = np.random.default_rng(0).uniform(size=(6, 16, 16)) < 0.7
    for index, frame in enumerate(content["frames"]):
        frame["mask_path"] = f"masks/{index}.png"
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.uint8(255 * masks[index])).save(folder / frame["mask_path"])
    listing.write_text(json.dumps(content))
    scene = sources.load_scene(folder, ["train", "test"])
    split = scene.splits["train"]
    np.testing.assert_array_equal(split.masks, masks[TRAIN])
    small = sources.load_scene(folder, ["train"], LoadOptions(downscale=2)).splits["train"].masks
    assert small is not None
    for y, x in np.ndindex(8, 8):
        unmasked = masks[TRAIN[0], 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].all()
        assert small[0, y, x] == unmasked

    dataset = pixels.to_device(split, (1, 2))
    sampled = np.asarray(dataset.pixel_ids)[: int(dataset.total)]
    all_masks = np.concatenate([masks[TRAIN].ravel(), small.ravel()])
    np.testing.assert_array_equal(sampled, np.flatnonzero(all_masks))
    assert int(dataset.starts[1]) == masks[TRAIN].sum()
    # Filtering by cells adds no masked pixel.
    box = jnp.asarray(scene.aabb)
    grid = OccupancyGrid(jnp.zeros((16, 16, 16), bool).at[8, 8, 8].set(True), box)
    filtered = pixel_filter.filter_pixels(dataset, grid, (scene.near, scene.far))
    hitting = np.asarray(filtered.pixel_ids)[: int(filtered.total)]
    assert 0 < len(hitting) < len(sampled) and set(hitting) <= set(sampled)

    truth = composite(scene.splits["test"].images, np.ones(3, np.float32))
    wrong = np.where(masks[TEST[0]][..., None], truth[0], 1.0 - truth[0])
    zeros = np.zeros((16, 16))
    (scored,) = score_split(
        lambda cameras, index: HostRendering(wrong, zeros, zeros, zeros),
        scene.splits["test"], np.ones(3, np.float32), [0],
    )  # fmt: skip
    assert scored.scores["psnr"] == np.inf and scored.scores["ssim"] == pytest.approx(1.0)


def test_mask_mistakes_are_explained(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    listing = folder / "transforms.json"
    content = json.loads(listing.read_text())
    content["frames"][0]["mask_path"] = "mask.png"
    listing.write_text(json.dumps(content))
    for frame in content["frames"]:
        frame["mask_path"] = "mask.png"
    listing.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"mask\.png is missing"):
        sources.load_scene(folder, ["train"])
    for image, message in (
        (np.ones((8, 16), np.uint8), "16x8 pixels, its image 16x16"),
        (np.zeros((16, 16), np.uint8), "is black"),
    ):
        Image.fromarray(image).save(folder / "mask.png")
        with pytest.raises(InputError, match=message):
            sources.load_scene(folder, ["train"])
    (folder / "mask.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="truncated or broken"):
        sources.load_scene(folder, ["train"])


# LLFF


def test_llff_rays_equal_true_rays(tmp_path: Path) -> None:
    scene = sources.load_scene(write_llff(tmp_path), ["train", "test"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    check_rays(scene, "test", true_cameras(), TEST)
    assert not scene.unbounded and scene.splits["train"].cameras.ndc is None


def test_llff_depths_that_are_all_zero_are_not_known(tmp_path: Path) -> None:
    folder = write_llff(tmp_path)
    table = np.load(folder / "poses_bounds.npy")
    table[:, 15:] = 0.0
    np.save(folder / "poses_bounds.npy", table)
    scene = sources.load_scene(folder, ["train"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    assert any(note.startswith("Not used: the depths") for note in scene.notes)
    assert 0.0 < scene.near < scene.far


def forward_poses() -> np.ndarray:
    rng = np.random.default_rng(5)
    target = np.array([1.0, 8.0, 0.5])
    return np.stack([look_at(rng.normal(0, 0.3, 3), target) for _ in ORDER])


def test_llff_forward_facing_scene_is_in_ndc(tmp_path: Path) -> None:
    poses = forward_poses()
    scene = sources.load_scene(write_llff(tmp_path, poses), ["train"])
    cameras = scene.splits["train"].cameras
    assert cameras.ndc is not None and not scene.unbounded
    np.testing.assert_allclose(cameras.ndc, [8.0 / 21.9] * 2 + [1.0], rtol=0.2)
    # Without the map they are the rays of the true cameras.
    plain = dataclasses.replace(scene.splits["train"].cameras, ndc=None)
    bare = dataclasses.replace(scene.splits["train"], cameras=plain)
    truth = dataclasses.replace(true_cameras(), T_world_camera=poses.astype(np.float32))
    check_rays(dataclasses.replace(scene, splits={"train": bare}), "train", truth, TRAIN)
    # All that any of them sees, from the near plane to infinity, lies in the box.
    for index in range(len(cameras)):
        rays = image_rays(cameras, index, 0.0, 1.0)
        for part in (0.0, 0.3, 1.0):
            points = np.asarray(rays.origins + part * rays.far[..., None] * rays.directions)
            assert np.all(points >= scene.aabb[0] - 1e-4)
            assert np.all(points <= scene.aabb[1] + 1e-4)
    # The nearest thing is behind the near plane.
    assert scene.frame.scale * 2.5 == pytest.approx(4 / 3)


def test_colmap_scene_that_faces_forward_is_in_ndc(tmp_path: Path) -> None:
    poses = forward_poses()
    poses[:, 1, 3] -= 6.0
    scene = sources.load_scene(write_colmap(tmp_path, matrices=poses), ["train"])
    assert scene.train.cameras.ndc is not None and not scene.unbounded
    # The nearest of the points is behind the near plane.
    depths = np.concatenate([(POINTS - pose[:3, 3]) @ -pose[:3, 2] for pose in poses])
    seen = np.sort(depths.reshape(-1, 3)[:, [0, 1]].ravel())
    assert scene.frame.scale * np.percentile(seen, 1.0) == pytest.approx(4 / 3, rel=0.02)
    in_space = sources.load_scene(tmp_path, ["train"], LoadOptions(ndc=False))
    assert in_space.train.cameras.ndc is None and in_space.unbounded


def test_llff_uses_images_of_the_requested_size(tmp_path: Path) -> None:
    folder = write_llff(tmp_path, images="images_4")
    for downscale, size in ((1, 16), (4, 16), (8, 8)):
        scene = sources.load_scene(folder, ["train"], LoadOptions(downscale=downscale))
        assert scene.splits["train"].cameras.width == size
    with pytest.raises(InputError, match="choose another downscale"):
        sources.load_scene(folder, ["train"], LoadOptions(downscale=3))
    (folder / "images_4" / "p1.png").unlink()
    with pytest.raises(InputError, match=r"5 images and poses_bounds\.npy 6 poses"):
        sources.load_scene(folder, ["train"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:, :16], "17 floats"),
        (lambda t: t.astype(int), "17 floats"),
        (lambda t: np.where(np.arange(17) == 3, np.nan, t), "not finite"),
        (lambda t: t * np.where(np.arange(17) < 2, 2.0, 1.0), "not a rotation"),
        (lambda t: np.where(np.arange(17) == 15, 9.0, t), "nearest depth"),
        (lambda t: np.where(np.arange(17) == 14, -1.0, t), "below 1"),
        (lambda t: t[:0], "has 0 views"),
    ],
)
def test_llff_mistakes_are_explained(change: Any, message: str, tmp_path: Path) -> None:
    folder = write_llff(tmp_path)
    table = np.load(folder / "poses_bounds.npy")
    np.save(folder / "poses_bounds.npy", change(table))
    with pytest.raises(InputError, match=message):
        sources.load_scene(folder, ["train"])


def test_llff_never_opens_pickles(tmp_path: Path) -> None:
    folder = write_llff(tmp_path)
    np.save(folder / "poses_bounds.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="not a complete"):
        llff.read_poses_bounds(folder / "poses_bounds.npy")


# COLMAP


@pytest.mark.parametrize("text", [False, True])
def test_colmap_rays_equal_true_rays(text: bool, tmp_path: Path) -> None:
    folder = write_colmap(tmp_path, text=text)
    scene = sources.load_scene(folder, ["train", "test"])
    check_rays(scene, "train", true_cameras(), TRAIN)
    check_rays(scene, "test", true_cameras(), TEST)
    model = colmap_files.read_reconstruction(folder / "sparse" / "0")
    assert model.point_numbers.tolist() == [4, 5, 9]
    np.testing.assert_allclose(model.points, POINTS[[1, 2, 0]])
    image = model.images[0]
    assert image.name == "p0.png" and image.points.tolist() == [4, -1, 9]
    np.testing.assert_allclose(image.keypoints, [[1, 2], [3, 4], [5, 6]])
    back = transform_positions(
        invert_transform(scene.frame), transform_positions(scene.frame, POINTS)
    )
    np.testing.assert_allclose(back, POINTS, atol=1e-9)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("model", colmap_files.MODELS, ids=lambda model: model.name)
def test_colmap_parameters_of_every_camera_model(
    model: colmap_files.CameraModel, text: bool, tmp_path: Path
) -> None:
    meant = {"f": 21.9, "fx": 21.0, "fy": 22.0, "cx": 7.0, "cy": 9.0, "omega": 0.5}
    names = model.parameters.split()
    values = [meant.get(name, 0.001 * (1 + i)) for i, name in enumerate(names)]
    folder = write_colmap(tmp_path, model.name, model.number, values, text)
    cameras = sources.load_scene(folder, ["train"]).splits["train"].cameras
    focal = (21.9, 21.9) if "f" in names else (21.0, 22.0)
    np.testing.assert_allclose(cameras.focal[0], focal, rtol=1e-6)
    np.testing.assert_allclose(cameras.principal_point[0], (7.0, 9.0))
    assert cameras.lens == model.lens
    bending = [n for n in names if n in COEFFICIENTS[model.lens]]
    if not bending:
        assert cameras.distortion is None
        return
    assert cameras.distortion is not None
    for name in bending:
        place = COEFFICIENTS[model.lens].index(name)
        expected = values[names.index(name)]
        assert cameras.distortion[0, place] == pytest.approx(expected, rel=1e-6)


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-3],
        lambda data: data[:9],
        lambda data: b"",
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: data[:8] + b"\xff" * (len(data) - 8),
    ],
)
def test_colmap_damage_is_explained_in_one_sentence(name: str, change: Any, tmp_path: Path) -> None:
    folder = write_colmap(tmp_path)
    damage(folder / "sparse" / "0" / name, change)
    with pytest.raises(InputError, match="damaged") as caught:
        sources.load_scene(folder, ["train"])
    assert "\n" not in str(caught.value)


def test_colmap_without_points_or_with_missing_images(tmp_path: Path) -> None:
    folder = write_colmap(tmp_path)
    (folder / "sparse" / "0" / "points3D.bin").unlink()
    assert sources.load_scene(folder, ["train"]).near > 0
    (folder / "images" / "p3.png").unlink()
    with pytest.raises(InputError, match=r"p3\.png is missing"):
        sources.load_scene(folder, ["train"])
    scene = sources.load_scene(folder, ["train"], LoadOptions(skip_missing=True))
    assert scene.splits["train"].names == ("p1", "p2", "p4", "p5")
    (folder / "sparse" / "0" / "cameras.bin").unlink()
    with pytest.raises(InputError, match=r"There is no .*cameras\.bin"):
        sources.load_scene(folder, ["train"])


# DeepVoxels and the tiny example


def test_deepvoxels_rays_equal_true_rays(tmp_path: Path) -> None:
    scene = sources.load_scene(write_deepvoxels(tmp_path), ["train", "val", "test"])
    for split in ("train", "val", "test"):
        check_rays(scene, split, true_cameras(), list(ORDER))
    assert not scene.unbounded and 0 < scene.near < 4.0 < scene.far
    np.testing.assert_allclose(scene.aabb, [[-1.6] * 3, [1.6] * 3], atol=0.01)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("intrinsics.txt", "21.9 8 8\n", "must have lines"),
        ("intrinsics.txt", "x y z", "does not hold only numbers"),
        ("intrinsics.txt", "-1 8 8 0\n0 0 0\n0\n1\n16 16\n", "focal length or size"),
        ("intrinsics.txt", "nan 8 8 0\n0 0 0\n0\n1\n16 16\n", "not finite"),
        ("pose/p1.txt", "1 2 3", "not 4 rows"),
        ("pose/p1.txt", "2 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "not a rotation"),
        ("pose/extra.txt", "1", "must have the same names"),
    ],
)
def test_deepvoxels_mistakes_are_explained(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    folder = write_deepvoxels(tmp_path)
    (folder / "train" / "ball" / name).write_text(text)
    with pytest.raises(InputError, match=message):
        sources.load_scene(folder, ["train"])


def test_tiny_nerf_rays_equal_true_rays(tmp_path: Path) -> None:
    scene = sources.load_scene(write_tiny_nerf(tmp_path / "ball.npz"), ["train", "test"])
    check_rays(scene, "train", true_cameras(), [0, 1, 2, 3, 4])
    check_rays(scene, "test", true_cameras(), [5])
    truth = make_scene().splits["train"].images[:5, ..., :3]
    np.testing.assert_array_equal(scene.splits["train"].images[..., :3], truth)


@pytest.mark.parametrize(
    ("count", "val", "test"),
    [
        (2, [1], [1]),
        (6, [5], [5]),
        (101, [100], [100]),
        (102, [100], [101]),
        (104, [100], [101, 102, 103]),
        (106, [100, 101], [102, 103, 104, 105]),
    ],
)
def test_tiny_nerf_splits_are_disjoint(count: int, val: list[int], test: list[int]) -> None:
    indices = divide_views(count)
    assert list(indices["train"]) == list(range(min(100, count - 1)))
    assert (list(indices["val"]), list(indices["test"])) == (val, test)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 4, 4))}, "not \\(n, h, w, 3\\)"),
        ({"images": np.full((6, 4, 4, 3), np.nan, np.float32)}, "between 0 and 1"),
        ({"images": np.full((6, 4, 4, 3), 200.0, np.float32)}, "between 0 and 1"),
        ({"poses": np.zeros((6, 3, 4))}, "poses .* of shape"),
        ({"poses": np.zeros((6, 4, 4))}, "not a rotation"),
        ({"focal": np.float64(-1.0)}, "not a focal length"),
        ({"focal": np.zeros(3)}, "not a focal length"),
    ],
)
def test_tiny_nerf_mistakes_are_explained(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_tiny_nerf(tmp_path / "ball.npz")
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **content | arrays)
    with pytest.raises(InputError, match=message):
        sources.load_scene(path, ["train"])


def test_unparsable_npy_header_is_rejected(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 17)))
    # In the place of the first quote; Python 3.12 raises an error of its tokenizer over it.
    array = file.getvalue().replace(b"{'", b"{\x7f", 1)
    (tmp_path / "poses_bounds.npy").write_bytes(array)
    with pytest.raises(InputError, match=r"poses_bounds\.npy is not a complete \.npy file"):
        llff.read_poses_bounds(tmp_path / "poses_bounds.npy")
    with zipfile.ZipFile(tmp_path / "ball.npz", "w") as archive:
        for name in ("images", "poses", "focal"):
            archive.writestr(f"{name}.npy", array)
    with pytest.raises(InputError, match=r"ball\.npz is damaged"):
        sources.load_scene(tmp_path / "ball.npz", ["train"])


def test_tiny_nerf_damage_and_zip_bombs_are_rejected(tmp_path: Path) -> None:
    path = write_tiny_nerf(tmp_path / "ball.npz")
    whole = path.read_bytes()
    for data in (whole[:-40], b"", whole[: len(whole) // 2], b"PK\x03\x04" + whole[9:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            sources.load_scene(path, ["train"])
    np.savez(path, images=np.zeros(3), poses=np.zeros(3))
    with pytest.raises(InputError, match="no array 'focal'"):
        sources.load_scene(path, ["train"])
    np.savez_compressed(path, images=np.zeros(1 << 28, np.float64), poses=[0], focal=0.0)
    with pytest.raises(InputError, match="more than 1 GiB"):
        sources.load_scene(path, ["train"])


# Real scenes


def test_colmap_points_project_to_their_keypoints(real_data: Path) -> None:
    place = real_data / "colmap_room" / "sparse" / "0"
    if not place.is_dir():
        pytest.skip(f"no {place}")
    model = colmap_files.read_reconstruction(place)
    frame = center_and_scale(np.stack([image.pose for image in model.images]))
    frames = colmap.read_colmap(real_data / "colmap_room", ["train"], LoadOptions()).frames[ALL]
    pinholes = np.array([f.intrinsics.fit(4032, 3024) for f in frames])
    distortion = np.zeros((len(frames), 9))
    distortion[:, :9] = [f.intrinsics.distortion for f in frames]
    cameras = Cameras(
        transform_poses(frame, np.stack([f.pose for f in frames])),
        pinholes[:, :2], pinholes[:, 2:], 4032, 3024, "perspective", distortion,
    )  # fmt: skip
    points = transform_positions(frame, model.points)
    apart = []
    for index, image in enumerate(model.images):
        seen = image.points >= 0
        rows = np.searchsorted(model.point_numbers, image.points[seen])
        pixels, depth = project(cameras, index, points[rows])
        assert np.all(depth > 0)
        apart.append(np.linalg.norm(pixels - image.keypoints[seen], axis=-1))
    assert len(np.concatenate(apart)) > 60_000 and np.median(np.concatenate(apart)) < 1.0
    poses, _, _ = llff.read_poses_bounds(real_data / "colmap_room" / "poses_bounds.npy")
    np.testing.assert_allclose(np.stack([p.pose for p in model.images]), poses, atol=1e-9)


# Multi-scale Blender


@pytest.mark.parametrize("matrices", [False, True])
def test_multiscale_rays_equal_true_rays(matrices: bool, tmp_path: Path) -> None:
    scene = sources.load_scene(write_multiscale(tmp_path, matrices), ["train", "val", "test"])
    for split in scene.splits:
        check_rays(scene, split, true_cameras(), list(range(6)))
    np.testing.assert_array_equal(scene.splits["train"].images, make_scene().splits["train"].images)
    assert not scene.unbounded and (scene.near, scene.far) == (2.0, 6.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("train"), "no object 'train'"),
        (lambda t: t["val"].pop("width"), "width of val"),
        (lambda t: t["val"]["width"].pop(), "width of val"),
        (lambda t: t["val"].pop("focal"), "neither focal nor pix2cam"),
        (lambda t: t["val"]["focal"].__setitem__(0, -1.0), "invalid focal length"),
        (lambda t: t["val"]["height"].__setitem__(0, "16"), "no width and height"),
        (lambda t: t["val"]["file_path"].__setitem__(0, "/etc/passwd"), "passwd is missing"),
        (lambda t: t["val"]["cam2world"].__setitem__(0, [[1.0]]), "not 4 rows"),
        (lambda t: t["val"]["file_path"].__setitem__(0, t["val"]["file_path"][3]), "twice"),
        (lambda t: t["val"].__setitem__("file_path", []), "not a list with an entry"),
    ],
)
def test_multiscale_mistakes_are_explained(change: Any, message: str, tmp_path: Path) -> None:
    listing = write_multiscale(tmp_path) / "metadata.json"
    content = json.loads(listing.read_text())
    change(content)
    listing.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        sources.load_scene(tmp_path, ["val"])
    assert "\n" not in str(caught.value)


def find_corners(gray: np.ndarray, count: int, margin: int = 12) -> list[tuple[int, int]]:
    """Columns and rows of corners (Harris), the strongest first, ten pixels apart."""
    down, across = np.gradient(gray)

    def smooth(values: np.ndarray) -> np.ndarray:
        return sliding_window_view(np.pad(values, 2), (5, 5)).mean(axis=(2, 3))

    xx, yy, xy = (smooth(v) for v in (across * across, down * down, across * down))
    strength = xx * yy - xy * xy - 0.05 * (xx + yy) ** 2
    strength[:margin] = strength[-margin:] = 0.0
    strength[:, :margin] = strength[:, -margin:] = 0.0
    result: list[tuple[int, int]] = []
    for flat in np.argsort(strength, axis=None)[::-1]:
        row, column = (int(v) for v in np.unravel_index(flat, gray.shape))
        if all(math.hypot(column - c, row - r) >= 10 for c, r in result):
            result.append((column, row))
        if len(result) == count:
            break
    return result


def find_spread(gray: np.ndarray, side: int) -> np.ndarray:
    """The standard deviation of each square part of an image."""
    return sliding_window_view(gray, (side, side)).std(axis=(2, 3))


def find_patch(patch: np.ndarray, gray: np.ndarray, spread: np.ndarray) -> tuple[int, int] | None:
    """Where an image looks most like a patch, by correlation; None if several places do."""
    side = len(patch)
    expected = (patch - patch.mean()) / (patch.std() + 1e-6)
    spectrum = np.fft.rfft2(gray) * np.conj(np.fft.rfft2(expected, gray.shape))
    products = np.fft.irfft2(spectrum, gray.shape)[: spread.shape[0], : spread.shape[1]]
    score = products / side**2 / (spread + 1e-3)
    row, column = (int(v) for v in np.unravel_index(score.argmax(), score.shape))
    best = score[row, column]
    score[max(row - 8, 0) : row + 9, max(column - 8, 0) : column + 9] = -1.0
    if best < 0.85 or score.max() > best - 0.08:
        return None
    return column + side // 2, row + side // 2


def share_on_epipolar_lines(split: Split, pairs: list[tuple[int, int]], turned: float) -> float:
    """Part of the matches that lie within 1.5 pixels of where their rays are seen."""
    half, close, total = 7, 0, 0
    cameras = dataclasses.replace(split.cameras, ndc=None)
    for first, second in pairs:
        a, b = (composite(split.images[i], np.ones(3)).mean(axis=-1) for i in (first, second))
        poses = np.array(cameras.T_world_camera)
        cosine, sine = math.cos(turned), math.sin(turned)
        turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
        poses[second, :3, :3] = poses[second, :3, :3] @ turn
        other = dataclasses.replace(cameras, T_world_camera=poses)
        spread = find_spread(b, 2 * half + 1)
        corners = find_corners(a, 60)
        pixels = jnp.asarray(corners, jnp.float32) + 0.5
        number = jnp.full((len(corners),), first, jnp.int32)
        rays = pixels_to_rays(cameras, number, pixels, 0.0, 1.0)
        origins, directions = np.asarray(rays.origins), np.asarray(rays.directions)
        for index, (column, row) in enumerate(corners):
            patch = a[row - half : row + half + 1, column - half : column + half + 1]
            match = find_patch(patch, b, spread)
            if match is None:
                continue
            far = np.geomspace(0.02, 100.0, 4000)[:, None]
            points = origins[index] + far * directions[index]
            places, depth = project(other, second, points)
            away = np.linalg.norm(places[depth > 0] - (np.array(match) + 0.5), axis=-1)
            close += int(away.min(initial=np.inf) < 1.5)
            total += 1
    assert total > 40
    return close / total


@pytest.mark.parametrize(("name", "downscale"), [("nerf_llff_data/fern", 8), ("fox_270x480", 1)])
def test_matching_pixels_lie_on_each_other_s_rays(
    name: str, downscale: int, real_data: Path
) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"no {real_data / name}")
    split = sources.load_scene(
        real_data / name, ["train"], LoadOptions(downscale=downscale)
    ).splits["train"]
    places = np.asarray(split.cameras.T_world_camera)[:, :3, 3]
    axes = np.asarray(split.cameras.T_world_camera)[:, :3, 2]
    # The views that are most alike.
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + 3.0 * np.linalg.norm(
        axes[:, None] - axes[None], axis=-1
    )
    apart[np.tril_indices(len(apart))] = np.inf
    pairs = [divmod(int(i), len(apart)) for i in np.argsort(apart, axis=None)[:4]]
    right, wrong = (share_on_epipolar_lines(split, pairs, turned) for turned in (0.0, 0.2))
    assert right > 0.85 and wrong < 0.5


def test_lego_depths_of_two_views_agree(real_data: Path) -> None:
    folder = real_data / "nerf_synthetic_400" / "lego"
    if not (folder / "test" / "r_0_depth_0001.png").is_file():
        pytest.skip(f"no depth in {folder}")
    split = sources.load_scene(folder, ["test"], choose=lambda count: range(25)).splits["test"]
    maps = []
    for name in split.names:
        with Image.open(folder / "test" / f"{name}_depth_0001.png") as image:
            value = np.asarray(image)[..., 0].astype(np.float64)
        # Distance along the ray; black is background.
        maps.append(np.where(value > 0, 8.0 * (1.0 - value / 255.0), np.inf))
    errors = []
    for first, second in ((0, 1), (3, 4), (10, 11), (20, 21)):
        rays = image_rays(split.cameras, first, 2.0, 6.0)
        known = np.isfinite(maps[first]) & (split.images[first, ..., 3] == 255)
        points = (
            np.asarray(rays.origins, np.float64)[known]
            + maps[first][known][:, None] * np.asarray(rays.directions, np.float64)[known]
        )
        pixels, depth = project(split.cameras, second, points)
        column, row = np.floor(pixels).astype(int).T
        inside = (depth > 0) & (np.minimum(column, row) >= 0) & (np.maximum(column, row) < 400)
        there = np.linalg.norm(
            points - np.asarray(split.cameras.T_world_camera[second], np.float64)[:3, 3], axis=-1
        )
        seen = maps[second][row[inside], column[inside]]
        error = np.abs(seen - there[inside])
        # What another part hides is far off.
        errors.append(error[np.isfinite(error) & (error < 0.2)])
        assert len(errors[-1]) > 0.3 * known.sum()
    assert np.median(np.concatenate(errors)) < 0.031

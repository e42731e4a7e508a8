"""Photos and videos become upright files of one folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from textured import cast_image, ring_poses

from jaxrf.core.errors import InputError
from jaxrf.data import nsvf, polycam, sources
from jaxrf.data.images import EXIF_ORIENTATION, read_image, read_mask
from jaxrf.data.photos import gather

MAX_SIZE = 1600


def test_photos_are_listed_naturally_without_hidden_files_and_masks(tmp_path: Path) -> None:
    for name in ("IMG_10.png", "IMG_9.png", "._IMG_9.png", "dynamic_mask_IMG_9.png", "a.txt"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    assert [p.name for p in gather.list_photos(tmp_path)] == ["IMG_9.png", "IMG_10.png"]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path)
    assert len(gather.list_photos(tmp_path / "set")) == 2
    assert gather.list_photos(tmp_path / "nowhere") == []


def test_poses_of_other_programs_beside_photos_are_named(tmp_path: Path) -> None:
    for name, text in (
        ("poses.csv", "Label,Longitude,Latitude,Yaw,Pitch,Roll,heading\n"),
        ("prices.csv", "name,price\n"),
        ("IMG_1.xmp", "<x:xmpmeta/>"),
        ("bundle.rd.out", "# Bundle file v0.3"),
        ("scan.mg", "{}"),
        ("notes.txt", ""),
    ):
        (tmp_path / name).write_text(text)
    names = gather.find_foreign_poses(tmp_path)
    assert names == ["bundle.rd.out", "poses.csv", "scan.mg"]
    assert gather.find_foreign_poses(tmp_path / "nowhere") == []


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_copies_are_upright_and_keep_the_focal_length(orientation: int, tmp_path: Path) -> None:
    rgb = cast_image(ring_poses(3)[0], 48, 36, 42.0)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    exif.get_ifd(0x8769)[0x920A] = 4.25  # FocalLength
    photo = tmp_path / "in.jpg"
    Image.fromarray(rgb).save(photo, quality=95, exif=exif)
    (name,) = gather.gather_photos([photo], tmp_path / "out", MAX_SIZE).names
    copy = tmp_path / "out" / "images" / name
    expected = read_image(photo)
    assert np.abs(read_image(copy).astype(int) - expected).mean() < 2
    with Image.open(copy) as image:
        assert image.getexif().get(EXIF_ORIENTATION, 1) == 1
        assert float(image.getexif().get_ifd(0x8769)[0x920A]) == 4.25
    if orientation == 1:
        assert copy.read_bytes() == photo.read_bytes()


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_damaged_photos_are_left_out_and_named(tmp_path: Path) -> None:
    photos = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for photo in photos:
        Image.new("RGB", (64, 64)).save(photo)
    damage(photos[0])
    gathered = gather.gather_photos(photos, tmp_path / "out", MAX_SIZE)
    assert gathered == (["b.jpg"], {"a.jpg": "damaged; copy again"})
    damage(photos[1])
    with pytest.raises(InputError, match=r"b\.jpg is truncated or broken"):
        gather.gather_photos(photos, tmp_path / "other", MAX_SIZE)
    assert list((tmp_path / "other" / "images").iterdir()) == []


def test_photos_of_a_folder_and_those_below_it_are_taken_but_not_data_sets(tmp_path: Path) -> None:
    names = ("1.jpg", "second round/2.jpg", "masks/1.png", "set/images/3.jpg", "set/sparse/0/a.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    photos = gather.list_photos(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in photos] == ["1.jpg", "second round/2.jpg"]
    assert gather.name_photos(photos) == ["1.jpg", "second_round_2.jpg"]
    assert gather.find_data_sets(tmp_path) == [tmp_path / "set"]


def test_files_of_data_sets_with_poses_are_those_that_readers_know() -> None:
    splits = {"transforms_val.json", "transforms_test.json"}
    others = {"sparse", polycam.KEYFRAMES, nsvf.INTRINSICS, "opensfm", "cameras.sfm", gather.SOURCE}
    assert (sources.LISTING_FILES - splits) | others == gather.POSE_FILES


def test_photos_that_are_too_small_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (10, 6)).save(tmp_path / "a.png")
    assert gather.gather_photos([tmp_path / "a.png"], tmp_path / "out", MAX_SIZE) == (
        [],
        {"a.png": "smaller than 32 pixels"},
    )


def test_photos_of_subfolders_have_their_folders_in_their_names(tmp_path: Path) -> None:
    for name in ("left/1 (2).jpg", "left/2.webp", "left/2.png", "right/day 1/1 (2).jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    photos = gather.list_photos(tmp_path)
    assert gather.name_photos(photos) == [
        "left_1_(2).jpg",
        "left_2.png",
        "left_2_2.png",
        "right_day_1_1_(2).jpg",
    ]
    names = gather.gather_photos(photos, tmp_path / "out", MAX_SIZE).names
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == sorted(names)


@pytest.mark.parametrize(("size", "expected"), [((80, 64), (40, 32)), ((60, 80), (30, 40))])
def test_large_photos_and_their_masks_are_reduced(
    size: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    half = np.zeros(size[::-1], np.uint8)
    half[:, : size[0] // 2] = 255
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", size).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(half).save(tmp_path / "masks" / "a.png")
    Image.new("RGB", size).save(tmp_path / "images" / "b.jpg")
    Image.fromarray(half).save(tmp_path / "images" / "dynamic_mask_b.png")
    gather.gather_photos(gather.list_photos(tmp_path), tmp_path / "out", 40)
    for name, left in (("a.jpg", True), ("b.jpg", False)):
        with Image.open(tmp_path / "out" / "images" / name) as image:
            assert image.size == expected
        mask = read_mask(tmp_path / "out" / "masks" / f"{name}.png", expected)
        assert np.all(mask[:, : expected[0] // 2 - 1] == left)
        assert np.all(mask[:, expected[0] // 2 + 1 :] != left)

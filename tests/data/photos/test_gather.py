"""Photos and videos become upright files of one folder."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image, ImageFilter
from textured import cast_image, ring_poses

from jaxrf.core.errors import InputError
from jaxrf.data.images import EXIF_ORIENTATION, read_image
from jaxrf.data.photos import gather


def test_photos_are_listed_naturally_without_hidden_files_and_masks(tmp_path: Path) -> None:
    for name in ("IMG_10.png", "IMG_9.png", "._IMG_9.png", "dynamic_mask_IMG_9.png", "a.txt"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    assert [p.name for p in gather.list_photos(tmp_path)] == ["IMG_9.png", "IMG_10.png"]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path)
    assert len(gather.list_photos(tmp_path / "set")) == 2
    assert gather.list_photos(tmp_path / "nowhere") == []


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_copies_are_upright_and_keep_the_focal_length(orientation: int, tmp_path: Path) -> None:
    rgb = cast_image(ring_poses(3)[0], 40, 30, 35.0)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    exif.get_ifd(0x8769)[0x920A] = 4.25  # FocalLength
    photo = tmp_path / "in.jpg"
    Image.fromarray(rgb).save(photo, quality=95, exif=exif)
    (name,) = gather.gather_photos([photo], tmp_path / "out")
    copy = tmp_path / "out" / name
    expected = read_image(photo)
    assert np.abs(read_image(copy).astype(int) - expected).mean() < 2
    with Image.open(copy) as image:
        assert image.getexif().get(EXIF_ORIENTATION, 1) == 1
        assert float(image.getexif().get_ifd(0x8769)[0x920A]) == 4.25
    if orientation == 1:
        assert copy.read_bytes() == photo.read_bytes()


def test_a_damaged_photo_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.jpg is truncated or broken"):
        gather.gather_photos([tmp_path / "a.jpg"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_blur_is_less_sharp() -> None:
    rgb = cast_image(ring_poses(3)[0], 320, 240, 280.0)
    image = Image.fromarray(rgb)
    previous = gather.measure_sharpness(rgb)
    for radius in (1, 2, 4):
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)))
        assert gather.measure_sharpness(blurred) < previous
        previous = gather.measure_sharpness(blurred)
    assert gather.measure_sharpness(np.zeros((2, 2, 3), np.uint8)) == 0.0


def write_video(path: Path, count: int = 24, sharp: int = 4) -> list[np.ndarray]:
    """A video of which every `sharp`-th frame is sharp and the others are blurred."""
    frames = []
    for index, pose in enumerate(ring_poses(count)):
        frame = cast_image(pose, 96, 64, 80.0)
        if index % sharp != 1:
            frame = np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(3)))
        frames.append(frame)
    iio.imwrite(path, np.stack(frames), fps=12, codec="libx264", quality=9, macro_block_size=1)
    return frames


def test_the_sharpest_frame_of_each_part_is_taken(tmp_path: Path) -> None:
    frames = write_video(tmp_path / "clip.mp4")
    names = gather.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 6)
    assert names == [f"frame_{i:05d}.jpg" for i in range(6)]
    for part, name in enumerate(names):
        taken = read_image(tmp_path / "out" / name)[..., :3].astype(int)
        errors = [np.abs(taken - frame).mean() for frame in frames]
        assert int(np.argmin(errors)) == 4 * part + 1
    before = (tmp_path / "out" / names[0]).stat().st_mtime_ns
    assert gather.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 6) == names
    assert (tmp_path / "out" / names[0]).stat().st_mtime_ns == before


def test_more_frames_than_there_are_gives_all(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", count=8)
    assert len(gather.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 100)) == 8


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42" + bytes(500)])
def test_what_is_no_video_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4"):
        gather.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 6)

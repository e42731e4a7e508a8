"""Frames of videos: the sharpest, turned upright, each once."""

import subprocess
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageFilter
from textured import cast_image, ring_poses

from jaxrf.core.errors import InputError
from jaxrf.data.images import read_image
from jaxrf.data.photos import video

MAX_SIZE = 1600


def test_blur_is_less_sharp() -> None:
    rgb = cast_image(ring_poses(3)[0], 320, 240, 280.0)
    image = Image.fromarray(rgb)
    previous = video.measure_sharpness(rgb)
    for radius in (1, 2, 4):
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)))
        assert video.measure_sharpness(blurred) < previous
        previous = video.measure_sharpness(blurred)
    assert video.measure_sharpness(np.zeros((2, 2, 3), np.uint8)) == 0.0


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
    names = video.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 6, MAX_SIZE)
    assert names == [f"frame_{i:05d}.jpg" for i in range(6)]
    for part, name in enumerate(names):
        taken = read_image(tmp_path / "out" / name)[..., :3].astype(int)
        errors = [np.abs(taken - frame).mean() for frame in frames]
        assert int(np.argmin(errors)) == 4 * part + 1
    before = (tmp_path / "out" / names[0]).stat().st_mtime_ns
    assert video.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 6, MAX_SIZE) == names
    assert (tmp_path / "out" / names[0]).stat().st_mtime_ns == before


def test_more_frames_than_there_are_gives_all(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", count=8)
    assert len(video.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 100, MAX_SIZE)) == 8


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42" + bytes(500)])
def test_what_is_no_video_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4"):
        video.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 6, MAX_SIZE)


def test_large_frames_are_reduced(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", count=8)
    (name, *_) = video.extract_frames(tmp_path / "clip.mp4", tmp_path / "out", 4, 48)
    assert read_image(tmp_path / "out" / name).shape == (32, 48, 4)


def run_ffmpeg(*arguments: str) -> None:
    program = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([program, "-y", "-loglevel", "error", *arguments], check=True)


def test_a_video_that_was_filmed_upright_is_turned(tmp_path: Path) -> None:
    frames = write_video(tmp_path / "clip.mp4", count=8, sharp=1)
    run_ffmpeg(
        *("-display_rotation", "90", "-i", str(tmp_path / "clip.mp4")),
        *("-c", "copy", str(tmp_path / "turned.mp4")),
    )
    (name, *_) = video.extract_frames(tmp_path / "turned.mp4", tmp_path / "out", 8, MAX_SIZE)
    frame = read_image(tmp_path / "out" / name)[..., :3].astype(int)
    assert frame.shape == (96, 64, 3)
    assert np.abs(frame - np.rot90(frames[0])).mean() < 12


def test_frames_at_uneven_times_are_taken_once(tmp_path: Path) -> None:
    frames = write_video(tmp_path / "clip.mp4", count=12, sharp=1)
    # The second half is shown four times as long.
    run_ffmpeg(
        *("-i", str(tmp_path / "clip.mp4"), "-vf", "setpts=PTS+gte(N\\,6)*(N-6)*3/12/TB"),
        *("-fps_mode", "vfr", str(tmp_path / "uneven.mp4")),
    )
    names = video.extract_frames(tmp_path / "uneven.mp4", tmp_path / "out", 100, MAX_SIZE)
    assert len(names) == 12
    for index, name in enumerate(names):
        taken = read_image(tmp_path / "out" / name)[..., :3].astype(int)
        assert int(np.argmin([np.abs(taken - frame).mean() for frame in frames])) == index

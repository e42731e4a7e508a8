"""Arrays to pictures and videos."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import pytest
from PIL import Image
from scenes import read_mp4

from jaxrf.evaluation import images
from jaxrf.evaluation.channels import Channel
from jaxrf.rendering.image import HostRendering


def test_bytes_are_rounded_and_clipped() -> None:
    values = np.array(
        [-1.0, 0.0, 0.49 / 255, 0.51 / 255, 0.5, 254.6 / 255, 1.0, 7.0, np.nan, np.inf]
    )
    expected = [0, 0, 0, 1, 128, 255, 255, 255, 0, 255]
    result = images.to_uint8(values)
    assert result.dtype == np.uint8 and result.tolist() == expected


def test_every_byte_survives_the_way_through_floats() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(images.to_uint8(every.astype(np.float32) / 255), every)


@pytest.mark.parametrize("name", ["turbo", "inferno"])
def test_a_colour_map_spans_low_to_high_and_stays_at_its_ends(name: str) -> None:
    table = matplotlib.colormaps[name]
    values = np.array([-9.0, 2.0, 3.0, 4.0, 9.0, np.inf, -np.inf, np.nan], np.float32)
    colours = images.color_map(values, 2.0, 4.0, name)
    assert colours.shape == (8, 3) and colours.dtype == np.float32
    first, middle, last = (np.array(table(x)[:3]) for x in (0.0, 0.5, 1.0))
    expected = [first, first, middle, last, last, last, first, first]
    np.testing.assert_allclose(colours, expected, atol=1e-6)


def test_a_colour_map_of_no_range_is_finite() -> None:
    assert np.isfinite(images.color_map(np.array([[1.0, 2.0]]), 2.0, 2.0)).all()


def test_near_is_warm_far_is_cool_and_nothing_is_white() -> None:
    depth = np.array([[2.0, 6.0, 2.0, 4.0, np.nan]], np.float32)
    opacity = np.array([[1.0, 1.0, 0.0, 0.5, 0.0]], np.float32)
    picture = images.depth_picture(depth, opacity, 2.0, 6.0)
    near, far, nothing, half, hole = picture[0]
    assert near[0] > 2 * near[2] and far[2] > far[0]  # red against blue
    np.testing.assert_allclose(nothing, 1.0, atol=1e-6)
    np.testing.assert_allclose(hole, 1.0, atol=1e-6)
    solid = images.depth_picture(depth, np.ones_like(opacity), 2.0, 6.0)[0, 3]
    np.testing.assert_allclose(half, 0.5 * solid + 0.5, atol=1e-6)


def test_errors_go_from_dark_to_bright() -> None:
    truth = np.full((1, 4, 3), 0.5, np.float32)
    rendered = truth + np.array([0.0, 0.1, 0.25, 9.0], np.float32)[None, :, None]
    bright = images.error_picture(rendered, truth).sum(axis=-1)[0]
    assert bright[0] < 0.05 and np.all(np.diff(bright[:3]) > 0.1)
    assert bright[3] == bright[2] == images.color_map(np.ones(1), 0.0, 1.0, "inferno").sum()


def test_an_error_is_that_of_the_clipped_rendering() -> None:
    truth = np.ones((1, 1, 3), np.float32)
    assert np.array_equal(
        images.error_picture(truth + 5, truth), images.error_picture(truth, truth)
    )


def moving_bar(count: int, height: int, width: int) -> np.ndarray:
    frames = np.full((count, height, width, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        frame[:, index * width // count : (index + 1) * width // count] = (220, 30, 60)
    return frames


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 24), (16, 25), (33, 35)])
def test_a_video_has_every_frame_in_even_size(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_bar(7, height, width)
    images.write_mp4(tmp_path / "a.mp4", frames, 12.0)
    read = read_mp4(tmp_path / "a.mp4")
    even = frames[:, : height - height % 2, : width - width % 2]
    assert read.shape == even.shape
    assert np.abs(read.astype(int) - even).mean() < 25
    closest = [np.argmin(np.abs(even.astype(int) - frame).mean(axis=(1, 2, 3))) for frame in read]
    assert closest == list(range(7))


def test_a_video_plays_at_its_rate_and_everywhere(tmp_path: Path) -> None:
    images.write_mp4(tmp_path / "a.mp4", moving_bar(6, 16, 16), 12.0)
    data = (tmp_path / "a.mp4").read_bytes()
    assert b"avc1" in data  # H.264
    assert data.index(b"moov") < data.index(b"mdat")  # starts before it is all there
    (size,) = struct.unpack(">I", data[data.index(b"mvhd") - 4 :][:4])
    header = data[data.index(b"mvhd") + 4 :][:size]
    scale, duration = struct.unpack(">II", header[12:20])
    assert duration / scale == 6 / 12


def test_a_video_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing/a\.mp4 could not be encoded: .*No such file"):
        images.write_mp4(tmp_path / "missing" / "a.mp4", moving_bar(2, 8, 8), 10.0)


@pytest.mark.parametrize("count", [1, 2, 9, 20])
def test_a_gif_has_every_frame_and_loops_for_ever(count: int) -> None:
    frames = moving_bar(count, 12, 40)
    data = images.encode_gif(frames, 10.0)
    with Image.open(io.BytesIO(data)) as gif:
        assert gif.size == (40, 12)
        assert gif.n_frames == count
        if count > 1:
            assert gif.info["loop"] == 0
            assert gif.info["duration"] == 100
        for index in range(count):
            gif.seek(index)
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown - frames[index]).max() <= 12


def test_pictures_stand_in_columns_as_they_were_given() -> None:
    red, green = (np.broadcast_to(np.float32(c), (8, 12, 3)) for c in ((1, 0, 0), (0, 1, 0)))
    encoded = images.encode_columns({"a": [red, green], "b": [green, red]}, ["x", "y"])
    drawn = Image.open(io.BytesIO(encoded)).convert("RGB")
    places = [[(x * drawn.width, y * drawn.height) for x in (0.3, 0.75)] for y in (0.3, 0.75)]
    colors = [[drawn.getpixel((int(x), int(y))) for x, y in row] for row in places]
    assert colors == [[(255, 0, 0), (0, 255, 0)], [(0, 255, 0), (255, 0, 0)]]


def test_a_webp_has_every_frame_and_loops_for_ever() -> None:
    frames = moving_bar(5, 12, 40)
    with Image.open(io.BytesIO(images.encode_webp(list(frames), 10.0))) as webp:
        assert (webp.size, webp.n_frames, webp.info["loop"]) == ((40, 12), 5, 0)
        webp.seek(3)
        shown = np.asarray(webp.convert("RGB")).astype(int)
        assert np.abs(shown - frames[3]).mean() < 12


def test_a_video_takes_its_frames_as_they_come(tmp_path: Path) -> None:
    frames = moving_bar(6, 16, 24)
    images.write_mp4(tmp_path / "a.mp4", iter(frames), 12.0)
    images.write_mp4(tmp_path / "b.mp4", frames, 12.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_what_goes_wrong_with_a_frame_ends_the_encoder_too(tmp_path: Path) -> None:
    def give() -> Iterator[np.ndarray]:
        yield from moving_bar(2, 16, 24)
        raise LookupError("no third frame")

    with pytest.raises(LookupError, match="no third frame"):
        images.write_mp4(tmp_path / "a.mp4", give(), 12.0)
    running = [child.name() for child in psutil.Process().children()]
    assert not any("ffmpeg" in name for name in running)


@pytest.mark.parametrize("shape", [(5, 7, 3), (6, 4)])
def test_numbers_come_back_out_of_files(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import OpenEXR

    numbers = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 1e3
    images.write_npy(tmp_path / "a.npy", numbers)
    images.write_exr(tmp_path / "a.exr", numbers)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), numbers)
    (content,) = OpenEXR.File(str(tmp_path / "a.exr")).channels().values()
    np.testing.assert_array_equal(content.pixels, numbers)


def test_a_png_comes_back_as_it_was(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(images.encode_png(image / 255.0))
    np.testing.assert_array_equal(images.read_png(tmp_path / "a.png"), image)


def test_every_channel_shows_what_its_name_says() -> None:
    chance = np.random.default_rng(0)
    rgb, truth = chance.uniform(-0.2, 1.2, (2, 5, 7, 3)).astype(np.float32)
    opacity, depth = chance.uniform(0.0, 1.0, (2, 5, 7)).astype(np.float32)
    found, span = HostRendering(rgb, opacity, 7.0 * depth, 2.0 + 4.0 * depth), (2.0, 6.0)

    def draw(channel: Channel, colors: str = "turbo") -> np.ndarray:
        return images.draw_channel(found, channel, span, truth, colors)

    np.testing.assert_array_equal(draw("rgb"), images.to_uint8(rgb))
    np.testing.assert_array_equal(draw("truth"), images.to_uint8(truth))
    wanted = images.to_uint8(images.error_picture(rgb, truth))
    np.testing.assert_array_equal(draw("error"), wanted)
    np.testing.assert_array_equal(draw("opacity")[..., 1], images.to_uint8(opacity))
    parts = [draw(channel) for channel in ("truth", "rgb", "error", "depth")]
    np.testing.assert_array_equal(draw("comparison"), np.concatenate(parts, axis=1))
    gray = draw("depth", "gray")
    assert np.all(gray[..., 0] == gray[..., 2]) and np.any(parts[3][..., 0] != parts[3][..., 2])


@pytest.mark.parametrize("points", [[(1.0, 20.0), (2.0, 21.0)], []])
@pytest.mark.filterwarnings("error")
def test_a_plot_is_drawn_of_whatever_there_is(points: list[tuple[float, float]]) -> None:
    encoded = images.encode_plot({"a, seed 0": points, "b": []}, "seconds", "PSNR, dB")
    with Image.open(io.BytesIO(encoded)) as plot:
        drawn = np.asarray(plot.convert("RGB"))
    # A curve is the only thing in colour.
    coloured = np.ptp(drawn.astype(int), axis=-1).max() > 60
    assert coloured == bool(points)

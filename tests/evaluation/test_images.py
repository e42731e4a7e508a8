"""Images, videos and files of renderings."""

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


def test_to_uint8_rounds_and_clips() -> None:
    values = np.array(
        [-1.0, 0.0, 0.49 / 255, 0.51 / 255, 0.5, 254.6 / 255, 1.0, 7.0, np.nan, np.inf]
    )
    expected = [0, 0, 0, 1, 128, 255, 255, 255, 0, 255]
    result = images.to_uint8(values)
    assert result.dtype == np.uint8 and result.tolist() == expected


def test_to_uint8_inverts_division_by_255() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(images.to_uint8(values.astype(np.float32) / 255), values)


@pytest.mark.parametrize("name", ["turbo", "inferno"])
def test_apply_color_map_spans_low_to_high_and_clips(name: str) -> None:
    table = matplotlib.colormaps[name]
    values = np.array([-9.0, 2.0, 3.0, 4.0, 9.0, np.inf, -np.inf, np.nan], np.float32)
    colors = images.apply_color_map(values, 2.0, 4.0, name)
    assert colors.shape == (8, 3) and colors.dtype == np.float32
    first, middle, last = (np.array(table(x)[:3]) for x in (0.0, 0.5, 1.0))
    expected = [first, first, middle, last, last, last, first, first]
    np.testing.assert_allclose(colors, expected, atol=1e-6)


def test_apply_color_map_of_an_empty_range_is_finite() -> None:
    assert np.isfinite(images.apply_color_map(np.array([[1.0, 2.0]]), 2.0, 2.0)).all()


def test_colorize_depth_is_warm_near_cool_far_and_white_where_transparent() -> None:
    depth = np.array([[2.0, 6.0, 2.0, 4.0, np.nan]], np.float32)
    opacity = np.array([[1.0, 1.0, 0.0, 0.5, 0.0]], np.float32)
    image = images.colorize_depth(depth, opacity, 2.0, 6.0)
    near, far, transparent, half, hole = image[0]
    assert near[0] > 2 * near[2] and far[2] > far[0]  # red against blue
    np.testing.assert_allclose(transparent, 1.0, atol=1e-6)
    np.testing.assert_allclose(hole, 1.0, atol=1e-6)
    solid = images.colorize_depth(depth, np.ones_like(opacity), 2.0, 6.0)[0, 3]
    np.testing.assert_allclose(half, 0.5 * solid + 0.5, atol=1e-6)


def test_colorize_error_goes_from_dark_to_bright() -> None:
    target_rgb = np.full((1, 4, 3), 0.5, np.float32)
    rendered = target_rgb + np.array([0.0, 0.1, 0.25, 9.0], np.float32)[None, :, None]
    bright = images.colorize_error(rendered, target_rgb).sum(axis=-1)[0]
    assert bright[0] < 0.05 and np.all(np.diff(bright[:3]) > 0.1)
    assert bright[3] == bright[2] == images.apply_color_map(np.ones(1), 0.0, 1.0, "inferno").sum()


def test_colorize_error_clips_the_rendering() -> None:
    target_rgb = np.ones((1, 1, 3), np.float32)
    assert np.array_equal(
        images.colorize_error(target_rgb + 5, target_rgb),
        images.colorize_error(target_rgb, target_rgb),
    )


def moving_bar(count: int, height: int, width: int) -> np.ndarray:
    frames = np.full((count, height, width, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        frame[:, index * width // count : (index + 1) * width // count] = (220, 30, 60)
    return frames


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 24), (16, 25), (33, 35)])
def test_write_mp4_keeps_every_frame_in_even_size(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_bar(7, height, width)
    images.write_mp4(tmp_path / "a.mp4", frames, 12.0)
    read = read_mp4(tmp_path / "a.mp4")
    even = frames[:, : height - height % 2, : width - width % 2]
    assert read.shape == even.shape
    assert np.abs(read.astype(int) - even).mean() < 25
    closest = [np.argmin(np.abs(even.astype(int) - frame).mean(axis=(1, 2, 3))) for frame in read]
    assert closest == list(range(7))


def test_write_mp4_sets_codec_fast_start_and_frame_rate(tmp_path: Path) -> None:
    images.write_mp4(tmp_path / "a.mp4", moving_bar(6, 16, 16), 12.0)
    data = (tmp_path / "a.mp4").read_bytes()
    assert b"avc1" in data  # H.264
    assert data.index(b"moov") < data.index(b"mdat")  # starts before it is fully loaded
    (size,) = struct.unpack(">I", data[data.index(b"mvhd") - 4 :][:4])
    header = data[data.index(b"mvhd") + 4 :][:size]
    scale, duration = struct.unpack(">II", header[12:20])
    assert duration / scale == 6 / 12


def test_write_mp4_reports_why_it_failed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing/a\.mp4 could not be encoded: .*No such file"):
        images.write_mp4(tmp_path / "missing" / "a.mp4", moving_bar(2, 8, 8), 10.0)


@pytest.mark.parametrize("count", [1, 2, 9, 20])
def test_encode_gif_keeps_every_frame_and_loops_forever(count: int) -> None:
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
            decoded = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(decoded - frames[index]).max() <= 12


def test_encode_columns_places_images_by_column_and_row() -> None:
    red, green = (np.broadcast_to(np.float32(c), (8, 12, 3)) for c in ((1, 0, 0), (0, 1, 0)))
    encoded = images.encode_columns({"a": [red, green], "b": [green, red]}, ["x", "y"])
    drawn = Image.open(io.BytesIO(encoded)).convert("RGB")
    centers = [[(x * drawn.width, y * drawn.height) for x in (0.3, 0.75)] for y in (0.3, 0.75)]
    colors = [[drawn.getpixel((int(x), int(y))) for x, y in row] for row in centers]
    assert colors == [[(255, 0, 0), (0, 255, 0)], [(0, 255, 0), (255, 0, 0)]]


def test_encode_webp_keeps_every_frame_and_loops_forever() -> None:
    frames = moving_bar(5, 12, 40)
    with Image.open(io.BytesIO(images.encode_webp(list(frames), 10.0))) as webp:
        assert (webp.size, webp.n_frames, webp.info["loop"]) == ((40, 12), 5, 0)
        webp.seek(3)
        decoded = np.asarray(webp.convert("RGB")).astype(int)
        assert np.abs(decoded - frames[3]).mean() < 12


def test_write_mp4_accepts_an_iterator(tmp_path: Path) -> None:
    frames = moving_bar(6, 16, 24)
    images.write_mp4(tmp_path / "a.mp4", iter(frames), 12.0)
    images.write_mp4(tmp_path / "b.mp4", frames, 12.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_write_mp4_ends_the_encoder_when_a_frame_fails(tmp_path: Path) -> None:
    def failing_frames() -> Iterator[np.ndarray]:
        yield from moving_bar(2, 16, 24)
        raise LookupError("no third frame")

    with pytest.raises(LookupError, match="no third frame"):
        images.write_mp4(tmp_path / "a.mp4", failing_frames(), 12.0)
    running = [child.name() for child in psutil.Process().children()]
    assert not any("ffmpeg" in name for name in running)


@pytest.mark.parametrize("shape", [(5, 7, 3), (6, 4)])
def test_write_npy_and_write_exr_keep_values(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import OpenEXR

    values = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 1e3
    images.write_npy(tmp_path / "a.npy", values)
    images.write_exr(tmp_path / "a.exr", values)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values)
    (content,) = OpenEXR.File(str(tmp_path / "a.exr")).channels().values()
    np.testing.assert_array_equal(content.pixels, values)


def test_read_png_inverts_encode_png(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(images.encode_png(image / 255.0))
    np.testing.assert_array_equal(images.read_png(tmp_path / "a.png"), image)


def test_draw_channel_draws_every_channel() -> None:
    rng = np.random.default_rng(0)
    rgb, target_rgb = rng.uniform(-0.2, 1.2, (2, 5, 7, 3)).astype(np.float32)
    opacity, depth = rng.uniform(0.0, 1.0, (2, 5, 7)).astype(np.float32)
    rendering, depth_range = HostRendering(rgb, opacity, 7.0 * depth, 2.0 + 4.0 * depth), (2.0, 6.0)

    def draw(channel: Channel, color_map: str = "turbo") -> np.ndarray:
        return images.draw_channel(rendering, channel, depth_range, target_rgb, color_map)

    np.testing.assert_array_equal(draw("rgb"), images.to_uint8(rgb))
    np.testing.assert_array_equal(draw("truth"), images.to_uint8(target_rgb))
    expected = images.to_uint8(images.colorize_error(rgb, target_rgb))
    np.testing.assert_array_equal(draw("error"), expected)
    np.testing.assert_array_equal(draw("opacity")[..., 1], images.to_uint8(opacity))
    parts = [draw(channel) for channel in ("truth", "rgb", "error", "depth")]
    np.testing.assert_array_equal(draw("comparison"), np.concatenate(parts, axis=1))
    gray = draw("depth", "gray")
    assert np.all(gray[..., 0] == gray[..., 2]) and np.any(parts[3][..., 0] != parts[3][..., 2])


@pytest.mark.parametrize("points", [[(1.0, 20.0), (2.0, 21.0)], []])
@pytest.mark.filterwarnings("error")
def test_encode_plot_draws_curves_and_accepts_empty_ones(points: list[tuple[float, float]]) -> None:
    encoded = images.encode_plot({"a, seed 0": points, "b": []}, "seconds", "PSNR, dB")
    with Image.open(io.BytesIO(encoded)) as plot:
        drawn = np.asarray(plot.convert("RGB"))
    # Only curves are colored; axes and text are gray.
    colored = np.ptp(drawn.astype(int), axis=-1).max() > 60
    assert colored == bool(points)

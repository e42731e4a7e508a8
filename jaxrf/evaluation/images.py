"""Images of renderings: color maps, plots, and PNG, GIF, WebP, MP4, NPY and OpenEXR files.

Libraries that draw and encode are imported where they are used, so that training starts without
them.
"""

import contextlib
import io
import itertools
import subprocess
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxrf.evaluation.channels import Channel
from jaxrf.rendering.image import HostRendering

# The frames of a video: an array, or a sequence that loads them one by one.
Frames = UInt8[np.ndarray, "n h w 3"] | Sequence[UInt8[np.ndarray, "h w 3"]]


def encode_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    title: str = "",
) -> bytes:
    """Plots named curves and returns the plot as PNG.

    Args:
      curves: points (x, y) of each curve. Curves whose names are equal up to the first comma form a
        group: they share a color and differ in line style.
      x_label, y_label: axis labels.
      title: of the plot.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    group_sizes: dict[str, int] = {}
    figure = Figure(figsize=(9, max(4.5, 0.22 * len(curves) + 0.7)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        group = name.split(",")[0]
        style = ("-", "--", ":", "-.")[group_sizes.get(group, 0) % 4]
        group_sizes[group] = group_sizes.get(group, 0) + 1
        index = list(group_sizes).index(group)
        # The map alternates strong and pale colors; the strong ones are used first.
        color = colormaps["tab20"](2 * index % 20 + index // 10)
        if points:
            label = textwrap.fill(name, 40, break_on_hyphens=False)
            axes.plot(*zip(*points, strict=True), style, color=color, marker=".", label=label)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.3)
    if any(curves.values()):
        # Outside of the axes, so that it covers no curve.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def encode_columns(
    columns: Mapping[str, Sequence[Float[np.ndarray, "h w 3"]]], rows: Sequence[str]
) -> bytes:
    """Draws a labeled grid of images and returns it as PNG.

    Args:
      columns: images of each column from top to bottom, values in [0, 1], all of one size.
      rows: names of the rows.
    """
    from matplotlib.figure import Figure

    height, width, _ = next(iter(columns.values()))[0].shape
    size = 2.2 * len(columns), 2.2 * height / width * len(rows) + 0.4
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            axes[row, column].imshow(image, vmin=0.0, vmax=1.0)
            axes[row, column].set(xticks=[], yticks=[])
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def to_uint8(image: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Rounds values in [0, 1] to 8-bit integers; clips other values and maps NaN to 0."""
    return np.rint(np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0).astype(np.uint8)


def apply_color_map(
    values: Float[np.ndarray, "*batch"], low: float, high: float, name: str = "turbo"
) -> Float[np.ndarray, "*batch 3"]:
    """Maps values to rgb in [0, 1] with a color map of matplotlib.

    Args:
      values: any shape; clipped to [low, high], NaN counts as low.
      low, high: values at the two ends of the color map.
      name: matplotlib's name of the color map.
    """
    import matplotlib

    scaled = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)
    return matplotlib.colormaps[name](np.nan_to_num(scaled))[..., :3].astype(np.float32)


def colorize_depth(
    depth: Float[np.ndarray, "h w"],
    opacity: Float[np.ndarray, "h w"],
    low: float,
    high: float,
    color_map: str = "turbo",
) -> Float[np.ndarray, "h w 3"]:
    """Maps depth to colors, composited over white by opacity; the map runs from far to near.

    With the default map near is warm and far is cool. `low` and `high` are the nearest and the
    farthest depth, in the unit of `depth`.
    """
    rgb = apply_color_map(-depth, -high, -low, color_map)
    return (rgb * opacity[..., None] + (1.0 - opacity)[..., None]).astype(np.float32)


def colorize_error(
    rgb: Float[np.ndarray, "h w 3"],
    target_rgb: Float[np.ndarray, "h w 3"],
    max_error: float = 0.25,
) -> Float[np.ndarray, "h w 3"]:
    """Maps the mean absolute error over channels to colors, black at 0, bright from `max_error`."""
    error = np.abs(np.clip(rgb, 0.0, 1.0) - target_rgb).mean(axis=-1)
    return apply_color_map(error, 0.0, max_error, "inferno")


def draw_channel(
    rendering: HostRendering,
    channel: Channel,
    depth_range: tuple[float, float],
    target_rgb: Float[np.ndarray, "h w 3"] | None = None,
    color_map: str = "turbo",
) -> UInt8[np.ndarray, "h w_all 3"]:
    """Draws one channel of a rendering as an 8-bit image.

    Args:
      rendering: batch shape (h, w).
      channel: "truth", "error" and "comparison" need `target_rgb`; a comparison is four images
        side by side.
      depth_range: nearest and farthest depth of the color map.
      target_rgb: (h, w, 3) in [0, 1].
      color_map: matplotlib's name of the color map of depth.
    """
    channels: tuple[Channel, ...] = (channel,)
    if channel == "comparison":
        channels = ("truth", "rgb", "error", "depth")
    images = [_draw_panel(rendering, c, depth_range, target_rgb, color_map) for c in channels]
    return to_uint8(np.concatenate(images, axis=1))


def _draw_panel(
    rendering: HostRendering,
    channel: Channel,
    depth_range: tuple[float, float],
    target_rgb: Float[np.ndarray, "h w 3"] | None,
    color_map: str,
) -> Float[np.ndarray, "h w 3"]:
    match channel:
        case "rgb":
            return np.clip(rendering.rgb, 0.0, 1.0)
        case "depth":
            depth, opacity = rendering.median_depth, rendering.opacity
            return colorize_depth(depth, opacity, *depth_range, color_map)
        case "opacity":
            return np.repeat(rendering.opacity[..., None], 3, axis=-1)
        case "truth":
            assert target_rgb is not None
            return target_rgb
        case "error":
            assert target_rgb is not None
            return colorize_error(rendering.rgb, target_rgb)
        case "comparison":
            raise AssertionError("a comparison has several panels")
    assert_never(channel)


def encode_png(image: Float[np.ndarray, "h w *c"]) -> bytes:
    """Encodes an image with values in [0, 1] as an 8-bit PNG."""
    import imageio.v3 as iio

    return iio.imwrite("<bytes>", to_uint8(image), extension=".png")


def read_png(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads the rgb channels of a PNG file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_npy(path: Path, values: Float[np.ndarray, "h w *c"]) -> None:
    """Writes an array in numpy's format, whatever the suffix of the path."""
    with path.open("wb") as file:
        np.save(file, values)


def write_exr(path: Path, values: Float[np.ndarray, "h w *c"]) -> None:
    """Writes an array as float32 OpenEXR: channels R, G, B for (h, w, 3), or Y for (h, w)."""
    import OpenEXR

    pixels = np.ascontiguousarray(values, np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB" if pixels.ndim == 3 else "Y": pixels}).write(str(path))


def write_mp4(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """Writes an H.264 video that browsers play.

    The codec needs even sizes: an odd height or width loses its last row or column.

    Args:
      path: MP4 file, whatever its suffix.
      frames: one or more, encoded one by one.
      fps: frames per second.

    Raises:
      OSError: if the encoder fails, with its last message.
    """
    import imageio_ffmpeg

    iterator = iter(frames)
    first = next(iterator)
    height, width = (s - s % 2 for s in first.shape[:2])
    # imageio's writer forks, which is unsafe with JAX's threads, so the encoder is run directly.
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-y", "-loglevel", "error"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)),
        *("-i", "-", "-an", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"),
        *("-movflags", "+faststart", "-f", "mp4", str(path)),
    ]
    with tempfile.TemporaryFile() as log:
        encoder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
        )
        assert encoder.stdin is not None
        try:
            # The encoder closes the pipe early if it fails; its log says why.
            with contextlib.suppress(BrokenPipeError), encoder.stdin as pipe:
                for frame in itertools.chain([first], iterator):
                    pipe.write(np.ascontiguousarray(frame[:height, :width]).data)
        finally:
            failed = encoder.wait()
        if failed:
            log.seek(0)
            reason = log.read().decode(errors="replace").strip().split("\n")[-1]
            raise OSError(f"{path} could not be encoded: {reason}")


def encode_webp(frames: Frames, fps: float) -> bytes:
    """Encodes frames as an animated WebP that loops forever; smaller than a GIF, in full color."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=85,
    )
    return buffer.getvalue()


def encode_gif(frames: Frames, fps: float) -> bytes:
    """Encodes frames as a GIF that loops forever.

    All frames share one palette, computed from about 8 of them, so that colors do not flicker.
    """
    stride = max(1, len(frames) // 8)
    sheet = Image.fromarray(np.concatenate(list(frames[::stride]), axis=0))
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in frames
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return buffer.getvalue()

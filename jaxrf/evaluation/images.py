"""Arrays to pictures: colour maps, PNG, GIF, WebP, MP4, and to files of numbers.

What draws and encodes is imported where it is used, so that training can begin without it.
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

# The frames of a video: an array, or whatever gives any of them.
Clip = UInt8[np.ndarray, "n h w 3"] | Sequence[UInt8[np.ndarray, "h w 3"]]


def encode_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, title: str = ""
) -> bytes:
    """A plot of named curves of (x, y) with labelled axes, as PNG.

    Curves whose names are the same up to the first comma have one colour.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    kinds: dict[str, int] = {}
    figure = Figure(figsize=(9, max(4.5, 0.22 * len(curves) + 0.7)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        kind = name.split(",")[0]
        style = ("-", "--", ":", "-.")[kinds.get(kind, 0) % 4]
        kinds[kind] = kinds.get(kind, 0) + 1
        number = list(kinds).index(kind)
        # Its even colours are strong, its odd ones pale.
        color = colormaps["tab20"](2 * number % 20 + number // 10)
        if points:
            label = textwrap.fill(name, 40, break_on_hyphens=False)
            axes.plot(*zip(*points, strict=True), style, color=color, marker=".", label=label)
    axes.set(xlabel=across, ylabel=up, title=title)
    axes.grid(alpha=0.3)
    if any(curves.values()):
        # Beside the axes, where it hides no curve.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def encode_columns(
    columns: Mapping[str, Sequence[Float[np.ndarray, "h w 3"]]], rows: Sequence[str]
) -> bytes:
    """Pictures with values in [0, 1] side by side under their columns' names, as PNG."""
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
    """Values in [0, 1] (others are clipped, NaN is 0) as 8-bit numbers, rounded."""
    return np.rint(np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0).astype(np.uint8)


def color_map(
    values: Float[np.ndarray, "*batch"], low: float, high: float, name: str = "turbo"
) -> Float[np.ndarray, "*batch 3"]:
    """Colours of values by one of matplotlib's colour maps, `low` to `high` spanning it."""
    import matplotlib

    scaled = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)
    return matplotlib.colormaps[name](np.nan_to_num(scaled))[..., :3].astype(np.float32)


def depth_picture(
    depth: Float[np.ndarray, "h w"],
    opacity: Float[np.ndarray, "h w"],
    low: float,
    high: float,
    colors: str = "turbo",
) -> Float[np.ndarray, "h w 3"]:
    """Depth in colours, near warm and far cool, fading to white where nothing is hit."""
    return (
        color_map(-depth, -high, -low, colors) * opacity[..., None] + (1.0 - opacity)[..., None]
    ).astype(np.float32)


def error_picture(
    rendered: Float[np.ndarray, "h w 3"],
    truth: Float[np.ndarray, "h w 3"],
    most: float = 0.25,
) -> Float[np.ndarray, "h w 3"]:
    """Mean absolute error over channels in colours, black at 0 and bright at `most` and above."""
    error = np.abs(np.clip(rendered, 0.0, 1.0) - truth).mean(axis=-1)
    return color_map(error, 0.0, most, "inferno")


def draw_channel(
    picture: HostRendering,
    channel: Channel,
    span: tuple[float, float],
    truth: Float[np.ndarray, "h w 3"] | None = None,
    colors: str = "turbo",
) -> UInt8[np.ndarray, "h w_all 3"]:
    """A channel of a rendering as one sees it.

    Args:
      picture: the rendering.
      channel: which; "truth", "error" and "comparison" need the truth.
      span: nearest and farthest distance that the colours of depth span.
      truth: what was to be seen.
      colors: matplotlib's name of the colour map of depth.
    """

    def show(channel: Channel) -> Float[np.ndarray, "h w 3"]:
        match channel:
            case "rgb":
                return np.clip(picture.rgb, 0.0, 1.0)
            case "depth":
                depth, opacity = picture.median_depth, picture.opacity
                return depth_picture(depth, opacity, *span, colors)
            case "opacity":
                return np.repeat(picture.opacity[..., None], 3, axis=-1)
            case "truth":
                assert truth is not None
                return truth
            case "error":
                assert truth is not None
                return error_picture(picture.rgb, truth)
            case "comparison":
                shown: tuple[Channel, ...] = ("truth", "rgb", "error", "depth")
                return np.concatenate([show(each) for each in shown], axis=1)
        assert_never(channel)

    return to_uint8(show(channel))


def encode_png(image: Float[np.ndarray, "h w *c"]) -> bytes:
    """One picture with values in [0, 1] as an 8-bit PNG."""
    import imageio.v3 as iio

    return iio.imwrite("<bytes>", to_uint8(image), extension=".png")


def read_png(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of a picture that `encode_png` made."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_npy(path: Path, numbers: Float[np.ndarray, "h w *c"]) -> None:
    """Numbers as numpy keeps them."""
    with path.open("wb") as file:
        np.save(file, numbers)


def write_exr(path: Path, numbers: Float[np.ndarray, "h w *c"]) -> None:
    """Numbers as float32 in an OpenEXR file: channels R, G and B, or Y if there is one."""
    import OpenEXR

    whole = np.ascontiguousarray(numbers, np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB" if whole.ndim == 3 else "Y": whole}).write(str(path))


def write_mp4(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """An H.264 video that browsers play; odd sizes lose a row or column, as the codec asks.

    Args:
      path: the file, whatever its name ends in.
      frames: one or more, encoded as they come.
      fps: frames per second.

    Raises:
      OSError: with the encoder's words, if it fails.
    """
    import imageio_ffmpeg

    coming = iter(frames)
    first = next(coming)
    height, width = (s - s % 2 for s in first.shape[:2])
    # The encoder is run directly: imageio's own writer forks, which JAX's threads forbid.
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-y", "-loglevel", "error"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)),
        *("-i", "-", "-an", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"),
        *("-movflags", "+faststart", "-f", "mp4", str(path)),
    ]
    with tempfile.TemporaryFile() as said:
        encoder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
        )
        assert encoder.stdin is not None
        try:
            # It may end early, and then says why.
            with contextlib.suppress(BrokenPipeError), encoder.stdin as pipe:
                for frame in itertools.chain([first], coming):
                    pipe.write(np.ascontiguousarray(frame[:height, :width]).data)
        finally:
            failed = encoder.wait()
        if failed:
            said.seek(0)
            words = said.read().decode(errors="replace").strip().split("\n")[-1]
            raise OSError(f"{path} could not be encoded: {words}")


def encode_webp(frames: Clip, fps: float) -> bytes:
    """An animated WebP that loops for ever, smaller than a GIF and in all colours."""
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


def encode_gif(frames: Clip, fps: float) -> bytes:
    """A GIF that loops for ever, with one palette for all frames so that colours do not flicker."""
    every = max(1, len(frames) // 8)
    sheet = Image.fromarray(np.concatenate(list(frames[::every]), axis=0))
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in frames
    ]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return buffer.getvalue()

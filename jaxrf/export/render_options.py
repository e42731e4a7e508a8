"""Options of `jaxrf render`. Imports no jax, so that --help is quick."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrf.core.checks import require_positive
from jaxrf.evaluation.channels import Channel

Format = Literal["mp4", "gif", "webp", "png", "npy", "exr"]
# Channels to render by default, without and with images to compare with.
DEFAULT_CHANNELS: dict[bool, tuple[Channel, ...]] = {
    False: ("rgb", "depth", "opacity"),
    True: ("comparison", "rgb", "depth"),
}


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Render a trained scene along a path, or beside the images of a split, as videos and frames.

    An interrupted rendering continues where it stopped when the same command is started again.
    """

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of the run, or a file that `jaxrf export` wrote. Default: the newest in ./runs."""
    output: Path | None = None
    """Folder to write to. Default: a folder named after the path (orbit, orbit-2, ...) in the run's
    folder, or beside the exported file."""
    channels: tuple[Channel, ...] = ()
    """Channels to render: rgb, depth (color-mapped, near is warm), opacity, and with the images of
    a split also truth, error, and comparison: truth, rgb, error and depth side by side. Default:
    rgb depth opacity; with a split comparison rgb depth."""
    formats: tuple[Format, ...] = ("mp4", "gif", "png")
    """mp4, gif and webp are videos; png is an image of each frame; npy and exr are its numbers as
    float32: colors, and depth as the median distance along each ray, in scene units."""
    frames: int = 60
    """Number of frames of the full circle, or of another path."""
    fps: float | None = None
    """Frames per second. Default: those of the file that --path names, 2 for a split, else 24."""
    size: int = 400
    """Width of a frame in pixels; the height follows the training images. A split's frames are as
    large as its images."""
    path: str = "auto"
    """Path of the camera: orbit, ellipse (as wide as the training cameras stand), spiral (twice
    around, rising and sinking; back and forth if all cameras face forward), train (through the
    training cameras in their order), tour (smoothly past what the training cameras saw); a .json
    file of `jaxrf view` or of nerfstudio's viewer, in the coordinates of the data set's files; or
    the views of a split: test, val or train-views. Default: a spiral if all cameras face forward, a
    tour of other captures, an orbit of objects."""
    elevation: float = 30.0
    """orbit, spiral: degrees above the horizon."""
    radius: float | None = None
    """orbit, spiral: distance from the scene's center, in scene units. Default: that of the
    training cameras."""
    data: Path | None = None
    """test, val, train-views: folder of the data set. Default: that of the training."""
    every: int = 1
    """test, val, train-views: render every K-th view."""
    colors: str = "turbo"
    """Color map of depth, by matplotlib's name."""
    supersample: int | None = None
    """Rays per pixel along each axis, averaged; 1 is fastest. Default: as in training."""
    step: int | None = None
    """Step of the checkpoint. Default: the last."""

    def __post_init__(self) -> None:
        require_positive(self, "frames", "fps", "size", "radius", "supersample", "every")

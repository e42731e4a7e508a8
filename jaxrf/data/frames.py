"""Frames: the images that a data set lists, with their cameras, before any image is decoded.

Every reader turns its files into frames; `loading` makes a scene of them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.lenses import Lens
from jaxrf.core.errors import InputError

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Intrinsics:
    """Intrinsics of a camera, as a data set gives them.

    Attributes:
      focal: (x, y) focal lengths in pixels of an image of `size`; None where there is an angle.
      angles: (x, y) angles of view in radians, where there is no focal length. If only one axis has
        either, pixels are square.
      center: (x, y) principal point in pixels; None is the middle of the image.
      size: (width, height) of the image that they are for; None is the size of the file.
      relative: whether focal lengths and the principal point are in units of the longer side, the
        latter from the middle of the image; then `size` is None.
      lens, distortion: as in `Cameras`, no coefficients for a pinhole.
    """

    focal: tuple[float | None, float | None] = (None, None)
    angles: tuple[float | None, float | None] = (None, None)
    center: tuple[float | None, float | None] = (None, None)
    size: tuple[float, float] | None = None
    relative: bool = False
    lens: Lens = "perspective"
    distortion: tuple[float, ...] = ()

    def fit(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Focal lengths and principal point (x, y, x, y) for an image of the given size."""
        size = self.size or (float(width), float(height))
        lengths = [
            focal if focal is not None or angle is None else 0.5 * side / math.tan(0.5 * angle)
            for focal, angle, side in zip(self.focal, self.angles, size, strict=True)
        ]
        across, down = lengths[0] or lengths[1] or 0.0, lengths[1] or lengths[0] or 0.0
        if self.relative:
            longer, (x, y) = max(size), self.center
            middle = 0.5 * size[0] + (x or 0.0) * longer, 0.5 * size[1] + (y or 0.0) * longer
            return across * longer, down * longer, *middle
        center = [
            0.5 * side if middle is None else middle
            for middle, side in zip(self.center, size, strict=True)
        ]
        sx, sy = width / size[0], height / size[1]
        return across * sx, down * sy, center[0] * sx, center[1] * sy


@dataclasses.dataclass(frozen=True)
class Mask:
    """The file of a mask; `inverted` if its white pixels, rather than the black ones, are left out.

    `path` is relative to the data folder.
    """

    path: Path
    inverted: bool = False


@dataclasses.dataclass(frozen=True)
class DepthMap:
    """The file of a depth map, with depth along the optical axis.

    Attributes:
      path: relative to the data folder.
      unit: of its numbers, in the files' units.
    """

    path: Path
    unit: float


@dataclasses.dataclass(frozen=True)
class Frame:
    """An image that a data set lists.

    Attributes:
      path: of the image, relative to the data folder.
      listing: file that lists it, for messages.
      pose: (4, 4) camera-to-world, OpenGL axes, in the files' coordinates.
      intrinsics: of its camera.
      mask: of its pixels.
      depth: path of its true depth, for scoring, relative to the data folder.
      depth_map: measured depth of its pixels.
      points: (q, 3) points of a reconstruction that it shows: across and down as fractions of the
        width and height, and the distance from its camera in the files' units.
      scale: of the axes of its pose in the file, which `pose` is without.
    """

    path: Path
    listing: Path
    pose: Float[np.ndarray, "4 4"]
    intrinsics: Intrinsics
    mask: Mask | None = None
    depth: Path | None = None
    depth_map: DepthMap | None = None
    points: Float[np.ndarray, "q 3"] | None = None
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class ObjectRegion:
    """An object around the origin, in the units of NeRF's synthetic scenes or in others."""


@dataclasses.dataclass(frozen=True)
class BoxRegion:
    """Contents of a box in the files' coordinates."""

    box: Float[np.ndarray, "2 3"]


@dataclasses.dataclass(frozen=True)
class CaptureRegion:
    """A capture without bounds.

    Attributes:
      near, far: of its rays, in the files' units; None if unknown.
      nearest: distance of the nearest content from its camera, in the files' units, if normalized
        device coordinates may be used.
    """

    near: float | None = None
    far: float | None = None
    nearest: float | None = None


Region = ObjectRegion | BoxRegion | CaptureRegion


@dataclasses.dataclass(frozen=True)
class Listing:
    """The frames that the files of a data set list.

    Attributes:
      folder: of the data set.
      path: of the file that lists the images, for messages.
      frames: by split; under `ALL` if some are still to be held out for testing.
      region: of the scene in the files' coordinates.
      poses: (n, 4, 4) that the scene is placed by; None for those of all frames.
      downscale: factor by which images are still to be shrunk; None for that of the options.
      stored_pixels: whether the cameras are those of the pixels as they are stored, whatever their
        EXIF orientation is, as COLMAP's are.
      notes: sentences on what is not used.
    """

    folder: Path
    path: Path
    frames: Mapping[str, Sequence[Frame]]
    region: Region
    poses: Float[np.ndarray, "n 4 4"] | None = None
    downscale: int | None = None
    stored_pixels: bool = False
    notes: tuple[str, ...] = ()


def check_focal(value: float, where: str) -> float:
    """A focal length in pixels; InputError if it cannot be one."""
    if not 0.0 < value < 1e7:
        raise InputError(f"{where} is {value:g}; make it the focal length in pixels.")
    return value

"""What every reader of a data set gives: a `Scene` with its `Split`s, in host memory."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.cameras import Cameras, resize_cameras


@dataclasses.dataclass(frozen=True)
class Split:
    """The pictures of one split, with the cameras that took them.

    Attributes:
      name: "train", "val" or "test".
      names: one per picture, as it is reported (for example "r_0").
      images: (n, h, w, 4) straight (not premultiplied) RGBA; opaque pictures have alpha 255.
      cameras: n of them, of the same width and height.
      depth: (n, h, w) true distance along each pixel centre's unit ray in scene units, inf where
        the ray hits nothing; None where the data set has no such thing.
    """

    name: str
    names: tuple[str, ...]
    images: UInt8[np.ndarray, "n h w 4"]
    cameras: Cameras
    depth: Float[np.ndarray, "n h w"] | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A data set's geometry and its splits.

    Attributes:
      name: what runs are named after.
      splits: by name; only those that were asked for are loaded.
      aabb: (2, 3) box that holds everything to be modelled, in scene units.
      near, far: distances along the unit ray between which cameras see anything.
    """

    name: str
    splits: dict[str, Split]
    aabb: Float[np.ndarray, "2 3"]
    near: float
    far: float


def downscale_images(
    images: UInt8[np.ndarray, "n h w 4"], factor: int
) -> UInt8[np.ndarray, "n h_small w_small 4"]:
    """Area means of factor x factor blocks, the colour weighted by alpha.

    Averages premultiplied colour and coverage, as light on a larger pixel would be, and stores the
    colour straight again. Rows and columns that do not fill a block are left out.
    """
    count, height, width, _ = images.shape
    small_h, small_w = height // factor, width // factor
    result = np.empty((count, small_h, small_w, 4), np.uint8)

    def shrink(index: int) -> None:
        pixels = images[index, : small_h * factor, : small_w * factor].astype(np.float32)
        pixels[..., :3] *= pixels[..., 3:]
        rows = pixels.reshape(small_h, factor, -1).sum(axis=1)
        total = rows.reshape(small_h, small_w, factor, 4).sum(axis=2)
        small = result[index]
        small[..., :3] = np.rint(total[..., :3] / np.maximum(total[..., 3:], 1.0))
        small[..., 3] = np.rint(total[..., 3] / factor**2)

    with ThreadPoolExecutor() as pool:
        list(pool.map(shrink, range(count)))
    return result


def downscale_split(split: Split, factor: int) -> Split:
    """A split with pictures `factor` times smaller by area; true depth is dropped.

    The cameras keep their geometry: where a border that does not fill a block was cut off, the
    focal length in large pixels and the top left corner stay what they were.
    """
    if factor == 1:
        return split
    images = downscale_images(split.images, factor)
    height, width = images.shape[1:3]
    covered = dataclasses.replace(split.cameras, width=width * factor, height=height * factor)
    cameras = resize_cameras(covered, width, height)
    return dataclasses.replace(split, images=images, cameras=cameras, depth=None)


def composite(
    rgba: UInt8[np.ndarray, "*batch 4"], background: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "*batch 3"]:
    """Straight RGBA over a background: rgb a + background (1 - a), float32 in [0, 1]."""
    values = rgba.astype(np.float32) / 255.0
    alpha = values[..., 3:]
    return values[..., :3] * alpha + background.astype(np.float32) * (1.0 - alpha)

"""What every reader of a data set gives: a `Scene` with its `Split`s, in host memory."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxrf.cameras.base import Cameras, resize_cameras
from jaxrf.cameras.transforms import SimilarityTransform, identity_transform


@dataclasses.dataclass(frozen=True)
class Split:
    """The pictures of one split, with the cameras that took them.

    Attributes:
      name: "train", "val" or "test".
      names: one per picture, as it is reported (for example "r_0").
      images: (n, h, w, 4) straight (not premultiplied) RGBA; opaque pictures have alpha 255.
      cameras: n of them, of the same width and height.
      depth: (n, h, w) true distance along each pixel center's unit ray in scene units, inf where
        the ray hits nothing; None where the data set has no such thing.
      masks: (n, h, w) which pixels are to be learnt from and compared; None if all are.
    """

    name: str
    names: tuple[str, ...]
    images: UInt8[np.ndarray, "n h w 4"]
    cameras: Cameras
    depth: Float[np.ndarray, "n h w"] | None = None
    masks: Bool[np.ndarray, "n h w"] | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A data set's geometry and its splits.

    Attributes:
      name: what runs are named after.
      splits: by name; only those that were asked for are loaded.
      aabb: (2, 3) box that holds everything to be modeled, in scene units.
      near, far: distances along the unit ray between which cameras see anything.
      unbounded: whether there is more to see around the box.
      frame: how the scene's coordinates came out of those of its files.
    """

    name: str
    splits: dict[str, Split]
    aabb: Float[np.ndarray, "2 3"]
    near: float
    far: float
    unbounded: bool = False
    frame: SimilarityTransform = dataclasses.field(default_factory=identity_transform)


def find_background(images: UInt8[np.ndarray, "n h w 4"]) -> Literal["white", "black"] | None:
    """What opaque pictures show around an object: white or black, if most of their borders are.

    None if they show something else there, or are transparent somewhere.
    """
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    border = np.concatenate([side.reshape(-1, 4) for side in sides]).astype(np.int16)
    if border[..., 3].min(initial=255) < 255 or images[..., 3].min(initial=255) < 255:
        return None
    levels: dict[Literal["white", "black"], int] = {"white": 255, "black": 0}
    for name, level in levels.items():
        # A few levels off is what compression makes of it.
        if np.mean(np.all(np.abs(border[..., :3] - level) <= 8, axis=-1)) > 0.5:
            return name
    return None


def downscale_images(
    images: UInt8[np.ndarray, "n h w 4"], factor: int
) -> UInt8[np.ndarray, "n h_small w_small 4"]:
    """Area means of factor x factor blocks, the color weighted by alpha.

    Averages premultiplied color and coverage, as light on a larger pixel would be, and stores the
    color straight again. Rows and columns that do not fill a block are left out.
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

    A pixel counts if all that it covers does.

    The cameras keep their geometry: where a border that does not fill a block was cut off, the
    focal length in large pixels and the top left corner stay what they were.
    """
    if factor == 1:
        return split
    images = downscale_images(split.images, factor)
    height, width = images.shape[1:3]
    covered = dataclasses.replace(split.cameras, width=width * factor, height=height * factor)
    cameras = resize_cameras(covered, width, height)
    masks = None if split.masks is None else shrink_masks(split.masks, factor)
    return dataclasses.replace(split, images=images, cameras=cameras, depth=None, masks=masks)


def shrink_masks(
    masks: Bool[np.ndarray, "n h w"], factor: int
) -> Bool[np.ndarray, "n h_small w_small"]:
    """True for blocks of factor x factor that are true throughout."""
    count, height, width = masks.shape
    rows, columns = height // factor, width // factor
    whole = masks[:, : rows * factor, : columns * factor]
    return np.asarray(whole.reshape(count, rows, factor, columns, factor).all(axis=(2, 4)))


def composite(
    rgba: UInt8[np.ndarray, "*batch 4"], background: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "*batch 3"]:
    """Straight RGBA over a background: rgb a + background (1 - a), float32 in [0, 1]."""
    values = rgba.astype(np.float32) / 255.0
    alpha = values[..., 3:]
    return values[..., :3] * alpha + background.astype(np.float32) * (1.0 - alpha)

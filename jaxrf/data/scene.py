"""`Scene` and its `Split`s, which every reader of a data set returns, in host memory."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxrf.cameras.base import Cameras, resize_cameras
from jaxrf.cameras.transforms import SimilarityTransform, identity_transform
from jaxrf.core.errors import MissingSplitError
from jaxrf.data.images import shrink_image
from jaxrf.data.options import LoadOptions

# Levels by which compression changes pixels of a plain color.
PLAIN_TOLERANCE = 8


class KnownDepth(NamedTuple):
    """Pixels whose depth is known, from points of a reconstruction or from depth maps.

    image, row, column: (q,) of each pixel.
    distance: (q,) along the pixel's unit ray, in scene units.
    """

    image: Int[np.ndarray, "q"]
    row: Int[np.ndarray, "q"]
    column: Int[np.ndarray, "q"]
    distance: Float[np.ndarray, "q"]


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split, with the cameras that took them.

    Attributes:
      name: "train", "val" or "test".
      names: of the images, for reports (for example "r_0").
      images: (n, h, w, 4) straight (not premultiplied) RGBA; opaque images have alpha 255.
      cameras: n cameras of the same width and height.
      depth: (n, h, w) true distance along each pixel center's unit ray in scene units, inf where
        the ray hits nothing; None if the data set has no depth.
      masks: (n, h, w) pixels to train on and to score; None for all of them.
      sizes: (n, 2) width and height of each image, which is at the top left of its array and masked
        outside; None if all images fill their arrays.
      known_depth: measured depth of some pixels, to train on; None if there is none.
      exposures: (n,) light that each image was exposed to, relative to the others
        (`images.read_image_size`); None if it is not known of all.
      paths: of the images, relative to the folder of the data set; empty without files.
    """

    name: str
    names: tuple[str, ...]
    images: UInt8[np.ndarray, "n h w 4"]
    cameras: Cameras
    depth: Float[np.ndarray, "n h w"] | None = None
    masks: Bool[np.ndarray, "n h w"] | None = None
    sizes: Int[np.ndarray, "n 2"] | None = None
    known_depth: KnownDepth | None = None
    exposures: Float[np.ndarray, "n"] | None = None
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        """Its name, and number and size of its images, without the arrays."""
        return f"Split({self.name!r}, {len(self)} images of {self.describe_size()})"

    def image_size(self, index: int) -> tuple[int, int]:
        """Width and height of an image."""
        if self.sizes is None:
            return self.images.shape[2], self.images.shape[1]
        width, height = self.sizes[index]
        return int(width), int(height)

    def crop(self, index: int) -> UInt8[np.ndarray, "h w 4"]:
        """An image in its own size."""
        width, height = self.image_size(index)
        return self.images[index, :height, :width]

    def describe_size(self) -> str:
        """Width and height of the images, or the range of them, such as "72x96 to 96x72"."""
        sizes = sorted({self.image_size(index) for index in range(len(self))})
        if len(sizes) < 2:
            width, height = sizes[0] if sizes else (self.images.shape[2], self.images.shape[1])
            return f"{width}x{height}"
        return f"{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A data set's geometry and its splits.

    Attributes:
      name: of the data set; runs are named after it.
      splits: by name; only the requested ones are loaded.
      aabb: (2, 3) box around everything to be reconstructed, in scene units.
      near, far: distances along the unit ray between which cameras see the scene.
      unbounded: whether the cameras also see space around the box.
      frame: transform from the coordinates of the files to those of the scene.
      folder: that it was read from; None if it was made in memory.
      options: that it was read with.
      notes: sentences on what of the data set is not used.
    """

    name: str
    splits: dict[str, Split]
    aabb: Float[np.ndarray, "2 3"]
    near: float
    far: float
    unbounded: bool = False
    frame: SimilarityTransform = dataclasses.field(default_factory=identity_transform)
    folder: Path | None = None
    options: LoadOptions = dataclasses.field(default_factory=LoadOptions)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Its name, splits and extent, without the arrays."""
        splits = ", ".join(repr(split) for split in self.splits.values())
        low, high = (tuple(float(x) for x in corner.round(3)) for corner in self.aabb)
        return (
            f"Scene({self.name!r}, [{splits}], aabb={low} to {high}, near={self.near:.3g}, "
            f"far={self.far:.3g}, unbounded={self.unbounded})"
        )

    @property
    def train(self) -> Split:
        """The training split; `MissingSplitError` if it was not loaded."""
        return self._split("train")

    @property
    def val(self) -> Split:
        """The validation split; `MissingSplitError` if it was not loaded."""
        return self._split("val")

    @property
    def test(self) -> Split:
        """The test split; `MissingSplitError` if it was not loaded."""
        return self._split("test")

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            loaded = ", ".join(self.splits) or "none"
            raise MissingSplitError(
                f"The scene {self.name} has no split {name!r} (loaded: {loaded}): load it, too."
            )
        return self.splits[name]


def find_split_background(split: Split) -> Literal["white", "black"] | None:
    """Background color of the images of a split, of one size or several (`find_background`)."""
    if split.sizes is None:
        return find_background(split.images)
    sizes = [split.image_size(index) for index in range(len(split))]
    colors = {
        find_background(image[None, :height, :width])
        for image, (width, height) in zip(split.images, sizes, strict=True)
    }
    return colors.pop() if len(colors) == 1 else None


def find_background(images: UInt8[np.ndarray, "n h w 4"]) -> Literal["white", "black"] | None:
    """Background color of opaque images: white or black if more than half of their borders are.

    None for other borders, if any pixel is transparent, and of no images.
    """
    if not len(images):
        return None
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    border = np.concatenate([side.reshape(-1, 4) for side in sides]).astype(np.int16)
    levels: dict[Literal["white", "black"], int] = {"white": 255, "black": 0}
    for name, level in levels.items():
        if np.mean(np.all(np.abs(border[..., :3] - level) <= PLAIN_TOLERANCE, axis=-1)) > 0.5:
            # Asked last, as it reads every image.
            return name if images[..., 3].min() == 255 else None
    return None


def downscale_images(
    images: UInt8[np.ndarray, "n h w 4"], factor: int
) -> UInt8[np.ndarray, "n h_small w_small 4"]:
    """Images shrunk by a factor (`images.shrink_image`)."""
    count, height, width, _ = images.shape
    result = np.empty((count, height // factor, width // factor, 4), np.uint8)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda rgba, small: shrink_image(rgba, factor, small), images, result))
    return result


def downscale_split(split: Split, factor: int) -> Split:
    """A split with images downscaled by `factor` along each side, without depth.

    A pixel is in the mask if all pixels that it covers are. The rays of the cameras are unchanged:
    where a border that does not fill a block is cropped, the field of view shrinks with it.
    """
    if factor == 1:
        return split
    return dataclasses.replace(
        split,
        images=downscale_images(split.images, factor),
        cameras=downscale_cameras(split.cameras, factor),
        depth=None,
        masks=None if split.masks is None else shrink_masks(split.masks, factor),
        sizes=None if split.sizes is None else split.sizes // factor,
        known_depth=downscale_depth(split.known_depth, factor, split.cameras),
    )


def downscale_cameras(cameras: Cameras, factor: int) -> Cameras:
    """Cameras with the same rays for images shrunk by a factor, cropped to whole blocks."""
    width, height = cameras.width // factor, cameras.height // factor
    covered = dataclasses.replace(cameras, width=width * factor, height=height * factor)
    return resize_cameras(covered, width, height)


def downscale_depth(known: KnownDepth | None, factor: int, cameras: Cameras) -> KnownDepth | None:
    """The larger pixels that the pixels of known depth are in; several may be in one."""
    if known is None:
        return None
    row, column = known.row // factor, known.column // factor
    inside = (row < cameras.height // factor) & (column < cameras.width // factor)
    return KnownDepth(known.image[inside], row[inside], column[inside], known.distance[inside])


def shrink_masks(
    masks: Bool[np.ndarray, "n h w"], factor: int
) -> Bool[np.ndarray, "n h_small w_small"]:
    """Masks of factor x factor blocks: True where all pixels of the block are."""
    count, height, width = masks.shape
    rows, columns = height // factor, width // factor
    cropped = masks[:, : rows * factor, : columns * factor]
    return np.asarray(cropped.reshape(count, rows, factor, columns, factor).all(axis=(2, 4)))


def composite(
    rgba: UInt8[np.ndarray, "*batch 4"], background: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "*batch 3"]:
    """Straight RGBA composited over a background: rgb a + background (1 - a), float32 in [0, 1]."""
    values = rgba.astype(np.float32) / 255.0
    alpha = values[..., 3:]
    return values[..., :3] * alpha + background.astype(np.float32) * (1.0 - alpha)

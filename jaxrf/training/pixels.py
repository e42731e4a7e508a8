"""The pixels of the training images, and the batch of rays that each step draws from them.

Letters in shapes: p pixels, s sub-rays of a pixel, k steps.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxrf.cameras.base import Cameras, pixels_to_rays, resize_cameras
from jaxrf.cameras.ndc import distance_to_ndc
from jaxrf.cameras.refinement import (
    CameraAdjustment,
    RayCameras,
    adjust_cameras,
    gather_cameras,
)
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.data.scene import Split, downscale_images, shrink_masks
from jaxrf.training.config import TrainConfig

# Stands in place of pixels that are left out, above all flat indices.
UNUSED = 2**31 - 1
BACKGROUNDS = {"white": 1.0, "black": 0.0, "random": 1.0}


class DepthPixels(NamedTuple):
    """Pixels of the images in full size whose depth is known.

    pixel_ids: (q,) as in `PixelDataset`.
    distance: (q,) along their rays, in scene units.
    """

    pixel_ids: Int[Array, "q"]
    distance: Float[Array, "q"]


class PixelDataset(NamedTuple):
    """The training images, on the device or in host memory.

    images: (n, h, w, 4) straight RGBA.
    cameras: n of them.
    pixel_ids: (p,) flat indices (image, row, column) of the pixels to sample from, ascending; the
      first `total` count, and after them stands `UNUSED`. Those of smaller images follow those of
      larger ones.
    total: () number of pixels to sample from.
    smaller_images: the images in the other sizes that are trained on.
    scales: (sizes,) factor by which images of each size are smaller, the first being 1.
    starts: (sizes,) where in `pixel_ids` the pixels of each size begin.
    depth: pixels to sample in addition, for their depth; None if it is not trained on.
    preconditioner: of the adjustments of the cameras; None if they are not refined.
    """

    images: UInt8[Array | np.ndarray, "n h w _"]
    cameras: Cameras
    pixel_ids: Int[Array | np.ndarray, "p"]
    total: Int[Array, ""]
    smaller_images: tuple[UInt8[Array | np.ndarray, "n _ _ _"], ...]
    scales: Int[Array, "sizes"]
    starts: Int[Array, "sizes"]
    depth: DepthPixels | None = None
    preconditioner: Float[Array, "n d d"] | None = None


class PixelIndices(NamedTuple):
    """Positions of pixels in the images.

    size: (...) index of the size of the images.
    image, row, column: (...) in the images of that size.
    scale: (...) factor by which those are smaller.
    """

    size: Int[Array, "*p"]
    image: Int[Array, "*p"]
    row: Int[Array, "*p"]
    column: Int[Array, "*p"]
    scale: Int[Array, "*p"]


class SampledPixels(NamedTuple):
    """Pixels that were sampled before a batch is made of them: on the host, or as patches.

    pixel_ids: as in `PixelDataset`.
    rgba: straight; None if the images are on the device.
    mask: pixels of patches that are to be sampled from; None for single pixels, which all are.
    """

    pixel_ids: Int[Array | np.ndarray, "*k p"]
    rgba: UInt8[Array | np.ndarray, "*k p 4"] | None = None
    mask: Bool[Array | np.ndarray, "*k p"] | None = None


class Batch(NamedTuple):
    """The rays of a training step and the colors that they are compared with.

    rays: (p * s,) those of a pixel next to each other.
    target_rgb: (p, 3) colors of the pixels over their backgrounds.
    background: (p, 3).
    alpha: (p,) of the pixels.
    loss_mult: (p,) area of the pixels, whose mean over the batch is 1.
    distance: (p * s,) known depth of the rays, NaN where it is not known; None if there is none.
    mask: (p,) pixels that the loss counts; None for all of them.
    inlier_quantile: (p,) share of the pixels that fit well, the same for all; None if all are
      trained on.
    ray_cameras: the camera of each ray, if cameras are refined.
    """

    rays: Rays
    target_rgb: Float[Array, "p 3"]
    background: Float[Array, "p 3"]
    alpha: Float[Array, "p"]
    loss_mult: Float[Array, "p"]
    distance: Float[Array, "r"] | None = None
    mask: Bool[Array, "p"] | None = None
    inlier_quantile: Float[Array, "p"] | None = None
    ray_cameras: RayCameras | None = None


class SamplingRegion(NamedTuple):
    """The pixels that a step samples from.

    crop: share of width and height, around the center of the images; 1 is all.
    size: () index of the size of the images; None samples from all sizes.
    """

    crop: float | Float[Array, ""] = 1.0
    size: Int[Array, ""] | None = None


def to_device(
    split: Split,
    scales: Sequence[int] = (1,),
    keep_images_on_host: bool = False,
    use_depth: bool = False,
) -> PixelDataset:
    """A split's images, every pixel to be sampled from.

    Args:
      split: of a data set.
      scales: factors by which images are smaller in each size that is trained on, from 1 on.
      keep_images_on_host: leaves the images in host memory, to be prefetched.
      use_depth: samples pixels of known depth in addition.

    Raises:
      InputError: if images are too small or too many, or masks leave nothing.
    """
    assert scales[0] == 1
    height, width = split.images.shape[1:3]
    if min(height, width) < max(scales):
        raise InputError(
            f"Images of {width}x{height} cannot be made {max(scales)} times smaller: lower "
            "--num-train-scales or the factors in --train-scale-schedule."
        )
    smaller = [downscale_images(split.images, scale) for scale in scales[1:]]
    counts = [math.prod(images.shape[:3]) for images in (split.images, *smaller)]
    total = sum(counts)
    if total >= 2**31:
        raise InputError(
            f"The {split.name} split has {total} pixels, more than 2^31: use --downscale."
        )
    pixel_ids = np.arange(total, dtype=np.int32)
    if split.masks is not None:
        masks = [shrink_masks(split.masks, scale).ravel() for scale in scales]
        pixel_ids, counts = (
            np.flatnonzero(np.concatenate(masks)),
            [int(mask.sum()) for mask in masks],
        )
    if pixel_ids.size == 0:
        raise InputError(f"The masks of the {split.name} split leave no pixel: give others.")
    put = np.asarray if keep_images_on_host else jnp.asarray
    return PixelDataset(
        images=put(split.images),
        cameras=jax.tree.map(jnp.asarray, split.cameras),
        pixel_ids=put(pad_pixel_ids(pixel_ids, total)),
        total=jnp.asarray(pixel_ids.size, jnp.int32),
        smaller_images=tuple(put(images) for images in smaller),
        scales=jnp.asarray(scales, jnp.int32),
        starts=jnp.asarray(np.cumsum([0, *counts[:-1]]), jnp.int32),
        depth=_list_depth_pixels(split) if use_depth else None,
    )


def pad_pixel_ids(pixel_ids: Int[np.ndarray, "_"], total: int) -> Int[np.ndarray, "_"]:
    """Ascending flat indices of pixels, followed by `UNUSED` up to a total number."""
    padding = (0, total - pixel_ids.size)
    return np.pad(pixel_ids.astype(np.int32), padding, constant_values=UNUSED)


def _list_depth_pixels(split: Split) -> DepthPixels:
    """The pixels of known depth that no mask leaves out.

    Raises:
      InputError: if there is none.
    """
    known = split.known_depth
    count = 0
    if known is not None:
        at = (known.image, known.row, known.column)
        usable = np.ones(known.row.shape, bool) if split.masks is None else split.masks[at]
        count = int(usable.sum())
    if known is None or count == 0:
        raise InputError(
            f"--loss.depth-weight is set, and the split {split.name} has no pixel of known depth: "
            "give a data set with COLMAP's points or depth maps (from Python, load it with "
            "depth=True), or leave the option out."
        )
    ids = np.ravel_multi_index(tuple(n[usable] for n in at), split.images.shape[:3])
    return DepthPixels(
        jnp.asarray(ids, jnp.int32), jnp.asarray(known.distance[usable], jnp.float32)
    )


def count_bytes(split: Split, scales: Sequence[int]) -> int:
    """Bytes of a split's images on the device, in all sizes, with the list of their pixels."""
    pixels = sum(math.prod(split.images.shape[:3]) // scale**2 for scale in scales)
    return 8 * pixels


def drop_images(pixels: PixelDataset) -> PixelDataset:
    """The sizes and cameras of images that stay on the host, without the images."""
    return pixels._replace(
        images=jnp.zeros((*pixels.images.shape[:3], 0), jnp.uint8),
        smaller_images=tuple(
            jnp.zeros((*x.shape[:3], 0), jnp.uint8) for x in pixels.smaller_images
        ),
        pixel_ids=jnp.zeros((0,), jnp.int32),
    )


def sampling_region(config: TrainConfig, progress: Float[Array, ""]) -> SamplingRegion:
    """The pixels to sample from at a progress of training."""
    crop: float | Array = 1.0
    if config.precrop_fraction > 0.0:
        crop = jnp.where(progress < config.precrop_fraction, config.precrop_scale, 1.0)
    if not config.train_scale_schedule:
        return SamplingRegion(crop)
    # Steps become fractions when a configuration is resolved for its scene.
    assert all(0.0 <= start < 1.0 for start, _ in config.train_scale_schedule)
    scales = config.image_scales()
    size = jnp.asarray(scales.index(config.train_scale_schedule[0][1]), jnp.int32)
    for start, scale in config.train_scale_schedule:
        size = jnp.where(progress >= start, scales.index(scale), size)
    return SamplingRegion(crop, size)


def sample_pixel_slots(
    pixels: PixelDataset, key: jax.Array, count: int, size: Int[Array, ""] | None = None
) -> Int[Array, "p"]:
    """Random slots of `PixelDataset.pixel_ids`, of one size of the images or of all."""
    first, last = jnp.zeros((), jnp.int32), pixels.total
    if size is not None:
        ends = jnp.append(pixels.starts[1:], pixels.total)
        # If no pixel of a size is left, all sizes are sampled from.
        exists = ends[size] > pixels.starts[size]
        first = jnp.where(exists, pixels.starts[size], first)
        last = jnp.where(exists, ends[size], last)
    return jax.random.randint(key, (count,), first, last)


def replace_by_depth_pixels(
    pixels: PixelDataset,
    key: jax.Array,
    pixel_ids: Int[Array, "p"],
    share: float,
    region: SamplingRegion,
) -> tuple[Int[Array, "p"], Float[Array, "p"]]:
    """Sampled pixels with a share of them replaced by random pixels of known depth.

    None is replaced while only a crop or smaller images are sampled from.

    Args:
      pixels: to sample from; has pixels of known depth.
      key: of the pixels of this step.
      pixel_ids: (p,) sampled from all pixels.
      share: of the pixels that are replaced, evenly spread, so that all parts of a step have some.
      region: of the images.

    Returns:
      Flat indices of the pixels, and their distances, NaN where they are not known.
    """
    assert pixels.depth is not None
    count = pixel_ids.shape[0]
    replaced = np.diff(np.floor(share * np.arange(count + 1) + 1e-6)) > 0
    slots = jax.random.randint(
        jax.random.fold_in(key, 1), (count,), 0, pixels.depth.pixel_ids.shape[0]
    )
    in_full_size = True if region.size is None else region.size == 0
    use = replaced & (jnp.asarray(region.crop) >= 1.0) & in_full_size
    return (
        jnp.where(use, pixels.depth.pixel_ids[slots], pixel_ids),
        jnp.where(use, pixels.depth.distance[slots], jnp.nan),
    )


def unravel_pixels(
    pixels: PixelDataset, pixel_ids: Int[Array, "p"], crop: float | Float[Array, ""] = 1.0
) -> PixelIndices:
    """Image, row and column of pixels, given their flat indices.

    With a `crop` below 1 they are moved into that part of the images, around the center.
    """
    size = image = row = column = jnp.zeros_like(pixel_ids)
    begin = 0
    for number, images in enumerate((pixels.images, *pixels.smaller_images)):
        count, height, width = images.shape[:3]
        belongs = (pixel_ids >= begin) & (pixel_ids < begin + count * height * width)
        at, within = jnp.divmod(jnp.where(belongs, pixel_ids - begin, 0), height * width)
        y, x = jnp.divmod(within, width)
        if not isinstance(crop, float) or crop < 1.0:
            y, x = _crop_coordinate(y, height, crop), _crop_coordinate(x, width, crop)
        size = jnp.where(belongs, number, size)
        image = jnp.where(belongs, at, image)
        row = jnp.where(belongs, y, row)
        column = jnp.where(belongs, x, column)
        begin += count * height * width
    return PixelIndices(size, image, row, column, pixels.scales[size])


def _crop_coordinate(
    pixel: Int[Array, "p"], side: int, crop: float | Float[Array, ""]
) -> Int[Array, "p"]:
    """Rows or columns of an image, moved into a share of it around the center."""
    return jnp.floor((pixel + 0.5 - 0.5 * side) * crop + 0.5 * side).astype(jnp.int32)


def _read_colors(pixels: PixelDataset, indices: PixelIndices) -> UInt8[Array, "p 4"]:
    rgba = jnp.zeros((indices.image.size, 4), jnp.uint8)
    for size, images in enumerate((pixels.images, *pixels.smaller_images)):
        belongs = indices.size == size
        at = (jnp.where(belongs, n, 0) for n in (indices.image, indices.row, indices.column))
        rgba = jnp.where(belongs[:, None], images[tuple(at)], rgba)
    return rgba


def sample_batch(
    pixels: PixelDataset,
    key: jax.Array,
    count: int,
    near_far: tuple[float, float],
    background: str,
    supersample: int = 1,
    region: SamplingRegion = SamplingRegion(),
    sampled: SampledPixels | None = None,
    depth_share: float = 0.0,
) -> Batch:
    """Random pixels, each as supersample^2 rays through the centers of its equal parts.

    Args:
      pixels: to sample from.
      key: of pixels and backgrounds.
      count: number of pixels.
      near_far: distances between which rays are sampled.
      background: "white", "black", or "random" for a color per pixel.
      supersample: rays of a pixel along each axis.
      region: of the images.
      sampled: the pixels that this key samples, if the images are on the host or they are patches.
      depth_share: share of the pixels whose depth is known, if `pixels` has any such.
    """
    key_pixel, key_background = jax.random.split(key)
    if sampled is None:
        pixel_ids = pixels.pixel_ids[sample_pixel_slots(pixels, key_pixel, count, region.size)]
        sampled = SampledPixels(pixel_ids)
    pixel_ids = jnp.asarray(sampled.pixel_ids)
    distance = None
    if pixels.depth is not None:
        pixel_ids, distance = replace_by_depth_pixels(
            pixels, key_pixel, pixel_ids, depth_share, region
        )
    # Patches lie in the crop already.
    crop = region.crop if sampled.mask is None else 1.0
    indices = unravel_pixels(pixels, pixel_ids, crop)
    rgba = _read_colors(pixels, indices) if sampled.rgba is None else sampled.rgba
    rgba = jnp.asarray(rgba).astype(jnp.float32) / 255.0
    if background == "random":
        background_rgb = jax.random.uniform(key_background, (count, 3))
    else:
        background_rgb = jnp.full((count, 3), BACKGROUNDS[background])
    alpha = rgba[:, 3:]
    area = jnp.square(indices.scale.astype(jnp.float32))
    rays, distance, ray_cameras = _make_rays(pixels, indices, near_far, supersample, distance)
    return Batch(
        rays=rays,
        target_rgb=rgba[:, :3] * alpha + background_rgb * (1.0 - alpha),
        background=background_rgb,
        alpha=alpha[:, 0],
        loss_mult=area / jnp.mean(area),
        distance=distance,
        mask=None if sampled.mask is None else jnp.asarray(sampled.mask),
        ray_cameras=ray_cameras,
    )


def adjust_rays(
    batch: Batch, adjustment: CameraAdjustment | None, near_far: tuple[float, float]
) -> Batch:
    """A batch whose rays are those of adjusted cameras, differentiable in the adjustment.

    Args:
      batch: has its `ray_cameras` if there is an adjustment.
      adjustment: of all training cameras; None leaves the rays.
      near_far: distances between which rays are sampled.
    """
    if adjustment is None:
        return batch
    assert batch.ray_cameras is not None
    cameras, centers, scale = batch.ray_cameras
    index = batch.rays.camera_index
    per_ray: CameraAdjustment = jax.tree.map(lambda x: x[index], adjustment)
    adjusted = adjust_cameras(cameras, per_ray)
    number = jnp.arange(index.shape[0], dtype=jnp.int32)
    rays = pixels_to_rays(adjusted, number, centers, *near_far)
    rays = dataclasses.replace(rays, radii=rays.radii * scale, camera_index=index)
    return batch._replace(rays=rays)


def _make_rays(
    pixels: PixelDataset,
    indices: PixelIndices,
    near_far: tuple[float, float],
    supersample: int,
    distance: Float[Array, "p"] | None,
) -> tuple[Rays, Float[Array, "r"] | None, RayCameras | None]:
    """The sub-rays of pixels, each the ray of a finer pixel, their known depths and cameras."""
    height, width = pixels.images.shape[1:3]
    finer = resize_cameras(pixels.cameras, supersample * width, supersample * height)
    part = jnp.arange(supersample)[None]
    columns = jnp.tile(supersample * indices.column[:, None] + part, (1, supersample))
    rows = jnp.repeat(supersample * indices.row[:, None] + part, supersample, axis=1)
    scale = jnp.repeat(indices.scale, supersample**2).astype(jnp.float32)
    centers = jnp.stack([columns, rows], axis=-1).reshape(-1, 2).astype(jnp.float32) + 0.5
    centers = centers * scale[:, None]
    image = jnp.repeat(indices.image, supersample**2)
    rays = pixels_to_rays(finer, image, centers, *near_far)
    if distance is not None:
        distance = jnp.repeat(distance, supersample**2)
        if finer.ndc is not None:
            in_space = dataclasses.replace(finer, ndc=None)
            distance = distance_to_ndc(
                pixels_to_rays(in_space, image, centers, *near_far), rays, distance, finer.ndc[2]
            )
    ray_cameras = None
    if pixels.preconditioner is not None:
        ray_cameras = RayCameras(gather_cameras(finer, image), centers, scale)
    return dataclasses.replace(rays, radii=rays.radii * scale), distance, ray_cameras

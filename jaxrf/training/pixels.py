"""Batches: the pixels of the training pictures, which of them each step sees, and their rays.

Letters in shapes: p pixels, s sub-rays of a pixel, k steps.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxrf.cameras.base import Cameras, pixels_to_rays, project, resize_cameras
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.data.scene import Split, downscale_images, shrink_masks
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.config import TrainConfig
from jaxrf.training.optim import Course

BACKGROUNDS = {"white": 1.0, "black": 0.0, "random": 1.0}
MOST_TESTED_RAYS = 1 << 20


class PixelDataset(NamedTuple):
    """The training pictures, on the device or, to be streamed, in host memory.

    images: (n, h, w, 4) straight RGBA.
    cameras: n of them.
    drawn: (p,) flat indices (image, row, column) of pixels to draw from, ascending; the first
      `total` count. Those of smaller pictures follow those of larger ones.
    total: () how many.
    smaller: the pictures in the other sizes that are trained on.
    factors: (1 + smaller,) how many times smaller each is, the first being 1.
    starts: (1 + smaller,) where in `drawn` the pixels of each size begin.
    """

    images: UInt8[Array | np.ndarray, "n h w _"]
    cameras: Cameras
    drawn: Int[Array | np.ndarray, "p"]
    total: Int[Array, ""]
    smaller: tuple[UInt8[Array | np.ndarray, "n _ _ _"], ...]
    factors: Int[Array, "sizes"]
    starts: Int[Array, "sizes"]


class PixelIndices(NamedTuple):
    """Where pixels are.

    which: (...) of the sizes of the pictures.
    image, row, column: (...) in the pictures of that size.
    factor: (...) how many times smaller those are.
    """

    which: Int[Array, "*p"]
    image: Int[Array, "*p"]
    row: Int[Array, "*p"]
    column: Int[Array, "*p"]
    factor: Int[Array, "*p"]


class PrefetchedPixels(NamedTuple):
    """Pixels that were drawn beforehand, as steps would draw them, with their colours.

    flat: as in `PixelDataset.drawn`.
    rgba: straight.
    """

    flat: Int[Array | np.ndarray, "*k p"]
    rgba: UInt8[Array | np.ndarray, "*k p 4"]


class Batch(NamedTuple):
    """What a training step compares.

    rays: (p * s,) those of a pixel next to each other.
    truth: (p, 3) true colours of the pixels over what is behind them.
    behind: (p, 3) backgrounds.
    alpha: (p,) of the pixels.
    area: (p,) of the pixels, in the smallest ones.
    """

    rays: Rays
    truth: Float[Array, "p 3"]
    behind: Float[Array, "p 3"]
    alpha: Float[Array, "p"]
    area: Float[Array, "p"]


def to_device(split: Split, factors: Sequence[int] = (1,), stream: bool = False) -> PixelDataset:
    """A split's pictures, every pixel to be drawn from: on the device unless they are streamed.

    `factors` is how many times smaller they are in each of the sizes that are trained on, the first
    of which is their own.
    """
    assert factors[0] == 1
    height, width = split.images.shape[1:3]
    if min(height, width) < max(factors):
        raise InputError(
            f"Pictures of {width}x{height} cannot be made {max(factors)} times smaller: lower "
            "--scales or the factors in --train-scale-schedule."
        )
    smaller = [downscale_images(split.images, factor) for factor in factors[1:]]
    counts = [math.prod(images.shape[:3]) for images in (split.images, *smaller)]
    total = sum(counts)
    if total >= 2**31:
        raise InputError(
            f"The {split.name} split has {total} pixels, more than 2^31: use --downscale."
        )
    drawn, some = np.arange(total, dtype=np.int32), counts
    if split.masks is not None:
        masks = [shrink_masks(split.masks, factor).ravel() for factor in factors]
        drawn, some = np.flatnonzero(np.concatenate(masks)), [int(mask.sum()) for mask in masks]
    if drawn.size == 0:
        raise InputError(f"The masks of the {split.name} split leave no pixel: give others.")
    put = np.asarray if stream else jnp.asarray
    return PixelDataset(
        images=put(split.images),
        cameras=jax.tree.map(jnp.asarray, split.cameras),
        drawn=put(np.pad(drawn, (0, total - drawn.size)).astype(np.int32)),
        total=jnp.asarray(drawn.size, jnp.int32),
        smaller=tuple(put(images) for images in smaller),
        factors=jnp.asarray(factors, jnp.int32),
        starts=jnp.asarray(np.cumsum([0, *some[:-1]]), jnp.int32),
    )


def count_bytes(split: Split, factors: Sequence[int]) -> int:
    """Bytes of a split's pictures on the device, in all sizes, with the list of their pixels."""
    pixels = sum(math.prod(split.images.shape[:3]) // factor**2 for factor in factors)
    return 8 * pixels


def drop_images(pixels: PixelDataset) -> PixelDataset:
    """What steps need of pixels whose colours are streamed: sizes and cameras, but no picture."""
    return pixels._replace(
        images=jnp.zeros((*pixels.images.shape[:3], 0), jnp.uint8),
        smaller=tuple(jnp.zeros((*x.shape[:3], 0), jnp.uint8) for x in pixels.smaller),
        drawn=jnp.zeros((0,), jnp.int32),
    )


def image_scales(config: TrainConfig) -> tuple[int, ...]:
    """How many times smaller the pictures are in each size that is trained on, ascending from 1."""
    halved = {2**halvings for halvings in range(config.scales)}
    return tuple(sorted({1} | halved | {factor for _, factor in config.train_scale_schedule}))


def _find_size(config: TrainConfig, done: Float[Array, ""]) -> Int[Array, ""] | None:
    """Which size is trained on when training has come so far; None if all are at once."""
    if not config.train_scale_schedule:
        return None
    # Steps become fractions when a configuration is fitted to its scene.
    assert all(0.0 <= at < 1.0 for at, _ in config.train_scale_schedule)
    factors = image_scales(config)
    size = jnp.asarray(factors.index(config.train_scale_schedule[0][1]), jnp.int32)
    for at, factor in config.train_scale_schedule:
        size = jnp.where(done >= at, factors.index(factor), size)
    return size


class Choice(NamedTuple):
    """Which pixels a step draws from: a part of the pictures, and one of their sizes or all."""

    crop: float | Float[Array, ""]
    size: Int[Array, ""] | None


def sampling_region(config: TrainConfig, done: Float[Array, ""]) -> Choice:
    """What is drawn from when training has come so far."""
    crop: float | Array = 1.0
    if config.precrop_fraction > 0.0:
        crop = jnp.where(done < config.precrop_fraction, config.crop, 1.0)
    return Choice(crop, _find_size(config, done))


def sample_pixel_slots(
    pixels: PixelDataset, key: jax.Array, count: int, size: Int[Array, ""] | None = None
) -> Int[Array, "p"]:
    """Random places in `PixelDataset.drawn`, of one size of the pictures or of all."""
    first, last = jnp.zeros((), jnp.int32), pixels.total
    if size is not None:
        ends = jnp.append(pixels.starts[1:], pixels.total)
        # A size of which no pixel sees anything leaves the choice to all.
        some = ends[size] > pixels.starts[size]
        first = jnp.where(some, pixels.starts[size], first)
        last = jnp.where(some, ends[size], last)
    return jax.random.randint(key, (count,), first, last)


def locate(
    pixels: PixelDataset, flat: Int[Array, "p"], crop: float | Float[Array, ""] = 1.0
) -> PixelIndices:
    """Where pixels are, given their flat indices.

    With a `crop` below 1 they are moved into that part of the pictures, around the middle.
    """
    which = image = row = column = jnp.zeros_like(flat)
    begin = 0
    for size, images in enumerate((pixels.images, *pixels.smaller)):
        count, height, width = images.shape[:3]
        here = (flat >= begin) & (flat < begin + count * height * width)
        at, inside = jnp.divmod(jnp.where(here, flat - begin, 0), height * width)
        y, x = jnp.divmod(inside, width)
        if not isinstance(crop, float) or crop < 1.0:
            y, x = (
                jnp.floor((n + 0.5 - 0.5 * side) * crop + 0.5 * side).astype(jnp.int32)
                for n, side in ((y, height), (x, width))
            )
        which, image, row, column = (
            jnp.where(here, new, old)
            for new, old in ((size, which), (at, image), (y, row), (x, column))
        )
        begin += count * height * width
    return PixelIndices(which, image, row, column, pixels.factors[which])


def _read_colors(pixels: PixelDataset, spots: PixelIndices) -> UInt8[Array, "p 4"]:
    rgba = jnp.zeros((spots.image.size, 4), jnp.uint8)
    for size, images in enumerate((pixels.images, *pixels.smaller)):
        here = spots.which == size
        at = (jnp.where(here, n, 0) for n in (spots.image, spots.row, spots.column))
        rgba = jnp.where(here[:, None], images[tuple(at)], rgba)
    return rgba


def make_batch(
    pixels: PixelDataset,
    key: jax.Array,
    count: int,
    scene_range: tuple[float, float],
    background: str,
    supersample: int = 1,
    crop: float | Float[Array, ""] = 1.0,
    size: Int[Array, ""] | None = None,
    streamed: PrefetchedPixels | None = None,
) -> Batch:
    """Random pixels, each as supersample x supersample rays that pass the centres of its equal parts.

    With a `crop` below 1 pixels are moved into that part of the pictures, around the middle. With a
    `size` they are drawn from the pictures of that size alone. Those that are `streamed` were drawn
    with the same key before.
    """
    key_pixel, key_background = jax.random.split(key)
    height, width = pixels.images.shape[1:3]
    if streamed is None:
        flat = pixels.drawn[sample_pixel_slots(pixels, key_pixel, count, size)]
    else:
        flat = streamed.flat
    spots = locate(pixels, flat, crop)
    rgba = _read_colors(pixels, spots) if streamed is None else streamed.rgba
    rgba = jnp.asarray(rgba).astype(jnp.float32) / 255.0
    # A sub-ray is the ray of a finer pixel.
    finer = resize_cameras(pixels.cameras, supersample * width, supersample * height)
    part = jnp.arange(supersample)[None]
    columns = jnp.tile(supersample * spots.column[:, None] + part, (1, supersample))
    rows = jnp.repeat(supersample * spots.row[:, None] + part, supersample, axis=1)
    parts = jnp.repeat(spots.factor, supersample**2).astype(jnp.float32)
    centres = jnp.stack([columns, rows], axis=-1).reshape(-1, 2).astype(jnp.float32) + 0.5
    centres = centres * parts[:, None]
    rays = pixels_to_rays(finer, jnp.repeat(spots.image, supersample**2), centres, *scene_range)
    rays = dataclasses.replace(rays, radii=rays.radii * parts)
    if background == "random":
        behind = jax.random.uniform(key_background, (count, 3))
    else:
        behind = jnp.full((count, 3), BACKGROUNDS[background])
    alpha = rgba[:, 3:]
    truth = rgba[:, :3] * alpha + behind * (1.0 - alpha)
    return Batch(rays, truth, behind, alpha[:, 0], jnp.square(spots.factor.astype(jnp.float32)))


def filter_pixels(
    pixels: PixelDataset, grid: OccupancyGrid, scene_range: tuple[float, float]
) -> PixelDataset:
    """Leaves out the pixels whose rays cannot hit an occupied cell (TensoRF's ray filtering).

    Large sets are tested on every k-th pixel, with the cells dilated by what lies between. Cells
    that are probed come and go, so that by them no pixel is left out; nor is any where space is
    contracted, whose rays all go on.
    """
    if isinstance(grid, occupancy.DensityEmaGrid) or grid.bounds is not None:
        return pixels
    count, height, width = pixels.images.shape[:3]
    stride = max(1, math.ceil(math.sqrt(count * height * width / MOST_TESTED_RAYS)))
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(grid.occupied.shape)
    footprint = 0.71 * stride * scene_range[1] / float(jnp.min(pixels.cameras.focal))
    if pixels.cameras.ndc is not None:
        # The box is two wide, as far as pictures reach.
        footprint = 1.42 * stride * float(jnp.max(size)) / min(height, width)
    if stride > 1:
        cells = math.ceil(footprint / float(jnp.min(size)))
        # Padded first: the tested ray may pass outside the box where its neighbours hit it.
        occupied = occupancy.dilate(jnp.pad(grid.occupied, cells), cells)
        grid = OccupancyGrid(occupied, grid.aabb + jnp.stack([-cells * size, cells * size]))
    else:
        grid = OccupancyGrid(grid.occupied, grid.aabb)
    # What was left out before stays so.
    allowed = np.full(pixels.drawn.size, int(pixels.total) == pixels.drawn.size)
    if not allowed.all():
        allowed[np.asarray(pixels.drawn)[: int(pixels.total)]] = True
    kept = np.asarray(_find_hitting(grid, pixels.cameras, (height, width), stride, scene_range))
    kept = np.repeat(np.repeat(kept, stride, 1), stride, 2)[:, :height, :width]
    drawn, starts, begin = np.zeros(pixels.drawn.shape, np.int32), [0], 0
    for factor, images in zip(pixels.factors, (pixels.images, *pixels.smaller), strict=True):
        side, (_, rows, columns) = int(factor), images.shape[:3]
        whole = kept[:, : rows * side, : columns * side]
        within = whole.reshape(count, rows, side, columns, side).any(axis=(2, 4))
        chosen = np.flatnonzero(within.ravel() & allowed[begin : begin + within.size]) + begin
        drawn[starts[-1] : starts[-1] + chosen.size] = chosen
        starts.append(starts[-1] + chosen.size)
        begin += within.size
    if starts[-1] == 0:
        return pixels
    return pixels._replace(
        drawn=drawn if isinstance(pixels.drawn, np.ndarray) else jnp.asarray(drawn),
        total=jnp.asarray(starts[-1], jnp.int32),
        starts=jnp.asarray(starts[:-1], jnp.int32),
    )


def cameras_see_outside_aabb(cameras: Cameras, aabb: Float[np.ndarray, "2 3"]) -> bool:
    """Whether it is worth a second or two to find the pixels that look past the box.

    It is where less than 9 tenths of the pictures lie within the upright rectangles around the
    box as they show it. A camera in the box or beside it sees it everywhere.
    """
    if cameras.ndc is not None:
        return False
    corners = np.array(list(itertools.product(*np.asarray(aabb, np.float64).T)))
    size = np.array([cameras.width, cameras.height])
    shares = []
    for index in range(len(cameras.T_world_camera)):
        pixels, depth = project(cameras, index, corners)
        low, high = (np.clip(f(pixels, axis=0), 0.0, size) for f in (np.min, np.max))
        shares.append(float(np.prod((high - low) / size)) if depth.min() > 0 else 1.0)
    return float(np.mean(shares)) < 0.9


@partial(jax.jit, static_argnums=(2, 3, 4))
def _find_hitting(
    grid: OccupancyGrid,
    cameras: Cameras,
    size: tuple[int, int],
    stride: int,
    scene_range: tuple[float, float],
) -> Bool[Array, "n h w"]:
    """Which of every stride-th pixel along each axis hit an occupied cell, in all cameras."""
    coarse = occupancy.max_pool_occupancy(grid, occupancy.COARSE, 0.5 * occupancy.PROBES)
    shape = tuple(math.ceil(s / stride) for s in size)
    row, column = jnp.meshgrid(*(jnp.arange(s) for s in shape), indexing="ij")
    centre = jnp.stack([column.ravel(), row.ravel()], axis=-1) * float(stride) + 0.5 * stride

    def find(image: Array) -> Array:
        index = jnp.full(centre.shape[:1], image, jnp.int32)
        rays = pixels_to_rays(cameras, index, centre, *scene_range)
        return occupancy.ray_hits_occupied(grid, coarse, rays).reshape(shape)

    count = cameras.T_world_camera.shape[0]
    return jax.lax.map(find, jnp.arange(count, dtype=jnp.int32))


# ---------------------------------------------------------------------------------------------
# Sets larger than the device's memory
# ---------------------------------------------------------------------------------------------


class PixelPrefetcher:
    """Draws the pixels of steps to come in the background and reads them out of host memory.

    They are those that steps would draw by themselves, bit for bit.
    """

    def __init__(self, most: int) -> None:
        """`most` is the number of steps drawn for at once."""
        self._most = most
        self._pool = ThreadPoolExecutor(1)
        self._begun: tuple[TrainConfig, PixelDataset, Course, int, int] | None = None
        self._drawn: Future[PrefetchedPixels] | None = None

    def begin(
        self, config: TrainConfig, pixels: PixelDataset, course: Course, count: int, first: int
    ) -> None:
        """Begins with the steps from `first` on, of `count` pixels each."""
        self._begun = (config, pixels, course, count, first)
        self._drawn = self._pool.submit(draw_ahead, *self._begun, self._most)

    def take(
        self, config: TrainConfig, pixels: PixelDataset, course: Course, count: int, first: int
    ) -> PrefetchedPixels:
        """The pixels of the steps from `first` on, drawn now if other ones were begun with."""
        wanted = (config, pixels, course, count, first)
        # Arrays are compared by what they are, not by what they hold.
        if self._begun is None or any(
            a is not b and not (isinstance(a, int) and a == b)
            for a, b in zip(self._begun, wanted, strict=True)
        ):
            self.begin(*wanted)
        assert self._drawn is not None
        return self._drawn.result()

    def __enter__(self) -> "PixelPrefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        """Drops what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def draw_ahead(
    config: TrainConfig, pixels: PixelDataset, course: Course, count: int, first: int, most: int
) -> PrefetchedPixels:
    """The pixels of `most` steps from `first` on, out of pictures in host memory.

    What is random is computed on the host too, as the device is busy with the steps before.
    """
    # The number of steps is not to matter to what is compiled.
    rules = dataclasses.replace(config, steps=1, knots=())
    with jax.default_device(_find_host()):
        lean = jax.device_get(drop_images(pixels))
        times = jax.device_get((course.steps, course.progress))
        key = jax.device_get(jax.random.key_data(course.key))
        places, crops = _draw_places_ahead(rules, count, most, lean, key, times, np.int32(first))
        flat = np.asarray(pixels.drawn)[np.asarray(places)]
        spots = jax.device_get(_locate_ahead(lean, flat, crops))
    rgba = np.zeros((*flat.shape, 4), np.uint8)
    for size, images in enumerate((pixels.images, *pixels.smaller)):
        at = spots.which == size
        rgba[at] = np.asarray(images)[spots.image[at], spots.row[at], spots.column[at]]
    return PrefetchedPixels(flat, rgba)


def _find_host() -> jax.Device:
    """The device that computes in host memory, if JAX has it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _draw_places_ahead(
    config: TrainConfig,
    count: int,
    most: int,
    pixels: PixelDataset,
    key_data: Array,
    times: tuple[Array, Array],
    first: Int[Array, ""],
) -> tuple[Int[Array, "k p"], Float[Array, "k"]]:
    """Places of pixels of each step, as the step itself would draw them, and its crop."""
    key = jax.random.wrap_key_data(key_data)

    def draw(step: Array) -> tuple[Array, Array]:
        key_batch, _ = jax.random.split(jax.random.fold_in(key, step))
        key_pixel, _ = jax.random.split(key_batch)
        choice = sampling_region(config, jnp.interp(step * 1.0, *times))
        places = sample_pixel_slots(pixels, key_pixel, count, choice.size)
        return places, jnp.asarray(choice.crop, jnp.float32)

    return jax.vmap(draw)(first + jnp.arange(most, dtype=jnp.int32))


@jax.jit
def _locate_ahead(
    pixels: PixelDataset, flat: Int[Array, "k p"], crops: Float[Array, "k"]
) -> PixelIndices:
    return jax.vmap(partial(locate, pixels))(flat, crops)

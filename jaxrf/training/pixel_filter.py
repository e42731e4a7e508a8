"""Leaves out training pixels whose rays cannot hit anything.

Chen et al.: TensoRF (ECCV 2022), the authors' code ("ray filtering").
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrf.cameras.base import Cameras, pixels_to_rays, project
from jaxrf.sampling.marching import PROBES, ray_hits_occupied
from jaxrf.sampling.occupancy import POOLING, OccupancyGrid, dilate, max_pool_occupancy
from jaxrf.training.pixels import PixelDataset, pad_pixel_ids

# Of larger data sets only every k-th pixel is tested.
MAX_TESTED_RAYS = 1 << 20


def filter_pixels(
    pixels: PixelDataset, grid: OccupancyGrid, near_far: tuple[float, float]
) -> PixelDataset:
    """Leaves out the pixels whose rays cannot hit an occupied cell.

    Large sets are tested on every k-th pixel, with the cells dilated to cover the pixels between.
    A grid that follows the density leaves out no pixel, as its cells come and go; nor does
    contracted space, whose rays all go on.
    """
    if grid.follows_density or grid.bounds is not None:
        return pixels
    count, height, width = pixels.images.shape[:3]
    stride = max(1, math.ceil(math.sqrt(count * height * width / MAX_TESTED_RAYS)))
    tested = _dilate_for_stride(pixels, grid, near_far, stride)
    # A pixel that was left out before stays so.
    allowed = np.full(pixels.pixel_ids.size, int(pixels.total) == pixels.pixel_ids.size)
    if not allowed.all():
        allowed[np.asarray(pixels.pixel_ids)[: int(pixels.total)]] = True
    hits = np.asarray(_find_hits(tested, pixels.cameras, (height, width), stride, near_far))
    hits = np.repeat(np.repeat(hits, stride, 1), stride, 2)[:, :height, :width]
    chosen_ids, starts, begin = [], [0], 0
    for scale, images in zip(pixels.scales, (pixels.images, *pixels.smaller_images), strict=True):
        side, (_, rows, columns) = int(scale), images.shape[:3]
        covered = hits[:, : rows * side, : columns * side]
        within = covered.reshape(count, rows, side, columns, side).any(axis=(2, 4))
        chosen = np.flatnonzero(within.ravel() & allowed[begin : begin + within.size]) + begin
        chosen_ids.append(chosen)
        starts.append(starts[-1] + chosen.size)
        begin += within.size
    if starts[-1] == 0:
        return pixels
    pixel_ids = pad_pixel_ids(np.concatenate(chosen_ids), pixels.pixel_ids.size)
    return pixels._replace(
        pixel_ids=pixel_ids if isinstance(pixels.pixel_ids, np.ndarray) else jnp.asarray(pixel_ids),
        total=jnp.asarray(starts[-1], jnp.int32),
        starts=jnp.asarray(starts[:-1], jnp.int32),
    )


def _dilate_for_stride(
    pixels: PixelDataset, grid: OccupancyGrid, near_far: tuple[float, float], stride: int
) -> OccupancyGrid:
    """The cells that a tested pixel must hit for any pixel within a stride of it to hit one."""
    if stride == 1:
        return OccupancyGrid(grid.occupied, grid.aabb)
    height, width = pixels.images.shape[1:3]
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(grid.occupied.shape)
    footprint = 0.71 * stride * near_far[1] / float(jnp.min(pixels.cameras.focal))
    if pixels.cameras.ndc is not None:
        # The box is two wide, as far as images reach.
        footprint = 1.42 * stride * float(jnp.max(size)) / min(height, width)
    cells = math.ceil(footprint / float(jnp.min(size)))
    # Padded first: the tested ray may pass outside the box where its neighbors hit it.
    occupied = dilate(jnp.pad(grid.occupied, cells), cells)
    return OccupancyGrid(occupied, grid.aabb + jnp.stack([-cells * size, cells * size]))


def cameras_see_outside_aabb(cameras: Cameras, aabb: Float[np.ndarray, "2 3"]) -> bool:
    """Whether it is worth a second or two to find the pixels whose rays miss the box.

    It is where less than 90 % of the images lie within the upright rectangles around the box as
    they show it. A camera in the box or beside it sees it everywhere.
    """
    if cameras.ndc is not None:
        return False
    corners = np.array(list(itertools.product(*np.asarray(aabb, np.float64).T)))
    size = np.array([cameras.width, cameras.height])
    shares = []
    for index in range(len(cameras.T_world_camera)):
        positions, depth = project(cameras, index, corners)
        low, high = (np.clip(f(positions, axis=0), 0.0, size) for f in (np.min, np.max))
        shares.append(float(np.prod((high - low) / size)) if depth.min() > 0 else 1.0)
    return float(np.mean(shares)) < 0.9


@partial(jax.jit, static_argnums=(2, 3, 4))
def _find_hits(
    grid: OccupancyGrid,
    cameras: Cameras,
    size: tuple[int, int],
    stride: int,
    near_far: tuple[float, float],
) -> Bool[Array, "n h w"]:
    """Whether every stride-th pixel along each axis hits an occupied cell, in all cameras."""
    coarse = max_pool_occupancy(grid, POOLING, 0.5 * PROBES)
    shape = tuple(math.ceil(s / stride) for s in size)
    row, column = jnp.meshgrid(*(jnp.arange(s) for s in shape), indexing="ij")
    center = jnp.stack([column.ravel(), row.ravel()], axis=-1) * float(stride) + 0.5 * stride

    def find_in_image(image: Array) -> Array:
        index = jnp.full(center.shape[:1], image, jnp.int32)
        rays = pixels_to_rays(cameras, index, center, *near_far)
        return ray_hits_occupied(grid, coarse, rays).reshape(shape)

    count = cameras.T_world_camera.shape[0]
    return jax.lax.map(find_in_image, jnp.arange(count, dtype=jnp.int32))

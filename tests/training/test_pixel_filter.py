"""Pixels whose rays cannot hit anything, against brute force in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scenes import first_state, make_scene, tiny_hashgrid
from steps import NEAR_FAR, train_pixels

from jaxrf.cameras.base import image_rays
from jaxrf.data.scene import Split
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import pixel_filter
from jaxrf.training.pixel_filter import cameras_see_outside_aabb, filter_pixels
from jaxrf.training.pixels import to_device

AABB = np.array([[-1.4, -1.2, -1.0], [1.3, 1.5, 1.2]])
BOX = jnp.array([[-1.5] * 3, [1.5] * 3])


def hits_cells(occupied: np.ndarray, aabb: np.ndarray, split: Split) -> np.ndarray:
    """(n, h, w) by brute force in float64: pixels whose rays pass any occupied cell."""
    size = (aabb[1] - aabb[0]) / np.array(occupied.shape)
    result = []
    for index in range(len(split)):
        rays = image_rays(split.cameras, index, *NEAR_FAR)
        origins, directions = (np.asarray(x, np.float64) for x in (rays.origins, rays.directions))
        hit = np.zeros(origins.shape[:2], bool)
        for cell in np.argwhere(occupied):
            low = aabb[0] + cell * size
            with np.errstate(divide="ignore"):
                slabs = np.stack([(low - origins), (low + size - origins)]) / directions
            enter = np.maximum(slabs.min(axis=0).max(axis=-1), NEAR_FAR[0])
            leave = np.minimum(slabs.max(axis=0).min(axis=-1), NEAR_FAR[1])
            hit |= enter < leave
        result.append(hit)
    return np.stack(result)


def mask_of_filtered(occupied: np.ndarray, aabb: np.ndarray, split: Split) -> np.ndarray:
    """(n, h, w) the pixels that `filter_pixels` leaves."""
    grid = OccupancyGrid(jnp.asarray(occupied), jnp.asarray(aabb, jnp.float32))
    pixels = filter_pixels(to_device(split), grid, NEAR_FAR)
    mask = np.zeros(split.images.shape[:3], bool)
    mask.ravel()[np.asarray(pixels.pixel_ids)[: int(pixels.total)]] = True
    assert mask.sum() == int(pixels.total)
    return mask


def draw_cells(seed: int, shape: tuple[int, int, int] = (10, 9, 8)) -> np.ndarray:
    """A few cells, none of them at the border."""
    rng = np.random.default_rng(seed)
    content = np.zeros(shape, bool)
    for _ in range(4):
        content[tuple(rng.integers(1, np.array(shape) - 1))] = True
    return content


@pytest.mark.parametrize("seed", range(4))
def test_filter_pixels_leaves_exactly_those_that_hit_an_occupied_cell(seed: int) -> None:
    split = make_scene(24).splits["train"]
    content = draw_cells(seed)
    # Pruning dilates the cells it leaves, so a ray that cuts only a corner of that may go either
    # way.
    dilated = np.asarray(occupancy.dilate(jnp.asarray(content)))
    mask = mask_of_filtered(dilated, AABB, split)
    assert np.all(mask[hits_cells(content, AABB, split)])
    assert not np.any(mask[~hits_cells(dilated, AABB, split)])
    assert 0 < mask.sum() < mask.size


@pytest.mark.parametrize("rays", [6 * 24 * 24 // 4, 6 * 24 * 24 // 25, 50])
def test_filter_pixels_with_a_stride_leaves_every_pixel_that_hits(
    monkeypatch: pytest.MonkeyPatch, rays: int
) -> None:
    split = make_scene(24).splits["train"]
    monkeypatch.setattr(pixel_filter, "MAX_TESTED_RAYS", rays)
    for seed in range(3):
        content = draw_cells(seed)
        dilated = np.asarray(occupancy.dilate(jnp.asarray(content)))
        mask = mask_of_filtered(dilated, AABB, split)
        assert np.all(mask[hits_cells(content, AABB, split)])
    assert not mask.all() or rays < 200  # such large blocks hold something everywhere


def test_filter_pixels_with_a_stride_leaves_pixels_at_the_border_of_the_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = make_scene(24).splits["train"]
    monkeypatch.setattr(pixel_filter, "MAX_TESTED_RAYS", split.images[..., 0].size // 64)
    # A ray tested for a block of pixels may pass outside the box where one of the block hits it.
    box = np.array([[-0.5] * 3, [0.5] * 3])
    full = np.ones((8, 8, 8), bool)
    mask = mask_of_filtered(full, box, split)
    assert np.all(mask[hits_cells(full, box, split)])


def test_filter_pixels_leaves_all_pixels_if_none_hits() -> None:
    pixels = train_pixels()
    empty = OccupancyGrid(jnp.zeros((4, 4, 4), bool), BOX)
    assert int(filter_pixels(pixels, empty, NEAR_FAR).total) == int(pixels.total)


def test_filter_pixels_ignores_grids_that_follow_the_density() -> None:
    _, state = first_state(tiny_hashgrid())
    pixels = train_pixels()
    occupied = jnp.zeros(state.grid.occupied.shape, bool).at[4, 4, 4].set(True)
    grid = dataclasses.replace(state.grid, occupied=occupied)
    assert filter_pixels(pixels, grid, NEAR_FAR) is pixels
    plain = OccupancyGrid(occupied, grid.aabb)
    assert int(filter_pixels(pixels, plain, NEAR_FAR).total) < int(pixels.total)


def test_filter_pixels_leaves_pixels_out_of_every_size() -> None:
    pixels = train_pixels((1, 2))
    occupied = np.zeros((8, 8, 8), bool)
    occupied[3:5, 3:5, 3:5] = True
    filtered = filter_pixels(pixels, OccupancyGrid(jnp.asarray(occupied), BOX), NEAR_FAR)
    starts, total = np.asarray(filtered.starts), int(filtered.total)
    pixel_ids = np.asarray(filtered.pixel_ids)
    count, height, width = pixels.images.shape[:3]
    large, small = pixel_ids[: starts[1]], pixel_ids[starts[1] : total] - count * height * width
    image, row, column = np.unravel_index(large, (count, height, width))
    parents = {*zip(image, row // 2, column // 2, strict=True)}
    indices = np.unravel_index(small, (count, height // 2, width // 2))
    assert {*zip(*indices, strict=True)} == parents
    assert 0 < large.size < 0.5 * count * height * width


def test_cameras_see_outside_aabb_where_the_box_fills_little_of_the_images() -> None:
    cameras = make_scene().splits["train"].cameras
    for size, expected in ((0.2, True), (0.9, True), (1.5, False), (3.9, False), (100.0, False)):
        box = np.array([[-size] * 3, [size] * 3], np.float32)
        assert cameras_see_outside_aabb(cameras, box) == expected

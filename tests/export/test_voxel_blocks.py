"""Blocks of voxels: decoded corner by corner, and the errors of 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrf.export.voxel_blocks import (
    BLOCK,
    EMPTY_DEPTH,
    OPAQUE_DEPTH,
    Masks,
    quantize_rows,
    split_into_blocks,
)
from jaxrf.fields.voxel_grid import CORNERS, VoxelGrid, index_cells
from jaxrf.fields.voxels import Voxels

BOX = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]], np.float32)


def make_grid(occupied: np.ndarray) -> VoxelGrid:
    return index_cells(occupied, BOX, 1.0)


def number_points(masks: Masks) -> dict[tuple[int, int], int]:
    """The number of each point in use by its block and its index in it, as a page counts them."""
    numbers: dict[tuple[int, int], int] = {}
    for block, octets in zip(masks.blocks, masks.bits, strict=True):
        for point in range(BLOCK**3):
            if octets[point // 8] >> (point % 8) & 1:
                numbers[int(block), point] = len(numbers)
    return numbers


def locate(point: np.ndarray, shape: tuple[int, int, int]) -> tuple[int, int]:
    block, (x, y, z) = point // BLOCK, point % BLOCK
    flat = (block[0] * shape[1] + block[1]) * shape[2] + block[2]
    return int(flat), int((x * BLOCK + y) * BLOCK + z)


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_every_corner_of_every_cell_has_its_row(share: float) -> None:
    occupied = np.random.default_rng(0).random((13, 13, 13)) < share
    occupied[:3] = False
    grid = make_grid(occupied)
    blocks = split_into_blocks(grid)
    cells, corners = number_points(blocks.cells), number_points(blocks.corners)
    found = np.argwhere(occupied)
    np.testing.assert_array_equal(blocks.low, found.min(axis=0))
    assert len(cells) == len(found)
    ids = np.asarray(grid.cell_ids).reshape(occupied.shape)
    used = set()
    for cell in found:
        assert locate(cell - blocks.low, blocks.shape) in cells
        for corner, row in zip(CORNERS, grid.corner_rows[ids[tuple(cell)]], strict=True):
            at = locate(cell - blocks.low + corner, blocks.shape)
            used.add(at)
            assert blocks.rows[corners[at]] == row
    assert used == set(corners)


def test_a_single_cell_at_the_end_of_a_block_has_room_for_its_corners() -> None:
    occupied = np.zeros((8, 8, 8), bool)
    occupied[:BLOCK, :BLOCK, :BLOCK] = True
    blocks = split_into_blocks(make_grid(occupied))
    assert blocks.shape == (2, 2, 2)
    assert len(blocks.cells.blocks) == 1 and len(blocks.corners.blocks) == 8
    assert len(blocks.rows) == (BLOCK + 1) ** 3


def test_quantized_rows_are_within_half_a_value() -> None:
    rows = np.random.default_rng(1).normal(0.0, 0.3, (500, 8)).astype(np.float32)
    rows[:, 3] = 0.25
    table = quantize_rows(rows, Voxels(), 0.02)
    error = np.abs(table.restore()[:, 1:] - rows[:, 1:])
    assert np.all(error <= 0.5 * (table.high - table.low)[1:] / 255.0 + 1e-6)
    np.testing.assert_allclose(table.restore()[:, 3], 0.25, atol=1e-6)


@given(st.floats(-100.0, 100.0), st.floats(1e-4, 1.0))
def test_clipped_densities_look_the_same(raw: float, step: float) -> None:
    field = Voxels()
    rows = np.zeros((2, 8), np.float32)
    rows[0, 0] = raw
    table = quantize_rows(rows, field, step)

    def depth(value: float) -> float:
        shifted = field.density_gain * value + field.density_shift
        return step * field.density_scale * float(jax.nn.softplus(jnp.asarray(shifted)))

    clipped, true = depth(float(table.restore()[0, 0])), depth(raw)
    if true <= EMPTY_DEPTH:
        assert clipped <= 2.0 * EMPTY_DEPTH
    elif true >= OPAQUE_DEPTH:
        assert clipped >= 0.99 * OPAQUE_DEPTH
    else:
        np.testing.assert_allclose(clipped, true, rtol=1e-3)

"""Trained voxels as blocks of 8-bit numbers, which a page draws with hardware interpolation.

Sparse blocks of 8-bit texels are those of Hedman, Srinivasan, Mildenhall, Barron, Debevec: Baking
neural radiance fields for real-time view synthesis (SNeRG, ICCV 2021), section 4; features that are
composited along the ray and colored once per pixel are theirs as well.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxrf.fields.voxel_grid import CORNERS, VoxelGrid
from jaxrf.fields.voxels import Voxels

# Cells along each side of a block.
BLOCK = 4
# Optical depths of a step below which a corner is as good as empty, and above which it is opaque.
EMPTY_DEPTH, OPAQUE_DEPTH = 1e-6, 30.0


class Masks(NamedTuple):
    """Which of a lattice's points are in use, by blocks of 4^3 of them.

    blocks: (n,) flat index, x first, of each block that holds any, ascending.
    bits: (n, 8) the block's 64 points, (x * 4 + y) * 4 + z in it, the lowest bit first.
    """

    blocks: Int[np.ndarray, "n"]
    bits: UInt8[np.ndarray, "n 8"]


class VoxelBlocks(NamedTuple):
    """The occupied cells of a grid, cropped, and the rows of its table at their corners.

    low: the first cell of the crop, in cells of the grid.
    shape: blocks along each axis, with room for the corners at the far sides.
    cells: which cells are occupied.
    corners: which corners of cells have a row.
    rows: (m,) the row of each of these corners, in order of blocks and of points in them.
    """

    low: tuple[int, int, int]
    shape: tuple[int, int, int]
    cells: Masks
    corners: Masks
    rows: Int[np.ndarray, "m"]


class QuantizedTable(NamedTuple):
    """Rows of a table in 8 bits: low + (high - low) * value / 255.

    values: (m, c).
    low, high: (c,) of each channel.
    """

    values: UInt8[np.ndarray, "m c"]
    low: Float[np.ndarray, "c"]
    high: Float[np.ndarray, "c"]

    def restore(self) -> Float[np.ndarray, "m c"]:
        """The rows again, with the errors of rounding."""
        return self.low + (self.high - self.low) * (self.values / np.float32(255.0))


def split_into_blocks(grid: VoxelGrid) -> VoxelBlocks:
    """The grid's occupied cells, of which there is at least one, in blocks."""
    cells = np.argwhere(np.asarray(grid.occupied))
    low = cells.min(axis=0)
    cells = cells - low
    # One more than the cells, for their far corners.
    shape = tuple(int(n) // BLOCK + 1 for n in cells.max(axis=0) + 1)
    ids = np.asarray(grid.cell_ids)[
        np.ravel_multi_index(tuple((cells + low).T), grid.occupied.shape)
    ]
    corners = (cells[:, None] + CORNERS[None]).reshape(-1, 3)
    keys, first = np.unique(_block_keys(corners, shape), return_index=True)
    return VoxelBlocks(
        low=(int(low[0]), int(low[1]), int(low[2])),
        shape=(shape[0], shape[1], shape[2]),
        cells=_mask_keys(np.sort(_block_keys(cells, shape))),
        corners=_mask_keys(keys),
        rows=np.asarray(grid.corner_rows)[ids].reshape(-1)[first],
    )


def _block_keys(points: Int[np.ndarray, "n 3"], shape: tuple[int, ...]) -> Int[np.ndarray, "n"]:
    """The flat index of each point's block, times 64, plus the point's index in it."""
    block = np.ravel_multi_index(tuple((points // BLOCK).T), shape)
    within = np.ravel_multi_index(tuple((points % BLOCK).T), (BLOCK,) * 3)
    return block * BLOCK**3 + within


def _mask_keys(keys: Int[np.ndarray, "n"]) -> Masks:
    """Masks of the points with these keys, which ascend."""
    blocks, index = np.unique(keys // BLOCK**3, return_inverse=True)
    points = np.zeros((len(blocks), BLOCK**3), bool)
    points[index, keys % BLOCK**3] = True
    return Masks(blocks, np.packbits(points, axis=1, bitorder="little"))


def quantize_rows(
    rows: Float[np.ndarray, "m c"], field: Voxels, step_size: float
) -> QuantizedTable:
    """Rows of raw density and features in 8 bits.

    Raw densities are clipped to those that let a step be anything between empty and opaque, so
    that the 256 values are spent where they show.
    """
    values = np.asarray(rows, np.float32).copy()
    empty, opaque = (_raw_density(field, d / step_size) for d in (EMPTY_DEPTH, OPAQUE_DEPTH))
    values[:, 0] = np.clip(values[:, 0], empty, opaque)
    low, high = values.min(axis=0), values.max(axis=0)
    high = np.where(high > low, high, low + 1.0).astype(np.float32)
    scaled = np.rint((values - low) / (high - low) * 255.0)
    return QuantizedTable(scaled.astype(np.uint8), low, high)


def _raw_density(field: Voxels, density: float) -> float:
    """The raw density of a density: the inverse of `Voxels.density`."""
    activated = density / field.density_scale
    # log(exp(x) - 1) without overflow.
    softplus_input = activated + math.log(-math.expm1(-activated))
    return (softplus_input - field.density_shift) / field.density_gain

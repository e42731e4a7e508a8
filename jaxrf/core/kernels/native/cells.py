"""Cells of grids: coordinates along rays, the cell of a point, and weights of its corners."""

from typing import no_type_check

import numpy as np
from numba import njit

ONE, ZERO = np.float32(1.0), np.float32(0.0)
CORNERS = 8


@no_type_check
@njit(error_model="numpy")
def in_cells(aabb, axis, count, origin, direction):
    """A coordinate of a ray's points, in cells: where the ray begins, and by how much it grows."""
    cells = np.float32(count) / (aabb[axis + 3] - aabb[axis])
    return (origin - aabb[axis]) * cells, direction * cells


@no_type_check
@njit(error_model="numpy")
def cell_of(x, y, z, nx, ny, nz):
    """Index of the cell that holds a point given in cells; -1 if none does."""
    # Also false where a coordinate is not a number.
    if ZERO <= x < np.float32(nx) and ZERO <= y < np.float32(ny) and ZERO <= z < np.float32(nz):
        return (np.intp(x) * ny + np.intp(y)) * nz + np.intp(z)
    return -1


@no_type_check
@njit(error_model="numpy")
def corner_weight(fx, fy, fz, corner):
    """Trilinear weight of a corner of a cell; its bits, from the highest, say upper in x, y, z."""
    x = fx if corner & 4 else ONE - fx
    y = fy if corner & 2 else ONE - fy
    z = fz if corner & 1 else ONE - fz
    return x * y * z

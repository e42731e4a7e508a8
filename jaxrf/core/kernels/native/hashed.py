"""Trilinear look-ups in hash grids whose rows have four numbers, and their gradients.

Rows are those of `core.hash_grids`, of the layout "dense_coarse". The gradient is summed by ranges
of rows, in the order of the samples, whoever takes which range.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from jaxrf.core.kernels.native.cells import CORNERS, corner_weight
from jaxrf.core.kernels.native.frames import (
    address_of_body,
    asks_for_version,
    floats_at,
    ints_at,
    kernel,
    operand,
    operand_size,
    part_of,
    result,
    result_size,
    run_parts,
)
from jaxrf.core.kernels.native.vectors import (
    FEW_LANES,
    add_scaled,
    few_zeros,
    is_zero,
    load_few,
    store,
)

ONE, ZERO = np.float32(1.0), np.float32(0.0)
PRIME_Y, PRIME_Z = np.uint32(2654435761), np.uint32(805459861)


@no_type_check
@njit(error_model="numpy")
def _cell_and_fraction(coordinate, cells):
    scaled = min(max(coordinate, ZERO), ONE) * np.float32(cells)
    cell = max(min(np.intp(scaled), cells - 1), 0)
    return cell, scaled - np.float32(cell)


@no_type_check
@njit(error_model="numpy")
def _row(x, y, z, cells, rows):
    """Row within its level of a corner: its number where all fit, else its hash (eq. 4)."""
    points = cells + 1
    if points * points * points <= rows:
        return (x * points + y) * points + z
    hashed = np.uint32(x) ^ (np.uint32(y) * PRIME_Y) ^ (np.uint32(z) * PRIME_Z)
    return np.intp(hashed & np.uint32(rows - 1))


@no_type_check
@njit(error_model="numpy")
def _interpolate(frame, part, parts):
    """Operands: table (rows, 4), unit (m, 3), cells (levels,), starts (levels + 1,).

    Result: features (m, 4 levels).
    """
    table, unit = floats_at(operand(frame, 0)), floats_at(operand(frame, 1))
    level_cells, starts = ints_at(operand(frame, 2)), ints_at(operand(frame, 3))
    features, levels = floats_at(result(frame, 0)), operand_size(frame, 2, 0)
    start, stop = part_of(operand_size(frame, 1, 0), part, parts)
    for level in range(levels):
        cells, first = np.intp(level_cells[level]), np.intp(starts[level])
        rows = np.intp(starts[level + 1]) - first
        for sample in range(start, stop):
            x, fx = _cell_and_fraction(unit[3 * sample], cells)
            y, fy = _cell_and_fraction(unit[3 * sample + 1], cells)
            z, fz = _cell_and_fraction(unit[3 * sample + 2], cells)
            total = few_zeros()
            for corner in range(CORNERS):
                i, j, k = (corner >> 2) & 1, (corner >> 1) & 1, corner & 1
                weight = corner_weight(fx, fy, fz, corner)
                row = first + _row(x + i, y + j, z + k, cells, rows)
                total = add_scaled(total, weight, load_few(table, FEW_LANES * row))
            store(features, FEW_LANES * (sample * levels + level), total)


@no_type_check
@kernel
def interpolate_hashed(frame):
    """Handler of `calls.interpolate_hashed`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_interpolate), 0, 8)
    return 0


@no_type_check
@njit(error_model="numpy")
def _scatter(frame, part, parts):
    """Operands: unit (m, 3), cells (levels,), starts (levels + 1,), gradient of the features.

    Result: the gradient of the table.
    """
    unit, gradient = floats_at(operand(frame, 0)), floats_at(operand(frame, 3))
    level_cells, starts = ints_at(operand(frame, 1)), ints_at(operand(frame, 2))
    table, levels = floats_at(result(frame, 0)), operand_size(frame, 1, 0)
    start, stop = part_of(result_size(frame, 0, 0), part, parts)
    for row in range(start, stop):
        store(table, FEW_LANES * row, few_zeros())
    for level in range(levels):
        cells, first = np.intp(level_cells[level]), np.intp(starts[level])
        rows = np.intp(starts[level + 1]) - first
        if first >= stop or first + rows <= start:
            continue
        for sample in range(operand_size(frame, 0, 0)):
            vector = load_few(gradient, FEW_LANES * (sample * levels + level))
            if is_zero(vector):
                continue
            x, fx = _cell_and_fraction(unit[3 * sample], cells)
            y, fy = _cell_and_fraction(unit[3 * sample + 1], cells)
            z, fz = _cell_and_fraction(unit[3 * sample + 2], cells)
            for corner in range(CORNERS):
                i, j, k = (corner >> 2) & 1, (corner >> 1) & 1, corner & 1
                weight = corner_weight(fx, fy, fz, corner)
                row = first + _row(x + i, y + j, z + k, cells, rows)
                if start <= row < stop:
                    total = add_scaled(load_few(table, FEW_LANES * row), weight, vector)
                    store(table, FEW_LANES * row, total)


@no_type_check
@kernel
def scatter_hashed(frame):
    """Handler of `calls.scatter_hashed`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_scatter), 0, 4)
    return 0

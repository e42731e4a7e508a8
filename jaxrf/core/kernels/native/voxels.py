"""Trilinear look-ups in packed voxels, and their gradients.

Numbers of a cell and of the rows at its corners both grow with the cell's index in the grid, so a
range of rows belongs to a range of cells. The gradient is summed by ranges of rows, in the order of
the samples, whoever takes which range.
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
    LANES,
    add_scaled,
    is_zero,
    lane,
    load,
    prefetch,
    store,
    with_lane,
    zeros,
)

ONE, ZERO = np.float32(1.0), np.float32(0.0)
# Samples by which memory is asked for before it is read.
AHEAD = 8
# Samples whose cells are looked up together.
BLOCK = 64


@no_type_check
@njit(error_model="numpy")
def _scaled(positions, sample, axis, low, high, count):
    """A coordinate in cells."""
    size = (high - low) / np.float32(count)
    return (positions[3 * sample + axis] - low) / size


@no_type_check
@njit(error_model="numpy")
def _fraction(scaled):
    return min(max(scaled - np.floor(scaled), ZERO), ONE)


@no_type_check
@njit(error_model="numpy")
def _fractions(positions, sample, aabb, side):
    return (
        _fraction(_scaled(positions, sample, 0, aabb[0], aabb[3], side)),
        _fraction(_scaled(positions, sample, 1, aabb[1], aabb[4], side)),
        _fraction(_scaled(positions, sample, 2, aabb[2], aabb[5], side)),
    )


@no_type_check
@njit(error_model="numpy")
def _find(frame, part, parts):
    """Operands: positions (m, 3), cell_ids (n, n, n), aabb (2, 3). Result: cells (m,)."""
    positions, ids, aabb = (
        floats_at(operand(frame, 0)),
        ints_at(operand(frame, 1)),
        floats_at(operand(frame, 2)),
    )
    cells = ints_at(result(frame, 0))
    side = operand_size(frame, 1, 0)
    start, stop = part_of(operand_size(frame, 0, 0), part, parts)
    limit = np.float32(side)
    for block in range(start, stop, BLOCK):
        end = min(block + BLOCK, stop)
        for sample in range(block, end):
            x = _scaled(positions, sample, 0, aabb[0], aabb[3], side)
            y = _scaled(positions, sample, 1, aabb[1], aabb[4], side)
            z = _scaled(positions, sample, 2, aabb[2], aabb[5], side)
            cells[sample] = -1
            # Also false where a coordinate is not a number.
            if ZERO <= x < limit and ZERO <= y < limit and ZERO <= z < limit:
                flat = (np.intp(x) * side + np.intp(y)) * side + np.intp(z)
                prefetch(ids, flat)
                cells[sample] = flat
        for sample in range(block, end):
            flat = np.intp(cells[sample])
            cells[sample] = ids[flat] if flat >= 0 else np.int32(0)


@no_type_check
@kernel
def find_voxels(frame):
    """Handler of `calls.find_voxels`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_find), 0, 4)
    return 0


@no_type_check
@njit(error_model="numpy")
def _interpolate(frame, part, parts):
    """Operands: table (rows, c), positions, cells (m,), corner_rows (cells, 8), aabb, ids.

    Results: the first channel (m,), and the others (m, c - 1).
    """
    table, positions, cells = (
        floats_at(operand(frame, 0)),
        floats_at(operand(frame, 1)),
        ints_at(operand(frame, 2)),
    )
    rows, aabb = ints_at(operand(frame, 3)), floats_at(operand(frame, 4))
    first, others = floats_at(result(frame, 0)), floats_at(result(frame, 1))
    channels, side = operand_size(frame, 0, 1), operand_size(frame, 5, 0)
    start, stop = part_of(operand_size(frame, 1, 0), part, parts)
    for sample in range(start, stop):
        if sample + 2 * AHEAD < stop:
            prefetch(rows, CORNERS * np.intp(cells[sample + 2 * AHEAD]))
        if sample + AHEAD < stop:
            corner_rows = CORNERS * np.intp(cells[sample + AHEAD])
            for corner in range(0, CORNERS, 2):
                prefetch(table, np.intp(rows[corner_rows + corner]) * channels)
        fx, fy, fz = _fractions(positions, sample, aabb, side)
        corner_rows = CORNERS * np.intp(cells[sample])
        for channel in range(0, channels, LANES):
            total = zeros()
            for corner in range(CORNERS):
                row = np.intp(rows[corner_rows + corner]) * channels + channel
                total = add_scaled(total, corner_weight(fx, fy, fz, corner), load(table, row))
            _write_split(first, others, sample, channels, channel, total)


@no_type_check
@njit(error_model="numpy")
def _write_split(first, others, sample, channels, channel, vector):
    offset = sample * (channels - 1) + channel - 1
    if channel == 0:
        first[sample] = lane(vector, 0)
    else:
        others[offset] = lane(vector, 0)
    for index in range(1, LANES):
        others[offset + index] = lane(vector, index)


@no_type_check
@njit(error_model="numpy")
def _read_split(first, others, sample, channels, channel):
    offset = sample * (channels - 1) + channel - 1
    vector = with_lane(zeros(), 0, first[sample] if channel == 0 else others[offset])
    for index in range(1, LANES):
        vector = with_lane(vector, index, others[offset + index])
    return vector


@no_type_check
@kernel
def interpolate_voxels(frame):
    """Handler of `calls.interpolate_voxels`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_interpolate), 0, 4)
    return 0


@no_type_check
@njit(error_model="numpy")
def _first_cell(rows, corner, row, cells):
    """The first cell, from 1 on, whose row at a corner is at least this one."""
    low, high = 1, cells
    while low < high:
        middle = (low + high) // 2
        if rows[CORNERS * middle + corner] < row:
            low = middle + 1
        else:
            high = middle
    return low


@no_type_check
@njit(error_model="numpy")
def _scatter(frame, part, parts):
    """Operands: positions, cells, corner_rows, num_cells (1,), aabb, ids, gradients of the results.

    Result: the gradient of the table.
    """
    positions, cells, rows = (
        floats_at(operand(frame, 0)),
        ints_at(operand(frame, 1)),
        ints_at(operand(frame, 2)),
    )
    num_cells, aabb = np.intp(ints_at(operand(frame, 3))[0]), floats_at(operand(frame, 4))
    first, others = floats_at(operand(frame, 6)), floats_at(operand(frame, 7))
    table = floats_at(result(frame, 0))
    channels, side = result_size(frame, 0, 1), operand_size(frame, 5, 0)
    start, stop = part_of(result_size(frame, 0, 0), part, parts)
    for offset in range(start * channels, stop * channels, LANES):
        store(table, offset, zeros())
    begin = _first_cell(rows, CORNERS - 1, start, num_cells)
    end = _first_cell(rows, 0, stop, num_cells)
    count = operand_size(frame, 0, 0)
    for sample in range(count):
        if sample + 2 * AHEAD < count:
            cell = np.intp(cells[sample + 2 * AHEAD])
            if begin <= cell < end:
                prefetch(rows, CORNERS * cell)
            cell = np.intp(cells[sample + AHEAD])
            if begin <= cell < end:
                for corner in range(0, CORNERS, 2):
                    prefetch(table, np.intp(rows[CORNERS * cell + corner]) * channels)
        cell = np.intp(cells[sample])
        if cell < begin or cell >= end:
            continue
        fx, fy, fz = _fractions(positions, sample, aabb, side)
        for channel in range(0, channels, LANES):
            gradient = _read_split(first, others, sample, channels, channel)
            if is_zero(gradient):
                continue
            for corner in range(CORNERS):
                row = np.intp(rows[CORNERS * cell + corner])
                if start <= row < stop:
                    offset = row * channels + channel
                    weight = corner_weight(fx, fy, fz, corner)
                    store(table, offset, add_scaled(load(table, offset), weight, gradient))


@no_type_check
@kernel
def scatter_voxels(frame):
    """Handler of `calls.scatter_voxels`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_scatter), 0, 4)
    return 0

"""Bilinear look-ups in planes of feature rows, and their gradients; a line is a plane of height 1.

Coordinates are those of `core.grids`: 0 and 1 are the first and the last row (align_corners). The
gradient is summed by ranges of rows, in the order of the samples, whoever takes which range.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from jaxrf.core.kernels.native.frames import (
    address_of_body,
    asks_for_version,
    floats_at,
    kernel,
    operand,
    operand_size,
    part_of,
    result,
    result_size,
    run_parts,
)
from jaxrf.core.kernels.native.vectors import LANES, add_scaled, is_zero, load, store, zeros

ONE, ZERO = np.float32(1.0), np.float32(0.0)


@no_type_check
@njit(error_model="numpy")
def _cell_and_fraction(coordinate, size):
    """Index of the row below a coordinate, and the fraction of the way to the next one."""
    scaled = min(max(coordinate, ZERO), ONE) * np.float32(size - 1)
    cell = max(min(np.intp(scaled), size - 2), 0)
    return cell, scaled - np.float32(cell)


@no_type_check
@njit(error_model="numpy")
def _interpolate(frame, part, parts):
    """Operands: plane (height, width, c), across (m,), down (m,). Result: features (m, c)."""
    plane, across, down = (
        floats_at(operand(frame, 0)),
        floats_at(operand(frame, 1)),
        floats_at(operand(frame, 2)),
    )
    features = floats_at(result(frame, 0))
    height, width = operand_size(frame, 0, 0), operand_size(frame, 0, 1)
    channels = operand_size(frame, 0, 2)
    start, stop = part_of(operand_size(frame, 1, 0), part, parts)
    for sample in range(start, stop):
        x, fx = _cell_and_fraction(across[sample], width)
        y, fy = _cell_and_fraction(down[sample], height)
        top = (y * width + x) * channels
        bottom = (min(y + 1, height - 1) * width + x) * channels
        right = channels if x + 1 < width else 0
        for channel in range(0, channels, LANES):
            total = zeros()
            total = add_scaled(total, (ONE - fx) * (ONE - fy), load(plane, top + channel))
            total = add_scaled(total, fx * (ONE - fy), load(plane, top + right + channel))
            # Lines have no row below.
            if height > 1:
                total = add_scaled(total, (ONE - fx) * fy, load(plane, bottom + channel))
                total = add_scaled(total, fx * fy, load(plane, bottom + right + channel))
            store(features, sample * channels + channel, total)


@no_type_check
@kernel
def interpolate_plane(frame):
    """Handler of `calls.interpolate_plane`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_interpolate), 0, 4)
    return 0


@no_type_check
@njit(error_model="numpy")
def _add(plane, row, start, stop, channels, weight, gradient, offset):
    """Adds a weighted gradient to a row if it is of the part's range."""
    if weight != ZERO and start <= row < stop:
        for channel in range(0, channels, LANES):
            index = row * channels + channel
            vector = load(gradient, offset + channel)
            store(plane, index, add_scaled(load(plane, index), weight, vector))


@no_type_check
@njit(error_model="numpy")
def _scatter(frame, part, parts):
    """Operands: across (m,), down (m,), gradient of the features (m, c). Result: of the plane."""
    across, down, gradient = (
        floats_at(operand(frame, 0)),
        floats_at(operand(frame, 1)),
        floats_at(operand(frame, 2)),
    )
    plane = floats_at(result(frame, 0))
    height, width = result_size(frame, 0, 0), result_size(frame, 0, 1)
    channels = result_size(frame, 0, 2)
    start, stop = part_of(height * width, part, parts)
    for index in range(start * channels, stop * channels, LANES):
        store(plane, index, zeros())
    for sample in range(operand_size(frame, 0, 0)):
        y, fy = _cell_and_fraction(down[sample], height)
        if (min(y + 1, height - 1) + 1) * width <= start or y * width >= stop:
            continue
        x, fx = _cell_and_fraction(across[sample], width)
        offset = sample * channels
        has_gradient = False
        for channel in range(0, channels, LANES):
            has_gradient = has_gradient or not is_zero(load(gradient, offset + channel))
        if not has_gradient:
            continue
        top, bottom = y * width + x, min(y + 1, height - 1) * width + x
        right = 1 if x + 1 < width else 0
        left_weight, right_weight = ONE - fx, fx
        _add(plane, top, start, stop, channels, left_weight * (ONE - fy), gradient, offset)
        _add(plane, top + right, start, stop, channels, right_weight * (ONE - fy), gradient, offset)
        _add(plane, bottom, start, stop, channels, left_weight * fy, gradient, offset)
        _add(plane, bottom + right, start, stop, channels, right_weight * fy, gradient, offset)


@no_type_check
@kernel
def scatter_plane(frame):
    """Handler of `calls.scatter_plane`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_scatter), 0, 2)
    return 0

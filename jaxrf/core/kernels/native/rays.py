"""Rays rendered through packed voxels, each front to back until it is opaque.

The same as `rendering.march` makes of `Voxels` whose features are composited along the ray.
"""

import math
from typing import no_type_check

import numpy as np
from numba import njit

from jaxrf.core.kernels.native.cells import CORNERS, cell_of, corner_weight, in_cells
from jaxrf.core.kernels.native.frames import (
    address_of_body,
    allocate,
    asks_for_version,
    bytes_at,
    floats_at,
    ints_at,
    kernel,
    operand,
    operand_size,
    part_of,
    release,
    result,
    result_size,
    run_parts,
)
from jaxrf.core.kernels.native.vectors import (
    LANES,
    add_scaled,
    lane,
    load,
    prefetch,
    store,
    zeros,
)

ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
STEPS = 8
LARGEST = np.float32(1e10)


@no_type_check
@njit(error_model="numpy")
def _fraction(coordinate):
    return coordinate - np.float32(np.intp(coordinate))


@no_type_check
@njit(error_model="numpy")
def _softplus(x):
    return max(x, ZERO) + np.float32(math.log1p(math.exp(-abs(x))))


@no_type_check
@njit(error_model="numpy")
def _find_distance(samples, count, opacity):
    """Distance at which half of a ray's opacity is reached, linear within a sample."""
    target, total = HALF * opacity, ZERO
    for sample in range(count):
        weight = samples[3 * sample + 2]
        if total + weight >= target or sample == count - 1:
            share = (target - total) / weight if weight > ZERO else ZERO
            start, stop = samples[3 * sample], samples[3 * sample + 1]
            return start + min(max(share, ZERO), ONE) * (stop - start)
        total += weight
    return ZERO


@no_type_check
@njit(error_model="numpy")
def _render(frame, part, parts):
    """Operands: table (rows, c), corner_rows (cells, 8), cell_ids (n, n, n), aabb, coarse cells,
    their aabb, origins (r, 3), directions, near (r,), far, settings (6,), crop (2, 3).

    The settings: gain, shift and scale of the density, length of a step, transmittance at which a
    ray is finished, blocks of steps of a ray. Results: features (r, c), whose first channel means
    nothing, opacity (r,), sums of weight times distance, distance of half the opacity.
    """
    table, rows = floats_at(operand(frame, 0)), ints_at(operand(frame, 1))
    ids, aabb = ints_at(operand(frame, 2)), floats_at(operand(frame, 3))
    coarse, coarse_aabb = bytes_at(operand(frame, 4)), floats_at(operand(frame, 5))
    origins, directions = floats_at(operand(frame, 6)), floats_at(operand(frame, 7))
    nears, fars = floats_at(operand(frame, 8)), floats_at(operand(frame, 9))
    settings, crop = floats_at(operand(frame, 10)), floats_at(operand(frame, 11))
    gain, shift, scale, step = settings[0], settings[1], settings[2], settings[3]
    threshold, blocks = settings[4], np.intp(settings[5])
    features, opacities = floats_at(result(frame, 0)), floats_at(result(frame, 1))
    distances, medians = floats_at(result(frame, 2)), floats_at(result(frame, 3))
    channels, side = result_size(frame, 0, 1), operand_size(frame, 2, 0)
    cx, cy, cz = operand_size(frame, 4, 0), operand_size(frame, 4, 1), operand_size(frame, 4, 2)
    memory = allocate(4 * (STEPS + 3 * STEPS * blocks))
    cells, samples = ints_at(memory), floats_at(memory + 4 * STEPS)
    first, last = part_of(operand_size(frame, 8, 0), part, parts)
    for ray in range(first, last):
        near, far = nears[ray], fars[ray]
        ox, oy, oz = origins[3 * ray], origins[3 * ray + 1], origins[3 * ray + 2]
        dx, dy, dz = directions[3 * ray], directions[3 * ray + 1], directions[3 * ray + 2]
        x, along_x = in_cells(aabb, 0, side, ox, dx)
        y, along_y = in_cells(aabb, 1, side, oy, dy)
        z, along_z = in_cells(aabb, 2, side, oz, dz)
        u, along_u = in_cells(coarse_aabb, 0, cx, ox, dx)
        v, along_v = in_cells(coarse_aabb, 1, cy, oy, dy)
        w, along_w = in_cells(coarse_aabb, 2, cz, oz, dz)
        for channel in range(0, channels, LANES):
            store(features, ray * channels + channel, zeros())
        transmittance, opacity, distance, count = ONE, ZERO, ZERO, 0
        for block in range(blocks):
            begin = near + step * np.float32(STEPS * block)
            end = min(begin + step * np.float32(STEPS), far)
            # Also false where a distance is not a number.
            if not end > begin or transmittance <= threshold:
                break
            t = HALF * (begin + end)
            cell = cell_of(u + t * along_u, v + t * along_v, w + t * along_w, cx, cy, cz)
            if cell < 0 or coarse[cell] == 0:
                continue
            for index in range(STEPS):
                t = begin + step * (np.float32(index) + HALF)
                cell = cell_of(x + t * along_x, y + t * along_y, z + t * along_z, side, side, side)
                prefetch(ids, max(cell, 0))
            for index in range(STEPS):
                start = near + step * np.float32(STEPS * block + index)
                stop = min(start + step, far)
                t = HALF * (start + stop)
                cell = cell_of(x + t * along_x, y + t * along_y, z + t * along_z, side, side, side)
                shows = cell >= 0 and stop > start
                shows = shows and crop[0] <= ox + t * dx <= crop[3]
                shows = shows and crop[1] <= oy + t * dy <= crop[4]
                shows = shows and crop[2] <= oz + t * dz <= crop[5]
                cells[index] = ids[cell] if shows else np.int32(0)
                prefetch(rows, CORNERS * np.intp(cells[index]))
            for index in range(STEPS):
                corner_rows = CORNERS * np.intp(cells[index])
                if corner_rows > 0:
                    for corner in range(0, CORNERS, 2):
                        prefetch(table, np.intp(rows[corner_rows + corner]) * channels)
            for index in range(STEPS):
                corner_rows = CORNERS * np.intp(cells[index])
                if corner_rows == 0:
                    continue
                start = near + step * np.float32(STEPS * block + index)
                stop = min(start + step, far)
                t = HALF * (start + stop)
                fx, fy, fz = (
                    _fraction(x + t * along_x),
                    _fraction(y + t * along_y),
                    _fraction(z + t * along_z),
                )
                weight = ZERO
                for channel in range(0, channels, LANES):
                    total = zeros()
                    for corner in range(CORNERS):
                        share = corner_weight(fx, fy, fz, corner)
                        row = np.intp(rows[corner_rows + corner]) * channels + channel
                        total = add_scaled(total, share, load(table, row))
                    if channel == 0:
                        density = scale * _softplus(gain * lane(total, 0) + shift)
                        depth = min(min(density, LARGEST) * (stop - start), LARGEST)
                        weight = transmittance * -np.float32(math.expm1(-depth))
                    into = ray * channels + channel
                    store(features, into, add_scaled(load(features, into), weight, total))
                transmittance -= weight
                opacity += weight
                distance += weight * t
                samples[3 * count] = start
                samples[3 * count + 1] = stop
                samples[3 * count + 2] = weight
                count += 1
        opacities[ray] = opacity
        distances[ray] = distance
        medians[ray] = _find_distance(samples, count, opacity)
    release(memory)


@no_type_check
@kernel
def render_voxels(frame):
    """Handler of `calls.render_voxels`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_render), 0, 16)
    return 0

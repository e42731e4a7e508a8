"""Marching: steps of one length through the occupied cells of a grid, packed.

The same as `sampling.marching.march_to_samples` where space is not contracted. Rays are marched
once, which marks their occupied steps, eight to a byte; then the steps of all are numbered, and
written.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from jaxrf.core.kernels.native.cells import cell_of, in_cells
from jaxrf.core.kernels.native.frames import (
    address_of_body,
    asks_for_version,
    bytes_at,
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
from jaxrf.core.kernels.native.vectors import prefetch

HALF, ZERO = np.float32(0.5), np.float32(0.0)
STEPS = 8  # of a block


@no_type_check
@njit(error_model="numpy")
def _edge(begin, length, step, near, far):
    """Distance at which a step begins, between the ray's near and far."""
    return min(max(begin + length * np.float32(step), near), far)


@no_type_check
@njit(error_model="numpy")
def _mark(frame, part, parts):
    """Operands: occupied (x, y, z), aabb, coarse (x, y, z), its aabb, origins (r, 3), directions,
    near (r,), far, begin (r,), step (1,).

    Results 4 and 5: marks (r, blocks), counts (r,).
    """
    occupied, aabb = bytes_at(operand(frame, 0)), floats_at(operand(frame, 1))
    coarse, coarse_aabb = bytes_at(operand(frame, 2)), floats_at(operand(frame, 3))
    origins, directions = floats_at(operand(frame, 4)), floats_at(operand(frame, 5))
    near, far, begin = (
        floats_at(operand(frame, 6)),
        floats_at(operand(frame, 7)),
        floats_at(operand(frame, 8)),
    )
    length = floats_at(operand(frame, 9))[0]
    marks, counts = bytes_at(result(frame, 4)), ints_at(result(frame, 5))
    nx, ny, nz = operand_size(frame, 0, 0), operand_size(frame, 0, 1), operand_size(frame, 0, 2)
    cx, cy, cz = operand_size(frame, 2, 0), operand_size(frame, 2, 1), operand_size(frame, 2, 2)
    blocks = result_size(frame, 4, 1)
    block_length = length * np.float32(STEPS)
    first, last = part_of(operand_size(frame, 6, 0), part, parts)
    for ray in range(first, last):
        low, high, mark = near[ray], far[ray], ray * blocks
        ox, oy, oz = origins[3 * ray], origins[3 * ray + 1], origins[3 * ray + 2]
        dx, dy, dz = directions[3 * ray], directions[3 * ray + 1], directions[3 * ray + 2]
        x, along_x = in_cells(aabb, 0, nx, ox, dx)
        y, along_y = in_cells(aabb, 1, ny, oy, dy)
        z, along_z = in_cells(aabb, 2, nz, oz, dz)
        u, along_u = in_cells(coarse_aabb, 0, cx, ox, dx)
        v, along_v = in_cells(coarse_aabb, 1, cy, oy, dy)
        w, along_w = in_cells(coarse_aabb, 2, cz, oz, dz)
        for block in range(blocks):
            marks[mark + block] = np.uint8(0)
            unclipped = begin[ray] + block_length * np.float32(block)
            start, stop = max(unclipped, low), min(unclipped + block_length, high)
            # Also false where a distance is not a number.
            if not stop > start:
                continue
            t = HALF * (start + stop)
            cell = cell_of(u + t * along_u, v + t * along_v, w + t * along_w, cx, cy, cz)
            if cell < 0 or coarse[cell] == 0:
                continue
            marks[mark + block] = np.uint8(1)
            for index in range(STEPS):
                t = unclipped + length * (np.float32(index) + HALF)
                cell = cell_of(x + t * along_x, y + t * along_y, z + t * along_z, nx, ny, nz)
                prefetch(occupied, max(cell, 0))
        count = 0
        for block in range(blocks):
            if marks[mark + block] == 0:
                continue
            bits = 0
            for index in range(STEPS):
                step = STEPS * block + index
                start = _edge(begin[ray], length, step, low, high)
                stop = begin[ray] + length * np.float32(step) + length
                stop = min(max(stop, low), high)
                t = HALF * (start + stop)
                cell = cell_of(x + t * along_x, y + t * along_y, z + t * along_z, nx, ny, nz)
                if stop > start and cell >= 0 and occupied[cell] != 0:
                    bits |= 1 << index
                    count += 1
            marks[mark + block] = np.uint8(bits)
        counts[ray] = count


@no_type_check
@njit(error_model="numpy")
def _write(frame, part, parts):
    """Results: t_starts (m,), t_ends, ray_indices, mask, and result 5: where each ray begins."""
    near, far, begin = (
        floats_at(operand(frame, 6)),
        floats_at(operand(frame, 7)),
        floats_at(operand(frame, 8)),
    )
    length = floats_at(operand(frame, 9))[0]
    starts, ends = floats_at(result(frame, 0)), floats_at(result(frame, 1))
    rays, mask = ints_at(result(frame, 2)), bytes_at(result(frame, 3))
    marks, begins = bytes_at(result(frame, 4)), ints_at(result(frame, 5))
    budget, blocks = result_size(frame, 0, 0), result_size(frame, 4, 1)
    first, last = part_of(operand_size(frame, 6, 0), part, parts)
    for ray in range(first, last):
        slot = np.intp(begins[ray])
        for block in range(blocks):
            bits = marks[ray * blocks + block]
            if bits == 0:
                continue
            for index in range(STEPS):
                if not (bits >> index) & 1:
                    continue
                if slot >= budget:
                    break
                step = STEPS * block + index
                start = _edge(begin[ray], length, step, near[ray], far[ray])
                stop = begin[ray] + length * np.float32(step) + length
                starts[slot] = start
                ends[slot] = min(max(stop, near[ray]), far[ray])
                rays[slot] = ray
                mask[slot] = np.uint8(1)
                slot += 1


@no_type_check
@njit(error_model="numpy")
def _number(frame):
    """Makes each ray's number of steps the slot of its first, and empties the unused slots."""
    counts, complete = ints_at(result(frame, 5)), ints_at(result(frame, 6))
    num_rays, budget = operand_size(frame, 6, 0), result_size(frame, 0, 0)
    total, num_complete = 0, 0
    for ray in range(num_rays):
        count = np.intp(counts[ray])
        counts[ray] = min(total, budget)
        total += count
        if total <= budget:
            num_complete = ray + 1
    complete[0] = num_complete
    starts, ends = floats_at(result(frame, 0)), floats_at(result(frame, 1))
    rays, mask = ints_at(result(frame, 2)), bytes_at(result(frame, 3))
    for slot in range(min(total, budget), budget):
        starts[slot] = ZERO
        ends[slot] = ZERO
        rays[slot] = num_rays - 1
        mask[slot] = np.uint8(0)


@no_type_check
@kernel
def march(frame):
    """Handler of `calls.march`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_mark), 0, 4)
        _number(frame)
        run_parts(frame, address_of_body(_write), 0, 4)
    return 0

"""Compositing of packed samples along their rays, and its gradients.

Equations and caps are those of `rendering.packed.compute_packed_weights`. A part holds the rays
whose first sample is among its own.
"""

import math
from typing import no_type_check

import numpy as np
from numba import njit

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

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@no_type_check
@njit(error_model="numpy")
def _samples_of_part(rays, count, part, parts):
    """The samples of the rays that begin in a part."""
    start, stop = part_of(count, part, parts)
    while 0 < start < count and rays[start] == rays[start - 1]:
        start += 1
    while 0 < stop < count and rays[stop] == rays[stop - 1]:
        stop += 1
    return start, stop


@no_type_check
@njit(error_model="numpy")
def _composite(frame, part, parts):
    """Operands: depths (m,), rays (m,), values (m, c).

    Results: weights (m,), transmittance after each sample (m,), opacity (r,), sums (r, c).
    """
    depths, rays, values = (
        floats_at(operand(frame, 0)),
        ints_at(operand(frame, 1)),
        floats_at(operand(frame, 2)),
    )
    weights, after = floats_at(result(frame, 0)), floats_at(result(frame, 1))
    opacity, sums = floats_at(result(frame, 2)), floats_at(result(frame, 3))
    count, channels = operand_size(frame, 0, 0), operand_size(frame, 2, 1)
    num_rays = result_size(frame, 2, 0)
    start, stop = _samples_of_part(rays, count, part, parts)
    # Rays without samples belong to the part of the sample before them.
    ray = np.intp(rays[start - 1]) + 1 if start > 0 else 0
    last = num_rays if stop >= count else np.intp(rays[stop - 1]) + 1 if stop > 0 else 0
    sample = start
    while ray < last:
        for channel in range(channels):
            sums[ray * channels + channel] = ZERO
        depth = total = ZERO
        before = ONE
        while sample < stop and rays[sample] == ray:
            depth += depths[sample]
            transmittance_after = np.float32(math.exp(-depth))
            weight = before * -np.float32(math.expm1(-depths[sample]))
            weights[sample] = weight
            after[sample] = transmittance_after
            before = transmittance_after
            total += weight
            if weight > ZERO:
                for channel in range(channels):
                    sums[ray * channels + channel] += weight * values[sample * channels + channel]
            sample += 1
        opacity[ray] = total
        ray += 1


@no_type_check
@kernel
def composite(frame):
    """Handler of `calls.composite`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_composite), 0, 4)
    return 0


@no_type_check
@njit(error_model="numpy")
def _composite_gradient(frame, part, parts):
    """Operands: weights, after, rays, values, gradients of weights (m,), opacity (r,), sums (r, c).

    Results: gradients of depths (m,) and values (m, c).
    """
    weights, after, rays = (
        floats_at(operand(frame, 0)),
        floats_at(operand(frame, 1)),
        ints_at(operand(frame, 2)),
    )
    values, of_weights = floats_at(operand(frame, 3)), floats_at(operand(frame, 4))
    of_opacity, of_sums = floats_at(operand(frame, 5)), floats_at(operand(frame, 6))
    of_depths, of_values = floats_at(result(frame, 0)), floats_at(result(frame, 1))
    count, channels = operand_size(frame, 0, 0), operand_size(frame, 3, 1)
    start, stop = _samples_of_part(rays, count, part, parts)
    later_terms = ZERO
    for sample in range(stop - 1, start - 1, -1):
        ray = np.intp(rays[sample])
        if sample + 1 >= stop or rays[sample + 1] != ray:
            later_terms = ZERO
        weight = weights[sample]
        total = of_weights[sample] + of_opacity[ray]
        for channel in range(channels):
            upstream = of_sums[ray * channels + channel]
            total += values[sample * channels + channel] * upstream
            of_values[sample * channels + channel] = weight * upstream
        of_depths[sample] = after[sample] * total - later_terms
        later_terms += weight * total


@no_type_check
@kernel
def composite_gradient(frame):
    """Handler of `calls.composite_gradient`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_composite_gradient), 0, 4)
    return 0

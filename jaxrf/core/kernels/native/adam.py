"""Adam in one pass over parameters, moments and gradients, and the norm of gradients."""

import math
from typing import no_type_check

import numpy as np
from numba import njit

from jaxrf.core.kernels.native.frames import (
    address_of_body,
    asks_for_version,
    floats_at,
    kernel,
    operand,
    operand_count,
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
    minus,
    over,
    plus,
    prefetch,
    repeat,
    square_root,
    store,
    times,
    where_zero,
    zeros,
)

ZERO, ONE = np.float32(0.0), np.float32(1.0)
# Numbers by which memory is asked for before it is read, where most is skipped.
AHEAD = 1024


@no_type_check
@njit(error_model="numpy")
def _adam(frame, part, parts):
    """Operands: parameters (n,), first moment, second moment, gradients, and factors (8,).

    The factors: of the gradients, the learning rate, beta1, beta2, epsilon, one less beta1^t and
    beta2^t, whether entries of gradient 0 are left alone. Results: the first three, updated.
    """
    values, first, second = (
        floats_at(result(frame, 0)),
        floats_at(result(frame, 1)),
        floats_at(result(frame, 2)),
    )
    gradients, factors = floats_at(operand(frame, 3)), floats_at(operand(frame, 4))
    rate, beta1, beta2, epsilon = factors[1], factors[2], factors[3], factors[4]
    bias1, bias2, skips = factors[5], factors[6], factors[7] != ZERO
    size = operand_count(frame, 0)
    start, stop = part_of((size + LANES - 1) // LANES, part, parts)
    stop = min(LANES * stop, size)
    index = LANES * start
    while index + LANES <= stop:
        if skips:
            ahead = index + AHEAD
            if ahead + LANES <= stop and not is_zero(load(gradients, ahead)):
                prefetch(values, ahead)
                prefetch(first, ahead)
                prefetch(second, ahead)
            if is_zero(load(gradients, index)):
                index += LANES
                continue
        raw = load(gradients, index)
        gradient = times(repeat(factors[0]), raw)
        old_m, old_v, old = load(first, index), load(second, index), load(values, index)
        m = add_scaled(times(repeat(beta1), old_m), ONE - beta1, gradient)
        v = add_scaled(times(repeat(beta2), old_v), ONE - beta2, times(gradient, gradient))
        root = plus(square_root(over(v, repeat(bias2))), repeat(epsilon))
        new = minus(old, over(times(repeat(rate / bias1), m), root))
        if skips:
            new, m, v = (
                where_zero(raw, old, new),
                where_zero(raw, old_m, m),
                where_zero(raw, old_v, v),
            )
        store(values, index, new)
        store(first, index, m)
        store(second, index, v)
        index += LANES
    # What does not fill a vector.
    for single in range(index, stop):
        gradient = factors[0] * gradients[single]
        if not skips or gradients[single] != ZERO:
            first[single] = beta1 * first[single] + (ONE - beta1) * gradient
            second[single] = beta2 * second[single] + (ONE - beta2) * gradient * gradient
            root = np.float32(math.sqrt(second[single] / bias2)) + epsilon
            values[single] -= rate / bias1 * first[single] / root


@no_type_check
@kernel
def adam(frame):
    """Handler of `calls.adam`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_adam), 0, 16)
    return 0


@no_type_check
@njit(error_model="numpy")
def _square(vector):
    return times(vector, vector)


@no_type_check
@njit(error_model="numpy")
def _sum_squares(frame, part, parts):
    """Operand: numbers (n,). Result: sums of squares of so many parts of them."""
    numbers, sums = floats_at(operand(frame, 0)), floats_at(result(frame, 0))
    start, stop = part_of(operand_count(frame, 0), part, parts)
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    index = start
    while index + 4 * LANES <= stop:
        a = plus(a, _square(load(numbers, index)))
        b = plus(b, _square(load(numbers, index + LANES)))
        c = plus(c, _square(load(numbers, index + 2 * LANES)))
        d = plus(d, _square(load(numbers, index + 3 * LANES)))
        index += 4 * LANES
    total = ZERO
    for k in range(LANES):
        total += (lane(a, k) + lane(b, k)) + (lane(c, k) + lane(d, k))
    while index < stop:
        total += numbers[index] * numbers[index]
        index += 1
    sums[part] = total


@no_type_check
@kernel
def sum_squares(frame):
    """Handler of `calls.sum_squares`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_sum_squares), result_size(frame, 0, 0), 1)
    return 0

"""Maxima kept in slots: ranges of slots belong to parts."""

from typing import no_type_check

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
    run_parts,
)


@no_type_check
@njit(error_model="numpy")
def _update_maxima(frame, part, parts):
    """Operands: memory (slots,), which is the result, slots (m,), values (m,)."""
    memory = floats_at(result(frame, 0))
    slots, values = ints_at(operand(frame, 1)), floats_at(operand(frame, 2))
    start, stop = part_of(operand_size(frame, 0, 0), part, parts)
    for sample in range(operand_size(frame, 1, 0)):
        slot = slots[sample]
        if start <= slot < stop and values[sample] > memory[slot]:
            memory[slot] = values[sample]


@no_type_check
@kernel
def update_maxima(frame):
    """Handler of `calls.update_maxima`."""
    if not asks_for_version(frame):
        run_parts(frame, address_of_body(_update_maxima), 0, 1)
    return 0

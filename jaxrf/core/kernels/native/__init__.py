"""Kernels for CPUs, compiled by numba; `jaxrf.core.kernels.calls` imports them when first used.

A kernel is a function of a call frame: XLA's description of a call, with the addresses and shapes
of its operands and results (`frames`). It cuts its work into parts, which XLA's threads take one
after the other; no result depends on how many threads there are. Rows of numbers are read as
vectors (`vectors`).

Functions are marked `no_type_check`, since a type checker cannot look into compiled code.
"""

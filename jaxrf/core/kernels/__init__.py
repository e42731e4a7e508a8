"""Hand-written kernels for what XLA compiles badly, and the functions that call them.

`calls` holds the functions, with shapes; `native` the kernels for CPUs. Whoever calls one has the
same function in JAX beside it, which runs elsewhere and where numba is missing, and is what the
tests hold the kernel against.
"""

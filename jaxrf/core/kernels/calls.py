"""The kernels for CPUs as functions of JAX arrays.

They compute in float32, on CPUs only: a caller asks `can_call` while it is traced, and takes a
kernel with `jax.lax.platform_dependent`.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.errors import InputError
from jaxrf.core.user_cache import cache_folder

# Set to "off", everything is left to XLA.
SWITCH = "JAXRF_KERNELS"
# Numbers of a table's row that are read at once, and of a hash grid's row.
LANES, FEW_LANES = 8, 4
# Steps of a block of `march`.
STEPS_PER_BLOCK = 8
# Parts of a sum, a fixed number.
SUM_PARTS = 64

_COMPILING = threading.RLock()

# Those that any field's samples pass through first: they are compiled in this order.
_MODULES = {
    "march": "march",
    "find_voxels": "voxels",
    "interpolate_voxels": "voxels",
    "scatter_voxels": "voxels",
    "composite": "composite",
    "composite_gradient": "composite",
    "update_maxima": "maxima",
    "adam": "adam",
    "sum_squares": "adam",
    "render_voxels": "rays",
    "interpolate_plane": "planes",
    "scatter_plane": "planes",
    "interpolate_hashed": "hashed",
    "scatter_hashed": "hashed",
}


def can_call(*arrays: Array) -> bool:
    """Whether kernels can be called with these arrays: on a CPU, with numba, if floats are float32.

    Raises:
      InputError: if the environment variable JAXRF_KERNELS is neither "on" nor "off".
    """
    floats = (x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating))
    can_run = _is_switched_on() and _has_numba() and jax.default_backend() == "cpu"
    return can_run and all(dtype == jnp.float32 for dtype in floats)


def _is_switched_on() -> bool:
    value = os.environ.get(SWITCH, "on")
    if value not in ("on", "off"):
        raise InputError(f"{SWITCH} is {value!r}: set it to on or off.")
    return value == "on"


@functools.cache
def _has_numba() -> bool:
    # Offsets in call frames are those of 64-bit little-endian machines; Windows was not tried.
    fits = sys.byteorder == "little" and sys.maxsize > 2**32 and sys.platform != "win32"
    return fits and importlib.util.find_spec("numba") is not None


def compile_kernel(name: str) -> str:
    """Compiles a kernel, or takes it from the user's cache; returns the name that XLA knows it by.

    Raises:
      KeyError: if there is no kernel of this name.
    """
    # Programs that call kernels are compiled by several threads.
    with _COMPILING:
        return _register(name)


def compile_all() -> None:
    """Compiles all kernels into the user's cache, so that no training has to."""
    if can_call():
        for name in _MODULES:
            compile_kernel(name)


def load_in_background() -> bool:
    """Begins to load the kernels of the user's cache, beside whatever the caller does next.

    Those that are not there are compiled when they are needed: beside other Python code, it would
    take as long and hold that up.

    Returns:
      Whether marching, which is needed first, is among those.
    """
    if not can_call():
        return False
    cached = [
        name for name, module in _MODULES.items() if any(_folder().rglob(f"{module}.{name}-*.nbi"))
    ]
    threading.Thread(target=_load, args=(cached,)).start()
    return "march" not in cached


def _load(names: Sequence[str]) -> None:
    for name in names:
        compile_kernel(name)


@functools.cache
def _register(name: str) -> str:
    module = f"jaxrf.core.kernels.native.{_MODULES[name]}"
    with _cache_of_numba():
        handler = getattr(importlib.import_module(module), name)
    target = f"jaxrf_{name}"
    capsule = _make_capsule(handler.address)
    jax.ffi.register_ffi_target(target, capsule, platform="cpu", api_version=1)
    return target


def _make_capsule(address: int) -> Any:
    import ctypes

    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new_capsule(address, None, None)


@functools.cache
def _folder() -> Path:
    """Where numba keeps the kernels.

    Numba notices that the file of a function changed, but not the other files that it calls: so the
    folder is named by the contents of all.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    contents = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return cache_folder() / "kernels" / contents[:16]


@contextmanager
def _cache_of_numba() -> Iterator[None]:
    """While it is entered, numba keeps what it compiles in the user's cache folder, if it can."""
    from numba.core import config as numba_config

    config: Any = numba_config
    folder, before = _folder(), config.CACHE_DIR
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.CACHE_DIR = str(folder) if os.access(folder, os.W_OK) else ""
    except OSError:
        config.CACHE_DIR = ""
    try:
        yield
    finally:
        config.CACHE_DIR = before


def _kernel(name: str, results: Any, aliases: dict[int, int] | None = None) -> Any:
    """A kernel as a function of its operands. It is called where profiles shall see it called."""
    return jax.ffi.ffi_call(
        compile_kernel(name), results, vmap_method="sequential", input_output_aliases=aliases
    )


def _like(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _narrow(*arrays: Any) -> list[Array]:
    """Arrays as kernels read them: integers are wider where 64 bits are enabled."""
    return [
        x.astype(np.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x
        for x in map(jnp.asarray, arrays)
    ]


def find_voxels(
    positions: Float[Array, "m 3"], cell_ids: Int[Array, "n3"], aabb: Float[Array, "2 3"]
) -> Int[Array, "m"]:
    """Id of the cell that holds each position; 0 if none does.

    Args:
      positions: in the grid.
      cell_ids: of a cube of cells.
      aabb: the box of these cells.
    """
    find = _kernel("find_voxels", _like(positions.shape[:1], np.int32))
    cells: Array = find(*_narrow(positions, _cube(cell_ids), aabb))
    return cells


def _cube(cell_ids: Int[Array, "n3"]) -> Int[Array, "n n n"]:
    side = round(cell_ids.size ** (1 / 3))
    return cell_ids.reshape(side, side, side)


def interpolate_voxels(
    table: Float[Array, "rows c"],
    positions: Float[Array, "m 3"],
    cells: Int[Array, "m"],
    corner_rows: Int[Array, "cells 8"],
    cell_ids: Int[Array, "n3"],
    aabb: Float[Array, "2 3"],
) -> tuple[Float[Array, "m"], Float[Array, "m k"]]:
    """First channel, and the k others, of the rows at the corners of cells, mixed trilinearly.

    Args:
      table: c is a multiple of `LANES`.
      positions: in the grid.
      cells: id of the cell of each (`find_voxels`).
      corner_rows: by id of a cell.
      cell_ids: of a cube of cells.
      aabb: the box of these cells.
    """
    count, channels = len(positions), table.shape[1]
    results = _like((count,)), _like((count, channels - 1))
    operands = table, positions, cells, corner_rows, aabb, _cube(cell_ids)
    first, others = _kernel("interpolate_voxels", results)(*_narrow(*operands))
    return first, others


def scatter_voxels(
    num_rows: int,
    positions: Float[Array, "m 3"],
    cells: Int[Array, "m"],
    corner_rows: Int[Array, "cells 8"],
    num_cells: Int[Array, ""],
    cell_ids: Int[Array, "n3"],
    aabb: Float[Array, "2 3"],
    gradients: tuple[Float[Array, "m"], Float[Array, "m k"]],
) -> Float[Array, "rows c"]:
    """Gradient of the table of `interpolate_voxels`; 0 for row 0, which is no cell's.

    Args:
      num_rows: of the table.
      positions, cells, corner_rows, cell_ids, aabb: as there. Row numbers at one corner ascend with
        the ids of cells.
      num_cells: how many ids are in use.
      gradients: of both results.
    """
    first, others = gradients
    result = _like((num_rows, others.shape[1] + 1))
    operands = positions, cells, corner_rows, num_cells.reshape(1), aabb, _cube(cell_ids)
    gradient: Array = _kernel("scatter_voxels", result)(*_narrow(*operands, first, others))
    return gradient


def interpolate_plane(
    plane: Float[Array, "height width c"], across: Float[Array, "m"], down: Float[Array, "m"]
) -> Float[Array, "m c"]:
    """Features of a plane, bilinearly interpolated; of a line, if its height is 1.

    Args:
      plane: c is a multiple of `LANES`.
      across, down: coordinates along its width and its height, clamped to [0, 1].
    """
    interpolate = _kernel("interpolate_plane", _like((len(across), plane.shape[2])))
    features: Array = interpolate(plane, across, down)
    return features


def scatter_plane(
    shape: tuple[int, ...],
    across: Float[Array, "m"],
    down: Float[Array, "m"],
    gradient: Float[Array, "m c"],
) -> Float[Array, "height width c"]:
    """Gradient of the plane of `interpolate_plane`, of this shape, given that of the features."""
    scatter = _kernel("scatter_plane", _like(shape))
    of_plane: Array = scatter(across, down, gradient)
    return of_plane


def interpolate_hashed(
    table: Float[Array, "rows 4"],
    unit: Float[Array, "m 3"],
    cells: tuple[int, ...],
    starts: tuple[int, ...],
) -> Float[Array, "m e"]:
    """Features of all levels of a hash grid, trilinearly interpolated, the coarsest level first.

    Args:
      table: rows of all levels.
      unit: positions, clamped to [0, 1].
      cells: along each side, per level.
      starts: first row of each level, and the total number of rows.
    """
    interpolate = _kernel("interpolate_hashed", _like((len(unit), FEW_LANES * len(cells))))
    features: Array = interpolate(*_narrow(table, unit, np.array(cells), np.array(starts)))
    return features


def scatter_hashed(
    unit: Float[Array, "m 3"],
    cells: tuple[int, ...],
    starts: tuple[int, ...],
    gradient: Float[Array, "m e"],
) -> Float[Array, "rows 4"]:
    """Gradient of the table of `interpolate_hashed`, given that of the features."""
    scatter = _kernel("scatter_hashed", _like((starts[-1], FEW_LANES)))
    of_table: Array = scatter(*_narrow(unit, np.array(cells), np.array(starts), gradient))
    return of_table


def march(
    occupied: tuple[Bool[Array, "x y z"], Float[Array, "2 3"]],
    coarse: tuple[Bool[Array, "i j k"], Float[Array, "2 3"]],
    rays: tuple[Float[Array, "r 3"], Float[Array, "r 3"], Float[Array, "r"], Float[Array, "r"]],
    begin: Float[Array, "r"],
    step_size: Float[Array, ""],
    max_blocks: int,
    budget: int,
) -> tuple[Float[Array, "m"], Float[Array, "m"], Int[Array, "m"], Bool[Array, "m"], Int[Array, ""]]:
    """Steps of one length through occupied cells, packed; see `sampling.marching`.

    Args:
      occupied: cells and their box.
      coarse: cells in which the middle of a block of `STEPS_PER_BLOCK` steps is looked up first.
      rays: origins, directions, near and far.
      begin: where the first step of each ray begins, at near or before.
      step_size: in the units of near.
      max_blocks: of a ray.
      budget: m, the number of slots.

    Returns:
      Start, end and ray of each sample, which slots hold one, and the number of leading rays whose
      samples all fit.
    """
    count = len(begin)
    results = (
        *(_like((budget,), dtype) for dtype in (np.float32, np.float32, np.int32, np.bool_)),
        _like((count, max_blocks), np.uint8),
        _like((count,), np.int32),
        _like((1,), np.int32),
    )
    operands = *occupied, *coarse, *rays, begin, step_size.reshape(1)
    starts, ends, ray, mask, _, _, num_complete = _kernel("march", results)(*operands)
    return starts, ends, ray, mask, num_complete[0]


class VoxelArrays(NamedTuple):
    """Voxels as `render_voxels` reads them.

    table: a row for each corner of a cell; c is a multiple of `LANES`.
    corner_rows: by id of a cell, the rows at its corners.
    cell_ids: of a cube of cells; 0 where there is none.
    aabb: the box of these cells.
    coarse, coarse_aabb: cells in which blocks of steps are looked up first, and their box.
    """

    table: Float[Array, "rows c"]
    corner_rows: Int[Array, "cells 8"]
    cell_ids: Int[Array, "n3"]
    aabb: Float[Array, "2 3"]
    coarse: Bool[Array, "x y z"]
    coarse_aabb: Float[Array, "2 3"]


def render_voxels(
    voxels: VoxelArrays,
    rays: tuple[Float[Array, "r 3"], Float[Array, "r 3"], Float[Array, "r"], Float[Array, "r"]],
    settings: tuple[Float[Array, ""] | float, ...],
    crop_aabb: Float[Array, "2 3"] | None = None,
) -> tuple[Float[Array, "r k"], Float[Array, "r"], Float[Array, "r"], Float[Array, "r"]]:
    """Rays rendered front to back through voxels, until they are opaque.

    Args:
      voxels: see there.
      rays: origins, directions, near and far.
      settings: factor, offset and scale of the softplus that makes the density of the first
        channel, length of a step, transmittance at which a ray is finished, blocks of
        `STEPS_PER_BLOCK` steps of a ray.
      crop_aabb: box outside of which nothing is rendered; None for all.

    Returns:
      By ray the weighted sums of the other channels, the sum of weights, the weighted sum of
      distances, and the distance at which half of the opacity is reached.
    """
    count, channels = len(rays[2]), voxels.table.shape[1]
    results = _like((count, channels)), *(_like((count,)) for _ in range(3))
    numbers = jnp.stack([jnp.asarray(number, jnp.float32) for number in settings])
    table, corner_rows, cell_ids, *boxes = voxels
    everything = jnp.asarray([[-jnp.inf] * 3, [jnp.inf] * 3], jnp.float32)
    crop = everything if crop_aabb is None else crop_aabb.astype(jnp.float32)
    operands = table, corner_rows, _cube(cell_ids), *boxes, *rays, numbers, crop
    sums, opacity, distance, median = _kernel("render_voxels", results)(*_narrow(*operands))
    return sums[:, 1:], opacity, distance, median


def composite(
    depths: Float[Array, "m"], rays: Int[Array, "m"], values: Float[Array, "m c"], num_rays: int
) -> tuple[Float[Array, "m"], Float[Array, "m"], Float[Array, "r"], Float[Array, "r c"]]:
    """Weights of packed samples, the transmittance after each, and sums along the rays.

    Args:
      depths: optical depth of each sample.
      rays: of each sample, ascending.
      values: of each sample.
      num_rays: r.

    Returns:
      Weights and transmittance by sample, and by ray the sum of weights and of weighted values.
    """
    count, channels = values.shape
    results = _like((count,)), _like((count,)), _like((num_rays,)), _like((num_rays, channels))
    weights, transmittance_after, opacity, sums = _kernel("composite", results)(
        *_narrow(depths, rays, values)
    )
    return weights, transmittance_after, opacity, sums


def composite_gradient(
    weights: Float[Array, "m"],
    transmittance_after: Float[Array, "m"],
    rays: Int[Array, "m"],
    values: Float[Array, "m c"],
    gradients: tuple[Float[Array, "m"], Float[Array, "r"], Float[Array, "r c"]],
) -> tuple[Float[Array, "m"], Float[Array, "m c"]]:
    """Gradients of the depths and values of `composite`, of which the first two are results.

    `gradients` are those of weights, opacity and sums.
    """
    results = _like(weights.shape), _like(values.shape)
    of_depths, of_values = _kernel("composite_gradient", results)(
        *_narrow(weights, transmittance_after, rays, values, *gradients)
    )
    return of_depths, of_values


def update_maxima(
    memory: Float[Array, "slots"], slots: Int[Array, "m"], values: Float[Array, "m"]
) -> Float[Array, "slots"]:
    """The memory with the maximum of what is in each slot and the values for it."""
    update = _kernel("update_maxima", _like(memory.shape), aliases={0: 0})
    updated: Array = update(*_narrow(memory, slots, values))
    return updated


def sum_squares(numbers: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Sum of squares, added in an order that does not depend on the number of threads."""
    return jnp.sum(_kernel("sum_squares", _like((SUM_PARTS,)))(numbers))


def adam(
    parameters: Float[Array, "*shape"],
    moments: tuple[Float[Array, "*shape"], Float[Array, "*shape"]],
    gradients: Float[Array, "*shape"],
    factors: Float[Array, "8"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Parameters and both moments after a step of Adam, updated in place.

    Args:
      parameters, moments, gradients: of one shape.
      factors: of the gradients, the learning rate, beta1, beta2, epsilon, 1 - beta1^t, 1 - beta2^t,
        and whether entries whose gradient is 0 are left alone.
    """
    update = _kernel("adam", (_like(parameters.shape),) * 3, aliases={0: 0, 1: 1, 2: 2})
    new, first, second = update(parameters, *moments, gradients, factors)
    return new, first, second

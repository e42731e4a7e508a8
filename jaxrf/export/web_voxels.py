"""Voxels for a page: blocks of 8-bit corners, and the network that colors rays.

The page's fragment shader takes the same steps as `render.march_and_render` and skips empty blocks.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.cameras import contraction
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core import encodings
from jaxrf.core.errors import InputError
from jaxrf.export.voxel_blocks import VoxelBlocks, quantize_rows, split_into_blocks
from jaxrf.fields.voxel_grid import VoxelGrid
from jaxrf.fields.voxels import Voxels
from jaxrf.models.networks import make_appearance_fn
from jaxrf.models.packed import PackedModel
from jaxrf.training.runs import Run


def shows_voxels(run: Run) -> bool:
    """Whether a page can show the run's field itself: voxels that are colored once per ray."""
    field = run.config.field
    return (
        isinstance(field, Voxels)
        and isinstance(run.config.model, PackedModel)
        and run.config.model.colors_per_ray(field)
        and run.config.ray_convention == RayConvention()
    )


def pack_voxels(run: Run) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The arrays of the page, and the numbers from which it makes its shader.

    Args:
      run: one that `shows_voxels`.

    Raises:
      InputError: no cell is occupied.
    """
    grid = run.state.grid
    assert isinstance(grid, VoxelGrid)
    if not np.asarray(grid.occupied).any():
        raise InputError(
            "No cell of the run's occupancy grid is occupied, so there is nothing to show: train "
            "the run longer."
        )
    blocks = split_into_blocks(grid)
    network = run.state.eval_params.field
    step_size = _step_size(run)
    table = quantize_rows(np.asarray(network["table"])[blocks.rows], _voxels(run), step_size)
    layers = _list_layers(run)
    arrays = {
        "cell_blocks": blocks.cells.blocks.astype("<i4"),
        "cell_bits": blocks.cells.bits,
        "corner_blocks": blocks.corners.blocks.astype("<i4"),
        "corner_bits": blocks.corners.bits,
        # Each channel by itself is smaller when compressed.
        "table": np.ascontiguousarray(table.values.T),
        "network": np.concatenate([np.asarray(x, "<f4").ravel() for pair in layers for x in pair]),
    }
    meta = {
        "channels": table.values.shape[1],
        "low": table.low.astype(float).tolist(),
        "high": table.high.astype(float).tolist(),
        "layers": [list(kernel.shape) for kernel, _ in layers],
        "offset": _mean_appearance(run).astype(float).tolist(),
        **_describe_field(_voxels(run)),
        **_describe_marching(run, blocks, step_size),
        **_describe_space(run),
    }
    return {name: array.tobytes() for name, array in arrays.items()}, meta


def _voxels(run: Run) -> Voxels:
    field = run.stage.field
    assert isinstance(field, Voxels)
    return field


def _step_size(run: Run) -> float:
    model = run.config.model
    assert isinstance(model, PackedModel)
    return float(model.step_size(run.stage.field, run.state.grid.aabb))


def _list_layers(run: Run) -> list[tuple[Array, Array]]:
    """Kernels and biases of the color network, the first layer first."""
    layers = run.state.eval_params.field["mlp"]["params"]
    return [
        (layers[f"Dense_{i}"]["kernel"], layers[f"Dense_{i}"]["bias"]) for i in range(len(layers))
    ]


def _mean_appearance(run: Run) -> Float[np.ndarray, "c"]:
    """Added to the features of every ray: the mean of the training images' offsets."""
    offsets = np.zeros(_voxels(run).feature_dim, np.float32)
    appearance_fn = make_appearance_fn(run.state.eval_params.appearance, mean=True)
    if appearance_fn is not None:
        mean = np.asarray(appearance_fn(jnp.zeros(1, jnp.int32)))[0]
        offsets[: len(mean)] = mean
    return offsets


def _describe_field(field: Voxels) -> dict[str, Any]:
    directions = encodings.fourier(jnp.zeros(3), field.num_direction_frequencies)
    return {
        "density_gain": field.density_gain,
        "density_shift": field.density_shift,
        "density_scale": field.density_scale,
        "direction_encoding": {
            "frequencies": field.num_direction_frequencies,
            "size": directions.shape[-1],
            "include_input": True,
            "frequency": 1.0,
        },
    }


def _describe_marching(run: Run, blocks: VoxelBlocks, step_size: float) -> dict[str, Any]:
    grid = run.state.grid
    aabb = np.asarray(grid.aabb, np.float64)
    cell = (aabb[1] - aabb[0]) / np.array(grid.occupied.shape)
    occupied = np.argwhere(np.asarray(grid.occupied))
    cells = occupied.max(axis=0) + 1 - occupied.min(axis=0)
    low = aabb[0] + np.array(blocks.low) * cell
    length = np.linalg.norm(cells * cell)
    if grid.bounds is not None:
        low_bound, high_bound = np.asarray(grid.bounds, np.float64)
        length = contraction.MAX_MARCH_DIAGONALS * np.linalg.norm(high_bound - low_bound)
    return {
        "blocks": list(blocks.shape),
        "aabb": [low.tolist(), (low + cells * cell).tolist()],
        "cell": cell.tolist(),
        "cells": cells.astype(float).tolist(),
        "step_size": step_size,
        "max_steps": math.ceil(float(length) / step_size) + 1,
        "transmittance_threshold": run.config.ray_convention.transmittance_threshold,
    }


def _describe_space(run: Run) -> dict[str, Any]:
    """How rays begin and end, and how space around the scene's box is contracted, if it is."""
    grid = run.state.grid
    return {
        "ndc": run.scene.ndc,
        "bounds": None if grid.bounds is None else np.asarray(grid.bounds, float).tolist(),
        "contraction_norm": grid.contraction_norm,
        "max_distance_factor": contraction.MAX_DISTANCE_FACTOR,
        "max_march_diagonals": contraction.MAX_MARCH_DIAGONALS,
        "max_march_speed": contraction.MAX_MARCH_SPEED,
    }

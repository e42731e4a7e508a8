"""Reads the alpha mask of TensoRF's checkpoints, and the cells of a grid that cover it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import AlphaMask, ConvertedGrid, float32
from jaxrf.core.errors import InputError
from jaxrf.fields.tensor_factors import fit_resolution

# Points along a side of a field's grid.
MAX_RESOLUTION = 4096
# Cells of the occupancy grid; of a file without a mask.
MAX_CELLS, MAX_DEFAULT_CELLS = 1024**3, 256**3


def read_aabb(value: Any, key: str, content: Content) -> Float[np.ndarray, "2 3"]:
    """Returns a box of a file; InputError if it is none."""
    aabb = float32(np.asarray(value, np.float64).reshape(-1))
    if aabb.size != 6 or not np.all(np.isfinite(aabb)) or not np.all(aabb[:3] < aabb[3:]):
        raise InputError(f"{key} in {content.path} is no box: the file is damaged.")
    return aabb.reshape(2, 3)


def read_grid(
    content: Content, aabb: Float[np.ndarray, "2 3"], resolution: Sequence[int]
) -> ConvertedGrid:
    """Returns the alpha mask of a file, and the cells of the field's box that it covers.

    Without a mask, all of at most `MAX_DEFAULT_CELLS` cells are occupied.

    Args:
      content: of the file.
      aabb: of the field.
      resolution: points along the sides of the field's grid.

    Raises:
      InputError: if the mask's box is none, or far smaller than the field's.
      KeyError: if the mask is not of the shape that the file says.
    """
    if "alphaMask.mask" not in content.tree:
        num_cells = min(math.prod(resolution), MAX_DEFAULT_CELLS)
        return ConvertedGrid(aabb, np.ones(fit_resolution(num_cells, aabb), bool))
    mask = AlphaMask(
        _read_points(content.tree),
        read_aabb(content.tree["alphaMask.aabb"], "alphaMask.aabb", content),
    )
    cells_per_side = (aabb[1] - aabb[0]) / (mask.aabb[1] - mask.aabb[0]) * mask.points.shape
    if np.prod(np.ceil(cells_per_side)) > MAX_CELLS:
        raise InputError(
            f"alphaMask.aabb in {content.path} is far smaller than the field's box: the file is "
            "damaged."
        )
    return ConvertedGrid(aabb, cover_mask(mask, aabb), mask)


def _read_points(tree: Mapping[str, Any]) -> Bool[np.ndarray, "px py pz"]:
    shape = [int(n) for n in tree["alphaMask.shape"]][-3:]
    count = math.prod(shape)
    bits = np.unpackbits(np.asarray(tree["alphaMask.mask"], np.uint8).ravel())[:count]
    if len(bits) != count or min(shape) < 2:
        raise KeyError("alpha mask of its shape")
    return bits.astype(bool).reshape(shape).transpose(2, 1, 0)


def cover_mask(mask: AlphaMask, aabb: Float[np.ndarray, "2 3"]) -> Bool[np.ndarray, "x y z"]:
    """Returns the cells of a box that hold all its positions at which a mask may be above 0.

    They are the cells between the mask's points if the boxes agree, and not larger otherwise.
    """
    size = mask.aabb[1] - mask.aabb[0]
    if np.allclose(mask.aabb, aabb, rtol=0.0, atol=1e-5 * float(np.max(aabb[1] - aabb[0]))):
        return touching_cells(mask.points)
    # Set points on a face reach one cell beyond it.
    cell_size = size / (np.array(mask.points.shape) - 1)
    extended = np.stack([mask.aabb[0] - cell_size, mask.aabb[1] + cell_size])
    return _resample_cells(touching_cells(np.pad(mask.points, 1)), float32(extended), aabb)


def touching_cells(points: Bool[np.ndarray, "px py pz"]) -> Bool[np.ndarray, "x y z"]:
    """Returns the cells between points that have a set point at a corner."""
    occupied = np.zeros([n - 1 for n in points.shape], bool)
    for corner in itertools.product((slice(None, -1), slice(1, None)), repeat=3):
        occupied |= points[corner]
    return occupied


def _resample_cells(
    occupied: Bool[np.ndarray, "x y z"],
    source_aabb: Float[np.ndarray, "2 3"],
    target_aabb: Float[np.ndarray, "2 3"],
) -> Bool[np.ndarray, "mx my mz"]:
    """Returns the cells of another box, of at most the same size, that touch an occupied cell."""
    for axis in range(3):
        num_cells = occupied.shape[axis]
        cell_size = (source_aabb[1, axis] - source_aabb[0, axis]) / num_cells
        length = float(target_aabb[1, axis] - target_aabb[0, axis])
        count = max(math.ceil(length / cell_size), 1)
        positions = target_aabb[0, axis] + np.arange(count + 1) * length / count
        # In cells of the source.
        edges = (positions - source_aabb[0, axis]) / cell_size
        first = np.clip(np.floor(edges[:-1] + 1e-6).astype(int), 0, num_cells - 1)
        last = np.clip(np.ceil(edges[1:] - 1e-6).astype(int) - 1, 0, num_cells - 1)
        outside = (edges[1:] <= 0) | (edges[:-1] >= num_cells)
        resampled = np.take(occupied, first, axis) | np.take(occupied, last, axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        occupied = resampled & ~outside.reshape(shape)
    return occupied

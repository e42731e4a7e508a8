"""Voxels: density and features at the corners of the cells worth keeping, in packed rows.

A grid whose trilinear values are density and features is that of Sun, Sun, Chen: Direct voxel grid
optimization (CVPR 2022) and of Fridovich-Keil et al.: Plenoxels (CVPR 2022); here its features may
be composited along the ray and coloured once per ray.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core import encodings
from jaxrf.core.grids import weighted_gather
from jaxrf.core.pytree import as_pytree
from jaxrf.fields.mlp import MLP, ComputeType
from jaxrf.sampling.occupancy import OccupancyGrid, WeightTrackedGrid, cell_index, forget, watch

Params = dict[str, Any]

# The eight corners of a cell as offsets along x, y, z.
CORNERS = np.array(list(np.ndindex(2, 2, 2)))


@as_pytree()
@dataclasses.dataclass(frozen=True)
class VoxelGrid(WeightTrackedGrid):
    """An occupancy grid of cubic cells whose occupied cells are numbered, with rows at corners.

    The arrays are as large as the finest grid needs, whatever part of them is in use, so that
    pruning and refining change no shape. Cell and row 0 stand for none.

    Attributes:
      occupied, aabb: of the n^3 cells, most of which may lie outside of the scene's box.
      memory: (cells,) by number of a cell.
      number: (n^3,) number of each cell, 0 where it is not occupied.
      rows: (cells, 8) by number of a cell, the rows of the table at its corners.
      count: () how many numbers are in use, cell 0 included.
    """

    number: Int[Array, "n3"]
    rows: Int[Array, "cells 8"]
    count: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Voxels:
    """Spec of a field of packed voxels.

    Attributes:
      table_rows: number of rows, in use or not.
      feature_dim: channels of the features.
      width, layers: of the colour MLP.
      num_direction_frequencies: of the direction's Fourier encoding.
      density_shift: added before the softplus that makes the density.
      density_scale: factor of the density.
      density_gain: factor of the raw density, which then learns so much faster than the features.
      compute: type that networks are computed in.
    """

    table_rows: int
    feature_dim: int = 7
    width: int = 64
    layers: int = 1
    num_direction_frequencies: int = 2
    density_shift: float = -4.0
    density_scale: float = 25.0
    density_gain: float = 6.0
    compute: ComputeType = "float32"

    def _mlp(self) -> MLP:
        return MLP(self.width, self.layers, 3, compute=self.compute)

    def init(self, key: jax.Array) -> Params:
        """An even fog with small random features.

        Returns:
          {"table": (rows, 1 + feature_dim) raw density and features, "mlp"}.
        """
        key_features, key_mlp = jax.random.split(key)
        features = 0.1 * jax.random.normal(key_features, (self.table_rows, self.feature_dim))
        inputs = jnp.zeros((1, self.feature_dim))
        return {
            "table": jnp.pad(features, ((0, 0), (1, 0))),
            "mlp": self._mlp().init(key_mlp, self._encode(inputs, inputs[:, :3])),
        }

    def density(
        self, params: Params, positions: Float[Array, "m 3"], radii: Float[Array, "m"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m c"]]:
        """Softplus of the interpolated raw density; zero where no cell is. The latent: features.

        `params` holds, besides what is trained, the `VoxelGrid` as "grid".
        """
        del radii
        cell, fraction = find_cells(params["grid"], positions)
        values = interpolate(params["table"], params["grid"].rows[cell], fraction)
        raw = self.density_gain * values[:, 0] + self.density_shift
        density = self.density_scale * jax.nn.softplus(raw)
        return jnp.where(cell > 0, density, 0.0), values[:, 1:]

    def features(self, params: Params, latent: Float[Array, "m c"]) -> Float[Array, "m c"]:
        """The interpolated features themselves."""
        del params
        return latent

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Colour MLP of features and encoded direction."""
        return jax.nn.sigmoid(self._mlp().apply(params["mlp"], self._encode(features, directions)))

    def _encode(
        self, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m e"]:
        return jnp.concatenate(
            [features, encodings.fourier(directions, self.num_direction_frequencies)], axis=-1
        )


def find_cells(
    grid: VoxelGrid, positions: Float[Array, "m 3"]
) -> tuple[Int[Array, "m"], Float[Array, "m 3"]]:
    """Number of the cell that holds each position (0 if none does), and where in it, in [0, 1]."""
    flat, inside, fraction = cell_index(grid, positions)
    return jnp.where(inside, grid.number[flat], 0), fraction


def interpolate(
    table: Float[Array, "rows c"], corners: Int[Array, "m 8"], fraction: Float[Array, "m 3"]
) -> Float[Array, "m c"]:
    """Trilinear mixture of the rows at eight corners, ordered as `CORNERS`."""
    return weighted_gather(table, corners, corner_weights(fraction))


def corner_weights(
    fraction: Float[Array | np.ndarray, "m 3"],
) -> Float[Array | np.ndarray, "m 8"]:
    """Trilinear weights of the corners of a unit cube, ordered as `CORNERS`; they sum to one."""
    upper = CORNERS.astype(fraction.dtype)[None]
    place = fraction[:, None, :]
    return (place * upper + (1.0 - place) * (1.0 - upper)).prod(axis=-1)


def total_variation(
    table: Float[Array, "rows c"], rows: Int[Array, "m 8"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Squared differences of cells' corners along the edges, for density and for features.

    Means over cells; sums over the 12 edges and over channels.
    """
    values = table[rows].reshape(-1, 2, 2, 2, table.shape[-1])
    squares = [jnp.square(jnp.diff(values, axis=axis)) for axis in (1, 2, 3)]
    channels = jnp.stack([jnp.mean(jnp.sum(s, axis=(1, 2, 3)), axis=0) for s in squares]).sum(0)
    return channels[0], jnp.sum(channels[1:])


def index_cells(
    occupied: Bool[np.ndarray, "n n n"],
    aabb: Float[np.ndarray, "2 3"],
    reach: float,
    bounds: Float[Array, "2 3"] | None = None,
) -> VoxelGrid:
    """A grid of these cells, its arrays just large enough. `reach` is that of `max_pool_occupancy`."""
    side = occupied.shape[0]
    places = np.argwhere(occupied)
    corners = places[:, None, :] + CORNERS[None]
    vertex = np.ravel_multi_index(tuple(np.moveaxis(corners, -1, 0)), (side + 1,) * 3)
    used = np.zeros((side + 1) ** 3, bool)
    used[vertex.ravel()] = True
    row_of = np.cumsum(used, dtype=np.int32)
    number = np.zeros(side**3, np.int32)
    number[np.flatnonzero(occupied)] = np.arange(1, len(places) + 1)
    box = jnp.asarray(aabb, jnp.float32)
    plain = OccupancyGrid(jnp.asarray(occupied), box, bounds=bounds)
    watched = jax.jit(watch, static_argnums=1)(plain, reach)
    return VoxelGrid(
        occupied=watched.occupied,
        aabb=watched.aabb,
        bounds=watched.bounds,
        coarse=watched.coarse,
        memory=forget(len(places) + 1),
        clock=watched.clock,
        number=jnp.asarray(number),
        rows=jnp.asarray(np.concatenate([np.zeros((1, 8), np.int32), row_of[vertex]])),
        count=jnp.asarray(len(places) + 1, jnp.int32),
    )


def count_rows(grid: VoxelGrid) -> int:
    """Rows that a grid needs, row 0 included."""
    return int(grid.rows.max()) + 1


class Refined(NamedTuple):
    """A grid made of another one, and its rows as mixtures of the other's.

    grid: the new one, its arrays just large enough.
    sources: (rows, 8) of which old rows each new row is made,
    weights: (rows, 8) and how much of each.
    """

    grid: VoxelGrid
    sources: Int[np.ndarray, "rows 8"]
    weights: Float[np.ndarray, "rows 8"]


def refine(grid: VoxelGrid, keep: Bool[np.ndarray, "n n n"], divide: int, reach: float) -> Refined:
    """Keeps some cells and divides each into divide^3, such that the field in them stays the same.

    What is kept is moved to the grid's low corner, where it leaves most room for later num_subdivisions.

    Args:
      grid: the present one.
      keep: which of its occupied cells; at least one.
      divide: 1 only drops cells, 2 halves their size.
      reach: that of `max_pool_occupancy`.
    """
    side = grid.occupied.shape[0]
    old_number = np.asarray(grid.number)
    kept = np.argwhere(keep & np.asarray(grid.occupied))
    low = kept.min(axis=0)
    assert (kept.max(axis=0) + 1 - low).max() * divide <= side, (
        "the grid is too small for its cells"
    )
    parts = np.array(list(np.ndindex(divide, divide, divide)))
    places = ((kept - low)[:, None] * divide + parts[None]).reshape(-1, 3)
    occupied = np.zeros((side, side, side), bool)
    occupied[tuple(places.T)] = True
    aabb = np.asarray(grid.aabb, np.float64)
    size = (aabb[1] - aabb[0]) / side
    corner = aabb[0] + low * size
    box = np.stack([corner, corner + side * size / divide])
    new = index_cells(occupied, box, reach, grid.bounds)

    places = np.argwhere(occupied)
    parent = old_number[np.ravel_multi_index(tuple((places // divide + low).T), (side,) * 3)]
    # A row belongs to up to eight cells, all of which give it the same value: take any.
    owner = np.zeros(count_rows(new), np.int64)
    corners = np.asarray(new.rows)[1:]
    owner[corners.ravel()] = np.arange(corners.size)
    cell, which = np.divmod(owner, 8)
    fraction = (places[cell] % divide + CORNERS[which]) / divide
    weights = np.asarray(corner_weights(fraction.astype(np.float32)))
    return Refined(new, np.asarray(grid.rows)[parent[cell]], weights)


def pad_grid(grid: VoxelGrid, cells: int) -> VoxelGrid:
    """The same grid with room for so many cells; those that do not fit are cut off."""
    rows = grid.rows[:cells]
    missing = cells - rows.shape[0]
    memory = jnp.concatenate([grid.memory[:cells], forget(missing)])
    return dataclasses.replace(grid, rows=jnp.pad(rows, ((0, missing), (0, 0))), memory=memory)

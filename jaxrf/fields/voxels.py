"""Voxels: density and features at the corners of the cells worth keeping, in packed rows.

A grid whose trilinear values are density and features is that of Sun, Sun, Chen: Direct voxel grid
optimization (CVPR 2022) and of Fridovich-Keil et al.: Plenoxels (CVPR 2022); here its features may
be composited along the ray and colored once per ray.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core import encodings
from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.grids import weighted_gather
from jaxrf.core.pytree import as_pytree
from jaxrf.fields import base
from jaxrf.fields.base import FieldContext, SampleCost, SceneInfo, StageTransition, Transitioned
from jaxrf.fields.mlp import MLP
from jaxrf.sampling.marching import block_dilation
from jaxrf.sampling.occupancy import OccupancyGrid, cell_index, count_cells, dilate
from jaxrf.sampling.weight_tracking import (
    WeightTrackedGrid,
    decayed_max_weights,
    init_weight_memory,
    track_weights,
)

Params = dict[str, Any]

# The eight corners of a cell as offsets along x, y, z.
CORNERS = np.array(list(np.ndindex(2, 2, 2)))
# Unused rows of the table that are not worth a compilation.
CAPACITY_SLACK = 300_000
# Rays that must meet a voxel before it may be dropped for having had no weight.
MIN_RAYS_PER_VOXEL = 16


@as_pytree()
@dataclasses.dataclass(frozen=True)
class VoxelGrid(WeightTrackedGrid):
    """An occupancy grid of cubic cells whose occupied cells are numbered, with rows at corners.

    The arrays are as large as the finest grid needs, however few of their entries are in use, so
    that pruning and subdividing change no shape. Cell and row 0 stand for none.

    Attributes:
      occupied, aabb: of the n^3 cells, most of which may lie outside of the scene's box.
      max_weight_log: (cells,) by number of a cell.
      number: (n^3,) number of each cell, 0 where it is not occupied.
      rows: (cells, 8) by number of a cell, the rows of the table at its corners.
      count: () how many numbers are in use, cell 0 included.
    """

    number: Int[Array, "n3"]
    rows: Int[Array, "cells 8"]
    count: Int[Array, ""]

    def slots_of(self, positions: Float[Array, "m 3"]) -> Int[Array, "m"]:
        """Number of the cell of each position in the grid."""
        return find_cells(self, positions)[0]


@dataclasses.dataclass(frozen=True)
class Voxels(base.Field):
    """Packed voxels, subdivided and pruned while training. Times are fractions of all steps."""

    feature_dim: int = 7
    """Channels of the features that the color MLP sees. With the density they make a row; rows of
    8 numbers are several times faster on a CPU than rows of 9."""
    width: int = 64
    """Width of the color MLP's hidden layers."""
    layers: int = 1
    """Number of the color MLP's hidden layers."""
    num_direction_frequencies: int = 2
    """Fourier frequencies of the view direction."""
    density_shift: float = -4.0
    """Added to the raw density before its softplus: lower starts emptier."""
    density_scale: float = 25.0
    """Factor of the density."""
    density_gain: float = 6.0
    """Factor of the raw density, which then learns so much faster than the features."""
    initial_resolution: int = 64
    """Voxels along the longest side of the box at the start."""
    num_subdivisions: int | None = None
    """How often voxels are divided into eight. Default: until they are about as small as a pixel at
    the scene's distance, as far as upsample_at allows."""
    upsample_at: tuple[float, ...] = (0.1, 0.2)
    """When voxels are divided, the first `num_subdivisions` of these."""
    prune_at: tuple[float, ...] = (0.04, 0.1, 0.2, 0.3)
    """When cells that no ray gave weight to are dropped, and pixels that see none are left out."""
    min_steps_before_refine: int = 60
    """Steps before the first of these at least: density takes some to form, however short the
    training is."""
    min_steps_before_prune: tuple[int, ...] = ()
    """Steps that voxels of each size are trained before any are dropped. Default: until each was
    met by about 16 rays, which depends on the size of the images."""
    prune_threshold: float | None = None
    """A cell is kept if a ray gave this weight to it or to a cell next to it. Default: 0.05, or
    0.01 in normalized device coordinates, where surfaces stay foggy for longer."""
    step_ratio: float = 1.0
    """Length of a step in voxels."""
    density_tv_weight: float = 0.0
    """Weight of the density's total variation; it falls as the learning rates do."""
    feature_tv_weight: float = 0.0
    """The same of the features."""
    tv_cells: int = 8192
    """Cells drawn per step for the total variation."""
    table_rows: Annotated[int, tyro.conf.Suppress] = 0
    """Rows of the table, in use or not; set while training."""
    table_cells: Annotated[int, tyro.conf.Suppress] = 0
    """Numbered cells of the grid, in use or not; set while training."""

    prunes_grid: ClassVar[bool] = True
    default_shading: ClassVar[Literal["per_sample", "per_ray"]] = "per_ray"

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(
            self, "width", "feature_dim", "density_scale", "initial_resolution", "step_ratio",
            prefix="field.",
        )  # fmt: skip
        times = len(self.upsample_at)
        if self.num_subdivisions is not None and not 0 <= self.num_subdivisions <= times:
            raise InputError(
                f"--field.num-subdivisions is {self.num_subdivisions}: give 0 to {times}, or more "
                "times in --field.upsample-at."
            )

    def _mlp(self) -> MLP:
        return MLP(self.width, self.layers, 3, compute=self.compute_dtype)

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

    def param_groups(self, params: Params) -> Params:
        """The table is a grid."""
        return {**super().param_groups(params), "table": "grid"}

    def density(
        self, params: Params, positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Float[Array, "m c"]]:
        """Softplus of the interpolated raw density; zero where no cell is. The latent: features.

        Takes its cells from `context.grid`, a `VoxelGrid`.
        """
        grid: Any = context.grid
        cell, fraction = find_cells(grid, positions)
        values = interpolate(params["table"], grid.rows[cell], fraction)
        raw = self.density_gain * values[:, 0] + self.density_shift
        density = self.density_scale * jax.nn.softplus(raw)
        return jnp.where(cell > 0, density, 0.0), values[:, 1:]

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Color MLP of features and encoded direction."""
        return jax.nn.sigmoid(self._mlp().apply(params["mlp"], self._encode(features, directions)))

    def _encode(
        self, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m e"]:
        return jnp.concatenate(
            [features, encodings.fourier(directions, self.num_direction_frequencies)], axis=-1
        )

    def appearance_channels(self) -> int:
        """All features."""
        return self.feature_dim

    def regularization(
        self, params: Params, grid: OccupancyGrid, key: jax.Array, tv_decay: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Total variation within randomly drawn cells."""
        if not (self.density_tv_weight or self.feature_tv_weight):
            return jnp.zeros(())
        voxel_grid: Any = grid
        cells = jax.random.randint(key, (self.tv_cells,), 1, voxel_grid.count)
        density, features = total_variation(params["table"], voxel_grid.rows[cells])
        total = self.density_tv_weight * density + self.feature_tv_weight * features
        return tv_decay * total

    # -- the grid and how it grows ------------------------------------------------------------

    def _subdivisions(self) -> int:
        times = len(self.upsample_at)
        return times if self.num_subdivisions is None else min(self.num_subdivisions, times)

    def _side(self) -> int:
        """Cells along each side of the grid, most of them unused until the last subdivision."""
        return self.initial_resolution * 2 ** self._subdivisions()

    def step_size(self, aabb: Float[Array | np.ndarray, "2 3"]) -> Float[Array, ""]:
        """`step_ratio` voxels."""
        cells = np.array((self._side(),) * 3, np.float32)
        return self.step_ratio * jnp.mean((aabb[1] - aabb[0]) / cells)

    def min_voxel_size(self, aabb: Float[np.ndarray, "2 3"]) -> float:
        """Side of a voxel after the last subdivision."""
        return self._first_voxel(aabb) / 2 ** self._subdivisions()

    def _first_voxel(self, aabb: Float[np.ndarray, "2 3"]) -> float:
        return float(np.max(np.diff(aabb, axis=0))) / self.initial_resolution

    def resolve(self, scene: SceneInfo) -> "Voxels":
        """Settles the subdivisions, the pruning threshold and the steps before pruning."""
        voxel = self._first_voxel(scene.aabb)
        subdivisions = self.num_subdivisions
        if subdivisions is None:
            halvings = round(math.log2(max(voxel / scene.pixel_size, 1.0)))
            # In NDC, surfaces fill the whole box.
            limit = 1 if scene.is_ndc else len(self.upsample_at)
            subdivisions = min(halvings, limit, len(self.upsample_at))
        threshold = self.prune_threshold
        if threshold is None:
            threshold = 0.01 if scene.is_ndc else 0.05
        steps = _steps_before_prune(subdivisions, voxel, scene.pixel_size, scene.rays_per_image)
        return dataclasses.replace(
            self,
            num_subdivisions=subdivisions,
            prune_threshold=threshold,
            min_steps_before_prune=self.min_steps_before_prune or steps,
        )

    def begin(self, aabb: Float[np.ndarray, "2 3"]) -> "Voxels":
        """Capacity for all cells of the first size in the box."""
        shape = count_cells(self.initial_resolution, aabb)
        return dataclasses.replace(
            self,
            table_rows=math.prod(n + 1 for n in shape) + 1,
            table_cells=math.prod(shape) + 1,
        )

    def grid_aabb(self, aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
        """The box of side^3 cells of the first size from the low corner on."""
        length = (aabb[1] - aabb[0]).max() / self.initial_resolution * self._side()
        return np.stack([aabb[0], aabb[0] + length])

    def grid_resolution(self, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
        """As many cells as the finest grid needs."""
        del aabb
        return (self._side(),) * 3

    def init_grid(
        self,
        aabb: Float[np.ndarray, "2 3"],
        resolution: tuple[int, int, int],
        dilation_cells: float,
        bounds: Float[Array, "2 3"] | None,
    ) -> VoxelGrid:
        """All cells of the first size that the box holds."""
        occupied = np.zeros(resolution, bool)
        x, y, z = count_cells(self.initial_resolution, aabb)
        occupied[:x, :y, :z] = True
        grid = index_cells(occupied, self.grid_aabb(aabb), dilation_cells, bounds)
        return pad_grid(grid, self.table_cells)

    def plan_transitions(self, step_at: Callable[[float], int]) -> list[StageTransition]:
        """Subdivisions and prunings; two subdivisions never fall on one step."""
        counts = [self.initial_resolution**3 * 8**i for i in range(self._subdivisions() + 1)]
        upsample = {
            max(step_at(fraction), self.min_steps_before_refine + index): count
            for index, (fraction, count) in enumerate(
                zip(sorted(self.upsample_at), counts[1:], strict=False)
            )
        }
        prune = {max(step_at(fraction), self.min_steps_before_refine) for fraction in self.prune_at}
        return [
            StageTransition(step, step in prune, upsample.get(step))
            for step in sorted(upsample.keys() | prune)
        ]

    def delay_transitions(self, transitions: Sequence[StageTransition]) -> list[StageTransition]:
        """Transitions late enough that voxels of each size were trained before any are dropped."""
        return _delay_pruning(transitions, self.min_steps_before_prune)

    def apply_transition(
        self, transition: StageTransition, params: Params, grid: OccupancyGrid
    ) -> Transitioned:
        """Drops and subdivides cells; capacity grows only where it does not suffice."""
        del params
        if not transition.prune and transition.num_voxels is None:
            return Transitioned(self, grid, base.keep_params)
        voxel_grid: Any = grid
        keep = np.asarray(voxel_grid.occupied)
        if transition.prune:
            keep = self._cells_with_weight(voxel_grid, keep)
        factor = 1 if transition.num_voxels is None else 2
        box = np.asarray(voxel_grid.aabb)
        contracted = voxel_grid.bounds is not None
        dilation = block_dilation(self.step_size(box), box, (self._side(),) * 3, contracted)
        subdivided, parents, weights = subdivide(voxel_grid, keep, factor, dilation)
        rows = len(parents)
        field = dataclasses.replace(
            self,
            table_rows=_capacity(rows, self.table_rows),
            table_cells=_capacity(int(subdivided.count), self.table_cells),
        )
        unused = ((0, field.table_rows - rows), (0, 0))
        source, weight = jnp.asarray(np.pad(parents, unused)), jnp.asarray(np.pad(weights, unused))

        def carry_over(tree: Params) -> Params:
            return tree | {"table": _interpolate_rows(tree["table"], source, weight)}

        return Transitioned(field, pad_grid(subdivided, field.table_cells), carry_over)

    def _cells_with_weight(
        self, grid: VoxelGrid, keep: Bool[np.ndarray, "n n n"]
    ) -> Bool[np.ndarray, "n n n"]:
        """The occupied cells in or next to which a ray gave enough weight; all if there is none."""
        assert self.prune_threshold is not None, "resolve settles the threshold"
        heavy = np.asarray(decayed_max_weights(grid)) > self.prune_threshold
        heavy = heavy[np.asarray(grid.number)].reshape(keep.shape)
        kept = np.asarray(jax.jit(dilate)(jnp.asarray(heavy & keep))) & keep
        return kept if kept.any() else keep

    def shape_key(self) -> tuple[Any, ...]:
        """Capacity of table and grid."""
        return self.table_rows, self.table_cells

    def describe_grid(self, grid: OccupancyGrid) -> str:
        """Number and size of the voxels."""
        size = float(grid.aabb[1, 0] - grid.aabb[0, 0]) / grid.occupied.shape[0]
        return f"{int(jnp.sum(grid.occupied))} voxels of {size:.3g}"

    def sample_cost(self, shaded_fraction: float = 1.0) -> SampleCost:
        """Eight rows; the MLP is evaluated once per ray."""
        del shaded_fraction
        return SampleCost(0.0, 8 * (1 + self.feature_dim) / base.ROW_CHANNELS)


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
    dilation_cells: float,
    bounds: Float[Array, "2 3"] | None = None,
) -> VoxelGrid:
    """A grid of these cells, its arrays just large enough.

    `dilation_cells` as in `max_pool_occupancy`.
    """
    side = occupied.shape[0]
    cells = np.argwhere(occupied)
    corners = cells[:, None, :] + CORNERS[None]
    vertex = np.ravel_multi_index(tuple(np.moveaxis(corners, -1, 0)), (side + 1,) * 3)
    used = np.zeros((side + 1) ** 3, bool)
    used[vertex.ravel()] = True
    row_of = np.cumsum(used, dtype=np.int32)
    number = np.zeros(side**3, np.int32)
    number[np.flatnonzero(occupied)] = np.arange(1, len(cells) + 1)
    box = jnp.asarray(aabb, jnp.float32)
    plain = OccupancyGrid(jnp.asarray(occupied), box, bounds=bounds)
    tracked = jax.jit(track_weights, static_argnums=1)(plain, dilation_cells)
    return VoxelGrid(
        occupied=tracked.occupied,
        aabb=tracked.aabb,
        bounds=tracked.bounds,
        coarse=tracked.coarse,
        max_weight_log=init_weight_memory(len(cells) + 1),
        step=tracked.step,
        number=jnp.asarray(number),
        rows=jnp.asarray(np.concatenate([np.zeros((1, 8), np.int32), row_of[vertex]])),
        count=jnp.asarray(len(cells) + 1, jnp.int32),
    )


def count_rows(grid: VoxelGrid) -> int:
    """Rows that a grid needs, row 0 included."""
    return int(grid.rows.max()) + 1


class Subdivided(NamedTuple):
    """A grid made of another one, and its rows as mixtures of the other's.

    grid: the new one, its arrays just large enough.
    parent_rows: (rows, 8) old rows that each new row is a mixture of.
    weights: (rows, 8) of these old rows.
    """

    grid: VoxelGrid
    parent_rows: Int[np.ndarray, "rows 8"]
    weights: Float[np.ndarray, "rows 8"]


def subdivide(
    grid: VoxelGrid, keep: Bool[np.ndarray, "n n n"], factor: int, dilation_cells: float
) -> Subdivided:
    """Keeps some cells and divides each into factor^3, such that the field in them stays the same.

    The kept cells are moved to the grid's low corner, which leaves most room for later divisions.

    Args:
      grid: the present one.
      keep: which of its occupied cells; at least one.
      factor: 1 only drops cells, 2 halves their size.
      dilation_cells: as in `max_pool_occupancy`.
    """
    side = grid.occupied.shape[0]
    old_number = np.asarray(grid.number)
    kept_cells = np.argwhere(keep & np.asarray(grid.occupied))
    low = kept_cells.min(axis=0)
    assert (kept_cells.max(axis=0) + 1 - low).max() * factor <= side, (
        "the grid is too small for its cells"
    )
    parts = np.array(list(np.ndindex(factor, factor, factor)))
    cells = ((kept_cells - low)[:, None] * factor + parts[None]).reshape(-1, 3)
    occupied = np.zeros((side, side, side), bool)
    occupied[tuple(cells.T)] = True
    aabb = np.asarray(grid.aabb, np.float64)
    size = (aabb[1] - aabb[0]) / side
    corner = aabb[0] + low * size
    box = np.stack([corner, corner + side * size / factor])
    new = index_cells(occupied, box, dilation_cells, grid.bounds)

    cells = np.argwhere(occupied)
    parent = old_number[np.ravel_multi_index(tuple((cells // factor + low).T), (side,) * 3)]
    # A row belongs to up to eight cells, all of which give it the same value: take any.
    owner = np.zeros(count_rows(new), np.int64)
    corners = np.asarray(new.rows)[1:]
    owner[corners.ravel()] = np.arange(corners.size)
    cell, which = np.divmod(owner, 8)
    fraction = (cells[cell] % factor + CORNERS[which]) / factor
    weights = np.asarray(corner_weights(fraction.astype(np.float32)))
    return Subdivided(new, np.asarray(grid.rows)[parent[cell]], weights)


def pad_grid(grid: VoxelGrid, cells: int) -> VoxelGrid:
    """The same grid with room for so many numbered cells; those that do not fit are cut off."""
    rows = grid.rows[:cells]
    missing = cells - rows.shape[0]
    memory = jnp.concatenate([grid.max_weight_log[:cells], init_weight_memory(missing)])
    return dataclasses.replace(
        grid, rows=jnp.pad(rows, ((0, missing), (0, 0))), max_weight_log=memory
    )


@jax.jit
def _interpolate_rows(
    table: Float[Array, "old c"], source: Int[Array, "rows 8"], weight: Float[Array, "rows 8"]
) -> Float[Array, "rows c"]:
    return jnp.einsum("rk,rkc->rc", weight, table[source])


def _capacity(needed: int, present: int) -> int:
    """Capacity for a number of entries: the present one unless it is too small or far too large.

    Another shape has to be compiled, and the optimizer updates every row, in use or not.
    """
    fitting = -(-needed * 5 // 4 // 4096) * 4096
    return present if needed <= present < fitting + CAPACITY_SLACK else fitting


def _steps_before_prune(
    subdivisions: int, voxel: float, pixel: float, rays_per_image: float
) -> tuple[int, ...]:
    """Steps until a visible voxel was met by `MIN_RAYS_PER_VOXEL` rays, for each size of voxels.

    Args:
      subdivisions: how often voxels are divided.
      voxel: side of the largest, in scene units.
      pixel: size of a pixel at the scene, in scene units.
      rays_per_image: rays of a step as a share of the pixels of an image.
    """
    sides = [voxel / 2**subdivision / pixel for subdivision in range(subdivisions + 1)]
    # A voxel covers so many pixels of each image that shows it.
    return tuple(math.ceil(MIN_RAYS_PER_VOXEL / (rays_per_image * side**2)) for side in sides)


def _delay_pruning(
    transitions: Sequence[StageTransition], min_steps: Sequence[int]
) -> list[StageTransition]:
    """Transitions late enough that voxels were trained before any are dropped.

    `min_steps` is the number of steps with voxels of each size.
    """
    delayed: list[StageTransition] = []
    last = size = 0
    for transition in transitions:
        wait = min_steps[min(size, len(min_steps) - 1)] if transition.prune and min_steps else 0
        # Transitions due on one step become one, but for subdivisions: there is one at a time.
        wait = max(wait, int(transition.num_voxels is not None))
        last = max(transition.step, last + wait)
        size += transition.num_voxels is not None
        transition = transition._replace(step=last)
        if delayed and delayed[-1].step == last:
            before = delayed.pop()
            transition = StageTransition(
                last,
                before.prune or transition.prune,
                before.num_voxels,
                max(before.supersample, transition.supersample),
            )
        delayed.append(transition)
    return delayed

"""An occupancy grid that records the rendering weights of the samples in its cells."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.core.kernels import calls
from jaxrf.core.pytree import as_pytree
from jaxrf.sampling.occupancy import (
    POOLING,
    OccupancyGrid,
    PooledGrid,
    cell_index,
    contract_positions,
    max_pool_occupancy,
)

# Factor by which a recorded weight shrinks in each step.
WEIGHT_DECAY_PER_STEP = 0.97


@as_pytree("contraction_norm")
@dataclasses.dataclass(frozen=True)
class WeightTrackedGrid(PooledGrid):
    """An occupancy grid that records the rendering weights of the samples in its cells.

    A slot is the flat index of a cell, unless a subclass numbers its cells otherwise.

    Attributes:
      max_weight_log: (slots,) the largest of step + log(weight) / -log(WEIGHT_DECAY_PER_STEP) for
        each cell. As a maximum of one number it decays without being touched.
      step: () how often weights were recorded.
    """

    max_weight_log: Float[Array, "slots"]
    step: Int[Array, ""]

    def slots_of(self, positions: Float[Array, "m 3"]) -> Int[Array, "m"]:
        """Slot of the cell of each position in the grid."""
        slots, _, _ = cell_index(self, positions)
        return slots

    def record(
        self, positions: Float[Array, "m 3"], weights: Float[Array, "m"]
    ) -> "WeightTrackedGrid":
        """Records the rendering weights of samples at positions in the scene."""
        slots = self.slots_of(contract_positions(self, positions))
        return record_weights(self, slots, jax.lax.stop_gradient(weights))

    @property
    def weight_memory(self) -> Float[Array, "slots"]:
        """`max_weight_log`; two memories combine by their maximum."""
        return self.max_weight_log

    def with_weight_memory(self, memory: Float[Array, "slots"] | None) -> "WeightTrackedGrid":
        """The grid after a training step with these recorded weights."""
        if memory is None:
            return self
        return dataclasses.replace(self, max_weight_log=memory, step=self.step + 1)

    def cell_values(
        self, thin_out: Callable[[Any], Float[np.ndarray, "n"]]
    ) -> Float[np.ndarray, "n"]:
        """Weights of some cells, as `decayed_max_weights`, computed without a compiler."""
        ago = float(self.step) - 1.0 - thin_out(np.asarray(self.max_weight_log))
        return np.exp(math.log(WEIGHT_DECAY_PER_STEP) * ago)


Grid = TypeVar("Grid", bound=WeightTrackedGrid)


def track_weights(grid: OccupancyGrid, dilation_cells: float) -> WeightTrackedGrid:
    """The same cells, with no weights recorded. `dilation_cells` as in `max_pool_occupancy`."""
    return WeightTrackedGrid(
        occupied=grid.occupied,
        aabb=grid.aabb,
        bounds=grid.bounds,
        contraction_norm=grid.contraction_norm,
        coarse=max_pool_occupancy(grid, POOLING, dilation_cells),
        max_weight_log=init_weight_memory(grid.occupied.size),
        step=jnp.zeros((), jnp.int32),
    )


def init_weight_memory(slots: int) -> Float[Array, "slots"]:
    """The memory of cells that no weight was recorded for."""
    return jnp.full((slots,), -1e9)


def record_weights(grid: Grid, slots: Int[Array, "m"], weights: Float[Array, "m"]) -> Grid:
    """Records these weights for the cells in these slots."""
    now = grid.step.astype(jnp.float32)
    values = now + jnp.log(jnp.maximum(weights, 1e-30)) / -math.log(WEIGHT_DECAY_PER_STEP)
    if calls.can_call(values):
        memory = jax.lax.platform_dependent(
            grid.max_weight_log, slots, values, cpu=calls.update_maxima, default=_update_maxima
        )
    else:
        memory = _update_maxima(grid.max_weight_log, slots, values)
    return dataclasses.replace(grid, max_weight_log=memory, step=grid.step + 1)


def _update_maxima(
    memory: Float[Array, "slots"], slots: Int[Array, "m"], values: Float[Array, "m"]
) -> Float[Array, "slots"]:
    return memory.at[slots].max(values)


def decayed_max_weights(grid: WeightTrackedGrid) -> Float[Array, "slots"]:
    """The largest weight of each cell, decayed by `WEIGHT_DECAY_PER_STEP` for each step since."""
    ago = grid.step.astype(jnp.float32) - 1.0 - grid.max_weight_log
    return jnp.exp(math.log(WEIGHT_DECAY_PER_STEP) * ago)

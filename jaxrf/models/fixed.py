"""The base of models whose rays all have the same number of samples."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays, normalize_distances
from jaxrf.fields.base import Field
from jaxrf.models.base import DepthTarget, Model, StageSpec, TrainRendering
from jaxrf.rendering.ray_losses import depth_loss, distortion_loss
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.occupancy import (
    OccupancyGrid,
    make_full_grid,
    s_to_t,
    to_s_rays,
)


class SamplingLevel(NamedTuple):
    """A network's pass over the rays.

    rendering: of its samples.
    sdist: (r, n + 1) edges of its intervals, s distances (`occupancy.to_s_rays`).
    weights: (r, n) of the intervals.
    """

    rendering: Rendering
    sdist: Float[Array, "r n_plus_1"]
    weights: Float[Array, "r n"]


@dataclasses.dataclass(frozen=True)
class FixedSamplesModel(Model):
    """A model whose rays all have the same number of samples, and that needs no occupancy grid."""

    def check(self, field: Field, convention: RayConvention) -> None:
        """Refuses fields that prune a grid of their own."""
        super().check(field, convention)
        if field.prunes_grid:
            raise InputError(
                f"--model {self.name} does not march, and {field.name} drops cells by what rays "
                "see in them: leave --model out."
            )

    def init_grid(
        self,
        stage: StageSpec,
        aabb: Float[np.ndarray, "2 3"],
        bounds: Float[Array, "2 3"] | None,
    ) -> OccupancyGrid:
        """A grid of one occupied cell."""
        return make_full_grid(stage.grid_resolution, jnp.asarray(aabb), bounds)

    def set_budgets(
        self,
        stage: StageSpec,
        batch_samples: int,
        microbatch_samples: int | None,
        aabb: Float[np.ndarray, "2 3"],
        bounds: Float[np.ndarray | Array, "2 3"] | None,
    ) -> StageSpec:
        """As many microbatches as keep their samples below `microbatch_samples`."""
        del batch_samples, aabb, bounds
        samples = stage.num_rays // stage.num_shards * (self.samples_per_ray() or 1)
        min_parts = math.ceil(samples / (microbatch_samples or samples))
        patches = stage.num_patches() // stage.num_shards
        return dataclasses.replace(stage, num_microbatches=divide_evenly(patches, min_parts))


def divide_evenly(patches: int, min_parts: int) -> int:
    """The smallest number of equal parts, at least `min_parts`, or one part for each patch."""
    return next(n for n in range(min(min_parts, patches), patches + 1) if patches % n == 0)


def to_train_rendering(
    levels: Sequence[SamplingLevel],
    rays: Rays,
    grid: OccupancyGrid,
    num_samples: int,
    depth_target: DepthTarget | None,
    interlevel_loss: Float[Array, "r"] | None = None,
) -> TrainRendering:
    """A training batch out of the passes of a model's networks, the last being the result."""
    last, rays = levels[-1], jax.lax.stop_gradient(rays)
    s_rays = rays if grid.bounds is None else to_s_rays(grid, rays)
    return TrainRendering(
        rgb=tuple(level.rendering.rgb for level in levels),
        opacities=tuple(level.rendering.opacity for level in levels),
        overflowed=jnp.zeros(rays.near.shape, bool),
        num_samples=jnp.asarray(rays.near.size * num_samples, jnp.int32),
        distortion_loss=distortion_loss(last.weights, normalize_distances(s_rays, last.sdist)),
        interlevel_loss=interlevel_loss,
        depth_loss=None if depth_target is None else _depth_loss(depth_target, last, rays, grid),
        grid=grid,
    )


def _depth_loss(
    target: DepthTarget, level: SamplingLevel, rays: Rays, grid: OccupancyGrid
) -> Float[Array, "r"]:
    """Depth loss of a pass; 0 for rays without a known depth."""
    known = jnp.isfinite(target.distance)
    distance = jnp.where(known, target.distance, 0.0)
    tdist = s_to_t(grid, level.sdist, rays.origins)
    return jnp.where(known, depth_loss(level.weights, tdist, distance, target.std), 0.0)

"""The hierarchical model: coarse samples, and fine ones where the coarse network found density.

Mildenhall et al.: NeRF (ECCV 2020), section 5.2.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core import rngs
from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.fields.base import Field, Params
from jaxrf.models.base import DepthTarget, ModelParams, StageSpec, TrainRendering
from jaxrf.models.fixed import FixedSamplesModel, SamplingLevel, to_train_rendering
from jaxrf.models.networks import bind_network, draw_noise
from jaxrf.rendering.volume import LegacyRenderOptions, Rendering, render_samples
from jaxrf.sampling import intervals
from jaxrf.sampling.occupancy import OccupancyGrid, s_to_t, to_s_rays


@dataclasses.dataclass(frozen=True)
class HierarchicalModel(FixedSamplesModel):
    """Coarse and fine samples, with a network for each."""

    num_coarse_samples: int = 64
    """Stratified samples per ray."""
    num_fine_samples: int = 128
    """Importance samples per ray, in addition; 0 trains the coarse network alone."""
    quadrature: Literal["intervals", "points"] = "intervals"
    """Intervals that tile the ray within the box, each evaluated in its middle; or points on the
    whole ray, each standing for the interval up to the next, the last without end, as in NeRF's
    original code."""
    spacing: Literal["linear", "disparity"] = "linear"
    """Quantity that coarse samples are spread evenly in: distance or its inverse."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        super().__post_init__()
        require_positive(self, "num_coarse_samples", prefix="model.")
        if self.quadrature == "points" and self.num_coarse_samples < 3:
            raise InputError(
                f"--model.num-coarse-samples is {self.num_coarse_samples}: points need 3 or more."
            )

    def check(self, field: Field, convention: RayConvention) -> None:
        """Refuses points where a field integrates over intervals."""
        super().check(field, convention)
        if self.quadrature == "points" and field.needs_intervals():
            raise InputError(
                f"{type(field).__name__} needs intervals as it is configured (needs_intervals): "
                "set --model.quadrature to intervals."
            )

    def init_networks(self, field: Field, key: jax.Array) -> ModelParams:
        """Parameters of the coarse and the fine network, or of a single one."""
        key_coarse, key_fine = jax.random.split(key)
        coarse = field.init(key_coarse)
        if not self.num_fine_samples:
            return ModelParams(coarse)
        return ModelParams(field.init(key_fine), coarse=coarse)

    def samples_per_ray(self) -> int:
        """The fine network is evaluated at the coarse samples too."""
        fine = self.num_coarse_samples + self.num_fine_samples if self.num_fine_samples else 0
        return self.num_coarse_samples + fine

    def render_train(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array,
        rays: Rays,
        background: Float[Array, "r 3"],
        convention: RayConvention,
        depth_target: DepthTarget | None = None,
    ) -> TrainRendering:
        """Renders a training batch with both networks; see `Model.render_train`."""
        levels = self.render_levels(stage, params, grid, key, rays, background, convention)
        return to_train_rendering(levels, rays, grid, self.samples_per_ray(), depth_target)

    def render_eval(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        rays: Rays,
        background: Float[Array, "r 3"],
        convention: RayConvention,
        *,
        num_samples: int,
        group_size: int = 1,
        aabb: Float[Array, "2 3"] | None = None,
        crop_aabb: Float[Array, "2 3"] | None = None,
    ) -> Rendering:
        """The rendering of the fine network; see `Model.render_eval`."""
        del num_samples, group_size, aabb
        levels = self.render_levels(
            stage, params, grid, None, rays, background, convention, crop_aabb
        )
        return levels[-1].rendering

    def render_levels(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array | None,
        rays: Rays,
        background: Float[Array, "r 3"],
        convention: RayConvention,
        crop_aabb: Float[Array, "2 3"] | None = None,
    ) -> list[SamplingLevel]:
        """Rays rendered by the coarse network, and by the fine one from samples where it points.

        Without a key nothing is random. Density outside of `crop_aabb` is left out.
        """
        field = stage.field
        key_coarse, key_fine = (None if key is None else rngs.fold_in(key, n) for n in (2, 3))
        points = self.quadrature == "points"
        # The original code samples the whole ray.
        # For gradients the distances of samples are constants, which the rays do not change.
        fixed_rays = jax.lax.stop_gradient(rays)
        s_rays = fixed_rays if points and grid.bounds is None else to_s_rays(grid, fixed_rays)
        legacy = _to_legacy_options(convention, rays, left_endpoint=points)

        def render(network: Params, sdist: Array, key: jax.Array | None) -> SamplingLevel:
            noise = draw_noise(field, key, *sdist[:, 1:].shape)
            fns = bind_network(
                self, field, network, params, grid,
                trains=key is not None, noise=noise, crop_aabb=crop_aabb,
            )  # fmt: skip
            tdist = s_to_t(grid, sdist, fixed_rays.origins)
            color_per_ray = self.colors_per_ray(field)
            rendering, weights = render_samples(
                fns, rays, tdist, background, color_per_ray=color_per_ray, legacy=legacy
            )
            return SamplingLevel(rendering, sdist, weights)

        first = (key_coarse, s_rays, self.num_coarse_samples, self.spacing)
        if points:
            sdist = _append_end(s_rays, intervals.stratified_legacy(*first))
        else:
            sdist = intervals.stratified(*first)
        coarse = render(params.field if params.coarse is None else params.coarse, sdist, key_coarse)
        if not self.num_fine_samples:
            return [coarse]
        drawn = (coarse.weights, self.num_fine_samples)
        if points:
            fine = intervals.hierarchical_legacy(
                key_fine, sdist[:, :-1], *drawn, padded=convention.fine_samples == "padded"
            )
            sdist = _append_end(s_rays, fine)
        else:
            sdist = intervals.hierarchical_sample(key_fine, sdist, *drawn)
        return [coarse, render(params.field, sdist, key_fine)]


def _append_end(s_rays: Rays, points: Float[Array, "r n"]) -> Float[Array, "r n_plus_1"]:
    """Points and the end of the last one's interval."""
    end = jnp.maximum(s_rays.far[:, None], points[:, -1:])
    return jnp.concatenate([points, end], axis=-1)


def _to_legacy_options(
    convention: RayConvention, rays: Rays, left_endpoint: bool
) -> LegacyRenderOptions | None:
    """How a convention composites samples otherwise; None if it does not."""
    inclusive, axis = convention.transmittance == "inclusive", convention.along_axis()
    if not (inclusive or axis or left_endpoint):
        return None
    one = jnp.ones_like(rays.near)
    z_scale = one if rays.ray_z_scale is None else rays.ray_z_scale
    return LegacyRenderOptions(
        length_unit=z_scale if convention.lengths_along == "axis" else None,
        direction_length=z_scale if convention.view_directions == "axis" else None,
        legacy_transmittance=inclusive,
        left_endpoint=left_endpoint,
    )

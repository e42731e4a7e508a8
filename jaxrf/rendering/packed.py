"""Volume rendering of packed samples: rays of any number of samples in one array.

Letters in shapes: r rays, m packed samples, c channels.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrf.core.kernels import calls
from jaxrf.core.packing import pack, rank_samples, sum_before
from jaxrf.core.rays import ConicalFrusta, Rays
from jaxrf.rendering.volume import RadianceFns, color_ray, optical_depth
from jaxrf.sampling.packed import PackedSamples


class PackedRendering(NamedTuple):
    """Color and opacity of rays rendered from packed samples.

    Attributes:
      rgb: (r, 3) composited over the background.
      opacity: (r,) sum of the weights, in [0, 1].
      weights: (m,) of the samples; 0 in unused slots.
      num_complete_rays: () number of leading rays whose samples all fit into the color budget. The
        colors of later rays are incomplete.
    """

    rgb: Float[Array, "r 3"]
    opacity: Float[Array, "r"]
    weights: Float[Array, "m"]
    num_complete_rays: Int[Array, ""]


def compute_packed_weights(
    density: Float[Array, "m"], samples: PackedSamples
) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
    """Weights of packed samples and the transmittance before each.

    The same as `volume.compute_weights`, with the samples of all rays in one array.

    Args:
      density: (m,) per scene unit.
      samples: m packed samples.
    """
    depths = optical_depth(density, samples.t_ends - samples.t_starts)
    depths = jnp.where(samples.mask, depths, 0.0)
    transmittance = jnp.exp(-sum_before(depths, samples.ray_indices))
    return transmittance * -jnp.expm1(-depths), transmittance


def sum_by_ray(
    values: Float[Array, "m c"], rays: Int[Array, "m"], num_rays: int
) -> Float[Array, "r c"]:
    """Sums of the values of packed samples along each ray; `rays` ascends."""
    sums = jnp.zeros((num_rays, values.shape[-1]), values.dtype)
    return sums.at[rays].add(values, indices_are_sorted=True)


def composite_packed(
    density: Float[Array, "m"], samples: PackedSamples, values: Float[Array, "m c"], num_rays: int
) -> tuple[Float[Array, "m"], Float[Array, "r"], Float[Array, "r c"]]:
    """Weights of packed samples, and their sums and weighted sums of values along each ray.

    On a CPU a kernel does it in one pass (`core.kernels`).

    Args:
      density: (m,) per scene unit.
      samples: m packed samples.
      values: (m, c) colors or features of the samples, in any precision; they are summed in that of
        the weights.
      num_rays: r.
    """
    if not calls.can_call(density, samples.t_starts, values):
        weights, _ = compute_packed_weights(density, samples)
        weighted = values * weights[:, None]
        opacity = sum_by_ray(weights[:, None], samples.ray_indices, num_rays)[:, 0]
        return weights, opacity, sum_by_ray(weighted, samples.ray_indices, num_rays)
    depths = optical_depth(density, samples.t_ends - samples.t_starts)
    depths = jnp.where(samples.mask, depths, 0.0)
    return _composite(depths, samples.ray_indices, values, num_rays)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _composite(
    depths: Float[Array, "m"], rays: Int[Array, "m"], values: Float[Array, "m c"], num_rays: int
) -> tuple[Float[Array, "m"], Float[Array, "r"], Float[Array, "r c"]]:
    weights, _, opacity, sums = _composite_once(depths, rays, values, num_rays)
    return weights, opacity, sums


def _composite_once(depths: Array, rays: Array, values: Array, num_rays: int) -> Any:
    return jax.lax.platform_dependent(
        depths,
        rays,
        values,
        cpu=partial(calls.composite, num_rays=num_rays),
        default=partial(_composite_with_xla, num_rays=num_rays),
    )


def _composite_with_xla(depths: Array, rays: Array, values: Array, num_rays: int) -> Any:
    before = sum_before(depths, rays)
    weights = jnp.exp(-before) * -jnp.expm1(-depths)
    opacity = sum_by_ray(weights[:, None], rays, num_rays)[:, 0]
    sums = sum_by_ray(values * weights[:, None], rays, num_rays)
    return weights, jnp.exp(-before - depths), opacity, sums


def _composite_fwd(depths: Array, rays: Array, values: Array, num_rays: int) -> Any:
    weights, transmittance_after, opacity, sums = _composite_once(depths, rays, values, num_rays)
    return (weights, opacity, sums), (depths, rays, values, weights, transmittance_after)


def _composite_bwd(num_rays: int, residuals: Any, gradients: Any) -> tuple[Array, None, Array]:
    depths, rays, values, weights, transmittance_after = residuals

    def with_xla(depths: Array, values: Array, gradients: Any) -> Any:
        def forward(depths: Array, values: Array) -> Any:
            weights, _, opacity, sums = _composite_with_xla(depths, rays, values, num_rays)
            return weights, opacity, sums

        return jax.vjp(forward, depths, values)[1](gradients)

    of_depths, of_values = jax.lax.platform_dependent(
        depths,
        values,
        gradients,
        cpu=lambda depths, values, gradients: calls.composite_gradient(
            weights, transmittance_after, rays, values, gradients
        ),
        default=with_xla,
    )
    return of_depths, None, of_values


_composite.defvjp(_composite_fwd, _composite_bwd)


def sample_points(
    rays: Rays, samples: PackedSamples
) -> tuple[Float[Array, "m 3"], Float[Array, "m"]]:
    """Midpoints of packed samples, in scene units, and their distances along the rays."""
    ray = samples.ray_indices
    distance = 0.5 * (samples.t_starts + samples.t_ends)
    return rays.origins[ray] + distance[:, None] * rays.directions[ray], distance


def render_packed_samples(
    fns: RadianceFns,
    rays: Rays,
    samples: PackedSamples,
    background: Float[Array, "r 3"],
    *,
    color_per_ray: bool = False,
    color_budget: int | None = None,
    color_threshold: float = 0.0,
) -> PackedRendering:
    """Renders rays from packed samples; differentiable.

    Args:
      fns: the field.
      rays: batch shape (r,).
      samples: m packed samples along the rays.
      background: (r, 3) color behind each ray.
      color_per_ray: composite features along the ray and color them once, instead of coloring each
        sample and compositing colors.
      color_budget: maximum number of samples that get features. None gives them to all samples,
        for fields whose features cost little once the density is known.
      color_threshold: with a budget, samples of no more weight than this get no features
        (TensoRF, section 4).

    >>> from jaxrf.rendering.volume import RadianceFns
    >>> rays = Rays(
    ...     origins=jnp.zeros((2, 3)),
    ...     directions=jnp.array([[0.0, 0.0, 1.0]] * 2),
    ...     near=jnp.zeros(2),
    ...     far=jnp.full(2, 2.0),
    ...     radii=jnp.zeros(2),
    ...     camera_index=jnp.zeros(2, int),
    ... )
    >>> samples = PackedSamples(  # one sample of each ray, and an unused slot
    ...     t_starts=jnp.array([0.0, 1.0, 0.0]),
    ...     t_ends=jnp.array([2.0, 2.0, 0.0]),
    ...     ray_indices=jnp.array([0, 1, 1]),
    ...     mask=jnp.array([True, True, False]),
    ... )
    >>> white_fog = RadianceFns(
    ...     density=lambda positions, frusta: (jnp.ones(len(positions)), positions),
    ...     features=lambda latent: latent,
    ...     color=lambda features, directions, camera_index: jnp.ones((len(features), 3)),
    ... )
    >>> rendering = render_packed_samples(white_fog, rays, samples, jnp.zeros((2, 3)))
    >>> [round(x, 4) for x in rendering.opacity.tolist()]  # 1 - exp(-2), 1 - exp(-1)
    [0.8647, 0.6321]
    """
    num_rays = rays.near.size
    ray = samples.ray_indices
    positions, _ = sample_points(rays, samples)
    frusta = ConicalFrusta(rays.directions[ray], rays.radii[ray], samples.t_starts, samples.t_ends)
    density, latent = fns.density(positions, frusta)
    num_complete_rays = jnp.asarray(num_rays, jnp.int32)

    def evaluate(latent: Any, ray: Int[Array, "k"]) -> Float[Array, "k c"]:
        values = fns.features(latent)
        if color_per_ray:
            return values
        return fns.color(values, rays.directions[ray], rays.camera_index[ray])

    if color_budget is None:
        values = evaluate(latent, ray)
        weights, opacity, rgb = composite_packed(density, samples, values, num_rays)
    else:
        weights, _ = compute_packed_weights(density, samples)
        opacity = sum_by_ray(weights[:, None], ray, num_rays)[:, 0]
        ray, latent, color_weights, num_complete_rays = _select_colored(
            samples, weights, latent, num_rays, color_budget, color_threshold
        )
        # Features in half precision are summed in the precision of the weights.
        rgb = sum_by_ray(evaluate(latent, ray) * color_weights[:, None], ray, num_rays)
    if color_per_ray:
        rgb = color_ray(fns.color, rgb, opacity, rays)
    rgb = rgb + (1.0 - opacity)[:, None] * background
    return PackedRendering(rgb, opacity, weights, num_complete_rays)


def _select_colored(
    samples: PackedSamples,
    weights: Float[Array, "m"],
    latent: Any,
    num_rays: int,
    budget: int,
    threshold: float,
) -> tuple[Int[Array, "k"], Any, Float[Array, "k"], Int[Array, ""]]:
    """The first k = `budget` samples of a weight above the threshold.

    Returns:
      Their rays, latents and weights, and the number of leading rays of which none was left out.
    """
    ray = samples.ray_indices
    needs_color = (samples.mask & (weights > threshold))[None]
    rank = rank_samples(needs_color)
    selected = pack(needs_color, rank, budget)
    index = jnp.minimum(selected.sample, ray.size - 1)
    first_over = jnp.argmax(needs_color & (rank >= budget))
    total = rank[0, -1] + needs_color[0, -1]
    num_complete_rays = jnp.where(total > budget, ray[first_over], num_rays)
    selected_weights = jnp.where(selected.valid, weights[index], 0.0)
    latent = jax.tree.map(lambda x: x[index], latent)
    return ray[index], latent, selected_weights, num_complete_rays

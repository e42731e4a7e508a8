"""Volume rendering of rays with a fixed number of intervals.

Renderers take the field as callables (`RadianceFns`), never a model. Letters in shapes: r rays,
n intervals of a ray, m samples, c channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrf.core.pytree import as_pytree
from jaxrf.core.rays import ConicalFrusta, Rays, cast_cones, points_along
from jaxrf.core.stepfun import midpoints

# Length of an interval without an end, as in NeRF's original code.
OPEN_INTERVAL_LENGTH = 1e10
# A ray of less opacity than this hits nothing, and its depth is undefined.
MIN_OPACITY = 1e-6

DensityFn = Callable[[Float[Array, "m 3"], ConicalFrusta], tuple[Float[Array, "m"], Any]]
FeaturesFn = Callable[[Any], Float[Array, "m c"]]
ColorFn = Callable[[Float[Array, "m c"], Float[Array, "m 3"], Int[Array, "m"]], Float[Array, "m 3"]]


class RadianceFns(NamedTuple):
    """A radiance field as three callables.

    Attributes:
      density: (positions (m, 3), frusta) -> (density (m,) per scene unit, latent). The latent is
        any pytree of arrays that begin with m; it is passed on to `features`.
      features: latent -> features (m, c), which may be composited along a ray.
      color: (features (m, c), directions (m, 3), camera_index (m,)) -> rgb (m, 3) in [0, 1].
    """

    density: DensityFn
    features: FeaturesFn
    color: ColorFn


@as_pytree()
@dataclasses.dataclass(frozen=True)
class Rendering:
    """Color, opacity and depth of rays.

    Attributes:
      rgb: (..., 3) composited over the background.
      opacity: (...) sum of the weights, in [0, 1].
      depth: (...) mean distance along the ray under the weights; far where the ray hits nothing.
      median_depth: (...) distance at which half of the ray's opacity is reached; far where the ray
        hits nothing.
    """

    rgb: Float[Array, "*batch 3"]
    opacity: Float[Array, "*batch"]
    depth: Float[Array, "*batch"]
    median_depth: Float[Array, "*batch"]


class RaySums(NamedTuple):
    """Samples of rays, composited.

    features: (r, c) sums of weight times features.
    opacity: (r,) sum of the weights.
    distance: (r,) sum of weight times distance along the ray.
    median_depth: (r,) distance at which half of the opacity is reached.
    """

    features: Float[Array, "r c"]
    opacity: Float[Array, "r"]
    distance: Float[Array, "r"]
    median_depth: Float[Array, "r"]


@as_pytree("legacy_transmittance", "left_endpoint")
@dataclasses.dataclass(frozen=True)
class LegacyRenderOptions:
    """Ray conventions of other programs, for checkpoints that were trained with them.

    Attributes:
      length_unit: (r,) unit in which interval lengths are measured, in scene units; None for 1.
      direction_length: (r,) length of the directions that the field's `color` receives; None for 1.
      legacy_transmittance: attenuate each interval by its own absorption, see `compute_weights`.
      left_endpoint: evaluate the field at the start of each interval instead of its middle, and
        extend the last interval to `OPEN_INTERVAL_LENGTH`, as NeRF's original code does.
    """

    length_unit: Float[Array, "r"] | None = None
    direction_length: Float[Array, "r"] | None = None
    legacy_transmittance: bool = False
    left_endpoint: bool = False


def compute_weights(
    density: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
    legacy_transmittance: bool = False,
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n"]]:
    """Weights of ray intervals and the transmittance before each.

    w_i = T_i (1 - exp(-density_i delta_i)), T_i = exp(-sum_{j<i} density_j delta_j) (NeRF, eq. 3;
    Max 1995). Density, length and optical depth are capped at 1e10, so that infinite ones give no
    NaN.

    Args:
      density: (..., n) per unit of length.
      tdist: (..., n + 1) edges of the intervals, ascending.
      legacy_transmittance: include interval i itself in T_i, as NeRF-experiments does.

    Returns:
      The weights (..., n) and the transmittance (..., n), which is 1 before the first interval.

    >>> weights, transmittance = compute_weights(jnp.array([0.0, 1e10]), jnp.array([1.0, 2.0, 3.0]))
    >>> weights.tolist(), transmittance.tolist()
    ([0.0, 1.0], [1.0, 1.0])
    """
    depths = optical_depth(density, jnp.diff(tdist, axis=-1))
    depth_before = jnp.cumsum(depths[..., :-1], axis=-1)
    depth_before = jnp.concatenate([jnp.zeros_like(depths[..., :1]), depth_before], axis=-1)
    transmittance = jnp.exp(-depth_before - depths if legacy_transmittance else -depth_before)
    return transmittance * -jnp.expm1(-depths), transmittance


def optical_depth(
    density: Float[Array, "*batch n"], lengths: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Density times length of each interval; both factors and the result are capped at 1e10."""
    return jnp.minimum(jnp.minimum(density, 1e10) * jnp.minimum(lengths, 1e10), 1e10)


def expected_depth(
    weights: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
    far: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Mean distance under the weights, sum w t / sum w; far where the ray hits nothing."""
    return _mean_distance(weights, midpoints(tdist), far)


def _mean_distance(
    weights: Float[Array, "*batch n"],
    distances: Float[Array, "*batch n"],
    far: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    opacity = jnp.sum(weights, axis=-1)
    hit = opacity > MIN_OPACITY
    mean = jnp.sum(weights * distances, axis=-1) / jnp.where(hit, opacity, 1.0)
    return jnp.where(hit, mean, far)


def median_depth(
    weights: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
    far: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Distance at which half of the ray's opacity is reached; far where the ray hits nothing.

    The opacity grows linearly within an interval.
    """
    opacity = jnp.cumsum(weights, axis=-1)[..., -1]
    return jnp.where(opacity > MIN_OPACITY, find_distance(0.5 * opacity, weights, tdist), far)


def find_distance(
    opacity: Float[Array, "*batch"],
    weights: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
) -> Float[Array, "*batch"]:
    """Distance at which the running sum of the weights reaches `opacity`, linear in an interval."""
    cumulative = jnp.cumsum(weights, axis=-1)
    # Rounding may leave the total slightly below the opacity that is looked for.
    target = jnp.minimum(opacity, cumulative[..., -1])[..., None]
    index = jnp.argmax(cumulative >= target, axis=-1)[..., None]
    weight = jnp.take_along_axis(weights, index, axis=-1)
    missing = opacity[..., None] - (jnp.take_along_axis(cumulative, index, axis=-1) - weight)
    fraction = jnp.clip(missing / jnp.where(weight > 0, weight, 1.0), 0.0, 1.0)
    start = jnp.take_along_axis(tdist, index, axis=-1)
    stop = jnp.take_along_axis(tdist, index + 1, axis=-1)
    return (start + fraction * (stop - start))[..., 0]


def color_ray(
    color_fn: ColorFn,
    accumulated: Float[Array, "r c"],
    opacity: Float[Array, "r"],
    rays: Rays,
) -> Float[Array, "r 3"]:
    """Premultiplied color of each ray, computed once from its accumulated features.

    Args:
      color_fn: see `RadianceFns`.
      accumulated: (r, c) sum of weight times features along each ray.
      opacity: (r,) sum of the weights.
      rays: batch shape (r,).
    """
    mean = accumulated / jnp.maximum(opacity, 1e-3)[:, None]
    return color_fn(mean, rays.directions, rays.camera_index) * opacity[:, None]


def render_samples(
    fns: RadianceFns,
    rays: Rays,
    tdist: Float[Array, "r n_plus_1"],
    background: Float[Array, "r 3"],
    *,
    color_per_ray: bool = False,
    gradient_scale: Float[Array, "r n"] | None = None,
    legacy: LegacyRenderOptions | None = None,
) -> tuple[Rendering, Float[Array, "r n"]]:
    """Renders rays by evaluating the field in every interval; differentiable.

    Args:
      fns: the field.
      rays: batch shape (r,).
      tdist: (r, n + 1) interval edges, distances along the rays in scene units, ascending. The
        field is evaluated at the middle of each interval.
      background: (r, 3) color behind each ray.
      color_per_ray: composite features along the ray and color them once, instead of coloring each
        sample and compositing colors.
      gradient_scale: factors of the gradients of what the field returns in each interval; None
        leaves them as they are.
      legacy: ray conventions of other programs; None for this library's.

    Returns:
      The rendering and the weights (r, n) of the intervals.

    >>> rays = Rays(
    ...     origins=jnp.zeros((1, 3)),
    ...     directions=jnp.array([[0.0, 0.0, 1.0]]),
    ...     near=jnp.zeros(1),
    ...     far=jnp.full(1, 2.0),
    ...     radii=jnp.zeros(1),
    ...     camera_index=jnp.zeros(1, int),
    ... )
    >>> gray_fog = RadianceFns(
    ...     density=lambda positions, frusta: (jnp.full(len(positions), 0.5), positions),
    ...     features=lambda latent: latent,
    ...     color=lambda features, directions, camera_index: jnp.full((len(features), 3), 0.5),
    ... )
    >>> tdist = jnp.linspace(0.0, 2.0, 9)[None]
    >>> rendering, weights = render_samples(gray_fog, rays, tdist, jnp.zeros((1, 3)))
    >>> round(float(rendering.opacity[0]), 4)  # 1 - exp(-0.5 * 2)
    0.6321
    >>> rendering.rgb.shape, weights.shape
    ((1, 3), (1, 8))
    """
    legacy = LegacyRenderOptions() if legacy is None else legacy
    distances, edges, frusta = _evaluation_points(rays, tdist, legacy.left_endpoint)
    num_rays, num_intervals = distances.shape
    density, latent = fns.density(points_along(rays, distances).reshape(-1, 3), frusta)
    if legacy.length_unit is not None:
        edges = edges / legacy.length_unit[:, None]
    if legacy.direction_length is not None:
        directions = rays.directions * legacy.direction_length[:, None]
    else:
        directions = rays.directions
    density = density.reshape(num_rays, num_intervals)
    values = fns.features(latent)
    if gradient_scale is not None:
        density = scale_gradient(density, gradient_scale)
        values = scale_gradient(values, gradient_scale.reshape(-1, 1))
    weights, _ = compute_weights(density, edges, legacy.legacy_transmittance)
    opacity = jnp.sum(weights, axis=-1)
    if not color_per_ray:
        shape = (num_rays, num_intervals)
        sample_directions = jnp.broadcast_to(directions[:, None], (*shape, 3)).reshape(-1, 3)
        cameras = jnp.broadcast_to(rays.camera_index[:, None], shape).ravel()
        values = fns.color(values, sample_directions, cameras)
    values = values.reshape(num_rays, num_intervals, -1)
    accumulated = jnp.sum(weights[..., None] * values, axis=1)
    if color_per_ray:
        view = dataclasses.replace(rays, directions=directions)
        accumulated = color_ray(fns.color, accumulated, opacity, view)
    rendering = Rendering(
        rgb=accumulated + (1.0 - opacity)[:, None] * background,
        opacity=opacity,
        depth=_mean_distance(weights, distances, rays.far),
        median_depth=median_depth(weights, tdist, rays.far),
    )
    return rendering, weights


def scale_gradient(x: Float[Array, "*s"], scale: Float[Array, "*#s"]) -> Float[Array, "*s"]:
    """The same values, whose gradients are multiplied by a factor."""
    # The difference is 0, so that values keep their bits.
    return jax.lax.stop_gradient(x) + scale * (x - jax.lax.stop_gradient(x))


def near_gradient_scale(
    distances: Float[Array, "r n"], radius: Float[Array, ""] | float
) -> Float[Array, "r n"]:
    """Factors of gradients by which samples near their camera learn no faster than others.

    A volume at distance t is crossed by rays whose number falls with t^2; within the radius, where
    no other camera may look, gradients are therefore multiplied by (t / radius)^2 (Philip and
    Deschaintre: Floaters no more: radiance field gradient scaling for improved near-camera
    training, EGSR 2023).

    Args:
      distances: from the cameras, in scene units.
      radius: from which on gradients are left as they are.
    """
    return jnp.clip(distances / radius, 0.0, 1.0) ** 2


def _evaluation_points(
    rays: Rays, tdist: Float[Array, "r n_plus_1"], left_endpoint: bool
) -> tuple[Float[Array, "r n"], Float[Array, "r n_plus_1"], ConicalFrusta]:
    """Distances at which intervals are evaluated, their edges, and the cones they stand for."""
    frusta = cast_cones(rays, tdist)
    if not left_endpoint:
        return midpoints(tdist), tdist, frusta
    distances = tdist[:, :-1]
    end = jnp.full((len(tdist), 1), OPEN_INTERVAL_LENGTH, tdist.dtype)
    edges = jnp.concatenate([distances, end], axis=-1)
    return distances, edges, frusta._replace(ends=frusta.starts)


def compute_proposal_weights(
    fns: RadianceFns, rays: Rays, tdist: Float[Array, "r n_plus_1"]
) -> Float[Array, "r n"]:
    """Weights of ray intervals from the density alone, without features or color.

    Args:
      fns: the proposal field; only `density` is called.
      rays: batch shape (r,).
      tdist: (r, n + 1) interval edges along the rays, in scene units.
    """
    distances = midpoints(tdist)
    positions = points_along(rays, distances).reshape(-1, 3)
    density, _ = fns.density(positions, cast_cones(rays, tdist))
    return compute_weights(density.reshape(distances.shape), tdist)[0]

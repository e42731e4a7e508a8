"""Rendering of an analytic field by loops in float64, against which the renderers are tested."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrf.core.rays import Rays, points_along
from jaxrf.rendering.volume import RadianceFns, Rendering, render_samples

RAYS, INTERVALS = 7, 9


# A field that can be evaluated by numpy in float64 and by jax; its output depends on every input.


def field_density(xp: Any, positions: Any, radii: Any) -> Any:
    x, y, z = positions[..., 0], positions[..., 1], positions[..., 2]
    return 2.0 * (1.0 + xp.sin(2.0 * x + 3.0 * y - z)) * (1.0 + radii)


def field_features(xp: Any, positions: Any) -> Any:
    x, y, z = positions[..., 0], positions[..., 1], positions[..., 2]
    return xp.stack([xp.sin(3.0 * x), xp.cos(y + 2.0 * z), x * z, 1.0 - y], axis=-1)


def field_color(xp: Any, features: Any, directions: Any) -> Any:
    f, d = features, directions
    mixed = [
        f[..., 0] + 2.0 * f[..., 1] + d[..., 0],
        f[..., 2] - 3.0 * d[..., 1],
        2.0 * f[..., 3] + d[..., 2],
    ]
    return 0.5 + 0.5 * xp.sin(xp.stack(mixed, axis=-1))


FNS = RadianceFns(
    density=lambda positions, frusta: (field_density(jnp, positions, frusta.radii), positions),
    features=lambda positions: field_features(jnp, positions),
    color=lambda features, directions, _: field_color(jnp, features, directions),
)


def make_rays(count: int = RAYS, seed: int = 0) -> Rays:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Rays(
        origins=jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
        directions=jnp.asarray(directions, jnp.float32),
        near=jnp.full((count,), 0.5, jnp.float32),
        far=jnp.asarray(rng.uniform(2.0, 3.0, count), jnp.float32),
        radii=jnp.asarray(rng.uniform(0.0, 0.5, count), jnp.float32),
        camera_index=jnp.zeros((count,), jnp.int32),
    )


def make_edges(rays: Rays, intervals: int = INTERVALS, seed: int = 1) -> jax.Array:
    """Sorted random edges from near to far; one interval of each ray has no length."""
    rng = np.random.default_rng(seed)
    near, far = np.asarray(rays.near), np.asarray(rays.far)
    inner = rng.uniform(0.05, 0.95, (len(near), intervals - 1))
    inner[:, -1] = inner[:, 0]
    inner = np.sort(inner, axis=-1)
    edges = near[:, None] + inner * (far - near)[:, None]
    return jnp.asarray(np.concatenate([near[:, None], edges, far[:, None]], axis=-1), jnp.float32)


def make_background(count: int = RAYS) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).uniform(size=(count, 3)), jnp.float32)


def make_mask(count: int = RAYS, intervals: int = INTERVALS, seed: int = 3) -> jax.Array:
    """A mask of about half of the intervals; the second ray is empty, the third is full."""
    mask = np.random.default_rng(seed).uniform(size=(count, intervals)) < 0.5
    mask[1] = False
    mask[2] = True
    return jnp.asarray(mask)


# The slow references compute one interval of one ray at a time.


def weights_slowly(density: np.ndarray, edges: np.ndarray) -> tuple[list[float], list[float]]:
    weights, transmittances, transmittance = [], [], 1.0
    for i in range(len(density)):
        length = float(edges[i + 1]) - float(edges[i])
        passed = math.exp(-float(density[i]) * length) if length > 0 else 1.0
        transmittances.append(transmittance)
        weights.append(transmittance * (1.0 - passed))
        transmittance *= passed
    return weights, transmittances


def expected_depth_slowly(weights: list[float], edges: np.ndarray, far: float) -> float:
    total, moment = 0.0, 0.0
    for i, weight in enumerate(weights):
        total += weight
        moment += weight * (float(edges[i]) + float(edges[i + 1])) / 2
    return moment / total if total > 1e-6 else far


def median_depth_slowly(weights: list[float], edges: np.ndarray, far: float) -> float:
    total = sum(weights)
    if total <= 1e-6:
        return far
    cumulative = 0.0
    for i, weight in enumerate(weights):
        if cumulative + weight >= total / 2:
            fraction = (total / 2 - cumulative) / weight
            return float(edges[i]) + fraction * (float(edges[i + 1]) - float(edges[i]))
        cumulative += weight
    raise AssertionError("half of the weight is never reached")


def render_slowly(
    rays: Rays,
    tdist: jax.Array,
    background: jax.Array,
    mask: jax.Array | None = None,
    color_per_ray: bool = False,
    color_threshold: float = -1.0,
) -> dict[str, np.ndarray]:
    """Renders with loops; intervals outside of the mask have no density."""
    out: dict[str, list[Any]] = {"rgb": [], "opacity": [], "depth": [], "median_depth": []}
    for r in range(rays.near.shape[0]):
        origin = np.asarray(rays.origins[r], np.float64)
        direction = np.asarray(rays.directions[r], np.float64)
        edges = np.asarray(tdist[r], np.float64)
        midpoints = [(edges[i] + edges[i + 1]) / 2 for i in range(len(edges) - 1)]
        density = []
        for i, t in enumerate(midpoints):
            occupied = mask is None or bool(mask[r, i])
            value = field_density(np, origin + t * direction, float(rays.radii[r]) * t)
            density.append(value if occupied else 0.0)
        weights, _ = weights_slowly(np.asarray(density), edges)
        opacity = sum(weights)
        accumulated: Any = 0.0
        for weight, t in zip(weights, midpoints, strict=True):
            value = field_features(np, origin + t * direction)
            if not color_per_ray:
                value = field_color(np, value, direction)
            accumulated = accumulated + weight * value * (weight > color_threshold)
        if color_per_ray:
            accumulated = field_color(np, accumulated / max(opacity, 1e-3), direction) * opacity
        far = float(rays.far[r])
        out["rgb"].append(accumulated + (1 - opacity) * np.asarray(background[r], np.float64))
        out["opacity"].append(opacity)
        out["depth"].append(expected_depth_slowly(weights, edges, far))
        out["median_depth"].append(median_depth_slowly(weights, edges, far))
    return {name: np.asarray(values) for name, values in out.items()}


def assert_close_to(
    expected: dict[str, np.ndarray], actual: Rendering, selected: Any = slice(None)
) -> None:
    """Compares every output of the selected rays."""
    for name, values in expected.items():
        np.testing.assert_allclose(
            np.asarray(getattr(actual, name))[selected],
            np.asarray(values)[selected],
            rtol=2e-5,
            atol=2e-5,
            err_msg=name,
        )


# Compiled once, as op-by-op execution would compile every operation by itself.
render_all_samples = jax.jit(render_samples, static_argnames=("fns", "color_per_ray"))


EMPTY = FNS._replace(density=lambda p, r: (jnp.zeros(p.shape[0]), p))
OPAQUE = FNS._replace(density=lambda p, r: (jnp.full(p.shape[0], 1e10), p))

DENSITIES = hnp.arrays(
    np.float32,
    8,
    elements=st.one_of(st.floats(0, 1e3, width=32), st.sampled_from([0.0, 1e10, 1e30])),
)
LENGTHS = hnp.arrays(
    np.float32, 8, elements=st.one_of(st.just(0.0), st.floats(0.0009765625, 4.0, width=32))
)
EXTREMES = {
    "empty": ([0.0] * 4, [0.0, 1.0, 2.0, 3.0, 4.0]),
    "opaque": ([1e10] * 4, [0.0, 1.0, 2.0, 3.0, 4.0]),
    "overflow": ([1e38, 0.0, 1e38, 1.0], [0.0, 1e3, 2e3, 3e3, 4e3]),
    "no length": ([1e10, 1.0, 0.0, 1e38], [2.0] * 5),
    "opaque after no length": ([1e10, 1e10, 0.0, 1.0], [1.0, 1.0, 2.0, 2.0, 3.0]),
    "infinitely long": ([1.0, 0.5, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0, 3e38]),
}


def field_density_along(rays: Rays, edges: jax.Array) -> jax.Array:
    """(r, n) density of `FNS` in the middle of each interval."""
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    return field_density(jnp, points_along(rays, middle), rays.radii[:, None] * middle)


def render_densely(
    fns: RadianceFns,
    rays: Rays,
    tdist: jax.Array,
    background: jax.Array,
    mask: jax.Array,
    color_per_ray: bool = False,
    color_threshold: float = 0.0,
) -> Rendering:
    """Evaluates all samples; multiplies density or color outside of the mask by zero."""
    weight_mask = mask.ravel() * 1.0
    thin = fns._replace(density=lambda p, r: (fns.density(p, r)[0] * weight_mask, p))
    _, weights = render_samples(thin, rays, tdist, background)
    needs_color = jax.lax.stop_gradient(weight_mask * (weights.ravel() > color_threshold))[:, None]
    if color_per_ray:
        sparse = thin._replace(features=lambda p: fns.features(p) * needs_color)
    else:
        sparse = thin._replace(color=lambda f, d, c: fns.color(f, d, c) * needs_color)
    return render_samples(sparse, rays, tdist, background, color_per_ray=color_per_ray)[0]

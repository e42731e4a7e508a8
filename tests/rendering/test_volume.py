"""The volume renderer against loops in float64, at the extremes, and against a dense rendering."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scenes import slow

from jaxrf.core.packing import pack, rank_samples
from jaxrf.core.rays import Rays, points_along
from jaxrf.rendering.volume import (
    LegacyRenderOptions,
    PackedRendering,
    Picture,
    RadianceFns,
    Rendering,
    compute_packed_weights,
    compute_weights,
    expected_depth,
    march_and_render,
    median_depth,
    render_image,
    render_packed,
    render_samples,
    resolve_supersampling,
    sample_points,
)
from jaxrf.sampling.occupancy import PackedSamples

RAYS, INTERVALS = 7, 9


# A field that can be evaluated by both numpy in float64 and jax: all of its inputs matter.


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
    """About half is set; the second ray is empty, the third is full."""
    mask = np.random.default_rng(seed).uniform(size=(count, intervals)) < 0.5
    mask[1] = False
    mask[2] = True
    return jnp.asarray(mask)


# The slow references: one ray, one interval at a time.


def weights_slowly(density: np.ndarray, edges: np.ndarray) -> tuple[list[float], list[float]]:
    weights, transmittances, transmittance = [], [], 1.0
    for i in range(len(density)):
        length = float(edges[i + 1]) - float(edges[i])
        passes = math.exp(-float(density[i]) * length) if length > 0 else 1.0
        transmittances.append(transmittance)
        weights.append(transmittance * (1.0 - passes))
        transmittance *= passes
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
    reached = 0.0
    for i, weight in enumerate(weights):
        if reached + weight >= total / 2:
            fraction = (total / 2 - reached) / weight
            return float(edges[i]) + fraction * (float(edges[i + 1]) - float(edges[i]))
        reached += weight
    raise AssertionError("half of the weight is never reached")


def render_slowly(
    rays: Rays,
    tdist: jax.Array,
    background: jax.Array,
    mask: jax.Array | None = None,
    per_ray: bool = False,
    color_threshold: float = -1.0,
) -> dict[str, np.ndarray]:
    """The rendering and nothing but loops; what is outside of the mask has no density."""
    out: dict[str, list[Any]] = {"rgb": [], "opacity": [], "depth": [], "median_depth": []}
    for r in range(rays.near.shape[0]):
        origin = np.asarray(rays.origins[r], np.float64)
        direction = np.asarray(rays.directions[r], np.float64)
        edges = np.asarray(tdist[r], np.float64)
        middles = [(edges[i] + edges[i + 1]) / 2 for i in range(len(edges) - 1)]
        density = []
        for i, t in enumerate(middles):
            wanted = mask is None or bool(mask[r, i])
            value = field_density(np, origin + t * direction, float(rays.radii[r]) * t)
            density.append(value if wanted else 0.0)
        weights, _ = weights_slowly(np.asarray(density), edges)
        opacity = sum(weights)
        summed: Any = 0.0
        for weight, t in zip(weights, middles, strict=True):
            value = field_features(np, origin + t * direction)
            if not per_ray:
                value = field_color(np, value, direction)
            summed = summed + weight * value * (weight > color_threshold)
        if per_ray:
            summed = field_color(np, summed / max(opacity, 1e-3), direction) * opacity
        far = float(rays.far[r])
        out["rgb"].append(summed + (1 - opacity) * np.asarray(background[r], np.float64))
        out["opacity"].append(opacity)
        out["depth"].append(expected_depth_slowly(weights, edges, far))
        out["median_depth"].append(median_depth_slowly(weights, edges, far))
    return {name: np.asarray(values) for name, values in out.items()}


def assert_close_to(
    expected: dict[str, np.ndarray], actual: Rendering, kept: Any = slice(None)
) -> None:
    """Every output of the kept rays is as expected."""
    for name, values in expected.items():
        np.testing.assert_allclose(
            np.asarray(getattr(actual, name))[kept],
            np.asarray(values)[kept],
            rtol=2e-5,
            atol=2e-5,
            err_msg=name,
        )


# One program each: run op by op, every operation would be compiled by itself.
render_every = jax.jit(render_samples, static_argnames=("fns", "per_ray"))
render_packed_rays = jax.jit(
    render_packed, static_argnames=("fns", "per_ray", "color_budget", "color_threshold")
)
weights_of = jax.jit(compute_weights)
packed_weights_of = jax.jit(compute_packed_weights)
expected_depth_of = jax.jit(expected_depth)
median_depth_of = jax.jit(median_depth)

EMPTY = FNS._replace(density=lambda p, r: (jnp.zeros(p.shape[0]), p))
OPAQUE = FNS._replace(density=lambda p, r: (jnp.full(p.shape[0], 1e10), p))


# Weights and transmittance.


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_weights_equal_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    density = rng.exponential(2.0, (*batch, 6)).astype(np.float32)
    edges = np.sort(rng.uniform(0, 3, (*batch, 7)), axis=-1).astype(np.float32)
    weights, transmittance = weights_of(jnp.asarray(density), jnp.asarray(edges))
    assert weights.shape == transmittance.shape == (*batch, 6)
    for index in np.ndindex(batch):
        slow_weights, slow_transmittance = weights_slowly(density[index], edges[index])
        np.testing.assert_allclose(weights[index], slow_weights, rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(transmittance[index], slow_transmittance, rtol=2e-5)


def test_inclusive_weights_are_dimmed_by_their_own_interval() -> None:
    density, edges = jnp.asarray([[0.5, 2.0, 0.0, 7.0]]), jnp.asarray([[0.0, 0.5, 1.0, 2.0, 2.5]])
    exclusive, before = compute_weights(density, edges)
    inclusive, through = compute_weights(density, edges, inclusive=True)
    passes = np.exp(-np.asarray(density) * np.diff(edges))
    np.testing.assert_allclose(inclusive, exclusive * passes, rtol=1e-6)
    np.testing.assert_allclose(through, before * passes, rtol=1e-6)


def test_two_intervals_have_the_closed_form_of_exclusive_transmittance() -> None:
    # The first interval lets half of the light through, the second (twice as long) an eighth.
    density = jnp.asarray([math.log(2.0), 1.5 * math.log(2.0)])
    weights, transmittance = weights_of(density, jnp.asarray([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(weights, [0.5, 0.5 * (1.0 - 1.0 / 8.0)], rtol=1e-6)
    np.testing.assert_allclose(transmittance, [1.0, 0.5], rtol=1e-6)


def test_first_weight_is_exactly_its_alpha_and_first_transmittance_exactly_one() -> None:
    density = jnp.asarray([[0.0, 1.0], [0.3, 7.0], [1e10, 1e10]])
    tdist = jnp.asarray([[0.0, 0.5, 1.0]] * 3)
    weights, transmittance = weights_of(density, tdist)
    np.testing.assert_array_equal(transmittance[:, 0], 1.0)
    np.testing.assert_array_equal(weights[:, 0], -jnp.expm1(-density[:, 0] * 0.5))


def test_single_interval_has_the_weight_of_its_alpha() -> None:
    weights, transmittance = weights_of(jnp.asarray([2.0]), jnp.asarray([1.0, 1.5]))
    np.testing.assert_allclose(weights, [1.0 - math.exp(-1.0)], rtol=1e-6)
    np.testing.assert_array_equal(transmittance, [1.0])


DENSITIES = hnp.arrays(
    np.float32,
    8,
    elements=st.one_of(st.floats(0, 1e3, width=32), st.sampled_from([0.0, 1e10, 1e30])),
)
LENGTHS = hnp.arrays(
    np.float32, 8, elements=st.one_of(st.just(0.0), st.floats(0.0009765625, 4.0, width=32))
)


@settings(max_examples=40)
@given(DENSITIES, LENGTHS)
def test_weights_and_the_light_that_is_left_sum_to_one(
    density: np.ndarray, lengths: np.ndarray
) -> None:
    tdist = np.concatenate([[0.25], 0.25 + np.cumsum(lengths)]).astype(np.float32)
    weights, transmittance = weights_of(jnp.asarray(density), jnp.asarray(tdist))
    depth = float(density[-1]) * float(tdist[-1] - tdist[-2])
    left = float(transmittance[-1]) * math.exp(-depth)
    assert np.all(np.asarray(weights) >= 0) and np.all(np.asarray(weights) <= 1)
    assert np.all(np.diff(np.asarray(transmittance)) <= 0)
    assert float(jnp.sum(weights)) + left == pytest.approx(1.0, abs=2e-6)


@settings(max_examples=40)
@given(DENSITIES)
def test_cutting_intervals_in_two_changes_no_weight(density: np.ndarray) -> None:
    edges = np.linspace(1.0, 3.0, 9, dtype=np.float32)
    whole, _ = weights_of(jnp.asarray(density), jnp.asarray(edges))
    cut, _ = weights_of(
        jnp.asarray(np.repeat(density, 2)), jnp.linspace(1.0, 3.0, 17, dtype=jnp.float32)
    )
    np.testing.assert_allclose(cut.reshape(8, 2).sum(-1), whole, rtol=1e-4, atol=2e-6)


EXTREMES = {
    "empty": ([0.0] * 4, [0.0, 1.0, 2.0, 3.0, 4.0]),
    "opaque": ([1e10] * 4, [0.0, 1.0, 2.0, 3.0, 4.0]),
    "overflow": ([1e38, 0.0, 1e38, 1.0], [0.0, 1e3, 2e3, 3e3, 4e3]),
    "no length": ([1e10, 1.0, 0.0, 1e38], [2.0] * 5),
    "opaque after no length": ([1e10, 1e10, 0.0, 1.0], [1.0, 1.0, 2.0, 2.0, 3.0]),
    "infinitely long": ([1.0, 0.5, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0, 3e38]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_weights_equal_loop_and_gradients_are_finite(name: str) -> None:
    density, edges = (np.asarray(x, np.float32) for x in EXTREMES[name])
    weights, transmittance = weights_of(jnp.asarray(density), jnp.asarray(edges))
    slow_weights, slow_transmittance = weights_slowly(density, edges)
    np.testing.assert_allclose(weights, slow_weights, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(transmittance, slow_transmittance, rtol=2e-5, atol=1e-7)

    def total(density: jax.Array, edges: jax.Array) -> jax.Array:
        weights, transmittance = weights_of(density, edges)
        far = edges[-1]
        depths = expected_depth_of(weights, edges, far) + median_depth_of(weights, edges, far)
        return jnp.sum(weights * jnp.arange(4.0)) + jnp.sum(transmittance) + 1e-3 * depths

    gradients = jax.grad(total, argnums=(0, 1))(jnp.asarray(density), jnp.asarray(edges))
    if name in ("overflow", "infinitely long"):
        gradients = gradients[:1]
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


def test_infinite_density_is_opaque_with_finite_gradient() -> None:
    density, tdist = jnp.asarray([0.0, jnp.inf, 1.0]), jnp.asarray([0.0, 1.0, 2.0, 3.0])
    weights, transmittance = weights_of(density, tdist)
    np.testing.assert_array_equal(weights, [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(transmittance, [1.0, 1.0, 0.0])
    gradient = jax.grad(lambda d: jnp.sum(weights_of(d, tdist)[0] * jnp.arange(3.0)))(density)
    assert np.all(np.isfinite(gradient))


def test_infinite_density_in_an_interval_without_length_absorbs_nothing() -> None:
    density, tdist = jnp.asarray([jnp.inf, 1.0]), jnp.asarray([1.0, 1.0, 2.0])
    weights, _ = weights_of(density, tdist)
    np.testing.assert_allclose(weights, [0.0, 1.0 - math.exp(-1.0)], rtol=1e-6)


def test_infinitely_long_interval_absorbs_everything_or_nothing() -> None:
    tdist = jnp.asarray([0.0, 1.0, jnp.inf])
    for density, last in ((0.5, math.exp(-1.0)), (0.0, 0.0)):
        weights, transmittance = weights_of(jnp.asarray([1.0, density]), tdist)
        np.testing.assert_allclose(weights, [1.0 - math.exp(-1.0), last], rtol=1e-6)
        np.testing.assert_allclose(transmittance, [1.0, math.exp(-1.0)], rtol=1e-6)


def test_gradients_of_weights_equal_finite_differences() -> None:
    rng = np.random.default_rng(4)
    density, edges = rng.exponential(1.0, 5), np.sort(rng.uniform(0, 3, 6))
    factors = rng.normal(size=5)
    gradient = jax.grad(
        lambda d: jnp.sum(weights_of(d, jnp.asarray(edges, jnp.float32))[0] * jnp.asarray(factors))
    )(jnp.asarray(density, jnp.float32))
    for i in range(5):
        ends = []
        for sign in (-1, 1):
            moved = density.copy()
            moved[i] += sign * 1e-5
            ends.append(float(np.dot(weights_slowly(moved, edges)[0], factors)))
        assert float(gradient[i]) == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-3, abs=1e-5)


# Depths.


@pytest.mark.parametrize("batch", [(), (6,), (2, 4)])
def test_depths_equal_loops_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    weights = rng.dirichlet([0.3] * 7, batch or None)
    weights = (weights * rng.uniform(0.1, 1.0, (*batch, 1))).astype(np.float32)
    weights[..., 3] = 0.0
    edges = np.sort(rng.uniform(1, 5, (*batch, 8)), axis=-1).astype(np.float32)
    far = jnp.full(batch, 6.0)
    mean = expected_depth_of(jnp.asarray(weights), jnp.asarray(edges), far)
    median = median_depth_of(jnp.asarray(weights), jnp.asarray(edges), far)
    assert mean.shape == median.shape == batch
    for index in np.ndindex(batch):
        row, row_edges = weights[index].astype(np.float64).tolist(), edges[index]
        assert float(mean[index]) == pytest.approx(
            expected_depth_slowly(row, row_edges, 6.0), rel=1e-4
        )
        assert float(median[index]) == pytest.approx(
            median_depth_slowly(row, row_edges, 6.0), rel=1e-3
        )


def test_depths_of_a_single_opaque_interval_are_its_middle() -> None:
    for opaque in range(4):
        weights = jnp.zeros(4).at[opaque].set(1.0)
        tdist = jnp.asarray([1.0, 2.0, 4.0, 8.0, 9.0])
        middle = float(tdist[opaque] + tdist[opaque + 1]) / 2
        assert float(expected_depth_of(weights, tdist, jnp.asarray(20.0))) == pytest.approx(middle)
        assert float(median_depth_of(weights, tdist, jnp.asarray(20.0))) == pytest.approx(middle)


def test_depths_do_not_depend_on_how_opaque_the_surface_is() -> None:
    weights, tdist = jnp.asarray([0.1, 0.0, 0.2, 0.05]), jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0])
    far = jnp.asarray(9.0)
    for depth in (expected_depth_of, median_depth_of):
        solid, thin = depth(weights * 2.0, tdist, far), depth(weights * 1e-3, tdist, far)
        np.testing.assert_allclose(solid, thin, rtol=1e-5)


def test_depth_is_far_where_nothing_is_hit() -> None:
    weights = jnp.zeros((3, 4))
    tdist = jnp.broadcast_to(jnp.arange(5.0)[None], (3, 5))
    far = jnp.asarray([7.0, 8.0, 9.0])
    for depth in (expected_depth_of, median_depth_of):
        np.testing.assert_array_equal(depth(weights, tdist, far), far)
        gradient = jax.grad(lambda w, depth=depth: jnp.sum(depth(w, tdist, far)))(weights)
        assert np.all(np.isfinite(gradient))


@settings(max_examples=40)
@given(hnp.arrays(np.float32, 8, elements=st.floats(0, 0.125, width=32)))
def test_half_of_the_weight_lies_before_the_median(weights: np.ndarray) -> None:
    tdist = np.cumsum(np.arange(1.0, 10.0, dtype=np.float32))
    median = float(median_depth_of(jnp.asarray(weights), jnp.asarray(tdist), jnp.asarray(99.0)))
    if weights.sum() <= 2e-6:
        return
    share = np.clip((median - tdist[:-1]) / np.diff(tdist), 0.0, 1.0)
    before = float(np.sum(share * weights.astype(np.float64)))
    assert before == pytest.approx(0.5 * weights.sum(dtype=np.float64), rel=1e-4, abs=1e-6)


# Packing.


def test_rank_counts_the_wanted_samples_before_each() -> None:
    mask = make_mask()
    rank, before = rank_samples(mask), 0
    for r in range(RAYS):
        for i in range(INTERVALS):
            assert int(rank[r, i]) == before
            before += int(mask[r, i])


@pytest.mark.parametrize("budget", [1, 4, 1000])
def test_packs_of_successive_blocks_hold_every_wanted_sample_once(budget: int) -> None:
    mask = make_mask()
    wanted = [r * INTERVALS + i for r in range(RAYS) for i in range(INTERVALS) if mask[r, i]]
    rank, found = rank_samples(mask), []
    for start in range(0, len(wanted), budget):
        packed = pack(mask, rank, budget, start)
        assert packed.sample.shape == packed.valid.shape == (budget,)
        taken = np.asarray(packed.sample)[np.asarray(packed.valid)]
        assert np.all(np.asarray(packed.sample)[~np.asarray(packed.valid)] == mask.size)
        found += taken.tolist()
    assert found == wanted


def test_pack_of_nothing_is_empty() -> None:
    mask = jnp.zeros((3, 4), bool)
    packed = pack(mask, rank_samples(mask), 5)
    assert not np.any(np.asarray(packed.valid))


# Rendering from every interval.


@pytest.mark.parametrize("per_ray", [False, True])
def test_rendering_equals_loops(per_ray: bool) -> None:
    rays = make_rays()
    tdist, background = make_edges(rays), make_background()
    rendering, weights = render_every(FNS, rays, tdist, background, per_ray=per_ray)
    assert weights.shape == (RAYS, INTERVALS)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), rendering.opacity, rtol=1e-6)
    slow = render_slowly(rays, tdist, background, per_ray=per_ray)
    assert_close_to(slow, rendering)


def test_points_stand_for_what_follows_and_the_last_for_all_that_is_behind() -> None:
    rays, background = make_rays(), make_background()
    tdist = make_edges(rays)
    rendering, weights = render_samples(FNS, rays, tdist, background, at_starts=True)
    origins, directions = np.asarray(rays.origins), np.asarray(rays.directions)
    for r in range(RAYS):
        light, rgb, total = 1.0, np.zeros(3), []
        for i in range(INTERVALS):
            t = float(tdist[r, i])
            point = (origins[r] + t * directions[r])[None]
            length = 1e10 if i == INTERVALS - 1 else float(tdist[r, i + 1]) - t
            radii = np.array([float(rays.radii[r]) * t])
            alpha = 1.0 - math.exp(-float(field_density(np, point, radii)[0]) * length)
            features = field_features(np, point)
            rgb += light * alpha * field_color(np, features, directions[r][None])[0]
            total.append(light * alpha)
            light *= 1.0 - alpha
        np.testing.assert_allclose(weights[r], total, atol=2e-5)
        expected = rgb + (1.0 - sum(total)) * np.asarray(background[r])
        np.testing.assert_allclose(rendering.rgb[r], expected, atol=3e-5)
    assert np.all(np.isfinite(rendering.depth)) and np.all(np.isfinite(rendering.median_depth))


def test_other_programs_lengths_and_directions_are_taken_as_they_have_them() -> None:
    rays = make_rays()
    tdist, background = make_edges(rays), make_background()
    stretch = jnp.linspace(1.0, 1.5, RAYS)
    one = jnp.ones_like(stretch)
    plain, weights = render_samples(FNS, rays, tdist, background)
    same, unchanged = render_samples(
        FNS, rays, tdist, background, legacy_options=LegacyRenderOptions(one, one, False)
    )
    np.testing.assert_array_equal(unchanged, weights)
    np.testing.assert_array_equal(same.rgb, plain.rgb)
    # Lengths in another unit are a density of another unit.
    thinner = FNS._replace(
        density=lambda positions, frusta: (
            FNS.density(positions, frusta)[0] / jnp.repeat(stretch, INTERVALS),
            positions,
        )
    )
    wanted, _ = render_samples(thinner, rays, tdist, background)
    found, _ = render_samples(
        FNS, rays, tdist, background, legacy_options=LegacyRenderOptions(stretch, one, False)
    )
    np.testing.assert_allclose(found.rgb, wanted.rgb, rtol=1e-5)
    longer = dataclasses.replace(rays, directions=rays.directions * stretch[:, None])
    seen = jnp.repeat(longer.directions, INTERVALS, axis=0)
    aside = FNS._replace(color=lambda features, _, index: FNS.color(features, seen, index))
    wanted, _ = render_samples(aside, rays, tdist, background)
    found, _ = render_samples(
        FNS, rays, tdist, background, legacy_options=LegacyRenderOptions(one, stretch, False)
    )
    np.testing.assert_allclose(found.rgb, wanted.rgb, rtol=1e-5)


def test_depth_of_points_is_that_of_the_points() -> None:
    rays = make_rays()
    tdist = make_edges(rays)
    rendering, weights = render_samples(FNS, rays, tdist, make_background(), at_starts=True)
    wanted = np.sum(np.asarray(weights) * np.asarray(tdist)[:, :-1], axis=-1)
    np.testing.assert_allclose(rendering.depth * rendering.opacity, wanted, rtol=1e-5)


@pytest.mark.parametrize("per_ray", [False, True])
def test_empty_space_shows_exactly_the_background(per_ray: bool) -> None:
    rays = make_rays()
    rendering, _ = render_every(EMPTY, rays, make_edges(rays), make_background(), per_ray=per_ray)
    np.testing.assert_array_equal(rendering.rgb, make_background())
    np.testing.assert_array_equal(rendering.opacity, 0.0)
    np.testing.assert_array_equal(rendering.depth, rays.far)
    np.testing.assert_array_equal(rendering.median_depth, rays.far)


@pytest.mark.parametrize("per_ray", [False, True])
def test_opaque_space_shows_the_first_sample(per_ray: bool) -> None:
    rays = make_rays()
    tdist = make_edges(rays)
    rendering, _ = render_every(OPAQUE, rays, tdist, make_background(), per_ray=per_ray)
    first = 0.5 * (tdist[:, 0] + tdist[:, 1])
    color = FNS.color(
        FNS.features(rays.origins + first[:, None] * rays.directions),
        rays.directions,
        rays.camera_index,
    )
    np.testing.assert_allclose(rendering.rgb, color, atol=1e-5)
    np.testing.assert_allclose(rendering.depth, first, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.499])
def test_opacity_of_a_homogeneous_sphere_converges_to_beer_lambert(shift: float) -> None:
    sigma, radius = 3.0, 0.5
    sphere = FNS._replace(
        density=lambda p, r: (jnp.where(jnp.sum(p * p, -1) < radius**2, sigma, 0.0), p)
    )
    ray = dataclasses.replace(
        make_rays(1),
        origins=jnp.asarray([[shift, 0.0, 2.0]]),
        directions=jnp.asarray([[0.0, 0.0, -1.0]]),
        far=jnp.asarray([4.0]),
    )
    chord = 2.0 * math.sqrt(radius**2 - shift**2)
    truth = 1.0 - math.exp(-sigma * chord)
    errors = []
    for count in (64, 4096):
        tdist = jnp.linspace(0.5, 4.0, count + 1)[None]
        rendering, _ = render_every(sphere, ray, tdist, jnp.ones((1, 3)))
        errors.append(abs(float(rendering.opacity[0]) - truth))
        # The chord is symmetric about distance 2, where light is lost on the way in.
        assert float(rendering.median_depth[0]) <= 2.0 + 4.0 / count
    assert errors[0] < 2 * sigma * 3.5 / 64
    assert errors[1] < 2 * sigma * 3.5 / 4096


def test_homogeneous_slab_has_the_exact_opacity_and_depth_with_few_samples() -> None:
    # Edges on the slab's faces: nothing is left to discretisation but the depth.
    slab = FNS._replace(
        density=lambda p, r: (jnp.where(jnp.abs(p[:, 2]) < 1.0, 1.0, 0.0), p),
    )
    ray = dataclasses.replace(
        make_rays(1),
        origins=jnp.asarray([[0.0, 0.0, 2.0]]),
        directions=jnp.asarray([[0.0, 0.0, -1.0]]),
    )
    tdist = jnp.concatenate([jnp.asarray([0.5]), jnp.linspace(1.0, 3.0, 2001)])[None]
    rendering, _ = render_every(slab, ray, tdist, jnp.zeros((1, 3)))
    gone = 1.0 - math.exp(-2.0)
    assert float(rendering.opacity[0]) == pytest.approx(gone, rel=1e-5)
    assert float(rendering.depth[0]) == pytest.approx(1.0 + (1 - 3 * math.exp(-2)) / gone, rel=1e-4)
    assert float(rendering.median_depth[0]) == pytest.approx(
        1.0 - math.log(1.0 - gone / 2), rel=1e-4
    )


# Whole images.


def image_of(rays: Rays, chunk: int, at_once: int) -> tuple[Picture, int]:
    """The image, and how often its program was traced."""
    traces = 0

    def render_chunk(rays: Rays) -> Rendering:
        assert rays.near.shape == (chunk,)
        tdist = jnp.broadcast_to(jnp.linspace(0.5, 2.0, 5)[None], (chunk, 5))
        return render_samples(FNS, rays, tdist, jnp.ones((chunk, 3)))[0]

    @jax.jit
    def render_chunks(rays: Rays) -> Rendering:
        nonlocal traces
        traces += 1
        assert rays.near.shape[0] <= at_once
        return jax.lax.map(render_chunk, rays)

    return render_image(render_chunks, rays, chunk, at_once), traces


@pytest.mark.parametrize(
    ("chunk", "at_once"), [(1, 5), (5, 64), (5, 1), (5, 2), (6, 1), (12, 64), (50, 3)]
)
def test_image_is_the_same_for_any_chunk_and_compiles_once(chunk: int, at_once: int) -> None:
    rays = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), make_rays(12))
    image, traces = image_of(rays, chunk, at_once)
    assert traces == 1
    assert image.rgb.shape == (3, 4, 3)
    assert image.opacity.shape == image.depth.shape == image.median_depth.shape == (3, 4)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(image))
    tdist = jnp.broadcast_to(jnp.linspace(0.5, 2.0, 5)[None], (12, 5))
    slow = render_slowly(make_rays(12), tdist, jnp.ones((12, 3)))
    for name, values in slow.items():
        actual = getattr(image, name).reshape(values.shape)
        np.testing.assert_allclose(actual, values, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("batch", [(), (12,), (2, 3, 2)])
def test_image_of_any_batch_shape(batch: tuple[int, ...]) -> None:
    count = math.prod(batch)
    flat = make_rays(count)
    rays = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), flat)
    image, _ = image_of(rays, 5, 2)
    assert image.rgb.shape == (*batch, 3) and image.opacity.shape == batch
    reference, _ = image_of(flat, 5, 2)
    np.testing.assert_array_equal(image.rgb.reshape(count, 3), reference.rgb)


# Rendering from packed samples.


def pack_intervals(
    edges: jax.Array, mask: np.ndarray, spare: int
) -> tuple[PackedSamples, np.ndarray]:
    """The masked intervals of a dense layout as packed samples, and their flat indices."""
    rays, index = np.nonzero(mask)
    starts, stops = np.asarray(edges)[rays, index], np.asarray(edges)[rays, index + 1]
    packed = PackedSamples(
        jnp.asarray(np.pad(starts, (0, spare)), jnp.float32),
        jnp.asarray(np.pad(stops, (0, spare)), jnp.float32),
        jnp.asarray(np.pad(rays, (0, spare), constant_values=len(mask) - 1), jnp.int32),
        jnp.asarray(np.arange(len(rays) + spare) < len(rays)),
    )
    return packed, np.flatnonzero(mask)


def packed_case(spare: int = 5) -> tuple[Rays, jax.Array, jax.Array, np.ndarray, PackedSamples]:
    """Rays, their edges, their backgrounds, which intervals are wanted, and these packed."""
    rays, mask = make_rays(), np.asarray(make_mask())
    edges = make_edges(rays)
    return rays, edges, make_background(), mask, pack_intervals(edges, mask, spare)[0]


@pytest.mark.parametrize("spare", [0, 13])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6, np.inf])
def test_packed_weights_are_those_of_each_ray_alone(spare: int, scale: float) -> None:
    edges, mask = make_edges(make_rays()), np.asarray(make_mask())
    density = np.random.default_rng(8).uniform(0.1, 3.0, mask.shape).astype(np.float32) * scale
    packed, flat = pack_intervals(edges, mask, spare)
    values = jnp.asarray(np.pad(density.ravel()[flat], (0, spare), constant_values=5.0))
    weights, transmittance = compute_packed_weights(values, packed)
    dense, reaching = compute_weights(jnp.asarray(np.where(mask, density, 0.0)), edges)
    used = np.asarray(packed.mask)
    np.testing.assert_allclose(weights[used], np.asarray(dense).ravel()[flat], atol=1e-6)
    np.testing.assert_allclose(transmittance[used], np.asarray(reaching).ravel()[flat], atol=1e-6)
    assert not np.any(np.asarray(weights)[~used])


@settings(max_examples=40)
@given(DENSITIES, LENGTHS, st.integers(0, 8))
def test_packed_weights_and_the_light_that_is_left_sum_to_one_for_each_ray(
    density: np.ndarray, lengths: np.ndarray, first: int
) -> None:
    """The first so many samples are one ray's, the others another's."""
    edges = np.concatenate([[0.25], 0.25 + np.cumsum(lengths)]).astype(np.float32)
    owner = (np.arange(8) >= first).astype(np.int32)
    everything = jnp.ones(8, bool)
    packed = PackedSamples(*(jnp.asarray(x) for x in (edges[:-1], edges[1:], owner)), everything)
    weights, transmittance = (
        np.asarray(x) for x in packed_weights_of(jnp.asarray(density), packed)
    )
    assert np.all(weights >= 0) and np.all(weights <= 1)
    for ray in (0, 1):
        mine = owner == ray
        if mine.any():
            last = np.flatnonzero(mine)[-1]
            depth = float(density[last]) * float(edges[last + 1] - edges[last])
            left = float(transmittance[last]) * math.exp(-depth)
            assert float(weights[mine].sum()) + left == pytest.approx(1.0, abs=2e-6)
            assert transmittance[mine][0] == 1.0 and np.all(np.diff(transmittance[mine]) <= 0)


def test_an_opaque_ray_leaves_the_digits_of_the_next_alone() -> None:
    """A running sum over all rays would lose an optical depth of 1e-3 beside one of 1e7."""
    packed = PackedSamples(
        jnp.zeros(4), jnp.ones(4), jnp.asarray([0, 0, 1, 1], jnp.int32), jnp.ones(4, bool)
    )
    weights, _ = compute_packed_weights(jnp.asarray([1e7, 1e7, 1e-3, 1e-3]), packed)
    second = np.exp(-1e-3) * -np.expm1(-1e-3)
    np.testing.assert_allclose(weights, [1.0, 0.0, -np.expm1(-1e-3), second], rtol=1e-5)


@pytest.mark.parametrize("name", EXTREMES)
def test_gradients_of_packed_weights_are_finite_at_the_extremes(name: str) -> None:
    density, edges = (jnp.asarray(x, jnp.float32) for x in EXTREMES[name])
    owner = jnp.asarray([0, 0, 0, 1], jnp.int32)

    def total(density: jax.Array, starts: jax.Array) -> jax.Array:
        packed = PackedSamples(starts, edges[1:], owner, jnp.asarray([True, True, True, False]))
        weights, transmittance = compute_packed_weights(density, packed)
        return jnp.sum(weights * jnp.arange(4.0)) + jnp.sum(transmittance)

    gradients = jax.grad(total, argnums=(0, 1))(density, edges[:-1])
    # An infinite optical depth has an infinite slope in its length alone.
    for gradient in gradients[:1] if name in ("overflow", "infinitely long") else gradients:
        assert np.all(np.isfinite(gradient))


def test_packed_samples_are_taken_at_their_middles() -> None:
    rays, edges, _, mask, packed = packed_case()
    positions, distances = sample_points(rays, packed)
    ray, index = np.nonzero(mask)
    for place in range(len(ray)):
        middle = (
            float(edges[ray[place], index[place]]) + float(edges[ray[place], index[place] + 1])
        ) / 2
        assert float(distances[place]) == pytest.approx(middle, rel=1e-6)
        wanted = np.asarray(rays.origins[ray[place]]) + middle * np.asarray(
            rays.directions[ray[place]]
        )
        np.testing.assert_allclose(positions[place], wanted, atol=1e-5)


AMPLE = 1000


@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("color_budget", [None, AMPLE])
@pytest.mark.parametrize("spare", [0, 5])
def test_packed_rendering_equals_loops_without_density_outside(
    spare: int, color_budget: int | None, per_ray: bool
) -> None:
    rays, edges, background, mask, packed = packed_case(spare)
    found = render_packed_rays(
        FNS, rays, packed, background, per_ray=per_ray, color_budget=color_budget
    )
    assert int(found.fitting) == RAYS
    slow = render_slowly(rays, edges, background, jnp.asarray(mask), per_ray)
    assert_packed_close_to(slow, found)
    dense, _ = compute_weights(jnp.asarray(mask) * field_density_along(rays, edges), edges)
    used = np.asarray(packed.mask)
    np.testing.assert_allclose(found.weights[used], np.asarray(dense)[mask], atol=1e-5)
    assert found.weights.shape == used.shape and not np.any(np.asarray(found.weights)[~used])
    np.testing.assert_array_equal(found.rgb[1], background[1])


@pytest.mark.parametrize("per_ray", [False, True])
def test_full_mask_equals_rendering_of_every_interval(per_ray: bool) -> None:
    rays, edges, background, _, _ = packed_case()
    packed, _ = pack_intervals(edges, np.ones((RAYS, INTERVALS), bool), 0)
    found = render_packed_rays(FNS, rays, packed, background, per_ray=per_ray)
    dense, weights = render_every(FNS, rays, edges, background, per_ray=per_ray)
    assert_packed_close_to({"rgb": dense.rgb, "opacity": dense.opacity}, found)
    np.testing.assert_allclose(found.weights, weights.ravel(), atol=1e-6)


@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("color_budget", [None, 1, AMPLE])
def test_rays_without_samples_show_exactly_the_background(
    color_budget: int | None, per_ray: bool
) -> None:
    rays, edges, background, mask, _ = packed_case()
    packed, _ = pack_intervals(edges, np.zeros_like(mask), 9)
    found = render_packed_rays(
        FNS, rays, packed, background, per_ray=per_ray, color_budget=color_budget
    )
    assert int(found.fitting) == RAYS
    np.testing.assert_array_equal(found.rgb, background)
    np.testing.assert_array_equal(found.opacity, 0.0)


@pytest.mark.parametrize("per_ray", [False, True])
def test_samples_of_no_length_show_the_background_and_take_no_budget(per_ray: bool) -> None:
    rays, _, background, _, packed = packed_case()
    packed = packed._replace(t_ends=packed.t_starts)
    found = render_packed_rays(OPAQUE, rays, packed, background, per_ray=per_ray, color_budget=1)
    assert int(found.fitting) == RAYS
    np.testing.assert_array_equal(found.rgb, background)
    np.testing.assert_array_equal(found.weights, 0.0)


@pytest.mark.parametrize("per_ray", [False, True])
def test_colors_under_the_threshold_are_left_out_and_their_opacity_is_not(per_ray: bool) -> None:
    rays, edges, background, mask, packed = packed_case()
    found = render_packed_rays(
        FNS, rays, packed, background,
        per_ray=per_ray, color_budget=AMPLE, color_threshold=0.1,
    )  # fmt: skip
    assert int(found.fitting) == RAYS
    slow = render_slowly(rays, edges, background, jnp.asarray(mask), per_ray, color_threshold=0.1)
    assert_packed_close_to(slow, found)
    everything = render_slowly(rays, edges, background, jnp.asarray(mask), per_ray)
    assert not np.allclose(slow["rgb"], everything["rgb"], atol=1e-2), (
        "the threshold changes nothing"
    )
    # Without a budget all samples are coloured anyway.
    found = render_packed_rays(FNS, rays, packed, background, per_ray=per_ray, color_threshold=0.1)
    assert_packed_close_to(everything, found)


def fitting_slowly(wanted: np.ndarray, budget: int) -> int:
    """How many rays come before the first of which a wanted sample is past the budget."""
    taken = 0
    for ray, row in enumerate(wanted):
        taken += int(row.sum())
        if taken > budget:
            return ray
    return len(wanted)


@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("budget", [1, 5, 9, 17, -1, 0, 1000])
def test_rays_past_a_color_budget_are_dropped_whole_and_the_others_are_spared(
    budget: int, threshold: float, per_ray: bool
) -> None:
    rays, edges, background, mask, packed = packed_case()
    weights, _ = compute_weights(jnp.asarray(mask) * field_density_along(rays, edges), edges)
    wanted = mask & (np.asarray(weights) > threshold)
    needed = int(wanted.sum())
    # The last two: just too little and just enough.
    budget = needed + budget if budget in (-1, 0) else budget
    found = render_packed_rays(
        FNS, rays, packed, background,
        per_ray=per_ray, color_budget=budget, color_threshold=threshold,
    )  # fmt: skip
    fitting = fitting_slowly(wanted, budget)
    assert int(found.fitting) == fitting and (fitting < RAYS) == (budget < needed)
    slow = render_slowly(
        rays, edges, background, jnp.asarray(mask), per_ray, color_threshold=threshold
    )
    assert_packed_close_to({"rgb": slow["rgb"]}, found, slice(fitting))
    # What rays weigh does not depend on which of their samples are coloured.
    assert_packed_close_to({"opacity": slow["opacity"]}, found)
    np.testing.assert_allclose(
        np.asarray(found.weights)[np.asarray(packed.mask)], np.asarray(weights)[mask], atol=1e-5
    )


def field_density_along(rays: Rays, edges: jax.Array) -> jax.Array:
    """(r, n) density of `FNS` in the middle of each interval."""
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    return field_density(jnp, points_along(rays, middle), rays.radii[:, None] * middle)


def assert_packed_close_to(
    expected: dict[str, Any], actual: PackedRendering, kept: Any = slice(None)
) -> None:
    for name in ("rgb", "opacity"):
        if name in expected:
            np.testing.assert_allclose(
                np.asarray(getattr(actual, name))[kept],
                np.asarray(expected[name])[kept],
                rtol=2e-5,
                atol=2e-5,
                err_msg=name,
            )


def parametric_fns(params: dict[str, jax.Array]) -> RadianceFns:
    return RadianceFns(
        density=lambda p, r: (params["density"][0] * field_density(jnp, p, r.radii), p),
        features=lambda p: field_features(jnp, p) * params["features"][None],
        color=lambda f, d, _: field_color(jnp, f, d) * params["color"][None],
    )


def render_densely(
    fns: RadianceFns,
    rays: Rays,
    tdist: jax.Array,
    background: jax.Array,
    mask: jax.Array,
    per_ray: bool = False,
    color_threshold: float = 0.0,
) -> Rendering:
    """All samples are evaluated, and what is not wanted is multiplied by zero."""
    wanted = mask.ravel() * 1.0
    thin = fns._replace(density=lambda p, r: (fns.density(p, r)[0] * wanted, p))
    _, weights = render_samples(thin, rays, tdist, background)
    matters = jax.lax.stop_gradient(wanted * (weights.ravel() > color_threshold))[:, None]
    if per_ray:
        sparse = thin._replace(features=lambda p: fns.features(p) * matters)
    else:
        sparse = thin._replace(color=lambda f, d, c: fns.color(f, d, c) * matters)
    return render_samples(sparse, rays, tdist, background, per_ray=per_ray)[0]


@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.05])
def test_gradients_of_packed_rendering_are_those_of_the_dense_one(
    threshold: float | None, per_ray: bool
) -> None:
    rays, edges, background, mask, packed = packed_case()
    params = {
        "density": jnp.asarray([0.8]),
        "features": jnp.asarray([1.0, 0.5, 1.5, 0.7]),
        "color": jnp.asarray([0.9, 0.8, 0.7]),
    }

    def loss(rendering: Rendering | PackedRendering) -> jax.Array:
        squares = jnp.mean(jnp.square(rendering.rgb - 0.3))
        return squares + 0.1 * jnp.mean(rendering.opacity)

    def sparse(params: dict[str, jax.Array], rays: Rays) -> jax.Array:
        fns = parametric_fns(params)
        budget = None if threshold is None else AMPLE
        rendering = render_packed(
            fns, rays, packed, background,
            per_ray=per_ray, color_budget=budget, color_threshold=threshold or 0.0,
        )  # fmt: skip
        return loss(rendering)

    def dense(params: dict[str, jax.Array], rays: Rays) -> jax.Array:
        fns, wanted = parametric_fns(params), jnp.asarray(mask)
        return loss(render_densely(fns, rays, edges, background, wanted, per_ray, threshold or 0.0))

    def gradients(fn: Any) -> Any:
        def of_origins(params: dict[str, jax.Array], origins: jax.Array) -> jax.Array:
            return fn(params, dataclasses.replace(rays, origins=origins))

        return jax.jit(jax.value_and_grad(of_origins, argnums=(0, 1)))(params, rays.origins)

    actual, expected = gradients(sparse), gradients(dense)
    assert all(float(jnp.max(jnp.abs(g))) > 1e-4 for g in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-4, atol=2e-6), actual, expected
    )


@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("color_budget", [None, AMPLE, 3])
def test_gradients_of_packed_rendering_are_finite_at_the_extremes(
    color_budget: int | None, per_ray: bool
) -> None:
    rays, edges, background, mask, _ = packed_case()
    edges = edges.at[0].set(1.0)

    def loss(density: jax.Array, packed: PackedSamples) -> jax.Array:
        fns = parametric_fns({"density": density, "features": jnp.ones(4), "color": jnp.ones(3)})
        found = render_packed(
            fns, rays, packed, background,
            per_ray=per_ray, color_budget=color_budget, color_threshold=1e-3,
        )  # fmt: skip
        return jnp.sum(found.rgb) + jnp.sum(found.opacity) + jnp.sum(found.weights)

    gradient = jax.jit(jax.grad(loss))
    spare = mask.size - mask.sum()
    cases = [pack_intervals(edges, m, s)[0] for m, s in ((mask, spare), (mask & False, mask.size))]
    for scale in (0.0, 1.0, 1e10, 1e20, 1e30):
        for packed in cases:
            slope = gradient(jnp.asarray([scale]), packed)
            assert np.all(np.isfinite(slope))
            assert scale != 1.0 or (slope[0] != 0) == bool(packed.mask.any())


# Rendering block by block.


def blocks_case(
    count: int, density: float
) -> tuple[RadianceFns, Rays, jax.Array, jax.Array, float, Any]:
    """Rays with blocks of 4 steps, some empty; a field; which positions are worth it."""
    rays = make_rays(count)
    step, steps, blocks = 0.07, 4, 10
    edges = rays.near[:, None] + step * jnp.arange(blocks * steps + 1.0)[None]
    edges = jnp.minimum(edges, rays.far[:, None])
    wanted = jnp.asarray(np.random.default_rng(4).uniform(size=(count, blocks)) < 0.6)
    fns = FNS._replace(density=lambda x, r: (density * field_density(jnp, x, r.radii), x))
    return fns, rays, edges, wanted, step, lambda positions: jnp.sin(9.0 * positions[..., 0]) > -0.5


def assert_blocks_equal_all_samples(
    density: float, per_ray: bool, at_once: int, samples: int, **coloring: Any
) -> Rendering:
    """What is rendered block by block is what is rendered from all samples; gives the latter."""
    fns, rays, edges, wanted, step, occupied = blocks_case(40, density)
    background, nothing = make_background(40), jnp.full((40,), 77.0)
    found = jax.jit(
        lambda rays: march_and_render(
            fns, rays, wanted, step, occupied, background, nothing,
            steps=4, at_once=at_once, samples=samples, per_ray=per_ray, stop=0.0, **coloring,
        )
    )(rays)  # fmt: skip
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    mask = jnp.repeat(wanted, 4, axis=1) & occupied(points_along(rays, middle))
    far = dataclasses.replace(rays, far=nothing)
    threshold = coloring.get("color_threshold", 0.0)
    exact = jax.jit(
        lambda rays: render_densely(fns, rays, edges, background, mask, per_ray, threshold)
    )(far)
    for name in ("rgb", "opacity", "depth", "median_depth"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(exact, name), atol=2e-4, err_msg=name
        )
    assert (density > 0) == bool(np.any(np.asarray(found.opacity) > 0))
    return exact


@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("at_once, samples", [(64, 256), (5, 20), (3, 4), (40, 7)])
def test_rendering_by_blocks_equals_rendering_all_samples(
    at_once: int, samples: int, density: float, per_ray: bool
) -> None:
    assert_blocks_equal_all_samples(density, per_ray, at_once, samples)


@pytest.mark.parametrize("per_ray", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize(
    "at_once, samples, budget", [slow(64, 256, 500), (64, 256, 7), slow(5, 20, 1)]
)
def test_rendering_by_blocks_colors_what_is_above_the_threshold_however_many_at_once(
    at_once: int, samples: int, budget: int, threshold: float, per_ray: bool
) -> None:
    coloring = {"color_budget": budget, "color_threshold": threshold}
    thinned = assert_blocks_equal_all_samples(3.0, per_ray, at_once, samples, **coloring)
    if threshold:
        full = assert_blocks_equal_all_samples(3.0, per_ray, at_once, samples)
        assert np.abs(thinned.rgb - full.rgb).max() > 0.05, "the threshold changes nothing"
        # Without a budget all samples are coloured anyway.
        fns, rays, _, wanted, step, occupied = blocks_case(40, 3.0)
        found = march_and_render(
            fns, rays, wanted, step, occupied, make_background(40), rays.far,
            steps=4, at_once=64, samples=256, per_ray=per_ray, color_threshold=threshold, stop=0.0,
        )  # fmt: skip
        np.testing.assert_allclose(found.rgb, full.rgb, atol=2e-4)


@pytest.mark.parametrize("color_budget", [None, 7])
@pytest.mark.parametrize("stop", [0.5, 0.1, 1e-3])
def test_rays_stop_where_they_are_opaque(stop: float, color_budget: int | None) -> None:
    fns, rays, _, wanted, step, occupied = blocks_case(40, 3.0)
    arguments = (fns, rays, wanted, step, occupied, make_background(40), rays.far)
    options = {"steps": 4, "at_once": 16, "samples": 64, "color_budget": color_budget}
    early = march_and_render(*arguments, **options, stop=stop)
    whole = march_and_render(*arguments, **options, stop=0.0)
    missing = np.asarray(whole.opacity - early.opacity)
    assert missing.min() > -1e-6 and missing.max() <= stop
    assert np.abs(np.asarray(whole.rgb - early.rgb)).max() <= 2 * stop
    assert stop < 0.1 or missing.max() > 0


@pytest.mark.parametrize("color_budget", [None, 3])
def test_rays_without_a_block_show_exactly_the_background_far_away(
    color_budget: int | None,
) -> None:
    fns, rays, _, wanted, step, occupied = blocks_case(11, 3.0)
    nothing = jnp.linspace(50.0, 60.0, 11)
    for blocks, fits in ((wanted & False, occupied), (wanted, lambda p: p[..., 0] > 1e9)):
        found = march_and_render(
            fns, rays, blocks, step, fits, make_background(11), nothing,
            steps=4, at_once=4, samples=8, color_budget=color_budget,
        )  # fmt: skip
        np.testing.assert_array_equal(found.rgb, make_background(11))
        np.testing.assert_array_equal(found.opacity, 0.0)
        np.testing.assert_array_equal(found.depth, nothing)
        np.testing.assert_array_equal(found.median_depth, nothing)


# Sub-rays.


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_average_of_sub_rays_equals_loops(supersample: int) -> None:
    rng = np.random.default_rng(supersample)
    height, width, far = 4, 5, 9.0
    shape = (height * supersample, width * supersample)
    opacity = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.6)
    opacity[:supersample, :supersample] = 0.0  # a pixel that sees nothing
    depth = np.where(opacity > 0, rng.uniform(2, 6, shape), far)
    median = np.where(opacity > 0, rng.uniform(2, 6, shape), far)
    fine = Picture(
        rng.uniform(size=(*shape, 3)).astype(np.float32),
        *(x.astype(np.float32) for x in (opacity, depth, median)),
    )
    coarse = resolve_supersampling(fine, supersample)
    assert coarse.rgb.shape == (height, width, 3) and coarse.depth.shape == (height, width)
    for i, j in np.ndindex(height, width):
        part = np.s_[
            i * supersample : (i + 1) * supersample, j * supersample : (j + 1) * supersample
        ]
        np.testing.assert_allclose(
            coarse.rgb[i, j], fine.rgb[part].reshape(-1, 3).mean(0), rtol=1e-5
        )
        alpha = fine.opacity[part].ravel()
        np.testing.assert_allclose(coarse.opacity[i, j], alpha.mean(), rtol=1e-5)
        if alpha.sum() == 0:
            assert coarse.depth[i, j] == far and coarse.median_depth[i, j] == far
            continue
        mean = np.sum(alpha * fine.depth[part].ravel()) / alpha.sum()
        np.testing.assert_allclose(coarse.depth[i, j], mean, rtol=1e-5)
        order = np.argsort(fine.median_depth[part].ravel())
        reached, index = 0.0, -1
        while reached < 0.5 * alpha.sum() - 1e-6:
            index += 1
            reached += alpha[order[index]]
        assert coarse.median_depth[i, j] == fine.median_depth[part].ravel()[order[index]]


def test_rendering_is_a_pytree_that_jit_and_vmap_accept() -> None:
    rendering = Rendering(
        rgb=jnp.zeros((4, 3)), opacity=jnp.ones(4), depth=jnp.ones(4), median_depth=jnp.ones(4)
    )
    assert len(jax.tree.leaves(rendering)) == 4
    through_jit = jax.jit(lambda r: r)(rendering)
    through_vmap = jax.vmap(lambda r: dataclasses.replace(r, depth=r.depth + 1.0))(rendering)
    assert isinstance(through_jit, Rendering)
    np.testing.assert_array_equal(through_vmap.depth, 2.0)

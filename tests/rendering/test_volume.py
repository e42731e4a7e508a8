"""Volume rendering against loops in float64, closed forms and extreme values."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Array
from slow_rendering import (
    DENSITIES,
    EMPTY,
    EXTREMES,
    FNS,
    INTERVALS,
    LENGTHS,
    OPAQUE,
    RAYS,
    assert_close_to,
    expected_depth_slowly,
    field_color,
    field_density,
    field_features,
    make_background,
    make_edges,
    make_rays,
    median_depth_slowly,
    render_all_samples,
    render_slowly,
    weights_slowly,
)

from jaxrf.rendering.volume import (
    LegacyRenderOptions,
    RadianceFns,
    Rendering,
    compute_weights,
    expected_depth,
    median_depth,
    near_gradient_scale,
    render_samples,
)

weights_of = jax.jit(compute_weights)


expected_depth_of = jax.jit(expected_depth)


median_depth_of = jax.jit(median_depth)


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


def test_legacy_weights_are_attenuated_by_their_interval() -> None:
    density, edges = jnp.asarray([[0.5, 2.0, 0.0, 7.0]]), jnp.asarray([[0.0, 0.5, 1.0, 2.0, 2.5]])
    weights, before = compute_weights(density, edges)
    legacy, after = compute_weights(density, edges, legacy_transmittance=True)
    passed = np.exp(-np.asarray(density) * np.diff(edges))
    np.testing.assert_allclose(legacy, weights * passed, rtol=1e-6)
    np.testing.assert_allclose(after, before * passed, rtol=1e-6)


def test_weights_of_two_intervals_have_the_closed_form() -> None:
    # The first interval transmits half of the light, the second (twice as long) an eighth.
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


@settings(max_examples=40)
@given(DENSITIES, LENGTHS)
def test_weights_and_final_transmittance_sum_to_one(
    density: np.ndarray, lengths: np.ndarray
) -> None:
    tdist = np.concatenate([[0.25], 0.25 + np.cumsum(lengths)]).astype(np.float32)
    weights, transmittance = weights_of(jnp.asarray(density), jnp.asarray(tdist))
    depth = float(density[-1]) * float(tdist[-1] - tdist[-2])
    final = float(transmittance[-1]) * math.exp(-depth)
    assert np.all(np.asarray(weights) >= 0) and np.all(np.asarray(weights) <= 1)
    assert np.all(np.diff(np.asarray(transmittance)) <= 0)
    assert float(jnp.sum(weights)) + final == pytest.approx(1.0, abs=2e-6)


@settings(max_examples=40)
@given(DENSITIES)
def test_weights_are_unchanged_by_splitting_intervals(density: np.ndarray) -> None:
    edges = np.linspace(1.0, 3.0, 9, dtype=np.float32)
    unsplit, _ = weights_of(jnp.asarray(density), jnp.asarray(edges))
    split, _ = weights_of(
        jnp.asarray(np.repeat(density, 2)), jnp.linspace(1.0, 3.0, 17, dtype=jnp.float32)
    )
    np.testing.assert_allclose(split.reshape(8, 2).sum(-1), unsplit, rtol=1e-4, atol=2e-6)


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


def test_depths_of_one_opaque_interval_are_its_midpoint() -> None:
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


def test_depth_is_far_for_rays_that_hit_nothing() -> None:
    weights = jnp.zeros((3, 4))
    tdist = jnp.broadcast_to(jnp.arange(5.0)[None], (3, 5))
    far = jnp.asarray([7.0, 8.0, 9.0])
    for depth in (expected_depth_of, median_depth_of):
        np.testing.assert_array_equal(depth(weights, tdist, far), far)
        gradient = jax.grad(lambda w, depth=depth: jnp.sum(depth(w, tdist, far)))(weights)
        assert np.all(np.isfinite(gradient))


@settings(max_examples=40)
@given(hnp.arrays(np.float32, 8, elements=st.floats(0, 0.125, width=32)))
def test_half_of_the_weight_is_before_the_median_depth(weights: np.ndarray) -> None:
    tdist = np.cumsum(np.arange(1.0, 10.0, dtype=np.float32))
    median = float(median_depth_of(jnp.asarray(weights), jnp.asarray(tdist), jnp.asarray(99.0)))
    if weights.sum() <= 2e-6:
        return
    share = np.clip((median - tdist[:-1]) / np.diff(tdist), 0.0, 1.0)
    before = float(np.sum(share * weights.astype(np.float64)))
    assert before == pytest.approx(0.5 * weights.sum(dtype=np.float64), rel=1e-4, abs=1e-6)


# Rendering of all intervals.


@pytest.mark.parametrize("color_per_ray", [False, True])
def test_rendering_equals_loops(color_per_ray: bool) -> None:
    rays = make_rays()
    tdist, background = make_edges(rays), make_background()
    rendering, weights = render_all_samples(
        FNS, rays, tdist, background, color_per_ray=color_per_ray
    )
    assert weights.shape == (RAYS, INTERVALS)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), rendering.opacity, rtol=1e-6)
    slow = render_slowly(rays, tdist, background, color_per_ray=color_per_ray)
    assert_close_to(slow, rendering)


def test_left_endpoint_equals_loop_with_open_last_interval() -> None:
    rays, background = make_rays(), make_background()
    tdist = make_edges(rays)
    rendering, weights = render_samples(
        FNS, rays, tdist, background, legacy=LegacyRenderOptions(left_endpoint=True)
    )
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


def test_legacy_length_unit_and_direction_length_scale_density_and_view() -> None:
    rays = make_rays()
    tdist, background = make_edges(rays), make_background()
    stretch = jnp.linspace(1.0, 1.5, RAYS)
    one = jnp.ones_like(stretch)
    plain, weights = render_samples(FNS, rays, tdist, background)
    same, unchanged = render_samples(
        FNS, rays, tdist, background, legacy=LegacyRenderOptions(one, one)
    )
    np.testing.assert_array_equal(unchanged, weights)
    np.testing.assert_array_equal(same.rgb, plain.rgb)
    # A larger unit of length is equivalent to a lower density.
    thinner = FNS._replace(
        density=lambda positions, frusta: (
            FNS.density(positions, frusta)[0] / jnp.repeat(stretch, INTERVALS),
            positions,
        )
    )
    expected, _ = render_samples(thinner, rays, tdist, background)
    actual, _ = render_samples(
        FNS, rays, tdist, background, legacy=LegacyRenderOptions(length_unit=stretch)
    )
    np.testing.assert_allclose(actual.rgb, expected.rgb, rtol=1e-5)
    longer = dataclasses.replace(rays, directions=rays.directions * stretch[:, None])
    view = jnp.repeat(longer.directions, INTERVALS, axis=0)
    rescaled = FNS._replace(color=lambda features, _, index: FNS.color(features, view, index))
    expected, _ = render_samples(rescaled, rays, tdist, background)
    actual, _ = render_samples(
        FNS, rays, tdist, background, legacy=LegacyRenderOptions(direction_length=stretch)
    )
    np.testing.assert_allclose(actual.rgb, expected.rgb, rtol=1e-5)


def test_left_endpoint_depth_is_the_mean_of_the_points() -> None:
    rays = make_rays()
    tdist = make_edges(rays)
    rendering, weights = render_samples(
        FNS, rays, tdist, make_background(), legacy=LegacyRenderOptions(left_endpoint=True)
    )
    expected = np.sum(np.asarray(weights) * np.asarray(tdist)[:, :-1], axis=-1)
    np.testing.assert_allclose(rendering.depth * rendering.opacity, expected, rtol=1e-5)


@pytest.mark.parametrize("color_per_ray", [False, True])
def test_empty_space_renders_exactly_the_background(color_per_ray: bool) -> None:
    rays = make_rays()
    rendering, _ = render_all_samples(
        EMPTY, rays, make_edges(rays), make_background(), color_per_ray=color_per_ray
    )
    np.testing.assert_array_equal(rendering.rgb, make_background())
    np.testing.assert_array_equal(rendering.opacity, 0.0)
    np.testing.assert_array_equal(rendering.depth, rays.far)
    np.testing.assert_array_equal(rendering.median_depth, rays.far)


@pytest.mark.parametrize("color_per_ray", [False, True])
def test_opaque_space_renders_the_first_sample(color_per_ray: bool) -> None:
    rays = make_rays()
    tdist = make_edges(rays)
    rendering, _ = render_all_samples(
        OPAQUE, rays, tdist, make_background(), color_per_ray=color_per_ray
    )
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
        rendering, _ = render_all_samples(sphere, ray, tdist, jnp.ones((1, 3)))
        errors.append(abs(float(rendering.opacity[0]) - truth))
        # The chord is symmetric about distance 2, and the front absorbs more than the back.
        assert float(rendering.median_depth[0]) <= 2.0 + 4.0 / count
    assert errors[0] < 2 * sigma * 3.5 / 64
    assert errors[1] < 2 * sigma * 3.5 / 4096


def test_homogeneous_slab_has_exact_opacity_and_depth() -> None:
    # Edges lie on the slab's faces, so that only the depth has a discretization error.
    slab = FNS._replace(
        density=lambda p, r: (jnp.where(jnp.abs(p[:, 2]) < 1.0, 1.0, 0.0), p),
    )
    ray = dataclasses.replace(
        make_rays(1),
        origins=jnp.asarray([[0.0, 0.0, 2.0]]),
        directions=jnp.asarray([[0.0, 0.0, -1.0]]),
    )
    tdist = jnp.concatenate([jnp.asarray([0.5]), jnp.linspace(1.0, 3.0, 2001)])[None]
    rendering, _ = render_all_samples(slab, ray, tdist, jnp.zeros((1, 3)))
    gone = 1.0 - math.exp(-2.0)
    assert float(rendering.opacity[0]) == pytest.approx(gone, rel=1e-5)
    assert float(rendering.depth[0]) == pytest.approx(1.0 + (1 - 3 * math.exp(-2)) / gone, rel=1e-4)
    assert float(rendering.median_depth[0]) == pytest.approx(
        1.0 - math.log(1.0 - gone / 2), rel=1e-4
    )


def test_rendering_is_a_pytree_that_jit_and_vmap_accept() -> None:
    rendering = Rendering(
        rgb=jnp.zeros((4, 3)), opacity=jnp.ones(4), depth=jnp.ones(4), median_depth=jnp.ones(4)
    )
    assert len(jax.tree.leaves(rendering)) == 4
    through_jit = jax.jit(lambda r: r)(rendering)
    through_vmap = jax.vmap(lambda r: dataclasses.replace(r, depth=r.depth + 1.0))(rendering)
    assert isinstance(through_jit, Rendering)
    np.testing.assert_array_equal(through_vmap.depth, 2.0)


@pytest.mark.parametrize("color_per_ray", [False, True])
def test_scaled_gradients_are_those_of_each_sample_times_its_factor(color_per_ray: bool) -> None:
    rng = np.random.default_rng(3)
    rays, tdist = make_rays(2), jnp.sort(jnp.asarray(rng.uniform(1.0, 2.0, (2, 6))))
    density = jnp.asarray(rng.uniform(0.1, 3.0, 10), jnp.float32)
    features = jnp.asarray(rng.uniform(0.0, 1.0, (10, 3)), jnp.float32)
    scale = jnp.asarray(rng.uniform(0.0, 1.0, (2, 5)), jnp.float32).at[0, 0].set(0.0)

    def render(arrays: tuple[Array, Array], factors: Array | None) -> tuple[Array, Array]:
        fns = RadianceFns(
            density=lambda positions, frusta: (arrays[0], arrays[1]),
            features=lambda latent: latent,
            color=lambda values, directions, camera_index: values,
        )
        rendering, weights = render_samples(
            fns, rays, tdist, jnp.zeros((2, 3)),
            color_per_ray=color_per_ray, gradient_scale=factors,
        )  # fmt: skip
        return jnp.sum(rendering.rgb**2) + jnp.sum(weights**2), rendering.rgb

    arrays = (density, features)
    (plain, rgb), (scaled, same) = render(arrays, None), render(arrays, scale)
    assert plain == scaled
    np.testing.assert_array_equal(rgb, same)
    gradients = jax.grad(lambda a: render(a, None)[0])(arrays)
    reduced = jax.grad(lambda a: render(a, scale)[0])(arrays)
    np.testing.assert_allclose(reduced[0], gradients[0] * scale.ravel(), rtol=1e-6)
    np.testing.assert_allclose(reduced[1], gradients[1] * scale.reshape(-1, 1), rtol=1e-6)
    assert np.abs(gradients[0]).min() > 0.0


def test_gradients_near_cameras_grow_with_the_square_of_the_distance() -> None:
    distances = jnp.array([[0.0, 0.1, 0.25, 0.5, 4.0]])
    np.testing.assert_allclose(
        near_gradient_scale(distances, 0.5), [[0.0, 0.04, 0.25, 1.0, 1.0]], rtol=1e-6
    )

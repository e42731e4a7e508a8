"""Packed rendering against loops, and against dense rendering with a mask."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_rendering import (
    DENSITIES,
    EXTREMES,
    FNS,
    INTERVALS,
    LENGTHS,
    OPAQUE,
    RAYS,
    field_color,
    field_density,
    field_density_along,
    field_features,
    make_background,
    make_edges,
    make_mask,
    make_rays,
    render_all_samples,
    render_densely,
    render_slowly,
)

from jaxrf.core.rays import Rays
from jaxrf.rendering.packed import (
    PackedRendering,
    compute_packed_weights,
    render_packed_samples,
    sample_points,
)
from jaxrf.rendering.volume import RadianceFns, Rendering, compute_weights
from jaxrf.sampling.packed import PackedSamples

render_packed_rays = jax.jit(
    render_packed_samples,
    static_argnames=("fns", "color_per_ray", "color_budget", "color_threshold"),
)


packed_weights_of = jax.jit(compute_packed_weights)


def pack_intervals(
    edges: jax.Array, mask: np.ndarray, num_unused: int
) -> tuple[PackedSamples, np.ndarray]:
    """Packs the masked intervals; returns them and their flat indices."""
    rays, index = np.nonzero(mask)
    starts, stops = np.asarray(edges)[rays, index], np.asarray(edges)[rays, index + 1]
    packed = PackedSamples(
        jnp.asarray(np.pad(starts, (0, num_unused)), jnp.float32),
        jnp.asarray(np.pad(stops, (0, num_unused)), jnp.float32),
        jnp.asarray(np.pad(rays, (0, num_unused), constant_values=len(mask) - 1), jnp.int32),
        jnp.asarray(np.arange(len(rays) + num_unused) < len(rays)),
    )
    return packed, np.flatnonzero(mask)


def packed_case(
    num_unused: int = 5,
) -> tuple[Rays, jax.Array, jax.Array, np.ndarray, PackedSamples]:
    """Rays, interval edges, backgrounds, a mask of intervals, and these intervals packed."""
    rays, mask = make_rays(), np.asarray(make_mask())
    edges = make_edges(rays)
    return rays, edges, make_background(), mask, pack_intervals(edges, mask, num_unused)[0]


@pytest.mark.parametrize("num_unused", [0, 13])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6, np.inf])
def test_packed_weights_equal_those_of_unpacked_rays(num_unused: int, scale: float) -> None:
    edges, mask = make_edges(make_rays()), np.asarray(make_mask())
    density = np.random.default_rng(8).uniform(0.1, 3.0, mask.shape).astype(np.float32) * scale
    packed, flat = pack_intervals(edges, mask, num_unused)
    values = jnp.asarray(np.pad(density.ravel()[flat], (0, num_unused), constant_values=5.0))
    weights, transmittance = compute_packed_weights(values, packed)
    dense, reaching = compute_weights(jnp.asarray(np.where(mask, density, 0.0)), edges)
    used = np.asarray(packed.mask)
    np.testing.assert_allclose(weights[used], np.asarray(dense).ravel()[flat], atol=1e-6)
    np.testing.assert_allclose(transmittance[used], np.asarray(reaching).ravel()[flat], atol=1e-6)
    assert not np.any(np.asarray(weights)[~used])


@settings(max_examples=40)
@given(DENSITIES, LENGTHS, st.integers(0, 8))
def test_packed_weights_and_final_transmittance_sum_to_one_for_each_ray(
    density: np.ndarray, lengths: np.ndarray, first: int
) -> None:
    """Samples before `first` belong to one ray, the others to a second one."""
    edges = np.concatenate([[0.25], 0.25 + np.cumsum(lengths)]).astype(np.float32)
    owner = (np.arange(8) >= first).astype(np.int32)
    used = jnp.ones(8, bool)
    packed = PackedSamples(*(jnp.asarray(x) for x in (edges[:-1], edges[1:], owner)), used)
    weights, transmittance = (
        np.asarray(x) for x in packed_weights_of(jnp.asarray(density), packed)
    )
    assert np.all(weights >= 0) and np.all(weights <= 1)
    for ray in (0, 1):
        selected = owner == ray
        if selected.any():
            last = np.flatnonzero(selected)[-1]
            depth = float(density[last]) * float(edges[last + 1] - edges[last])
            final = float(transmittance[last]) * math.exp(-depth)
            assert float(weights[selected].sum()) + final == pytest.approx(1.0, abs=2e-6)
            assert transmittance[selected][0] == 1.0 and np.all(
                np.diff(transmittance[selected]) <= 0
            )


def test_packed_weights_keep_precision_after_an_opaque_ray() -> None:
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
    # Infinite optical depth has an infinite gradient with respect to the length only.
    for gradient in gradients[:1] if name in ("overflow", "infinitely long") else gradients:
        assert np.all(np.isfinite(gradient))


def test_sample_points_are_midpoints() -> None:
    rays, edges, _, mask, packed = packed_case()
    positions, distances = sample_points(rays, packed)
    ray, index = np.nonzero(mask)
    for place in range(len(ray)):
        middle = (
            float(edges[ray[place], index[place]]) + float(edges[ray[place], index[place] + 1])
        ) / 2
        assert float(distances[place]) == pytest.approx(middle, rel=1e-6)
        expected = np.asarray(rays.origins[ray[place]]) + middle * np.asarray(
            rays.directions[ray[place]]
        )
        np.testing.assert_allclose(positions[place], expected, atol=1e-5)


AMPLE = 1000


@pytest.mark.parametrize("color_per_ray", [False, True])
@pytest.mark.parametrize("color_budget", [None, AMPLE])
@pytest.mark.parametrize("num_unused", [0, 5])
def test_packed_rendering_equals_loops_without_density_outside(
    num_unused: int, color_budget: int | None, color_per_ray: bool
) -> None:
    rays, edges, background, mask, packed = packed_case(num_unused)
    rendering = render_packed_rays(
        FNS, rays, packed, background, color_per_ray=color_per_ray, color_budget=color_budget
    )
    assert int(rendering.num_complete_rays) == RAYS
    slow = render_slowly(rays, edges, background, jnp.asarray(mask), color_per_ray)
    assert_packed_close_to(slow, rendering)
    dense, _ = compute_weights(jnp.asarray(mask) * field_density_along(rays, edges), edges)
    used = np.asarray(packed.mask)
    np.testing.assert_allclose(rendering.weights[used], np.asarray(dense)[mask], atol=1e-5)
    assert rendering.weights.shape == used.shape and not np.any(
        np.asarray(rendering.weights)[~used]
    )
    np.testing.assert_array_equal(rendering.rgb[1], background[1])


@pytest.mark.parametrize("color_per_ray", [False, True])
def test_full_mask_equals_rendering_of_every_interval(color_per_ray: bool) -> None:
    rays, edges, background, _, _ = packed_case()
    packed, _ = pack_intervals(edges, np.ones((RAYS, INTERVALS), bool), 0)
    rendering = render_packed_rays(FNS, rays, packed, background, color_per_ray=color_per_ray)
    dense, weights = render_all_samples(FNS, rays, edges, background, color_per_ray=color_per_ray)
    assert_packed_close_to({"rgb": dense.rgb, "opacity": dense.opacity}, rendering)
    np.testing.assert_allclose(rendering.weights, weights.ravel(), atol=1e-6)


@pytest.mark.parametrize("color_per_ray", [False, True])
@pytest.mark.parametrize("color_budget", [None, 1, AMPLE])
def test_rays_without_samples_render_exactly_the_background(
    color_budget: int | None, color_per_ray: bool
) -> None:
    rays, edges, background, mask, _ = packed_case()
    packed, _ = pack_intervals(edges, np.zeros_like(mask), 9)
    rendering = render_packed_rays(
        FNS, rays, packed, background, color_per_ray=color_per_ray, color_budget=color_budget
    )
    assert int(rendering.num_complete_rays) == RAYS
    np.testing.assert_array_equal(rendering.rgb, background)
    np.testing.assert_array_equal(rendering.opacity, 0.0)


@pytest.mark.parametrize("color_per_ray", [False, True])
def test_samples_of_zero_length_render_the_background_and_need_no_budget(
    color_per_ray: bool,
) -> None:
    rays, _, background, _, packed = packed_case()
    packed = packed._replace(t_ends=packed.t_starts)
    rendering = render_packed_rays(
        OPAQUE, rays, packed, background, color_per_ray=color_per_ray, color_budget=1
    )
    assert int(rendering.num_complete_rays) == RAYS
    np.testing.assert_array_equal(rendering.rgb, background)
    np.testing.assert_array_equal(rendering.weights, 0.0)


@pytest.mark.parametrize("color_per_ray", [False, True])
def test_color_threshold_drops_colors_but_not_opacity(color_per_ray: bool) -> None:
    rays, edges, background, mask, packed = packed_case()
    rendering = render_packed_rays(
        FNS, rays, packed, background,
        color_per_ray=color_per_ray, color_budget=AMPLE, color_threshold=0.1,
    )  # fmt: skip
    assert int(rendering.num_complete_rays) == RAYS
    slow = render_slowly(
        rays, edges, background, jnp.asarray(mask), color_per_ray, color_threshold=0.1
    )
    assert_packed_close_to(slow, rendering)
    unthinned = render_slowly(rays, edges, background, jnp.asarray(mask), color_per_ray)
    assert not np.allclose(slow["rgb"], unthinned["rgb"], atol=1e-2), (
        "the threshold changes nothing"
    )
    # Without a budget the threshold is not used.
    rendering = render_packed_rays(
        FNS, rays, packed, background, color_per_ray=color_per_ray, color_threshold=0.1
    )
    assert_packed_close_to(unthinned, rendering)


def complete_rays_slowly(needs_color: np.ndarray, budget: int) -> int:
    """Number of rays before the first one with a sample beyond the budget."""
    taken = 0
    for ray, row in enumerate(needs_color):
        taken += int(row.sum())
        if taken > budget:
            return ray
    return len(needs_color)


@pytest.mark.parametrize("color_per_ray", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("budget", [1, 5, 9, 17, -1, 0, 1000])
def test_rays_before_the_color_budget_overflows_are_complete(
    budget: int, threshold: float, color_per_ray: bool
) -> None:
    rays, edges, background, mask, packed = packed_case()
    weights, _ = compute_weights(jnp.asarray(mask) * field_density_along(rays, edges), edges)
    needs_color = mask & (np.asarray(weights) > threshold)
    needed = int(needs_color.sum())
    # -1 and 0 are relative: one too few, and exactly enough.
    budget = needed + budget if budget in (-1, 0) else budget
    rendering = render_packed_rays(
        FNS, rays, packed, background,
        color_per_ray=color_per_ray, color_budget=budget, color_threshold=threshold,
    )  # fmt: skip
    num_complete = complete_rays_slowly(needs_color, budget)
    assert int(rendering.num_complete_rays) == num_complete and (num_complete < RAYS) == (
        budget < needed
    )
    slow = render_slowly(
        rays, edges, background, jnp.asarray(mask), color_per_ray, color_threshold=threshold
    )
    assert_packed_close_to({"rgb": slow["rgb"]}, rendering, slice(num_complete))
    # Opacity and weights do not depend on the color budget.
    assert_packed_close_to({"opacity": slow["opacity"]}, rendering)
    np.testing.assert_allclose(
        np.asarray(rendering.weights)[np.asarray(packed.mask)], np.asarray(weights)[mask], atol=1e-5
    )


def assert_packed_close_to(
    expected: dict[str, Any], actual: PackedRendering, selected: Any = slice(None)
) -> None:
    for name in ("rgb", "opacity"):
        if name in expected:
            np.testing.assert_allclose(
                np.asarray(getattr(actual, name))[selected],
                np.asarray(expected[name])[selected],
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


@pytest.mark.parametrize("color_per_ray", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.05])
def test_gradients_of_packed_rendering_equal_those_of_dense_rendering(
    threshold: float | None, color_per_ray: bool
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
        rendering = render_packed_samples(
            fns, rays, packed, background,
            color_per_ray=color_per_ray, color_budget=budget, color_threshold=threshold or 0.0,
        )  # fmt: skip
        return loss(rendering)

    def dense(params: dict[str, jax.Array], rays: Rays) -> jax.Array:
        fns, dense_mask = parametric_fns(params), jnp.asarray(mask)
        return loss(
            render_densely(
                fns, rays, edges, background, dense_mask, color_per_ray, threshold or 0.0
            )
        )

    def gradients(fn: Any) -> Any:
        def of_origins(params: dict[str, jax.Array], origins: jax.Array) -> jax.Array:
            return fn(params, dataclasses.replace(rays, origins=origins))

        return jax.jit(jax.value_and_grad(of_origins, argnums=(0, 1)))(params, rays.origins)

    actual, expected = gradients(sparse), gradients(dense)
    assert all(float(jnp.max(jnp.abs(g))) > 1e-4 for g in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-4, atol=2e-6), actual, expected
    )


@pytest.mark.parametrize("color_per_ray", [False, True])
@pytest.mark.parametrize("color_budget", [None, AMPLE, 3])
def test_gradients_of_packed_rendering_are_finite_at_the_extremes(
    color_budget: int | None, color_per_ray: bool
) -> None:
    rays, edges, background, mask, _ = packed_case()
    edges = edges.at[0].set(1.0)

    def loss(density: jax.Array, packed: PackedSamples) -> jax.Array:
        fns = parametric_fns({"density": density, "features": jnp.ones(4), "color": jnp.ones(3)})
        rendering = render_packed_samples(
            fns, rays, packed, background,
            color_per_ray=color_per_ray, color_budget=color_budget, color_threshold=1e-3,
        )  # fmt: skip
        return jnp.sum(rendering.rgb) + jnp.sum(rendering.opacity) + jnp.sum(rendering.weights)

    gradient = jax.jit(jax.grad(loss))
    num_unused = mask.size - mask.sum()
    cases = [
        pack_intervals(edges, m, s)[0] for m, s in ((mask, num_unused), (mask & False, mask.size))
    ]
    for scale in (0.0, 1.0, 1e10, 1e20, 1e30):
        for packed in cases:
            slope = gradient(jnp.asarray([scale]), packed)
            assert np.all(np.isfinite(slope))
            assert scale != 1.0 or (slope[0] != 0) == bool(packed.mask.any())

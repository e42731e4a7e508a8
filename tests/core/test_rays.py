"""Rays and their intersection with a box, against loops over the box's slabs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrf.core.rays import (
    ConicalFrusta,
    Rays,
    clip_to_aabb,
    intersect_aabb,
    mean_rays,
    multisample_cones,
    normalize_distances,
    points_along,
)

BOX = np.array([[-1.0, -2.0, 0.5], [1.5, 1.0, 3.0]], np.float32)
clip = jax.jit(clip_to_aabb)


def make_rays(origins: np.ndarray, directions: np.ndarray, near: float, far: float) -> Rays:
    batch = origins.shape[:-1]
    return Rays(
        origins=jnp.asarray(origins, jnp.float32),
        directions=jnp.asarray(directions, jnp.float32),
        near=jnp.full(batch, near, jnp.float32),
        far=jnp.full(batch, far, jnp.float32),
        radii=jnp.full(batch, 0.01, jnp.float32),
        camera_index=jnp.zeros(batch, jnp.int32),
    )


def random_rays(batch: tuple[int, ...], seed: int = 0) -> Rays:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(*batch, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return make_rays(rng.uniform(-4, 4, (*batch, 3)), directions, 0.25, 6.0)


def intersect_slowly(
    origin: np.ndarray, direction: np.ndarray, box: np.ndarray
) -> tuple[float, float]:
    """One slab after the other; a line beside a slab that it is parallel to misses."""
    enter, leave = -math.inf, math.inf
    for axis in range(3):
        o, d = float(origin[axis]), float(direction[axis])
        low, high = float(box[0][axis]), float(box[1][axis])
        if d == 0.0:
            if not low <= o <= high:
                return math.inf, -math.inf
            continue
        first, second = sorted(((low - o) / d, (high - o) / d))
        enter, leave = max(enter, first), min(leave, second)
    return enter, leave


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_points_along_equal_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rays = random_rays(batch)
    distances = jnp.asarray(np.random.default_rng(1).uniform(0, 5, (*batch, 6)), jnp.float32)
    points = points_along(rays, distances)
    assert points.shape == (*batch, 6, 3)
    for index in np.ndindex(*batch, 6):
        for axis in range(3):
            expected = float(rays.origins[index[:-1]][axis]) + float(distances[index]) * float(
                rays.directions[index[:-1]][axis]
            )
            assert float(points[index][axis]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch", [(), (300,), (5, 20)])
def test_intersection_equals_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rays = random_rays(batch)
    enter, leave = intersect_aabb(rays.origins, rays.directions, jnp.asarray(BOX))
    assert enter.shape == leave.shape == batch
    for index in np.ndindex(batch):
        expected = intersect_slowly(
            np.asarray(rays.origins[index]), np.asarray(rays.directions[index]), BOX
        )
        np.testing.assert_allclose((enter[index], leave[index]), expected, rtol=1e-4, atol=1e-5)


AXIS_CASES = {
    # origin, direction, whether the line meets the box
    "through the middle along x": ([-5.0, 0.0, 1.0], [1.0, 0.0, 0.0], True),
    "backwards along y": ([0.0, 5.0, 1.0], [0.0, -1.0, 0.0], True),
    "along z with negative zeros": ([0.0, 0.0, -5.0], [-0.0, -0.0, 1.0], True),
    "beside the box along x": ([-5.0, 1.5, 1.0], [1.0, 0.0, 0.0], False),
    "beside the box along z": ([2.0, 0.0, 0.0], [0.0, 0.0, 1.0], False),
    "from inside": ([0.0, 0.0, 1.0], [0.0, 0.0, 1.0], True),
    "in a plane of two axes": ([-2.0, -2.5, 1.0], [math.sqrt(0.5), math.sqrt(0.5), 0.0], True),
    "away from the box": ([-5.0, 0.0, 1.0], [-1.0, 0.0, 0.0], True),
}


@pytest.mark.parametrize("name", AXIS_CASES)
def test_intersection_of_rays_along_axes_equals_loop(name: str) -> None:
    origin, direction, meets = AXIS_CASES[name]
    enter, leave = intersect_aabb(jnp.asarray(origin), jnp.asarray(direction), jnp.asarray(BOX))
    assert bool(leave > enter) == meets
    if meets:
        expected = intersect_slowly(np.asarray(origin), np.asarray(direction), BOX)
        np.testing.assert_allclose((enter, leave), expected, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_origin_on_a_face_enters_or_leaves_at_zero(axis: int, side: int, sign: float) -> None:
    origin = BOX.mean(axis=0)
    origin[axis] = BOX[side][axis]
    direction = np.zeros(3, np.float32)
    direction[axis] = sign
    enter, leave = intersect_aabb(jnp.asarray(origin), jnp.asarray(direction), jnp.asarray(BOX))
    size = float(BOX[1][axis] - BOX[0][axis])
    inwards = (sign > 0) == (side == 0)
    expected = (0.0, size) if inwards else (-size, 0.0)
    np.testing.assert_allclose((enter, leave), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, 1])
def test_ray_within_a_face_is_inside_or_outside_but_never_nan(axis: int, side: int) -> None:
    along = (axis + 1) % 3
    origin = BOX.mean(axis=0)
    origin[axis] = BOX[side][axis]
    origin[along] = BOX[0][along] - 1.0
    direction = np.zeros(3, np.float32)
    direction[along] = 1.0
    rays = clip(make_rays(origin, direction, 0.0, 100.0), jnp.asarray(BOX))
    length = float(rays.far - rays.near)
    assert np.isfinite(length)
    assert length == 0.0 or length == pytest.approx(float(BOX[1][along] - BOX[0][along]))


@settings(max_examples=60)
@given(
    hnp.arrays(np.float32, 3, elements=st.floats(-5, 5, width=32)),
    hnp.arrays(np.float32, 3, elements=st.floats(-1, 1, width=32)),
)
def test_clip_to_aabb_range_equals_the_part_in_the_box(
    origin: np.ndarray, direction: np.ndarray
) -> None:
    length = np.linalg.norm(direction.astype(np.float64))
    if length < 1e-3:
        return
    unit = direction / length
    # Within a rounding error of a face, a line parallel to it is neither in nor out.
    if np.any((np.abs(origin - BOX) < 1e-3) & (np.abs(unit) < 1e-3)):
        return
    rays = make_rays(origin, unit, 0.25, 6.0)
    clipped = clip(rays, jnp.asarray(BOX))
    near, far = float(clipped.near), float(clipped.far)
    assert 0.25 <= near <= far <= 6.0 + 1e-6
    for t in np.linspace(0.25, 6.0, 47):
        point = origin.astype(np.float64) + t * np.asarray(rays.directions, np.float64)
        margin = np.min(np.minimum(point - BOX[0], BOX[1] - point))
        if margin > 1e-4:
            assert near - 1e-4 <= t <= far + 1e-4
        elif margin < -1e-4:
            assert not near + 1e-4 < t < far - 1e-4


@pytest.mark.parametrize("batch", [(), (200,), (4, 5)])
def test_clip_to_aabb_equals_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rays = random_rays(batch, seed=7)
    clipped = clip(rays, jnp.asarray(BOX))
    assert clipped.near.shape == clipped.far.shape == batch
    hits = 0
    for index in np.ndindex(batch):
        enter, leave = intersect_slowly(
            np.asarray(rays.origins[index]), np.asarray(rays.directions[index]), BOX
        )
        near, far = max(0.25, enter), min(6.0, leave)
        if far > near:
            hits += 1
            np.testing.assert_allclose(
                (clipped.near[index], clipped.far[index]), (near, far), rtol=1e-4
            )
        else:
            assert float(clipped.far[index]) == float(clipped.near[index]) == 0.25
    assert batch != (200,) or 20 < hits < 180, "both kinds of rays are to be tested"
    np.testing.assert_array_equal(clipped.origins, rays.origins)
    np.testing.assert_array_equal(clipped.directions, rays.directions)
    np.testing.assert_array_equal(clipped.radii, rays.radii)


def test_clip_to_aabb_of_a_box_behind_the_origin_is_empty() -> None:
    rays = make_rays(np.array([0.0, 0.0, 5.0]), np.array([0.0, 0.0, 1.0]), 0.0, 10.0)
    clipped = clip(rays, jnp.asarray(BOX))
    assert float(clipped.near) == float(clipped.far) == 0.0


def test_clip_to_aabb_of_a_box_without_volume_is_empty() -> None:
    flat = BOX.copy()
    flat[1, 2] = flat[0, 2]
    rays = make_rays(np.array([0.0, 0.0, 5.0]), np.array([0.0, 0.0, -1.0]), 0.0, 10.0)
    clipped = clip(rays, jnp.asarray(flat))
    assert float(clipped.near) == float(clipped.far)


def test_clip_to_aabb_gradients_are_finite_along_axes_and_for_misses() -> None:
    origins = np.array([case[0] for case in AXIS_CASES.values()])
    directions = np.array([case[1] for case in AXIS_CASES.values()])
    rays = make_rays(origins, directions, 0.0, 10.0)

    def total(origins: jax.Array, directions: jax.Array) -> jax.Array:
        moved = dataclasses.replace(rays, origins=origins, directions=directions)
        clipped = clip_to_aabb(moved, jnp.asarray(BOX))
        return jnp.sum(clipped.far) + jnp.sum(clipped.near)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(rays.origins, rays.directions)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_rays_are_a_pytree_that_jit_and_vmap_accept() -> None:
    rays = random_rays((3, 4))
    assert len(jax.tree.leaves(rays)) == 6
    through_jit = jax.jit(lambda r: r)(rays)
    assert isinstance(through_jit, Rays)
    np.testing.assert_array_equal(through_jit.origins, rays.origins)
    distances = jnp.ones((3, 4, 2))
    by_vmap = jax.vmap(jax.vmap(points_along))(rays, distances)
    np.testing.assert_allclose(by_vmap, points_along(rays, distances), atol=1e-6)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_normalized_distances_equal_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    near = rng.uniform(0, 2, batch).astype(np.float32)
    far = (near + rng.uniform(0.5, 3, batch)).astype(np.float32)
    rays = dataclasses.replace(random_rays(batch), near=jnp.asarray(near), far=jnp.asarray(far))
    distances = rng.uniform(-1, 6, (*batch, 5)).astype(np.float32)
    normalized = jax.jit(normalize_distances)(rays, jnp.asarray(distances))
    assert normalized.shape == (*batch, 5)
    for index in np.ndindex(*batch, 5):
        start, end = float(near[index[:-1]]), float(far[index[:-1]])
        expected = (float(distances[index]) - start) / (end - start)
        assert float(normalized[index]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@settings(max_examples=40)
@given(
    st.floats(0, 100, width=32),
    st.floats(0, 1000, width=32, allow_subnormal=False),
    st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5),
)
def test_normalized_distances_keep_their_order_and_go_from_0_to_1(
    near: float, length: float, shares: list[float]
) -> None:
    near32 = np.float32(near)
    far32 = near32 + np.float32(length)
    inner = np.clip(
        near32 + np.sort(np.array(shares, np.float32)) * (far32 - near32), near32, far32
    )
    rays = make_rays(np.zeros(3), np.array([0.0, 0.0, 1.0]), float(near32), float(far32))
    distances = jnp.asarray(np.concatenate([[near32], inner, [far32]]), jnp.float32)
    normalized = np.asarray(normalize_distances(rays, distances))
    assert normalized[0] == 0.0
    assert normalized[-1] == pytest.approx(1.0 if far32 > near32 else 0.0, rel=1e-6)
    assert np.all(np.diff(normalized) >= 0)


def test_normalized_distances_of_empty_rays_are_0_with_finite_gradients() -> None:
    rays = make_rays(np.zeros((2, 3)), np.ones((2, 3)), 2.0, 2.0)
    rays = dataclasses.replace(rays, far=jnp.asarray([2.0, 4.0]))
    distances = jnp.asarray([[2.0, 2.0, 1e30], [2.0, 3.0, 4.0]])

    def total(near: jax.Array, far: jax.Array, distances: jax.Array) -> jax.Array:
        moved = dataclasses.replace(rays, near=near, far=far)
        return jnp.sum(normalize_distances(moved, distances))

    np.testing.assert_allclose(normalize_distances(rays, distances), [[0, 0, 0], [0, 0.5, 1]])
    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(rays.near, rays.far, distances)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    np.testing.assert_allclose(gradients[2], [[0.0] * 3, [0.5] * 3])


def test_create_broadcasts_and_normalizes() -> None:
    origins = np.array([[0.0, 0, 4], [1, 0, 4], [2, 0, 4]])
    rays = Rays.create(origins, [0.0, 0.0, -2.0], near=2.0, far=[5.0, 6.0, 7.0], radii=1e-3)
    np.testing.assert_array_equal(rays.origins, origins)
    np.testing.assert_array_equal(rays.directions, np.tile([0.0, 0.0, -1.0], (3, 1)))
    np.testing.assert_array_equal(rays.near, [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(rays.far, [5.0, 6.0, 7.0])
    np.testing.assert_allclose(rays.radii, [1e-3] * 3)
    np.testing.assert_array_equal(rays.camera_index, [0, 0, 0])
    assert Rays.create(np.zeros((2, 3, 3)), np.ones((3, 3)), 0.0, 1.0).near.shape == (2, 3)


# Multisamples of cones.


def random_frusta(count: int, seed: int = 0) -> tuple[jax.Array, ConicalFrusta]:
    """Sections of random cones, and the positions halfway between their ends."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions[0], directions[1] = (0.0, 0.0, -1.0), (0.0, 0.0, 1.0)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    starts = rng.uniform(0.1, 3.0, count)
    ends = starts + rng.uniform(0.0, 2.0, count)
    positions = rng.normal(size=(count, 3)) + 0.5 * (starts + ends)[:, None] * directions
    arrays = (directions, rng.uniform(0.001, 0.1, count), starts, ends)
    frusta = ConicalFrusta(*(jnp.asarray(x, jnp.float32) for x in arrays))
    return jnp.asarray(positions, jnp.float32), frusta


def test_multisamples_are_at_the_distances_and_radii_of_the_paper() -> None:
    positions, frusta = random_frusta(7)
    points = jax.jit(multisample_cones, static_argnums=2)(positions, frusta, 6)
    for i in range(7):
        t0, t1 = float(frusta.starts[i]), float(frusta.ends[i])
        half, middle = (t1 - t0) / 2, (t0 + t1) / 2
        direction = np.asarray(frusta.directions[i], np.float64)
        origin = np.asarray(positions[i]) - middle * direction
        for j in range(6):
            root = math.sqrt((half**2 - middle**2) ** 2 + 4 * middle**4)
            factor = t1**2 + 2 * middle**2 + 3 / math.sqrt(7) * (2 * j / 5 - 1) * root
            distance = t0 + half * factor / (half**2 + 3 * middle**2)
            offset = np.asarray(points.positions[i, j]) - origin
            radius = float(frusta.base_radii[i]) * distance / math.sqrt(2)
            assert offset @ direction == pytest.approx(distance, abs=1e-5)
            across = offset - (offset @ direction) * direction
            assert np.linalg.norm(across) == pytest.approx(radius, abs=1e-5)
            assert points.stds[i, j] == pytest.approx(0.5 * radius, rel=1e-4)


@pytest.mark.parametrize("count", [3, 6, 12])
def test_multisamples_have_mean_and_variance_of_the_cones(count: int) -> None:
    positions, frusta = random_frusta(20)
    points = np.asarray(multisample_cones(positions, frusta, count).positions, np.float64)
    start, end = np.asarray(frusta.starts), np.asarray(frusta.ends)
    half, middle = (end - start) / 2, (start + end) / 2
    direction = np.asarray(frusta.directions, np.float64)
    along = np.einsum("mkc,mc->mk", points - np.asarray(positions)[:, None], direction)
    along += middle[:, None]
    # Mip-NeRF, eq. 7: the moments of a conical frustum.
    total = 3 * middle**2 + half**2
    mean = middle + 2 * middle * half**2 / total
    variance = half**2 / 3 - 4 / 15 * half**4 * (12 * middle**2 - half**2) / total**2
    np.testing.assert_allclose(along.mean(axis=1), mean, rtol=1e-5)
    np.testing.assert_allclose(along.var(axis=1), variance, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("count", [3, 6, 12])
def test_multisamples_of_thin_sections_are_centered_on_the_axis(count: int) -> None:
    positions, frusta = random_frusta(20)
    frusta = frusta._replace(ends=frusta.starts)
    positions = frusta.starts[:, None] * frusta.directions
    points = np.asarray(multisample_cones(positions, frusta, count).positions)
    np.testing.assert_allclose(points.mean(axis=1), positions, atol=1e-5)


def test_multisamples_are_finite_at_the_apex_with_finite_gradients() -> None:
    positions, frusta = random_frusta(4)
    frusta = frusta._replace(starts=jnp.zeros(4), ends=jnp.array([0.0, 0.0, 1e-10, 1e20]))

    def total(frusta: ConicalFrusta) -> jax.Array:
        points = multisample_cones(positions, frusta, 6)
        return jnp.sum(points.positions) + jnp.sum(points.stds)

    assert np.isfinite(total(frusta))
    for gradient in jax.grad(total)(frusta):
        assert np.all(np.isfinite(gradient))


def test_mean_rays_span_the_rays_of_their_group() -> None:
    rays = random_rays((6,))
    rays = dataclasses.replace(rays, near=jnp.arange(6.0), far=10.0 - jnp.arange(6.0))
    means = mean_rays(rays, 3)
    for group, part in enumerate((slice(0, 3), slice(3, 6))):
        np.testing.assert_allclose(means.origins[group], np.mean(rays.origins[part], axis=0), 1e-6)
        direction = np.mean(rays.directions[part], axis=0)
        np.testing.assert_allclose(
            means.directions[group], direction / np.linalg.norm(direction), rtol=1e-5
        )
    assert means.near.tolist() == [0.0, 3.0]
    assert means.far.tolist() == [10.0, 7.0]
    assert mean_rays(rays, 1) is rays

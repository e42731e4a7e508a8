"""TensoRF against sums over all grid points, and what resampling keeps."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core import encodings
from jaxrf.fields.base import FieldContext
from jaxrf.fields.tensor_factors import (
    fit_resolution,
    l1_norm,
    ortho_loss,
    resample,
    total_variation,
)
from jaxrf.fields.tensorf import TensoRF

# Nothing is cubic, so that no two axes can be exchanged unnoticed.
BOX = np.array([[-1.0, -2.0, 0.5], [1.5, 1.0, 1.7]], np.float32)
FIELD = TensoRF(
    resolution=(4, 6, 5),
    density_components=2,
    feature_components=3,
    feature_dim=5,
    width=8,
    layers=2,
    density_shift=-1.0,
    init_scale=0.5,
)


def context_of(positions: jax.Array, aabb: Any = BOX) -> FieldContext:
    """Rays without width in a box."""
    return FieldContext(jnp.zeros_like(positions[:, 0]), jnp.asarray(aabb, positions.dtype))


def random_params(field: TensoRF, seed: int = 0) -> Any:
    """Random parameters out of numpy, of the shapes of fresh ones."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes)


PARAMS = random_params(FIELD)
_look_up = jax.jit(
    lambda field, params, positions, aabb: field.density(
        params, positions, context_of(positions, aabb)
    ),
    static_argnums=0,
)
features_of = jax.jit(
    lambda field, params, latent: field.features(params, latent), static_argnums=0
)
color_of = jax.jit(
    lambda field, params, features, directions: field.color(params, features, directions),
    static_argnums=0,
)
_resample = jax.jit(resample, static_argnums=1)


def look_up(
    field: TensoRF, params: Any, positions: jax.Array, aabb: np.ndarray = BOX
) -> tuple[jax.Array, jax.Array]:
    """Density and latent."""
    return _look_up(field, params, positions, jnp.asarray(aabb))


def density_of(
    field: TensoRF, params: Any, positions: jax.Array, aabb: np.ndarray = BOX
) -> jax.Array:
    return look_up(field, params, positions, aabb)[0]


def resample_to(
    params: Any, resolution: tuple[int, int, int], aabb: np.ndarray = BOX, old: np.ndarray = BOX
) -> Any:
    return _resample(params, resolution, jnp.asarray(old), jnp.asarray(aabb))


def random_positions(count: int, seed: int = 0) -> np.ndarray:
    low, high = BOX
    unit = np.random.default_rng(seed).uniform(0, 1, (count, 3))
    return (low + unit * (high - low)).astype(np.float32)


def hat(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def products_slowly(field: TensoRF, factors: Any, position: np.ndarray) -> list[float]:
    """The 3 c products of plane and line at a position: each grid point by its distance.

    Planes are (y, x), (z, x), (z, y) and their lines z, y, x.
    """
    sizes, (low, high) = field.resolution, BOX.astype(np.float64)
    at = [(float(position[a]) - low[a]) / (high[a] - low[a]) * (sizes[a] - 1) for a in range(3)]
    x, y, z = at
    out = []
    for (down, across, along), plane, line in zip(
        (((y, 1), (x, 0), (z, 2)), ((z, 2), (x, 0), (y, 1)), ((z, 2), (y, 1), (x, 0))),
        factors["planes"],
        factors["lines"],
        strict=True,
    ):
        plane, line = np.asarray(plane, np.float64), np.asarray(line, np.float64)
        assert plane.shape[:2] == (sizes[down[1]], sizes[across[1]])
        assert line.shape[0] == sizes[along[1]]
        for component in range(plane.shape[2]):
            on_plane = on_line = 0.0
            for row in range(plane.shape[0]):
                for column in range(plane.shape[1]):
                    share = hat(down[0] - row) * hat(across[0] - column)
                    on_plane += share * plane[row, column, component]
            for row in range(line.shape[0]):
                on_line += hat(along[0] - row) * line[row, component]
            out.append(on_plane * on_line)
    return out


def density_slowly(field: TensoRF, params: Any, position: np.ndarray) -> float:
    low, high = BOX
    if not all(low[a] <= position[a] <= high[a] for a in range(3)):
        return 0.0
    raw = sum(products_slowly(field, params["density"], position)) + field.density_shift
    return field.density_scale * math.log1p(math.exp(raw))


def test_density_equals_sums_over_all_grid_points() -> None:
    positions = random_positions(40)
    density = density_of(FIELD, PARAMS, jnp.asarray(positions))
    for value, position in zip(density, positions, strict=True):
        assert float(value) == pytest.approx(density_slowly(FIELD, PARAMS, position), rel=1e-4)


def test_density_in_float64_equals_the_sums_closely() -> None:
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), PARAMS)
        positions = random_positions(10).astype(np.float64)
        context = context_of(jnp.asarray(positions))
        density, _ = FIELD.density(params, jnp.asarray(positions), context)
        assert density.dtype == jnp.float64
        for value, position in zip(density, positions, strict=True):
            truth = density_slowly(FIELD, PARAMS, position)
            assert float(value) == pytest.approx(truth, rel=1e-12)


def test_features_equal_sums_over_all_grid_points() -> None:
    positions = random_positions(20)
    _, latent = look_up(FIELD, PARAMS, jnp.asarray(positions))
    features = features_of(FIELD, PARAMS, latent)
    assert features.shape == (20, 5)
    for value, position in zip(features, positions, strict=True):
        products = products_slowly(FIELD, PARAMS["features"], position)
        expected = np.zeros(5)
        for i, product in enumerate(products):
            expected += product * np.asarray(PARAMS["basis"][i], np.float64)
        np.testing.assert_allclose(value, expected, atol=1e-5)


def encode_slowly(x: np.ndarray, octaves: int) -> list[float]:
    out = [float(v) for v in x]
    for octave in range(octaves):
        out += [math.sin(2**octave * float(v)) for v in x]
        out += [math.cos(2**octave * float(v)) for v in x]
    return out


def test_color_equals_a_network_in_numpy() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(6, 5)).astype(np.float32)
    directions = rng.normal(size=(6, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    color = color_of(FIELD, PARAMS, jnp.asarray(features), jnp.asarray(directions))
    layers = PARAMS["mlp"]["params"]
    assert set(layers) == {"Dense_0", "Dense_1", "Dense_2"}
    for i in range(6):
        x = np.array(encode_slowly(features[i], 2) + encode_slowly(directions[i], 2))
        for name in ("Dense_0", "Dense_1", "Dense_2"):
            x = x @ np.asarray(layers[name]["kernel"], np.float64) + np.asarray(
                layers[name]["bias"], np.float64
            )
            x = np.maximum(x, 0.0) if name != "Dense_2" else 1.0 / (1.0 + np.exp(-x))
        np.testing.assert_allclose(color[i], x, atol=1e-5)


def test_density_is_zero_outside_the_box_but_not_on_its_faces() -> None:
    low, high = BOX
    middle = (low + high) / 2
    outside, faces = [], []
    for axis in range(3):
        for corner, sign in ((low, -1.0), (high, 1.0)):
            face = middle.copy()
            face[axis] = corner[axis]
            faces.append(face.copy())
            for distance in (1e-3, 1.0, 1e6):
                face[axis] = corner[axis] + sign * distance
                outside.append(face.copy())
    outside.append(np.full(3, np.inf, np.float32))
    inner = [face + 1e-4 * (middle - face) for face in faces]
    outside_density = density_of(FIELD, PARAMS, jnp.asarray(np.stack(outside)))
    np.testing.assert_array_equal(outside_density, 0.0)
    assert np.all(np.asarray(density_of(FIELD, PARAMS, jnp.asarray(np.stack(inner)))) > 0)
    unit_box = np.array([[0.0] * 3, [1.0] * 3], np.float32)
    at_corners = density_of(FIELD, PARAMS, jnp.asarray(unit_box), unit_box)
    assert np.all(np.asarray(at_corners) > 0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e10])
def test_density_is_not_negative_and_colors_are_in_zero_to_one(scale: float) -> None:
    params = jax.tree.map(lambda x: x * scale, PARAMS)
    positions = jnp.asarray(random_positions(50))
    density, latent = look_up(FIELD, params, positions)
    assert np.all(np.asarray(density) >= 0) and np.all(np.isfinite(density))
    features = features_of(FIELD, params, latent)
    color = np.asarray(color_of(FIELD, PARAMS, features, positions))
    assert scale == 1e10 or (np.all(color >= 0) and np.all(color <= 1))


def test_gradients_are_finite_inside_on_the_faces_and_outside() -> None:
    positions = jnp.asarray([*BOX, (9.0, 9.0, 9.0), (0.0, 0.0, 1.0)])

    def total(params: Any, positions: jax.Array) -> jax.Array:
        density, latent = FIELD.density(params, positions, context_of(positions))
        color = FIELD.color(params, FIELD.features(params, latent), positions)
        return jnp.sum(density) + jnp.sum(color)

    for params in (PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)):
        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(params, positions)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_density_outside_the_box_has_no_gradient() -> None:
    outside = jnp.full((1, 3), 50.0)
    gradients = jax.grad(lambda p: jnp.sum(FIELD.density(p, outside, context_of(outside))[0]))(
        PARAMS
    )
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(leaf, 0.0)


def test_init_has_the_documented_shapes_and_scale() -> None:
    # This kind of key compiles much faster.
    params = jax.jit(FIELD.init)(jax.random.key(1, impl="rbg"))
    for factors, components in ((params["density"], 2), (params["features"], 3)):
        assert [p.shape for p in factors["planes"]] == [
            (6, 4, components),
            (5, 4, components),
            (5, 6, components),
        ]
        assert [line.shape for line in factors["lines"]] == [
            (5, components),
            (6, components),
            (4, components),
        ]
        entries = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(factors)])
        assert np.std(entries) == pytest.approx(FIELD.init_scale, rel=0.2)
        assert len(np.unique(entries)) == entries.size
    assert params["basis"].shape == (9, 5)
    assert np.all(np.abs(params["basis"]) <= 1 / 3)


# Resampling.


def linear_params() -> Any:
    """Parameters whose planes and lines are linear in the position."""
    rng = np.random.default_rng(2)

    def ramp(shape: tuple[int, ...]) -> jax.Array:
        axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape[:-1]), indexing="ij")
        slopes = rng.normal(size=(len(axes) + 1, shape[-1]))
        values = slopes[-1] + sum(a[..., None] * s for a, s in zip(axes, slopes[:-1], strict=True))
        return jnp.asarray(values, jnp.float32)

    factors = {
        name: jax.tree.map(lambda x: ramp(x.shape), PARAMS[name])
        for name in ("density", "features")
    }
    return {**PARAMS, **factors}


SHRUNK = np.array([[-0.6, -1.1, 0.7], [1.2, 0.8, 1.5]], np.float32)


@pytest.mark.parametrize("aabb", [BOX, SHRUNK], ids=["same box", "shrunk"])
@pytest.mark.parametrize("resolution", [(4, 6, 5), (7, 9, 8), (3, 2, 4)])
def test_resample_preserves_linear_factors_where_the_boxes_overlap(
    resolution: tuple[int, int, int], aabb: Any
) -> None:
    new = dataclasses.replace(FIELD, resolution=resolution)
    old_params = linear_params()
    new_params = resample_to(old_params, resolution, aabb)
    low, high = aabb
    positions = low + np.random.default_rng(3).uniform(0.001, 0.999, (50, 3)) * (high - low)
    positions = jnp.asarray(positions, jnp.float32)
    old_density, old_latent = look_up(FIELD, old_params, positions)
    new_density, new_latent = look_up(new, new_params, positions, aabb)
    np.testing.assert_allclose(new_density, old_density, rtol=1e-4)
    np.testing.assert_allclose(
        features_of(new, new_params, new_latent),
        features_of(FIELD, old_params, old_latent),
        atol=1e-4,
    )
    assert [p.shape[:2] for p in new_params["density"]["planes"]] == [
        (resolution[1], resolution[0]),
        (resolution[2], resolution[0]),
        (resolution[2], resolution[1]),
    ]


def test_resample_to_the_same_grid_is_the_identity() -> None:
    same = resample_to(PARAMS, FIELD.resolution)
    assert jax.tree.structure(same) == jax.tree.structure(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), same, PARAMS)


def test_resample_to_twice_the_resolution_preserves_old_grid_points() -> None:
    finer = resample_to(PARAMS, (7, 11, 9))
    for old_plane, plane in zip(
        PARAMS["density"]["planes"], finer["density"]["planes"], strict=True
    ):
        np.testing.assert_allclose(plane[::2, ::2], old_plane, atol=1e-5)
    for old_line, line in zip(PARAMS["features"]["lines"], finer["features"]["lines"], strict=True):
        np.testing.assert_allclose(line[::2], old_line, atol=1e-5)


def test_resample_to_a_box_of_grid_points_crops_exactly() -> None:
    # The box of the points 1..3 of 4, 1..4 of 6 and 0..3 of 5.
    low, high = BOX.astype(np.float64)
    first, last, counts = np.array([1, 1, 0]), np.array([3, 4, 3]), np.array([4, 6, 5])
    corners = [low + index / (counts - 1) * (high - low) for index in (first, last)]
    x, y, z = (int(n) for n in last - first + 1)
    cropped = resample_to(PARAMS, (x, y, z), np.asarray(corners, np.float32))
    slices = [slice(f, t + 1) for f, t in zip(first, last, strict=True)]
    planes, lines = cropped["density"]["planes"], cropped["density"]["lines"]
    for plane, old_plane, (down, across) in zip(
        planes, PARAMS["density"]["planes"], ((1, 0), (2, 0), (2, 1)), strict=True
    ):
        np.testing.assert_allclose(plane, old_plane[slices[down], slices[across]], atol=1e-5)
    for line, old_line, axis in zip(lines, PARAMS["density"]["lines"], (2, 1, 0), strict=True):
        np.testing.assert_allclose(line, old_line[slices[axis]], atol=1e-5)


def test_resample_does_not_change_the_networks() -> None:
    resampled = resample_to(PARAMS, (8, 8, 8), SHRUNK)
    for name in ("basis", "mlp"):
        jax.tree.map(np.testing.assert_array_equal, resampled[name], PARAMS[name])


# Resolution and regularization.


@pytest.mark.parametrize("n", [2, 3, 16, 64, 100, 128, 200, 300])
def test_fit_resolution_of_n_cubed_voxels_in_a_cube_is_n(n: int) -> None:
    for size in (0.1, 1.0, 2.6, 3.0, 1e3):
        box = np.array([[-size] * 3, [size] * 3], np.float32)
        assert fit_resolution(n**3, box) == (n, n, n)


def test_fit_resolution_is_in_proportion_to_the_box() -> None:
    for size, count, resolution in (
        ((1.0, 2.0, 3.0), 6 * 10**3, (10, 20, 30)),
        ((1.0, 1.0, 1e-6), 8, (200, 200, 2)),
    ):
        box = np.array([(0.0, 0.0, 0.0), size], np.float32)
        assert fit_resolution(count, box) == resolution


def test_l1_norm_equals_loop() -> None:
    total = 0.0
    for kind in ("planes", "lines"):
        for table in PARAMS["density"][kind]:
            values = np.asarray(table, np.float64).ravel().tolist()
            total += sum(abs(v) for v in values) / len(values)
    assert float(l1_norm(PARAMS)) == pytest.approx(total, rel=1e-5)
    gradients = jax.grad(l1_norm)(jax.tree.map(jnp.zeros_like, PARAMS))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_total_variation_equals_loop() -> None:
    total = 0.0
    for table in PARAMS["features"]["planes"]:
        plane = np.asarray(table, np.float64)
        height, width, channels = plane.shape
        down, across = [], []
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    if i + 1 < height:
                        down.append((plane[i + 1, j, c] - plane[i, j, c]) ** 2)
                    if j + 1 < width:
                        across.append((plane[i, j + 1, c] - plane[i, j, c]) ** 2)
        total += sum(down) / len(down) + sum(across) / len(across)
    assert float(total_variation(PARAMS["features"])) == pytest.approx(total, rel=1e-5)


def test_total_variation_of_constant_planes_is_zero() -> None:
    constant = jax.tree.map(lambda x: jnp.full_like(x, 3.0), PARAMS["density"])
    assert float(total_variation(constant)) == 0.0


# CP factors and spherical harmonics.

CP = dataclasses.replace(FIELD, factors="cp", color_head="harmonics", feature_dim=12)
CP_PARAMS = random_params(CP, 5)


def line_products_slowly(field: TensoRF, factors: Any, position: np.ndarray) -> np.ndarray:
    """The c products of three lines at a position; lines are of z, y and x."""
    (low, high), products = BOX.astype(np.float64), np.ones(factors["lines"][0].shape[1])
    for line, axis in zip(factors["lines"], (2, 1, 0), strict=True):
        size = field.resolution[axis]
        assert line.shape[0] == size
        at = (float(position[axis]) - low[axis]) / (high[axis] - low[axis]) * (size - 1)
        products *= sum(hat(at - i) * np.asarray(line[i], np.float64) for i in range(size))
    return products


def test_init_of_cp_with_harmonics_has_no_planes_and_no_network() -> None:
    params = jax.jit(CP.init)(jax.random.key(1, impl="rbg"))
    assert set(params) == {"density", "features", "basis"}
    for factors, components in ((params["density"], 2), (params["features"], 3)):
        assert factors["planes"] == ()
        shapes = [(5, components), (6, components), (4, components)]
        assert [line.shape for line in factors["lines"]] == shapes
    assert params["basis"].shape == (3, 12) and np.all(np.abs(params["basis"]) <= 3**-0.5)
    lines = [np.asarray(line, np.float64) for line in params["density"]["lines"]]
    varies = sum(np.mean(np.diff(line, axis=0) ** 2) for line in lines)
    assert float(total_variation(params["density"])) == pytest.approx(varies, rel=1e-5)
    expected = sum(np.mean(np.abs(line)) for line in lines)
    assert float(l1_norm(params)) == pytest.approx(expected, rel=1e-5)


def test_cp_density_and_features_equal_sums_over_all_grid_points() -> None:
    positions = random_positions(20)
    positions[:2] = 0.999 * BOX + 0.001 * BOX.mean(axis=0)
    density, latent = look_up(CP, CP_PARAMS, jnp.asarray(positions))
    features = features_of(CP, CP_PARAMS, latent)
    assert features.shape == (20, 12)
    for value, feature, position in zip(density, features, positions, strict=True):
        raw = np.sum(line_products_slowly(CP, CP_PARAMS["density"], position)) - 1.0
        assert float(value) == pytest.approx(25.0 * math.log1p(math.exp(raw)), rel=1e-4)
        products = line_products_slowly(CP, CP_PARAMS["features"], position)
        expected = products @ np.asarray(CP_PARAMS["basis"], np.float64)
        np.testing.assert_allclose(feature, expected, atol=1e-5)
    outside = density_of(CP, CP_PARAMS, jnp.asarray(2.0 * BOX))
    np.testing.assert_array_equal(outside, 0.0)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_harmonics_color_is_the_sigmoid_of_their_sum(bands: int) -> None:
    field = dataclasses.replace(CP, feature_dim=3 * bands**2)
    rng = np.random.default_rng(bands)
    features = rng.normal(size=(7, field.feature_dim)).astype(np.float32)
    directions = rng.normal(size=(7, 3))
    directions[:3] = np.eye(3)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    color = field.color({}, jnp.asarray(features), jnp.asarray(directions, jnp.float32))
    basis = np.asarray(encodings.spherical_harmonics(jnp.asarray(directions, jnp.float32), bands))
    for i in range(7):
        for channel in range(3):
            coefficients = features[i, channel * bands**2 : (channel + 1) * bands**2]
            raw = sum(float(a) * float(b) for a, b in zip(coefficients, basis[i], strict=True))
            expected = 1.0 / (1.0 + math.exp(-raw))
            assert float(color[i, channel]) == pytest.approx(expected, abs=1e-5)
    if bands == 1:
        turned = field.color({}, jnp.asarray(features), -jnp.asarray(directions, jnp.float32))
        np.testing.assert_array_equal(turned, color)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e8])
def test_cp_gradients_are_finite(scale: float) -> None:
    positions = jnp.asarray([*BOX, (9.0, 9.0, 9.0), (0.0, 0.0, 1.0)])
    up = jnp.asarray([[0.0, 0.0, 1.0]] * 4)

    def total(params: Any, positions: jax.Array) -> jax.Array:
        density, latent = CP.density(params, positions, context_of(positions))
        return jnp.sum(density) + jnp.sum(CP.color(params, CP.features(params, latent), up))

    params = jax.tree.map(lambda x: x * scale, CP_PARAMS)
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(params, positions)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_resample_of_cp_preserves_common_grid_points() -> None:
    finer = resample_to(CP_PARAMS, (7, 11, 9))
    assert jax.tree.structure(finer) == jax.tree.structure(CP_PARAMS)
    for name in ("density", "features"):
        for old, new in zip(CP_PARAMS[name]["lines"], finer[name]["lines"], strict=True):
            np.testing.assert_allclose(new[::2], old, atol=1e-5)
    np.testing.assert_array_equal(finer["basis"], CP_PARAMS["basis"])


@pytest.mark.parametrize("params", [PARAMS, CP_PARAMS], ids=["vm", "cp"])
def test_ortho_loss_equals_loop(params: Any) -> None:
    total = 0.0
    for factors in (params["density"], params["features"]):
        for line in factors["lines"]:
            columns, products = np.asarray(line, np.float64).T, []
            for i, a in enumerate(columns):
                for j, b in enumerate(columns):
                    if i != j:
                        products.append(abs(sum(x * y for x, y in zip(a, b, strict=True))))
            total += sum(products) / len(products)
    assert float(ortho_loss(params)) == pytest.approx(total, rel=1e-5)


def test_ortho_loss_of_orthogonal_single_and_zero_components_is_zero() -> None:
    def with_lines(line: np.ndarray) -> Any:
        factors = {"planes": (), "lines": (jnp.asarray(line, jnp.float32),) * 3}
        return {"density": factors, "features": factors}

    crossed = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [2.0, -1.0, 0.0]])
    for line in (crossed, np.ones((5, 1)), np.zeros((4, 3))):
        params = with_lines(line)
        assert float(ortho_loss(params)) == 0.0
        gradients = jax.grad(ortho_loss)(params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert float(ortho_loss(with_lines(np.ones((5, 2))))) == 6 * 5.0

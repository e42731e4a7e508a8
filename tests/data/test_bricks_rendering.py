"""The built-in scene's geometry, ray casting and rendering, against brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
from jaxtyping import Bool, Float

from jaxrf.data.bricks import rendering
from jaxrf.data.bricks.dataset import sequence_pose
from jaxrf.data.bricks.model import Model, build_model
from jaxrf.data.bricks.ray_casting import cast_rays, contains
from jaxrf.data.bricks.rendering import render_view

CAMERA_ANGLE_X = 0.6911112070083618
SMALL = {"width": 20, "height": 16, "train_views": 3, "val_views": 1, "test_views": 2}


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model()


def look_at(
    position: tuple[float, float, float], target: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Float[np.ndarray, "4 4"]:
    back = np.subtract(position, target)
    back = back / np.linalg.norm(back)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, np.array(position)], axis=-1)
    return pose


POSES = {
    "front": look_at((-1.0, -3.7, 1.2)),
    "back": look_at((2.5, 2.8, 1.5)),
    "above": look_at((0.1, -0.5, 4.0)),
    "below": look_at((3.0, -2.6, -0.4)),
    "in the garden": look_at((0.3, -0.6, -0.3), target=(0.3, -0.2, -0.6)),
    "in the house": look_at((-0.1, 0.2, -0.4), target=(-0.1, -1.0, -0.4)),
    "turned away": look_at((0.0, -3.0, 0.0), target=(0.0, -4.0, 0.0)),
}


def rays_of(
    pose: Float[np.ndarray, "4 4"], width: int, height: int, offsets: list[tuple[float, float]]
) -> tuple[Float[np.ndarray, "rays 3"], Float[np.ndarray, "rays 3"]]:
    """Rays (height * width * offsets) through the given places in each pixel, spelled out."""
    focal = 0.5 * width / math.tan(0.5 * CAMERA_ANGLE_X)
    directions = [
        pose[:3, :3] @ ((i + dx - width / 2) / focal, -(j + dy - height / 2) / focal, -1.0)
        for j in range(height)
        for i in range(width)
        for dx, dy in offsets
    ]
    unit = np.array(directions) / np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(pose[:3, 3], unit.shape), unit


def random_rays(count: int) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Rays that start in and around the model and point anywhere."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(count, 3))
    return random.uniform(-1.2, 1.2, (count, 3)), directions / np.linalg.norm(
        directions, axis=-1, keepdims=True
    )


def one_box(low: float = -0.5, high: float = 0.5) -> Model:
    return Model(np.array([[[low] * 3, [high] * 3]]), np.zeros((0, 5)), np.full((1, 3), 0.8))


def one_cylinder() -> Model:
    return Model(np.zeros((0, 2, 3)), np.array([[1.0, 2.0, -1.0, 3.0, 0.5]]), np.full((1, 3), 0.8))


# --- The model ---


def test_build_model_fits_its_box_with_colors_in_range(model: Model) -> None:
    assert 40 <= len(model.boxes) <= 150
    assert np.all(model.boxes[:, 0] < model.boxes[:, 1])
    assert np.all(model.cylinders[:, 2] < model.cylinders[:, 3])
    assert np.all(model.cylinders[:, 4] > 0)
    centers, radii = model.cylinders[:, :2], model.cylinders[:, 4:]
    assert np.abs(model.boxes).max() <= 1.3
    assert np.abs(centers).max() + radii.max() <= 1.3
    assert np.abs(model.cylinders[:, 2:4]).max() <= 1.3
    assert len(model.colors) == len(model.boxes) + len(model.cylinders)
    assert model.colors.min() >= 0 and model.colors.max() <= 1


def test_build_model_has_disjoint_interiors(model: Model) -> None:
    """Otherwise coplanar faces could fight, and studs could be hidden in other bricks."""
    shrink = 1e-9
    for a, b in combinations(model.boxes, 2):
        assert np.any((a[1] <= b[0] + shrink) | (b[1] <= a[0] + shrink)), (a, b)
    for x, y, bottom, top, radius in model.cylinders:
        low, high = model.boxes[:, 0], model.boxes[:, 1]
        aside = np.hypot(
            x - np.clip(x, low[:, 0], high[:, 0]), y - np.clip(y, low[:, 1], high[:, 1])
        )
        apart = (bottom >= high[:, 2] - shrink) | (top <= low[:, 2] + shrink)
        assert np.all(apart | (aside >= radius))
    for a, b in combinations(model.cylinders, 2):
        apart = a[2] >= b[3] - shrink or b[2] >= a[3] - shrink
        assert apart or math.hypot(a[0] - b[0], a[1] - b[1]) >= a[4] + b[4]


def test_build_model_puts_every_stud_on_a_brick(model: Model) -> None:
    for x, y, bottom, _, radius in model.cylinders:
        below = np.array([[x, y, bottom - 1e-6]])
        assert contains(model, below), (x, y, bottom, radius)


# --- Casting rays ---


def test_cast_rays_hits_where_the_ray_enters_the_model(model: Model) -> None:
    origins, directions = random_rays(4000)
    hits = cast_rays(model, origins, directions)
    hit = np.isfinite(hits.distances)
    assert 0.2 < hit.mean() < 0.9
    np.testing.assert_array_equal(hit, hits.primitives >= 0)

    outside_start = ~contains(model, origins)
    surface = hit & outside_start
    step = 1e-9
    before = origins + (hits.distances - step)[:, None] * directions
    after = origins + (hits.distances + step)[:, None] * directions
    assert not contains(model, before[surface]).any()
    assert contains(model, after[hit]).all()
    assert np.all(hits.distances[~outside_start] == 0)
    np.testing.assert_array_equal(hits.normals[~outside_start], -directions[~outside_start])


def test_cast_rays_misses_nothing_before_a_hit_or_along_a_miss(model: Model) -> None:
    origins, directions = random_rays(500)
    distances = cast_rays(model, origins, directions).distances
    for fraction in np.linspace(0.0, 1.0, 200, endpoint=False):
        points = origins + fraction * np.minimum(distances, 4.5)[:, None] * directions
        assert not contains(model, points[distances > 0]).any()


def test_cast_rays_normals_have_unit_length_and_face_the_origin(model: Model) -> None:
    origins, directions = random_rays(4000)
    hits = cast_rays(model, origins, directions)
    hit = np.isfinite(hits.distances)
    np.testing.assert_allclose(np.linalg.norm(hits.normals[hit], axis=-1), 1.0, atol=1e-12)
    assert np.all(np.sum(hits.normals * directions, axis=-1)[hit] < 0)
    np.testing.assert_array_equal(hits.normals[~hit], 0.0)


def test_cast_rays_normals_point_out_of_the_model(model: Model) -> None:
    origins, directions = random_rays(4000)
    hits = cast_rays(model, origins, directions)
    surface = np.isfinite(hits.distances) & (hits.distances > 0)
    points = (origins + hits.distances[:, None] * directions)[surface]
    normals = hits.normals[surface]
    outside, inside = (
        contains(model, points + 1e-7 * normals),
        contains(model, points - 1e-7 * normals),
    )
    # A sideways normal would leave half of these points on the wrong side.
    assert outside.mean() < 0.002 and inside.mean() > 0.998


@pytest.mark.parametrize(
    ("origin", "direction", "distance", "normal"),
    [
        ((0, 0, 2), (0, 0, -1), 1.5, (0, 0, 1)),
        ((-3, 0.2, 0.1), (1, 0, 0), 2.5, (-1, 0, 0)),
        ((0, 0, 0), (0, 1, 0), 0.0, (0, -1, 0)),
        ((0.7, 0, 2), (0, 0, -1), math.inf, (0, 0, 0)),
        ((0, 0, 2), (0, 0, 1), math.inf, (0, 0, 0)),
        ((0, 0, 0.5), (0, 0, 1), math.inf, (0, 0, 0)),
        ((0.5 + 1e-9, 0, 0), (1, 0, 0), math.inf, (0, 0, 0)),
    ],
)
def test_cast_rays_known_hits_of_a_box(
    origin: tuple, direction: tuple, distance: float, normal: tuple
) -> None:
    hits = cast_rays(one_box(), np.array([origin], float), np.array([direction], float))
    np.testing.assert_allclose(hits.distances, [distance], atol=1e-12)
    np.testing.assert_array_equal(hits.normals[0], normal)


@pytest.mark.parametrize(
    ("origin", "direction", "distance", "normal"),
    [
        ((1, 2, 5), (0, 0, -1), 2.0, (0, 0, 1)),
        ((1.3, 2.3, -4), (0, 0, 1), 3.0, (0, 0, -1)),
        ((-2, 2, 0), (1, 0, 0), 2.5, (-1, 0, 0)),
        ((1.3, -2, 0), (0, 1, 0), 3.6, (0.6, -0.8, 0)),
        ((1, 2, 0), (0, 0, 1), 0.0, (0, 0, -1)),
        ((1.6, 2, 5), (0, 0, -1), math.inf, (0, 0, 0)),
        ((-2, 2.6, 0), (1, 0, 0), math.inf, (0, 0, 0)),
        ((-2, 2, 3.1), (1, 0, 0), math.inf, (0, 0, 0)),
        ((-2, 2, 0), (-1, 0, 0), math.inf, (0, 0, 0)),
    ],
)
def test_cast_rays_known_hits_of_a_cylinder(
    origin: tuple, direction: tuple, distance: float, normal: tuple
) -> None:
    hits = cast_rays(one_cylinder(), np.array([origin], float), np.array([direction], float))
    np.testing.assert_allclose(hits.distances, [distance], atol=1e-12)
    np.testing.assert_allclose(hits.normals[0], normal, atol=1e-12)


def test_cast_rays_axis_aligned_rays_give_no_nan_and_no_warning(model: Model) -> None:
    edges = np.concatenate([model.boxes.reshape(-1, 3), model.boxes.mean(axis=1), [[5.0, 0, 0]]])
    axes = np.concatenate([np.eye(3), -np.eye(3), np.eye(3) * -0.0 + np.eye(3)[::-1]])
    origins, directions = np.repeat(edges, len(axes), axis=0), np.tile(axes, (len(edges), 1))
    with np.errstate(all="raise"):
        hits = cast_rays(model, origins, directions)
    assert not np.isnan(hits.distances).any()
    assert np.isfinite(hits.normals).all()
    assert np.isfinite(hits.distances).any() and np.isinf(hits.distances).any()


def test_cast_rays_accepts_zero_rays(model: Model) -> None:
    hits = cast_rays(model, np.zeros((0, 3)), np.zeros((0, 3)))
    assert hits.distances.shape == (0,) and hits.normals.shape == (0, 3)


# --- Rendering ---


@pytest.mark.parametrize("name", POSES)
def test_render_view_depth_equals_brute_force_at_pixel_centers(model: Model, name: str) -> None:
    width, height = 30, 22
    _, depth = render_view(model, POSES[name], width, height, supersamples=2)
    expected = cast_rays(model, *rays_of(POSES[name], width, height, [(0.5, 0.5)])).distances
    assert np.isfinite(expected).any() == (name != "turned away")
    np.testing.assert_allclose(depth, expected.reshape(height, width), rtol=1e-7)


def test_render_view_shows_a_beam_that_passes_the_camera() -> None:
    """Its corners lie before and behind the camera, so they do not bound its outline."""
    beam = np.array([[[-1.0, -0.05, -0.2], [9.0, 0.05, -0.05]]])
    model = Model(beam, np.zeros((0, 5)), np.full((1, 3), 0.8))
    pose = look_at((0.0, 0.0, 0.0), target=(1.0, 0.0, 0.0))
    _, depth = render_view(model, pose, 30, 22, supersamples=1)
    expected = cast_rays(model, *rays_of(pose, 30, 22, [(0.5, 0.5)])).distances
    np.testing.assert_allclose(depth, expected.reshape(22, 30), rtol=1e-7)


@pytest.mark.parametrize("name", ["front", "above", "in the garden", "turned away"])
def test_render_view_alpha_is_the_fraction_of_hits(model: Model, name: str) -> None:
    width, height, s = 16, 14, 3
    steps = [(k + 0.5) / s for k in range(s)]
    rays = rays_of(POSES[name], width, height, [(dx, dy) for dy in steps for dx in steps])
    hit = np.isfinite(cast_rays(model, *rays).distances).reshape(height, width, s * s)
    rgba, _ = render_view(model, POSES[name], width, height, s)
    np.testing.assert_array_equal(rgba[..., 3], np.floor(255 * hit.mean(axis=-1) + 0.5))


def brute_force_shadow(
    model: Model, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
) -> Bool[np.ndarray, " n"]:
    sun = np.array(rendering.SUN) / np.linalg.norm(rendering.SUN)
    hits = cast_rays(model, points + 1e-6 * normals, np.broadcast_to(sun, points.shape))
    return np.isfinite(hits.distances) | (normals @ sun <= 0)


@pytest.mark.parametrize("name", ["front", "back", "above", "in the house"])
def test_render_view_colors_equal_brute_force_shading(model: Model, name: str) -> None:
    width, height = 40, 30
    origins, directions = rays_of(POSES[name], width, height, [(0.5, 0.5)])
    hits = cast_rays(model, origins, directions)
    hit = np.isfinite(hits.distances)
    view, normals = -directions[hit], hits.normals[hit]
    points = origins[hit] + hits.distances[hit, None] * directions[hit]
    lit = ~brute_force_shadow(model, points, normals)
    assert 0 < lit.mean() < 1

    sun = np.array(rendering.SUN) / np.linalg.norm(rendering.SUN)
    halfway = (sun + view) / np.linalg.norm(sun + view, axis=-1, keepdims=True)
    sky = (1 + normals[:, 2]) / 2
    light = sky * rendering.SKYLIGHT + (1 - sky) * rendering.GROUND_LIGHT
    light += lit * rendering.SUNLIGHT * (normals @ sun)
    shine = rendering.HIGHLIGHT * lit * np.sum(normals * halfway, axis=-1) ** rendering.SHININESS
    expected = np.clip(model.colors[hits.primitives[hit]] * light[:, None] + shine[:, None], 0, 1)

    rgba, _ = render_view(model, POSES[name], width, height, supersamples=1)
    got = rgba[..., :3].reshape(-1, 3)[hit]
    np.testing.assert_allclose(got, 255 * expected, atol=0.51)


def test_shadows_cover_the_floor_of_the_house_but_not_the_garden(model: Model) -> None:
    indoors, garden = (-0.25, 0.25), (0.625, -0.375)
    down = np.array([[0.0, 0.0, -1.0]])
    for (x, y), dark in ((indoors, True), (garden, False)):
        hits = cast_rays(model, np.array([[x, y, -0.5]]), down)
        point = np.array([[x, y, -0.5 - hits.distances[0]]])
        assert point[0, 2] < -0.55
        assert brute_force_shadow(model, point, hits.normals) == dark
        assert rendering._shadowed(model, point + 1e-6 * hits.normals) == dark


def test_render_view_does_not_depend_on_the_band_size(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = render_view(model, POSES["front"], 24, 23, 2)
    monkeypatch.setattr(rendering, "RAYS_PER_BAND", 24 * 5 * 4)
    banded = render_view(model, POSES["front"], 24, 23, 2)
    np.testing.assert_array_equal(whole[0], banded[0])
    np.testing.assert_array_equal(whole[1], banded[1])


def test_render_view_misses_are_black_with_infinite_depth(model: Model) -> None:
    rgba, depth = render_view(model, POSES["front"], 50, 50, 2)
    alpha = rgba[..., 3]
    assert 0.1 < (alpha == 0).mean() < 0.9 and ((alpha > 0) & (alpha < 255)).any()
    np.testing.assert_array_equal(rgba[alpha == 0], 0)
    assert np.isinf(depth[alpha == 0]).all() and np.isfinite(depth[alpha == 255]).mean() > 0.999


def test_render_view_does_not_darken_colors_at_edges() -> None:
    """Straight alpha: a pixel that is half covered has the color of the covered half."""
    rgba, _ = render_view(one_box(), look_at((3.0, 0.0, 0.0)), 33, 33, 4)
    alpha, red = rgba[..., 3], rgba[..., 0].astype(int)
    edge = (alpha > 0) & (alpha < 255)
    assert edge.any()
    inside = red[alpha == 255]
    assert red[edge].min() >= inside.min() - 2 and red[edge].max() <= inside.max() + 2


def test_render_view_is_in_frame_and_not_overexposed(model: Model) -> None:
    for index in range(0, 30, 3):
        rgba, _ = render_view(model, sequence_pose(index), 60, 60, 1)
        alpha = rgba[..., 3]
        assert not (alpha[0].any() or alpha[-1].any() or alpha[:, 0].any() or alpha[:, -1].any())
        assert 0.15 < (alpha > 0).mean() < 0.7
        assert np.mean(rgba[..., :3].max(axis=-1) == 255) < 0.005


def test_render_view_colors_depend_slightly_on_the_view(model: Model) -> None:
    target = np.array([0.625, -0.375, -0.65])  # bare base plate, in the sun
    seen = []
    for azimuth in np.linspace(0.0, 2 * math.pi, 12, endpoint=False):
        position = (2.4 * math.cos(azimuth), 2.4 * math.sin(azimuth), 3.0)
        pose = look_at(position, target=tuple(target))
        rgba, depth = render_view(model, pose, 101, 101, 1)
        if abs(depth[50, 50] - np.linalg.norm(position - target)) < 1e-5:
            seen.append(rgba[50, 50, :3].astype(int))
    assert len(seen) >= 6
    spread = np.ptp(seen, axis=0).max()
    assert 5 <= spread <= 70

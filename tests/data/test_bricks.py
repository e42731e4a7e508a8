"""The built-in scene: its geometry against brute force, its files, and what a failure leaves."""

import json
import math
from itertools import combinations
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from jaxtyping import Bool, Float

from jaxrf.data import bricks
from jaxrf.data.bricks import Model, build_model, cast_rays, contains, render_view, write_bricks

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


def test_the_model_fits_its_box_and_has_legal_colors(model: Model) -> None:
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


def test_interiors_of_primitives_never_overlap(model: Model) -> None:
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


def test_every_stud_stands_on_a_brick(model: Model) -> None:
    for x, y, bottom, _, radius in model.cylinders:
        below = np.array([[x, y, bottom - 1e-6]])
        assert contains(model, below), (x, y, bottom, radius)


# --- Casting rays ---


def test_a_hit_is_where_the_ray_enters_the_solid(model: Model) -> None:
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


def test_nothing_solid_lies_before_a_hit_or_along_a_miss(model: Model) -> None:
    origins, directions = random_rays(500)
    distances = cast_rays(model, origins, directions).distances
    for fraction in np.linspace(0.0, 1.0, 200, endpoint=False):
        points = origins + fraction * np.minimum(distances, 4.5)[:, None] * directions
        assert not contains(model, points[distances > 0]).any()


def test_normals_are_unit_and_oppose_the_ray(model: Model) -> None:
    origins, directions = random_rays(4000)
    hits = cast_rays(model, origins, directions)
    hit = np.isfinite(hits.distances)
    np.testing.assert_allclose(np.linalg.norm(hits.normals[hit], axis=-1), 1.0, atol=1e-12)
    assert np.all(np.sum(hits.normals * directions, axis=-1)[hit] < 0)
    np.testing.assert_array_equal(hits.normals[~hit], 0.0)


def test_normals_point_out_of_the_solid(model: Model) -> None:
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
def test_known_hits_of_a_box(
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
def test_known_hits_of_a_cylinder(
    origin: tuple, direction: tuple, distance: float, normal: tuple
) -> None:
    hits = cast_rays(one_cylinder(), np.array([origin], float), np.array([direction], float))
    np.testing.assert_allclose(hits.distances, [distance], atol=1e-12)
    np.testing.assert_allclose(hits.normals[0], normal, atol=1e-12)


def test_axis_aligned_rays_from_anywhere_give_no_nan_and_no_warning(model: Model) -> None:
    edges = np.concatenate([model.boxes.reshape(-1, 3), model.boxes.mean(axis=1), [[5.0, 0, 0]]])
    axes = np.concatenate([np.eye(3), -np.eye(3), np.eye(3) * -0.0 + np.eye(3)[::-1]])
    origins, directions = np.repeat(edges, len(axes), axis=0), np.tile(axes, (len(edges), 1))
    with np.errstate(all="raise"):
        hits = cast_rays(model, origins, directions)
    assert not np.isnan(hits.distances).any()
    assert np.isfinite(hits.normals).all()
    assert np.isfinite(hits.distances).any() and np.isinf(hits.distances).any()


def test_no_rays_are_no_hits(model: Model) -> None:
    hits = cast_rays(model, np.zeros((0, 3)), np.zeros((0, 3)))
    assert hits.distances.shape == (0,) and hits.normals.shape == (0, 3)


# --- Rendering ---


@pytest.mark.parametrize("name", POSES)
def test_depth_is_that_of_brute_force_through_the_pixel_centers(model: Model, name: str) -> None:
    width, height = 30, 22
    _, depth = render_view(model, POSES[name], width, height, supersamples=2)
    expected = cast_rays(model, *rays_of(POSES[name], width, height, [(0.5, 0.5)])).distances
    assert np.isfinite(expected).any() == (name != "turned away")
    np.testing.assert_allclose(depth, expected.reshape(height, width), rtol=1e-7)


def test_a_beam_that_runs_past_the_camera_is_seen_whole() -> None:
    """Its corners lie before and behind the camera, so they do not bound its outline."""
    beam = np.array([[[-1.0, -0.05, -0.2], [9.0, 0.05, -0.05]]])
    model = Model(beam, np.zeros((0, 5)), np.full((1, 3), 0.8))
    pose = look_at((0.0, 0.0, 0.0), target=(1.0, 0.0, 0.0))
    _, depth = render_view(model, pose, 30, 22, supersamples=1)
    expected = cast_rays(model, *rays_of(pose, 30, 22, [(0.5, 0.5)])).distances
    np.testing.assert_allclose(depth, expected.reshape(22, 30), rtol=1e-7)


@pytest.mark.parametrize("name", ["front", "above", "in the garden", "turned away"])
def test_alpha_is_the_fraction_of_hits_in_the_pixel(model: Model, name: str) -> None:
    width, height, s = 16, 14, 3
    steps = [(k + 0.5) / s for k in range(s)]
    rays = rays_of(POSES[name], width, height, [(dx, dy) for dy in steps for dx in steps])
    hit = np.isfinite(cast_rays(model, *rays).distances).reshape(height, width, s * s)
    rgba, _ = render_view(model, POSES[name], width, height, s)
    np.testing.assert_array_equal(rgba[..., 3], np.floor(255 * hit.mean(axis=-1) + 0.5))


def brute_force_shadow(
    model: Model, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
) -> Bool[np.ndarray, " n"]:
    sun = np.array(bricks._SUN) / np.linalg.norm(bricks._SUN)
    hits = cast_rays(model, points + 1e-6 * normals, np.broadcast_to(sun, points.shape))
    return np.isfinite(hits.distances) | (normals @ sun <= 0)


@pytest.mark.parametrize("name", ["front", "back", "above", "in the house"])
def test_colors_are_those_of_brute_force_shading(model: Model, name: str) -> None:
    width, height = 40, 30
    origins, directions = rays_of(POSES[name], width, height, [(0.5, 0.5)])
    hits = cast_rays(model, origins, directions)
    hit = np.isfinite(hits.distances)
    view, normals = -directions[hit], hits.normals[hit]
    points = origins[hit] + hits.distances[hit, None] * directions[hit]
    lit = ~brute_force_shadow(model, points, normals)
    assert 0 < lit.mean() < 1

    sun = np.array(bricks._SUN) / np.linalg.norm(bricks._SUN)
    halfway = (sun + view) / np.linalg.norm(sun + view, axis=-1, keepdims=True)
    sky = (1 + normals[:, 2]) / 2
    light = sky * bricks._SKYLIGHT + (1 - sky) * bricks._GROUND_LIGHT
    light += lit * bricks._SUNLIGHT * (normals @ sun)
    shine = bricks._HIGHLIGHT * lit * np.sum(normals * halfway, axis=-1) ** bricks._SHININESS
    expected = np.clip(model.colors[hits.primitives[hit]] * light[:, None] + shine[:, None], 0, 1)

    rgba, _ = render_view(model, POSES[name], width, height, supersamples=1)
    got = rgba[..., :3].reshape(-1, 3)[hit]
    np.testing.assert_allclose(got, 255 * expected, atol=0.51)


def test_the_floor_of_the_house_is_in_shadow_and_the_garden_is_not(model: Model) -> None:
    indoors, garden = (-0.25, 0.25), (0.625, -0.375)
    down = np.array([[0.0, 0.0, -1.0]])
    for (x, y), dark in ((indoors, True), (garden, False)):
        hits = cast_rays(model, np.array([[x, y, -0.5]]), down)
        point = np.array([[x, y, -0.5 - hits.distances[0]]])
        assert point[0, 2] < -0.55
        assert brute_force_shadow(model, point, hits.normals) == dark
        assert bricks._shadowed(model, point + 1e-6 * hits.normals) == dark


def test_bands_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = render_view(model, POSES["front"], 24, 23, 2)
    monkeypatch.setattr(bricks, "_BAND", 24 * 5 * 4)
    banded = render_view(model, POSES["front"], 24, 23, 2)
    np.testing.assert_array_equal(whole[0], banded[0])
    np.testing.assert_array_equal(whole[1], banded[1])


def test_transparent_pixels_are_black_and_missed_centers_infinite(model: Model) -> None:
    rgba, depth = render_view(model, POSES["front"], 50, 50, 2)
    alpha = rgba[..., 3]
    assert 0.1 < (alpha == 0).mean() < 0.9 and ((alpha > 0) & (alpha < 255)).any()
    np.testing.assert_array_equal(rgba[alpha == 0], 0)
    assert np.isinf(depth[alpha == 0]).all() and np.isfinite(depth[alpha == 255]).mean() > 0.999


def test_colors_at_an_edge_are_not_darkened() -> None:
    """Straight alpha: a pixel that is half covered has the color of the covered half."""
    rgba, _ = render_view(one_box(), look_at((3.0, 0.0, 0.0)), 33, 33, 4)
    alpha, red = rgba[..., 3], rgba[..., 0].astype(int)
    edge = (alpha > 0) & (alpha < 255)
    assert edge.any()
    inside = red[alpha == 255]
    assert red[edge].min() >= inside.min() - 2 and red[edge].max() <= inside.max() + 2


def test_the_scene_is_in_the_frame_and_not_overexposed(model: Model) -> None:
    for index in range(0, 30, 3):
        rgba, _ = render_view(model, bricks._pose(index), 60, 60, 1)
        alpha = rgba[..., 3]
        assert not (alpha[0].any() or alpha[-1].any() or alpha[:, 0].any() or alpha[:, -1].any())
        assert 0.15 < (alpha > 0).mean() < 0.7
        assert np.mean(rgba[..., :3].max(axis=-1) == 255) < 0.005


def test_the_look_of_a_point_depends_a_little_on_the_view(model: Model) -> None:
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


# --- Cameras ---


def test_cameras_look_at_the_origin_from_their_distance() -> None:
    for index in (0, 1, 99, 10_000, 20_024):
        pose = bricks._pose(index)
        rotation, position = pose[:3, :3], pose[:3, 3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-12)
        np.testing.assert_allclose(position, 4.03 * rotation[:, 2], atol=1e-12)
        assert rotation[2, 1] > 0 and abs(rotation[2, 0]) < 1e-12  # upright, level
        assert -5.01 <= math.degrees(math.asin(position[2] / 4.03)) <= 85.01
        np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


def views(split: str, count: int) -> Float[np.ndarray, "count 3"]:
    first = bricks._FIRST_POSE[split]
    return np.array([bricks._pose(first + i)[:3, 2] for i in range(count)])


def test_training_views_surround_the_held_out_views_without_being_them() -> None:
    train, held_out = views("train", 100), np.concatenate([views("val", 10), views("test", 25)])
    angles = np.degrees(np.arccos(np.clip(held_out @ train.T, -1, 1))).min(axis=1)
    assert angles.min() > 0.1 and angles.max() < 15
    each_other = np.degrees(np.arccos(np.clip(views("val", 10) @ views("test", 25).T, -1, 1)))
    assert each_other.min() > 0.1


@pytest.mark.parametrize(("split", "count"), [("train", 20), ("train", 100), ("test", 25)])
def test_views_are_spread_over_the_hemisphere(split: str, count: int) -> None:
    directions = views(split, count)
    assert np.linalg.norm(directions[:, :2].mean(axis=0)) < 0.15
    assert directions[:, 2].min() < 0.1 and directions[:, 2].max() > 0.8
    angles = np.arccos(np.clip(directions @ directions.T, -1, 1)) + 9 * np.eye(count)
    assert angles.min() > 0.3 * math.sqrt(2 * math.pi / count)


# --- Files ---


def read_tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_files_read_back(model: Model, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    folder = write_bricks(
        tmp_path / "new" / "scene", **SMALL, supersamples=2, progress=lambda *n: reports.append(n)
    )
    assert folder == tmp_path / "new" / "scene"
    assert reports == [(done, 6) for done in range(1, 7)]
    assert [path.name for path in folder.parent.iterdir()] == ["scene"]
    counts = {"train": 3, "val": 1, "test": 2}
    assert len(read_tree(folder)) == 3 + 2 * 6
    for split, count in counts.items():
        transforms = json.loads((folder / f"transforms_{split}.json").read_text())
        assert transforms["camera_angle_x"] == CAMERA_ANGLE_X
        names = [frame["file_path"] for frame in transforms["frames"]]
        assert names == [f"./{split}/r_{i}" for i in range(count)]
        for frame in transforms["frames"]:
            path = folder / frame["file_path"]
            rgba, depth = iio.imread(f"{path}.png"), np.load(f"{path}_depth.npy")
            expected = render_view(model, np.array(frame["transform_matrix"]), 20, 16, 2)
            assert rgba.dtype == np.uint8 and depth.dtype == np.float32
            np.testing.assert_array_equal(rgba, expected[0])
            np.testing.assert_array_equal(depth, expected[1])


def test_two_writes_are_the_same_to_the_byte(tmp_path: Path) -> None:
    first, second = (read_tree(write_bricks(tmp_path / name, **SMALL)) for name in "ab")
    assert first == second


def test_the_held_out_views_do_not_depend_on_the_number_of_training_views(tmp_path: Path) -> None:
    few, more = (
        read_tree(write_bricks(tmp_path / str(n), 8, 8, n, 1, 2, supersamples=1)) for n in (1, 3)
    )
    assert few["transforms_test.json"] == more["transforms_test.json"]
    assert few["test/r_1.png"] == more["test/r_1.png"]
    assert few["train/r_0.png"] == more["train/r_0.png"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert any(tmp_path.iterdir()), "the test must interrupt while something is there"
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bricks(tmp_path / "scene", **SMALL, supersamples=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists: delete it or choose another"):
        write_bricks(tmp_path / "scene", **SMALL)
    assert read_tree(tmp_path) == {"scene/mine.txt": b"mine"}


def test_of_two_writers_at_once_the_first_to_finish_wins(tmp_path: Path) -> None:
    folder = tmp_path / "scene"

    def overtake(done: int, total: int) -> None:
        if done == total:
            write_bricks(folder, **SMALL, supersamples=1)
            (folder / "winner.txt").write_text("first")

    assert write_bricks(folder, **SMALL, supersamples=1, progress=overtake) == folder
    assert (folder / "winner.txt").exists() and (folder / "transforms_test.json").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_something_else_is_no_finished_scene(tmp_path: Path) -> None:
    folder = tmp_path / "scene"

    def obstruct(done: int, total: int) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")

    with pytest.raises(OSError, match="scene"):
        write_bricks(folder, **SMALL, supersamples=1, progress=obstruct)
    assert read_tree(tmp_path) == {"scene/mine.txt": b"mine"}


# --- The cache ---


def test_the_cache_is_written_once(tmp_path: Path) -> None:
    reports: list[int] = []
    first, second = (
        bricks.cached_bricks(tmp_path / "c", **SMALL, progress=lambda done, _: reports.append(done))
        for _ in range(2)
    )
    assert first == second == tmp_path / "c" / "bricks-v1-20x16-3-1-2"
    assert reports == [1, 2, 3, 4, 5, 6]
    assert (first / "train" / "r_2.png").exists()


@pytest.mark.parametrize("xdg", ["set", "relative", "empty", "unset"])
def test_the_default_cache_follows_the_convention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: str
) -> None:
    """An XDG path that is empty or relative is to be ignored."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    values = {"set": str(tmp_path / "xdg"), "relative": "some/where", "empty": ""}
    if xdg == "unset":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", values[xdg])
    root = tmp_path / "xdg" if xdg == "set" else tmp_path / "home" / ".cache"
    folder = bricks.cached_bricks(width=4, height=4, train_views=1, val_views=1, test_views=1)
    assert folder == root / "jaxrf" / "bricks-v1-4x4-1-1-1"
    assert folder.is_dir()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"cannot be written to .*bricks-v1.*: set XDG_CACHE_HOME"):
        bricks.cached_bricks(tmp_path / "file" / below, **SMALL)


def test_a_cache_without_permission_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(bricks, "write_bricks", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied.*XDG_CACHE_HOME"):
        bricks.cached_bricks(tmp_path, **SMALL)


def test_a_cache_that_another_process_has_just_written_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(folder: Path, *args: object, **kwargs: object) -> Path:
        folder.mkdir()
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(bricks, "write_bricks", overtaken)
    assert bricks.cached_bricks(tmp_path, **SMALL).is_dir()

"""TensoRF's alpha mask: read, covered by cells, and looked up in images as TensoRF does."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import tensorf_fog, write_tensorf
from mistakes import CAMERA
from scenes import slow

from jaxrf.cameras.base import Cameras, image_rays
from jaxrf.cameras.poses import look_at
from jaxrf.cli import main as cli
from jaxrf.convert import check, formats, tensorf_mask
from jaxrf.convert.files.read import Content, read_file
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import AlphaMask
from jaxrf.convert.to_run import DEFAULT_AABB, init_stage
from jaxrf.sampling.alpha_mask import AlphaMaskedGrid
from jaxrf.sampling.occupancy import lookup
from jaxrf.training import runs

BOX = np.array([[-1.5] * 3, [1.5] * 3], np.float32)
LARGER_BOX = np.array([[-1.9, -1.6, -1.8], [1.7, 2.1, 1.7]], np.float32)
SMALLER_BOX = np.array([[-1.1, -1.2, -0.9], [1.2, 0.8, 1.3]], np.float32)
OPTIONS = FormatOptions()


def one_ray(origin: np.ndarray, direction: np.ndarray) -> Cameras:
    """Returns a camera of a single pixel, whose center is seen along the direction."""
    return Cameras(
        T_world_camera=look_at(origin, origin + direction)[None].astype(np.float32),
        focal=np.ones((1, 2), np.float32),
        principal_point=np.full((1, 2), 0.5, np.float32),
        width=1,
        height=1,
    )


def content_of(points: np.ndarray, mask_aabb: np.ndarray) -> Content:
    return Content(Path("fog.th"), "torch", tensorf_fog(points, mask_aabb))


def interpolate_slowly(points: np.ndarray, aabb: np.ndarray, position: np.ndarray) -> float:
    scaled = (position - aabb[0]) / (aabb[1] - aabb[0]) * (np.array(points.shape) - 1)
    hats = [
        np.maximum(0.0, 1.0 - np.abs(x - np.arange(n)))
        for x, n in zip(scaled, points.shape, strict=True)
    ]
    return float(np.einsum("xyz,x,y,z->", points.astype(float), *hats))


def opacity_slowly(
    points: np.ndarray, mask_aabb: np.ndarray, origin: np.ndarray, direction: np.ndarray
) -> float:
    """The opacity of a ray into the box of `tensorf_fog`, sample by sample, in exact steps."""
    direction = direction / np.linalg.norm(direction)
    low, high = BOX.astype(np.float64)
    entries = np.minimum((low - origin) / direction, (high - origin) / direction)
    # near_far of the file begins at 2.
    near, step = max(float(entries.max()), 2.0), 0.5 * 3.0 / 8
    transmittance = 1.0
    for index in range(int(math.sqrt(27.0) / step) + 1):
        position = origin + (near + index * step) * direction
        # The first sample lies on a face, which is part of the box.
        face = int(entries.argmax())
        if index == 0 and near > 2.0:
            position[face] = low[face] if direction[face] > 0 else high[face]
        inside = np.all((position >= low) & (position <= high))
        if inside and interpolate_slowly(points, mask_aabb.astype(np.float64), position) > 0.0:
            transmittance *= math.exp(-0.06 * 25.0 * step)
    return 1.0 - transmittance


@pytest.mark.filterwarnings("error:scatter inputs:FutureWarning")
@pytest.mark.parametrize("double", [slow(False), True])
def test_the_points_of_a_face_alone_decide_where_rays_enter_the_box(double: bool) -> None:
    points = np.ones((5, 5, 5), bool)
    points[-1] = False
    origin, direction = np.array([4.0, 0.3, 0.2]), np.array([-1.0, -0.05, -0.03])
    assert opacity_slowly(points, BOX, origin, direction) == pytest.approx(0.988891, abs=1e-6)
    content = content_of(points, BOX)
    converted = formats.convert(content, OPTIONS)
    camera = one_ray(origin, direction)
    with jax.enable_x64(double):
        image = check._render(converted, camera, double)
    assert image["opacity"].item() == pytest.approx(0.988891, abs=2e-6)
    rows = check.check_images(converted, content, OPTIONS, camera, double)
    assert check.passes(rows), check.format_rows(rows)


@pytest.mark.parametrize("mask_aabb", [slow(BOX), LARGER_BOX, slow(SMALLER_BOX)])
def test_images_have_the_opacity_of_rays_that_are_followed_step_by_step(
    mask_aabb: np.ndarray,
) -> None:
    points = np.random.default_rng(3).uniform(size=(6, 5, 7)) < 0.3
    content = content_of(points, mask_aabb)
    converted = formats.convert(content, OPTIONS)
    camera = check.default_camera(6)
    with jax.enable_x64(True):
        image = check._render(converted, camera, True)
    rays = jax.tree.map(np.asarray, image_rays(camera, jnp.asarray(0), 2.0, 6.0))
    for pixel in np.ndindex(6, 6):
        origin, direction = (x[pixel].astype(np.float64) for x in (rays.origins, rays.directions))
        expected = opacity_slowly(points, mask_aabb, origin, direction)
        # These rays are in float32.
        assert image["opacity"][pixel] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("mask_aabb", [LARGER_BOX, SMALLER_BOX])
def test_check_agrees_where_the_mask_has_another_box_than_the_field(
    mask_aabb: np.ndarray, double: bool
) -> None:
    points = np.random.default_rng(4).uniform(size=(12, 11, 13)) < 0.2
    content = content_of(points, mask_aabb)
    converted = formats.convert(content, OPTIONS)
    rows = check.check_images(converted, content, OPTIONS, CAMERA, double)
    assert check.passes(rows), check.format_rows(rows)
    assert rows[1].scale > 0.5


@pytest.mark.parametrize("mask_aabb", [BOX, LARGER_BOX, SMALLER_BOX])
def test_cells_cover_every_position_that_the_mask_admits(mask_aabb: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    points = rng.uniform(size=(8, 6, 5)) < 0.1
    converted = formats.convert(content_of(points, mask_aabb), OPTIONS)
    _, grid = init_stage(converted, converted.config, DEFAULT_AABB)
    assert isinstance(grid, AlphaMaskedGrid)
    positions = rng.uniform(-1.5, 1.5, (2000, 3)).astype(np.float32)
    admitted = [interpolate_slowly(points, mask_aabb, position) > 0 for position in positions]
    occupied = np.asarray(lookup(grid, jnp.asarray(positions)))
    assert np.all(occupied[admitted]) and 0.0 < np.mean(occupied) < 1.0
    np.testing.assert_array_equal(grid.lookup_for_images(jnp.asarray(positions)), admitted)


def test_cover_mask_gives_cells_that_are_not_larger_in_a_smaller_box() -> None:
    points = np.zeros((9, 7, 5), bool)
    points[4, 3, 2] = True
    box = np.array([[0.0, 0.0, 0.0], [8.0, 6.0, 4.0]], np.float32)
    same = tensorf_mask.cover_mask(AlphaMask(points, box), box)
    assert same.shape == (8, 6, 4) and same.sum() == 8
    part = np.array([[2.0, 1.0, 0.5], [7.0, 5.0, 3.5]], np.float32)
    moved = tensorf_mask.cover_mask(AlphaMask(points, box), part)
    assert moved.shape == (5, 4, 3) and moved.mean() < 0.6


@pytest.mark.slow
def test_a_run_keeps_its_mask_and_gives_it_back(tmp_path: Path) -> None:
    file, run_dir, exported = tmp_path / "lego.th", tmp_path / "run", tmp_path / "exported.th"
    write_tensorf(file, mask_aabb=np.array([[-1.3, -1.2, -0.9], [1.4, 1.1, 1.2]], np.float32))
    assert cli.main(["convert", str(file), "--run-dir", str(run_dir)]) == 0
    grid = runs.open_run(run_dir).state.grid
    assert isinstance(grid, AlphaMaskedGrid) and grid.mask_points.shape == (13, 11, 9)
    options = ["--format", "tensorf", "--output", str(exported)]
    assert cli.main(["export", str(run_dir), *options]) == 0
    before, after = (read_file(path).tree for path in (file, exported))
    for key in ("alphaMask.mask", "alphaMask.aabb"):
        np.testing.assert_array_equal(after[key], before[key])

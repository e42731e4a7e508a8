"""Geometry out of runs: surfaces and points against exact shapes, frames, colours, errors."""

import dataclasses
import functools
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scenes
from scenes import ball_poses, first_state, make_scene

from jaxrf.cameras.base import image_rays, make_cameras
from jaxrf.cameras.transforms import (
    SimilarityTransform,
    invert_transform,
    rotate_onto,
    transform_positions,
)
from jaxrf.core.errors import InputError
from jaxrf.export import geometry
from jaxrf.export.geometry import (
    DensityGrid,
    Mesh,
    View,
    extract_surface,
    face_pixels,
    find_large_parts,
    find_normals,
    sample_density,
    take_faces,
    transform_mesh,
    transform_points,
    visibility_and_view_dirs,
)
from jaxrf.models import methods
from jaxrf.rendering.image import HostRendering
from jaxrf.training import runs
from jaxrf.training.config import CustomConfig, TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata

LEVEL, LENGTH = 0.3, 0.05
WANTED = -math.log1p(-LEVEL) / LENGTH

BALL = '''
import dataclasses
import jax
import jax.numpy as jnp

@dataclasses.dataclass(frozen=True)
class Ball:
    """A ball of radius 0.8 around (0.1, 0, -0.2), coloured by its normals."""
    def init(self, key):
        return {"unused": jnp.zeros(1)}
    def density(self, params, positions, radii):
        offset = positions - jnp.array([[0.1, 0.0, -0.2]])
        return 400.0 * jax.nn.sigmoid((0.8 - jnp.linalg.norm(offset, axis=-1)) / 0.01), offset
    def features(self, params, latent):
        return latent
    def color(self, params, features, directions):
        length = jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-6)
        return 0.5 + 0.5 * features / length
'''
CENTRE, RADIUS = np.array([0.1, 0.0, -0.2]), 0.8


def make_lattice(signed: np.ndarray, spacing: float) -> DensityGrid:
    """Densities that grow e-fold within 0.02 towards the inside, `WANTED` where `signed` is 0."""
    density = WANTED * np.exp(np.clip(signed, -0.5, 0.5) / 0.02)
    return DensityGrid(density.astype(np.float32), np.full(3, -1.0), spacing)


def make_places(count: int = 41) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1.0, 1.0, count)] * 3, indexing="ij"), axis=-1)


def make_run(config: TrainConfig, **changes: object) -> runs.Run:
    stage, state = first_state(config, np.array([[-1, -1.2, -1.3], [1, 1, 1.1]], np.float32))
    scene = dataclasses.replace(
        SceneMetadata.from_scene(make_scene(), Path("/data/ball")), **changes
    )
    return runs.Run(Path("runs/one"), config, scene, stage, state, 1.0)


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    path = tmp_path_factory.mktemp("ball") / "ball.py"
    path.write_text(BALL)
    field = CustomConfig(
        source=f"{path}:Ball", sampler="occupancy", occupancy_resolution=8, max_steps=96
    )
    run = make_run(scenes.tiny_nerf(field=field, batch_samples=1 << 11))
    poses = np.concatenate([ball_poses("train", 6), ball_poses("val", 6)])
    poses[6:, :3] *= np.array([[1.0], [1.0], [-1.0]])  # from below, too
    poses[6:, :3, 0] *= -1.0
    rows = tuple(tuple(map(float, pose[:3].ravel())) for pose in poses)
    wide = dataclasses.replace(
        run.scene, poses=rows, width=32, height=32, focal=run.scene.focal * 2
    )
    return dataclasses.replace(run, scene=wide)


# ---------------------------------------------------------------------------------------------
# Surfaces
# ---------------------------------------------------------------------------------------------


def test_a_sphere_comes_back_to_a_hundredth_of_a_voxel_outwards_and_closed() -> None:
    import trimesh

    places = make_places()
    mesh = extract_surface(make_lattice(0.7 - np.linalg.norm(places, axis=-1), 0.05), LEVEL, LENGTH)
    away = np.linalg.norm(mesh.vertices, axis=-1)
    # Of a chord that is a voxel long, the middle lies a voxel / (8 r / voxel) inside.
    np.testing.assert_allclose(away, 0.7, atol=0.01 * 0.05)
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert made.is_watertight and made.is_winding_consistent
    assert made.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=5e-3)
    outwards = np.sum(find_normals(mesh) * mesh.vertices / away[:, None], axis=-1)
    assert outwards.min() > 0.99


def test_a_box_has_its_faces_where_they_are() -> None:
    half = np.array([0.31, 0.52, 0.73])
    signed = (half - np.abs(make_places())).min(axis=-1)
    mesh = extract_surface(make_lattice(signed, 0.05), LEVEL, LENGTH)
    off = (half - np.abs(mesh.vertices)).min(axis=-1)
    # Only where voxels straddle edges are corners cut.
    assert np.median(np.abs(off)) < 1e-4
    assert np.abs(off).max() < 0.05


@pytest.mark.parametrize("level", [0.1, 0.6])
def test_the_level_is_an_opacity_over_a_length(level: float) -> None:
    # Density is z: the surface is where 1 - exp(-z length) is the level.
    z = np.broadcast_to(np.arange(20.0), (4, 4, 20)).astype(np.float32)
    mesh = extract_surface(DensityGrid(z, np.zeros(3), 1.0), level, 0.07)
    wanted = -math.log1p(-level) / 0.07
    np.testing.assert_allclose(mesh.vertices[:, 2], wanted, atol=0.1)


def test_a_level_above_everything_is_refused() -> None:
    lattice = make_lattice(make_places(9)[..., 0] * 0 - 0.02, 0.25)
    with pytest.raises(InputError, match=r"--level 0.3, the densest place has 0\.123"):
        extract_surface(lattice, LEVEL, LENGTH)


def test_small_parts_are_left_out() -> None:
    places = make_places()
    large, small = (
        radius - np.linalg.norm(places - centre, axis=-1)
        for radius, centre in ((0.5, [-0.3, 0, 0]), (0.15, [0.7, 0, 0]))
    )
    mesh = extract_surface(make_lattice(np.maximum(large, small), 0.05), LEVEL, LENGTH)
    assert find_large_parts(mesh, 0.01).all()
    for share in (0.2, 1.0):
        kept = take_faces(mesh, find_large_parts(mesh, share))
        assert 0 < len(kept.faces) < len(mesh.faces)
        assert kept.vertices[:, 0].max() < 0.25
        assert set(kept.faces.ravel()) == set(range(len(kept.vertices)))


# ---------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------


def test_the_mesh_of_a_run_is_its_ball_with_its_colours(ball: runs.Run) -> None:
    mesh = geometry.make_mesh(ball, 40, LEVEL, 0.01, 12)
    offset = mesh.vertices - CENTRE
    away = np.linalg.norm(offset, axis=-1)
    assert np.abs(away - RADIUS).max() < 0.05
    assert mesh.colors is not None
    error = np.abs(mesh.colors - (0.5 + 0.5 * offset / away[:, None]))
    assert error.max() < 0.1 and error.mean() < 0.02


def test_points_lie_where_rays_end(ball: runs.Run) -> None:
    points = geometry.make_points(ball, 500, 12)
    assert len(points.positions) == 500
    offset = points.positions - CENTRE
    away = np.linalg.norm(offset, axis=-1)
    assert np.abs(away - RADIUS).max() < 0.05
    outwards = offset / away[:, None]
    assert np.median(np.sum(points.normals * outwards, axis=-1)) > 0.98
    assert np.abs(points.colors - (0.5 + 0.5 * outwards)).mean() < 0.02
    again = geometry.make_points(ball, 500, 12)
    np.testing.assert_array_equal(points.positions, again.positions)


def test_only_occupied_cells_hold_anything(ball: runs.Run) -> None:
    grid = ball.state.grid
    x, y, z = grid.occupied.shape
    occupied = np.zeros((x, y, z), bool)
    occupied[: x // 2] = True
    half = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
    run = dataclasses.replace(ball, state=dataclasses.replace(ball.state, grid=half))
    lattice = sample_density(run, 16)
    middle = 0.5 * float(grid.aabb[0, 0] + grid.aabb[1, 0])
    place = lattice.origin + lattice.spacing * np.argwhere(lattice.density > 1.0)
    assert len(place) and place[:, 0].max() <= middle + 1e-6
    # What is evaluated is the density there.
    away = np.linalg.norm(place - CENTRE, axis=-1)
    wanted = 400.0 / (1.0 + np.exp(-(RADIUS - away) / 0.01))
    np.testing.assert_allclose(lattice.density[lattice.density > 1.0], wanted, rtol=1e-3)
    nothing = dataclasses.replace(grid, occupied=jnp.zeros((x, y, z), bool))
    run = dataclasses.replace(ball, state=dataclasses.replace(ball.state, grid=nothing))
    with pytest.raises(InputError, match="no geometry"):
        sample_density(run, 16)


FIELDS = {
    "tensorf": scenes.tiny_tensorf,
    "cp": scenes.cp_config,
    "voxels": scenes.tiny_voxels,
    "nerf": scenes.tiny_nerf,
    "integrated": functools.partial(
        scenes.change_nerf, encoding="integrated", quadrature="intervals"
    ),
    "coarse": functools.partial(scenes.change_nerf, num_fine_samples=0),
    "marching": scenes.marching_nerf,
    "bitnerf": scenes.tiny_bitnerf,
    "hashgrid": scenes.tiny_hashgrid,
    "proposal": scenes.proposing_hashgrid,
    "pynerf": scenes.tiny_pynerf,
    "contracted": functools.partial(scenes.change_nerf, contract=True),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_density_and_a_coloured_surface(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "CHUNK", 1 << 10)
    run = make_run(FIELDS[name]())
    lattice = sample_density(run, 8)
    assert np.isfinite(lattice.density).all() and lattice.density.max() > 0.0
    faces = [np.take(lattice.density, side, axis) for axis in range(3) for side in (0, -1)]
    assert all(not face.any() for face in faces)
    mesh = extract_surface(lattice, 0.5e-4 * float(lattice.density.max()), 1e-4)
    colored = geometry.color_vertices(run, mesh, -find_normals(mesh))
    assert colored.colors is not None and np.isfinite(colored.colors).all()


def test_space_in_ndc_makes_points_of_space_and_no_mesh(ball: runs.Run) -> None:
    scene = dataclasses.replace(ball.scene, ndc=(0.4, 0.4, 1.0))
    run = dataclasses.replace(ball, scene=scene)
    with pytest.raises(InputError, match="--format points"):
        geometry.make_mesh(run, 8, LEVEL, 0.0, 2)
    # What is so far along a ray in these coordinates is on the same ray in space.
    pose = np.eye(4)[None]
    cameras = dataclasses.replace(make_cameras(pose, 5, 5, 0.7), ndc=scene.ndc)
    bent = image_rays(cameras, 0, 0.0, 1.0)
    halfway = 0.5 * np.asarray(bent.far)
    ones = np.ones((5, 5), np.float32)
    picture = HostRendering(np.ones((5, 5, 3), np.float32), ones, halfway, halfway)
    points = geometry._end_rays(run, View(cameras, picture))
    # Half of the way to infinity is two near planes deep (NeRF, appendix C).
    np.testing.assert_allclose(points.positions[:, 2], -2.0, rtol=1e-4)
    straight = np.asarray(
        image_rays(dataclasses.replace(cameras, ndc=None), 0, 0.0, 1.0).directions
    )
    wanted = straight.reshape(-1, 3) / -straight.reshape(-1, 3)[:, 2:] * 2.0
    np.testing.assert_allclose(points.positions, wanted, rtol=1e-3, atol=1e-4)


def test_a_run_without_poses_is_seen_by_nobody(ball: runs.Run) -> None:
    run = dataclasses.replace(ball, scene=dataclasses.replace(ball.scene, poses=()))
    with pytest.raises(InputError, match="does not hold the poses"):
        geometry.make_points(run, 10, 2)
    with pytest.raises(InputError, match="--keep-hidden"):
        geometry.make_mesh(run, 8, LEVEL, 0.0, 2)
    assert len(geometry.make_mesh(run, 16, LEVEL, 0.0, 2, hidden=True).faces)


def test_a_lattice_beyond_the_memory_is_refused(
    ball: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry.memory, "free_bytes", lambda: 10_000)
    with pytest.raises(InputError, match="--resolution 64"):
        sample_density(ball, 64)


# ---------------------------------------------------------------------------------------------
# What cameras see, and frames
# ---------------------------------------------------------------------------------------------


def test_cameras_see_what_faces_them_and_is_not_hidden() -> None:
    pose = np.eye(4)[None]
    pose[0, 2, 3] = 4.0
    cameras = make_cameras(pose, 20, 20, 0.7)
    full = np.ones((20, 20), np.float32)
    picture = HostRendering(np.zeros((20, 20, 3), np.float32), full, 3.0 * full, 3.0 * full)
    positions = np.array([[0, 0, 1.0], [0, 0, 1.0], [0, 0, 0.5], [0, 0, 5.0], [9.0, 0, 1.0]])
    normals = np.array([[0, 0, 1.0], [0, 0, -1.0], [0, 0, 1.0], [0, 0, -1.0], [0, 0, 1.0]])
    found = visibility_and_view_dirs(positions, normals, [View(cameras, picture)], slack=0.1)
    np.testing.assert_allclose(found[0], [0, 0, -1.0], atol=1e-6)
    np.testing.assert_array_equal(found[1:], 0.0)
    clear = picture._replace(opacity=0.0 * full)
    found = visibility_and_view_dirs(positions, normals, [View(cameras, clear)], slack=0.1)
    np.testing.assert_array_equal(np.any(found != 0, axis=-1), [True, False, True, False, False])


def test_pixels_of_a_plane_have_its_normal() -> None:
    cameras = make_cameras(np.eye(4)[None], 12, 9, 0.7)
    directions = np.asarray(image_rays(cameras, 0, 0.0, 1.0).directions, np.float64)
    normal = np.array([0.3, -0.2, 1.0]) / np.linalg.norm([0.3, -0.2, 1.0])
    positions = directions * (-2.0 / (directions @ normal))[..., None]
    # A step in depth down the middle changes no normal.
    positions[:, 6:] *= 1.5
    np.testing.assert_allclose(
        face_pixels(positions, directions), np.broadcast_to(normal, (9, 12, 3)), atol=1e-6
    )
    assert not face_pixels(positions[:1, :1], directions[:1, :1]).any()


def test_frames_are_undone() -> None:
    rotation = rotate_onto(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0]))
    frame = SimilarityTransform(0.3, rotation, np.array([1.0, -2.0, 0.5]))
    rng = np.random.default_rng(0)
    places, normals = rng.normal(size=(2, 7, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    back = invert_transform(frame)
    mesh = transform_mesh(back, Mesh(transform_positions(frame, places), np.zeros((1, 3), int)))
    np.testing.assert_allclose(mesh.vertices, places, atol=1e-12)
    cloud = geometry.Points(transform_positions(frame, places), normals @ rotation.T, normals)
    cloud = transform_points(back, cloud)
    np.testing.assert_allclose(cloud.positions, places, atol=1e-12)
    np.testing.assert_allclose(cloud.normals, normals, atol=1e-12)


def test_the_density_of_contracted_space_is_the_scenes() -> None:
    run = make_run(scenes.change_nerf(contract=True))
    bounds = np.asarray(run.state.grid.bounds)
    box = geometry.find_box(run.state.grid)
    np.testing.assert_allclose(box, bounds)
    density = methods.make_density(
        run.config.field, run.stage, run.state.shown, run.state.grid, 0.01
    )
    lattice = sample_density(run, 4)
    place = lattice.origin + lattice.spacing * np.array([[2, 2, 3]])
    found = density(jnp.asarray(place, jnp.float32))
    np.testing.assert_allclose(lattice.density[2, 2, 3], found[0], rtol=1e-5)

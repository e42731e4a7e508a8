"""Meshes of runs: surfaces against exact shapes, colors, components, errors."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import scenes
from ball_run import CENTER, RADIUS, make_run

from jaxrf.cameras.transforms import (
    SimilarityTransform,
    invert_transform,
    rotate_onto,
    transform_positions,
)
from jaxrf.core.errors import InputError
from jaxrf.export import density_grid
from jaxrf.export.density_grid import DensityGrid, sample_density
from jaxrf.export.mesh import (
    Mesh,
    color_vertices,
    compute_vertex_normals,
    extract_mesh,
    extract_surface,
    find_large_components,
    select_faces,
    transform_mesh,
)
from jaxrf.training import runs

LEVEL, LENGTH = 0.3, 0.05
SURFACE_DENSITY = -math.log1p(-LEVEL) / LENGTH


def make_density_grid(signed_distance: np.ndarray, spacing: float) -> DensityGrid:
    """Densities that grow e-fold within 0.02 inwards, `SURFACE_DENSITY` at a distance of 0."""
    density = SURFACE_DENSITY * np.exp(np.clip(signed_distance, -0.5, 0.5) / 0.02)
    return DensityGrid(density.astype(np.float32), np.full(3, -1.0), spacing)


def make_positions(count: int = 41) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1.0, 1.0, count)] * 3, indexing="ij"), axis=-1)


# ---------------------------------------------------------------------------------------------
# Surfaces
# ---------------------------------------------------------------------------------------------


def test_extract_surface_of_a_sphere_is_closed_and_exact_to_a_hundredth_of_a_voxel() -> None:
    import trimesh

    distance = np.linalg.norm(make_positions(), axis=-1)
    mesh = extract_surface(make_density_grid(0.7 - distance, 0.05), LEVEL, LENGTH)
    radius = np.linalg.norm(mesh.vertices, axis=-1)
    # The middle of a chord that is a voxel long lies a voxel / (8 r / voxel) inside.
    np.testing.assert_allclose(radius, 0.7, atol=0.01 * 0.05)
    tri = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert tri.is_watertight and tri.is_winding_consistent
    assert tri.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=5e-3)
    cosine = np.sum(compute_vertex_normals(mesh) * mesh.vertices / radius[:, None], axis=-1)
    assert cosine.min() > 0.99


def test_extract_surface_of_a_box_has_exact_faces() -> None:
    half = np.array([0.31, 0.52, 0.73])
    signed_distance = (half - np.abs(make_positions())).min(axis=-1)
    mesh = extract_surface(make_density_grid(signed_distance, 0.05), LEVEL, LENGTH)
    error = (half - np.abs(mesh.vertices)).min(axis=-1)
    # Corners are cut only where voxels straddle edges.
    assert np.median(np.abs(error)) < 1e-4
    assert np.abs(error).max() < 0.05


@pytest.mark.parametrize("level", [0.1, 0.6])
def test_extract_surface_level_is_an_opacity_over_a_length(level: float) -> None:
    # Density is z: the surface is where 1 - exp(-z length) is the level.
    z = np.broadcast_to(np.arange(20.0), (4, 4, 20)).astype(np.float32)
    mesh = extract_surface(DensityGrid(z, np.zeros(3), 1.0), level, 0.07)
    expected = -math.log1p(-level) / 0.07
    np.testing.assert_allclose(mesh.vertices[:, 2], expected, atol=0.1)


def test_extract_surface_refuses_a_level_above_all_opacities() -> None:
    densities = make_density_grid(make_positions(9)[..., 0] * 0 - 0.02, 0.25)
    with pytest.raises(InputError, match=r"level 0.3, the largest opacity is 0\.123"):
        extract_surface(densities, LEVEL, LENGTH)


def test_find_large_components_leaves_out_small_ones() -> None:
    positions = make_positions()
    large, small = (
        radius - np.linalg.norm(positions - center, axis=-1)
        for radius, center in ((0.5, [-0.3, 0, 0]), (0.15, [0.7, 0, 0]))
    )
    mesh = extract_surface(make_density_grid(np.maximum(large, small), 0.05), LEVEL, LENGTH)
    assert find_large_components(mesh, 0.01).all()
    for fraction in (0.2, 1.0):
        selected, vertex_ids = select_faces(mesh, find_large_components(mesh, fraction))
        assert 0 < len(selected.faces) < len(mesh.faces)
        assert selected.vertices[:, 0].max() < 0.25
        assert set(selected.faces.ravel()) == set(range(len(selected.vertices)))
        np.testing.assert_array_equal(selected.vertices, mesh.vertices[vertex_ids])


# ---------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------


def test_extract_mesh_gives_the_surface_and_its_colors(ball: runs.Run) -> None:
    mesh = extract_mesh(ball, 40, LEVEL, 0.01, 12)
    offset = mesh.vertices - CENTER
    radius = np.linalg.norm(offset, axis=-1)
    assert np.abs(radius - RADIUS).max() < 0.05
    assert mesh.colors is not None
    error = np.abs(mesh.colors - (0.5 + 0.5 * offset / radius[:, None]))
    assert error.max() < 0.1 and error.mean() < 0.02


FIELDS = {
    "tensorf": scenes.tiny_tensorf,
    "cp": scenes.cp_config,
    "voxels": scenes.tiny_voxels,
    "nerf": scenes.tiny_nerf,
    "integrated": functools.partial(
        scenes.tiny_nerf, encoding="integrated", quadrature="intervals"
    ),
    "coarse": functools.partial(scenes.tiny_nerf, num_fine_samples=0),
    "marching": scenes.marching_nerf,
    "bitnerf": scenes.tiny_bitnerf,
    "hashgrid": scenes.tiny_hashgrid,
    "proposal": scenes.proposing_hashgrid,
    "pynerf": scenes.tiny_pynerf,
    "contracted": functools.partial(scenes.tiny_nerf, contract=True),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_densities_and_a_colored_surface(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density_grid, "CHUNK_SIZE", 1 << 10)
    run = make_run(FIELDS[name]())
    densities = sample_density(run, 8)
    assert np.isfinite(densities.density).all() and densities.density.max() > 0.0
    sides = [np.take(densities.density, side, axis) for axis in range(3) for side in (0, -1)]
    assert all(not side.any() for side in sides)
    mesh = extract_surface(densities, 0.5e-4 * float(densities.density.max()), 1e-4)
    colored = color_vertices(run, mesh, -compute_vertex_normals(mesh))
    assert colored.colors is not None and np.isfinite(colored.colors).all()


def test_extract_mesh_refuses_normalized_device_coordinates(ball: runs.Run) -> None:
    scene = dataclasses.replace(ball.scene, ndc=(0.4, 0.4, 1.0))
    with pytest.raises(InputError, match="format points"):
        extract_mesh(dataclasses.replace(ball, scene=scene), 8, LEVEL, 0.0, 2)


def test_extract_mesh_without_poses_has_to_keep_hidden_faces(ball: runs.Run) -> None:
    run = dataclasses.replace(ball, scene=dataclasses.replace(ball.scene, poses=()))
    with pytest.raises(InputError, match="keep_hidden"):
        extract_mesh(run, 8, LEVEL, 0.0, 2)
    assert len(extract_mesh(run, 16, LEVEL, 0.0, 2, keep_hidden=True).faces)


def test_transform_mesh_by_the_inverse_restores_the_vertices() -> None:
    rotation = rotate_onto(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0]))
    frame = SimilarityTransform(0.3, rotation, np.array([1.0, -2.0, 0.5]))
    vertices = np.random.default_rng(0).normal(size=(7, 3))
    moved = Mesh(transform_positions(frame, vertices), np.zeros((1, 3), int))
    restored = transform_mesh(invert_transform(frame), moved)
    np.testing.assert_allclose(restored.vertices, vertices, atol=1e-12)

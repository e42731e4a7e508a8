"""Snapshots of instant-ngp: its coordinates, cells and cameras, and files that are none."""

import dataclasses
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_formats import write_transforms
from foreign import write_instant_ngp

from jaxrf.cameras.transforms import SimilarityTransform, transform_positions
from jaxrf.cli import main as cli
from jaxrf.convert import formats, instant_ngp
from jaxrf.convert.files.read import read_file
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import Converted
from jaxrf.core.encodings import spherical_harmonics
from jaxrf.core.errors import InputError
from jaxrf.fields.base import FieldContext
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.training import runs

PLACEMENT = instant_ngp.Placement(0.33, np.array([0.5, 0.45, 0.55]))


def convert(path: Path) -> Converted:
    return formats.convert(read_file(path), FormatOptions())


def to_cube(pose: np.ndarray) -> np.ndarray:
    """The pose of a file in the unit cube, step by step as instant-ngp has it: (3, 4)."""
    cube = pose[:3].copy()
    cube[:, 1] *= -1.0
    cube[:, 2] *= -1.0
    cube[:, 3] = cube[:, 3] * PLACEMENT.scale + PLACEMENT.offset
    first_row = cube[0].copy()
    cube[0], cube[1] = cube[1].copy(), cube[2].copy()
    cube[2] = first_row
    return cube


def test_cycle_harmonics_rotates_directions() -> None:
    matrix = instant_ngp.cycle_harmonics()
    directions = np.random.default_rng(5).normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    cycled = spherical_harmonics(jnp.asarray(directions[:, [1, 2, 0]]), 4)
    original = np.asarray(spherical_harmonics(jnp.asarray(directions), 4), np.float64)
    np.testing.assert_allclose(original @ matrix.T, cycled, atol=1e-5)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(16), atol=1e-6)


def test_cameras_and_points_of_the_cube_return_to_the_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    poses = np.tile(np.eye(4), (3, 1, 1))
    for pose in poses:
        pose[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        pose[:3, 3] = rng.normal(size=3)
    matrices = [{"start": to_cube(pose).tolist()} for pose in poses]
    metadata = [{"resolution": [64, 48], "focal_length": [70.0, 70.0]}] * 3
    cameras = instant_ngp.read_cameras({"metadata": metadata, "xforms": matrices}, PLACEMENT)
    assert cameras is not None and (cameras.width, cameras.height) == (64, 48)
    np.testing.assert_allclose(cameras.T_world_camera, poses, atol=1e-6)
    np.testing.assert_allclose(cameras.focal, 70.0)


@pytest.mark.parametrize("dataset", [{}, {"metadata": [], "xforms": []}, {"metadata": 3}])
def test_cameras_that_are_not_listed_are_none(dataset: dict[str, Any]) -> None:
    assert instant_ngp.read_cameras(dataset, PLACEMENT) is None


def test_cascades_are_in_morton_order(tmp_path: Path) -> None:
    depths = np.random.default_rng(4).choice([-1.0, 0.0, 0.3], 2 * 128**3).astype(np.float16)
    snapshot = {"density_grid_size": 128, "density_grid_binary": depths.view(np.uint8)}
    content = read_file(write_instant_ngp(tmp_path / "x.ingp"))
    cascades = instant_ngp.read_cascades(snapshot, 2, content)
    for level, x, y, z in ((0, 0, 0, 1), (0, 127, 5, 64), (1, 3, 90, 17), (1, 127, 127, 126)):
        number = 0
        for bit in range(7):
            number |= (x >> bit & 1) << 3 * bit
            number |= (y >> bit & 1) << 3 * bit + 1
            number |= (z >> bit & 1) << 3 * bit + 2
        assert cascades[level, x, y, z] == (depths[level * 128**3 + number] > 0.01)


def test_cells_count_as_occupied_above_the_mean_where_all_are_thin(tmp_path: Path) -> None:
    depths = np.zeros(128**3, np.float16)
    depths[7] = 0.005
    snapshot = {"density_grid_size": 128, "density_grid_binary": depths.view(np.uint8)}
    content = read_file(write_instant_ngp(tmp_path / "x.ingp"))
    assert instant_ngp.read_cascades(snapshot, 1, content)[0, 1, 1, 1]


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_merged_cascades_hold_every_occupied_point(levels: int) -> None:
    rng = np.random.default_rng(6)
    cascades = rng.random((levels, 128, 128, 128)) < 1e-3
    merged = instant_ngp.merge_cascades(cascades)
    side = 2.0 ** (levels - 1)
    points = rng.uniform(-0.5, 0.5, (4000, 3)) * 2.0 ** rng.integers(0, levels, (4000, 1))
    level = np.maximum(np.ceil(np.log2(2.0 * np.abs(points).max(axis=1))), 0).astype(int)
    cell = np.floor((points / 2.0 ** level[:, None] + 0.5) * 128).astype(int)
    occupied = cascades[level, *cell.T]
    large = np.floor((points / side + 0.5) * len(merged)).astype(int)
    found = merged[*large.T]
    assert np.all(found[occupied])
    if levels <= 2:
        np.testing.assert_array_equal(found, occupied)
    # Thousandths of the cells are occupied, of which a cell of the grid may hold 4^3.
    assert found.mean() < 0.1


def test_moving_a_field_gives_the_same_field_in_other_units(tmp_path: Path) -> None:
    converted = convert(write_instant_ngp(tmp_path / "x.ingp"))
    frame = SimilarityTransform(0.4, np.eye(3), np.array([0.1, -0.2, 0.3]))
    placed = instant_ngp.move_to_scene(converted, frame)
    points = np.random.default_rng(7).uniform(-1.0, 1.0, (50, 3))
    optical_depths = []
    for version, positions, step in (
        (converted, points, 1.0),
        (placed, transform_positions(frame, points), frame.scale),
    ):
        field, grid = version.config.field, version.grid
        assert grid is not None and isinstance(field, HashGrid)
        context = FieldContext(jnp.zeros(50), jnp.asarray(grid.aabb), None, None)
        params = jax.tree.map(jnp.asarray, version.params.field)
        density, _ = field.density(params, jnp.asarray(positions, float), context)
        optical_depths.append(np.asarray(density) * step)
    np.testing.assert_allclose(optical_depths[1], optical_depths[0], rtol=1e-3)
    assert placed.near == pytest.approx(0.4 * converted.near)


def test_a_cropped_snapshot_is_cropped(tmp_path: Path) -> None:
    crop = {"min": [0.5, 0.0, 0.0], "max": [1.0, 1.0, 1.0]}
    path = write_instant_ngp(tmp_path / "x.ingp", changes={"snapshot.render_aabb": crop})
    converted, whole = convert(path), convert(write_instant_ngp(tmp_path / "y.ingp"))
    assert converted.grid is not None and whole.grid is not None
    occupied, uncropped = converted.grid.occupied, whole.grid.occupied
    assert occupied is not None and uncropped is not None
    # The cube's x is the files' y.
    assert not occupied[:, :64].any()
    np.testing.assert_array_equal(occupied[:, 64:], uncropped[:, 64:])
    assert any("cropped" in note for note in converted.notes)


def test_a_turned_crop_is_left_out_and_said(tmp_path: Path) -> None:
    crop = {"min": [0.5, 0.0, 0.0], "max": [1.0, 1.0, 1.0]}
    turn = [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    changes = {"snapshot.render_aabb": crop, "snapshot.render_aabb_to_local": turn}
    converted = convert(write_instant_ngp(tmp_path / "x.ingp", changes=changes))
    whole = convert(write_instant_ngp(tmp_path / "y.ingp"))
    assert converted.grid is not None and whole.grid is not None
    np.testing.assert_array_equal(converted.grid.occupied, whole.grid.occupied)
    assert any("turned" in note for note in converted.notes)


def test_older_snapshots_are_cropped_to_the_box_of_the_data_set() -> None:
    aabb = np.array([[-0.5] * 3, [1.5] * 3])
    box = {"min": [0.0, -9.0, 0.25], "max": [1.0, 9.0, 0.75]}
    snapshot: dict[str, Any] = {"nerf": {"dataset": {"render_aabb": box}}}
    crop = instant_ngp.read_crop(snapshot, aabb)
    np.testing.assert_allclose(crop, [[0.0, -0.5, 0.25], [1.0, 1.5, 0.75]])
    # Instant-ngp's box of nothing.
    snapshot["nerf"]["dataset"]["render_aabb"] = {"min": [1e30] * 3, "max": [-1e30] * 3}
    assert instant_ngp.read_crop(snapshot, aabb) is None
    assert instant_ngp.read_crop({"nerf": {"dataset": {}}}, aabb) is None


@pytest.mark.parametrize(
    ("levels", "aabb_scale", "growth"), [(8, 1, 2.0), (8, 128, 4.0), (16, 1, 1.38191288)]
)
def test_the_growth_of_levels_follows_from_the_finest(
    levels: int, aabb_scale: int, growth: float, tmp_path: Path
) -> None:
    content = read_file(write_instant_ngp(tmp_path / "x.ingp"))
    encoding = {"n_levels": levels, "base_resolution": 16}
    first, below, above = instant_ngp.find_growths(encoding, aabb_scale, content)
    assert first == pytest.approx(growth, rel=1e-7) and below < first < above
    if growth in (2.0, 4.0):
        # Exactly, as otherwise a level had one row of cells more.
        assert first == growth
    given = encoding | {"per_level_scale": 1.7}
    assert instant_ngp.find_growths(given, aabb_scale, content) == [1.7]


@pytest.mark.parametrize(
    "changes",
    [
        {"encoding.per_level_scale": 5.0396842},
        {"snapshot.aabb": {"min": [7, 7, 7], "max": [7, 7, 7]}},
        {"dir_encoding.nested": [
            {"otype": "SphericalHarmonics", "n_dims_to_encode": 3}, {"otype": "SphericalHarmonics"}
        ]},
        {"dir_encoding": {"otype": "SphericalHarmonics", "degree": 4}},
        {"snapshot.density_grid_binary": b""},
        {"snapshot.nerf.dataset.metadata": []},
    ],
)  # fmt: skip
def test_what_instant_ngp_loads_as_well_is_converted(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = convert(write_instant_ngp(tmp_path / "x.ingp"))
    converted = convert(write_instant_ngp(tmp_path / "y.ingp", changes=changes))
    for leaf, other in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(converted.params), strict=True
    ):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("packing", [gzip.compress, zlib.compress, bytes])
def test_snapshots_are_read_however_they_are_packed(packing: Any, tmp_path: Path) -> None:
    converted = convert(write_instant_ngp(tmp_path / "x", packing=packing))
    assert converted.format == "instant-ngp" and converted.step == 35_000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"snapshot.mode": "sdf"}, "in mode sdf, not of a radiance field"),
        ({"snapshot.nerf.dataset": None}, "does not say where its scene is"),
        ({"encoding.otype": "Frequency"}, "is no hash grid"),
        ({"encoding.interpolation": "Smoothstep"}, "is no hash grid"),
        ({"dir_encoding.nested": [{"otype": "Frequency"}]}, "directions are not encoded"),
        ({"network.activation": "Sine"}, "other activations than ReLU"),
        ({"snapshot.nerf.dataset.n_extra_learnable_dims": 8}, "n_extra_learnable_dims"),
        ({"snapshot.nerf.dataset.is_hdr": True}, "linear light (is_hdr)"),
        ({"snapshot.nerf.dataset.from_mitsuba": True}, "poses are Mitsuba's"),
        ({"snapshot.nerf.dataset.scale": 0.0}, "scale in "),
        ({"encoding.n_levels": 5}, "which are not those of 5 levels"),
        ({"rgb_network.n_neurons": 32}, "networks are 16 and 32 wide"),
        ({"snapshot.n_params": 12}, "bytes for 12 parameters"),
        ({"snapshot.params_type": "int"}, "params_type in "),
        ({"snapshot.density_grid_size": 64}, "density_grid_size in "),
        ({"snapshot.density_grid_binary": b"\0" * 64}, "has 32 cells"),
        ({"snapshot.version": 0}, "before July 2022"),
        ({"network.n_hidden_layers": 0}, "no hidden layer"),
        ({"encoding.fixed_point_pos": True}, "is no hash grid"),
        ({"snapshot.nerf.aabb_scale": 3}, "no power of two"),
        ({"snapshot.params_binary": 3}, "incomplete"),
        ({"encoding.per_level_scale": "fast"}, "per_level_scale in "),
        ({"snapshot.nerf.aabb_scale": 1000}, "aabb_scale in "),
    ],
)
def test_snapshots_of_another_kind_say_what_they_are(
    changes: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_instant_ngp(tmp_path / "x.ingp", changes=changes)
    assert cli.main(["convert", str(path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_a_snapshot_without_its_end_is_damaged(tmp_path: Path) -> None:
    path = write_instant_ngp(tmp_path / "x.ingp")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="its end is missing"):
        read_file(path)


def test_a_snapshot_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ingp"
    head = gzip.decompress(write_instant_ngp(path).read_bytes())[:4000]
    path.write_bytes(gzip.compress(head + b"\0" * (1 << 28)))
    with pytest.raises(InputError, match="unpacks to more"):
        read_file(path)


def test_converted_runs_are_where_the_data_set_is(tmp_path: Path) -> None:
    """The field at a point of the files is the same with a data set, which moves it."""
    folder = write_transforms(tmp_path / "data")
    path = write_instant_ngp(tmp_path / "x.ingp")
    arguments = ["convert", str(path), "--run-dir"]
    assert cli.main([*arguments, str(tmp_path / "alone")]) == 0
    assert cli.main([*arguments, str(tmp_path / "placed"), "--data", str(folder)]) == 0
    alone, placed = (runs.open_run(tmp_path / name) for name in ("alone", "placed"))
    assert placed.config.box is not None and alone.config.box is None
    # The camera that the snapshot lists.
    assert alone.scene.width == 40 and len(alone.scene.poses) == 1
    converted = json.loads((tmp_path / "placed" / "converted.json").read_text())
    assert converted["format"] == "instant-ngp"
    frame = placed.scene.frame
    fields = []
    for run in (alone, placed):
        points = np.random.default_rng(8).uniform(-1.0, 1.0, (40, 3))
        if run is placed:
            points = frame[0] * points + np.array(frame[10:])
        context = FieldContext(jnp.zeros(40), run.state.grid.aabb, None, None)
        positions = jnp.asarray(points, jnp.float32)
        density, _ = run.stage.field.density(run.state.params.field, positions, context)
        fields.append(np.asarray(density) * (frame[0] if run is placed else 1.0))
    np.testing.assert_allclose(fields[1], fields[0], rtol=1e-3, atol=1e-4)


def test_growth_of_levels_is_read_where_it_is_given() -> None:
    field = HashGrid(hash_layout="tcnn", num_levels=3, level_growth=1.5, log2_hashmap_size=10)
    np.testing.assert_allclose(field.plan().scales, [15.0, 23.0, 35.0], rtol=1e-6)
    other = dataclasses.replace(field, level_growth=None, max_resolution=64)
    np.testing.assert_allclose(other.plan().scales, [15.0, 31.0, 63.0], rtol=1e-6)

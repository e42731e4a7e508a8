"""Mesh and point cloud files, read back by trimesh and byte by byte."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh

from jaxrf.core.errors import InputError
from jaxrf.export.geometry_files import SUFFIXES, to_linear, write_mesh, write_points
from jaxrf.export.mesh import Mesh
from jaxrf.export.points import Points

VERTICES = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3.0]])
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
COLORS = np.array([[0, 0, 0], [1, 0, 0.5], [0.02, 1, 0.2], [0.25, 0.5, 0.75]])
MESH = Mesh(VERTICES, FACES, COLORS)
POINTS = Points(VERTICES, np.eye(4, 3), COLORS)
# z becomes y, y becomes -z.
Y_UP = VERTICES[:, [0, 2, 1]] * [1, 1, -1]


def read_glb(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size = struct.unpack("<I", content[12:16])[0]
    return json.loads(content[20 : 20 + size]), content[28 + size :]


def read_accessor(tree: dict, data: bytes, number: int) -> np.ndarray:
    accessor = tree["accessors"][number]
    view = tree["bufferViews"][accessor["bufferView"]]
    dtype = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[accessor["componentType"]]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    values = np.frombuffer(data, dtype, accessor["count"] * width, start)
    return values.reshape(-1, width)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_mesh_roundtrip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mesh{suffix}"
    write_mesh(path, MESH)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded = trimesh.load(path, process=False, force="mesh")
    expected = Y_UP if suffix == ".glb" else VERTICES
    np.testing.assert_allclose(loaded.vertices, expected, atol=1e-6)
    np.testing.assert_array_equal(loaded.faces, FACES)
    assert loaded.is_watertight and loaded.volume == pytest.approx(1.0)
    if suffix != ".glb":
        np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], np.rint(255 * COLORS))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_points_roundtrip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"points{suffix}"
    write_points(path, POINTS)
    loaded = trimesh.load(path)
    if suffix == ".glb":
        loaded = next(iter(loaded.geometry.values()))
    np.testing.assert_allclose(loaded.vertices, Y_UP if suffix == ".glb" else VERTICES, atol=1e-6)
    if suffix == ".ply":
        np.testing.assert_array_equal(loaded.colors[:, :3], np.rint(255 * COLORS))
        header, body = path.read_bytes().split(b"end_header\n")
        assert b"property float nx" in header
        normals = np.frombuffer(body, np.uint8).reshape(4, 27)[:, 12:24].copy().view("<f4")
        np.testing.assert_array_equal(normals, POINTS.normals)


@pytest.mark.parametrize("kind", ["mesh", "points"])
def test_glb_colors_are_linear_and_unlit(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "one.glb"
    write_mesh(path, MESH) if kind == "mesh" else write_points(path, POINTS)
    tree, data = read_glb(path)
    primitive = tree["meshes"][0]["primitives"][0]
    number = primitive["attributes"]["COLOR_0"]
    assert tree["accessors"][number]["normalized"]
    loaded = read_accessor(tree, data, number) / 65535.0
    np.testing.assert_allclose(loaded[:, :3], to_linear(COLORS), atol=1e-5)
    np.testing.assert_array_equal(loaded[:, 3], 1.0)
    assert "KHR_materials_unlit" in tree["materials"][primitive["material"]]["extensions"]
    assert "KHR_materials_unlit" in tree["extensionsUsed"]


def test_to_linear_follows_the_standard() -> None:
    # Three values of IEC 61966-2-1.
    np.testing.assert_allclose(
        to_linear(np.array([[0.0, 0.5, 1.0]])), [[0.0, 0.21404114, 1.0]], atol=1e-7
    )
    np.testing.assert_allclose(to_linear(np.full((1, 3), 0.04)), 0.04 / 12.92)


def test_write_refuses_unknown_suffixes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.glb, \.ply or \.obj"):
        write_mesh(tmp_path / "mesh.stl", MESH)
    with pytest.raises(InputError, match=r"^output .*points has no suffix"):
        write_points(tmp_path / "points", POINTS)

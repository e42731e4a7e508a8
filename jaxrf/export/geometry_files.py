"""Writes meshes and point clouds as GLB, PLY and OBJ files.

PLY and OBJ hold coordinates and sRGB colors unchanged. GLB is glTF, whose y axis points up and
whose vertex colors are linear. So a GLB is rotated from z up to y up, which programs with z up
undo, and its colors are converted from sRGB to linear. The colors already include the light of the
scene, so the material is unlit (KHR_materials_unlit).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.core.errors import InputError
from jaxrf.export.mesh import Mesh
from jaxrf.export.points import Points
from jaxrf.training import runs

SUFFIXES = (".glb", ".ply", ".obj")
UNLIT = "KHR_materials_unlit"
# glTF's component type for 16 bits.
UNSIGNED_SHORT = 5123


def check_suffix(path: Path) -> None:
    """Raises InputError if the suffix of a file is none of the supported formats."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--output {path} has no suffix of a supported format: use "
            f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )


def to_linear(colors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Linear colors of sRGB colors in [0, 1] (IEC 61966-2-1)."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def rotate_z_up_to_y_up(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Vectors rotated by -90 degrees around x, from z up to y up: (x, z, -y)."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack([x, z, -y], axis=-1)


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Writes a colored mesh in the format of the file's suffix.

    Raises:
      InputError: the suffix is not supported, or the file cannot be written.
    """
    import trimesh

    assert mesh.colors is not None
    check_suffix(path)
    glb = path.suffix.lower() == ".glb"
    vertices = rotate_z_up_to_y_up(mesh.vertices) if glb else mesh.vertices
    colors = _to_bytes(mesh.colors)
    geometry = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=colors, process=False)
    _write_geometry(path, geometry, mesh.colors)


def write_points(path: Path, points: Points) -> None:
    """Writes a colored point cloud in the format of the file's suffix; PLY includes normals.

    Raises:
      InputError: the suffix is not supported, or the file cannot be written.
    """
    import trimesh

    check_suffix(path)
    if path.suffix.lower() == ".ply":
        _write_bytes(path, _encode_ply(points))
        return
    glb = path.suffix.lower() == ".glb"
    positions = rotate_z_up_to_y_up(points.positions) if glb else points.positions
    _write_geometry(path, trimesh.PointCloud(positions, _to_bytes(points.colors)), points.colors)


def _write_geometry(path: Path, geometry: Any, colors: Float[np.ndarray, "n 3"]) -> None:
    file_type = path.suffix.lower()[1:]
    if file_type == "glb":
        _write_bytes(path, _encode_glb(geometry, colors))
        return
    content = geometry.export(file_type=file_type)
    _write_bytes(path, content.encode() if isinstance(content, str) else content)


def _encode_glb(geometry: Any, colors: Float[np.ndarray, "n 3"]) -> bytes:
    """A GLB with linear colors of 16 bits and an unlit material."""
    from trimesh.exchange.gltf import export_glb

    def make_linear(buffers: Any, tree: dict[str, Any]) -> None:
        """Replaces trimesh's colors of 8 bits, which are too coarse for linear colors."""
        primitive = tree["meshes"][0]["primitives"][0]
        accessor = list(tree["accessors"].values())[primitive["attributes"]["COLOR_0"]]
        key = list(buffers)[accessor["bufferView"]]
        rgba = np.concatenate([to_linear(colors), np.ones((len(colors), 1))], axis=-1)
        values = np.rint(65535.0 * rgba).astype("<u2")
        buffers[key] = values.tobytes()
        accessor |= {"componentType": UNSIGNED_SHORT}
        for bound, extreme in (("min", values.min(axis=0)), ("max", values.max(axis=0))):
            if bound in accessor:
                accessor[bound] = extreme.tolist()
        tree["materials"] = [{"doubleSided": True, "extensions": {UNLIT: {}}}]
        primitive["material"] = 0
        tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), UNLIT]

    content: bytes = export_glb(geometry.scene(), buffer_postprocessor=make_linear)
    return content


def _to_bytes(colors: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    return np.rint(255.0 * np.clip(colors, 0.0, 1.0)).astype(np.uint8)


def _encode_ply(points: Points) -> bytes:
    """A binary PLY of positions, normals and colors, because trimesh writes none of the normals."""
    names = ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue")
    types = ("<f4",) * 6 + ("u1",) * 3
    rows = np.zeros(len(points.positions), list(zip(names, types, strict=True)))
    columns = np.concatenate([points.positions, points.normals, _to_bytes(points.colors)], axis=1)
    for name, column in zip(names, columns.T, strict=True):
        rows[name] = column
    ply_types = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property {ply_types[t]} {name}" for name, t in zip(names, types, strict=True)]
    return "\n".join([*header, "end_header\n"]).encode() + rows.tobytes()


def _write_bytes(path: Path, content: bytes) -> None:
    runs.make_writable(path.absolute().parent, "--output")
    with runs.atomic_path(path) as temporary:
        temporary.write_bytes(content)

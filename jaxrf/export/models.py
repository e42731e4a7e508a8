"""Meshes and point clouds as files that other programs open: GLB, PLY and OBJ.

PLY and OBJ hold coordinates and colours as they are. A GLB is glTF, whose y axis is up and whose
vertex colours are linear: z is taken for up and turned there, which programs with z up undo, and
colours of pictures (sRGB) are made linear. What it shows is light that comes from the scene, so
its material says that no light is to be added (KHR_materials_unlit).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.core.errors import InputError
from jaxrf.export.geometry import Mesh, Points
from jaxrf.training import runs

SUFFIXES = (".glb", ".ply", ".obj")
UNLIT = "KHR_materials_unlit"
# glTF's number for 16 bits.
UNSIGNED_SHORT = 5123


def check_suffix(path: Path) -> None:
    """InputError if a file's name does not say in which format it is to be."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--output {path} does not say what kind of file it is to be: let its name end in "
            f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )


def to_linear(colors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Colours of pictures (sRGB, in [0, 1]) as parts of light (IEC 61966-2-1)."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def turn_upright(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Coordinates with z up as coordinates with y up: a quarter turn around x."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack([x, z, -y], axis=-1)


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Writes a coloured mesh; the file's name says in which format.

    Raises:
      InputError: if the name says none, or the file cannot be written.
    """
    import trimesh

    assert mesh.colors is not None
    check_suffix(path)
    glb = path.suffix.lower() == ".glb"
    vertices, colors = turn_upright(mesh.vertices) if glb else mesh.vertices, _to_bytes(mesh.colors)
    made = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=colors, process=False)
    _write(path, made, mesh.colors)


def write_points(path: Path, points: Points) -> None:
    """Writes a coloured point cloud; the file's name says in which format.

    PLY has normals, too.

    Raises:
      InputError: if the name says none, or the file cannot be written.
    """
    import trimesh

    check_suffix(path)
    if path.suffix.lower() == ".ply":
        _replace(path, _encode_ply(points))
        return
    glb = path.suffix.lower() == ".glb"
    positions = turn_upright(points.positions) if glb else points.positions
    _write(path, trimesh.PointCloud(positions, _to_bytes(points.colors)), points.colors)


def _write(path: Path, geometry: Any, colors: Float[np.ndarray, "n 3"]) -> None:
    kind = path.suffix.lower()[1:]
    if kind != "glb":
        content = geometry.export(file_type=kind)
        _replace(path, content.encode() if isinstance(content, str) else content)
        return
    from trimesh.exchange.gltf import export_glb

    def make_linear(buffers: Any, tree: dict[str, Any]) -> None:
        """Puts linear colours of 16 bits in the place of those of 8, which are too coarse."""
        primitive = tree["meshes"][0]["primitives"][0]
        accessor = list(tree["accessors"].values())[primitive["attributes"]["COLOR_0"]]
        key = list(buffers)[accessor["bufferView"]]
        opaque = np.concatenate([to_linear(colors), np.ones((len(colors), 1))], axis=-1)
        values = np.rint(65535.0 * opaque).astype("<u2")
        buffers[key] = values.tobytes()
        accessor |= {"componentType": UNSIGNED_SHORT}
        for bound, extreme in (("min", values.min(axis=0)), ("max", values.max(axis=0))):
            if bound in accessor:
                accessor[bound] = extreme.tolist()
        tree["materials"] = [{"doubleSided": True, "extensions": {UNLIT: {}}}]
        primitive["material"] = 0
        tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), UNLIT]

    scene = geometry.scene()
    _replace(path, export_glb(scene, buffer_postprocessor=make_linear))


def _to_bytes(colors: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    return np.rint(255.0 * np.clip(colors, 0.0, 1.0)).astype(np.uint8)


def _encode_ply(points: Points) -> bytes:
    """A binary PLY of positions, normals and colours, which trimesh writes only without normals."""
    names = ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue")
    types = ("<f4",) * 6 + ("u1",) * 3
    rows = np.zeros(len(points.positions), list(zip(names, types, strict=True)))
    columns = np.concatenate([points.positions, points.normals, _to_bytes(points.colors)], axis=1)
    for name, column in zip(names, columns.T, strict=True):
        rows[name] = column
    words = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property {words[kind]} {n}" for n, kind in zip(names, types, strict=True)]
    return "\n".join([*header, "end_header\n"]).encode() + rows.tobytes()


def _replace(path: Path, content: bytes) -> None:
    runs.make_writable(path.absolute().parent, "--output")
    with runs.atomic_path(path) as temporary:
        temporary.write_bytes(content)

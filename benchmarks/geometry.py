"""Distance between the mesh of a run of `bricks` and its exact geometry; drawings of meshes.

python benchmarks/geometry.py RUN                       prints a table in Markdown
python benchmarks/geometry.py RUN --levels 0.2 0.3 0.4  for several levels, or --resolutions 128 256
python benchmarks/geometry.py --draw mesh.ply mesh.png  four sides of a mesh: colors and shape

The truth is a set of points: the exact first hits of the pixels' rays of 100 training cameras of
`bricks` at 300x300 pixels, thinned to one per cube of 0.004 units, so that they cover the visible
surface evenly. The mesh is sampled at random, evenly over its area. Distances are to the nearest
point of the other set; the row "floor" has those between the two halves of the truth, the smallest
distance that can be measured. "signed" is the mean distance of the mesh's points, negative for
those inside bricks.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from jaxrf.core.jax_setup import set_up_jax
from jaxrf.data.bricks.dataset import sequence_pose
from jaxrf.data.bricks.model import build_model
from jaxrf.data.bricks.ray_casting import contains
from jaxrf.data.bricks.rendering import CAMERA_ANGLE_X, render_view
from jaxrf.export import density_grid
from jaxrf.export.mesh import Mesh, extract_mesh
from jaxrf.training import runs

SPACING = 0.004


def trace_truth(views: int = 100, size: int = 300) -> np.ndarray:
    """Returns (n, 3) points on the surface that the training cameras of bricks see."""
    model, hits = build_model(), []
    focal = 0.5 * size / np.tan(0.5 * CAMERA_ANGLE_X)
    x, y = np.meshgrid(
        (np.arange(size) + 0.5 - size / 2) / focal, -(np.arange(size) + 0.5 - size / 2) / focal
    )
    local = np.stack([x, y, -np.ones_like(x)], axis=-1)
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    for index in range(views):
        pose = sequence_pose(index)
        _, depth = render_view(model, pose, size, size, supersamples=1)
        hit = np.isfinite(depth)
        hits.append(
            pose[:3, 3] + depth[hit, None].astype(np.float64) * (local[hit] @ pose[:3, :3].T)
        )
    points = np.random.default_rng(0).permutation(np.concatenate(hits))
    _, first = np.unique(np.floor(points / SPACING).astype(int), axis=0, return_index=True)
    return points[first]


def spread_points(
    mesh: Mesh, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws random points evenly over a mesh: their faces, corner weights and positions."""
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=-1)
    rng = np.random.default_rng(seed)
    face = rng.choice(len(area), count, p=area / area.sum())
    weights = rng.dirichlet((1.0, 1.0, 1.0), count)
    return face, weights, np.einsum("nc,ncd->nd", weights, corners[face])


def compare(mesh: Mesh, truth: np.ndarray, count: int = 300_000) -> dict[str, float]:
    """Returns distances between a mesh and the truth, in scene units."""
    _, _, points = spread_points(mesh, count)
    to_truth = cKDTree(truth).query(points)[0]
    to_mesh = cKDTree(points).query(truth[::4])[0]
    inside = contains(build_model(), points)
    both = np.concatenate([to_truth, np.random.default_rng(0).choice(to_mesh, len(to_truth))])
    return {
        "chamfer": 0.5 * float(to_truth.mean() + to_mesh.mean()),
        "median": float(np.median(both)),
        "to truth": float(to_truth.mean()),
        "to mesh": float(to_mesh.mean()),
        "signed": float(np.where(inside, -to_truth, to_truth).mean()),
    }


def draw_sides(mesh: Mesh, size: int = 300) -> np.ndarray:
    """Draws four sides of a mesh from above: its colors, and below its shape lit from the camera.

    The nearest of many points on its faces colors each pixel. Back faces are purple.
    """
    face, weights, points = spread_points(mesh, 60 * size**2)
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    assert mesh.colors is not None
    colors = np.einsum("nc,ncd->nd", weights, mesh.colors[mesh.faces][face])
    middle = 0.5 * (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0))
    sides = [_turn(-60.0 + 90.0 * turn, 30.0) for turn in range(4)]
    extent = np.max(
        [np.abs((mesh.vertices - middle) @ side)[:, :2].max(axis=0) for side in sides], 0
    )
    scale = 0.98 * size / extent[0]
    height = 2 * math.ceil(0.5 * scale * extent[1] / 0.98)
    rows: list[list[np.ndarray]] = [[], []]
    for side in sides:
        local = (points - middle) @ side
        column = np.floor(size + scale * local[:, 0]).astype(int)
        row = np.floor(height - scale * local[:, 1]).astype(int)
        order = np.argsort(local[:, 2])
        facing = (normals @ side[:, 2])[face][:, None]
        light = np.broadcast_to(0.15 + 0.8 * facing, colors.shape)
        for line, values in zip(rows, (colors, light), strict=True):
            values = np.where(facing > 0, values, [[0.6, 0.0, 0.6]])
            image = np.ones((2 * height, 2 * size, 3))
            image[row[order], column[order]] = values[order]
            line.append(image.reshape(height, 2, size, 2, 3).mean(axis=(1, 3)))
    sheet = np.concatenate([np.concatenate(line, axis=1) for line in rows])
    return np.rint(255 * sheet).astype(np.uint8)


def _turn(azimuth: float, elevation: float) -> np.ndarray:
    """Returns the axes right, up and towards the camera as columns; angles are in degrees."""
    a, e = np.deg2rad([azimuth, elevation])
    back = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    return np.stack([right, np.cross(back, right), back], axis=-1)


def read_mesh(path: Path) -> Mesh:
    """Reads a mesh that `jaxrf export` wrote as .ply or .obj."""
    import trimesh

    loaded: Any = trimesh.load(path, process=False)
    return Mesh(
        np.asarray(loaded.vertices),
        np.asarray(loaded.faces),
        loaded.visual.vertex_colors[:, :3] / 255.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.3])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256])
    parser.add_argument("--keep-hidden", action="store_true")
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("MESH", "PNG"))
    options = parser.parse_args()
    if options.draw:
        picture = Image.fromarray(draw_sides(read_mesh(options.draw[0])))
        picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(
            options.draw[1], optimize=True
        )
        return
    if options.run is None:
        sys.exit("name the folder of a run")
    run = runs.open_run(options.run)
    set_up_jax(run.config.matmul_precision)
    truth = trace_truth()
    pixel = density_grid.measure_pixel_width(run)
    names = ("chamfer", "median", "to truth", "to mesh", "signed")
    print(f"A pixel is {pixel:.4f} units wide in the middle of the scene.")
    print(f"| resolution | level | vertices | voxel | {' | '.join(names)} | chamfer in voxels |")
    print("|---" * 10 + "|")
    floor = float(cKDTree(truth[::2]).query(truth[1::2])[0].mean())
    print(f"| floor | | | | {floor:.4f} | | | | | |", flush=True)
    for resolution in options.resolutions:
        box = density_grid.find_occupied_box(run.state.grid)
        spacing = density_grid.find_spacing(box, resolution)
        for level in options.levels:
            mesh = extract_mesh(run, resolution, level, 0.001, 50, options.keep_hidden)
            distances = compare(mesh, truth)
            cells = " | ".join(f"{distances[name]:.4f}" for name in names)
            print(
                f"| {resolution} | {level:g} | {len(mesh.vertices):,} | {spacing:.4f} | {cells} "
                f"| {distances['chamfer'] / spacing:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

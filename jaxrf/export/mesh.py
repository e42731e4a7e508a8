"""A triangle mesh of a run: a level set of its density, with rendered colors at the vertices.

Faces that no training camera sees and small connected components are removed.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrf.cameras.transforms import SimilarityTransform, transform_positions
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.export.density_grid import (
    CONE_RADIUS_PER_PIXEL,
    DensityGrid,
    measure_pixel_width,
    sample_density,
)
from jaxrf.export.progress import ProgressFn, no_progress
from jaxrf.export.training_views import (
    make_render_rays,
    normalize_vectors,
    render_training_views,
    unpremultiply,
    visibility_and_view_dirs,
)
from jaxrf.training.runs import Run

# Densities are clipped to the density at the surface times or divided by this ratio.
MAX_DENSITY_RATIO = 1e3
# The ray that colors a vertex begins and ends this many pixel widths in front of and beyond it.
COLOR_RAY_PIXELS_IN_FRONT, COLOR_RAY_PIXELS_BEYOND = 1.5, 10.0
# A vertex is visible up to this many pixel widths beyond the median depth of a view.
VISIBILITY_TOLERANCE_PIXELS = 1.0


class Mesh(NamedTuple):
    """Triangles with counter-clockwise corners, seen from outside.

    vertices: (v, 3) positions.
    faces: (f, 3) indices of vertices.
    colors: (v, 3) in [0, 1], encoded like images (sRGB).
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: Float[np.ndarray, "v 3"] | None = None


def extract_mesh(
    run: Run,
    resolution: int,
    level: float,
    min_component_fraction: float,
    num_views: int,
    keep_hidden: bool = False,
    progress: ProgressFn = no_progress,
) -> Mesh:
    """A colored mesh of the surface of a run, in scene units.

    Args:
      run: of any field.
      resolution: voxels along the longest side of the occupied box.
      level: opacity over the width of a pixel, in (0, 1), at the surface.
      min_component_fraction: fraction of all faces that a connected component needs to be kept;
        1 keeps the largest component only.
      num_views: number of training cameras that decide which faces are visible.
      keep_hidden: also keep faces that no training camera sees, such as the insides of walls.
      progress: reports the slabs of the density grid and the views.

    Raises:
      InputError: there is no surface, or the run is in normalized device coordinates.
    """
    if run.scene.ndc is not None:
        raise InputError(
            f"{run.folder} was trained in normalized device coordinates, which distort space, so "
            "it has no mesh: use --format points."
        )
    density_grid = sample_density(run, resolution, progress)
    pixel_width = measure_pixel_width(run)
    mesh = extract_surface(density_grid, level, pixel_width)
    normals = compute_vertex_normals(mesh)
    view_dirs = -normals
    if run.scene.poses or not keep_hidden:
        views = render_training_views(run, num_views, progress=progress)
        tolerance = VISIBILITY_TOLERANCE_PIXELS * pixel_width
        mean_dirs = visibility_and_view_dirs(mesh.vertices, normals, views, tolerance)
        visible = np.any(mean_dirs != 0.0, axis=-1)
        view_dirs = np.where(visible[:, None], mean_dirs, view_dirs)
        if not keep_hidden:
            visible_faces = np.any(visible[mesh.faces], axis=-1)
            if not visible_faces.any():
                raise InputError(
                    "No training camera sees the surface: add --keep-hidden, or train the run "
                    "longer."
                )
            mesh, vertex_ids = select_faces(mesh, visible_faces)
            view_dirs = view_dirs[vertex_ids]
    mesh, vertex_ids = select_faces(mesh, find_large_components(mesh, min_component_fraction))
    return color_vertices(run, mesh, view_dirs[vertex_ids])


def extract_surface(density_grid: DensityGrid, level: float, length: float) -> Mesh:
    """The surface where a segment of some length has some opacity, by marching cubes.

    Marching cubes (Lewiner et al. 2003) interpolates the logarithm of the density linearly,
    because away from surfaces the density of a softplus or an exponential is log-linear.

    Args:
      density_grid: densities of the run.
      level: opacity 1 - exp(-density length), in (0, 1).
      length: of the segment, in scene units; a field cannot resolve less than the width of a pixel
        at the surface, `measure_pixel_width`.

    Raises:
      InputError: the opacity is below the level everywhere.
    """
    from skimage.measure import marching_cubes

    optical_level = -math.log1p(-level)
    optical_depth = density_grid.density * np.float32(length)
    max_depth = float(optical_depth.max(initial=0.0))
    if max_depth <= optical_level:
        raise InputError(
            f"No point is as opaque as --level {level:g}, the largest opacity is "
            f"{-math.expm1(-max_depth):.3g}: use a smaller --level, or train the run longer."
        )
    ratio = optical_depth / np.float32(optical_level)
    log_ratio = np.log(np.clip(ratio, 1.0 / MAX_DENSITY_RATIO, MAX_DENSITY_RATIO))
    vertices, faces, _, _ = marching_cubes(
        log_ratio, 0.0, gradient_direction="ascent", allow_degenerate=False
    )
    vertices = density_grid.origin + density_grid.spacing * vertices.astype(np.float64)
    return Mesh(vertices, faces.astype(np.int64))


def find_large_components(mesh: Mesh, min_fraction: float) -> Bool[np.ndarray, "f"]:
    """Mask of the faces in connected components with at least this fraction of all faces.

    The largest component always counts.
    """
    from trimesh.graph import connected_component_labels

    edges = np.concatenate([mesh.faces[:, :2], mesh.faces[:, 1:]])
    labels = connected_component_labels(edges, len(mesh.vertices))[mesh.faces[:, 0]]
    sizes = np.bincount(labels)
    large = sizes >= min(min_fraction * len(mesh.faces), sizes.max(initial=0))
    return large[labels]


def select_faces(
    mesh: Mesh, mask: Bool[np.ndarray, "f"]
) -> tuple[Mesh, Int[np.ndarray, "selected"]]:
    """The mesh of the selected faces, and the indices of their vertices in the original mesh."""
    vertex_ids, faces = np.unique(mesh.faces[mask], return_inverse=True)
    colors = None if mesh.colors is None else mesh.colors[vertex_ids]
    return Mesh(mesh.vertices[vertex_ids], faces.reshape(-1, 3), colors), vertex_ids


def compute_vertex_normals(mesh: Mesh) -> Float[np.ndarray, "v 3"]:
    """Outward unit normals of the vertices: means of the faces' normals, weighted by area."""
    corners = mesh.vertices[mesh.faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(mesh.vertices)
    for corner in mesh.faces.T:
        np.add.at(total, corner, face_normals)
    return normalize_vectors(total)


def color_vertices(run: Run, mesh: Mesh, view_dirs: Float[np.ndarray, "v 3"]) -> Mesh:
    """The mesh with the rendered colors of short rays through its vertices.

    Args:
      run: from which the mesh was extracted.
      mesh: in scene units.
      view_dirs: (v, 3) unit directions in which the vertices are seen.
    """
    distance, pixel_width = run.scene.radius, measure_pixel_width(run)
    count = len(mesh.vertices)
    rays = Rays(
        origins=jnp.asarray(mesh.vertices - distance * view_dirs, jnp.float32),
        directions=jnp.asarray(view_dirs, jnp.float32),
        near=jnp.full(count, max(distance - COLOR_RAY_PIXELS_IN_FRONT * pixel_width, 0.0)),
        far=jnp.full(count, distance + COLOR_RAY_PIXELS_BEYOND * pixel_width),
        radii=jnp.full(count, CONE_RADIUS_PER_PIXEL / run.scene.focal),
        camera_index=jnp.zeros(count, jnp.int32),
    )
    return mesh._replace(colors=unpremultiply(make_render_rays(run)(rays)))


def transform_mesh(frame: SimilarityTransform, mesh: Mesh) -> Mesh:
    """A mesh moved by a similarity transform."""
    return mesh._replace(vertices=transform_positions(frame, mesh.vertices))

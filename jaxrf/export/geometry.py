"""What a run has learnt as geometry: a surface with colours, or points where rays end.

The surface is a level of the density on a lattice, of which what no training camera sees is left
out, and whose vertices have the colours that the renderer shows there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxrf.cameras import base as cams
from jaxrf.cameras.base import Cameras
from jaxrf.cameras.ndc import ndc_to_distance
from jaxrf.cameras.transforms import SimilarityTransform, transform_positions
from jaxrf.core import memory
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.evaluation.scoring import evenly_spaced_indices
from jaxrf.fields.base import Params
from jaxrf.models import methods
from jaxrf.models.methods import Stage
from jaxrf.rendering.image import HostRendering, render_image
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.config import FieldConfig
from jaxrf.training.runs import Run

# Positions that are evaluated in one call.
CHUNK = 1 << 16
# Bytes that a lattice point takes on its way to a surface, at most.
POINT_BYTES = 24
# Radius of a pixel's cone over the distance of neighbouring pixels (Mip-NeRF, section 3.1).
CONE = 2.0 / math.sqrt(12.0)
# Density over that of the surface beyond which, or below one over which, none is told from another.
STEEPEST = 1e3
# Widths of a pixel before and behind a vertex, between which the ray is that colours it.
BEFORE, BEHIND = 1.5, 10.0
# Widths of a pixel that a vertex may lie behind what a camera sees and still be seen by it.
SLACK = 1.0
# Cosine between a surface's normal and the way to a camera above which that sees the surface.
MIN_COSINE = 0.1
# Pixels along the width of the pictures by which geometry is seen, at most.
PICTURE_WIDTH = 400
# What is farther away than so many half sides of the scene's box is no point of a cloud.
MAX_DISTANCE_FACTOR = 10.0
# Likewise in near planes, where space is in normalised device coordinates.
FARTHEST_PLANES = 100.0

# Wraps numbers that are gone through under a title, as tqdm does.
Track = Callable[[Iterable[int], str], Iterable[int]]


def no_progress(items: Iterable[int], title: str) -> Iterable[int]:
    """Tracks nothing."""
    del title
    return items


class DensityGrid(NamedTuple):
    """Densities at the points of a lattice.

    density: (x, y, z) per scene unit.
    origin: (3,) the first point, in scene units.
    spacing: distance of neighbours along each axis, in scene units.
    """

    density: Float32[np.ndarray, "x y z"]
    origin: Float[np.ndarray, "3"]
    spacing: float


class Mesh(NamedTuple):
    """Triangles, counter-clockwise seen from outside.

    vertices: (v, 3) positions.
    faces: (f, 3) their vertices.
    colors: (v, 3) in [0, 1] as pictures store them.
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: Float[np.ndarray, "v 3"] | None = None


class Points(NamedTuple):
    """A point cloud.

    positions: (n, 3).
    normals: (n, 3) of unit length, towards the cameras; zero where there is none.
    colors: (n, 3) in [0, 1] as pictures store them.
    """

    positions: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    colors: Float[np.ndarray, "n 3"]


class View(NamedTuple):
    """What a training camera sees of a run.

    cameras: only this one.
    picture: rendered, before black.
    """

    cameras: Cameras
    picture: HostRendering


# ---------------------------------------------------------------------------------------------
# Density to surface
# ---------------------------------------------------------------------------------------------


def find_box(grid: OccupancyGrid) -> Float[np.ndarray, "2 3"]:
    """The box of what is occupied, in the scene's box; InputError if nothing is.

    Of contracted space only the scene's box is taken, which is not contracted.
    """
    if not np.asarray(grid.occupied).any():
        raise InputError(
            "Nothing in the run's box is occupied, so there is no geometry: train it longer."
        )
    box = occupancy.visible_aabb(grid)
    if np.any(box[1] <= box[0]):
        raise InputError("All that is occupied lies around the scene's box: export points.")
    return box


def find_spacing(box: Float[np.ndarray, "2 3"], resolution: int) -> float:
    """The side of a voxel, of which so many are along the longest side of a box."""
    return float(np.max(box[1] - box[0])) / resolution


def sample_density(run: Run, resolution: int, track: Track = no_progress) -> DensityGrid:
    """The run's density at the points of a lattice over what is occupied.

    Args:
      run: of any field.
      resolution: spaces between points along the longest side of the box.
      track: of the slabs of the lattice.

    Returns:
      The lattice, with a border of zeros. Only points in occupied cells are evaluated.

    Raises:
      InputError: nothing is occupied, or the lattice does not fit into memory.
    """
    grid = run.state.grid
    box = find_box(grid)
    spacing = find_spacing(box, resolution)
    # Whole spaces, as far beyond the box on one side as on the other, and the border.
    count = np.ceil((box[1] - box[0]) / spacing - 1e-6).astype(int) + 3
    if np.prod(count, dtype=float) * POINT_BYTES > memory.free_bytes():
        needed = np.prod(count, dtype=float) * POINT_BYTES / 2**30
        raise InputError(
            f"--resolution {resolution} makes a lattice of {' x '.join(map(str, count))} points, "
            f"which takes {needed:.0f} GiB of memory: give a smaller one."
        )
    origin = box.mean(axis=0) - 0.5 * spacing * (count - 1)
    stage, _ = methods.eval_stage(run.config.field, run.stage, grid, crop_to_occupied=False)
    shared = (
        run.config.field,
        stage,
        run.state.shown,
        grid,
        jnp.asarray(CONE * measure_pixel(run)),
    )
    density = np.zeros(count, np.float32)
    inner = np.stack(np.meshgrid(*(np.arange(1, n - 1) for n in count[1:]), indexing="ij"), -1)
    inner = inner.reshape(-1, 2)
    for x in track(range(1, count[0] - 1), "density"):
        index = np.concatenate([np.full((len(inner), 1), x), inner], axis=1)
        positions = (origin + spacing * index).astype(np.float32)
        occupied = _in_chunks(functools.partial(_look_up, grid), positions)
        index, positions = index[occupied], positions[occupied]
        density[tuple(index.T)] = _in_chunks(functools.partial(_evaluate, *shared), positions)
    return DensityGrid(density, origin, spacing)


def measure_pixel(run: Run) -> float:
    """How wide a pixel of the training pictures is in the middle of the scene, in scene units."""
    scene = run.scene
    if scene.ndc is not None:
        # All that cameras see is two wide there.
        return 2.0 / math.sqrt(scene.width * scene.height)
    return scene.radius / scene.focal


def _in_chunks(fn: Callable[[Array], Array], positions: Float32[np.ndarray, "n 3"]) -> np.ndarray:
    """A function of positions, evaluated in chunks of one size."""
    parts = []
    for start in range(0, len(positions), CHUNK):
        part = positions[start : start + CHUNK]
        padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0)), mode="edge")
        parts.append(np.asarray(fn(jnp.asarray(padded)))[: len(part)])
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


# At module level, so that what was compiled for one chunk serves all others.
@jax.jit
def _look_up(grid: OccupancyGrid, positions: Float[Array, "m 3"]) -> Bool[Array, "m"]:
    return occupancy.lookup(grid, occupancy.contract_positions(grid, positions))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    radius: Float[Array, ""],
    positions: Float[Array, "m 3"],
) -> Float[Array, "m"]:
    return methods.make_density(config, stage, params, grid, radius)(positions)


def extract_surface(lattice: DensityGrid, level: float, length: float) -> Mesh:
    """Where a step of some length has some opacity, by marching cubes (Lewiner et al. 2003).

    Between two points of the lattice it is the logarithm of the density that is linear, as the
    density of a softplus or an exponential is off surfaces.

    Args:
      lattice: of densities.
      level: opacity 1 - exp(-density length), in (0, 1).
      length: in scene units; that of a pixel where the surface is, `measure_pixel`, is as narrow
        as a field can have learnt it.

    Raises:
      InputError: nothing is so opaque.
    """
    from skimage.measure import marching_cubes

    wanted = -math.log1p(-level)
    optical = lattice.density * np.float32(length)
    most = float(optical.max(initial=0.0))
    if most <= wanted:
        raise InputError(
            f"Nothing is as opaque as --level {level:g}, the densest place has "
            f"{-math.expm1(-most):.3g}: give less, or train the run longer."
        )
    height = np.log(np.clip(optical / np.float32(wanted), 1.0 / STEEPEST, STEEPEST))
    vertices, faces, _, _ = marching_cubes(
        height, 0.0, gradient_direction="ascent", allow_degenerate=False
    )
    vertices = lattice.origin + lattice.spacing * vertices.astype(np.float64)
    return Mesh(vertices, faces.astype(np.int64))


def find_large_parts(mesh: Mesh, share: float) -> Bool[np.ndarray, "f"]:
    """Which faces are of connected parts that have some share of all faces; 1 is the largest."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([mesh.faces[:, :2], mesh.faces[:, 1:]])
    count = len(mesh.vertices)
    graph = coo_matrix((np.ones(len(edges), bool), edges.T), shape=(count, count))
    parts, part = connected_components(graph, directed=False)
    sizes = np.bincount(part[mesh.faces[:, 0]], minlength=parts)
    large = sizes >= min(share * len(mesh.faces), sizes.max(initial=0))
    return large[part[mesh.faces[:, 0]]]


def take_faces(mesh: Mesh, kept: Bool[np.ndarray, "f"]) -> Mesh:
    """A mesh of some of the faces, without vertices that have none."""
    faces = mesh.faces[kept]
    used = np.unique(faces)
    number = np.zeros(len(mesh.vertices), np.int64)
    number[used] = np.arange(len(used))
    colors = None if mesh.colors is None else mesh.colors[used]
    return Mesh(mesh.vertices[used], number[faces], colors)


def find_normals(mesh: Mesh) -> Float[np.ndarray, "v 3"]:
    """Unit normals of the vertices, outwards: means of their faces', weighted by area."""
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(mesh.vertices)
    for corner in mesh.faces.T:
        np.add.at(total, corner, across)
    return _normalise(total)


def _normalise(vectors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """The same directions with length 1; what has no length stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


# ---------------------------------------------------------------------------------------------
# What cameras see
# ---------------------------------------------------------------------------------------------


def render_training_views(
    run: Run, most: int, width: int, track: Track = no_progress
) -> list[View]:
    """What some of the run's training cameras see, without lenses.

    Args:
      run: which knows the poses of its cameras.
      most: cameras, spread over all.
      width: of a picture at most, in pixels.
      track: of the cameras.

    Raises:
      InputError: the run has no such poses.
    """
    scene = run.scene
    poses = np.array(scene.poses, np.float64).reshape(-1, 3, 4)
    if not len(poses):
        raise InputError(
            f"{run.folder} does not hold the poses of its training pictures, from which its "
            "geometry is seen: convert it again with --data, or export a mesh with --keep-hidden."
        )
    poses = poses[evenly_spaced_indices(len(poses), most)]
    last = np.broadcast_to([[[0.0, 0.0, 0.0, 1.0]]], (len(poses), 1, 4))
    poses = np.concatenate([poses, last], axis=1)
    cameras = cams.pinhole_cameras(poses, scene.width, scene.height, scene.focal)
    width = min(width, scene.width)
    cameras = cams.resize_cameras(cameras, width, max(width * scene.height // scene.width, 1))
    cameras = cams.apply_ray_convention(cameras, run.config.field.convention)
    render = make_render_rays(run)
    views = []
    for index in track(range(len(poses)), "views"):
        one = dataclasses.replace(cameras[index], ndc=scene.ndc)
        views.append(View(one, render(cams.image_rays(one, 0, scene.near, scene.far))))
    return views


def make_render_rays(run: Run) -> Callable[[Rays], HostRendering]:
    """A function of rays of any batch shape that renders them before black."""
    config, grid = run.config, run.state.grid
    stage, aabb = methods.eval_stage(config.field, run.stage, grid, crop_to_occupied=True)
    shared = (run.state.shown, grid)

    def render_chunks(rays: Rays) -> Rendering:
        chosen = (config.field, stage, config.render_samples)
        return _render_chunks(*chosen, *shared, rays, jnp.asarray(aabb))

    return lambda rays: render_image(render_chunks, rays, methods.rays_at_once(config))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _render_chunks(
    config: FieldConfig,
    stage: Stage,
    samples: int,
    params: Params,
    grid: OccupancyGrid,
    rays: Rays,
    aabb: Float[Array, "2 3"],
) -> Rendering:
    def render(chunk: Rays) -> Rendering:
        return methods.render_rays(config, stage, samples, params, grid, chunk, jnp.zeros(3), aabb)

    return jax.lax.map(render, rays)


def unpremultiply(picture: HostRendering) -> Float[np.ndarray, "*batch 3"]:
    """The colour of what rays hit, out of its rendering before black."""
    return np.clip(picture.rgb / np.maximum(picture.opacity, 1e-3)[..., None], 0.0, 1.0)


def visibility_and_view_dirs(
    positions: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    views: Iterable[View],
    slack: float,
) -> Float[np.ndarray, "n 3"]:
    """The mean direction in which cameras see each position of a surface; zero where none does.

    A camera sees what lies before it, turned to it, and not farther than where its ray through the
    same pixel ends, but for a slack. Cameras count by how much a position is turned to them, with
    the fourth power of the cosine.

    Args:
      positions: on the surface.
      normals: of unit length, outwards.
      views: what cameras see.
      slack: in scene units.
    """
    total = np.zeros_like(positions)
    for cameras, picture in views:
        pixel, depth = cams.project(cameras, 0, positions)
        column, row = np.moveaxis(np.floor(pixel), -1, 0)
        inside = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
        index = np.flatnonzero(inside & (depth > 0))
        way = np.asarray(cameras.T_world_camera[0, :3, 3], np.float64) - positions[index]
        distance = np.linalg.norm(way, axis=-1)
        cosine = np.sum(way * normals[index], axis=-1) / distance
        place = row[index].astype(int), column[index].astype(int)
        end = np.where(picture.opacity[place] > 0.5, picture.median_depth[place], np.inf)
        sees = (cosine > MIN_COSINE) & (distance <= end + slack)
        weight = np.where(sees, cosine**4 / distance, 0.0)
        total[index] -= weight[:, None] * way
    return _normalise(total)


def color_vertices(run: Run, mesh: Mesh, towards: Float[np.ndarray, "v 3"]) -> Mesh:
    """The mesh with the colours of short rendered rays through its vertices.

    Args:
      run: whose surface it is.
      mesh: in scene units.
      towards: (v, 3) unit directions in which vertices are seen.
    """
    away, pixel = run.scene.radius, measure_pixel(run)
    count = len(mesh.vertices)
    rays = Rays(
        origins=jnp.asarray(mesh.vertices - away * towards, jnp.float32),
        directions=jnp.asarray(towards, jnp.float32),
        near=jnp.full(count, max(away - BEFORE * pixel, 0.0)),
        far=jnp.full(count, away + BEHIND * pixel),
        radii=jnp.full(count, CONE / run.scene.focal),
        camera_index=jnp.zeros(count, jnp.int32),
    )
    return mesh._replace(colors=unpremultiply(make_render_rays(run)(rays)))


def make_mesh(
    run: Run,
    resolution: int,
    level: float,
    fragments: float,
    views: int,
    hidden: bool = False,
    track: Track = no_progress,
) -> Mesh:
    """The surface of what a run has learnt, in scene units.

    Args:
      run: of any field.
      resolution: voxels along the longest side of what is occupied.
      level: opacity of a step as long as a pixel is wide, in (0, 1), that makes the surface.
      fragments: share of all faces that a connected part must have; 1 keeps the largest part only.
      views: training cameras that are asked what they see.
      hidden: keep also what none of them sees, such as the inner sides of walls.
      track: of what is done.

    Raises:
      InputError: there is no surface, or the run's space is none that a mesh can be made in.
    """
    if run.scene.ndc is not None:
        raise InputError(
            f"{run.folder} was trained in normalised device coordinates, in which what is far "
            "away is near: there is no mesh of it, use --format points."
        )
    lattice = sample_density(run, resolution, track)
    pixel = measure_pixel(run)
    mesh = extract_surface(lattice, level, pixel)
    towards = -find_normals(mesh)
    if run.scene.poses or not hidden:
        seen_by = render_training_views(run, views, PICTURE_WIDTH, track)
        found = visibility_and_view_dirs(mesh.vertices, -towards, seen_by, SLACK * pixel)
        seen = np.any(found != 0.0, axis=-1)
        towards = np.where(seen[:, None], found, towards)
        if not hidden:
            kept = np.any(seen[mesh.faces], axis=-1)
            if not kept.any():
                raise InputError(
                    "No training camera sees anything of the surface: add --keep-hidden, or train "
                    "the run longer."
                )
            mesh, towards = _take_with(mesh, towards, kept)
    mesh, towards = _take_with(mesh, towards, find_large_parts(mesh, fragments))
    return color_vertices(run, mesh, towards)


def _take_with(
    mesh: Mesh, values: Float[np.ndarray, "v 3"], kept: Bool[np.ndarray, "f"]
) -> tuple[Mesh, Float[np.ndarray, "w 3"]]:
    """Some of a mesh's faces, and what belongs to their vertices."""
    return take_faces(mesh, kept), values[np.unique(mesh.faces[kept])]


# ---------------------------------------------------------------------------------------------
# Points
# ---------------------------------------------------------------------------------------------


def make_points(
    run: Run, wanted: int, views: int, seed: int = 0, track: Track = no_progress
) -> Points:
    """Points in scene units where rays of training cameras end: at half of their opacity.

    Rays of less opacity than a half end nowhere. In normalised device coordinates the points are
    those of space.

    Args:
      run: of any field.
      wanted: points, of all that are found a random choice.
      views: training cameras, spread over all.
      seed: of the choice.
      track: of the cameras.

    Raises:
      InputError: the run does not know its cameras, or they see nothing.
    """
    seen = render_training_views(run, views, PICTURE_WIDTH, track)
    clouds = [_end_rays(run, view) for view in seen]
    cloud = Points(*(np.concatenate(parts) for parts in zip(*clouds, strict=True)))
    if not len(cloud.positions):
        raise InputError(
            "No ray of the training cameras ends anywhere: the field is empty, train it longer."
        )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(cloud.positions))[:wanted]
    return Points(*(part[chosen] for part in cloud))


def _end_rays(run: Run, view: View) -> Points:
    """Where the rays of one view end."""
    scene, (cameras, picture) = run.scene, view
    space = dataclasses.replace(cameras, ndc=None)
    rays = cams.image_rays(space, 0, scene.near, scene.far)
    distance = picture.median_depth
    if scene.ndc is not None:
        bent = cams.image_rays(cameras, 0, scene.near, scene.far)
        plane = scene.ndc[2]
        distance = np.asarray(ndc_to_distance(rays, bent, jnp.asarray(distance), plane))
    origins, directions = (np.asarray(x, np.float64) for x in (rays.origins, rays.directions))
    positions = origins + distance[..., None] * directions
    hit = picture.opacity > 0.5
    if scene.ndc is not None:
        hit &= distance < FARTHEST_PLANES * scene.ndc[2]
    elif (bounds := run.state.grid.bounds) is not None:
        low, high = np.asarray(bounds, np.float64)
        apart = np.abs(positions - 0.5 * (low + high)) / (0.5 * (high - low))
        hit &= apart.max(axis=-1) < MAX_DISTANCE_FACTOR
    normals = face_pixels(positions, directions)
    return Points(positions[hit], normals[hit], unpremultiply(picture)[hit])


def face_pixels(
    positions: Float[np.ndarray, "h w 3"], directions: Float[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "h w 3"]:
    """Unit normals of a surface that an image of points shows, against the rays' directions.

    They are across the differences to the nearer of two neighbouring pixels along each axis, so
    that what is behind an edge does not count.
    """
    sides = []
    for axis in (0, 1):
        step = np.diff(positions, axis=axis)
        still = np.full_like(np.take(step, [0], axis=axis), np.inf) if step.size else None
        if still is None:
            return np.zeros_like(positions)
        before, after = (np.concatenate(p, axis=axis) for p in ((still, step), (step, still)))
        closer = np.linalg.norm(before, axis=-1) < np.linalg.norm(after, axis=-1)
        sides.append(np.where(closer[..., None], before, after))
    normals = _normalise(np.cross(sides[1], sides[0]))
    return np.where(np.sum(normals * directions, -1, keepdims=True) > 0, -normals, normals)


# ---------------------------------------------------------------------------------------------
# Frames
# ---------------------------------------------------------------------------------------------


def transform_mesh(frame: SimilarityTransform, mesh: Mesh) -> Mesh:
    """A mesh in the coordinates that a frame leads to."""
    return mesh._replace(vertices=transform_positions(frame, mesh.vertices))


def transform_points(frame: SimilarityTransform, points: Points) -> Points:
    """Points in the coordinates that a frame leads to."""
    return points._replace(
        positions=transform_positions(frame, points.positions),
        normals=points.normals @ frame.rotation.T,
    )

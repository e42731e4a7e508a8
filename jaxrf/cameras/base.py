"""Cameras: pixels to rays, and paths of cameras.

Axes are OpenGL's: x right, y up, z backwards. Pixel (column i, row j) covers [i, i+1] x [j, j+1]
of the image plane, so its center is at (i + 0.5, j + 0.5) and row 0 is the top.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.cameras import lenses
from jaxrf.cameras.lenses import Lens
from jaxrf.core.pytree import as_pytree
from jaxrf.core.rays import Rays
from jaxrf.training.config import RayConvention

# Points along each side of a picture by which what a lens sees is enclosed.
BORDER = 65
# Rays farther aside do not get longer, where their range is along the axis.
MIN_COSINE = 1e-3


@as_pytree("width", "height", "lens", "ndc", "z_depth_bounds")
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Cameras that share an image size.

    Attributes:
      T_world_camera: (n, 4, 4) camera-to-world, rigid, translation in scene units.
      focal: (n, 2) focal lengths fx, fy in pixels.
      principal_point: (n, 2) in pixels from the image's top left corner.
      width, height: of every image, in pixels.
      lens: of every camera.
      distortion: (n, k) coefficients of each lens (`lenses.COEFFICIENTS`); None is a pinhole.
      ndc: if rays are to be in normalized device coordinates, the two slopes and the near plane of
        `rays_to_ndc`; the cameras themselves are in space.
      z_depth_bounds: near and far are distances along the optical axis, and rays know their `stretch`.
    """

    T_world_camera: Float[Array | np.ndarray, "n 4 4"]
    focal: Float[Array | np.ndarray, "n 2"]
    principal_point: Float[Array | np.ndarray, "n 2"]
    width: int
    height: int
    lens: Lens = "perspective"
    distortion: Float[Array | np.ndarray, "n k"] | None = None
    ndc: tuple[float, float, float] | None = None
    z_depth_bounds: bool = False

    def __len__(self) -> int:
        return self.T_world_camera.shape[0]


def make_cameras(
    T_world_camera: Float[np.ndarray, "n 4 4"], width: int, height: int, camera_angle_x: float
) -> Cameras:
    """Cameras of one horizontal field of view (radians), square pixels, centered principal point."""
    return pinhole_cameras(
        T_world_camera, width, height, 0.5 * width / np.tan(0.5 * camera_angle_x)
    )


def pinhole_cameras(
    T_world_camera: Float[np.ndarray, "n 4 4"],
    width: int,
    height: int,
    focal: float | Float[np.ndarray, "n"],
    middle: tuple[float, float] | None = None,
) -> Cameras:
    """Cameras with square pixels.

    Args:
      T_world_camera: camera-to-world.
      width, height: of every image, in pixels.
      focal: length in pixels, of all cameras or of each.
      middle: principal point in pixels; by default that of the image.
    """
    shape = (T_world_camera.shape[0], 2)
    lengths = np.asarray(focal, np.float32).reshape(-1, 1)
    return Cameras(
        T_world_camera=np.asarray(T_world_camera, np.float32),
        focal=np.broadcast_to(lengths, shape).copy(),
        principal_point=np.broadcast_to(
            np.array(middle or (0.5 * width, 0.5 * height), np.float32), shape
        ).copy(),
        width=width,
        height=height,
    )


def resize_cameras(cameras: Cameras, width: int, height: int) -> Cameras:
    """The same cameras with another image size; the field of view stays."""
    scale = np.array([[width / cameras.width, height / cameras.height]], np.float32)
    return dataclasses.replace(
        cameras,
        focal=cameras.focal * scale,
        principal_point=cameras.principal_point * scale,
        width=width,
        height=height,
    )


def apply_ray_convention(cameras: Cameras, convention: RayConvention) -> Cameras:
    """Cameras whose rays pass pixels, begin and end where a convention has it."""
    shift = np.float32(0.5 - convention.pixel_center)
    return dataclasses.replace(
        cameras,
        principal_point=cameras.principal_point + shift,
        z_depth_bounds=convention.range_along == "axis",
    )


def index_cameras(cameras: Cameras, indices: Int[np.ndarray, "k"]) -> Cameras:
    """Some of the cameras."""
    distortion = None if cameras.distortion is None else cameras.distortion[indices]
    return dataclasses.replace(
        cameras,
        T_world_camera=cameras.T_world_camera[indices],
        focal=cameras.focal[indices],
        principal_point=cameras.principal_point[indices],
        distortion=distortion,
    )


# Near and far: the same for all cameras, or what finds those of one of them.
SceneRange = tuple[float, float] | Callable[[Cameras, int], tuple[float, float]]


def pixels_to_rays(
    cameras: Cameras,
    camera_index: Int[Array, "*batch"],
    pixels: Float[Array, "*batch 2"],
    near: float | Float[Array, ""],
    far: float | Float[Array, ""],
) -> Rays:
    """Rays through image points.

    Args:
      cameras: the cameras that `camera_index` points into.
      camera_index: (...) which camera.
      pixels: (..., 2) column and row in pixels; a pixel's center is at + 0.5.
      near, far: the same for every ray, distances along its unit direction. In normalized device
        coordinates rays reach from the near plane to infinity instead.

    Returns:
      Rays whose `radii` are those of Mip-NeRF's cones (section 3.1): at distance 1, the distance
      to the neighboring pixels' rays times 2 / sqrt(12), the geometric mean of that to the right
      and that below, so that its square is the area of the pixel.
    """
    pose = jnp.asarray(cameras.T_world_camera)[camera_index]
    focal = jnp.asarray(cameras.focal)[camera_index]
    offset = (pixels - jnp.asarray(cameras.principal_point)[camera_index]) / focal
    # Lenses look along +z with y down.
    flip = jnp.array([1.0, -1.0, -1.0], pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (3,))

    def unit(offset: Array) -> Array:
        if cameras.distortion is not None:
            coefficients = jnp.asarray(cameras.distortion)[camera_index]
            offset = lenses.undistort(cameras.lens, coefficients, offset)
        return lenses.point_to_direction(cameras.lens, offset) * flip

    direction = unit(offset)
    spacing = jnp.ones_like(offset[..., 0])
    for aside in ([1.0, 0.0], [0.0, 1.0]):
        step = jnp.array(aside, pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (2,))
        apart = jnp.linalg.norm(unit(offset + step / focal) - direction, axis=-1)
        spacing = spacing * jnp.sqrt(apart)
    near_array = jnp.full(camera_index.shape, near, pixels.dtype)
    rays = Rays(
        origins=pose[..., :3, 3],
        # An explicit sum: a matmul of 3x3s would follow the default matmul precision.
        directions=jnp.sum(pose[..., :3, :3] * direction[..., None, :], axis=-1),
        near=near_array,
        far=jnp.full_like(near_array, far),
        radii=spacing * (2.0 / np.sqrt(12.0)).item(),
        camera_index=camera_index,
    )
    if cameras.z_depth_bounds:
        stretch = 1.0 / jnp.maximum(-direction[..., 2], MIN_COSINE)
        rays = dataclasses.replace(
            rays, near=rays.near * stretch, far=rays.far * stretch, stretch=stretch
        )
    if cameras.ndc is None:
        return rays
    return rays_to_ndc(rays, jnp.asarray(cameras.ndc[:2], pixels.dtype), cameras.ndc[2])


def frustum_planes(cameras: Cameras, index: Int[Array, ""]) -> Float[Array, "4"]:
    """Slopes of four planes that enclose what a camera sees: to the left, right, top and bottom.

    A slope is how far from the optical axis a plane is at distance 1. Infinite where a lens sees
    too far aside for any.
    """
    focal, middle = (jnp.asarray(v)[index] for v in (cameras.focal, cameras.principal_point))
    size = jnp.asarray([cameras.width, cameras.height], focal.dtype)
    if cameras.distortion is None and cameras.lens != "fisheye":
        first, last = middle / focal, (size - middle) / focal
        return jnp.stack([first[0], last[0], first[1], last[1]])
    share = jnp.linspace(0.0, 1.0, BORDER)
    still = jnp.zeros_like(share)
    sides = [(share, still), (share, still + 1.0), (still, share), (still + 1.0, share)]
    border = jnp.concatenate([jnp.stack(side, axis=-1) for side in sides]) * size[None]
    offset = (border - middle[None]) / focal[None]
    if cameras.distortion is not None:
        coefficients = jnp.asarray(cameras.distortion)[index]
        coefficients = jnp.broadcast_to(coefficients, (offset.shape[0], coefficients.size))
        offset = lenses.undistort(cameras.lens, coefficients, offset)
    direction = lenses.point_to_direction(cameras.lens, offset)
    ahead = jnp.min(direction[:, 2]) > 0.1
    plane = direction[:, :2] / jnp.where(ahead, direction[:, 2:], 1.0)
    low, high = jnp.min(plane, axis=0), jnp.max(plane, axis=0)
    slopes = jnp.stack([-low[0], high[0], -low[1], high[1]])
    return jnp.where(ahead, slopes, jnp.inf)


def image_rays(
    cameras: Cameras,
    index: int | Int[Array, ""],
    near: float | Float[Array, ""],
    far: float | Float[Array, ""],
) -> Rays:
    """Rays through the centers of all pixels of one image, batch shape (height, width)."""
    columns, rows = jnp.meshgrid(
        jnp.arange(cameras.width) + 0.5, jnp.arange(cameras.height) + 0.5, indexing="xy"
    )
    pixels = jnp.stack([columns, rows], axis=-1).astype(jnp.float32)
    return pixels_to_rays(cameras, jnp.full(pixels.shape[:-1], index, jnp.int32), pixels, near, far)


def project(
    cameras: Cameras, index: int, positions: Float[np.ndarray, "*batch 3"]
) -> tuple[Float[np.ndarray, "*batch 2"], Float[np.ndarray, "*batch"]]:
    """Image points (column, row) of positions in the world, and their depth along the view axis.

    The inverse of `pixels_to_rays`; in float64. A depth that is not positive is behind the camera.
    """
    pose = np.asarray(cameras.T_world_camera[index], np.float64)
    local = (positions - pose[:3, 3]) @ pose[:3, :3] * np.array([1.0, -1.0, -1.0])
    depth = local[..., 2]
    plane = lenses.direction_to_point(cameras.lens, local)
    if cameras.distortion is not None:
        coefficients = np.asarray(cameras.distortion[index], np.float64)
        coefficients = np.broadcast_to(coefficients, (*plane.shape[:-1], coefficients.size))
        plane = np.asarray(lenses.distort(cameras.lens, coefficients, plane, xp=np))
    focal = np.asarray(cameras.focal[index], np.float64)
    return plane * focal + np.asarray(cameras.principal_point[index], np.float64), depth


def rays_to_ndc(rays: Rays, slopes: Float[Array, "2"], plane: float = 1.0) -> Rays:
    """Rays in normalized device coordinates, in which a forward-facing scene fills a cube.

    o' = -(o_x / (s_x o_z), o_y / (s_y o_z), -1 - 2 n / o_z) after the origin was moved on to the
    plane z = -n, and d' accordingly (NeRF, appendix C), s being half of the picture's extent over
    the focal length. The rays reach from that plane (-1 along z') to infinity (1); their
    directions are of unit length and `far` is where z' is 1. Pixels are about as wide all the way
    there; `radii` are such that a cone is so wide in the middle of it.

    Args:
      rays: looking down -z; those that do not become rays without length.
      slopes: half of the picture's width and height over the focal lengths.
      plane: n, how far ahead the near plane is.
    """
    axis = (1,) * (rays.origins.ndim - 1)
    scale = slopes.reshape((*axis, 2))
    ahead = -rays.directions[..., 2:]
    looking = ahead[..., 0] > 1e-6
    ahead = jnp.where(looking[..., None], ahead, 1.0)
    start = (plane + rays.origins[..., 2:]) / ahead
    origin = rays.origins + start * rays.directions
    depth = -origin[..., 2:]
    to_point = origin[..., :2] / (scale * depth)
    begin = jnp.concatenate([to_point, 1.0 - 2.0 * plane / depth], axis=-1)
    end_point = rays.directions[..., :2] / (scale * ahead)
    end = jnp.concatenate([end_point, jnp.ones_like(depth)], axis=-1)
    way = end - begin
    length = jnp.linalg.norm(way, axis=-1)
    # Half a picture is so wide at distance 1, and 1 in these coordinates.
    width = rays.radii / jnp.sqrt(scale[..., 0] * scale[..., 1])
    return dataclasses.replace(
        rays,
        origins=begin,
        directions=way / length[..., None],
        near=jnp.zeros_like(length),
        far=jnp.where(looking, length, 0.0),
        radii=width / (0.5 * length),
    )


def ndc_to_distance(
    rays: Rays, ndc: Rays, distances: Float[Array, "*batch"], plane: float = 1.0
) -> Float[Array, "*batch"]:
    """Distances along rays in space that are so far along the same rays in `rays_to_ndc`.

    t = n t' / (-d_z (1 - t')) behind the near plane, t' being the part of the way to infinity
    (NeRF, appendix C). What is at infinity is put 1e6 near planes away.

    Args:
      rays: in space.
      ndc: what `rays_to_ndc` made of them.
      distances: along `ndc`.
      plane: as there.
    """
    ahead = -rays.directions[..., 2]
    ahead = jnp.where(ahead > 1e-6, ahead, 1.0)
    part = distances / jnp.where(ndc.far > 0.0, ndc.far, 1.0)
    start = (plane + rays.origins[..., 2]) / ahead
    return start + plane * part / (ahead * jnp.maximum(1.0 - part, 1e-6))


def look_at(
    position: Float[np.ndarray, "3"],
    target: Float[np.ndarray, "3"],
    up: Float[np.ndarray, "3"] | None = None,
) -> Float[np.ndarray, "4 4"]:
    """Pose of a camera at `position` that looks at `target` with `up` (default +z) upwards.

    Looking straight along `up` is resolved by taking +y (or +x) for it.
    """
    back = np.asarray(position, np.float64) - np.asarray(target, np.float64)
    back = back / np.linalg.norm(back)
    candidates = [np.array([0.0, 0.0, 1.0]) if up is None else np.asarray(up, np.float64)]
    candidates += [np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])]
    right = next(r for c in candidates if np.linalg.norm(r := np.cross(c, back)) > 1e-6)
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :4] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return pose


def focus_point(T_world_camera: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "3"]:
    """The point nearest to all optical axes, in the sense of least squares.

    It solves sum_i (I - d_i d_i^T) (x - o_i) = 0; where the axes leave it open (one camera, or
    parallel ones), the solution nearest to the origin is taken.
    """
    origins = T_world_camera[:, :3, 3].astype(np.float64)
    axes = T_world_camera[:, :3, 2].astype(np.float64)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    sides = np.einsum("nij,nj->i", across, origins)
    return np.linalg.lstsq(across.sum(axis=0), sides, rcond=1e-6)[0]


def shift_near_far(
    cameras: Cameras,
    index: int,
    scene_range: tuple[float, float],
    focus: Float[np.ndarray, "3"],
    usual: tuple[float, float],
) -> tuple[float, float]:
    """Near and far of a camera, which may be nearer to or farther from the focus than is usual.

    Near and far move with a camera that is out of the usual range, lest the scene is cut off before
    one that comes close, and behind one that goes away.

    Args:
      cameras, index: which of them.
      scene_range: near and far of the usual cameras.
      focus: what they look at.
      usual: the distances of the nearest and the farthest of them from it.
    """
    away = float(np.linalg.norm(np.asarray(cameras.T_world_camera)[index, :3, 3] - focus))
    moved = away - min(max(away, usual[0]), usual[1])
    return max(scene_range[0] + moved, 0.0), scene_range[1] + moved


def near_far_for_box(cameras: Cameras, box: Float[np.ndarray, "2 3"]) -> tuple[float, float]:
    """The distances along rays between which cameras may see what is in a box (2, 3)."""
    if cameras.ndc is not None:
        # From the near plane to infinity.
        return 0.0, 2.0
    half = 0.5 * float(np.linalg.norm(np.diff(box, axis=0)))
    places = np.asarray(cameras.T_world_camera, np.float64)[:, :3, 3]
    away = np.linalg.norm(places - box.mean(axis=0), axis=-1)
    return max(float(away.min()) - half, 0.0), float(away.max()) + half

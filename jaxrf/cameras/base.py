"""Cameras: from pixels to rays, and from positions to pixels.

Axes are OpenGL's: x right, y up, z backwards. Pixel (column i, row j) covers [i, i+1] x [j, j+1]
of the image plane, so its center is at (i + 0.5, j + 0.5). Row 0 is the top.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.cameras import lenses
from jaxrf.cameras.lenses import Lens
from jaxrf.cameras.ndc import rays_to_ndc
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.pytree import as_pytree
from jaxrf.core.rays import Rays

# Points along each side of an image that are tested for the planes around a lens's view.
BORDER_POINTS = 65
# Lower bound of the cosine between a ray and the optical axis, which bounds `ray_z_scale`.
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
      ndc: for rays in normalized device coordinates, the two slopes and the near plane of
        `ndc.rays_to_ndc`; the poses themselves are in space. None for rays in space.
      z_depth_bounds: whether near and far are depths along the optical axis; rays then have a
        `ray_z_scale`.

    Example: `cameras[0]` and `cameras[2:5]` are cameras too, one and three of them.
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

    def __getitem__(self, index: int | slice | Int[np.ndarray, "k"]) -> "Cameras":
        """Cameras by slice or by array of indices; an integer gives a single one, of length 1."""
        if not isinstance(index, slice | np.ndarray):
            # A range raises IndexError for an index that is out of bounds, where jax would clamp.
            index = np.array([range(len(self))[index]])
        return dataclasses.replace(
            self,
            T_world_camera=self.T_world_camera[index],
            focal=self.focal[index],
            principal_point=self.principal_point[index],
            distortion=None if self.distortion is None else self.distortion[index],
        )


def make_cameras(
    T_world_camera: Float[np.ndarray, "n 4 4"], width: int, height: int, camera_angle_x: float
) -> Cameras:
    """Pinhole cameras with one horizontal field of view (radians), centered principal point."""
    return pinhole_cameras(
        T_world_camera, width, height, 0.5 * width / np.tan(0.5 * camera_angle_x)
    )


def pinhole_cameras(
    T_world_camera: Float[np.ndarray, "n 4 4"],
    width: int,
    height: int,
    focal: float | Float[np.ndarray, "n"],
    principal_point: tuple[float, float] | None = None,
) -> Cameras:
    """Pinhole cameras with square pixels.

    Args:
      T_world_camera: camera-to-world.
      width, height: of every image, in pixels.
      focal: length in pixels, of all cameras or of each.
      principal_point: in pixels; by default the center of the image.
    """
    shape = (T_world_camera.shape[0], 2)
    lengths = np.asarray(focal, np.float32).reshape(-1, 1)
    return Cameras(
        T_world_camera=np.asarray(T_world_camera, np.float32),
        focal=np.broadcast_to(lengths, shape).copy(),
        principal_point=np.broadcast_to(
            np.array(principal_point or (0.5 * width, 0.5 * height), np.float32), shape
        ).copy(),
        width=width,
        height=height,
    )


def resize_cameras(cameras: Cameras, width: int, height: int) -> Cameras:
    """The same cameras with another image size and the same field of view."""
    scale = np.array([[width / cameras.width, height / cameras.height]], np.float32)
    return dataclasses.replace(
        cameras,
        focal=cameras.focal * scale,
        principal_point=cameras.principal_point * scale,
        width=width,
        height=height,
    )


def apply_ray_convention(cameras: Cameras, convention: RayConvention) -> Cameras:
    """Cameras whose rays pass pixels and measure near and far as a convention says."""
    shift = np.float32(0.5 - convention.pixel_center)
    return dataclasses.replace(
        cameras,
        principal_point=cameras.principal_point + shift,
        z_depth_bounds=convention.range_along == "axis",
    )


def pixels_to_rays(
    cameras: Cameras,
    camera_index: Int[Array, "*batch"],
    pixels: Float[Array, "*batch 2"],
    near: float | Float[Array, ""],
    far: float | Float[Array, ""],
) -> Rays:
    """Rays through image points.

    Args:
      cameras: cameras that `camera_index` points into.
      camera_index: (...) index of each ray's camera.
      pixels: (..., 2) column and row in pixels; the center of a pixel is at + 0.5.
      near, far: distances along the unit direction (depths if `z_depth_bounds`), the same for
        every ray. In normalized device coordinates rays reach from the near plane to infinity.

    Returns:
      Rays with the `radii` of Mip-NeRF's cones (section 3.1): at distance 1, the distance to the
      ray of a neighboring pixel times 2 / sqrt(12). It is the geometric mean over the neighbors to
      the right and below, so that its square is proportional to the area of the pixel.
    """
    pose = jnp.asarray(cameras.T_world_camera)[camera_index]
    focal = jnp.asarray(cameras.focal)[camera_index]
    offset = (pixels - jnp.asarray(cameras.principal_point)[camera_index]) / focal
    # Lenses look along +z, with y down.
    flip = jnp.array([1.0, -1.0, -1.0], pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (3,))

    def unit_direction(offset: Array) -> Array:
        if cameras.distortion is not None:
            coefficients = jnp.asarray(cameras.distortion)[camera_index]
            offset = lenses.undistort(cameras.lens, coefficients, offset)
        return jnp.asarray(lenses.point_to_direction(cameras.lens, offset)) * flip

    direction = unit_direction(offset)
    spacing = jnp.ones_like(offset[..., 0])
    for neighbor in ([1.0, 0.0], [0.0, 1.0]):
        step = jnp.array(neighbor, pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (2,))
        distance = jnp.linalg.norm(unit_direction(offset + step / focal) - direction, axis=-1)
        spacing = spacing * jnp.sqrt(distance)
    near_array = jnp.full(camera_index.shape, near, pixels.dtype)
    rays = Rays(
        origins=pose[..., :3, 3],
        # An explicit sum, as a matmul would use the default matmul precision.
        directions=jnp.sum(pose[..., :3, :3] * direction[..., None, :], axis=-1),
        near=near_array,
        far=jnp.full_like(near_array, far),
        radii=spacing * (2.0 / np.sqrt(12.0)).item(),
        camera_index=camera_index,
    )
    if cameras.z_depth_bounds:
        scale = 1.0 / jnp.maximum(-direction[..., 2], MIN_COSINE)
        rays = dataclasses.replace(
            rays, near=rays.near * scale, far=rays.far * scale, ray_z_scale=scale
        )
    if cameras.ndc is None:
        return rays
    return rays_to_ndc(rays, jnp.asarray(cameras.ndc[:2], pixels.dtype), cameras.ndc[2])


def frustum_planes(cameras: Cameras, index: Int[Array, ""]) -> Float[Array, "4"]:
    """Slopes of the left, right, top and bottom planes that enclose the view of a camera.

    The slope of a plane is its distance from the optical axis at depth 1. All are infinite where
    the view of a lens is too wide for such planes.
    """
    focal, center = (jnp.asarray(v)[index] for v in (cameras.focal, cameras.principal_point))
    size = jnp.asarray([cameras.width, cameras.height], focal.dtype)
    if cameras.distortion is None and cameras.lens != "fisheye":
        first, last = center / focal, (size - center) / focal
        return jnp.stack([first[0], last[0], first[1], last[1]])
    ramp = jnp.linspace(0.0, 1.0, BORDER_POINTS)
    zeros = jnp.zeros_like(ramp)
    sides = [(ramp, zeros), (ramp, zeros + 1.0), (zeros, ramp), (zeros + 1.0, ramp)]
    border = jnp.concatenate([jnp.stack(side, axis=-1) for side in sides]) * size[None]
    offset = (border - center[None]) / focal[None]
    if cameras.distortion is not None:
        coefficients = jnp.asarray(cameras.distortion)[index]
        coefficients = jnp.broadcast_to(coefficients, (offset.shape[0], coefficients.size))
        offset = lenses.undistort(cameras.lens, coefficients, offset)
    direction = lenses.point_to_direction(cameras.lens, offset)
    all_ahead = jnp.min(direction[:, 2]) > 0.1
    plane = direction[:, :2] / jnp.where(all_ahead, direction[:, 2:], 1.0)
    low, high = jnp.min(plane, axis=0), jnp.max(plane, axis=0)
    slopes = jnp.stack([-low[0], high[0], -low[1], high[1]])
    return jnp.where(all_ahead, slopes, jnp.inf)


def image_rays(
    cameras: Cameras,
    index: int | Int[Array, ""],
    near: float | Float[Array, ""],
    far: float | Float[Array, ""],
) -> Rays:
    """Rays through the centers of all pixels of one image; batch shape (height, width)."""
    columns, rows = jnp.meshgrid(
        jnp.arange(cameras.width) + 0.5, jnp.arange(cameras.height) + 0.5, indexing="xy"
    )
    pixels = jnp.stack([columns, rows], axis=-1).astype(jnp.float32)
    return pixels_to_rays(cameras, jnp.full(pixels.shape[:-1], index, jnp.int32), pixels, near, far)


def project(
    cameras: Cameras,
    index: int | Int[np.ndarray, "*batch"],
    positions: Float[np.ndarray, "*batch 3"],
) -> tuple[Float[np.ndarray, "*batch 2"], Float[np.ndarray, "*batch"]]:
    """Image points (column, row) of positions in the world, and their depth along the optical axis.

    Inverse of `pixels_to_rays`, in float64. Positions of non-positive depth are behind the camera.

    Args:
      cameras: n cameras.
      index: of one camera, or of the camera of each position.
      positions: in the world.
    """
    pose = np.asarray(cameras.T_world_camera, np.float64)[index]
    shift = positions - pose[..., :3, 3]
    local = np.einsum("...i,...ij->...j", shift, pose[..., :3, :3]) * np.array([1.0, -1.0, -1.0])
    depth = local[..., 2]
    plane = lenses.direction_to_point(cameras.lens, local)
    if cameras.distortion is not None:
        coefficients = np.asarray(cameras.distortion, np.float64)[index]
        coefficients = np.broadcast_to(coefficients, (*plane.shape[:-1], coefficients.shape[-1]))
        plane = np.asarray(lenses.distort(cameras.lens, coefficients, plane, xp=np))
    focal = np.asarray(cameras.focal, np.float64)[index]
    return plane * focal + np.asarray(cameras.principal_point, np.float64)[index], depth


def unproject(
    cameras: Cameras, index: Int[np.ndarray, "m"], pixels: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m 3"]:
    """Unit directions of image points in the axes of their cameras, in float64.

    Args:
      cameras: n cameras.
      index: of the camera of each point.
      pixels: column and row.
    """
    focal = np.asarray(cameras.focal, np.float64)[index]
    point = (pixels - np.asarray(cameras.principal_point, np.float64)[index]) / focal
    if cameras.distortion is not None:
        coefficients = np.asarray(cameras.distortion, np.float64)[index]
        point = lenses.undistort_in_numpy(cameras.lens, coefficients, point)
    direction = lenses.point_to_direction(cameras.lens, point, xp=np)
    return np.asarray(direction, np.float64) * np.array([1.0, -1.0, -1.0])

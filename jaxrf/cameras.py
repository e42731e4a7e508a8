"""Pinhole cameras: pixels to rays, and paths of cameras.

Axes are OpenGL's: x right, y up, z backwards. Pixel (column i, row j) covers [i, i+1] x [j, j+1]
of the image plane, so its centre is at (i + 0.5, j + 0.5) and row 0 is the top.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.pytree import as_pytree
from jaxrf.rays import Rays


@as_pytree("width", "height")
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Cameras that share an image size.

    Attributes:
      T_world_camera: (n, 4, 4) camera-to-world, rigid, translation in scene units.
      focal: (n, 2) focal lengths fx, fy in pixels.
      principal_point: (n, 2) in pixels from the image's top left corner.
      width, height: of every image, in pixels.
    """

    T_world_camera: Float[Array | np.ndarray, "n 4 4"]
    focal: Float[Array | np.ndarray, "n 2"]
    principal_point: Float[Array | np.ndarray, "n 2"]
    width: int
    height: int

    def __len__(self) -> int:
        return self.T_world_camera.shape[0]


def make_cameras(
    T_world_camera: Float[np.ndarray, "n 4 4"], width: int, height: int, camera_angle_x: float
) -> Cameras:
    """Cameras of one horizontal field of view (radians), square pixels, centred principal point."""
    count = T_world_camera.shape[0]
    focal = 0.5 * width / np.tan(0.5 * camera_angle_x)
    return Cameras(
        T_world_camera=np.asarray(T_world_camera, np.float32),
        focal=np.full((count, 2), focal, np.float32),
        principal_point=np.tile(np.array([0.5 * width, 0.5 * height], np.float32), (count, 1)),
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


def pixels_to_rays(
    cameras: Cameras,
    camera_index: Int[Array, "*batch"],
    pixels: Float[Array, "*batch 2"],
    near: float,
    far: float,
) -> Rays:
    """Rays through image points.

    Args:
      cameras: the cameras that `camera_index` points into.
      camera_index: (...) which camera.
      pixels: (..., 2) column and row in pixels; a pixel's centre is at + 0.5.
      near, far: the same for every ray, distances along its unit direction.

    Returns:
      Rays whose `radii` are those of Mip-NeRF's cones (section 3.1): at distance 1, the distance
      to the neighbouring pixel's ray times 2 / sqrt(12).
    """
    pose = jnp.asarray(cameras.T_world_camera)[camera_index]
    focal = jnp.asarray(cameras.focal)[camera_index]
    offset = (pixels - jnp.asarray(cameras.principal_point)[camera_index]) / focal
    flip = jnp.array([1.0, -1.0], pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (2,))

    def unit(offset: Array) -> Array:
        direction = jnp.concatenate([offset * flip, -jnp.ones_like(offset[..., :1])], axis=-1)
        return direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)

    direction = unit(offset)
    right = jnp.array([1.0, 0.0], pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (2,))
    spacing = jnp.linalg.norm(unit(offset + right / focal) - direction, axis=-1)
    near_array = jnp.full(camera_index.shape, near, pixels.dtype)
    return Rays(
        origins=pose[..., :3, 3],
        # An explicit sum: a matmul of 3x3s would follow the default matmul precision.
        directions=jnp.sum(pose[..., :3, :3] * direction[..., None, :], axis=-1),
        near=near_array,
        far=jnp.full_like(near_array, far),
        radii=spacing * (2.0 / np.sqrt(12.0)).item(),
        camera_index=camera_index,
    )


def image_rays(cameras: Cameras, index: int | Int[Array, ""], near: float, far: float) -> Rays:
    """Rays through the centres of all pixels of one image, batch shape (height, width)."""
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
    local = (positions - pose[:3, 3]) @ pose[:3, :3]
    depth = -local[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        plane = local[..., :2] * np.array([1.0, -1.0]) / depth[..., None]
    focal = np.asarray(cameras.focal[index], np.float64)
    return plane * focal + np.asarray(cameras.principal_point[index], np.float64), depth


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


def find_focus(T_world_camera: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "3"]:
    """The point nearest to all optical axes, in the sense of least squares.

    It solves sum_i (I - d_i d_i^T) (x - o_i) = 0; where the axes leave it open (one camera, or
    parallel ones), the solution nearest to the origin is taken.
    """
    origins = T_world_camera[:, :3, 3].astype(np.float64)
    axes = T_world_camera[:, :3, 2].astype(np.float64)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    sides = np.einsum("nij,nj->i", across, origins)
    return np.linalg.lstsq(across.sum(axis=0), sides, rcond=1e-6)[0]


def orbit_path(
    frames: int,
    radius: float,
    elevation: float,
    target: Float[np.ndarray, "3"] | None = None,
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on a full circle around +z through `target` (default the origin), looking at it.

    Args:
      frames: number of poses; the last is one step short of the first, so that a video loops.
      radius: distance from the target, in scene units.
      elevation: angle above the horizon, radians.
    """
    centre = np.zeros(3) if target is None else np.asarray(target, np.float64)
    poses = []
    for azimuth in np.linspace(0.0, 2.0 * np.pi, frames, endpoint=False):
        outwards = np.array(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation),
            ]
        )
        poses.append(look_at(centre + radius * outwards, centre))
    return np.stack(poses)

"""Poses of cameras: making, checking and measuring them, and the near and far that they imply."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import shorten

# Near and far: the same for all cameras, or a function of the cameras and the index of one of them.
SceneRange = tuple[float, float] | Callable[[Cameras, int], tuple[float, float]]
# Of the last row. Files carry 6 or more digits.
POSE_TOLERANCE = 1e-3
# Of the products of axes, and of a scale that is none: axes of two digits deviate by 0.01, sheared
# ones by far more.
AXES_TOLERANCE, SCALE_TOLERANCE = 0.02, 0.01
# Below which axes are left as they are.
EXACT_TOLERANCE = 1e-5
# Of axes of a scaled pose.
MIN_SCALE = 1e-6


def look_at(
    position: Float[np.ndarray, "3"],
    target: Float[np.ndarray, "3"],
    up: Float[np.ndarray, "3"] | None = None,
) -> Float[np.ndarray, "4 4"]:
    """Camera-to-world pose at `position`, looking at `target`, with `up` (default +z) upwards.

    Where the view direction is parallel to `up`, +y (or +x) replaces it.
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


def rotation_from_quaternion(
    quaternion: Float[np.ndarray, "4"], tolerance: float = 1e-3
) -> Float[np.ndarray, "3 3"] | None:
    """Rotation of a quaternion w, x, y, z; None if its length is not 1 within a tolerance."""
    length = float(np.linalg.norm(quaternion))
    if not abs(length - 1.0) <= tolerance:
        return None
    w, x, y, z = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation_from_vector(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation around a vector by its length in radians."""
    half = 0.5 * float(np.linalg.norm(vector))
    axis = 0.5 * np.sinc(half / np.pi) * vector
    rotation = rotation_from_quaternion(np.array([np.cos(half), *axis]))
    assert rotation is not None
    return rotation


def focus_point(T_world_camera: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "3"]:
    """The point nearest to all optical axes, in the least-squares sense.

    Solves sum_i (I - d_i d_i^T) (x - o_i) = 0. Where the solution is not unique (one camera, or
    parallel axes), returns the one nearest to the origin.
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
    """Near and far for a camera that may be nearer to the focus or farther than usual.

    Near and far move with a camera outside the usual range of distances, so that they do not cut
    the scene off in front of a close camera or beyond a distant one.

    Args:
      cameras, index: the camera.
      scene_range: near and far of the usual cameras.
      focus: point that the usual cameras look at.
      usual: smallest and largest distance of the usual cameras from the focus.
    """
    distance = float(np.linalg.norm(np.asarray(cameras.T_world_camera)[index, :3, 3] - focus))
    shift = distance - min(max(distance, usual[0]), usual[1])
    return max(scene_range[0] + shift, 0.0), scene_range[1] + shift


def near_far_for_box(cameras: Cameras, aabb: Float[np.ndarray, "2 3"]) -> tuple[float, float]:
    """Distances along rays between which cameras can see the contents of a box (2, 3)."""
    if cameras.ndc is not None:
        # Rays reach from the near plane to infinity, a length of 2 in NDC.
        return 0.0, 2.0
    half = 0.5 * float(np.linalg.norm(np.diff(aabb, axis=0)))
    positions = np.asarray(cameras.T_world_camera, np.float64)[:, :3, 3]
    distances = np.linalg.norm(positions - aabb.mean(axis=0), axis=-1)
    return max(float(distances.min()) - half, 0.0), float(distances.max()) + half


def check_pose(
    value: object, where: str, key: str = "transform_matrix"
) -> Float[np.ndarray, "4 4"]:
    """A rigid camera-to-world matrix in float64, read from JSON.

    Args:
      value: parsed JSON.
      where: file or entry that holds it, for messages.
      key: name of the matrix, for messages.

    Raises:
      InputError: it is not a rotation and a translation.
    """
    pose, scale = split_scale(value, where, key)
    if scale != 1.0:
        raise InputError(
            f"{key} in {where} is a rotation times {scale:.4g}; take the scale out of it."
        )
    return pose


def split_scale(
    value: object, where: str, key: str = "transform_matrix"
) -> tuple[Float[np.ndarray, "4 4"], float]:
    """A camera-to-world matrix as a rigid pose in float64, and the scale of its axes.

    Axes are scaled where the camera of a scene is, as in Blender, or where the whole matrix is, its
    last entry too. Neither changes an image, so that the position stays as it is. Axes that were
    rounded are replaced by the nearest ones that are orthogonal (polar decomposition).

    Args:
      value: parsed JSON.
      where: file or entry that holds it, for messages.
      key: name of the matrix, for messages.

    Raises:
      InputError: it is not 4 rows of 4 finite numbers, or not a rotation, a scale and a
        translation.
    """
    rows = value if isinstance(value, list) else []
    if len(rows) != 4 or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise InputError(f"{key} in {where} is not 4 rows of 4 numbers; correct it.")
    limit = float(np.finfo(np.float32).max)  # Cameras are float32.
    for entry in (entry for row in rows for entry in row):
        if not isinstance(entry, float) or not abs(entry) <= limit:  # False for NaN.
            raise InputError(f"{key} in {where} holds {shorten(entry)}; make it a finite number.")
    pose = np.array(rows)
    scale = float(np.cbrt(np.linalg.det(pose[:3, :3])))
    in_range = MIN_SCALE <= scale <= 1.0 / MIN_SCALE
    axes = pose[:3, :3] / (scale if in_range else 1.0)
    deviation = np.abs(axes @ axes.T - np.eye(3)).max()
    last = np.append(pose[3, :3], np.abs(pose[3, 3] - np.array([1.0, scale])).min())
    if (
        not in_range
        or deviation > AXES_TOLERANCE
        or np.abs(last).max() > POSE_TOLERANCE * min(scale, 1.0)
    ):
        raise InputError(
            f"{key} in {where} is not a rotation and a translation"
            " (orthogonal axes of one length, determinant above 0, last row 0 0 0 1); take shear "
            "and mirroring out of it."
        )
    if deviation > EXACT_TOLERANCE:
        left, _, right = np.linalg.svd(axes)
        axes = left @ right
    pose[:3, :3] = axes
    pose[3] = (0.0, 0.0, 0.0, 1.0)
    return pose, 1.0 if abs(scale - 1.0) < SCALE_TOLERANCE else scale

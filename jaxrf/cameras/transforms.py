"""Similarity transforms from the coordinates of a data set's files to those of the scene.

Files give poses in arbitrary coordinates, such as those of a structure-from-motion tool's first
camera or of a turntable. Training needs a scene that is upright, around the origin and of known
size. Every transform is computed from the poses by a stated rule and can be inverted.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.poses import focus_point

# The box that `center_and_scale` puts cameras into, and the near and far there by default.
UNIT_AABB = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
DEFAULT_NEAR, DEFAULT_FAR = 0.05, 6.0
# Length of the mean of unit directions below which they have none in common.
MIN_MEAN_UP = 0.2
# Smallest eigenvalue of the mean of I - d d^T, which is the variance of the angle between axes,
# below which the point that axes meet in is noise: 1.8 degrees.
MIN_AXIS_VARIANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class SimilarityTransform:
    """A similarity from a file's coordinates to those of the scene: x -> scale R x + shift.

    Attributes:
      scale: scene units per unit of the file.
      rotation: (3, 3) R, orthonormal.
      shift: (3,) in scene units.
    """

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "3"]


def identity_transform() -> SimilarityTransform:
    """The transform of scenes whose files are in scene units already."""
    return SimilarityTransform(1.0, np.eye(3), np.zeros(3))


def pack_transform(transform: SimilarityTransform) -> tuple[float, ...]:
    """Scale, rotation (row-major) and shift as 13 numbers, for a file."""
    return (transform.scale, *map(float, transform.rotation.ravel()), *map(float, transform.shift))


def unpack_transform(numbers: Sequence[float]) -> SimilarityTransform:
    """Inverse of `pack_transform`."""
    scale, *matrix = numbers
    return SimilarityTransform(scale, np.array(matrix[:9]).reshape(3, 3), np.array(matrix[9:]))


def invert_transform(transform: SimilarityTransform) -> SimilarityTransform:
    """The inverse transform, from the scene to the file."""
    inverse = transform.rotation.T
    shift = -(inverse @ transform.shift) / transform.scale
    return SimilarityTransform(1.0 / transform.scale, inverse, shift)


def compose_transforms(
    first: SimilarityTransform, second: SimilarityTransform
) -> SimilarityTransform:
    """The transform that applies `first`, then `second`."""
    return SimilarityTransform(
        second.scale * first.scale,
        second.rotation @ first.rotation,
        second.scale * (second.rotation @ first.shift) + second.shift,
    )


def transform_positions(
    transform: SimilarityTransform, positions: Float[np.ndarray, "*n 3"]
) -> Float[np.ndarray, "*n 3"]:
    """Transformed positions."""
    return transform.scale * positions @ transform.rotation.T + transform.shift


def transform_poses(
    transform: SimilarityTransform, poses: Float[np.ndarray, "n 4 4"]
) -> Float[np.ndarray, "n 4 4"]:
    """Transformed camera-to-world poses, which stay rigid: only positions are scaled."""
    transformed = np.array(poses, np.float64)
    transformed[:, :3, :3] = transform.rotation @ poses[:, :3, :3]
    transformed[:, :3, 3] = transform_positions(transform, poses[:, :3, 3])
    return transformed


def fit_similarity(
    source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]
) -> SimilarityTransform:
    """The similarity that moves points nearest to other ones, in the least-squares sense.

    Umeyama: Least-squares estimation of transformation parameters between two point patterns (PAMI
    1991).
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    a, b = source - source_mean, target - target_mean
    left, sizes, right = np.linalg.svd(b.T @ a / len(a))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = (left * signs) @ right
    scale = float(sizes @ signs / max(np.mean(np.sum(a**2, axis=-1)), 1e-30))
    return SimilarityTransform(scale, rotation, target_mean - scale * rotation @ source_mean)


def fit_pose_similarity(
    source: Float[np.ndarray, "n 4 4"], target: Float[np.ndarray, "n 4 4"]
) -> SimilarityTransform:
    """The similarity that moves camera-to-world poses nearest to other ones.

    Procrustes on positions and axes together. So the rotation is determined however few or
    collinear the positions are. An angle of a camera counts as much as the length that it spans at
    the spread of the positions. The scale is 1 where the positions coincide.
    """
    a = source[:, :3, 3] - source[:, :3, 3].mean(axis=0)
    b = target[:, :3, 3] - target[:, :3, 3].mean(axis=0)
    square = float(np.mean(np.sum(a.astype(np.float64) ** 2, axis=-1)))
    extent = float(np.abs(source[:, :3, 3]).max(initial=0.0))
    spreads = square > (1e-6 * extent) ** 2
    axes = np.einsum("nij,nkj->ik", target[:, :3, :3], source[:, :3, :3]).astype(np.float64)
    left, _, right = np.linalg.svd(b.T @ a + (square if spreads else 1.0) * axes)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = (left * signs) @ right
    scale = float(np.sum((a @ rotation.T) * b) / (len(a) * square)) if spreads else 1.0
    shift = target[:, :3, 3].mean(axis=0) - scale * rotation @ source[:, :3, 3].mean(axis=0)
    return SimilarityTransform(scale, rotation, shift)


def rotate_onto(
    source: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that turns one direction into another one."""
    a, b = source / np.linalg.norm(source), target / np.linalg.norm(target)
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1.0 + 1e-12:
        # Half a turn around any perpendicular axis.
        across = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        across /= np.linalg.norm(across)
        return 2.0 * np.outer(across, across) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1.0 + cosine)


def align_up(poses: Float[np.ndarray, "n 4 4"]) -> SimilarityTransform:
    """Rotation that turns the mean up direction of cameras to +z; the smallest one.

    Where the up directions cancel out, as on the parallel tracks of a drone, cameras that look in
    one direction look down.
    """
    up = poses[:, :3, 1].mean(axis=0)
    if np.linalg.norm(up) < MIN_MEAN_UP:
        up = poses[:, :3, 2].mean(axis=0)
    if np.linalg.norm(up) < MIN_MEAN_UP:
        return identity_transform()
    return SimilarityTransform(1.0, rotate_onto(up, np.array([0.0, 0.0, 1.0])), np.zeros(3))


def looks_forward(poses: Float[np.ndarray, "n 4 4"]) -> bool:
    """Whether all cameras look within 60 degrees of their mean direction."""
    ahead = -poses[:, :3, 2]
    mean = ahead.mean(axis=0)
    if np.linalg.norm(mean) < 1e-6:
        return False
    return bool(np.min(ahead @ (mean / np.linalg.norm(mean))) > 0.5)


def axis_variance(poses: Float[np.ndarray, "n 4 4"]) -> float:
    """Variance of the optical axes across their common direction: 0 if they are parallel.

    The smallest eigenvalue of the mean of I - d d^T, by which `focus_point` is determined.
    """
    axes = poses[:, :3, 2].astype(np.float64)
    moments = np.eye(3) - axes.T @ axes / max(len(axes), 1)
    return float(np.linalg.eigvalsh(moments)[0])


def center_and_scale(poses: Float[np.ndarray, "n 4 4"]) -> SimilarityTransform:
    """For captures all around: upright, centered on the cameras' focus, with cameras within +-1.

    The center is the point nearest to all optical axes if they are not nearly parallel and it is in
    front of at least half of the cameras, else the mean camera position. The largest coordinate of
    a camera becomes 1.
    """
    upright = align_up(poses)
    poses = transform_poses(upright, poses)
    positions = poses[:, :3, 3]
    center = focus_point(poses)
    in_front = np.einsum("ni,ni->n", center - positions, -poses[:, :3, 2]) > 0
    if in_front.mean() < 0.5 or axis_variance(poses) < MIN_AXIS_VARIANCE:
        center = positions.mean(axis=0)
    farthest = np.abs(positions - center).max()
    scale = 1.0 / farthest if farthest > 0 else 1.0
    return compose_transforms(upright, SimilarityTransform(scale, np.eye(3), -scale * center))


def recenter_poses(poses: Float[np.ndarray, "n 4 4"], nearest: float) -> SimilarityTransform:
    """For forward-facing captures: the mean pose becomes the identity, `nearest` becomes 4/3.

    The mean pose is at the mean position, looks along the mean direction and has the mean up
    direction upwards (LLFF; the 3/4 is its `bd_factor`).

    Args:
      poses: camera-to-world.
      nearest: distance of the nearest object, in the units of the poses.
    """
    back = poses[:, :3, 2].sum(axis=0)
    back /= np.linalg.norm(back)
    right = np.cross(poses[:, :3, 1].sum(axis=0), back)
    right /= np.linalg.norm(right)
    mean = np.stack([right, np.cross(back, right), back], axis=1)
    scale = 1.0 / (0.75 * nearest)
    return SimilarityTransform(scale, mean.T, -scale * (mean.T @ poses[:, :3, 3].mean(axis=0)))

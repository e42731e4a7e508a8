"""Frames: where a scene lies in coordinates of its own, by stated rules that can be undone.

Files give poses in coordinates that mean nothing: a structure-from-motion tool's first camera, a
turntable. Training wants the scene around the origin, upright, of a known size.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import focus_point

# Where `center_and_scale` puts the cameras; nothing is as near to them or as far, if nothing is known.
UNIT_AABB = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
DEFAULT_NEAR, DEFAULT_FAR = 0.05, 6.0


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
    """The frame of scenes whose files are in scene units already."""
    return SimilarityTransform(1.0, np.eye(3), np.zeros(3))


def pack_transform(frame: SimilarityTransform) -> tuple[float, ...]:
    """Scale, rotation row by row and shift as 13 numbers, for a file."""
    return (frame.scale, *map(float, frame.rotation.ravel()), *map(float, frame.shift))


def unpack_transform(numbers: Sequence[float]) -> SimilarityTransform:
    """The frame that `pack_transform` was given."""
    scale, *rest = numbers
    return SimilarityTransform(scale, np.array(rest[:9]).reshape(3, 3), np.array(rest[9:]))


def invert_transform(frame: SimilarityTransform) -> SimilarityTransform:
    """From the scene back to the file."""
    back = frame.rotation.T
    return SimilarityTransform(1.0 / frame.scale, back, -(back @ frame.shift) / frame.scale)


def compose_transforms(first: SimilarityTransform, second: SimilarityTransform) -> SimilarityTransform:
    """One frame that does the first, then the second."""
    return SimilarityTransform(
        second.scale * first.scale,
        second.rotation @ first.rotation,
        second.scale * (second.rotation @ first.shift) + second.shift,
    )


def transform_positions(frame: SimilarityTransform, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Points in the coordinates that a frame leads to."""
    return frame.scale * points @ frame.rotation.T + frame.shift


def transform_poses(frame: SimilarityTransform, poses: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
    """Camera-to-world poses in the coordinates that a frame leads to; they stay rigid."""
    moved = np.array(poses, np.float64)
    moved[:, :3, :3] = frame.rotation @ poses[:, :3, :3]
    moved[:, :3, 3] = transform_positions(frame, poses[:, :3, 3])
    return moved


def rotate_onto(
    source: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that turns one direction into another one."""
    a, b = source / np.linalg.norm(source), target / np.linalg.norm(target)
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1.0 + 1e-12:
        # Half a turn around anything across.
        across = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        across /= np.linalg.norm(across)
        return 2.0 * np.outer(across, across) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1.0 + cosine)


def align_up(poses: Float[np.ndarray, "n 4 4"]) -> SimilarityTransform:
    """Turns the mean of the cameras' up directions to +z, by the smallest rotation."""
    up = poses[:, :3, 1].mean(axis=0)
    if np.linalg.norm(up) < 1e-6:
        # Cameras that are held all ways round have no up.
        return identity_transform()
    return SimilarityTransform(1.0, rotate_onto(up, np.array([0.0, 0.0, 1.0])), np.zeros(3))


def looks_forward(poses: Float[np.ndarray, "n 4 4"]) -> bool:
    """Whether all cameras look within 60 degrees of their mean direction."""
    ahead = -poses[:, :3, 2]
    mean = ahead.mean(axis=0)
    if np.linalg.norm(mean) < 1e-6:
        return False
    return bool(np.min(ahead @ (mean / np.linalg.norm(mean))) > 0.5)


def center_and_scale(poses: Float[np.ndarray, "n 4 4"]) -> SimilarityTransform:
    """For captures all around: upright, what cameras look at in the middle, cameras within +-1.

    The middle is the point nearest to all optical axes if it is before most cameras, else the mean
    of their places. The largest coordinate of a camera becomes 1.
    """
    frame = align_up(poses)
    poses = transform_poses(frame, poses)
    places = poses[:, :3, 3]
    middle = focus_point(poses)
    before = np.einsum("ni,ni->n", middle - places, -poses[:, :3, 2]) > 0
    if before.mean() < 0.5:
        middle = places.mean(axis=0)
    farthest = np.abs(places - middle).max()
    scale = 1.0 / farthest if farthest > 0 else 1.0
    return compose_transforms(frame, SimilarityTransform(scale, np.eye(3), -scale * middle))


def recenter_poses(poses: Float[np.ndarray, "n 4 4"], nearest: float) -> SimilarityTransform:
    """For cameras side by side: their mean pose becomes the identity, the nearest thing 4/3 away.

    The mean pose is at the cameras' mean place, looks along their mean direction and has the mean
    up direction upwards (LLFF; its `bd_factor` is the 3/4).
    """
    back = poses[:, :3, 2].sum(axis=0)
    back /= np.linalg.norm(back)
    right = np.cross(poses[:, :3, 1].sum(axis=0), back)
    right /= np.linalg.norm(right)
    mean = np.stack([right, np.cross(back, right), back], axis=1)
    scale = 1.0 / (0.75 * nearest)
    return SimilarityTransform(scale, mean.T, -scale * (mean.T @ poses[:, :3, 3].mean(axis=0)))

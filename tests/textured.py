"""A textured ball on a textured floor, ray cast in numpy with exact cameras."""

import numpy as np

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.cameras.poses import look_at
from jaxrf.data.scene import Scene, Split


def ring_poses(count: int, radius: float = 3.0, height: float = 1.6) -> np.ndarray:
    """Cameras around the ball that look at it."""
    angles = 2 * np.pi * np.arange(count) / count
    return np.stack(
        [
            look_at(np.array([radius * np.cos(a), radius * np.sin(a), height]), np.zeros(3))
            for a in angles
        ]
    )


def cast_image(pose: np.ndarray, width: int, height: int, focal: float) -> np.ndarray:
    """(height, width, 3) 8-bit image of the scene."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    local = np.stack(
        [(columns - 0.5 * width) / focal, -(rows - 0.5 * height) / focal, -np.ones_like(rows)], -1
    )
    direction = local @ pose[:3, :3].T
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    origin = pose[:3, 3]
    half = direction @ origin
    inside = half**2 - (origin @ origin - 0.6**2)
    ball = np.where(inside > 0, -half - np.sqrt(np.maximum(inside, 0)), np.inf)
    floor = np.where(direction[..., 2] < -1e-6, (-0.6 - origin[2]) / direction[..., 2], np.inf)
    distance = np.minimum(ball, floor)
    sky = ~np.isfinite(distance)
    point = origin + np.where(sky, 1.0, distance)[..., None] * direction
    waves = np.sin(point @ np.array([[9.0, 4, 1], [-5, 8, 3], [2, -3, 11]]).T)
    waves = waves + np.sin(3.1 * point @ np.array([[3.0, -7, 5], [6, 5, -2], [-4, 9, 3]]).T)
    fade = np.exp(-0.1 * np.where(sky, 0.0, distance))[..., None]
    rgb = 0.5 + 0.22 * waves * fade
    rgb = np.where(sky[..., None], 0.7, rgb)
    return np.rint(255 * np.clip(rgb, 0, 1)).astype(np.uint8)


def textured_scene(count: int = 24, width: int = 64, height: int = 48) -> Scene:
    """A scene of `count` views from all around."""
    poses = ring_poses(count)
    rgb = np.stack([cast_image(pose, width, height, 55.0) for pose in poses])
    images = np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=-1)
    names = tuple(f"{index:03d}" for index in range(count))
    split = Split("train", names, images, pinhole_cameras(poses, width, height, 55.0))
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
    return Scene("textured", {"train": split}, box, 0.05, 6.0, unbounded=True)

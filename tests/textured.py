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


def hash_corners(corners: np.ndarray) -> np.ndarray:
    """Three values in [0, 1] for integer positions; they do not repeat, as tiles would."""
    x, y, z = np.moveaxis(corners.astype(np.uint64), -1, 0)
    with np.errstate(over="ignore"):
        mixed = x * np.uint64(73856093) ^ y * np.uint64(19349663) ^ z * np.uint64(83492791)
        for _ in range(2):
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    shifts = (np.uint64(8), np.uint64(24), np.uint64(40))
    return np.stack([(mixed >> shift) & np.uint64(0xFFFF) for shift in shifts], -1) / 65535.0


def look_up_noise(positions: np.ndarray) -> np.ndarray:
    """Three random values in [0, 1], smooth between the corners of unit cubes."""
    low = np.floor(positions).astype(int)
    share = positions - low
    total = np.zeros(positions.shape)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(np.array(corner), share, 1.0 - share), axis=-1)
        total += weight[..., None] * hash_corners(low + np.array(corner))
    return total


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
    # Finer grains far away would flicker from view to view.
    fade = np.exp(-0.12 * np.where(sky, 0.0, distance))[..., None]
    grains = look_up_noise(5.0 * point) + 0.7 * look_up_noise(13.0 * point + 5.0)
    rgb = 0.5 + 0.6 * (grains - 0.85) * fade
    rgb = np.where(sky[..., None], 0.7, rgb)
    return np.rint(255 * np.clip(rgb, 0, 1)).astype(np.uint8)


def textured_scene(count: int = 24, width: int = 64, height: int = 48) -> Scene:
    """A scene of `count` views from all around."""
    poses, focal = ring_poses(count), 55.0 * width / 64
    rgb = np.stack([cast_image(pose, width, height, focal) for pose in poses])
    images = np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=-1)
    names = tuple(f"{index:03d}" for index in range(count))
    split = Split("train", names, images, pinhole_cameras(poses, width, height, focal))
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
    return Scene("textured", {"train": split}, box, 0.05, 6.0, unbounded=True)

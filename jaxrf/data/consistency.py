"""Whether images fit their poses: a plane sweep between neighboring views.

Collins: A space-sweep approach to true multi-image matching (CVPR 1996). A point that a view shows
is looked up in a neighboring view at many depths; where poses and lenses are right, one of them
looks alike nearly everywhere. If the poses of the files are wrong, those in other axes do better.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.poses import focus_point
from jaxrf.cameras.transforms import (
    MIN_AXIS_VARIANCE,
    SimilarityTransform,
    axis_variance,
    invert_transform,
    transform_poses,
)
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.scene import Scene, Split

# Width and height to which images are reduced at most.
MAX_SIZE = 72
MAX_PAIRS = 8
NUM_DEPTHS = 40
# Depths in units of the distance between the two cameras.
NEAREST, FARTHEST = 0.8, 60.0
WINDOW = 5
# Standard deviation of gray values, of 255, in a window that says something.
MIN_TEXTURE = 6.0
# Poses that score this much need no other explanation.
GOOD_SCORE = 0.7
# A better explanation scores this much more, of at least the second number.
MIN_GAIN, MIN_BEST = 0.2, 0.55


@dataclasses.dataclass(frozen=True)
class _Views:
    """Small gray images with pinhole cameras.

    Attributes:
      gray: (n, h, w) from 0 to 255.
      intrinsics: (n, 4) fx, fy, cx, cy in pixels of them.
      poses: (n, 4, 4) camera-to-world, OpenGL axes, in the files' coordinates.
    """

    gray: Float[np.ndarray, "n h w"]
    intrinsics: Float[np.ndarray, "n 4"]
    poses: Float[np.ndarray, "n 4 4"]


def find_better_poses(scene: Scene) -> str | None:
    """A sentence on what the poses of a scene seem to be instead; None if they fit the images.

    Only looks at images if the cameras do not already look at one point in front of them. Skips
    scenes of fisheye lenses and of fewer than four images.
    """
    split = scene.splits.get("train") or next(iter(scene.splits.values()))
    if len(split) < 4 or split.cameras.lens == "fisheye" or _look_at_one_point(split.cameras):
        return None
    views = _shrink(split, scene.frame)
    score = score_poses(views)
    if score is None or score > GOOD_SCORE:
        return None
    inverse = np.linalg.inv(views.poses)
    alternatives = {
        "the poses look like OpenCV's (y down, z forwards): --axes opencv": views.poses @ FLIP_YZ,
        "the matrices look like world-to-camera: invert them": inverse,
        "the matrices look like world-to-camera with OpenCV's axes: invert them, and then --axes "
        "opencv": inverse @ FLIP_YZ,
    }
    scores = {
        text: score_poses(dataclasses.replace(views, poses=poses)) or 0.0
        for text, poses in alternatives.items()
    }
    best = max(scores, key=lambda text: scores[text])
    if scores[best] < max(MIN_BEST, score + MIN_GAIN):
        return None
    return f"Neighboring images do not fit their poses (correlation {score:.2f}), and {best}."


def _look_at_one_point(cameras: Cameras) -> bool:
    poses = np.asarray(cameras.T_world_camera, np.float64)
    to_focus = focus_point(poses) - poses[:, :3, 3]
    in_front = np.sum(to_focus * -poses[:, :3, 2], axis=-1) > 0
    return bool(in_front.mean() > 0.9) and axis_variance(poses) > MIN_AXIS_VARIANCE


def _shrink(split: Split, frame: SimilarityTransform) -> _Views:
    height, width = split.images.shape[1:3]
    scale = min(MAX_SIZE / max(width, height), 1.0)
    size = (max(int(width * scale), 2), max(int(height * scale), 2))
    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), 60)).astype(int))
    images = [Image.fromarray(split.images[index]).convert("L") for index in chosen]
    gray = np.stack([np.asarray(i.resize(size, Image.Resampling.BOX), np.float32) for i in images])
    ratio = np.array([size[0] / width, size[1] / height])
    focal, center = np.asarray(split.cameras.focal), np.asarray(split.cameras.principal_point)
    intrinsics = np.concatenate([focal[chosen] * ratio, center[chosen] * ratio], axis=-1)
    poses = np.asarray(split.cameras.T_world_camera, np.float64)[chosen]
    return _Views(gray, intrinsics, transform_poses(invert_transform(frame), poses))


def score_poses(views: _Views) -> float | None:
    """How alike neighboring views are at the best depths, as a mean correlation from -1 to 1.

    None if there are no neighbors or too little texture.
    """
    scores = []
    for first, second in _neighbors(views.poses):
        alike, textured = _sweep(views, first, second)
        if textured.sum() >= 50:
            scores.append(float(alike[textured].mean()))
    return float(np.mean(scores)) if scores else None


def _neighbors(poses: Float[np.ndarray, "n 4 4"]) -> list[tuple[int, int]]:
    """Pairs of a view and the nearest one that looks in nearly the same direction."""
    positions, axes = poses[:, :3, 3], poses[:, :3, 2]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    usual = float(np.median(distance))
    turned = axes @ axes.T < np.cos(np.radians(50.0))
    distance = np.where(turned | (distance <= 1e-3 * usual), np.inf, distance)
    firsts = np.unique(np.linspace(0, len(poses) - 1, MAX_PAIRS).astype(int))
    nearest = distance.argmin(axis=1)
    return [(int(i), int(nearest[i])) for i in firsts if np.isfinite(distance[i, nearest[i]])]


def _sweep(
    views: _Views, first: int, second: int
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The best correlation of each window of a view over all depths, and windows with texture.

    Windows that another view does not show at any depth count as 0.
    """
    gray, other = views.gray[first], views.gray[second]
    height, width = gray.shape
    fx, fy, cx, cy = views.intrinsics[first]
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    local = np.stack([(columns - cx) / fx, -(rows - cy) / fy, -np.ones_like(columns)], axis=-1)
    pose, other_pose = views.poses[first], views.poses[second]
    directions = local @ pose[:3, :3].T
    baseline = float(np.linalg.norm(pose[:3, 3] - other_pose[:3, 3]))
    inverse = np.linspace(1.0 / FARTHEST, 1.0 / NEAREST, NUM_DEPTHS) / baseline
    reference, texture = _normalize(gray)
    best = np.zeros(texture.shape)
    for depth in 1.0 / inverse:
        positions = pose[:3, 3] + depth * directions
        sampled, visible = _look_up(other, positions, other_pose, views.intrinsics[second])
        candidate, _ = _normalize(sampled)
        correlation = (reference * candidate).mean(axis=-1)
        inside = sliding_window_view(visible, (WINDOW, WINDOW)).all(axis=(2, 3))
        best = np.maximum(best, np.where(inside, correlation, 0.0))
    return best, texture > MIN_TEXTURE


def _normalize(
    gray: Float[np.ndarray, "h w"],
) -> tuple[Float[np.ndarray, "hw ww k"], Float[np.ndarray, "hw ww"]]:
    """Windows with mean 0 and variance 1, and their standard deviations."""
    windows = sliding_window_view(gray, (WINDOW, WINDOW)).reshape(
        gray.shape[0] - WINDOW + 1, gray.shape[1] - WINDOW + 1, -1
    )
    centered = windows - windows.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.mean(centered**2, axis=-1))
    return centered / np.maximum(deviation, 1.0)[..., None], deviation


def _look_up(
    gray: Float[np.ndarray, "h w"],
    positions: Float[np.ndarray, "p q 3"],
    pose: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "4"],
) -> tuple[Float[np.ndarray, "p q"], Bool[np.ndarray, "p q"]]:
    """Bilinear samples of a view at positions of the world, and whether it shows them."""
    local = (positions - pose[:3, 3]) @ pose[:3, :3]
    depth = -local[..., 2]
    safe = np.where(depth > 1e-9, depth, 1.0)
    fx, fy, cx, cy = intrinsics
    column = fx * local[..., 0] / safe + cx - 0.5
    row = -fy * local[..., 1] / safe + cy - 0.5
    height, width = gray.shape
    visible = (depth > 1e-9) & (column >= 0) & (column <= width - 1) & (row >= 0)
    visible &= row <= height - 1
    column, row = np.where(visible, column, 0.0), np.where(visible, row, 0.0)
    left, top = np.minimum(column.astype(int), width - 2), np.minimum(row.astype(int), height - 2)
    right, down = column - left, row - top
    upper = gray[top, left] * (1 - right) + gray[top, left + 1] * right
    lower = gray[top + 1, left] * (1 - right) + gray[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down, visible

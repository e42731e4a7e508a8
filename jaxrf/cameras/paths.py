"""Camera paths: poses for the frames of a video, generated or read from a file."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrf.cameras.base import Cameras, pinhole_cameras
from jaxrf.cameras.poses import check_pose, focus_point, look_at
from jaxrf.cameras.transforms import (
    SimilarityTransform,
    identity_transform,
    invert_transform,
    transform_poses,
)
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import read_json

MAX_FRAMES = 100_000
# Of more cameras, a tour is made through every k-th.
MAX_TOUR = 300


def orbit_path(
    frames: int,
    radius: float,
    elevation: float,
    target: Float[np.ndarray, "3"] | None = None,
    turns: int = 1,
    swing: float = 0.0,
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on circles around the axis +z through `target`, looking at the target.

    Args:
      frames: number of poses; the last is one step before the first, so that a video loops.
      radius: distance from the target, in scene units.
      elevation: angle above the horizon, in radians.
      target: by default the origin.
      turns: number of circles.
      swing: amplitude of one period of a sine that is added to the elevation, in radians.
    """
    center = np.zeros(3) if target is None else np.asarray(target, np.float64)
    poses = []
    for progress in np.linspace(0.0, 1.0, frames, endpoint=False):
        azimuth = 2.0 * np.pi * turns * progress
        # A view from straight above has no upright orientation.
        up = np.clip(elevation + swing * np.sin(2.0 * np.pi * progress), -1.5, 1.5)
        outwards = np.array(
            [np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)]
        )
        poses.append(look_at(center + radius * outwards, center))
    return np.stack(poses)


def spiral_path(
    frames: int,
    spread: Float[np.ndarray, "3"],
    depth: float,
    turns: int = 2,
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on a spiral around the origin that look at the point (0, 0, -depth) (LLFF).

    Args:
      frames: number of poses; the last is one step before the first.
      spread: amplitude along each axis, in scene units; along z with half the frequency.
      depth: distance of the point.
      turns: number of turns.
    """
    target = np.array([0.0, 0.0, -depth])
    poses = []
    for angle in np.linspace(0.0, 2.0 * np.pi * turns, frames, endpoint=False):
        position = spread * np.array([np.cos(angle), -np.sin(angle), -np.sin(0.5 * angle)])
        poses.append(look_at(position, target, np.array([0.0, 1.0, 0.0])))
    return np.stack(poses)


def ellipse_path(
    frames: int, T_world_camera: Float[np.ndarray, "n 4 4"], quantile: float = 0.9
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on a level ellipse around the focus of cameras, at their mean height.

    The half axes of the ellipse are quantiles of the cameras' distances from the focus along x and
    y (the authors' code of Mip-NeRF 360).

    Args:
      frames: number of poses; the last is one step before the first.
      T_world_camera: of the cameras, with z up.
      quantile: in [0, 1].
    """
    focus = focus_point(T_world_camera)
    positions = np.asarray(T_world_camera, np.float64)[:, :3, 3]
    half_axes = np.percentile(np.abs(positions - focus), 100.0 * quantile, axis=0)
    height = float(positions[:, 2].mean())
    poses = []
    for angle in np.linspace(0.0, 2.0 * np.pi, frames, endpoint=False):
        x, y = focus[:2] + half_axes[:2] * np.array([np.cos(angle), np.sin(angle)])
        poses.append(look_at(np.array([x, y, height]), focus))
    return np.stack(poses)


def interpolate_path(
    frames: int, T_world_camera: Float[np.ndarray, "n 4 4"], loops: bool = False
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on a smooth path through keyframes, in their order and with equal times between them.

    Positions follow cubic splines, rotations spherical linear interpolation.

    Args:
      frames: number of poses; the first and the last are keyframes.
      T_world_camera: keyframes, two or more.
      loops: whether the path returns to the first keyframe; the last pose is then one step before
        the first.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.spatial.transform import Rotation, Slerp

    poses = np.asarray(T_world_camera, np.float64)
    if loops:
        poses = np.concatenate([poses, poses[:1]])
    times = np.arange(len(poses), dtype=np.float64)
    frame_times = np.linspace(0.0, times[-1], frames, endpoint=not loops)
    path = np.tile(np.eye(4), (frames, 1, 1))
    path[:, :3, 3] = PchipInterpolator(times, poses[:, :3, 3])(frame_times)
    path[:, :3, :3] = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(frame_times).as_matrix()
    return path


def tour_path(
    frames: int, T_world_camera: Float[np.ndarray, "n 4 4"]
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on a smooth path of constant speed through what cameras saw, whatever they went around.

    The cameras are ordered to a short tour. Where it does not come back to its beginning, as on an
    arc in front of a wall, the path returns as it went. Positions and directions are averaged over
    neighbors in the tour, so that the path stays among the cameras.

    Args:
      frames: number of poses; the last is one step before the first.
      T_world_camera: of the cameras, in any order.
    """
    poses = np.asarray(T_world_camera, np.float64)
    poses = poses[:: 1 + len(poses) // MAX_TOUR]
    if len(poses) < 3:
        return np.repeat(poses[:1], frames, axis=0)
    distance = _tour_distance(poses)
    order = _shorten_tour(_nearest_tour(distance), distance)
    steps = distance[order[:-1], order[1:]]
    if distance[order[-1], order[0]] > 3.0 * np.median(steps):
        order = np.concatenate([order, order[-2:0:-1]])
    columns = poses[order][:, :3, 1:4]  # up, back, position
    smooth = _smooth_loop(columns, sigma=max(len(order) / 30.0, 1.0))
    dense = np.concatenate([smooth, smooth[:1]])
    span = max(float(np.ptp(poses[:, :3, 3], axis=0).max()), 1e-9)
    moved = np.linalg.norm(np.diff(dense[:, :, 2], axis=0), axis=-1) / span
    turned = np.linalg.norm(np.diff(dense[:, :, 1], axis=0), axis=-1)
    arc = np.concatenate([[0.0], np.cumsum(moved + 0.5 * turned + 1e-12)])
    at = np.linspace(0.0, arc[-1], frames, endpoint=False)
    flat = dense.reshape(len(dense), -1)
    sampled = np.stack([np.interp(at, arc, column) for column in flat.T], axis=-1)
    return np.stack([_pose_from_axes(*sample.reshape(3, 3).T) for sample in sampled])


def _tour_distance(poses: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n n"]:
    """Distances of positions, in units of their spread, and of viewing directions."""
    positions, axes = poses[:, :3, 3], poses[:, :3, 2]
    span = max(float(np.ptp(positions, axis=0).max()), 1e-9)
    moved = np.linalg.norm(positions[:, None] - positions[None], axis=-1) / span
    return moved + 0.5 * np.linalg.norm(axes[:, None] - axes[None], axis=-1)


def _nearest_tour(distance: Float[np.ndarray, "n n"]) -> Int[np.ndarray, "n"]:
    """A tour from one of the two farthest cameras that always goes on to the nearest one."""
    order = [int(np.unravel_index(distance.argmax(), distance.shape)[0])]
    left = np.ones(len(distance), bool)
    left[order[0]] = False
    while left.any():
        following = int(np.where(left, distance[order[-1]], np.inf).argmin())
        order.append(following)
        left[following] = False
    return np.array(order)


def _shorten_tour(
    order: Int[np.ndarray, "n"], distance: Float[np.ndarray, "n n"]
) -> Int[np.ndarray, "n"]:
    """The tour with parts reversed while that shortens it (2-opt; Croes 1958)."""
    improved = True
    while improved:
        improved = False
        for i in range(len(order) - 2):
            ends, nexts = order[i + 2 : -1], order[i + 3 :]
            if len(nexts) == 0:
                break
            now = distance[order[i], order[i + 1]] + distance[ends, nexts]
            then = distance[order[i], ends] + distance[order[i + 1], nexts]
            gain = now - then
            best = int(gain.argmax())
            if gain[best] > 1e-9:
                j = i + 2 + best
                order[i + 1 : j + 1] = order[i + 1 : j + 1][::-1]
                improved = True
    return order


def _smooth_loop(
    values: Float[np.ndarray, "n *shape"], sigma: float
) -> Float[np.ndarray, "n *shape"]:
    """Averages over neighbors in a loop, with a Gaussian of standard deviation `sigma`."""
    count = len(values)
    offset = np.arange(count)
    offset = np.minimum(offset, count - offset)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel /= kernel.sum()
    weights = kernel[(np.arange(count)[:, None] - np.arange(count)[None]) % count]
    return np.tensordot(weights, values, axes=1)


def _pose_from_axes(
    up: Float[np.ndarray, "3"], back: Float[np.ndarray, "3"], position: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    return look_at(position, position - back, up)


class CameraPath(NamedTuple):
    """The cameras of a file, in the coordinates of the data set's files.

    cameras: of all frames.
    fps: frames per second.
    """

    cameras: Cameras
    fps: float


# nerfstudio writes the transform of a data set's poses into this file, beside its checkpoints.
TRANSFORM_FILE = "dataparser_transforms.json"


def read_path(path: Path) -> CameraPath:
    """Reads a camera path that nerfstudio's viewer saved.

    The file has the coordinates that nerfstudio trained in. A `dataparser_transforms.json` beside
    it gives their transform from the coordinates of the data set, which is then undone.

    Raises:
      InputError: the file is missing or damaged, or its cameras are not perspective.
    """
    content = read_json(path, "camera_path")
    camera_type = content.get("camera_type", "perspective")
    if camera_type != "perspective":
        raise InputError(
            f"camera_type of {path} is {json.dumps(camera_type)[:40]}: save a perspective path."
        )
    width, height = (
        _read_number(content, f"render_{side}", 1.0, 16_384.0, str(path))
        for side in ("width", "height")
    )
    frames = content.get("camera_path")
    if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_FRAMES:
        raise InputError(
            f"camera_path of {path} is not a list of 1 to {MAX_FRAMES} cameras: save it again."
        )
    poses, focal = [], []
    for index, frame in enumerate(frames):
        pose, length = _read_frame(frame, height, f"camera_path[{index}] of {path}")
        poses.append(pose)
        focal.append(length)
    fps = content.get("fps", 24.0)
    if not isinstance(fps, float) or not 0.0 < fps <= 1000.0:
        raise InputError(f"fps of {path} is {json.dumps(fps)[:40]}: give frames per second.")
    to_data_set = invert_transform(_read_transform(path.with_name(TRANSFORM_FILE)))
    poses_in_data_set = transform_poses(to_data_set, np.stack(poses))
    cameras = pinhole_cameras(poses_in_data_set, int(width), int(height), np.array(focal))
    return CameraPath(cameras, fps)


def _read_frame(frame: object, height: float, where: str) -> tuple[Float[np.ndarray, "4 4"], float]:
    """Pose and focal length, in pixels, of one entry of a path."""
    if not isinstance(frame, dict):
        raise InputError(f"{where} is not an object; save the path again.")
    rows = frame.get("camera_to_world")
    if isinstance(rows, list) and len(rows) == 16:
        rows = [rows[4 * i : 4 * i + 4] for i in range(4)]
    pose = check_pose(rows, where, "camera_to_world")
    # The vertical angle of view, in degrees.
    angle = _read_number(frame, "fov", 0.1, 179.0, where)
    return pose, 0.5 * height / math.tan(0.5 * math.radians(angle))


def write_path(cameras: Cameras, fps: float) -> str:
    """JSON text of a camera path in the format of nerfstudio's viewer, which `read_path` reads.

    Args:
      cameras: of all frames, in the coordinates of the data set's files: pinholes with square
        pixels and a centered principal point.
      fps: frames per second.
    """
    frames = []
    for pose, focal in zip(cameras.T_world_camera, cameras.focal, strict=True):
        angle = 2.0 * math.degrees(math.atan(0.5 * cameras.height / float(focal[1])))
        numbers = [float(value) for value in np.asarray(pose, np.float64).ravel()]
        frames.append(
            {
                "camera_to_world": numbers,
                "fov": angle,
                "aspect": cameras.width / cameras.height,
            }
        )
    content = {
        "camera_type": "perspective",
        "render_width": cameras.width,
        "render_height": cameras.height,
        "fps": fps,
        "seconds": len(frames) / fps,
        "camera_path": frames,
    }
    return json.dumps(content, indent=1) + "\n"


def _read_transform(path: Path) -> SimilarityTransform:
    """Transform from the data set's coordinates to nerfstudio's; the identity without the file."""
    if not path.exists():
        return identity_transform()
    content = read_json(path, "transform and scale")
    rows = content.get("transform")
    square = [*rows, [0.0, 0.0, 0.0, 1.0]] if isinstance(rows, list) and len(rows) == 3 else rows
    pose = check_pose(square, str(path), "transform")
    scale = _read_number(content, "scale", 1e-9, 1e9, str(path))
    return SimilarityTransform(scale, pose[:3, :3], scale * pose[:3, 3])


def _read_number(table: dict[str, Any], key: str, low: float, high: float, where: str) -> float:
    value = table.get(key)
    if not isinstance(value, float) or not low <= value <= high:
        raise InputError(
            f"{key} of {where} is {json.dumps(value)[:40]}: make it {low:g} to {high:g}."
        )
    return value

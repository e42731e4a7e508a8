"""Paths of a camera: poses for the frames of a video, made up, or out of a file."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras, focus_point, look_at, pinhole_cameras
from jaxrf.cameras.transforms import SimilarityTransform, identity_transform, invert_transform, transform_poses
from jaxrf.core.errors import InputError
from jaxrf.data.files import check_pose, read_json

MAX_FRAMES = 100_000


def orbit_path(
    frames: int,
    radius: float,
    elevation: float,
    target: Float[np.ndarray, "3"] | None = None,
    turns: int = 1,
    swing: float = 0.0,
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on a full circle around +z through `target` (default the origin), looking at it.

    Args:
      frames: number of poses; the last is one step short of the first, so that a video loops.
      radius: distance from the target, in scene units.
      elevation: angle above the horizon, radians.
      target: what is looked at.
      turns: how often they go round.
      swing: how far they rise above that angle and sink below it, once on the way, radians.
    """
    center = np.zeros(3) if target is None else np.asarray(target, np.float64)
    poses = []
    for part in np.linspace(0.0, 1.0, frames, endpoint=False):
        azimuth = 2.0 * np.pi * turns * part
        # Straight above there is no upright picture.
        up = np.clip(elevation + swing * np.sin(2.0 * np.pi * part), -1.5, 1.5)
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
    """Poses on a spiral around the origin that look at a point so far ahead, along -z (LLFF).

    Args:
      frames: number of poses; the last is one step short of the first.
      spread: how far the poses go to each side, in scene units; along z half as often.
      depth: distance of the point.
      turns: how often they go round.
    """
    target = np.array([0.0, 0.0, -depth])
    poses = []
    for angle in np.linspace(0.0, 2.0 * np.pi * turns, frames, endpoint=False):
        place = spread * np.array([np.cos(angle), -np.sin(angle), -np.sin(0.5 * angle)])
        poses.append(look_at(place, target, np.array([0.0, 1.0, 0.0])))
    return np.stack(poses)


def ellipse_path(
    frames: int, T_world_camera: Float[np.ndarray, "n 4 4"], share: float = 0.9
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses on an ellipse around what cameras look at, as wide as most of them stand.

    Level, at the cameras' mean height; so far along x and y as nine tenths of them are (the
    authors' code of Mip-NeRF 360).

    Args:
      frames: number of poses; the last is one step short of the first.
      T_world_camera: of the cameras, with z up.
      share: of the cameras that stand within the ellipse's box.
    """
    focus = focus_point(T_world_camera)
    places = np.asarray(T_world_camera, np.float64)[:, :3, 3]
    reach = np.percentile(np.abs(places - focus), 100.0 * share, axis=0)
    height = float(places[:, 2].mean())
    poses = []
    for angle in np.linspace(0.0, 2.0 * np.pi, frames, endpoint=False):
        x, y = focus[:2] + reach[:2] * np.array([np.cos(angle), np.sin(angle)])
        poses.append(look_at(np.array([x, y, height]), focus))
    return np.stack(poses)


def interpolate_path(
    frames: int, T_world_camera: Float[np.ndarray, "n 4 4"], loops: bool = False
) -> Float[np.ndarray, "frames 4 4"]:
    """Poses through given ones in their order, at an even pace: places by splines, turns by arcs.

    Args:
      frames: number of poses; the first and the last are those given.
      T_world_camera: to pass through, two or more.
      loops: whether the path goes back to where it began; the last pose is then one step short of
        the first.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.spatial.transform import Rotation, Slerp

    poses = np.asarray(T_world_camera, np.float64)
    if loops:
        poses = np.concatenate([poses, poses[:1]])
    times = np.arange(len(poses), dtype=np.float64)
    wanted = np.linspace(0.0, times[-1], frames, endpoint=not loops)
    path = np.tile(np.eye(4), (frames, 1, 1))
    path[:, :3, 3] = PchipInterpolator(times, poses[:, :3, 3])(wanted)
    path[:, :3, :3] = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(wanted).as_matrix()
    return path


class CameraPath(NamedTuple):
    """The cameras of a file, in the coordinates of the data set's files.

    cameras: of all frames.
    fps: frames per second.
    """

    cameras: Cameras
    fps: float


# What nerfstudio did to the poses of a data set, written beside its checkpoints.
TRANSFORM = "dataparser_transforms.json"


def read_path(path: Path) -> CameraPath:
    """The camera path that nerfstudio's viewer saved.

    It is in the coordinates that nerfstudio trained in. If a `dataparser_transforms.json` lies
    beside it, which says how these came from those of the data set, that is undone.

    Raises:
      InputError: it is missing or damaged, or its cameras are not perspective.
    """
    content = read_json(path, "camera_path")
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise InputError(
            f"camera_type of {path} is {json.dumps(kind)[:40]}: save a perspective path."
        )
    width, height = (
        _read_number(content, f"render_{side}", 1.0, 16_384.0, str(path))
        for side in ("width", "height")
    )
    frames = content.get("camera_path")
    if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_FRAMES:
        raise InputError(
            f"camera_path of {path} is no list of 1 to {MAX_FRAMES} cameras: save it again."
        )
    poses, focal = [], []
    for index, frame in enumerate(frames):
        where = f"camera_path[{index}] of {path}"
        if not isinstance(frame, dict):
            raise InputError(f"{where} is not an object; save the path again.")
        numbers = frame.get("camera_to_world")
        rows = numbers
        if isinstance(numbers, list) and len(numbers) == 16:
            rows = [numbers[4 * i : 4 * i + 4] for i in range(4)]
        poses.append(check_pose(rows, where, "camera_to_world"))
        # The angle of view is that from top to bottom, in degrees.
        angle = _read_number(frame, "fov", 0.1, 179.0, where)
        focal.append(0.5 * height / math.tan(0.5 * math.radians(angle)))
    seconds = content.get("fps", 24.0)
    if not isinstance(seconds, float) or not 0.0 < seconds <= 1000.0:
        raise InputError(f"fps of {path} is {json.dumps(seconds)[:40]}: give frames per second.")
    back = invert_transform(_read_frame(path.with_name(TRANSFORM)))
    placed = transform_poses(back, np.stack(poses))
    cameras = pinhole_cameras(placed, int(width), int(height), np.array(focal))
    return CameraPath(cameras, seconds)


def write_path(cameras: Cameras, fps: float) -> str:
    """A camera path as nerfstudio's viewer saves it, which `read_path` reads again.

    Args:
      cameras: of all frames, in the coordinates of the data set's files, pinholes with square
        pixels and the principal point in the middle.
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


def _read_frame(path: Path) -> SimilarityTransform:
    """From the data set's coordinates to nerfstudio's; the identity if the file is not there."""
    if not path.exists():
        return identity_transform()
    content = read_json(path, "transform and scale")
    rows = content.get("transform")
    square = [*rows, [0.0, 0.0, 0.0, 1.0]] if isinstance(rows, list) and len(rows) == 3 else rows
    pose = check_pose(square, str(path), "transform")
    scale = _read_number(content, "scale", 1e-9, 1e9, str(path))
    return SimilarityTransform(scale, pose[:3, :3], scale * pose[:3, 3])


def _read_number(table: dict[str, Any], key: str, least: float, most: float, where: str) -> float:
    value = table.get(key)
    if not isinstance(value, float) or not least <= value <= most:
        raise InputError(
            f"{key} of {where} is {json.dumps(value)[:40]}: make it {least:g} to {most:g}."
        )
    return value

"""Camera paths through keyframes, and their files."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxrf.cameras import paths
from jaxrf.cameras.base import Cameras, make_cameras
from jaxrf.cameras.transforms import SimilarityTransform, invert_transform, transform_poses
from jaxrf.viewer.poses import View

# Maximum number of keyframes that are taken from the cameras of a file.
MAX_KEYFRAMES = 16


@dataclasses.dataclass(frozen=True)
class CameraPath:
    """Keyframes of a camera and the timing between them.

    Attributes:
      keyframes: views in the order in which the camera passes them.
      seconds: duration.
      fps: frames per second.
      loops: whether the camera returns to the first keyframe.
    """

    keyframes: tuple[View, ...] = ()
    seconds: float = 4.0
    fps: float = 24.0
    loops: bool = False

    @property
    def num_frames(self) -> int:
        """Number of frames of the path."""
        return max(round(self.seconds * self.fps), 1)


def interpolate_keyframes(path: CameraPath, width: int, height: int) -> Cameras:
    """The cameras of all frames of a path with two or more keyframes, for images of one size."""
    poses = np.stack([keyframe.pose for keyframe in path.keyframes])
    poses = paths.interpolate_path(path.num_frames, poses, path.loops)
    keyframe_fov = np.array([keyframe.fov for keyframe in path.keyframes])
    if path.loops:
        keyframe_fov = np.append(keyframe_fov, keyframe_fov[0])
    last = len(keyframe_fov) - 1.0
    position = np.linspace(0.0, last, path.num_frames, endpoint=not path.loops)
    fov = np.interp(position, np.arange(len(keyframe_fov)), keyframe_fov)
    cameras = make_cameras(poses, width, height, 1.0)
    focal = (0.5 * height / np.tan(0.5 * fov)).astype(np.float32)
    return dataclasses.replace(cameras, focal=np.stack([focal, focal], axis=-1))


def read_camera_path(file: Path, frame: SimilarityTransform) -> CameraPath:
    """The path of a file in the format of nerfstudio's viewer.

    At most `MAX_KEYFRAMES` of its cameras become keyframes, evenly spaced from first to last.

    Args:
      file: a .json file.
      frame: from the coordinates of the data set's files to those of training.

    Raises:
      InputError: the file is damaged.
    """
    content = paths.read_path(file)
    cameras = content.cameras
    poses = transform_poses(frame, np.asarray(cameras.T_world_camera, np.float64))
    count = min(MAX_KEYFRAMES, len(poses))
    indices = np.unique(np.linspace(0, len(poses) - 1, count).round()).astype(int)
    fov = 2.0 * np.arctan(0.5 * cameras.height / np.asarray(cameras.focal)[:, 1])
    aspect = cameras.width / cameras.height
    keyframes = tuple(View(poses[i], float(fov[i]), aspect) for i in indices)
    return CameraPath(keyframes, len(poses) / content.fps, content.fps)


def encode_camera_path(cameras: Cameras, fps: float, frame: SimilarityTransform) -> str:
    """The content of a file with all frames of a path, in the coordinates of the data set."""
    poses = transform_poses(invert_transform(frame), np.asarray(cameras.T_world_camera, np.float64))
    return paths.write_path(dataclasses.replace(cameras, T_world_camera=poses), fps)

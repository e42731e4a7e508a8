"""Facts about a scene that a run keeps, so that it can be rendered without the data set."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras, pinhole_cameras
from jaxrf.cameras.poses import SceneRange, focus_point, shift_near_far
from jaxrf.cameras.refinement import CameraAdjustment, adjust_cameras
from jaxrf.cameras.transforms import (
    SimilarityTransform,
    fit_pose_similarity,
    identity_transform,
    pack_transform,
)
from jaxrf.data.scene import Scene
from jaxrf.models.base import ModelParams
from jaxrf.sampling.occupancy import OccupancyGrid

# Of more training poses, only every k-th is stored.
MAX_POSES = 1000
# Relative margin of the distance from the focus point within which a camera counts as a training
# camera and gets the scene's near and far unchanged.
MARGIN = 0.05


@dataclasses.dataclass(frozen=True)
class SceneMetadata:
    """Facts about a scene that rendering needs.

    Attributes:
      name: of the data set.
      data: folder that it was read from.
      near, far: as in `Scene`, in scene units.
      width, height, focal: of the training cameras, in pixels.
      focus: (3) point that the training cameras look at.
      radius: mean distance of the training cameras from it.
      train_views: number of training images.
      checksum: CRC-32 of the training images.
      ndc: as in `Cameras`.
      spread: (3) distance of the training cameras from their mean along each axis, as the 90th
        percentile.
      poses: of the training cameras, 12 numbers each; of every k-th camera if there are more than
        `MAX_POSES`.
      frame: transform from the data set's coordinates, packed by `transforms.pack_transform`.
    """

    name: str
    data: str
    near: float
    far: float
    width: int
    height: int
    focal: float
    focus: tuple[float, float, float]
    radius: float
    train_views: int
    checksum: int
    ndc: tuple[float, float, float] | None = None
    spread: tuple[float, float, float] = (0.0, 0.0, 0.0)
    poses: tuple[tuple[float, ...], ...] = ()
    frame: tuple[float, ...] = pack_transform(identity_transform())

    @classmethod
    def from_scene(cls, scene: Scene, data: Path | None) -> "SceneMetadata":
        """The metadata of a scene that was read from the folder `data`, if from any."""
        split = scene.splits["train"]
        return cls.from_cameras(
            split.cameras,
            name=scene.name,
            data="" if data is None else str(data.absolute()),
            near=scene.near,
            far=scene.far,
            checksum=zlib.crc32(split.images.tobytes()),
            frame=scene.frame,
        )

    @classmethod
    def from_cameras(
        cls,
        cameras: Cameras,
        *,
        name: str,
        data: str,
        near: float,
        far: float,
        checksum: int,
        frame: SimilarityTransform | None = None,
    ) -> "SceneMetadata":
        """The metadata of training cameras; see the attributes."""
        poses = np.asarray(cameras.T_world_camera)
        x, y, z = (float(v) for v in focus_point(poses))
        positions = poses[:, :3, 3]
        distances = np.linalg.norm(positions - np.array([x, y, z]), axis=-1)
        spread = np.percentile(np.abs(positions - positions.mean(axis=0)), 90, axis=0)
        return cls(
            name=name,
            data=data,
            near=near,
            far=far,
            width=cameras.width,
            height=cameras.height,
            focal=float(cameras.focal[0, 0]),
            focus=(x, y, z),
            radius=float(distances.mean()),
            train_views=len(poses),
            checksum=checksum,
            ndc=cameras.ndc,
            spread=(float(spread[0]), float(spread[1]), float(spread[2])),
            poses=tuple(
                tuple(float(v) for v in pose[:3].ravel())
                for pose in poses[:: 1 + len(poses) // MAX_POSES]
            ),
            frame=pack_transform(frame or identity_transform()),
        )

    def pose_matrices(self) -> Float[np.ndarray, "n 4 4"]:
        """`poses` as matrices, camera to scene."""
        matrices = np.tile(np.eye(4), (len(self.poses), 1, 1))
        matrices[:, :3] = np.array(self.poses, np.float64).reshape(-1, 3, 4)
        return matrices


def near_far_fn(scene: SceneMetadata, grid: OccupancyGrid) -> SceneRange:
    """Near and far of any camera, as distances along its rays.

    For an object in a box they follow the camera's distance from it (`cameras.shift_near_far`). In
    unbounded scenes and in normalized device coordinates they are those of the scene.
    """
    near_far = (scene.near, scene.far)
    if scene.ndc is not None or grid.bounds is not None:
        return near_far
    focus, distance_range = np.array(scene.focus, np.float64), camera_distance_range(scene)
    return lambda cameras, index: shift_near_far(cameras, index, near_far, focus, distance_range)


def refined_poses(
    scene: SceneMetadata, adjustment: CameraAdjustment
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4 4"]]:
    """Poses of the training cameras as given and as refined, of those that the metadata lists."""
    original = scene.pose_matrices()
    changes = np.asarray(adjustment.pose, np.float64)[:: 1 + scene.train_views // MAX_POSES]
    cameras = pinhole_cameras(original, scene.width, scene.height, scene.focal)
    cameras = dataclasses.replace(cameras, T_world_camera=original)
    refined = adjust_cameras(cameras, CameraAdjustment(changes), np)
    return original, np.asarray(refined.T_world_camera)


def refined_frame(scene: SceneMetadata, params: ModelParams) -> SimilarityTransform:
    """The similarity that takes the given training cameras to the refined ones.

    The refined cameras and the field may move together, which no training image shows. Other
    cameras of the data set have to move with them. The identity if cameras were not refined.
    """
    if params.cameras is None:
        return identity_transform()
    return fit_pose_similarity(*refined_poses(scene, params.cameras))


def camera_distance_range(scene: SceneMetadata) -> tuple[float, float]:
    """Distances from the focus point between which a camera uses the scene's near and far."""
    positions = scene.pose_matrices()[:, :3, 3]
    distances = np.linalg.norm(positions - np.array(scene.focus), axis=-1)
    # Without poses only the mean distance is known.
    distances = np.append(distances, scene.radius)
    return (1.0 - MARGIN) * float(distances.min()), (1.0 + MARGIN) * float(distances.max())

"""Between the browser's cameras and ours."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras, make_cameras

# The browser's cameras look along +z with y down, ours along -z with y up.
FLIP = np.diag([1.0, -1.0, -1.0])


class View(NamedTuple):
    """What a camera of the browser sees.

    pose: (4, 4) camera-to-world in our axes, in scene units.
    fov: angle of view from top to bottom, radians.
    aspect: width over height.
    """

    pose: Float[np.ndarray, "4 4"]
    fov: float
    aspect: float


def read_view(camera: Any) -> View:
    """The view of a browser's camera, a `viser.CameraHandle`."""
    return View(from_browser(camera.wxyz, camera.position), float(camera.fov), float(camera.aspect))


def from_browser(
    wxyz: Float[np.ndarray, "4"], position: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """A pose in our axes from a unit quaternion and a place."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(np.asarray(wxyz, np.float64)[[1, 2, 3, 0]]).as_matrix() @ FLIP
    pose[:3, 3] = position
    return pose


def to_browser(
    pose: Float[np.ndarray, "4 4"],
) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "3"]]:
    """The unit quaternion (w, x, y, z) and the place that `from_browser` makes a pose of."""
    from scipy.spatial.transform import Rotation

    quaternion = Rotation.from_matrix(np.asarray(pose, np.float64)[:3, :3] @ FLIP).as_quat()
    return quaternion[[3, 0, 1, 2]], np.asarray(pose, np.float64)[:3, 3]


def fit_camera(view: View, most: int, ndc: tuple[float, float, float] | None = None) -> Cameras:
    """The camera of a picture with at most so many pixels along its longer side."""
    longer = max(view.aspect, 1.0)
    width = max(round(most * view.aspect / longer), 1)
    height = max(round(most / longer), 1)
    angle = 2.0 * math.atan(math.tan(0.5 * view.fov) * width / height)
    return dataclasses.replace(make_cameras(view.pose[None], width, height, angle), ndc=ndc)


def along_axis(distances: Float[np.ndarray, "h w"], camera: Cameras) -> Float[np.ndarray, "h w"]:
    """Depths along the optical axis of distances along the rays through a picture's pixels."""
    height, width = distances.shape
    focal, middle = (np.asarray(v)[0] for v in (camera.focal, camera.principal_point))
    scale = np.array([width / camera.width, height / camera.height])
    x = ((np.arange(width) + 0.5) / scale[0] - middle[0]) / focal[0]
    y = ((np.arange(height) + 0.5) / scale[1] - middle[1]) / focal[1]
    return distances / np.sqrt(1.0 + x[None, :] ** 2 + y[:, None] ** 2)


def list_views(cameras: Cameras, indices: Sequence[int]) -> list[View]:
    """What some cameras see, as if they were pinholes with the principal point in the middle."""
    return [
        View(
            np.asarray(cameras.T_world_camera[i], np.float64),
            float(2.0 * np.arctan(0.5 * cameras.height / np.asarray(cameras.focal)[i, 1])),
            cameras.width / cameras.height,
        )
        for i in indices
    ]

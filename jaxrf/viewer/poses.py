"""Converts between the browser's cameras and jaxrf's."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras, make_cameras
from jaxrf.core.errors import InputError

# The browser's cameras look along +z with y down, jaxrf's along -z with y up.
FLIP = np.diag([1.0, -1.0, -1.0])


# Limits of what browsers send: fields of view in radians, width over height, scene units.
FOVS, ASPECTS, MAX_POSITION = (1e-3, 3.1), (1.0 / 32.0, 32.0), 1e9


class View(NamedTuple):
    """Pose and field of view of a camera in the browser.

    pose: (4, 4) camera-to-world in jaxrf's axes, in scene units.
    fov: vertical field of view, in radians.
    aspect: width over height.
    """

    pose: Float[np.ndarray, "4 4"]
    fov: float
    aspect: float


def read_view(camera: Any) -> View:
    """The view of a browser's camera, a `viser.CameraHandle`.

    Raises:
      InputError: the numbers that the browser has sent are no camera.
    """
    wxyz, position = (np.asarray(v, np.float64) for v in (camera.wxyz, camera.position))
    fov, aspect = float(camera.fov), float(camera.aspect)
    is_finite = np.all(np.isfinite([*wxyz, *position, fov, aspect]))
    if not is_finite or not np.any(wxyz) or np.abs(position).max() > MAX_POSITION:
        raise InputError("The browser's camera is nowhere: reload the page.")
    return View(
        from_browser(wxyz, position), clamp_value(fov, *FOVS), clamp_value(aspect, *ASPECTS)
    )


def clamp_value(value: Any, low: float | int, high: float | int) -> float:
    """A number that a browser has sent, within limits; the low one if it is none."""
    number = float(value if isinstance(value, int | float | np.number) else low)
    return float(min(max(number, low), high) if math.isfinite(number) else low)


def set_camera(client: Any, view: View) -> None:
    """Moves a browser's camera to a view; the aspect ratio stays that of its window."""
    wxyz, position = to_browser(view.pose)
    with client.atomic():
        client.camera.wxyz = wxyz
        client.camera.position = position
        client.camera.fov = view.fov


def from_browser(
    wxyz: Float[np.ndarray, "4"], position: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """The pose in jaxrf's axes of a browser's unit quaternion and position."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(np.asarray(wxyz, np.float64)[[1, 2, 3, 0]]).as_matrix() @ FLIP
    pose[:3, 3] = position
    return pose


def to_browser(
    pose: Float[np.ndarray, "4 4"],
) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "3"]]:
    """The unit quaternion (w, x, y, z) and the position of a pose; inverts `from_browser`."""
    from scipy.spatial.transform import Rotation

    quaternion = Rotation.from_matrix(np.asarray(pose, np.float64)[:3, :3] @ FLIP).as_quat()
    return quaternion[[3, 0, 1, 2]], np.asarray(pose, np.float64)[:3, 3]


def fit_camera(
    view: View, longer_side: int, ndc: tuple[float, float, float] | None = None
) -> Cameras:
    """The camera of a view, with this many pixels along the longer side of its image."""
    ratio = max(view.aspect, 1.0)
    width = max(round(longer_side * view.aspect / ratio), 1)
    height = max(round(longer_side / ratio), 1)
    camera_angle_x = 2.0 * math.atan(math.tan(0.5 * view.fov) * width / height)
    cameras = make_cameras(view.pose[None], width, height, camera_angle_x)
    return dataclasses.replace(cameras, ndc=ndc)


def ray_distance_to_z_depth(
    distances: Float[np.ndarray, "h w"], camera: Cameras
) -> Float[np.ndarray, "h w"]:
    """Depths along the optical axis of distances along the rays through an image's pixels."""
    height, width = distances.shape
    focal, center = (np.asarray(v)[0] for v in (camera.focal, camera.principal_point))
    scale = np.array([width / camera.width, height / camera.height])
    x = ((np.arange(width) + 0.5) / scale[0] - center[0]) / focal[0]
    y = ((np.arange(height) + 0.5) / scale[1] - center[1]) / focal[1]
    return distances / np.sqrt(1.0 + x[None, :] ** 2 + y[:, None] ** 2)


def list_views(cameras: Cameras, indices: Sequence[int]) -> list[View]:
    """The views of some cameras, taken as pinholes with a centered principal point."""
    return [
        View(
            np.asarray(cameras.T_world_camera[i], np.float64),
            float(2.0 * np.arctan(0.5 * cameras.height / np.asarray(cameras.focal)[i, 1])),
            cameras.width / cameras.height,
        )
        for i in indices
    ]


def view_equals(a: View, b: View | None) -> bool:
    """Whether two views have the same pose, field of view and aspect ratio."""
    return (
        b is not None and a.fov == b.fov and a.aspect == b.aspect and np.array_equal(a.pose, b.pose)
    )

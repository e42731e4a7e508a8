"""The training cameras as frustums in the viewer's scene, with their images."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.data.scene import Split, composite
from jaxrf.evaluation import images
from jaxrf.training.runs import SceneMetadata
from jaxrf.viewer.poses import View, list_views, set_camera, to_browser

# Maximum number of cameras, and the minimum width of their images in pixels.
MAX_CAMERAS, THUMBNAIL_WIDTH = 60, 96
# Size of a frustum over the radius of the cameras, or over near in NDC.
FRUSTUM_SCALE = 0.05
CAMERA_COLOR = (90, 110, 160)

Thumbnail = UInt8[np.ndarray, "h w 3"]


def list_training_cameras(
    scene: SceneMetadata,
    default_view: View,
    split: Split | None,
    background: Float[np.ndarray, "3"],
) -> tuple[list[View], list[Thumbnail | None]]:
    """Views and downscaled images of at most `MAX_CAMERAS` training cameras, evenly spaced.

    Args:
      scene: with the poses, which are used without a split.
      default_view: gives field of view and aspect ratio without a split.
      split: the training images; None if they are missing, then there are only views.
      background: (3,) color behind transparent pixels.
    """
    if split is None:
        poses = scene.pose_matrices()
        every = -(-len(poses) // MAX_CAMERAS) or 1
        views = [View(pose, default_view.fov, default_view.aspect) for pose in poses[::every]]
        return views, [None] * len(views)
    every = max(-(-len(split) // MAX_CAMERAS), 1)
    indices = range(0, len(split), every)
    stride = max(split.cameras.width // THUMBNAIL_WIDTH, 1)
    thumbnails: list[Thumbnail | None] = [
        images.to_uint8(composite(image[::stride, ::stride], background))
        for image in (split.crop(index) for index in indices)
    ]
    return list_views(split.cameras, indices), thumbnails


def add_frustums(
    server: Any, scene: SceneMetadata, views: list[View], thumbnails: list[Thumbnail | None]
) -> list[Any]:
    """Adds hidden frustums to a `viser.ViserServer`; a click on one moves the camera to it."""
    size = FRUSTUM_SCALE * (scene.radius if scene.ndc is None else scene.near)
    handles = []
    for index, (view, thumbnail) in enumerate(zip(views, thumbnails, strict=True)):
        wxyz, position = to_browser(view.pose)
        handle = server.scene.add_camera_frustum(
            f"/cameras/{index}",
            fov=view.fov,
            aspect=view.aspect,
            scale=size,
            thickness=1.5,
            thickness_units="screen",
            color=CAMERA_COLOR,
            image=thumbnail,
            wxyz=wxyz,
            position=position,
            visible=False,
        )
        handle.on_click(partial(_set_clicked_camera, view))
        handles.append(handle)
    return handles


def _set_clicked_camera(view: View, event: Any) -> None:
    set_camera(event.client, view)

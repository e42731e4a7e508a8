"""Visibility of surfaces from training cameras."""

import numpy as np

from jaxrf.cameras.base import make_cameras
from jaxrf.export.training_views import TrainingView, visibility_and_view_dirs
from jaxrf.rendering.image import HostRendering


def test_visibility_needs_a_facing_surface_that_is_not_occluded() -> None:
    pose = np.eye(4)[None]
    pose[0, 2, 3] = 4.0
    cameras = make_cameras(pose, 20, 20, 0.7)
    full = np.ones((20, 20), np.float32)
    opaque = HostRendering(np.zeros((20, 20, 3), np.float32), full, 3.0 * full, 3.0 * full)
    # On the surface, facing away, occluded, behind the camera, outside of the image.
    positions = np.array([[0, 0, 1.0], [0, 0, 1.0], [0, 0, 0.5], [0, 0, 5.0], [9.0, 0, 1.0]])
    normals = np.array([[0, 0, 1.0], [0, 0, -1.0], [0, 0, 1.0], [0, 0, -1.0], [0, 0, 1.0]])
    views = [TrainingView(cameras, opaque)]
    view_dirs = visibility_and_view_dirs(positions, normals, views, tolerance=0.1)
    np.testing.assert_allclose(view_dirs[0], [0, 0, -1.0], atol=1e-6)
    np.testing.assert_array_equal(view_dirs[1:], 0.0)
    views = [TrainingView(cameras, opaque._replace(opacity=0.0 * full))]
    view_dirs = visibility_and_view_dirs(positions, normals, views, tolerance=0.1)
    visible = np.any(view_dirs != 0, axis=-1)
    np.testing.assert_array_equal(visible, [True, False, True, False, False])

"""A scene of random images on an orbit, of any size, for measuring time."""

import numpy as np

from jaxrf.cameras.base import make_cameras
from jaxrf.cameras.paths import orbit_path
from jaxrf.data.scene import Scene, Split


def make_scene(views: int, size: int) -> Scene:
    """Returns random opaque images of a box of side 3, seen from distance 4."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (views, size, size, 4), dtype=np.uint8)
    images[..., 3] = 255
    cameras = make_cameras(orbit_path(views, 4.0, 0.5), size, size, 0.69)
    names = tuple(str(view) for view in range(views))
    aabb = np.array([[-1.5] * 3, [1.5] * 3], np.float32)
    return Scene("random", {"train": Split("train", names, images, cameras)}, aabb, 2.0, 6.0)

"""Images for live viewing: coarse within a frame's time, then refined until the camera moves.

One compiled program renders images of all sizes in short tiles, so that a resized window compiles
nothing and an image can be abandoned after any tile.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras, resize_cameras
from jaxrf.evaluation.camera_renderer import CameraRenderer, TrainedField, make_camera_renderer
from jaxrf.rendering.image import HostRendering
from jaxrf.sampling.occupancy import OccupancyGrid

# Rays of a tile. A tile that was begun has to be waited for, so slow devices get small ones.
CPU_TILE_RAYS, TILE_RAYS = 1 << 14, 1 << 16
# Width in pixels of the coarsest image that is still of use to navigate by.
MIN_WIDTH = 48


@dataclasses.dataclass(frozen=True)
class InteractiveRenderer:
    """A field that is rendered for live viewing.

    Attributes:
      tiles: renders tile by tile.
      supersample: rays of a pixel along each axis in a sharp image, as many as in training.
    """

    tiles: CameraRenderer
    supersample: int

    @property
    def grid(self) -> OccupancyGrid:
        """The occupancy grid of the field."""
        return self.tiles.grid

    def render(
        self,
        camera: Cameras,
        crop_aabb: Float[np.ndarray, "2 3"],
        should_stop: Callable[[], bool],
        supersample: int = 1,
    ) -> HostRendering | None:
        """Renders the image of the first camera.

        Args:
          camera: a pinhole of the image's size.
          crop_aabb: box outside of which the field is empty.
          should_stop: called before each tile.
          supersample: rays of a pixel along each axis, averaged.

        Returns:
          The image, or None once `should_stop` returned True.
        """
        return self.tiles.render(camera, 0, supersample, crop_aabb, should_stop)


def make_interactive_renderer(
    trained: TrainedField, crop_to_occupied: bool = True
) -> InteractiveRenderer:
    """An interactive renderer of a field; for the arguments see `scoring.make_render_fn`."""
    tile_rays = CPU_TILE_RAYS if jax.default_backend() == "cpu" else TILE_RAYS
    tiles = make_camera_renderer(trained, crop_to_occupied, max_chunk_rays=tile_rays)
    return InteractiveRenderer(tiles, trained.stage.supersample)


class FrameTimer:
    """Estimates the size of an image that is rendered in a given time."""

    def __init__(self, target_seconds: float) -> None:
        self.target_seconds = target_seconds
        # None before the first image.
        self.seconds_per_ray: float | None = None

    def update(self, num_rays: int, seconds: float) -> None:
        """Counts a rendered image. A slow one takes effect at once, a fast one gradually."""
        latest = seconds / max(num_rays, 1)
        previous = latest if self.seconds_per_ray is None else self.seconds_per_ray
        self.seconds_per_ray = max(latest, 0.7 * previous + 0.3 * latest)

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """The largest width and height of this aspect ratio, and no larger, that fit the time."""
        if self.seconds_per_ray is None:
            return scale_size(width, height, 0.0)
        num_rays = self.target_seconds / self.seconds_per_ray
        return scale_size(width, height, math.sqrt(num_rays / (width * height)))


def scale_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """An image size scaled by a factor of at most 1, to a width of at least `MIN_WIDTH`."""
    factor = min(max(factor, MIN_WIDTH / width), 1.0)
    return max(round(width * factor), 1), max(round(height * factor), 1)


def resolution_ladder(width: int, height: int, first: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Image sizes from `first` to the full size, each twice as wide as the one before."""
    size = first
    # A size close to the full one would only delay that.
    while 1.4 * size[0] < width:
        yield size
        size = scale_size(width, height, 2.0 * size[0] / width)
    yield width, height


def render_progressively(
    renderer: InteractiveRenderer,
    camera: Cameras,
    crop_aabb: Float[np.ndarray, "2 3"],
    timer: FrameTimer,
    should_stop: Callable[[], bool],
) -> Iterator[HostRendering]:
    """Yields a camera's image at increasing sizes, from one that fits the time to the full size.

    The last image is supersampled as in training. Ends early once `should_stop` returns True.
    """
    width, height = camera.width, camera.height
    first = timer.target_size(width, height)
    for size in resolution_ladder(width, height, first):
        started = time.perf_counter()
        image = renderer.render(resize_cameras(camera, *size), crop_aabb, should_stop)
        if image is None:
            return
        timer.update(size[0] * size[1], time.perf_counter() - started)
        yield image
    if renderer.supersample > 1:
        sharp = renderer.render(camera, crop_aabb, should_stop, renderer.supersample)
        if sharp is not None:
            yield sharp

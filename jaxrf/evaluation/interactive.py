"""Pictures for live viewing: of any size by one compiled program, given up as soon as one wishes.

A picture is painted strip by strip. Each strip is the same number of rays whatever the picture's
size is, so a window of another shape or a coarser picture compiles nothing anew.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.cameras.base import Cameras, apply_ray_convention, pixels_to_rays, resize_cameras
from jaxrf.cameras.poses import SceneRange
from jaxrf.fields.base import Params
from jaxrf.models.methods import Stage, eval_stage, rays_at_once, render_rays
from jaxrf.rendering.image import HostRendering, resolve_supersampling
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.config import FieldConfig, TrainConfig

# Rays of a strip: few where they are slow, as a strip that has begun is waited for.
CPU_TILE_RAYS, STRIP = 1 << 14, 1 << 16
# Strips computed before the first of them is fetched, lest the device waits for the host.
AHEAD = 2
# Width of the coarsest picture that still shows where one is.
COARSEST = 48


@dataclasses.dataclass(frozen=True)
class InteractiveRenderer:
    """A field ready to be painted.

    Attributes:
      config, stage, params, grid: as for `methods.render_rays`.
      aabb: (2, 3) the box that is rendered.
      scene_range: near and far, distances along rays, or what finds them for a camera.
      background: (3,) colour behind everything.
      strip: rays computed together.
      supersample: of a pixel along each axis, in a sharp picture.
    """

    config: TrainConfig
    stage: Stage
    params: Params
    grid: OccupancyGrid
    aabb: Float[np.ndarray, "2 3"]
    scene_range: SceneRange
    background: Float[np.ndarray, "3"]
    strip: int
    supersample: int

    def paint(
        self,
        camera: Cameras,
        box: Float[np.ndarray, "2 3"],
        stop: Callable[[], bool],
        supersample: int = 1,
    ) -> HostRendering | None:
        """The first camera's picture, or None if one wished to `stop` before it was done.

        Args:
          camera: of the picture's size, a pinhole.
          box: what is outside of it is left out.
          stop: asked after each strip.
          supersample: of a pixel along each axis, averaged.
        """
        finer = resize_cameras(camera, supersample * camera.width, supersample * camera.height)
        seen = apply_ray_convention(finer, self.config.field.convention)[0]
        # The program does not depend on the size of the picture.
        seen = dataclasses.replace(seen, width=1, height=1)
        scene_range = self.scene_range
        if callable(scene_range):
            scene_range = scene_range(camera, 0)
        count, strips = finer.width * finer.height, []
        for start in range(0, count, self.strip):
            if stop():
                return None
            strips.append(
                _paint_strip(
                    self.config.field,
                    self.stage,
                    self.config.render_samples,
                    self.strip,
                    scene_range,
                    self.params,
                    self.grid,
                    seen,
                    np.int32(start),
                    np.int32(finer.width),
                    self.background,
                    self.aabb,
                    box,
                )
            )
            if len(strips) > AHEAD:
                jax.block_until_ready(strips[-1 - AHEAD])
        host = jax.device_get(strips)

        def join(name: str) -> np.ndarray:
            whole = np.concatenate([getattr(part, name) for part in host])[:count]
            return whole.reshape(finer.height, finer.width, *whole.shape[1:])

        return resolve_supersampling(
            HostRendering(*(join(name) for name in HostRendering._fields)), supersample
        )


def make_interactive_renderer(
    config: TrainConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    scene_range: SceneRange,
    background: Float[np.ndarray, "3"],
    tight: bool = True,
) -> InteractiveRenderer:
    """A painter of a field; `tight` as in `evaluate.make_render_fn`."""
    supersample = stage.supersample
    stage, aabb = eval_stage(config.field, stage, grid, tight)
    strip = CPU_TILE_RAYS if jax.default_backend() == "cpu" else STRIP
    strip = min(strip, rays_at_once(config))
    return InteractiveRenderer(
        config, stage, params, grid, aabb, scene_range, background, strip, supersample
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _paint_strip(
    field: FieldConfig,
    stage: Stage,
    samples: int,
    strip: int,
    scene_range: tuple[Float[Array, ""], Float[Array, ""]],
    params: Params,
    grid: OccupancyGrid,
    camera: Cameras,
    start: Int[Array, ""],
    width: Int[Array, ""],
    background: Float[Array, "3"],
    aabb: Float[Array, "2 3"],
    box: Float[Array, "2 3"],
) -> Rendering:
    # What is behind the last pixel is rendered for nothing.
    pixel = start + jnp.arange(strip, dtype=jnp.int32)
    place = jnp.stack([pixel % width, pixel // width], axis=-1).astype(jnp.float32) + 0.5
    rays = pixels_to_rays(camera, jnp.zeros_like(pixel), place, *scene_range)
    return render_rays(field, stage, samples, params, grid, rays, background, aabb, box)


class Pace:
    """How large a picture may be that is to be there in a given time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # Seconds of a ray, None before the first picture.
        self.per_ray: float | None = None

    def note(self, rays: int, seconds: float) -> None:
        """Learns from a picture of so many rays that took so long; a slow one counts at once."""
        now = seconds / max(rays, 1)
        before = now if self.per_ray is None else self.per_ray
        self.per_ray = max(now, 0.7 * before + 0.3 * now)

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the same shape, no larger, that fit into the time."""
        if self.per_ray is None:
            return shrink(width, height, 0.0)
        affordable = self.seconds / self.per_ray
        return shrink(width, height, math.sqrt(affordable / (width * height)))


def shrink(width: int, height: int, factor: float) -> tuple[int, int]:
    """A size of the same shape, by a factor of at most 1 and no narrower than `COARSEST`."""
    factor = min(max(factor, COARSEST / width), 1.0)
    return max(round(width * factor), 1), max(round(height * factor), 1)


def refine(width: int, height: int, first: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Sizes from a first one on, each twice as wide as the one before, to the whole."""
    size = first
    # One that is nearly as large as the last would only delay that.
    while 1.4 * size[0] < width:
        yield size
        size = shrink(width, height, 2.0 * size[0] / width)
    yield width, height


def render_progressively(
    painter: InteractiveRenderer,
    camera: Cameras,
    box: Float[np.ndarray, "2 3"],
    pace: Pace,
    stop: Callable[[], bool],
) -> Iterator[HostRendering]:
    """A camera's picture as large as is quick, then finer and finer until it is sharp or stopped.

    The last one has the sub-rays that the field was trained with.
    """
    width, height = camera.width, camera.height
    first = pace.fit(width, height)
    for size in refine(width, height, first):
        started = time.perf_counter()
        picture = painter.paint(resize_cameras(camera, *size), box, stop)
        if picture is None:
            return
        pace.note(size[0] * size[1], time.perf_counter() - started)
        yield picture
    if painter.supersample > 1:
        sharp = painter.paint(camera, box, stop, painter.supersample)
        if sharp is not None:
            yield sharp

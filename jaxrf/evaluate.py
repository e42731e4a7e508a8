"""A split rendered and scored."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf import metrics
from jaxrf.cameras import Cameras, image_rays, resize_cameras
from jaxrf.config import TrainConfig
from jaxrf.data.base import Split, composite
from jaxrf.fields.base import Params
from jaxrf.methods import Stage, rays_at_once, render_rays
from jaxrf.occupancy import OccupancyGrid
from jaxrf.rays import Rays
from jaxrf.render import Picture, Rendering, average_subrays, render_image

RenderView = Callable[[Cameras, int], Picture]


class Scored(NamedTuple):
    """One picture of a split, rendered.

    view, name: which.
    rendering: in host memory.
    truth: (h, w, 3) composited over the background.
    psnr, ssim: of the rendering against the truth.
    """

    view: int
    name: str
    rendering: Picture
    truth: Float[np.ndarray, "h w 3"]
    psnr: float
    ssim: float


def make_render_view(
    config: TrainConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    scene_range: tuple[float, float],
    background: Float[np.ndarray, "3"],
    subrays: int | None = None,
) -> RenderView:
    """A function (cameras, index) -> rendering of that camera's view, in host memory.

    Each pixel is the mean of subrays x subrays rays, by default as many as in training.
    """
    parts = subrays or stage.subrays
    chunk = rays_at_once(config, stage)

    @jax.jit
    def render_chunks(
        params: Params, grid: OccupancyGrid, rays: Rays, behind: Float[Array, "3"]
    ) -> Rendering:
        samples = config.render_samples
        return jax.lax.map(
            lambda r: render_rays(config.field, stage, samples, params, grid, r, behind), rays
        )

    rays_of = jax.jit(image_rays, static_argnums=(2, 3))

    def render(cameras: Cameras, index: int) -> Picture:
        finer = resize_cameras(cameras, parts * cameras.width, parts * cameras.height)
        rays = rays_of(finer, jnp.asarray(index), *scene_range)
        behind = jnp.asarray(background)
        picture = render_image(lambda r: render_chunks(params, grid, r, behind), rays, chunk)
        return average_subrays(picture, parts)

    return render


def score_split(
    render: RenderView, split: Split, background: Float[np.ndarray, "3"], indices: list[int]
) -> Iterator[Scored]:
    """Renders and scores pictures of a split, one after the other."""
    ssim = jax.jit(metrics.ssim)
    for index in indices:
        rendering = render(split.cameras, index)
        truth = composite(split.images[index], background)
        yield Scored(
            view=index,
            name=split.names[index],
            rendering=rendering,
            truth=truth,
            psnr=metrics.psnr(rendering.rgb, truth),
            ssim=float(ssim(rendering.rgb, truth)),
        )


def summarise(scored: list[Scored]) -> dict[str, Any]:
    """Means over pictures and the figures of each, as `metrics.json` holds them."""
    return {
        "psnr": float(np.mean([s.psnr for s in scored])),
        "ssim": float(np.mean([s.ssim for s in scored])),
        "per_image": [{"name": s.name, "psnr": s.psnr, "ssim": s.ssim} for s in scored],
    }


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices spread evenly over `count`, the first included."""
    taken = min(wanted, count)
    return [i * count // taken for i in range(taken)]

"""A split rendered and scored."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxrf.cameras.base import Cameras, apply_ray_convention, image_rays, resize_cameras
from jaxrf.cameras.poses import SceneRange
from jaxrf.core import memory
from jaxrf.core.rays import Rays
from jaxrf.data.scene import Split, composite
from jaxrf.evaluation import lpips, metrics
from jaxrf.fields.base import Params
from jaxrf.models.methods import Stage, eval_stage, rays_at_once, render_rays
from jaxrf.parallel import devices as parallel
from jaxrf.rendering.image import HostRendering, render_image, resolve_supersampling
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.config import FieldConfig, TrainConfig

RenderFn = Callable[[Cameras, int], HostRendering]

# To render fewer samples at once saves no memory worth having.
FEWEST_SAMPLES = 1 << 10


class Scored(NamedTuple):
    """One picture of a split, rendered.

    view, name: which.
    rendering: in host memory.
    truth: (h, w, 3) composited over the background.
    psnr, ssim: of the rendering against the truth.
    lpips: likewise, if there are weights for it.
    """

    view: int
    name: str
    rendering: HostRendering
    truth: Float[np.ndarray, "h w 3"]
    psnr: float
    ssim: float
    lpips: float | None = None


def make_render_fn(
    config: TrainConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    scene_range: SceneRange,
    background: Float[np.ndarray, "3"],
    supersample: int | None = None,
    tight: bool = True,
    mesh: Mesh | None = None,
) -> RenderFn:
    """A function (cameras, index) -> rendering of that camera's view, in host memory.

    Each pixel is the mean of supersample x supersample rays, by default as many as in training. `tight`
    renders quicker, but has to be compiled anew whenever cells were pruned. If memory runs out,
    half as many samples at once are tried, and so on. `mesh` are the devices that share the rays,
    by default one; of several processes all have to render. With `config.shards`, rays are cut into
    so many shards whatever renders them, lest the last bits depend on it.
    """
    parts, field = supersample or stage.supersample, config.field
    mesh = mesh or parallel.make_mesh(1)
    shards = config.shards or mesh.size
    if shards % mesh.size:
        # Another machine than that of the training may have any number of devices.
        shards = mesh.size
    params, grid = parallel.replicate(mesh, (params, grid))
    stage, aabb = eval_stage(config.field, stage, grid, tight)

    def render(cameras: Cameras, index: int) -> HostRendering:
        nonlocal config
        seen = apply_ray_convention(cameras, field.convention)
        finer = resize_cameras(seen, parts * cameras.width, parts * cameras.height)
        near, far = scene_range(cameras, index) if callable(scene_range) else scene_range
        rays = _image_rays(finer, jnp.asarray(index), near, far)
        samples, behind = config.render_samples, jnp.asarray(background)

        def render_chunks(rays: Rays) -> Rendering:
            own = (params, grid, *parallel.replicate(mesh, (rays, behind, aabb)))
            chosen = _render_ordered if config.shards else _render_chunks
            return chosen(field, stage, samples, mesh, shards // mesh.size, *own)

        try:
            most = shards * rays_at_once(config)
            picture = render_image(render_chunks, rays, most, divisor=shards)
        except RuntimeError as error:
            # Others would not know that less is tried.
            alone = jax.process_count() == 1
            if not (alone and memory.ran_out(error)) or samples < 2 * FEWEST_SAMPLES:
                raise
            config = dataclasses.replace(config, render_samples=samples // 2)
            return render(cameras, index)
        return resolve_supersampling(picture, parts)

    return render


_image_rays = jax.jit(image_rays)


def _render_shards(
    field: FieldConfig,
    stage: Stage,
    samples: int,
    mesh: Mesh,
    shards: int,
    params: Params,
    grid: OccupancyGrid,
    rays: Rays,
    behind: Float[Array, "3"],
    aabb: Float[Array, "2 3"],
) -> Rendering:
    """Renders chunks of rays, each device `shards` parts of each, one after the other."""

    def on_device(params: Params, grid: OccupancyGrid, rays: Rays, *rest: Array) -> Rendering:
        behind, aabb = rest
        chunks = rays.near.shape
        parts = jax.tree.map(lambda x: x.reshape(chunks[0] * shards, -1, *x.shape[2:]), rays)
        rendered = jax.lax.map(
            lambda chunk: render_rays(field, stage, samples, params, grid, chunk, behind, aabb),
            parts,
        )
        return jax.tree.map(lambda x: x.reshape(*chunks, *x.shape[2:]), rendered)

    shared = (False, False, True, False, False)
    run = parallel.shard_rays(mesh, on_device, shared, axis=1, joins=True)
    return run(params, grid, rays, behind, aabb)


# At module level, so that what was compiled for one view or validation serves the next.
_render_chunks = jax.jit(_render_shards, static_argnums=(0, 1, 2, 3, 4))
_render_ordered = jax.jit(
    _render_shards,
    static_argnums=(0, 1, 2, 3, 4),
    compiler_options=parallel.DETERMINISTIC_COMPILER_OPTIONS,
)

_ssim = jax.jit(metrics.ssim)
_lpips = jax.jit(lpips.lpips)


def score_split(
    render: RenderFn,
    split: Split,
    background: Float[np.ndarray, "3"],
    indices: Sequence[int],
    lpips_weights: lpips.Weights | None = None,
) -> Iterator[Scored]:
    """Renders and scores pictures of a split, one after the other; by LPIPS given its weights."""
    for index in indices:
        rendering = render(split.cameras, index)
        truth = composite(split.images[index], background)
        rgb, mask = rendering.rgb, None if split.masks is None else split.masks[index]
        if mask is not None:
            # What is not to be compared is as it should be.
            rgb = np.where(mask[..., None], rgb, truth)
        compared = (rgb, truth) if mask is None else (rgb[mask], truth[mask])
        yield Scored(
            view=index,
            name=split.names[index],
            rendering=rendering,
            truth=truth,
            psnr=metrics.psnr(*compared),
            ssim=float(_ssim(rgb, truth)),
            lpips=float(_lpips(lpips_weights, rgb, truth)) if lpips_weights else None,
        )


def summarise(scored: list[Scored]) -> dict[str, Any]:
    """Means over pictures and the figures of each, as `metrics.json` holds them.

    LPIPS is among them only where it was computed.
    """
    keys = ["psnr", "ssim"] + ["lpips"] * all(s.lpips is not None for s in scored)
    means = {key: float(np.mean([getattr(s, key) for s in scored])) for key in keys}
    each = [{"name": s.name} | {key: getattr(s, key) for key in keys} for s in scored]
    return {**means, "per_image": each}


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices spread evenly over `count`, the first included."""
    taken = min(wanted, count)
    return [i * count // taken for i in range(taken)]

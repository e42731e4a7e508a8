"""Scores of rendered views against the images of a split, by the metrics of `metrics.METRICS`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxrf.cameras.base import Cameras
from jaxrf.core import memory
from jaxrf.data.scene import Split, composite
from jaxrf.evaluation import color_correction, lpips
from jaxrf.evaluation.camera_renderer import CameraRenderer, TrainedField, make_camera_renderer
from jaxrf.evaluation.metrics import ScoredImage, compute_metrics, mean_metrics
from jaxrf.rendering.image import HostRendering

RenderFn = Callable[[Cameras, int], HostRendering]

# Fewer samples at a time would hardly save memory.
MIN_RENDER_SAMPLES = 1 << 10


class ViewMetrics(NamedTuple):
    """A rendered view of a split and its metrics.

    Attributes:
      view: index in the split.
      name: of the image.
      rendering: in host memory.
      target_rgb: (h, w, 3) the image composited over the background.
      scores: of the rendering against it, by the name of each metric that could be computed.
    """

    view: int
    name: str
    rendering: HostRendering
    target_rgb: Float[np.ndarray, "h w 3"]
    scores: dict[str, float]


def make_render_fn(
    trained: TrainedField,
    supersample: int | None = None,
    crop_to_occupied: bool = True,
    mesh: Mesh | None = None,
) -> RenderFn:
    """A function (cameras, index) -> rendering of that camera's image, in host memory.

    When memory runs out, the function renders half as many samples at a time, and so on.

    Args:
      trained: the field.
      supersample: rays of a pixel along each axis, averaged; by default as many as in training.
      crop_to_occupied: render the bounding box of occupied cells only. That is faster, but the
        program is recompiled whenever cells were pruned.
      mesh: devices that share the rays, by default one. All processes of the mesh have to render.
    """
    supersample = supersample or trained.stage.supersample

    def make_renderer(num_samples: int) -> CameraRenderer:
        return make_camera_renderer(trained, crop_to_occupied, mesh, num_samples=num_samples)

    renderer = make_renderer(trained.config.render_samples)

    def render(cameras: Cameras, index: int) -> HostRendering:
        nonlocal renderer
        try:
            image = renderer.render(cameras, index, supersample)
        except RuntimeError as error:
            num_samples = renderer.program.spec.num_samples
            # Other processes would not know that this one renders fewer samples at a time.
            may_retry = jax.process_count() == 1 and memory.ran_out(error)
            if not may_retry or num_samples < 2 * MIN_RENDER_SAMPLES:
                raise
            renderer = make_renderer(num_samples // 2)
            return render(cameras, index)
        assert image is not None
        return image

    return render


def score_split(
    render: RenderFn,
    split: Split,
    background: Float[np.ndarray, "3"],
    indices: Sequence[int],
    lpips_weights: lpips.Weights | None = None,
    correct_colors: bool = False,
) -> Iterator[ViewMetrics]:
    """Renders views of a split and yields their metrics, one after the other.

    Pixels outside of a view's mask do not count. LPIPS is computed if there are weights for it.
    `correct_colors` scores each view also after `color_correction.correct_colors`: for models that
    fit colors to each training image (`Model.has_image_colors`).
    """
    for index in indices:
        rendering = render(split.cameras, index)
        target_rgb = composite(split.images[index], background)
        mask = None if split.masks is None else split.masks[index]
        if split.sizes is not None:
            uncropped = rendering, target_rgb, mask
            rendering, target_rgb, mask = _crop(uncropped, split.image_size(index))
        rgb, corrected_rgb = rendering.rgb, None
        if correct_colors:
            corrected_rgb = color_correction.correct_colors(rgb, target_rgb, mask)
        if mask is not None:
            # SSIM and LPIPS need full images, in which masked pixels have no error.
            rgb = np.where(mask[..., None], rgb, target_rgb)
        if mask is not None and corrected_rgb is not None:
            corrected_rgb = np.where(mask[..., None], corrected_rgb, target_rgb)
        yield ViewMetrics(
            view=index,
            name=split.names[index],
            rendering=rendering,
            target_rgb=target_rgb,
            scores=compute_metrics(
                ScoredImage(rgb, target_rgb, mask, lpips_weights, corrected_rgb)
            ),
        )


def _crop(images: Any, size: tuple[int, int]) -> Any:
    """The top left of images of a tree, where those that are smaller than others are."""
    width, height = size
    return jax.tree.map(lambda image: image[:height, :width], images)


def summarize(views: list[ViewMetrics]) -> dict[str, Any]:
    """Means of the metrics over views, and those of each view, as `metrics.json` holds them.

    Metrics are included that were computed of all views.
    """
    means = mean_metrics([view.scores for view in views])
    per_image = [{"name": v.name} | {key: v.scores[key] for key in means} for v in views]
    return {**means, "per_image": per_image}


def evenly_spaced_indices(count: int, max_indices: int) -> list[int]:
    """At most `max_indices` indices below `count`, evenly spaced from 0 on."""
    num_indices = min(max_indices, count)
    return [i * count // num_indices for i in range(num_indices)]

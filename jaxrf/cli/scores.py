"""Scores of a run on the images of a split, and the metrics that are written of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrf.core import memory
from jaxrf.core.environment import describe_versions
from jaxrf.core.progress import progress
from jaxrf.data.scene import Split, downscale_split
from jaxrf.evaluation import lpips, scoring
from jaxrf.training import runs, summaries
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import EventWriter
from jaxrf.training.runs import Run
from jaxrf.training.state import background_color

# Number of views that are written as TensorBoard images.
LOGGED_VIEWS = 4


def score_images(
    run: Run,
    split: Split,
    events: EventWriter | None,
    supersample: int | None = None,
    use_lpips: bool = True,
) -> dict[str, Any]:
    """Scores all images of a split; returns mean PSNR and SSIM, and both of each image.

    Args:
      events: receives a few views as TensorBoard images; None writes none.
      supersample: rays per pixel along each axis; as in training by default.
      use_lpips: whether to score with LPIPS too, if the run names its weights.
    """
    background = background_color(run.config)
    render = runs.make_render_fn(run, supersample)
    indices = range(len(split))
    weights = None
    if use_lpips:
        weights = load_lpips(run.config, (split.cameras.width, split.cameras.height))
    views = scoring.score_split(render, split, background, indices, weights)
    logged = [indices[i] for i in scoring.evenly_spaced_indices(len(indices), LOGGED_VIEWS)]
    scored = []
    for item in progress(views, f"{split.name} views", "view", total=len(indices)):
        if events and item.view in logged:
            summaries.write_view(events, split.name, item, int(run.state.step))
            if item.view == logged[0]:
                summaries.write_rays(events, split.name, item, int(run.state.step))
        # The images of a large split would fill the memory: only the scores are stored.
        scored.append(item._replace(rendering=None, truth=None))  # type: ignore[arg-type]
    return scoring.summarize(scored)


def score_scales(run: Run, split: Split, full_size_score: dict[str, Any]) -> dict[str, Any]:
    """Scores a split at every scale that was trained on; returns {} if that is one.

    Images are averaged over areas and compared with a rendering of that size (Mip-NeRF, section
    4.2).

    Returns:
      "sizes" with factor, PSNR and SSIM of each scale, and "mean_of_sizes" with their means.
    """
    if run.config.num_train_scales == 1:
        return {}
    sizes = [{"factor": 1, "psnr": full_size_score["psnr"], "ssim": full_size_score["ssim"]}]
    for halvings in range(1, run.config.num_train_scales):
        smaller = downscale_split(split, 2**halvings)
        score = score_images(run, smaller, None, use_lpips=False)
        sizes.append({"factor": 2**halvings, "psnr": score["psnr"], "ssim": score["ssim"]})
    mean = {key: float(np.mean([size[key] for size in sizes])) for key in ("psnr", "ssim")}
    text = ", ".join(f"1/{size['factor']}: {size['psnr']:.2f} dB" for size in sizes)
    print(f"PSNR by size {text}; mean {mean['psnr']:.2f} dB.")
    return {"sizes": sizes, "mean_of_sizes": mean}


def load_lpips(config: TrainConfig, size: tuple[int, int]) -> lpips.Weights | None:
    """Loads the LPIPS weights for images of width and height `size`.

    Prints why and returns None if no weights are named or the images are too small for them.
    """
    if config.lpips is None:
        print("LPIPS is left out: it needs its weights, --lpips FILE.")
        return None
    weights = lpips.load_weights(config.lpips)
    if min(size) >= lpips.smallest_side(weights):
        return weights
    print(
        f"LPIPS is left out: its network needs pictures of {lpips.smallest_side(weights)} pixels "
        f"or more along each side, these have {size[0]}x{size[1]}."
    )
    return None


def make_metrics(
    run: Run,
    split: Split,
    score: dict[str, Any],
    seconds: dict[str, float],
    trained: dict[str, Any],
    hardware: str,
) -> dict[str, Any]:
    """Returns the content of a run's metrics.json.

    Args:
      score: of `score_images`.
      seconds: durations by phase.
      trained: metrics of the training; entries replace those measured now.
      hardware: of `describe_hardware`.
    """
    return {
        split.name: score,
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "steps": int(run.state.step),
        "peak_memory_bytes": memory.peak_bytes(),
        **trained,
        "background": background_name(run.config),
        "resolution": [split.cameras.width, split.cameras.height],
        "dataset": run.scene.name,
        "hardware": hardware,
        "versions": describe_versions(),
    }


def describe_score(score: dict[str, Any]) -> str:
    """Returns mean PSNR and SSIM, and LPIPS if it was computed, as text."""
    text = f"PSNR {score['psnr']:.2f} dB, SSIM {score['ssim']:.4f}"
    return f"{text}, LPIPS {score['lpips']:.4f}" if "lpips" in score else text


def background_name(config: TrainConfig) -> str:
    """Returns the background of scored images: random backgrounds are for training only."""
    return "black" if config.background == "black" else "white"


def every_kth(step: int) -> Callable[[int], range]:
    """Returns a function that chooses every `step`-th of a number of views."""
    return lambda count: range(0, count, step)

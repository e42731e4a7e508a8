"""Scores of a run on the images of a split, and the metrics that are written of them."""

import math
from collections.abc import Callable
from typing import Any

from jaxrf.core import memory
from jaxrf.core.environment import describe_versions
from jaxrf.core.progress import progress
from jaxrf.data.scene import Split, downscale_split
from jaxrf.evaluation import lpips, scoring
from jaxrf.evaluation.metrics import describe_metrics, mean_metrics
from jaxrf.training import runs, summaries
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import EventWriter
from jaxrf.training.loop import DivergedError
from jaxrf.training.runs import Run
from jaxrf.training.state import background_color

# How the poses of aligned views came about.
ALIGNED = "moved as the refined training cameras were, then fitted to each image"
# Number of views that are written as TensorBoard images.
LOGGED_VIEWS = 4


def score_images(
    run: Run,
    split: Split,
    events: EventWriter | None,
    supersample: int | None = None,
    use_lpips: bool = True,
) -> dict[str, Any]:
    """Scores all images of a split; returns the means of the metrics, and those of each image.

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
    views = scoring.score_split(
        render, split, background, indices, weights, run.config.model.has_image_colors
    )
    logged = [indices[i] for i in scoring.evenly_spaced_indices(len(indices), LOGGED_VIEWS)]
    scored = []
    for item in progress(views, f"{split.name} views", "view", total=len(indices)):
        if events and item.view in logged:
            summaries.write_view(events, split.name, item, int(run.state.step))
            if item.view == logged[0]:
                summaries.write_rays(events, split.name, item, int(run.state.step))
        if math.isnan(item.scores["psnr"]):
            raise DivergedError(
                f"The {split.name} view {item.name} has a PSNR that is not a number, as the field "
                "has none: use an earlier checkpoint with --step, or train anew with a lower "
                "--optimizer.grid-lr or --optimizer.mlp-lr."
            )
        # The images of a large split would fill the memory: only the scores are stored.
        scored.append(item._replace(rendering=None, target_rgb=None))  # type: ignore[arg-type]
    return scoring.summarize(scored)


def score_scales(run: Run, split: Split, full_size_score: dict[str, Any]) -> dict[str, Any]:
    """Scores a split at every scale that was trained on; returns {} if that is one.

    Images are averaged over areas and compared with a rendering of that size (Mip-NeRF, section
    4.2).

    Returns:
      "sizes" with the factor and the metrics of each scale, and "mean_of_sizes" with their means.
    """
    if run.config.num_train_scales == 1:
        return {}
    scores = {1: full_size_score}
    for halvings in range(1, run.config.num_train_scales):
        smaller = downscale_split(split, 2**halvings)
        scores[2**halvings] = score_images(run, smaller, None, use_lpips=False)
    mean = mean_metrics(list(scores.values()))
    sizes = [
        {"factor": factor, **{name: score[name] for name in mean}}
        for factor, score in scores.items()
    ]
    text = ", ".join(f"1/{factor}: {score['psnr']:.2f} dB" for factor, score in scores.items())
    print(f"PSNR by size {text}; mean {mean['psnr']:.2f} dB.")
    return {"sizes": sizes, "mean_of_sizes": mean}


def score_aligned(
    run: Run, split: Split, supersample: int | None = None
) -> dict[str, dict[str, Any]]:
    """Scores a split with poses that fit the refined training cameras (`runs.align_split`).

    Returns:
      {"test_aligned": the score} for a split named "test"; {} if cameras were not refined.
    """
    if run.state.eval_params.cameras is None:
        return {}
    aligned = runs.align_split(run, split)
    return {f"{split.name}_aligned": score_images(run, aligned, None, supersample)}


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
    """Returns the means of the metrics that were computed, as text."""
    return ", ".join(describe_metrics(score))


def describe_images(score: dict[str, Any]) -> list[str]:
    """Returns a line of text for each image: its name and metrics, in columns."""
    rows = [(image["name"], *describe_metrics(image)) for image in score["per_image"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]


def background_name(config: TrainConfig) -> str:
    """Returns the background of scored images: random backgrounds are for training only."""
    return "black" if config.background == "black" else "white"


def every_kth(step: int) -> Callable[[int], range]:
    """Returns a function that chooses every `step`-th of a number of views."""
    return lambda count: range(0, count, step)

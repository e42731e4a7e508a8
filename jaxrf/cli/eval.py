"""`jaxrf eval`: scores a run on a split."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxrf.core.checks import require_positive
from jaxrf.training.timing import seconds_since_start

# Metrics of the training, which scoring again does not change.
TRAINING_METRICS = (
    "devices", "rays_per_second", "samples_per_second", "validations", "peak_memory_bytes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Score a trained run on a split and write its metrics.json."""

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of the run. Default: the newest in ./runs."""
    data: Path | None = None
    """Folder of the data set. Default: that of the training."""
    split: Literal["train", "val", "test"] = "test"
    """Split to score."""
    every: int | None = None
    """Score every K-th image; 1 scores all. Default: as at the end of training (--test-every)."""
    downscale: int | None = None
    """Shrink the images by this factor. Default: as in training."""
    background: Literal["white", "black"] | None = None
    """Behind transparent pixels. Default: as in training."""
    supersample: int | None = None
    """Rays per pixel along each axis, averaged. Default: as in training."""
    lpips: Path | None = None
    """Weights of LPIPS as .npz, to score with it too. Default: as in training."""
    step: int | None = None
    """Step of the checkpoint. Default: the last."""

    def __post_init__(self) -> None:
        require_positive(self, "supersample", "every", "downscale")


def run(options: EvalOptions) -> int:
    """Scores a run on a split and writes its metrics; returns the exit code."""
    from jaxrf.cli import run_folder, scores
    from jaxrf.core.environment import describe_hardware
    from jaxrf.core.jax_setup import set_up_jax
    from jaxrf.data import sources
    from jaxrf.training import runs

    folder = run_folder.find_run(options.run)
    run = runs.open_run(folder, options.step)
    set_up_jax(run.config.matmul_precision)
    hardware = describe_hardware()
    started, startup = time.perf_counter(), seconds_since_start()
    if not (options.data or run.scene.data):
        run_folder.require_images(folder)
    overrides = {
        "background": options.background,
        "lpips": options.lpips,
        "downscale": options.downscale,
    }
    changes: dict[str, Any] = {name: value for name, value in overrides.items() if value}
    config = dataclasses.replace(run.config, **changes)
    run = dataclasses.replace(run, config=config)
    split = sources.load_scene(
        options.data or Path(run.scene.data),
        [options.split],
        config,
        scores.every_kth(options.every or config.test_every),
    ).splits[options.split]
    score = scores.score_images(run, split, None, options.supersample)
    before = runs.read_metrics(folder)
    trained = {name: before[name] for name in TRAINING_METRICS if name in before}
    trained |= scores.score_scales(run, split, score)
    aligned = scores.score_aligned(run, split, options.supersample)
    trained |= aligned
    # A converted run was not trained here and has no metrics yet.
    alone = {"startup": startup, "train": run.seconds, "total": seconds_since_start()}
    seconds = before.get("seconds", alone) | {"evaluate": time.perf_counter() - started}
    metrics = scores.make_metrics(run, split, score, seconds, trained, hardware)
    path = folder / (
        runs.METRICS_FILE if options.split == "test" else f"metrics_{options.split}.json"
    )
    runs.write_text(path, runs.to_text(metrics))
    print("\n".join(scores.describe_images(score)))
    print(
        f"{options.split}: {scores.describe_score(score)} over {len(score['per_image'])} views on "
        f"{scores.background_name(config)}. Written to {path}."
    )
    for aligned_score in aligned.values():
        print(
            f"{options.split}, poses aligned: {scores.describe_score(aligned_score)} "
            f"({scores.ALIGNED})."
        )
    return 0

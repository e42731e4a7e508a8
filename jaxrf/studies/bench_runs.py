"""Runs of the benchmark: trained in their own processes, summarized by their metrics."""

import datetime
import os
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrf.evaluation.metrics import mean_metrics
from jaxrf.export import render_plan
from jaxrf.export.render_options import RenderOptions
from jaxrf.studies.options import BenchOptions
from jaxrf.studies.processes import run_jaxrf
from jaxrf.studies.roofline import Roofline
from jaxrf.studies.work import count_work
from jaxrf.training import runs

# PSNR levels, in dB, whose first times are reported.
LEVELS = (25.0, 28.0, 30.0, 32.0)
# Sides of the frames that are timed, in pixels.
FRAME_SIZES = (200, 400)
# A frame that takes longer, in seconds, is timed only once, compilation included.
LONG_FRAME = 30.0


def train(
    options: BenchOptions, preset: str, seed: int, downscale: int, budget: float, run_dir: Path
) -> None:
    """Trains in another process with an empty compilation cache, as a first run would."""
    arguments = [
        "train", "--preset", *shlex.split(preset),
        "--seed", str(seed), "--run-dir", str(run_dir), "--budget", str(budget),
        "--downscale", str(downscale), "--test-every", str(options.every), "--video.frames", "0",
        "--validate-every", "0.1", "--budget-excludes-validation", "--validation-views", "2",
    ]  # fmt: skip
    if options.data is not None:
        arguments += ["--data", str(options.data)]
    cache = run_dir.with_name(f"{run_dir.name}-cache")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    run_jaxrf(arguments, environment, f"Training {preset}")


def summarize(
    run_dir: Path, preset: str, seed: int, budget: float, roofline: Roofline
) -> dict[str, Any]:
    """Returns the results of one trained run, as the report stores them."""
    metrics = runs.read_metrics(run_dir)
    run = runs.open_run(run_dir)
    curve = [(v["seconds"], v["psnr"]) for v in metrics["validations"]]
    ideal_seconds = count_work(run.stage).ideal_seconds(roofline)
    seconds = metrics["seconds"]
    return {
        "date": datetime.date.today().isoformat(),
        "preset": preset,
        "seed": seed,
        "budget": budget,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state.params)),
        "dataset": metrics["dataset"],
        "resolution": metrics["resolution"],
        "background": metrics["background"],
        **mean_metrics([metrics["test"]]),
        "views": len(metrics["test"]["per_image"]),
        "steps": metrics["steps"],
        "trained_by_seconds": seconds["total"] - seconds["evaluate"] - seconds["validate"],
        "first_step_seconds": seconds["first_step"],
        "compile_seconds": seconds["compile"],
        "rays_per_second": metrics["rays_per_second"],
        "samples_per_second": metrics["samples_per_second"],
        "share_of_roofline": metrics["samples_per_second"] * ideal_seconds,
        "peak_memory_bytes": metrics["peak_memory_bytes"],
        "seconds_to_db": {f"{level:g}": first_time(curve, level) for level in LEVELS},
        "frame_seconds": {str(size): time_frame(run, size) for size in FRAME_SIZES},
        "curve": curve,
    }


def first_time(curve: list[tuple[float, float]], level: float) -> float | None:
    """Returns when a curve of (seconds, PSNR) first reaches a level; None if it never does.

    Between points the curve is linear.
    """
    before: tuple[float, float] | None = None
    for seconds, psnr in curve:
        if psnr >= level:
            if before is None:
                return seconds
            fraction = (level - before[1]) / (psnr - before[1])
            return round(before[0] + fraction * (seconds - before[0]), 1)
        before = (seconds, psnr)
    return None


def time_frame(run: runs.Run, size: int) -> float:
    """Returns the median seconds of a frame of `size` x `size` pixels, one ray per pixel.

    Compilation is left out.
    """
    render = runs.make_render_fn(run, supersample=1)
    orbit = render_plan.path_cameras(run, RenderOptions(frames=4, size=size))
    times = []
    for index in (0, 0, 1, 2, 3):
        started = time.perf_counter()
        render(orbit, index)
        times.append(time.perf_counter() - started)
        if times[-1] > LONG_FRAME:
            return times[-1]
    return float(np.median(times[1:]))

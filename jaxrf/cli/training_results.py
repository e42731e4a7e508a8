"""Results of a training: test scores, metrics, the video, the row of hyper-parameters."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrf.cameras.refinement import adjust_cameras
from jaxrf.cli import scores
from jaxrf.data import sources
from jaxrf.data.scene import Scene
from jaxrf.data.transforms import describe_cameras
from jaxrf.evaluation import images
from jaxrf.export import render_folder, render_plan
from jaxrf.export.render_options import RenderOptions
from jaxrf.parallel import devices, processes
from jaxrf.training import runs, summaries
from jaxrf.training.logs import EventWriter
from jaxrf.training.monitor import TrainMonitor
from jaxrf.training.runs import Run
from jaxrf.training.timing import seconds_since_start

VIDEO_FILE = "orbit.mp4"
CAMERAS_FILE = "cameras.json"


def finish(
    run: Run,
    watcher: TrainMonitor,
    data: Path,
    events: EventWriter,
    startup: float,
    num_devices: int,
    hardware: str,
) -> None:
    """Scores a trained run on the test split of its data, writes its metrics, renders its video.

    Args:
      watcher: the training's timings and validations.
      data: folder of the data set.
      startup: seconds from the start of the process until training began.
      hardware: of `describe_hardware`.
    """
    seconds = {
        "startup": startup,
        "first_step": watcher.clock.first_step,
        "compile": watcher.clock.compile,
        "train": watcher.seconds - watcher.clock.compile,
        "validate": watcher.clock.validate,
    }
    started = time.perf_counter()
    config = run.config
    choose = scores.every_kth(config.test_every)
    split = sources.load_scene(data, ["test"], config, choose).splits["test"]
    watcher.evaluator.wait_until_compiled()
    test = scores.score_images(run, split, events)
    trained = _training_metrics(watcher, num_devices) | scores.score_scales(run, split, test)
    aligned = scores.score_aligned(run, split)
    trained |= aligned
    seconds["evaluate"] = time.perf_counter() - started
    seconds["total"] = watcher.seconds_before + seconds_since_start()
    if processes.is_main_process():
        metrics = scores.make_metrics(run, split, test, seconds, trained, hardware)
        runs.write_metrics(run.folder, metrics)
    tell(
        events,
        f"Test: {scores.describe_score(test)} over {len(test['per_image'])} "
        f"views of {split.describe_size()} on {scores.background_name(config)}; "
        f"{seconds['total']:.0f} s since the start. Written to {run.folder / runs.METRICS_FILE}.",
    )
    for score in aligned.values():
        tell(events, f"Test, poses aligned: {scores.describe_score(score)} ({scores.ALIGNED}).")
    _write_row(run, events, test)
    if config.video.frames:
        _render_video(run, events)


def write_cameras(run: Run, scene: Scene) -> Path | None:
    """Writes the refined training cameras of a run, in the coordinates of the data set's files.

    Returns:
      The file, with the keys of a transforms.json; None if cameras were not refined.
    """
    adjustment = run.state.eval_params.cameras
    if adjustment is None:
        return None
    adjustment = jax.device_get(devices.to_local(devices.make_mesh(None), adjustment))
    split = scene.splits["train"]
    cameras = adjust_cameras(split.cameras, adjustment, np)
    content = describe_cameras(dataclasses.replace(split, cameras=cameras), scene.frame)
    path = run.folder / CAMERAS_FILE
    if processes.is_main_process():
        runs.write_text(path, runs.to_text(content))
    return path


def tell(events: EventWriter, sentence: str) -> None:
    """Prints a sentence and writes it to train.log."""
    print(sentence)
    events.note(sentence)


def _training_metrics(watcher: TrainMonitor, num_devices: int) -> dict[str, Any]:
    clock = watcher.clock
    train_seconds = max(clock.train, 1e-9)
    return {
        "devices": num_devices,
        "rays_per_second": round(clock.rays / train_seconds, 1),
        "samples_per_second": round(clock.samples / train_seconds, 1),
        "validations": [validation._asdict() for validation in watcher.evaluator.val_history],
    }


def _write_row(run: Run, events: EventWriter, score: dict[str, Any]) -> None:
    """Writes a run's hyper-parameters, results and final parameters for TensorBoard."""
    step = int(run.state.step)
    results = {f"test/{key}": value for key, value in score.items() if key != "per_image"}
    results["speed/train_seconds"] = run.seconds
    summaries.write_row(events, run.config, run.scene.name, results, step)
    if processes.is_main_process():
        mesh = devices.make_mesh(None)
        params, grid = devices.to_local(mesh, (run.state.params, run.state.grid))
        groups = run.config.model.param_groups(run.stage.field, params)
        summaries.write_parameters(events, params, groups, grid, step)


def _render_video(run: Run, events: EventWriter) -> None:
    """Renders the orbit; every process renders its part, the first one writes."""
    video = run.config.video
    plan = render_plan.plan_render(run, RenderOptions(frames=video.frames, size=video.size))
    renderings = render_folder.render_frames(run, plan, None, "video")
    rgb = np.stack([images.draw_channel(image, "rgb", plan.depth_range) for _, image in renderings])
    path = run.folder / VIDEO_FILE
    if processes.is_main_process():
        images.write_mp4(path, rgb, render_folder.FPS)
    events.video("video/orbit", rgb, render_folder.FPS, int(run.state.step))
    tell(events, f"Video: {path}")

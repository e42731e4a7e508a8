"""What the command line does: train, evaluate, render. Imports everything; `cli` parses for it."""

import dataclasses
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import jax
import numpy as np
import psutil
from jaxtyping import Float, UInt8
from tqdm import tqdm

from jaxrf import cameras as cams
from jaxrf import config as configs
from jaxrf import evaluate, methods, monitor, pictures, runs, train
from jaxrf.cli_options import Channel, EvalOptions, RenderOptions
from jaxrf.config import TrainConfig
from jaxrf.data import sources
from jaxrf.data.base import Scene, Split
from jaxrf.errors import InputError
from jaxrf.occupancy import occupied_aabb
from jaxrf.runs import Run, SceneSummary
from jaxrf.writers import EventWriter

VERSIONS = ("jaxrf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def set_up_jax(precision: str) -> None:
    """Sets the matmul precision and keeps compiled programs in the user's cache folder."""
    jax.config.update("jax_default_matmul_precision", precision)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxrf" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def describe_hardware() -> str:
    """One line: the device that JAX computes on, and the host."""
    device = jax.devices()[0]
    host = f"{os.cpu_count()} CPU cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    kind = platform.processor() or platform.machine()
    if device.platform == "cpu":
        return f"CPU ({kind}), {host}"
    return f"{jax.device_count()} x {device.device_kind}, host {host}"


def describe_versions() -> dict[str, str]:
    """Versions of Python and of what results depend on."""
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


def seconds_since_start() -> float:
    """Seconds since this process started."""
    return time.time() - psutil.Process().create_time()


def run_training(config: TrainConfig, preset: str) -> int:
    """Trains, evaluates on the test split, renders a video; returns the exit code.

    Everything lands in the run's folder. With `config.resume`, goes on from its last checkpoint.
    """
    source = sources.find_source(config)
    print(source.reason)
    set_up_jax(config.matmul_precision)
    hardware = describe_hardware()
    print(f"Hardware: {hardware}. Preset: {preset} (--preset names another).")
    folder = source.folder or _ensure_bricks(config)
    # The test split too, so that a broken one is found now and not after training.
    wanted = ("train", "val", "test") if config.validate_every > 0 else ("train", "test")
    scene = _load_with_optional_val(folder, wanted, config.downscale)
    if source.folder is None:
        scene = dataclasses.replace(scene, name="bricks")
    summary = runs.summarise_scene(scene, folder)

    run_dir = config.run_dir or runs.name_run(config, scene.name)
    restored = None
    if config.resume:
        restored = runs.open_run(run_dir, config=config)
        _check_same_scene(restored, summary)
        print(f"Resuming {run_dir} at step {int(restored.state.step)} of {config.steps}.")
    else:
        data = None if source.folder is None else source.folder.absolute()
        config = methods.fit_config(config, scene)
        config = dataclasses.replace(config, run_dir=run_dir, data=data)
        if config.budget is not None:
            config = _fit_budget(config, scene)
        runs.create_folder(run_dir)
        runs.write_text(run_dir / runs.CONFIG_FILE, configs.to_json(config))
    print(f"Run: {run_dir} (watch it with: tensorboard --logdir {run_dir.parent})")

    events = EventWriter(run_dir)
    events.text("config", configs.to_json(config))
    manager = runs.open_checkpoints(run_dir, config)
    startup = seconds_since_start()
    try:
        with monitor.catch_signals() as caught:
            watcher = monitor.Monitor(
                config,
                summary,
                events,
                manager,
                scene.splits.get("val"),
                caught,
                int(restored.state.step) if restored else 0,
                restored.seconds if restored else 0.0,
                None if restored else _deadline(config),
            )
            start = (restored.stage, restored.state) if restored else None
            stage, state = train.fit(config, scene, watcher, start)
            watcher.save(stage, state)
            watcher.close()
        if caught:
            print(
                f"Stopped at step {int(state.step)} of {config.steps}; continue with: "
                f"--resume --run-dir {run_dir}"
            )
            return 128 + caught[0]
        run = Run(run_dir, config, summary, stage, state, watcher.seconds)
        clock = watcher.clock
        seconds = {
            "startup": startup,
            "compile": clock.compile,
            "train": watcher.seconds - clock.compile,
        }
        rays_per_second = clock.rays / max(clock.train, 1e-9)
        test = scene.splits["test"]
        finish_training(run, test, events, seconds, rays_per_second, hardware)
    except KeyboardInterrupt:
        print(f"Interrupted. What was saved is in {run_dir}.", file=sys.stderr)
        return 130
    finally:
        manager.close()
        events.close()
    return 0


def finish_training(
    run: Run,
    split: Split,
    events: EventWriter,
    seconds: dict[str, float],
    rays_per_second: float,
    hardware: str,
) -> None:
    """Scores a trained run on the test split and renders its video."""
    started = time.perf_counter()
    test = _score(run, split, events, run.config.test_every)
    seconds = seconds | {"evaluate": time.perf_counter() - started}
    seconds["total"] = seconds_since_start()
    runs.write_metrics(run.folder, _metrics(run, split, test, seconds, rays_per_second, hardware))
    size = f"{split.cameras.width}x{split.cameras.height}"
    print(
        f"Test: PSNR {test['psnr']:.2f} dB, SSIM {test['ssim']:.4f} over {len(test['per_image'])} "
        f"views of {size} on {_behind(run.config)}; {seconds['total']:.0f} s since the start. "
        f"Written to {run.folder / runs.METRICS_FILE}."
    )
    video = run.config.video
    if video.frames:
        options = RenderOptions(frames=video.frames, size=video.size)
        frames = render_orbit(run, options, "video")
        rgb = np.stack([f["rgb"] for f in frames])
        pictures.write_mp4(run.folder / "orbit.mp4", rgb, options.fps)
        events.video("orbit", rgb, options.fps, int(run.state.step))
        print(f"Video: {run.folder / 'orbit.mp4'}")


def run_evaluation(options: EvalOptions) -> int:
    """Scores a run on a split and writes its metrics.json; returns the exit code."""
    folder = options.run or runs.find_newest(Path("runs"))
    run = runs.open_run(folder, options.step)
    set_up_jax(run.config.matmul_precision)
    hardware = describe_hardware()
    started = time.perf_counter()
    startup = seconds_since_start()
    data = options.data or Path(run.scene.data)
    downscale = options.downscale or run.config.downscale
    if options.background:
        config = dataclasses.replace(run.config, background=options.background)
        run = dataclasses.replace(run, config=config)
    split = sources.load_scene(data, [options.split], downscale).splits[options.split]
    score = _score(run, split, None, options.every, options.subrays)
    before = runs.read_metrics(folder)
    seconds = {
        "startup": startup,
        "compile": before.get("seconds", {}).get("compile", 0.0),
        "train": before.get("seconds", {}).get("train", run.seconds),
        "evaluate": time.perf_counter() - started,
        "total": seconds_since_start(),
    }
    values = _metrics(run, split, score, seconds, before.get("rays_per_second", 0.0), hardware)
    name = runs.METRICS_FILE if options.split == "test" else f"metrics_{options.split}.json"
    runs.write_text(folder / name, runs.to_text(values))
    for picture in score["per_image"]:
        print(f"{picture['name']:>12}  PSNR {picture['psnr']:6.2f} dB  SSIM {picture['ssim']:.4f}")
    print(
        f"{options.split}: PSNR {score['psnr']:.2f} dB, SSIM {score['ssim']:.4f} over "
        f"{len(score['per_image'])} views on {_behind(run.config)}. Written to {folder / name}."
    )
    return 0


def run_rendering(options: RenderOptions) -> int:
    """Renders an orbit of a run as MP4, GIF and PNG frames; returns the exit code."""
    folder = options.run or runs.find_newest(Path("runs"))
    output = options.output or _fresh_folder(folder / "orbit")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(
            f"The output folder {output} exists already: name another one with --output."
        )
    run = runs.open_run(folder, options.step)
    set_up_jax(run.config.matmul_precision)
    runs.make_writable(output, "--output")
    print(f"Rendering {options.frames} frames of {folder} at step {int(run.state.step)}.")
    frames = render_orbit(run, options, "render")
    for channel in options.channels:
        stack = np.stack([frame[channel] for frame in frames])
        pictures.write_mp4(output / f"{channel}.mp4", stack, options.fps)
        (output / f"{channel}.gif").write_bytes(pictures.encode_gif(stack, options.fps))
        (output / channel).mkdir()
        for index, frame in enumerate(stack):
            iio.imwrite(output / channel / f"{index:04d}.png", frame)
    print(f"Written to {output}: {', '.join(f'{c}.mp4, {c}.gif, {c}/' for c in options.channels)}")
    return 0


def _ensure_bricks(config: TrainConfig) -> Path:
    with tqdm(desc="render bricks", unit="view") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return sources.ensure_bricks(config.bricks, progress)


def _load_with_optional_val(folder: Path, splits: Iterable[str], downscale: int) -> Scene:
    """The scene with its val split only if it has one."""
    present = [s for s in splits if s != "val" or (folder / "transforms_val.json").exists()]
    return sources.load_scene(folder, present, downscale)


def _check_same_scene(run: Run, scene: SceneSummary) -> None:
    if scene.checksum != run.scene.checksum:
        raise InputError(
            f"The training pictures in {scene.data} are not those that {run.folder} was trained on "
            f"({run.scene.data}): give their folder with --data, and the same --downscale."
        )


def _deadline(config: TrainConfig) -> float | None:
    """The time of the clock at which training is to be done."""
    if config.budget is None:
        return None
    return psutil.Process().create_time() + config.budget


def _fit_budget(config: TrainConfig, scene: Scene) -> TrainConfig:
    """The configuration with as many steps as are likely to fit into its budget."""
    assert config.budget is not None
    step, compilation = train.measure_step(config, scene)
    stage = methods.first_stage(config, scene.aabb)
    growths = methods.plan_growth(dataclasses.replace(config, steps=1 << 20))
    growing, slower = methods.estimate_growth(config.field, stage, growths, compilation)
    step *= slower
    left = config.budget - seconds_since_start() - growing
    if left < 10 * step:
        raise InputError(
            f"--budget {config.budget:g} is too short here: starting took "
            f"{seconds_since_start():.0f} s and changing the grid will take about {growing:.0f} s: "
            "give more seconds."
        )
    # Validations, checkpoints and records take their share, and it is better to end a little early
    # than to be cut off before the rates have come down.
    steps = int(0.85 * left / step)
    print(f"Budget: {config.budget:g} s, enough for about {steps} steps of {step * 1e3:.0f} ms.")
    return dataclasses.replace(config, steps=steps)


def _behind(config: TrainConfig) -> str:
    return "black" if config.background == "black" else "white"


def _score(
    run: Run, split: Split, events: EventWriter | None, every: int, subrays: int | None = None
) -> dict[str, Any]:
    """Scores every `every`-th picture of a split; a few are written as TensorBoard images."""
    background = train.background_color(run.config)
    render = runs.make_render_view(run, subrays)
    indices = list(range(0, len(split), every))
    everything = evaluate.score_split(render, split, background, indices)
    shown = [indices[i] for i in evaluate.spread(len(indices), 4)]
    scored = []
    for item in tqdm(everything, total=len(indices), desc=f"{split.name} views", unit="view"):
        if events and item.view in shown:
            monitor.write_pictures(events, f"test/{item.name}", item, int(run.state.step))
        # Of every other picture only the figures are kept, or large splits would fill the memory.
        scored.append(item._replace(rendering=None, truth=None))  # type: ignore[arg-type]
    summary = evaluate.summarise(scored)
    if events:
        step = int(run.state.step)
        events.scalars({"test/psnr": summary["psnr"], "test/ssim": summary["ssim"]}, step)
    return summary


def _metrics(
    run: Run,
    split: Split,
    score: dict[str, Any],
    seconds: dict[str, float],
    rays_per_second: float,
    hardware: str,
) -> dict[str, Any]:
    return {
        split.name: score,
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "steps": int(run.state.step),
        "rays_per_second": round(rays_per_second, 1),
        "peak_memory_bytes": monitor.peak_memory_bytes(),
        "background": _behind(run.config),
        "resolution": [split.cameras.width, split.cameras.height],
        "dataset": run.scene.name,
        "hardware": hardware,
        "versions": describe_versions(),
    }


def _fresh_folder(wanted: Path) -> Path:
    """The wanted folder, or the first of wanted-2, wanted-3, ... that does not exist."""
    folder, number = wanted, 2
    while folder.exists():
        folder, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return folder


def render_orbit(
    run: Run, options: RenderOptions, title: str
) -> list[dict[Channel, UInt8[np.ndarray, "h w 3"]]]:
    """Frames of an orbit around what the training cameras look at.

    Args:
      run: what to render.
      options: size, number of frames, elevation, radius and channels.
      title: of the progress bar.

    Returns:
      For each frame, an 8-bit picture of each channel.
    """
    target = np.asarray(run.scene.focus)
    radius = options.radius or run.scene.radius
    poses = cams.orbit_path(options.frames, radius, np.deg2rad(options.elevation), target)
    angle = 2.0 * np.arctan(0.5 * run.scene.width / run.scene.focal)
    width, height = options.size, options.size * run.scene.height // run.scene.width
    orbit = cams.make_cameras(poses, width, height, angle)
    half_diagonal = 0.5 * float(np.linalg.norm(np.diff(occupied_aabb(run.state.grid), axis=0)))
    low, high = max(radius - half_diagonal, 0.0), radius + half_diagonal
    render = runs.make_render_view(run, options.subrays)
    frames = []
    for index in tqdm(range(options.frames), desc=title, unit="frame"):
        result = render(orbit, index)
        depth = pictures.depth_picture(result.median_depth, result.opacity, low, high)
        opacity = np.repeat(result.opacity[..., None], 3, axis=-1)
        channels: dict[Channel, Float[np.ndarray, "h w 3"]] = {
            "rgb": result.rgb,
            "depth": depth,
            "opacity": opacity,
        }
        frames.append({c: pictures.to_uint8(channels[c]) for c in options.channels})
    return frames

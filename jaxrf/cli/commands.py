"""What the command line does, from start to end. Imports everything; `cli` parses for it."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from tqdm import tqdm

from jaxrf.cameras import base as cams
from jaxrf.cameras import paths
from jaxrf.cameras import transforms as frames
from jaxrf.cli.options import (
    ConvertOptions,
    DataFetchOptions,
    DataInfoOptions,
    EvalOptions,
    ExportOptions,
    RenderOptions,
    ViewOptions,
)
from jaxrf.convert import check, formats, write
from jaxrf.convert.files.arrays import describe
from jaxrf.convert.files.read import Content, read_file
from jaxrf.convert.networks import Converted
from jaxrf.convert.to_run import UNKNOWN_CHECKSUM, to_run
from jaxrf.core import memory
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.data import fetch, report, sources
from jaxrf.data.scene import Scene, Split, downscale_split, find_background
from jaxrf.evaluation import (
    images,
    interactive,
    lpips,
    scoring,
)
from jaxrf.export import geometry_files, mesh, points, render_folder, render_plan, ternary, web
from jaxrf.parallel import devices as parallel
from jaxrf.training import monitor, runs, summaries, train, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import EventWriter
from jaxrf.training.runs import Run, SceneMetadata
from jaxrf.viewer.server import Viewer, check_host

# What other programs call their checkpoints.
SUFFIXES = {
    "nerf-pytorch": ".tar",
    "tensorf": ".th",
    "nerfstudio": ".ckpt",
    "web": ".html",
    "mesh": ".glb",
    "points": ".ply",
}
# Where a viewer puts paths and videos, in a run's folder.
VIEWS = "views"
# Where a run says which weights it was converted from.
CONVERTED_FILE = "converted.json"
VERSIONS = ("jaxrf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def set_up_jax(precision: str) -> None:
    """Sets the matmul precision and keeps compiled programs in the user's cache folder."""
    jax.config.update("jax_default_matmul_precision", precision)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxrf" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


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


def run_training(config: TrainConfig, preset: str) -> int:
    """Trains, evaluates on the test split, renders a video; returns the exit code.

    Everything lands in the run's folder. With `config.resume`, goes on from its last checkpoint.
    With `config.coordinator`, several processes do so together, and one of them writes.
    """
    if config.coordinator is None:
        return _train_and_finish(config, preset)
    parallel.connect(config.coordinator, config.processes, config.process_id)
    # Another time there may be others.
    config = dataclasses.replace(config, coordinator=None, processes=None, process_id=None)
    with parallel.silence_non_main(), parallel.abort_on_peer_failure():
        return _train_and_finish(config, preset)


def _train_and_finish(config: TrainConfig, preset: str) -> int:
    if config.resume and config.data is None and config.run_dir is not None:
        _check_has_pictures(config.run_dir)
    source = sources.find_source(config)
    print(source.reason)
    set_up_jax(config.matmul_precision)
    hardware = describe_hardware()
    print(f"Hardware: {hardware}. Preset: {preset} (--preset names another).")
    # What is wrong with these is to be found out now, not once there is a run.
    if config.lpips:
        lpips.load_weights(config.lpips)
    if config.view:
        check_host(config.viewer.host)
    folder = source.folder
    if folder is None:
        parallel.once(lambda: _ensure_bricks(config))
        folder = _ensure_bricks(config)
    if config.resume and config.devices not in (None, jax.device_count()):
        config = _find_devices(config)
    mesh = parallel.make_mesh(config.devices)
    if mesh.size > 1:
        print(f"Devices: {mesh.size} share the rays, of {jax.process_count()} processes.")
    # Nothing of the test split is decoded yet, but what is missing there is to be found out now.
    skip = config.skip_missing
    sources.load_scene(folder, ["test"], config.downscale, _no_views, skip)
    scene = sources.load_scene(folder, ["train"], config.downscale, skip_missing=skip)
    if source.folder is not None:
        print(f"Found: {sources.describe_scene(folder, scene)}")
    if source.folder is None:
        scene = dataclasses.replace(scene, name="bricks")
    val = _load_val(folder, config)
    summary = runs.scene_metadata(scene, folder)

    run_dir = Path(parallel.agree(str(config.run_dir or runs.name_run(config, scene.name))))
    restored = None
    if config.resume:
        restored = runs.open_run(run_dir, config=config)
        _check_same_scene(restored, summary)
        print(f"Resuming {run_dir} at step {int(restored.state.step)} of {config.steps}.")
    else:
        data = None if source.folder is None else source.folder.absolute()
        asked = config.background
        config = transitions.resolve_config(config, scene)
        if config.background != asked:
            print(f"Background: {config.background}, as around what the pictures show.")
        if (warning := _doubt_background(config, scene)) is not None:
            print(warning)
        config = dataclasses.replace(config, run_dir=run_dir, data=data)
        parallel.once(lambda: _begin_run(run_dir, config))
        config = dataclasses.replace(runs.read_config(run_dir), run_dir=run_dir)
    print(f"Run: {run_dir} (watch it with: tensorboard --logdir {run_dir.parent})")

    viewer = _open_viewer(config, scene, summary, run_dir)
    done = int(restored.state.step) if restored else 0
    events = EventWriter(run_dir, parallel.leads(), done if restored else None)
    events.note(
        f"{'resumed' if restored else 'begun'} at step {done} of {config.steps}: "
        f"{config.field.kind} on {scene.name}; {hardware}"
    )
    manager = runs.LazyCheckpointManager(run_dir, config)
    startup = monitor.seconds_since_start()
    try:
        # A process that is gone would be waited for when all is closed.
        with parallel.abort_on_peer_failure(), monitor.catch_signals() as caught:
            watcher = monitor.Monitor(
                run_dir,
                config,
                summary,
                events,
                manager,
                val,
                caught,
                done,
                restored.seconds if restored else 0.0,
                None if restored else _deadline(config),
                mesh,
                _small_orbit if config.video.frames else None,
                viewer,
            )
            start = (restored.stage, restored.state) if restored else None
            stage, state = train.fit(config, scene, watcher, start, mesh=mesh)
            watcher.save(stage, state)
            watcher.close()
            interrupted = parallel.largest(caught[0] if caught else 0)
        config = watcher.config
        if interrupted:
            _tell(
                events,
                f"Stopped at step {int(state.step)} of {config.steps}; continue with: "
                f"--resume --run-dir {run_dir}",
            )
            return 128 + interrupted
        run = Run(run_dir, config, summary, stage, state, watcher.seconds)
        clock = watcher.clock
        seconds = {
            "startup": startup,
            "first_step": clock.first_step,
            "compile": clock.compile,
            "train": watcher.seconds - clock.compile,
            "validate": clock.validate,
        }
        trained = {
            "devices": mesh.size,
            "rays_per_second": round(clock.rays / max(clock.train, 1e-9), 1),
            "samples_per_second": round(clock.samples / max(clock.train, 1e-9), 1),
            "validations": [validation._asdict() for validation in watcher.history],
        }
        earlier = watcher.seconds_before
        finish_training(run, folder, events, seconds, trained, hardware, earlier)
        if viewer is not None:
            _keep_showing(viewer, run)
    except KeyboardInterrupt:
        print(f"Interrupted. What was saved is in {run_dir}.", file=sys.stderr)
        events.note("interrupted")
        return 130
    except Exception as error:
        # A disk that is full is told by the error itself.
        with contextlib.suppress(OSError):
            events.note(f"error: {str(error) or type(error).__name__}")
        raise
    finally:
        manager.close()
        events.close()
        if viewer is not None:
            viewer.close()
    return 0


def _doubt_background(config: TrainConfig, scene: Scene) -> str | None:
    """What to think of, where opaque pictures show another colour around an object."""
    if scene.unbounded or scene.splits["train"].cameras.ndc is not None:
        return None
    shown = find_background(scene.splits["train"].images)
    if shown is None or config.background in (shown, "random"):
        return None
    return (
        f"Background: {config.background}, but the pictures are {shown} around what they show, and "
        f"walls have to be learnt; --background {shown} spares that."
    )


def _open_viewer(
    config: TrainConfig, scene: Scene, summary: SceneMetadata, folder: Path
) -> Viewer | None:
    """The page that shows a training, if that is wanted, of the process that writes."""
    if not config.view or not parallel.leads():
        return None
    address, behind = config.viewer, train.background_color(config)
    viewer = Viewer(
        folder.name, summary, folder / VIEWS, address.host, address.port, behind,
        scene.splits["train"], training=True,
    )  # fmt: skip
    print(f"Open {viewer.address} in a browser to watch it.")
    return viewer


def _keep_showing(viewer: Viewer, run: Run) -> None:
    """Shows what a run has learnt until Ctrl-C."""
    viewer.show(make_interactive_renderer(run), f"{int(run.state.step)} steps, done")
    print(f"Open {viewer.address} in a browser; Ctrl-C ends it.", flush=True)
    with monitor.catch_signals() as caught:
        while not caught:
            time.sleep(0.2)


def make_interactive_renderer(run: Run) -> interactive.InteractiveRenderer:
    """A painter of what a run has learnt."""
    state, seen = run.state, runs.near_far_fn(run.scene, run.state.grid)
    behind = train.background_color(run.config)
    return interactive.make_interactive_renderer(
        run.config, run.stage, state.shown, state.grid, seen, behind
    )


def run_viewer(options: ViewOptions) -> int:
    """Shows a run in browsers until Ctrl-C; returns the exit code."""
    source = options.run or runs.find_newest(Path("runs"))
    run = _open_run(source, options.step)
    set_up_jax(run.config.matmul_precision)
    folder = source.with_name(f"{source.stem}-{VIEWS}") if source.is_file() else source / VIEWS
    viewer = Viewer(
        source.name, run.scene, folder, options.host, options.port,
        train.background_color(run.config), _find_pictures(run),
    )  # fmt: skip
    try:
        _keep_showing(viewer, run)
    finally:
        viewer.close()
    return 0


def _find_pictures(run: Run) -> Split | None:
    """The training pictures of a run if they are still there."""
    config, folder = run.config, Path(run.scene.data)
    if not run.scene.data or not folder.exists():
        return None
    try:
        scene = sources.load_scene(
            folder, ["train"], config.downscale, skip_missing=config.skip_missing
        )
    except InputError as error:
        print(f"The training pictures are not shown: {error}")
        return None
    return scene.splits["train"]


def finish_training(
    run: Run,
    data: Path,
    events: EventWriter,
    seconds: dict[str, float],
    trained: dict[str, Any],
    hardware: str,
    earlier: float = 0.0,
) -> None:
    """Scores a trained run on the test split of its data and renders its video.

    `earlier` are the seconds it was trained for before it was resumed.
    """
    started = time.perf_counter()
    every = _every(run.config.test_every)
    split = sources.load_scene(
        data, ["test"], run.config.downscale, every, run.config.skip_missing
    ).splits["test"]
    test = _score(run, split, events)
    trained = trained | score_sizes(run, split, test)
    seconds = seconds | {"evaluate": time.perf_counter() - started}
    seconds["total"] = earlier + monitor.seconds_since_start()
    if parallel.leads():
        runs.write_metrics(run.folder, _metrics(run, split, test, seconds, trained, hardware))
    size = f"{split.cameras.width}x{split.cameras.height}"
    _tell(
        events,
        f"Test: {_describe_score(test)} over {len(test['per_image'])} "
        f"views of {size} on {_behind(run.config)}; {seconds['total']:.0f} s since the start. "
        f"Written to {run.folder / runs.METRICS_FILE}.",
    )
    _write_row(run, events, test)
    video = run.config.video
    if video.frames:
        options = RenderOptions(frames=video.frames, size=video.size)
        plan = render_plan.plan_render(run, options)
        renderings = render_folder.render_frames(run, plan, None, "video")
        rgb = np.stack([images.draw_channel(r, "rgb", plan.depth_range) for _, r in renderings])
        if parallel.leads():
            images.write_mp4(run.folder / "orbit.mp4", rgb, render_folder.FPS)
        events.video("video/orbit", rgb, render_folder.FPS, int(run.state.step))
        _tell(events, f"Video: {run.folder / 'orbit.mp4'}")


def _tell(events: EventWriter, sentence: str) -> None:
    """Prints a sentence and keeps it in train.log."""
    print(sentence)
    events.note(sentence)


def _write_row(run: Run, events: EventWriter, score: dict[str, Any]) -> None:
    """A finished run's hyper-parameters and results, and the last state of its parameters."""
    step = int(run.state.step)
    results = {f"test/{key}": value for key, value in score.items() if key != "per_image"}
    results["speed/train_seconds"] = run.seconds
    summaries.write_row(events, run.config, run.scene.name, results, step)
    if parallel.leads():
        mesh = parallel.make_mesh(None)
        state = parallel.to_local(mesh, (run.state.params, run.state.grid))
        summaries.write_parameters(events, *state, step)


def _small_orbit(run: Run) -> cams.Cameras:
    """Cameras of a video while training: a quarter of the frames at half of the size."""
    video = run.config.video
    frames, size = max(video.frames // 4, 1), max(video.size // 2, 1)
    return render_plan.path_cameras(run, RenderOptions(frames=frames, size=size))


def _find_devices(config: TrainConfig) -> TrainConfig:
    """A resumed run's own number of devices, or all where there are not so many."""
    assert config.devices is not None
    if jax.process_count() == 1 and config.devices <= jax.device_count():
        return config
    print(f"The run had --devices {config.devices}; it goes on with {jax.device_count()}.")
    return dataclasses.replace(config, devices=None)


def _begin_run(folder: Path, config: TrainConfig) -> None:
    runs.create_folder(folder)
    runs.write_config(folder, runs.vendor_user_code(folder, config))


def score_sizes(run: Run, split: Split, whole: dict[str, Any]) -> dict[str, Any]:
    """PSNR and SSIM of a split at every size that was trained on, and their means, if several.

    Each picture is averaged over areas and compared with a rendering of that size (Mip-NeRF,
    section 4.2).
    """
    if run.config.scales == 1:
        return {}
    sizes = [{"factor": 1, "psnr": whole["psnr"], "ssim": whole["ssim"]}]
    for halvings in range(1, run.config.scales):
        smaller = downscale_split(split, 2**halvings)
        score = _score(run, smaller, None, lpips_too=False)
        sizes.append({"factor": 2**halvings, "psnr": score["psnr"], "ssim": score["ssim"]})
    mean = {key: float(np.mean([size[key] for size in sizes])) for key in ("psnr", "ssim")}
    shown = ", ".join(f"1/{size['factor']}: {size['psnr']:.2f} dB" for size in sizes)
    print(f"PSNR by size {shown}; mean {mean['psnr']:.2f} dB.")
    return {"sizes": sizes, "mean_of_sizes": mean}


def run_evaluation(options: EvalOptions) -> int:
    """Scores a run on a split and writes its metrics.json; returns the exit code."""
    folder = options.run or runs.find_newest(Path("runs"))
    run = runs.open_run(folder, options.step)
    set_up_jax(run.config.matmul_precision)
    hardware = describe_hardware()
    started = time.perf_counter()
    startup = monitor.seconds_since_start()
    if not (options.data or run.scene.data):
        _check_has_pictures(folder)
    data = options.data or Path(run.scene.data)
    downscale = options.downscale or run.config.downscale
    if options.background:
        config = dataclasses.replace(run.config, background=options.background)
        run = dataclasses.replace(run, config=config)
    if options.lpips:
        config = dataclasses.replace(run.config, lpips=options.lpips)
        run = dataclasses.replace(run, config=config)
    skip, some = run.config.skip_missing, _every(options.every or run.config.test_every)
    scene = sources.load_scene(data, [options.split], downscale, some, skip)
    split = scene.splits[options.split]
    score = _score(run, split, None, options.supersample)
    before = runs.read_metrics(folder)
    # What was measured of the training stays; only scoring is new.
    alone = {"startup": startup, "train": run.seconds, "total": monitor.seconds_since_start()}
    seconds = before.get("seconds", alone) | {"evaluate": time.perf_counter() - started}
    kept = ("devices", "rays_per_second", "samples_per_second", "validations", "peak_memory_bytes")
    trained = {name: before[name] for name in kept if name in before}
    trained |= score_sizes(run, split, score)
    values = _metrics(run, split, score, seconds, trained, hardware)
    name = runs.METRICS_FILE if options.split == "test" else f"metrics_{options.split}.json"
    runs.write_text(folder / name, runs.to_text(values))
    for picture in score["per_image"]:
        print(f"{picture['name']:>12}  PSNR {picture['psnr']:6.2f} dB  SSIM {picture['ssim']:.4f}")
    print(
        f"{options.split}: {_describe_score(score)} over {len(score['per_image'])} views on "
        f"{_behind(run.config)}. Written to {folder / name}."
    )
    return 0


def _describe_score(score: dict[str, Any]) -> str:
    text = f"PSNR {score['psnr']:.2f} dB, SSIM {score['ssim']:.4f}"
    return f"{text}, LPIPS {score['lpips']:.4f}" if "lpips" in score else text


def run_rendering(options: RenderOptions) -> int:
    """Renders frames of a run and makes videos of them; returns the exit code."""
    source = options.run or runs.find_newest(Path("runs"))
    run = _open_run(source, options.step)
    set_up_jax(run.config.matmul_precision)
    content = render_folder.describe_frames(run, options)
    name = "orbit" if options.path == "auto" else Path(options.path).stem
    beside = source.with_name(f"{source.stem}-{name}") if source.is_file() else source / name
    output = options.output or render_folder.find_folder(beside, content)
    taken = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if taken and not render_folder.is_resumable(output, content):
        raise InputError(
            f"The output folder {output} exists already: name another one with --output."
        )
    fps = options.fps or (2.0 if options.path in render_plan.SPLITS else render_folder.FPS)
    if options.fps is None and options.path.endswith(".json"):
        fps = paths.read_path(Path(options.path)).fps
    print(f"Rendering {source} at step {int(run.state.step)} into {output}.")
    render_folder.render_into_folder(run, options, output, fps)
    return 0


def run_export(options: ExportOptions) -> int:
    """Writes a run as one file; returns the exit code."""
    folder = options.run or runs.find_newest(Path("runs"))
    output = options.output or folder / f"{options.format}{SUFFIXES.get(options.format, '.npz')}"
    # What has been exported under its default name may be so again.
    if output.is_dir() or (options.output and output.exists()):
        raise InputError(f"The output {output} exists already: name another file with --output.")
    run = runs.open_run(folder, options.step)
    set_up_jax(run.config.matmul_precision)
    if options.format == "mesh" or options.format == "points":
        return _export_geometry(run, options, output)
    if options.format == "web":
        weights = web.write_page(run, output)
        print(
            f"Written to {output}: {output.stat().st_size / 1e3:.1f} kB, of which the weights are "
            f"{weights / 1e3:.1f} kB. Open it in a browser."
        )
        return 0
    if options.format != "ternary-2bit" and options.format != "ternary-1.6bit":
        notes = write.write_file(run, output, options.format)
        print(f"Written to {output}: {output.stat().st_size / 1e3:.1f} kB.")
        for note in notes:
            print(note)
        return 0
    ternary.write_ternary(run, output, options.format)
    packed, plain = output.stat().st_size, 4 * ternary.count_weights(run.state.shown)
    print(
        f"Written to {output}: {packed / 1e3:.1f} kB; the weights alone take {plain / 1e3:.1f} kB "
        f"as float32, {plain / packed:.1f} times as much. Render it with: jaxrf render {output}"
    )
    return 0


def _export_geometry(run: Run, options: ExportOptions, output: Path) -> int:
    # Before minutes are spent on what cannot be written.
    geometry_files.check_suffix(output)
    runs.make_writable(output.absolute().parent, "--output")
    back = frames.invert_frame(frames.unpack_frame(run.scene.frame))
    frame = back if options.frame == "data" else frames.identity_frame()
    if options.format == "mesh":
        share = 1.0 if options.largest else options.fragments
        chosen = (options.resolution, options.level, share, options.views, options.keep_hidden)
        surface = mesh.extract_mesh(run, *chosen, progress=_show_progress)
        geometry_files.write_mesh(output, mesh.transform_mesh(frame, surface))
        held = f"{len(surface.vertices):,} vertices, {len(surface.faces):,} faces"
    else:
        cloud = points.extract_points(run, options.points, options.views, progress=_show_progress)
        geometry_files.write_points(output, points.transform_points(frame, cloud))
        held = f"{len(cloud.positions):,} points"
    print(
        f"Written to {output}: {output.stat().st_size / 1e6:.1f} MB; {held}, in the coordinates of "
        f"{'the data set' if options.frame == 'data' else 'training'}."
    )
    return 0


def _show_progress(indices: Iterable[int], title: str) -> Iterable[int]:
    bar: Iterable[int] = tqdm(indices, desc=title)
    return bar


def run_conversion(options: ConvertOptions) -> int:
    """Turns weights of another program into a run, or compares them with it.

    Returns the exit code: 1 if a comparison found a difference.
    """
    set_up_jax("highest")
    content = read_file(options.file)
    format_options = formats.FormatOptions(
        options.legacy_order, options.inclusive, options.bounded, options.density_factor
    )
    try:
        converted = formats.convert(content, format_options)
    except InputError:
        print(describe(content))
        raise
    print(
        f"{options.file}: {converted.format}, {ternary.count_weights(converted.params):,} weights."
    )
    for note in converted.notes:
        print(note)
    scene = None
    if options.data is not None:
        folder = sources.find_data(options.data)
        splits = ["train", "test"] if options.check else ["train"]
        scene = sources.load_scene(folder, splits, options.downscale)
        if scene.splits["train"].cameras.ndc is not None:
            raise InputError(
                f"{folder} is in normalised device coordinates, in which other programs see "
                "directions otherwise: convert without --data."
            )
        converted = converted._replace(near=scene.near, far=scene.far)
    if options.check:
        same = _check_port(converted, content, format_options, scene, options.size)
        if options.run_dir is None or not same:
            return 0 if same else 1
    name = options.file.stem
    run_dir = options.run_dir or runs.name_run(converted.config, name)
    data = folder if scene else None
    run = to_run(converted, name, run_dir, scene, data, options.downscale, options.steps)
    runs.create_folder(run_dir)
    runs.write_config(run_dir, run.config)
    source = {
        "file": str(options.file.absolute()),
        "format": converted.format,
        "step": converted.step,
    }
    runs.write_text(run_dir / CONVERTED_FILE, runs.to_text(source))
    manager = runs.open_checkpoints(run_dir, run.config)
    try:
        runs.save(manager, run.scene, run.stage, run.state, 0.0, None)
        manager.wait_until_finished()
    finally:
        manager.close()
    print(
        f"Run: {run_dir}. Score it with: jaxrf eval {run_dir} --data PATH; fine-tune it with: "
        f"train_lego.py --resume --run-dir {run_dir} --data PATH"
    )
    return 0


def _check_port(
    converted: Converted,
    content: Content,
    format_options: formats.FormatOptions,
    scene: Scene | None,
    size: int,
) -> bool:
    """Prints how far converted weights are from the program they come from; whether they pass."""
    cameras = check.default_camera(size)
    if scene is not None:
        seen = scene.splits["test"].cameras
        if seen.distortion is not None or seen.lens != "perspective":
            raise InputError(
                "--check compares what a pinhole sees, and --data has lenses: leave it out."
            )
        height = max(size * seen.height // seen.width, 1)
        cameras = cams.resize_cameras(cams.index_cameras(seen, np.array([0])), size, height)
    rows = []
    for double, name in ((False, "float32"), (True, "float64")):
        found = check.check_points(converted, content, format_options, check.NUM_POINTS, double)
        print(f"Raw outputs at {check.NUM_POINTS:,} points, {name}:")
        print(check.format_rows(found))
        rows += found
    pixels = check.check_images(converted, content, format_options, cameras, double=False)
    shape = f"{cameras.width}x{cameras.height}"
    print(f"A picture of {shape}, float32:")
    print(check.format_rows(pixels))
    exact = check.check_images(converted, content, format_options, cameras, double=True)
    print("The same in float64, where rounding is out of the way:")
    print(check.format_rows(exact))
    same = check.passes([*rows, *pixels, *exact])
    print("The port is equivalent." if same else "The port DIFFERS.")
    return same


def _open_run(path: Path, step: int | None) -> Run:
    """A run out of its folder, or out of a file that `run_export` wrote."""
    if not path.is_file():
        return runs.open_run(path, step)
    if step is not None:
        raise InputError(f"--step {step} chooses a checkpoint, but {path} is a file: leave it out.")
    return ternary.read_ternary(path)


def _ensure_bricks(config: TrainConfig) -> Path:
    with tqdm(desc="render bricks", unit="view", disable=not parallel.leads()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return sources.ensure_bricks(config.bricks, progress)


def _no_views(count: int) -> range:
    del count
    return range(0)


def _every(step: int) -> Callable[[int], range]:
    """Chooses every so many-th view."""
    return lambda count: range(0, count, step)


def _load_val(folder: Path, config: TrainConfig) -> Split | None:
    """The views to validate on, if that is wanted and the data set has any."""
    if config.validate_every <= 0:
        return None

    def choose(count: int) -> list[int]:
        return scoring.spread(count, config.validation_views)

    try:
        scene = sources.load_scene(folder, ["val"], config.downscale, choose, config.skip_missing)
    except MissingSplitError:
        return None
    return scene.splits["val"]


def _check_has_pictures(folder: Path) -> None:
    if (folder / CONVERTED_FILE).exists():
        raise InputError(
            f"The run {folder} was converted without pictures: name their folder with --data."
        )


def _check_same_scene(run: Run, scene: SceneMetadata) -> None:
    # Weights that were converted without a data set were trained on pictures that we never saw.
    if run.scene.checksum != UNKNOWN_CHECKSUM and scene.checksum != run.scene.checksum:
        raise InputError(
            f"The training pictures in {scene.data} are not those that {run.folder} was trained on "
            f"({run.scene.data}): give their folder with --data, and the same --downscale."
        )


def _deadline(config: TrainConfig) -> float | None:
    """The time of the clock at which training is to be done."""
    if config.budget is None:
        return None
    return time.time() - monitor.seconds_since_start() + config.budget


def _behind(config: TrainConfig) -> str:
    return "black" if config.background == "black" else "white"


def _score(
    run: Run,
    split: Split,
    events: EventWriter | None,
    supersample: int | None = None,
    lpips_too: bool = True,
) -> dict[str, Any]:
    """Scores all pictures of a split; a few are written as TensorBoard images."""
    background = train.background_color(run.config)
    render = runs.make_render_fn(run, supersample)
    indices = range(len(split))
    weights = None
    if lpips_too:
        weights = _load_lpips(run.config, (split.cameras.width, split.cameras.height))
    everything = scoring.score_split(render, split, background, indices, weights)
    shown = [indices[i] for i in scoring.spread(len(indices), 4)]
    scored = []
    for item in tqdm(everything, total=len(indices), desc=f"{split.name} views", unit="view"):
        if events and item.view in shown:
            summaries.write_view(events, split.name, item, int(run.state.step))
            if item.view == shown[0]:
                summaries.write_rays(events, split.name, item, int(run.state.step))
        # Of every other picture only the figures are kept, or large splits would fill the memory.
        scored.append(item._replace(rendering=None, truth=None))  # type: ignore[arg-type]
    summary = scoring.summarise(scored)
    return summary


def _load_lpips(config: TrainConfig, size: tuple[int, int]) -> lpips.Weights | None:
    """The weights to score pictures of a size with; says why there are none."""
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


def _metrics(
    run: Run,
    split: Split,
    score: dict[str, Any],
    seconds: dict[str, float],
    trained: dict[str, Any],
    hardware: str,
) -> dict[str, Any]:
    return {
        split.name: score,
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "steps": int(run.state.step),
        "peak_memory_bytes": memory.peak_bytes(),
        **trained,
        "background": _behind(run.config),
        "resolution": [split.cameras.width, split.cameras.height],
        "dataset": run.scene.name,
        "hardware": hardware,
        "versions": describe_versions(),
    }


def run_data_info(options: DataInfoOptions) -> int:
    """Prints what a data set holds, writes pictures of its cameras; returns the exit code."""
    path = sources.find_data(options.data)
    every = [split for split in ("train", "val", "test") if sources.has_split(path, split)]
    scene = sources.load_scene(path, every, options.downscale, skip_missing=options.skip_missing)
    print(f"{path}: {sources.describe_scene(path, scene)}")
    lines, oddities = report.describe_scene(scene), report.find_warnings(scene)
    print("\n".join(f"  {line}" for line in lines))
    print("Looks wrong:" if oddities else "Nothing looks wrong.")
    for sentence in oddities:
        print(f"  {sentence}")
    runs.make_writable(options.output, "--output")
    (options.output / "cameras.png").write_bytes(report.draw_scene(scene))
    runs.write_text(options.output / "cameras.html", report.write_page(scene, lines, oddities))
    print(f"Drawn: {options.output / 'cameras.png'} and cameras.html (to be turned in a browser)")
    return 0


def run_data_fetch(options: DataFetchOptions) -> int:
    """Downloads a data set; returns the exit code."""
    with tqdm(unit="B", unit_scale=True, desc=options.name) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        place, digest = fetch.fetch(options.name, options.output, options.url, options.sha256, show)
    print(f"{place} is there; SHA-256 of what was downloaded: {digest}.")
    return 0

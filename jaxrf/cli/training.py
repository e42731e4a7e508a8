"""A training from start to end: load the data, open the run, train, score.

Each phase is a function; `train_and_score` calls them in order.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxrf.cameras.base import Cameras
from jaxrf.cli import run_folder, training_data, training_results, viewing
from jaxrf.cli.training_data import TrainingData
from jaxrf.convert.to_run import UNKNOWN_CHECKSUM
from jaxrf.core.environment import describe_hardware
from jaxrf.core.errors import InputError, describe_for_command_line
from jaxrf.core.jax_setup import set_up_jax
from jaxrf.core.kernels import calls
from jaxrf.data import sources
from jaxrf.evaluation import lpips
from jaxrf.export import render_plan
from jaxrf.export.render_options import RenderOptions
from jaxrf.models.packed import PackedModel
from jaxrf.parallel import devices, processes
from jaxrf.training import loop, runs, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.evaluator import Evaluator
from jaxrf.training.logs import EventWriter
from jaxrf.training.monitor import Resumption, RunOutput, TrainMonitor
from jaxrf.training.run_lock import lock_run
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.signals import catch_signals
from jaxrf.training.timing import seconds_since_start
from jaxrf.viewer.server import Viewer, check_host


class Start(NamedTuple):
    """A run that is about to train.

    Attributes:
      config: complete: everything that depends on the data is resolved.
      folder: of the run.
      restored: the run at its last checkpoint, if it is resumed and has one.
      hardware: of `describe_hardware`.
      resumed: whether an earlier process has written to the folder.
    """

    config: TrainConfig
    folder: Path
    restored: Run | None
    hardware: str
    resumed: bool = False

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return int(self.restored.state.step) if self.restored else 0


class Trained(NamedTuple):
    """A run that has trained.

    Attributes:
      run: with the final state.
      watcher: its timings and validations.
      interrupted: number of the signal that stopped it, or 0.
    """

    run: Run
    watcher: TrainMonitor
    interrupted: int


def train_and_score(config: TrainConfig, preset: str) -> int:
    """Trains, scores the test split, renders a video; returns the exit code."""
    if config.resume and config.data is None and config.run_dir is not None:
        run_folder.require_images(config.run_dir)
    source = sources.find_source(config.data, config.synthetic_scene)
    print(source.reason)
    set_up_jax(config.matmul_precision)
    hardware = describe_hardware()
    print(f"Hardware: {hardware}. Preset: {preset} (--preset names another).")
    _check_early(config)
    if isinstance(config.model, PackedModel) and calls.load_in_background():
        print("Kernels for this CPU are compiled, which takes some ten seconds, once.")
    started = time.monotonic()
    folder = training_data.locate(source, config)
    if folder != source.folder and source.folder is not None and config.budget is not None:
        # What is done once for all trainings on these photos is not part of this one.
        seconds = round(time.monotonic() - started)
        print(f"Finding the poses took {seconds} s, which are added to --budget.")
        config = dataclasses.replace(config, budget=config.budget + seconds)
    if config.resume and config.devices not in (None, jax.device_count()):
        config = _choose_devices(config)
    mesh = devices.make_mesh(config.devices)
    if mesh.size > 1:
        print(f"Devices: {mesh.size} share the rays, of {jax.process_count()} processes.")
    data = training_data.load(folder, source, config)
    begin = _resume if config.resume else _begin
    with contextlib.ExitStack() as stack:
        start = begin(config, data, hardware, stack)
        print(f"Run: {start.folder} (watch it with: tensorboard --logdir {start.folder.parent})")
        return _train_to_end(start, data, mesh)


def _check_early(config: TrainConfig) -> None:
    """Checks files and addresses that are used late, before there is a run."""
    if config.lpips:
        lpips.load_weights(config.lpips)
    if config.view:
        check_host(config.viewer.host)


def _choose_devices(config: TrainConfig) -> TrainConfig:
    """Keeps a resumed run's number of devices, or takes all if there are fewer."""
    assert config.devices is not None
    if jax.process_count() == 1 and config.devices <= jax.device_count():
        return config
    print(f"The run had --devices {config.devices}; it continues with {jax.device_count()}.")
    return dataclasses.replace(config, devices=None)


def _lock(folder: Path, stack: contextlib.ExitStack) -> None:
    """Holds the folder of a run until the stack is closed, in the process that writes to it."""
    if processes.is_main_process():
        stack.enter_context(lock_run(folder))


def _resume(
    config: TrainConfig, data: TrainingData, hardware: str, stack: contextlib.ExitStack
) -> Start:
    """Opens the run to resume at its last checkpoint, and holds its folder.

    Raises:
      InputError: it was trained on other images, or another process trains it.
    """
    run_dir = _name_run(config, data)
    _lock(run_dir, stack)
    if not processes.broadcast_from_main(runs.has_checkpoints(run_dir)):
        print(f"{run_dir} was stopped before its first checkpoint: it begins again.")
        return Start(config, run_dir, None, hardware, resumed=True)
    restored = runs.open_run(run_dir, config=config)
    _check_same_scene(restored, data.metadata)
    processes.main_process_first(lambda: runs.set_newer_aside(run_dir, int(restored.state.step)))
    print(f"Resuming {run_dir} at step {int(restored.state.step)} of {config.num_steps}.")
    return Start(config, run_dir, restored, hardware, resumed=True)


def _begin(
    config: TrainConfig, data: TrainingData, hardware: str, stack: contextlib.ExitStack
) -> Start:
    """Resolves the configuration, and creates the run's folder and holds it."""
    run_dir = _name_run(config, data)
    chosen = config.background
    config = transitions.resolve_config(config, data.scene)
    if config.background != chosen:
        print(f"Background: {config.background}, the color around the object in the pictures.")
    if (warning := training_data.background_warning(config, data.scene)) is not None:
        print(warning)
    folder = None if data.is_builtin else data.folder.absolute()
    config = dataclasses.replace(config, run_dir=run_dir, data=folder)
    processes.main_process_first(lambda: _create_run(run_dir, config))
    _lock(run_dir, stack)
    # A field of the user's is now read from the copy in the run's folder.
    config = dataclasses.replace(runs.read_config(run_dir), run_dir=run_dir)
    return Start(config, run_dir, None, hardware)


def _name_run(config: TrainConfig, data: TrainingData) -> Path:
    """Returns the folder of the run, the same in every process."""
    return Path(
        processes.broadcast_from_main(str(config.run_dir or runs.name_run(config, data.scene.name)))
    )


def _create_run(folder: Path, config: TrainConfig) -> None:
    runs.create_folder(folder)
    runs.write_config(folder, runs.vendor_user_code(folder, config))


def _check_same_scene(run: Run, scene: SceneMetadata) -> None:
    # Weights that were converted without a data set were trained on images that we never saw.
    if run.scene.checksum != UNKNOWN_CHECKSUM and (scene.checksum != run.scene.checksum):
        raise InputError(
            f"The training pictures in {scene.data} are not those that {run.folder} was trained on "
            f"({run.scene.data}): give their folder with --data, and the same --downscale."
        )


def _train_to_end(start: Start, data: TrainingData, mesh: Mesh) -> int:
    """Trains, scores and shows a run, and closes everything, whatever happens; the exit code."""
    config, folder = start.config, start.folder
    viewer = viewing.open_viewer(config, data.scene, data.metadata, folder)
    page = viewing.open_page(config, folder)
    events = EventWriter(folder, processes.is_main_process(), start.step if start.resumed else None)
    events.note(
        f"{'resumed' if start.resumed else 'begun'} at step {start.step} of {config.num_steps}: "
        f"{config.field.name} on {data.scene.name}; {start.hardware}"
    )
    manager = runs.LazyCheckpointManager(folder, config)
    startup = seconds_since_start()
    try:
        trained = _fit(start, data, mesh, events, manager, viewer)
        run = trained.run
        if trained.interrupted:
            training_results.tell(
                events,
                f"Stopped at step {int(run.state.step)} of {run.config.num_steps}; continue with: "
                f"--resume --run-dir {folder}",
            )
            return 128 + trained.interrupted
        if (cameras := training_results.write_cameras(run, data.scene)) is not None:
            training_results.tell(events, f"Refined cameras: {cameras}")
        with processes.abort_on_peer_failure():
            training_results.finish(
                run, trained.watcher, data.folder, events, startup, mesh.size, start.hardware
            )
        if viewer is not None:
            viewing.show_until_interrupt(viewer, run)
    except KeyboardInterrupt:
        print(f"Interrupted. What was saved is in {folder}.", file=sys.stderr)
        events.note("interrupted")
        return 130
    except Exception as error:
        # If the disk is full, the note fails too; the error itself says so.
        with contextlib.suppress(OSError):
            events.note(f"error: {describe_for_command_line(error) or type(error).__name__}")
        raise
    finally:
        manager.close()
        events.close()
        for server in (viewer, page):
            if server is not None:
                server.close()
    return 0


def _fit(
    start: Start,
    data: TrainingData,
    mesh: Mesh,
    events: EventWriter,
    manager: runs.LazyCheckpointManager,
    viewer: Viewer | None,
) -> Trained:
    """Trains until the last step or a signal, and saves the final state."""
    config, restored = start.config, start.restored
    # Closing waits for every process, so a peer that is gone must abort this one first.
    with processes.abort_on_peer_failure(), catch_signals() as caught:
        video_cameras_fn = _preview_cameras if config.video.frames else None
        evaluator = Evaluator(events, data.val, video_cameras_fn, mesh)
        evaluator.compile_ahead(config, data.scene)
        watcher = TrainMonitor(
            config,
            RunOutput(start.folder, data.metadata, events, manager),
            evaluator,
            caught,
            Resumption(start.step, restored.seconds if restored else 0.0),
            None if restored else _deadline(config),
            viewer,
        )
        initial = (restored.stage, restored.state) if restored else None
        stage, state = loop.fit(config, data.scene, watcher, initial, mesh=mesh)
        watcher.save(stage, state)
        watcher.close()
        interrupted = processes.allreduce_max(caught[0] if caught else 0)
    run = Run(start.folder, watcher.config, data.metadata, stage, state, watcher.seconds)
    return Trained(run, watcher, interrupted)


def _deadline(config: TrainConfig) -> float | None:
    """Returns the time of the clock at which training has to end, or None without --budget."""
    if config.budget is None:
        return None
    return time.time() - seconds_since_start() + config.budget


def _preview_cameras(run: Run) -> Cameras:
    """Returns cameras of a video while training: a quarter of the frames at half the size."""
    video = run.config.video
    frames, size = max(video.frames // 4, 1), max(video.size // 2, 1)
    return render_plan.path_cameras(run, RenderOptions(frames=frames, size=size))

"""Runs in the viewer: those in training and those that are trained."""

import time
from pathlib import Path

from jaxrf.cli.run_folder import VIEWS
from jaxrf.core.errors import InputError
from jaxrf.core.progress import progress
from jaxrf.data import sources
from jaxrf.data.scene import Scene, Split
from jaxrf.evaluation import interactive
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.export import bake
from jaxrf.parallel import processes
from jaxrf.training import scene_metadata
from jaxrf.training.config import TrainConfig
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.signals import catch_signals
from jaxrf.training.state import background_color
from jaxrf.viewer.page_server import PageServer
from jaxrf.viewer.server import Viewer, check_host

POLL_SECONDS = 0.2


def open_viewer(
    config: TrainConfig, scene: Scene, metadata: SceneMetadata, run_dir: Path
) -> Viewer | None:
    """Opens the page that shows a training.

    Returns None without --view, and in every process but the first.
    """
    if not config.view or not processes.is_main_process():
        return None
    viewer = Viewer(
        run_dir.name,
        metadata,
        run_dir / VIEWS,
        config.viewer.host,
        config.viewer.port,
        background_color(config),
        scene.splits["train"],
        training=True,
    )
    print(f"Open {viewer.address} in a browser to watch it.")
    return viewer


def show_until_interrupt(viewer: Viewer, run: Run) -> None:
    """Shows a trained run until Ctrl-C."""
    viewer.show(make_interactive_renderer(run), f"{int(run.state.step)} steps, done")
    print(f"Open {viewer.address} in a browser; Ctrl-C ends it.", flush=True)
    _wait_for_interrupt()


def show_page_until_interrupt(run: Run, host: str, port: int) -> None:
    """Shows a trained run as a page that the browser draws by itself, until Ctrl-C."""
    check_host(host)
    baked = bake.bake_page(run, bake.BakeOptions(), progress, reports=True)
    server = PageServer(baked.page.text, host, port)
    try:
        print(f"Open {server.address} in a browser; Ctrl-C ends it.", flush=True)
        _wait_for_interrupt()
    finally:
        server.close()


def _wait_for_interrupt() -> None:
    with catch_signals() as caught:
        while not caught:
            time.sleep(POLL_SECONDS)


def make_interactive_renderer(run: Run) -> interactive.InteractiveRenderer:
    """Returns a renderer of a run's field for the viewer."""
    state = run.state
    return interactive.make_interactive_renderer(
        TrainedField(
            run.config,
            run.stage,
            state.eval_params,
            state.grid,
            scene_metadata.near_far_fn(run.scene, state.grid),
            background_color(run.config),
        ),
    )


def load_training_images(run: Run) -> Split | None:
    """Loads the training images of a run, or returns None if they are gone or damaged."""
    config, folder = run.config, Path(run.scene.data)
    if not run.scene.data or not folder.exists():
        return None
    try:
        scene = sources.load_scene(folder, ["train"], config)
    except InputError as error:
        print(f"The training pictures are not shown: {error.for_command_line}")
        return None
    return scene.splits["train"]

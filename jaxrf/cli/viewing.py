"""Runs in the viewer: those in training and those that are trained."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from jaxrf.cli.run_folder import VIEWS
from jaxrf.core.errors import InputError
from jaxrf.core.progress import progress
from jaxrf.data import sources
from jaxrf.data.scene import Scene, Split
from jaxrf.evaluation import interactive
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.export import bake, web
from jaxrf.parallel import processes
from jaxrf.training import runs, scene_metadata
from jaxrf.training.config import TrainConfig
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.signals import catch_signals
from jaxrf.training.state import background_color
from jaxrf.viewer.page_server import WAITING, PageServer
from jaxrf.viewer.server import Viewer, check_host

POLL_SECONDS = 0.2
MAX_PORT = 65535
# Between two looks for a new checkpoint.
CHECKPOINT_POLL_SECONDS = 2.0


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


def show_page_until_interrupt(run: Run, host: str, port: int, follows: bool) -> None:
    """Shows a run as a page that the browser draws by itself, until Ctrl-C.

    Args:
      run: of any field.
      host, port: where to listen.
      follows: whether the page is made again from later checkpoints, if it draws the run itself.
    """
    check_host(host)
    baked = bake.bake_page(run, bake.BakeOptions(), progress, reports=True)
    server = PageServer(baked.page.text, host, port)
    follower = None
    try:
        print(f"Open {server.address} in a browser; Ctrl-C ends it.", flush=True)
        if follows and baked.psnr is None:
            follower = PageFollower(server, run.folder, int(run.state.step))
        _wait_for_interrupt()
    finally:
        if follower is not None:
            follower.close()
        server.close()


def open_page(config: TrainConfig, run_dir: Path) -> "PageFollower | None":
    """Serves a page of a training that is made again from each checkpoint.

    Returns None without --view and --viewer.bake, and in every process but the first.
    """
    if not (config.view and config.viewer.bake and processes.is_main_process()):
        return None
    port = min(config.viewer.port + 1, MAX_PORT)
    server = PageServer(WAITING, config.viewer.host, port)
    print(f"Open {server.address} in a browser: it draws the last checkpoint by itself.")
    return PageFollower(server, run_dir)


class PageFollower:
    """Makes a server's page again from each new checkpoint of a run, in a thread."""

    def __init__(
        self,
        server: PageServer,
        folder: Path,
        step: int = 0,
        notify: Callable[[str], None] = print,
    ) -> None:
        """Begins to look for checkpoints.

        Args:
          server: of the page.
          folder: of the run.
          step: of the checkpoint that the page shows already.
          notify: called with a sentence if no page can be made.
        """
        self._server, self._folder, self._step, self._notify = server, folder, step, notify
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops, and closes the server."""
        self._closed.set()
        self._thread.join()
        self._server.close()

    def _follow(self) -> None:
        poster = None
        while not self._closed.wait(CHECKPOINT_POLL_SECONDS):
            try:
                if runs.last_step(self._folder) <= self._step:
                    continue
                run = runs.open_run(self._folder)
                self._step = int(run.state.step)
                if not web.shows_itself(run):
                    self._notify(
                        "The page stays empty, as it draws voxels with a color per ray and ternary "
                        "networks only: bake others once they are trained (jaxrf export --format "
                        "web)."
                    )
                    return
                # Rendered once, as compiling takes from the training.
                poster = poster or web.make_poster(run)
                self._server.replace(web.make_page(run, poster=poster).text)
            except InputError:
                # Nothing is in the scene yet, or a checkpoint was removed while it was read.
                continue


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

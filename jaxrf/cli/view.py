"""`jaxrf view`: shows a run in browsers."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxrf.core.checks import require_port


@dataclasses.dataclass(frozen=True)
class ViewOptions:
    """Show a trained run in a browser: orbit it, crop it, make camera paths and videos."""

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of the run, or a file that `jaxrf export` wrote. Default: the newest in ./runs."""
    step: int | None = None
    """Step of the checkpoint. Default: the last."""
    host: str = "127.0.0.1"
    """Address to listen at: 127.0.0.1 for this machine only, 0.0.0.0 for everyone who can reach
    it."""
    port: int = 8080
    """Port to listen at, or the next free one."""
    bake: bool = False
    """Serve the page that `jaxrf export --format web` writes: the browser's graphics card draws it,
    many times faster; without crops, paths and videos. Voxels and ternary networks are shown anew
    whenever a training saves a checkpoint."""

    def __post_init__(self) -> None:
        require_port(self, "port")


def run(options: ViewOptions) -> int:
    """Shows a run in browsers until Ctrl-C; returns the exit code."""
    from jaxrf.cli import run_folder, viewing
    from jaxrf.core.jax_setup import set_up_jax
    from jaxrf.training.state import background_color
    from jaxrf.viewer.server import Viewer

    source = run_folder.find_run(options.run)
    run = run_folder.open_run_or_file(source, options.step)
    set_up_jax(run.config.matmul_precision)
    if options.bake:
        follows = source.is_dir() and options.step is None
        viewing.show_page_until_interrupt(run, options.host, options.port, follows)
        return 0
    folder = run_folder.folder_beside(source, run_folder.VIEWS)
    background = background_color(run.config)
    images = viewing.load_training_images(run)
    viewer = Viewer(source.name, run.scene, folder, options.host, options.port, background, images)
    try:
        viewing.show_until_interrupt(viewer, run)
    finally:
        viewer.close()
    return 0

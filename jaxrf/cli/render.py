"""`jaxrf render`: renders a run as videos and frames. Its options are `RenderOptions`."""

from pathlib import Path

from jaxrf.core.errors import InputError
from jaxrf.export.render_options import RenderOptions

# Frames per second of the views of a split.
SPLIT_FPS = 2.0


def run(options: RenderOptions) -> int:
    """Renders frames of a run and makes videos of them; returns the exit code."""
    from jaxrf.cli import run_folder
    from jaxrf.core.jax_setup import set_up_jax
    from jaxrf.export import render_folder

    source = run_folder.find_run(options.run)
    run = run_folder.open_run_or_file(source, options.step)
    set_up_jax(run.config.matmul_precision)
    content = render_folder.describe_frames(run, options)
    name = "orbit" if options.path == "auto" else Path(options.path).stem
    output = options.output or render_folder.find_folder(
        run_folder.folder_beside(source, name), content
    )
    exists = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if exists and not render_folder.is_resumable(output, content):
        raise InputError(
            f"The output folder {output} exists already: name another one with --output."
        )
    fps = choose_fps(options)
    print(f"Rendering {source} at step {int(run.state.step)} into {output}.")
    render_folder.render_into_folder(run, options, output, fps)
    return 0


def choose_fps(options: RenderOptions) -> float:
    """Returns the frames per second that the options or the path's file say, or the default."""
    from jaxrf.cameras import paths
    from jaxrf.export import render_folder, render_plan

    if options.fps is not None:
        return options.fps
    if options.path.endswith(".json"):
        return paths.read_path(Path(options.path)).fps
    return SPLIT_FPS if options.path in render_plan.SPLITS else render_folder.FPS

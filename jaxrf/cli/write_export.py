"""Exports of a run by format; each writes a file and prints what is in it."""

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from jaxrf.cameras import transforms
from jaxrf.cli.export import ExportOptions
from jaxrf.convert import write
from jaxrf.export import geometry, models, ternary, web
from jaxrf.training import runs
from jaxrf.training.runs import Run


def write_geometry(run: Run, options: ExportOptions, output: Path) -> None:
    """Writes a run's surface as a mesh or as points."""
    # Extraction takes minutes: check first that the output can be written.
    models.check_suffix(output)
    runs.make_writable(output.absolute().parent, "--output")
    frame = transforms.identity_frame()
    if options.frame == "data":
        frame = transforms.invert_frame(transforms.unpack_frame(run.scene.frame))
    if options.format == "mesh":
        mesh = geometry.make_mesh(
            run,
            options.resolution,
            options.level,
            1.0 if options.largest else options.fragments,
            options.views,
            options.keep_hidden,
            track=show_progress,
        )
        models.write_mesh(output, geometry.transform_mesh(frame, mesh))
        size = f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces"
    else:
        points = geometry.make_points(run, options.points, options.views, track=show_progress)
        models.write_points(output, geometry.transform_points(frame, points))
        size = f"{len(points.positions):,} points"
    print(
        f"Written to {output}: {output.stat().st_size / 1e6:.1f} MB; {size}, in the coordinates of "
        f"{'the data set' if options.frame == 'data' else 'training'}."
    )


def write_page(run: Run, output: Path) -> None:
    """Writes a BitNeRF as one page for browsers."""
    weights = web.write_page(run, output)
    print(
        f"Written to {output}: {output.stat().st_size / 1e3:.1f} kB, of which the weights are "
        f"{weights / 1e3:.1f} kB. Open it in a browser."
    )


def write_ternary(run: Run, output: Path, form: ternary.Format) -> None:
    """Writes the packed weights of a BitNeRF."""
    ternary.write_ternary(run, output, form)
    packed, plain = output.stat().st_size, 4 * ternary.count_weights(run.state.eval_params)
    print(
        f"Written to {output}: {packed / 1e3:.1f} kB; the weights alone take {plain / 1e3:.1f} kB "
        f"as float32, {plain / packed:.1f} times as much. Render it with: jaxrf render {output}"
    )


def write_weights(run: Run, output: Path, program: write.Program) -> None:
    """Writes a checkpoint of another program."""
    notes = write.write_file(run, output, program)
    print(f"Written to {output}: {output.stat().st_size / 1e3:.1f} kB.")
    for note in notes:
        print(note)


def show_progress(items: Iterable[int], title: str) -> Iterable[int]:
    """Shows a progress bar while items are taken."""
    bar: Iterable[int] = tqdm(items, desc=title)
    return bar

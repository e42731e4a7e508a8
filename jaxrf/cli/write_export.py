"""Exports of a run by format; each writes a file and prints what is in it."""

from pathlib import Path

from jaxrf.cameras import transforms
from jaxrf.cli.export import ExportOptions
from jaxrf.convert import write
from jaxrf.core.progress import progress
from jaxrf.export import bake, geometry_files, ternary, web
from jaxrf.export.mesh import extract_mesh, transform_mesh
from jaxrf.export.points import extract_points, transform_points
from jaxrf.training import runs
from jaxrf.training.runs import Run

# Training cameras that are rendered to find visible surfaces.
DEFAULT_VIEWS = 50


def write_geometry(run: Run, options: ExportOptions, output: Path) -> None:
    """Writes a run's surface as a mesh or as points."""
    # Extraction takes minutes: check first that the output can be written.
    geometry_files.check_suffix(output)
    runs.make_writable(output.absolute().parent, "--output")
    views = options.views or DEFAULT_VIEWS
    frame = transforms.identity_transform()
    if options.frame == "data":
        frame = transforms.invert_transform(transforms.unpack_transform(run.scene.frame))
    if options.format == "mesh":
        mesh = extract_mesh(
            run,
            options.resolution,
            options.level,
            1.0 if options.largest else options.fragments,
            views,
            options.keep_hidden,
            progress=progress,
        )
        geometry_files.write_mesh(output, transform_mesh(frame, mesh))
        size = f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces"
    else:
        points = extract_points(run, options.points, views, progress=progress)
        geometry_files.write_points(output, transform_points(frame, points))
        size = f"{len(points.positions):,} points"
    print(
        f"Written to {output}: {output.stat().st_size / 1e6:.1f} MB; {size}, in the coordinates of "
        f"{'the data set' if options.frame == 'data' else 'training'}."
    )


def write_page(run: Run, options: ExportOptions, output: Path) -> None:
    """Writes a run as a page for browsers."""
    # Voxels take minutes to learn: check first that the page can be written.
    in_one_file = web.is_file(output)
    runs.make_writable((output.parent if in_one_file else output).absolute(), "--output")
    bake_options = bake.BakeOptions(
        num_views=options.views,
        num_steps=options.bake_steps,
        bakes_ternary=options.bake,
        max_bytes=int(1e6 * options.max_size),
        in_one_file=in_one_file,
    )
    baked = bake.bake_page(run, bake_options, progress, reports=True)
    web.write_page(baked.page, output)
    page_path = output if in_one_file else output / "index.html"
    print(f"Written to {output}: {baked.page.size / 1e6:.1f} MB. Open {page_path} in a browser.")
    if baked.psnr is not None:
        print(f"It shows voxels, whose views have {baked.psnr:.1f} dB PSNR against the run's.")
    if not in_one_file:
        print("Put the folder on a web server: browsers do not read data beside a local page.")


def write_ternary(run: Run, output: Path, format_name: ternary.TernaryFormat) -> None:
    """Writes the packed weights of a BitNeRF."""
    ternary.write_ternary(run, output, format_name)
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

"""`jaxrf export`: writes a run as one file."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError

ExportFormat = Literal[
    "ternary-2bit",
    "ternary-1.6bit",
    "web",
    "nerf-pytorch",
    "tensorf",
    "nerfstudio",
    "mesh",
    "points",
]
# Endings of files by format, as the programs that read them name theirs; .npz otherwise.
SUFFIXES = {
    "nerf-pytorch": ".tar",
    "tensorf": ".th",
    "nerfstudio": ".ckpt",
    "web": ".html",
    "mesh": ".glb",
    "points": ".ply",
}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a trained run as one file: its geometry, or its weights for another program."""

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of the run. Default: the newest in ./runs."""
    format: ExportFormat = "ternary-2bit"
    """web: the scene as one page for any browser, without a server. ternary-2bit, ternary-1.6bit:
    the weights of a bitnerf, in 2 bits each or five to a byte, which `jaxrf render` takes in place
    of a folder.
    nerf-pytorch, tensorf, nerfstudio: a checkpoint of that program, of a nerf, a tensorf or a
    hashgrid. mesh: the surface with colors. points: a colored point cloud."""
    output: Path | None = None
    """File to write; for mesh and points its ending chooses the format: .glb, .ply or .obj. For
    web a name that does not end in .html is a folder to upload, of a page and its data. Default:
    named after the format, in the run's folder; mesh.glb and points.ply."""
    frame: Literal["data", "scene"] = "data"
    """mesh, points: coordinates of the data set's files, or of training."""
    resolution: int = 256
    """mesh: voxels along the longest side of the occupied space."""
    level: float = 0.3
    """mesh: opacity, over the width of a pixel, at which the surface lies; a lower one gives a
    fuller mesh."""
    fragments: float = 0.001
    """mesh: drop disconnected parts with less than this fraction of all faces."""
    largest: bool = False
    """mesh: keep the largest connected part only."""
    keep_hidden: bool = False
    """mesh: also keep faces that no training camera sees, such as the insides of walls."""
    points: int = 200_000
    """points: maximum number."""
    views: int | None = None
    """mesh, points: number of training cameras that are rendered to find visible surfaces, 50 by
    default. web: number of renderings, 120 by default, from which voxels learn a field that is not
    one of voxels colored once per ray."""
    bake_steps: int | None = None
    """web: steps that these voxels are trained; by default 2500, and 4000 in unbounded space."""
    bake: bool = False
    """web: let voxels learn a bitnerf, too, whose own page is smaller and slower."""
    max_size: float = 30.0
    """web: megabytes of the page at most; coarser voxels are taught if it would be larger."""
    step: int | None = None
    """Step of the checkpoint. Default: the last."""

    def __post_init__(self) -> None:
        require_positive(self, "resolution", "points", "views", "bake_steps", "max_size")
        if not 0.0 < self.level < 1.0:
            raise InputError(f"--level is {self.level:g}: give a number between 0 and 1.")
        if not 0.0 <= self.fragments < 1.0:
            raise InputError(f"--fragments is {self.fragments:g}: give a number between 0 and 1.")


def run(options: ExportOptions) -> int:
    """Writes a run as one file; returns the exit code."""
    from jaxrf.cli import run_folder, write_export
    from jaxrf.core.jax_setup import set_up_jax
    from jaxrf.training import runs

    folder = run_folder.find_run(options.run)
    output = options.output or folder / f"{options.format}{SUFFIXES.get(options.format, '.npz')}"
    # An export under its default name may be replaced.
    if output.is_dir() or (options.output and output.exists()):
        raise InputError(f"The output {output} exists already: name another file with --output.")
    run = runs.open_run(folder, options.step)
    set_up_jax(run.config.matmul_precision)
    match options.format:
        case "mesh" | "points":
            write_export.write_geometry(run, options, output)
        case "web":
            write_export.write_page(run, options, output)
        case "ternary-2bit" | "ternary-1.6bit":
            write_export.write_ternary(run, output, options.format)
        case _:
            write_export.write_weights(run, output, options.format)
    return 0

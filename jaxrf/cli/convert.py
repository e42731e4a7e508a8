"""`jaxrf convert`: turns weights of another program into a run, or compares with that program."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Turn weights of another program into a run, or prove that the port is equivalent."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File of that program; its format is detected from its content."""
    run_dir: Path | None = None
    """Folder to write the run to. Default: runs/<file>-<field>-<time>; none with --check."""
    data: Path | None = None
    """Folder of the data set that the weights were trained on, to evaluate and fine-tune on it."""
    downscale: int = 1
    """Shrink its images by this whole factor."""
    steps: int = 5000
    """Steps of fine-tuning with train_lego.py --resume, at a fifth of the original rate."""
    check: bool = False
    """Compare with the program itself, rebuilt in PyTorch; the exit code is 1 if they differ."""
    size: int = 32
    """Width of the image that is compared."""
    legacy_order: bool = False
    """jaxnerf: the weights were trained with its option legacy_posenc_order."""
    inclusive: bool = False
    """NeRF-experiments: render with that program's transmittance, which includes a sample's own
    absorption."""
    bounded: bool = False
    """nerfstudio: space was not contracted; it is by default there."""
    density_factor: float = 1.0
    """nerfstudio: its average_init_density, a factor of the density; recent nerfacto has 0.01."""

    def __post_init__(self) -> None:
        require_positive(self, "downscale", "steps", "size", "density_factor")


def run(options: ConvertOptions) -> int:
    """Turns weights of another program into a run, or compares them with that program.

    Returns the exit code: 1 if the comparison found a difference.
    """
    from jaxrf.cli import write_conversion
    from jaxrf.convert import formats, to_run
    from jaxrf.convert.files.read import read_file
    from jaxrf.core.jax_setup import set_up_jax
    from jaxrf.data import sources
    from jaxrf.data.options import LoadOptions

    set_up_jax("highest")
    content = read_file(options.file)
    format_options = formats.FormatOptions(
        options.legacy_order, options.inclusive, options.bounded, options.density_factor
    )
    converted = write_conversion.convert(content, format_options, options.file)
    scene, folder, box = None, None, to_run.file_box(converted)
    if options.data is not None:
        folder = sources.find_data(options.data)
        splits = ["train", "test"] if options.check else ["train"]
        load = LoadOptions(downscale=options.downscale, box=box)
        scene = sources.load_scene(folder, splits, load)
        if scene.splits["train"].cameras.ndc is not None:
            raise InputError(
                f"{folder} uses normalized device coordinates, where other programs define view "
                "directions differently: convert without --data."
            )
    placed = converted if scene is None else to_run.move_to_scene(converted, scene)
    if options.check:
        cameras = write_conversion.comparison_cameras(converted, scene, options.size)
        checked = converted if converted.in_file_coordinates else placed
        same = write_conversion.compare(checked, content, format_options, cameras)
        if options.run_dir is None or not same:
            return 0 if same else 1
    write_conversion.write_run(placed, options, scene, folder, box)
    return 0

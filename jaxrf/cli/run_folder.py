"""Runs as commands find and open them: folders, and files that `jaxrf export` wrote."""

from pathlib import Path

from jaxrf.core.errors import InputError
from jaxrf.export import ternary
from jaxrf.training import runs
from jaxrf.training.runs import Run

# Folder, in a run's folder, to which the viewer writes paths and videos.
VIEWS = "views"
# File in a converted run's folder: the weights that it was converted from.
CONVERTED_FILE = "converted.json"


def find_run(path: Path | None) -> Path:
    """Returns `path`, or the newest run in ./runs; InputError if there is none."""
    return path or runs.find_newest(Path("runs"))


def open_run_or_file(path: Path, step: int | None) -> Run:
    """Opens a run's folder, or a file that `jaxrf export` wrote.

    Args:
      step: of the checkpoint; the last by default.
    """
    if not path.is_file():
        return runs.open_run(path, step)
    if step is not None:
        raise InputError(f"--step {step} chooses a checkpoint, but {path} is a file: leave it out.")
    return ternary.read_ternary(path)


def folder_beside(source: Path, name: str) -> Path:
    """Returns a folder in the run's folder, or beside the exported file."""
    return source.with_name(f"{source.stem}-{name}") if source.is_file() else source / name


def require_images(folder: Path) -> None:
    """Raises an InputError if a run was converted without a data set."""
    if (folder / CONVERTED_FILE).exists():
        raise InputError(
            f"The run {folder} was converted without pictures: name their folder with --data."
        )

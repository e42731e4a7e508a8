"""`jaxrf data info`, `photos` and `fetch`: describe a data set, make one, download one."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import tyro

from jaxrf.data.options import LoadOptions
from jaxrf.data.photos.prepare import PhotoOptions


@dataclasses.dataclass(frozen=True)
class DataInfoOptions(LoadOptions):
    """Describe a data set, warn of what looks wrong in it, and draw its cameras."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """The data set: a folder, or a tiny_nerf_data.npz."""
    photos: PhotoOptions = PhotoOptions()
    """How poses are found for photos or a video."""
    output: Path = Path("data-info")
    """Folder to write cameras.png and cameras.html to."""


@dataclasses.dataclass(frozen=True)
class DataPhotosOptions(PhotoOptions):
    """Find the poses of photos or of a video's frames; an interrupted reconstruction continues."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A folder of photos, or a video."""
    output: Path
    """Folder for the data set in COLMAP's format: images and sparse/0."""


@dataclasses.dataclass(frozen=True)
class DataFetchOptions:
    """Download a public data set; an interrupted download continues."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """lego, fern or tiny_nerf."""
    output: Path = Path("data")
    """Folder of data sets."""
    url: str | None = None
    """Another address of the same file."""
    sha256: str | None = None
    """Expected SHA-256 of the file. Default: that of the previous download."""


def run_info(options: DataInfoOptions) -> int:
    """Prints a description of a data set and draws its cameras; returns the exit code."""
    from jaxrf.data import page, plots, report, sources
    from jaxrf.training import runs

    path = sources.ensure_poses(sources.find_data(options.data), options.photos)
    names = ("train", "val", "test")
    splits = [split for split in names if sources.has_split(path, split, options)]
    scene = sources.load_scene(path, splits, options)
    print(f"{path}: {sources.describe_scene(path, scene)}")
    for note in scene.notes:
        print(note)
    lines, warnings = report.dataset_report(scene), report.find_warnings(scene)
    print("\n".join(f"  {line}" for line in lines))
    print("Looks wrong:" if warnings else "Nothing looks wrong.")
    for sentence in warnings:
        print(f"  {sentence}")
    runs.make_writable(options.output, "--output")
    (options.output / "cameras.png").write_bytes(plots.draw_scene(scene))
    runs.write_text(options.output / "cameras.html", page.write_page(scene, lines, warnings))
    print(f"Drawn: {options.output / 'cameras.png'} and cameras.html (turn it in a browser)")
    return 0


def run_photos(options: DataPhotosOptions) -> int:
    """Finds the poses of photos and writes them as a data set; returns the exit code."""
    from jaxrf.core.errors import InputError
    from jaxrf.data import sources
    from jaxrf.data.photos import prepare, video
    from jaxrf.training import runs

    path = sources.find_data(options.photos)
    if not prepare.is_photos(path):
        is_photo = path.is_file() and path.suffix.lower() not in video.VIDEO_SUFFIXES
        what = "is no video: give a video" if is_photo else "holds no photos: give a video"
        raise InputError(f"{path} {what} or the folder of the photos.")
    runs.make_writable(options.output, "--output")
    report = prepare.prepare_photos(path, options.output, options)
    print("\n".join(prepare.describe(report)))
    command = shlex.join(["jaxrf", "train", "--data", str(options.output)])
    print(f"Written: {options.output} (train on it: {command})")
    return 0


def run_fetch(options: DataFetchOptions) -> int:
    """Downloads a data set; returns the exit code."""
    from jaxrf.core.progress import ProgressBar
    from jaxrf.data import fetch

    with ProgressBar(None, options.name, "B", unit_scale=True) as bar:
        path, digest = fetch.fetch(
            options.name, options.output, options.url, options.sha256, bar.update_to
        )
    print(f"Downloaded to {path}; SHA-256 of the file: {digest}.")
    return 0

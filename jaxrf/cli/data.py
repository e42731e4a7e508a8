"""`jaxrf data info` and `jaxrf data fetch`: describe a data set, download a public one."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxrf.core.checks import require_positive


@dataclasses.dataclass(frozen=True)
class DataInfoOptions:
    """Describe a data set, warn of what looks wrong in it, and draw its cameras."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """The data set: a folder, or a tiny_nerf_data.npz."""
    downscale: int = 1
    """Shrink the images by this whole factor, averaging areas."""
    skip_missing: bool = False
    """Leave out images that the data set names but that do not exist."""
    output: Path = Path("data-info")
    """Folder to write cameras.png and cameras.html to."""

    def __post_init__(self) -> None:
        require_positive(self, "downscale")


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

    path = sources.find_data(options.data)
    splits = [split for split in ("train", "val", "test") if sources.has_split(path, split)]
    scene = sources.load_scene(path, splits, options.downscale, skip_missing=options.skip_missing)
    print(f"{path}: {sources.describe_scene(path, scene)}")
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

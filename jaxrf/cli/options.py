"""Options of the commands that work on a run. Imports no jax, so that --help is quick."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxrf.training.config import Channel

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
Format = Literal["mp4", "gif", "webp", "png", "npy", "exr"]
# What is rendered by default, without and with pictures to compare with.
CHANNELS: dict[bool, tuple[Channel, ...]] = {
    False: ("rgb", "depth", "opacity"),
    True: ("comparison", "rgb", "depth"),
}


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Score a trained run on a split and write its metrics.json."""

    run: Path | None = None
    """Folder of the run. Default: the newest in ./runs."""
    data: Path | None = None
    """Folder of the data set. Default: the one that the run was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Which pictures."""
    every: int | None = None
    """Score every K-th picture; 1 scores all. Default: as at the end of training (--test-every)."""
    downscale: int | None = None
    """Shrink the pictures by this factor. Default: as in training."""
    background: Literal["white", "black"] | None = None
    """Behind transparent pixels. Default: as in training."""
    supersample: int | None = None
    """Rays per pixel along each axis, averaged. Default: as in training."""
    lpips: Path | None = None
    """Weights of LPIPS as .npz, to score by it too. Default: as in training."""
    step: int | None = None
    """Which checkpoint. Default: the last."""


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Render a trained scene along a path, or beside the pictures of a split, as video and frames.

    What was interrupted goes on where it stopped when it is started again.
    """

    run: Path | None = None
    """Folder of the run, or a file that `jaxrf export` wrote. Default: the newest in ./runs."""
    output: Path | None = None
    """Folder to write to. Default: orbit (orbit-2, ...) in the run's folder, or beside the file;
    named after the path if one is chosen."""
    channels: tuple[Channel, ...] = ()
    """What to render: rgb, depth (colour-mapped, near is warm), opacity, and with the pictures of a
    split also truth, error, and comparison: truth, rgb, error and depth side by side. Default: rgb
    depth opacity, with a split comparison rgb depth."""
    formats: tuple[Format, ...] = ("mp4", "gif", "png")
    """mp4, gif and webp are videos, png is a picture of each frame; npy and exr are its numbers as
    float32: colours, and depth as the median distance along each ray, in scene units."""
    frames: int = 60
    """Number of frames of the full circle, or of another path."""
    fps: float | None = None
    """Frames per second. Default: those of the file that --path names, 2 for a split, else 24."""
    size: int = 400
    """Width of a frame in pixels; the height follows the training pictures. A split's frames are as
    large as its pictures."""
    path: str = "auto"
    """Where the camera goes: orbit, ellipse (as wide as the training cameras stand), spiral (twice
    around, rising and sinking; to and fro where all cameras face forward), train (through the
    training cameras); a .json file of `jaxrf view` or of nerfstudio's viewer, in the
    coordinates of the data set's files; or the views of a split, test, val or train-views. Default:
    a spiral where all cameras face forward, else an orbit."""
    elevation: float = 30.0
    """orbit, spiral: degrees above the horizon."""
    radius: float | None = None
    """orbit, spiral: distance from the scene's centre, in scene units. Default: that of the
    training cameras."""
    data: Path | None = None
    """test, val, train-views: folder of the data set. Default: that of the training."""
    every: int = 1
    """test, val, train-views: render every K-th view."""
    colors: str = "turbo"
    """Colour map of depth, by matplotlib's name."""
    supersample: int | None = None
    """Rays per pixel along each axis, averaged; 1 is quickest. Default: as in training."""
    step: int | None = None
    """Which checkpoint. Default: the last."""


@dataclasses.dataclass(frozen=True)
class ViewOptions:
    """Show a trained run in a browser: orbit it, crop it, make camera paths and videos."""

    run: Path | None = None
    """Folder of the run, or a file that `jaxrf export` wrote. Default: the newest in ./runs."""
    step: int | None = None
    """Which checkpoint. Default: the last."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine's own, or 0.0.0.0 for everybody who can reach it."""
    port: int = 8080
    """Port to listen at, or the next that is free."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a trained run as one file: its geometry, or its weights for another program."""

    run: Path | None = None
    """Folder of the run. Default: the newest in ./runs."""
    format: ExportFormat = "ternary-2bit"
    """ternary-2bit, ternary-1.6bit: the weights of a bitnerf, of 2 bits each or five to a byte,
    which `jaxrf render` takes in place of a folder. web: a bitnerf as one page that any browser
    shows. nerf-pytorch, tensorf, nerfstudio: a checkpoint
    of that program, with a nerf, a tensorf or a hashgrid. mesh: the surface with colours. points: a
    coloured point cloud."""
    output: Path | None = None
    """File to write; of mesh and points the name's end says how: .glb, .ply or .obj. Default: named
    after the format, in the run's folder; mesh.glb and points.ply."""
    frame: Literal["data", "scene"] = "data"
    """mesh, points: in the coordinates of the data set's files, or of training."""
    resolution: int = 256
    """mesh: voxels along the longest side of what is there."""
    level: float = 0.3
    """mesh: opacity, over the width of a pixel, that is the surface; less gives a fuller one."""
    fragments: float = 0.001
    """mesh: leave out loose parts of less than this share of all faces."""
    largest: bool = False
    """mesh: keep the largest connected part only."""
    keep_hidden: bool = False
    """mesh: keep what no training camera sees, too, such as the insides of walls."""
    points: int = 200_000
    """points: how many at most."""
    views: int = 50
    """mesh, points: how many training cameras are asked what they see."""
    step: int | None = None
    """Which checkpoint. Default: the last."""


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Turn weights of another program into a run, or prove that the port is equivalent."""

    file: Path
    """What that program wrote; it is recognised by what it holds."""
    run_dir: Path | None = None
    """Folder to write the run to. Default: runs/<file>-<field>-<time>; with --check none."""
    data: Path | None = None
    """Folder of the data set that the weights were trained on, to evaluate and fine-tune on it."""
    downscale: int = 1
    """Shrink its pictures by this whole factor."""
    steps: int = 5000
    """Steps of fine-tuning, which train_lego.py --resume does, at a fifth of the original rate."""
    check: bool = False
    """Compare with the program itself, rebuilt in PyTorch; the exit code is 1 if they differ."""
    size: int = 64
    """Width of the picture that is compared."""
    legacy_order: bool = False
    """jaxnerf: the weights were trained with its option legacy_posenc_order."""
    inclusive: bool = False
    """NeRF-experiments: render with that program's transmittance, which includes a sample's own
    absorption."""
    bounded: bool = False
    """nerfstudio: space was not contracted, as it is by default there."""
    density_factor: float = 1.0
    """nerfstudio: its average_init_density, a factor of the density; recent nerfacto has 0.01."""


@dataclasses.dataclass(frozen=True)
class DataInfoOptions:
    """Say what a data set holds and what looks wrong in it, and draw its cameras."""

    data: Path
    """The data set: a folder, or a tiny_nerf_data.npz."""
    downscale: int = 1
    """Shrink the pictures by this whole factor, averaging areas."""
    skip_missing: bool = False
    """Leave out pictures that the data set names but that are not there."""
    output: Path = Path("data-info")
    """Folder to write cameras.png and cameras.html to."""


@dataclasses.dataclass(frozen=True)
class DataFetchOptions:
    """Download a public data set, going on where a download broke off."""

    name: str
    """lego, fern or tiny_nerf."""
    output: Path = Path("data")
    """Folder of data sets."""
    url: str | None = None
    """Address of the same file elsewhere."""
    sha256: str | None = None
    """What the file's SHA-256 must be. Default: that of the last time."""


@dataclasses.dataclass(frozen=True)
class ExperimentsOptions:
    """Train the six experiments of the seed study one after the other, and report on them."""

    data: Path | None = None
    """tiny_nerf_data.npz, or the folder it is in. Default: as for training."""
    length: Literal["short", "full"] = "short"
    """full: the published 50 epochs of 8 layers of 256, for an accelerator. short: 8 layers of 64
    and 512 rays a step for as many steps, some minutes each on a CPU."""
    only: tuple[str, ...] = ()
    """Presets to train, of those that begin with study-. Default: all."""
    seed: int = 0
    """Of all of them."""
    output: Path = Path("runs/experiments")
    """Folder for the runs and the report."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Measure this machine, and how fast and how good each field gets on it."""

    data: Path | None = None
    """Folder of the data set. Default: as for training."""
    downscale: tuple[int, ...] = (1,)
    """Shrink the pictures by these whole factors, averaging areas."""
    presets: tuple[str, ...] = ("voxels-small", "tensorf-small", "nerf-small")
    """What is trained, each in a process of its own with an empty compilation cache; options of
    training may follow a name: "nerf-original --field.sampler occupancy"."""
    budget: tuple[float, ...] = (60.0,)
    """Seconds from the start of the process for each; several train anew for each of them."""
    seeds: int = 1
    """Runs of each preset, with seeds 0, 1, ..."""
    every: int = 8
    """Score every K-th test view."""
    output: Path = Path("docs/benchmarks")
    """Folder to write to."""
    name: str = "bench"
    """What the files are called, after the date."""
    resume: bool = False
    """Keep the runs that the newest files of this name hold already, and do the others."""

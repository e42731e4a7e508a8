"""Videos: a run seen along a path or beside the pictures of a split, frame by frame into a folder.

Each frame is written as it comes, so what was broken off goes on where it stopped.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.cameras import base as cams
from jaxrf.cameras import paths, transforms
from jaxrf.cameras.base import Cameras
from jaxrf.core.errors import InputError
from jaxrf.core.progress import progress
from jaxrf.data import sources
from jaxrf.data.scene import Split, composite
from jaxrf.evaluation import images as pictures
from jaxrf.evaluation.channels import Channel
from jaxrf.export.render_options import DEFAULT_CHANNELS, Format, RenderOptions
from jaxrf.parallel import devices as parallel
from jaxrf.rendering.volume import Picture
from jaxrf.sampling.occupancy import visible_aabb
from jaxrf.training import runs, train
from jaxrf.training.runs import Run

# Frames per second of videos for which nobody says otherwise.
FPS = 24.0
# Says what a folder's frames are of, and whether all are there.
RENDER_FILE = "render.json"
# Degrees by which a spiral around an object rises and sinks.
SWING = 25.0
SPLITS = ("train-views", "val", "test")
# Formats of which a frame is a file; the others are made of all frames at the end.
SINGLE: tuple[Format, ...] = ("png", "npy", "exr")


class RenderPlan(NamedTuple):
    """What is to be rendered.

    cameras: of all frames.
    names: of the frames' files.
    split: the pictures that were taken from there, if any were.
    span: nearest and farthest distance that colours of depth span.
    """

    cameras: Cameras
    names: tuple[str, ...]
    split: Split | None
    span: tuple[float, float]


def plan_render(run: Run, options: RenderOptions) -> RenderPlan:
    """The frames that `options.path` names.

    Raises:
      InputError: there is no such path, its file is damaged, or the split's pictures are gone.
    """
    if options.path in SPLITS:
        split = _load_split(run, options)
        return RenderPlan(
            split.cameras, name_files(split.names), split, _find_span(run, split.cameras)
        )
    cameras = path_cameras(run, options)
    names = tuple(f"{index:04d}" for index in range(len(cameras)))
    return RenderPlan(cameras, names, None, _find_span(run, cameras))


def name_files(names: Sequence[str]) -> tuple[str, ...]:
    """Names of frames as a folder can hold them: without slashes, numbered if some are the same."""
    plain = [name.replace("/", "_").replace("\\", "_") for name in names]
    if len(set(plain)) < len(plain):
        plain = [f"{index:04d}-{name}" for index, name in enumerate(plain)]
    return tuple(plain)


def _load_split(run: Run, options: RenderOptions) -> Split:
    name = "train" if options.path == "train-views" else options.path
    data = options.data or (Path(run.scene.data) if run.scene.data else None)
    if data is None:
        raise InputError(
            f"The run {run.folder} was converted without pictures, which --path {options.path} "
            "needs: name their folder with --data."
        )
    config = run.config

    def choose(count: int) -> range:
        return range(0, count, options.every)

    scene = sources.load_scene(data, [name], config.downscale, choose, config.skip_missing)
    return scene.splits[name]


def path_cameras(run: Run, options: RenderOptions) -> Cameras:
    """The cameras of a video's frames, as `options.path` says, with the training cameras' view.

    Raises:
      InputError: there is no such path, or its file is damaged.
    """
    scene, kind = run.scene, options.path
    if kind.endswith(".json"):
        return _read_cameras(run, Path(kind), options.size)
    if kind == "auto":
        kind = "orbit" if scene.ndc is None else "spiral"
    training = np.array(scene.poses, np.float64).reshape(-1, 3, 4)
    last = np.tile(np.array([[[0.0, 0.0, 0.0, 1.0]]]), (len(training), 1, 1))
    training = np.concatenate([training, last], axis=1)
    if kind in ("ellipse", "train") and not len(training):
        raise InputError(
            f"{run.folder} does not hold the poses of its training pictures, which --path {kind} "
            "needs: choose another one."
        )
    match kind:
        case "orbit" | "spiral" if kind == "orbit" or scene.ndc is None:
            radius, elevation = options.radius or scene.radius, np.deg2rad(options.elevation)
            around = (options.frames, radius, elevation, np.asarray(scene.focus))
            spiral = (2, np.deg2rad(SWING)) if kind == "spiral" else ()
            poses = paths.orbit_path(*around, *spiral)
        case "spiral":
            # Near things move more than far ones: what counts is between, in disparity.
            depth = 1.0 / (0.25 / (5.0 * scene.far) + 0.75 / scene.near)
            poses = paths.spiral_path(options.frames, np.asarray(scene.spread), depth)
        case "ellipse":
            poses = paths.ellipse_path(options.frames, training)
        case "train":
            poses = paths.interpolate_path(options.frames, training)
        case _:
            raise InputError(
                f"--path {kind} is none of orbit, spiral, ellipse, train, train-views, val and "
                "test, nor a .json file."
            )
    angle = 2.0 * np.arctan(0.5 * scene.width / scene.focal)
    width, height = options.size, options.size * scene.height // scene.width
    cameras = cams.make_cameras(poses, width, height, angle)
    return dataclasses.replace(cameras, ndc=scene.ndc)


def _read_cameras(run: Run, path: Path, width: int) -> Cameras:
    """Cameras of a file, where the scene lies while training, with pictures of this width."""
    cameras = paths.read_path(path).cameras
    frame = transforms.unpack_frame(run.scene.frame)
    poses = transforms.move_poses(frame, np.asarray(cameras.T_world_camera, np.float64))
    moved = dataclasses.replace(cameras, T_world_camera=poses.astype(np.float32), ndc=run.scene.ndc)
    return cams.resize_cameras(moved, width, max(width * cameras.height // cameras.width, 1))


def _find_span(run: Run, cameras: Cameras) -> tuple[float, float]:
    return cams.near_far_for_box(cameras, visible_aabb(run.state.grid))


def render_plan(
    run: Run,
    shots: RenderPlan,
    supersample: int | None,
    title: str,
    wanted: Sequence[int] | None = None,
) -> Iterator[tuple[int, Picture]]:
    """Renders frames one after the other, by default all, behind a progress bar."""
    render = runs.make_render_fn(run, supersample)
    indices = range(len(shots.cameras)) if wanted is None else wanted
    for index in progress(indices, title, "frame", disable=not parallel.leads()):
        yield index, render(shots.cameras, index)


def take_numbers(
    picture: Picture, channel: Channel, truth: Float[np.ndarray, "h w 3"] | None
) -> Float[np.ndarray, "h w *c"]:
    """A channel of a rendering as numbers: depth is the median distance along the ray."""
    match channel:
        case "rgb":
            return picture.rgb
        case "depth":
            return picture.median_depth
        case "opacity":
            return picture.opacity
        case "truth":
            assert truth is not None
            return truth
        case "error":
            assert truth is not None
            return np.abs(np.clip(picture.rgb, 0.0, 1.0) - truth).mean(axis=-1)
        case "comparison":
            raise InputError("comparison is a picture, no numbers: leave it out of --channels.")
    assert_never(channel)


def describe_plan(run: Run, options: RenderOptions) -> dict[str, Any]:
    """What frames depend on, as JSON can hold it; frames of the same are interchangeable."""
    depends = {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if name not in ("run", "output", "fps", "formats")
    }
    content = {"run": run.folder.name, "step": int(run.state.step), **depends}
    if options.path.endswith(".json"):
        content["camera_path"] = Path(options.path).read_text(encoding="utf-8", errors="replace")
    return json.loads(json.dumps(content, default=str))


def is_resumable(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether a folder holds a part of these frames, and not yet all."""
    try:
        known = json.loads((folder / RENDER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and known == {**content, "done": False}


def find_folder(wanted: Path, content: Mapping[str, Any]) -> Path:
    """The wanted folder, or wanted-2, wanted-3, ...: the first to go on in or that is not there."""
    folder, number = wanted, 2
    while folder.exists() and not is_resumable(folder, content):
        folder, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return folder


def fill_folder(run: Run, options: RenderOptions, folder: Path, fps: float) -> None:
    """Renders what of a folder's frames is missing, then makes its videos.

    Raises:
      InputError: a channel or format that is asked for cannot be.
    """
    shots = plan_render(run, options)
    channels = options.channels or DEFAULT_CHANNELS[shots.split is not None]
    formats = options.formats
    _check(channels, formats, shots, options)
    content = describe_plan(run, options)
    runs.make_writable(folder, "--output")
    runs.write_text(folder / RENDER_FILE, runs.to_text({**content, "done": False}))
    for channel in channels:
        (folder / channel).mkdir(exist_ok=True)
    # Videos are made of PNG frames, which stay if they are asked for.
    each: list[Format] = [f for f in SINGLE if f in formats]
    if set(formats) - set(SINGLE) and "png" not in each:
        each.append("png")

    def place(index: int, channel: Channel, form: Format) -> Path:
        return folder / channel / f"{shots.names[index]}.{form}"

    files = [(channel, form) for channel in channels for form in each]
    missing = [
        index
        for index in range(len(shots.cameras))
        if not all(place(index, *file).exists() for file in files)
    ]
    if len(missing) < len(shots.cameras):
        done = len(shots.cameras) - len(missing)
        print(f"Going on in {folder}, where {done} of {len(shots.cameras)} frames are.")
    background = train.background_color(run.config)
    for index, picture in render_plan(run, shots, options.supersample, "render", missing):
        truth = None
        if shots.split is not None:
            truth = composite(shots.split.images[index], background)
        for channel, form in files:
            with runs.atomic_path(place(index, channel, form)) as path:
                if form == "png":
                    image = pictures.draw_channel(
                        picture, channel, shots.span, truth, options.colors
                    )
                    path.write_bytes(pictures.encode_png(image / 255.0))
                else:
                    numbers = take_numbers(picture, channel, truth).astype(np.float32)
                    WRITERS[form](path, numbers)
    for channel in channels:
        images = Frames([place(index, channel, "png") for index in range(len(shots.names))])
        if "mp4" in formats:
            pictures.write_mp4(folder / f"{channel}.mp4", images, fps)
        if "gif" in formats:
            (folder / f"{channel}.gif").write_bytes(pictures.encode_gif(images, fps))
        if "webp" in formats:
            (folder / f"{channel}.webp").write_bytes(pictures.encode_webp(images, fps))
    for channel in channels:
        if "png" not in formats:
            for path in (folder / channel).glob("*.png"):
                path.unlink()
        if not any((folder / channel).iterdir()):
            shutil.rmtree(folder / channel)
    runs.write_text(folder / RENDER_FILE, runs.to_text({**content, "done": True}))
    print(f"Written to {folder}: {', '.join(_list_results(folder))}")


WRITERS: dict[str, Callable[[Path, Float[np.ndarray, "h w *c"]], None]] = {
    "npy": pictures.write_npy,
    "exr": pictures.write_exr,
}


def _check(
    channels: Sequence[Channel],
    formats: Sequence[Format],
    shots: RenderPlan,
    options: RenderOptions,
) -> None:
    import matplotlib

    if options.colors not in matplotlib.colormaps:
        raise InputError(
            f"--colors is {options.colors}: give one of matplotlib's colour maps, as turbo, "
            "viridis or gray."
        )
    compared = [c for c in channels if c in ("truth", "error", "comparison")]
    if compared and shots.split is None:
        raise InputError(
            f"--channels {compared[0]} needs pictures to compare with: add --path test, val or "
            "train-views."
        )
    if "comparison" in channels and {"npy", "exr"} & set(formats):
        raise InputError("--channels comparison is a picture, no numbers: leave out npy and exr.")


def _list_results(folder: Path) -> list[str]:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    return [name for name in names if name != RENDER_FILE]


class Frames(Sequence[UInt8[np.ndarray, "h w 3"]]):
    """Pictures in files, read whenever one is asked for: a long video need not fit into memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Frames(self._files[index])
        return pictures.read_png(self._files[index])

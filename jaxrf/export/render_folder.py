"""Renders the frames of a plan into a folder and makes videos of them.

Each frame is written as soon as it is rendered, so an interrupted rendering can be resumed.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.core.errors import InputError
from jaxrf.core.progress import progress
from jaxrf.data.scene import composite
from jaxrf.evaluation import images
from jaxrf.evaluation.channels import Channel
from jaxrf.export.render_options import DEFAULT_CHANNELS, Format, RenderOptions
from jaxrf.export.render_plan import RenderPlan, plan_render
from jaxrf.parallel import processes
from jaxrf.rendering.image import HostRendering
from jaxrf.training import runs
from jaxrf.training.runs import Run
from jaxrf.training.state import background_color

# Default frames per second of a video.
FPS = 24.0
# Records what a folder's frames show, and whether the folder is complete.
RENDER_FILE = "render.json"
# Formats with a file for each frame; the others are made from all frames at the end.
FRAME_FORMATS: tuple[Format, ...] = ("png", "npy", "exr")
ARRAY_WRITERS: dict[str, Callable[[Path, Float[np.ndarray, "h w *c"]], None]] = {
    "npy": images.write_npy,
    "exr": images.write_exr,
}


def render_frames(
    run: Run,
    plan: RenderPlan,
    supersample: int | None,
    title: str,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[int, HostRendering]]:
    """Renders frames of a plan, by default all, with a progress bar; yields index and rendering."""
    render = runs.make_render_fn(run, supersample)
    indices = range(len(plan.cameras)) if indices is None else indices
    silent = not processes.is_main_process()
    for index in progress(indices, title, "frame", disable=silent):
        yield index, render(plan.cameras, index)


def select_channel(
    rendering: HostRendering, channel: Channel, target_rgb: Float[np.ndarray, "h w 3"] | None
) -> Float[np.ndarray, "h w *c"]:
    """A channel of a rendering as numbers; depth is the median distance along the ray."""
    match channel:
        case "rgb":
            return rendering.rgb
        case "depth":
            return rendering.median_depth
        case "opacity":
            return rendering.opacity
        case "truth":
            assert target_rgb is not None
            return target_rgb
        case "error":
            assert target_rgb is not None
            return np.abs(np.clip(rendering.rgb, 0.0, 1.0) - target_rgb).mean(axis=-1)
        case "comparison":
            raise InputError("comparison is an image without numbers: leave it out of --channels.")
    assert_never(channel)


def describe_frames(run: Run, options: RenderOptions) -> dict[str, Any]:
    """Everything that frames depend on, as JSON; frames with equal descriptions are equal."""
    relevant_options = {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if name not in ("run", "output", "fps", "formats")
    }
    content = {"run": run.folder.name, "step": int(run.state.step), **relevant_options}
    if options.path.endswith(".json"):
        content["camera_path"] = Path(options.path).read_text(encoding="utf-8", errors="replace")
    return json.loads(json.dumps(content, default=str))


def is_resumable(folder: Path, description: Mapping[str, Any]) -> bool:
    """Whether a folder holds some of the described frames, but not yet all."""
    try:
        recorded = json.loads((folder / RENDER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(recorded, dict) and recorded == {**description, "done": False}


def find_folder(preferred: Path, description: Mapping[str, Any]) -> Path:
    """The first of FOLDER, FOLDER-2, FOLDER-3, ... that is resumable or does not exist."""
    folder, number = preferred, 2
    while folder.exists() and not is_resumable(folder, description):
        folder, number = preferred.with_name(f"{preferred.name}-{number}"), number + 1
    return folder


def render_into_folder(run: Run, options: RenderOptions, folder: Path, fps: float) -> None:
    """Renders the missing frames of a folder, then makes its videos.

    Raises:
      InputError: a channel or format is not available for these frames.
    """
    plan = plan_render(run, options)
    channels = options.channels or DEFAULT_CHANNELS[plan.split is not None]
    _check_options(channels, plan, options)
    description = describe_frames(run, options)
    runs.make_writable(folder, "--output")
    _write_status(folder, description, done=False)
    for channel in channels:
        (folder / channel).mkdir(exist_ok=True)
    _render_missing_frames(run, plan, options, channels, folder)
    for channel in channels:
        frames = FrameSequence([folder / channel / f"{name}.png" for name in plan.names])
        _write_videos(folder / channel, frames, options.formats, fps)
    _remove_unrequested_frames(folder, channels, options.formats)
    _write_status(folder, description, done=True)
    print(f"Written to {folder}: {', '.join(_list_results(folder))}")


def _write_status(folder: Path, description: Mapping[str, Any], done: bool) -> None:
    runs.write_text(folder / RENDER_FILE, runs.to_text({**description, "done": done}))


def _render_missing_frames(
    run: Run, plan: RenderPlan, options: RenderOptions, channels: Sequence[Channel], folder: Path
) -> None:
    """Writes a file for each frame, channel and frame format that does not exist yet."""
    formats: list[Format] = [f for f in FRAME_FORMATS if f in options.formats]
    if set(options.formats) - set(FRAME_FORMATS) and "png" not in formats:
        # Videos are made of PNG frames.
        formats.append("png")
    files = [(channel, suffix) for channel in channels for suffix in formats]

    def frame_path(index: int, channel: Channel, suffix: Format) -> Path:
        return folder / channel / f"{plan.names[index]}.{suffix}"

    count = len(plan.cameras)
    missing = [i for i in range(count) if not all(frame_path(i, *file).exists() for file in files)]
    if len(missing) < count:
        print(f"Resuming in {folder}, which has {count - len(missing)} of {count} frames.")
    background = background_color(run.config)
    for index, rendering in render_frames(run, plan, options.supersample, "render", missing):
        target_rgb = None
        if plan.split is not None:
            target_rgb = composite(plan.split.images[index], background)
        for channel, suffix in files:
            with runs.atomic_path(frame_path(index, channel, suffix)) as path:
                if suffix == "png":
                    image = images.draw_channel(
                        rendering, channel, plan.depth_range, target_rgb, options.colors
                    )
                    path.write_bytes(images.encode_png(image / 255.0))
                else:
                    array = select_channel(rendering, channel, target_rgb).astype(np.float32)
                    ARRAY_WRITERS[suffix](path, array)


def _write_videos(
    stem: Path, frames: "FrameSequence", formats: Sequence[Format], fps: float
) -> None:
    """Writes the requested videos of a channel beside its folder, `stem`."""
    if "mp4" in formats:
        images.write_mp4(stem.with_name(f"{stem.name}.mp4"), frames, fps)
    if "gif" in formats:
        stem.with_name(f"{stem.name}.gif").write_bytes(images.encode_gif(frames, fps))
    if "webp" in formats:
        stem.with_name(f"{stem.name}.webp").write_bytes(images.encode_webp(frames, fps))


def _remove_unrequested_frames(
    folder: Path, channels: Sequence[Channel], formats: Sequence[Format]
) -> None:
    """Removes PNG frames that were written for videos only, and empty folders."""
    for channel in channels:
        if "png" not in formats:
            for path in (folder / channel).glob("*.png"):
                path.unlink()
        if not any((folder / channel).iterdir()):
            shutil.rmtree(folder / channel)


def _check_options(channels: Sequence[Channel], plan: RenderPlan, options: RenderOptions) -> None:
    import matplotlib

    if options.colors not in matplotlib.colormaps:
        raise InputError(
            f"--colors is {options.colors}: give one of matplotlib's color maps, such as turbo, "
            "viridis or gray."
        )
    compared = [c for c in channels if c in ("truth", "error", "comparison")]
    if compared and plan.split is None:
        raise InputError(
            f"--channels {compared[0]} needs images to compare with: add --path test, val or "
            "train-views."
        )
    if "comparison" in channels and {"npy", "exr"} & set(options.formats):
        raise InputError(
            "--channels comparison is an image without numbers: leave out npy and exr."
        )


def _list_results(folder: Path) -> list[str]:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    return [name for name in names if name != RENDER_FILE]


class FrameSequence(Sequence[UInt8[np.ndarray, "h w 3"]]):
    """Images in files, read on access, because a long video may not fit into memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return FrameSequence(self._files[index])
        return images.read_png(self._files[index])

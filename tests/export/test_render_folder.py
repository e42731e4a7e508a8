"""Rendering frames and videos into a folder, and resuming it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxrf.core.errors import InputError
from jaxrf.evaluation import images
from jaxrf.export.render_folder import (
    RENDER_FILE,
    describe_frames,
    find_folder,
    is_resumable,
    render_frames,
    render_into_folder,
)
from jaxrf.export.render_options import RenderOptions
from jaxrf.export.render_plan import plan_render
from jaxrf.rendering.image import HostRendering
from jaxrf.training.runs import Run


def render_frame(run: Run, index: int, options: RenderOptions) -> HostRendering:
    ((_, rendering),) = render_frames(run, plan_render(run, options), None, "", [index])
    return rendering


def test_numbers_are_those_of_the_rendering(untrained_run: Run, tmp_path: Path) -> None:
    import OpenEXR

    options = RenderOptions(path="test", channels=("rgb", "depth"), formats=("npy", "exr"))
    render_into_folder(untrained_run, options, tmp_path / "out", 2.0)
    rendering = render_frame(untrained_run, 1, options)
    for channel, expected in (("rgb", rendering.rgb), ("depth", rendering.median_depth)):
        folder = tmp_path / "out" / channel
        assert {p.suffix for p in folder.iterdir()} == {".npy", ".exr"}
        np.testing.assert_array_equal(np.load(folder / "r_1.npy"), expected)
        (content,) = OpenEXR.File(str(folder / "r_1.exr")).channels().values()
        np.testing.assert_array_equal(content.pixels, expected)
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_frames_are_removed_unless_requested(untrained_run: Run, tmp_path: Path) -> None:
    options = RenderOptions(frames=2, size=16, channels=("rgb",), formats=("mp4", "webp"))
    render_into_folder(untrained_run, options, tmp_path / "out", 10.0)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["render.json", "rgb.mp4", "rgb.webp"]
    with Image.open(tmp_path / "out/rgb.webp") as webp:
        assert (webp.n_frames, webp.size, webp.info["loop"]) == (2, (16, 16), 0)


class SimulatedInterruptError(Exception):
    """Interrupts a rendering."""


def test_resumed_folders_equal_uninterrupted_ones(
    untrained_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = RenderOptions(frames=4, size=16, formats=("gif", "png"))
    description = describe_frames(untrained_run, options)
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    render_into_folder(untrained_run, options, uninterrupted, 10.0)
    assert not is_resumable(uninterrupted, description)

    drawn: list[int] = []
    draw = images.draw_channel

    def draw_seven(*arguments: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 8:
            raise SimulatedInterruptError
        return draw(*arguments)

    monkeypatch.setattr(images, "draw_channel", draw_seven)
    with pytest.raises(SimulatedInterruptError):
        render_into_folder(untrained_run, options, resumed, 10.0)
    assert is_resumable(resumed, description)
    assert find_folder(resumed, description) == resumed
    # No temporary files are left.
    assert all(p.suffix in (".png", "") for p in resumed.rglob("[!r.]*"))
    drawn.clear()
    monkeypatch.setattr(images, "draw_channel", lambda *a: drawn.append(1) or draw(*a))
    render_into_folder(untrained_run, options, resumed, 10.0)
    assert len(drawn) == 2 * 3
    assert "which has 2 of 4 frames" in capsys.readouterr().out
    files = {p.relative_to(uninterrupted) for p in uninterrupted.rglob("*.*")}
    assert files == {p.relative_to(resumed) for p in resumed.rglob("*.*")}
    for name in files:
        assert (uninterrupted / name).read_bytes() == (resumed / name).read_bytes()


@pytest.mark.parametrize("change", [{"frames": 5}, {"elevation": 31.0}, {"supersample": 2}])
def test_folders_of_other_frames_are_not_resumed(
    untrained_run: Run, tmp_path: Path, change: dict[str, Any]
) -> None:
    description = describe_frames(untrained_run, RenderOptions(frames=4))
    folder = tmp_path / "orbit"
    folder.mkdir()
    (folder / RENDER_FILE).write_text(json.dumps({**description, "done": False}))
    assert is_resumable(folder, description)
    changed = dataclasses.replace(RenderOptions(frames=4), **change)
    other = describe_frames(untrained_run, changed)
    assert not is_resumable(folder, other)
    assert find_folder(folder, other) == tmp_path / "orbit-2"
    (folder / RENDER_FILE).write_text("{")
    assert not is_resumable(folder, description)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ("error",)}, "channels error needs images .* path test"),
        ({"path": "test", "formats": ("npy",)}, "comparison is an image without numbers"),
        ({"colors": "mauve"}, "colors is mauve: give one of"),
        ({"path": "nowhere"}, "path nowhere is none of orbit"),
        ({"path": "test", "data": Path("/nowhere")}, "/nowhere"),
    ],
)
def test_render_into_folder_reports_invalid_options_in_one_line(
    untrained_run: Run, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        render_into_folder(untrained_run, RenderOptions(**change), tmp_path / "out", 24.0)
    assert "\n" not in str(error.value)

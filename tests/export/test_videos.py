"""Frames of a run in a folder: along paths and beside the pictures of splits, begun and gone on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import SIZE, VIEWS, first_state, make_scene, tiny_nerf, write_scene

from jaxrf.core.errors import InputError
from jaxrf.evaluation import images
from jaxrf.export import videos
from jaxrf.export.render_options import RenderOptions
from jaxrf.rendering.volume import Picture
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("videos")
    config = tiny_nerf()
    stage, state = first_state(config)
    scene = SceneMetadata.from_scene(make_scene(), write_scene(folder / "ball"))
    return Run(folder / "run", config, scene, stage, state, 0.0)


def picture(run: Run, index: int, options: RenderOptions) -> Picture:
    shots = videos.plan_render(run, options)
    ((_, found),) = videos.render_plan(run, shots, None, "", [index])
    return found


@pytest.mark.parametrize(
    ("path", "frames"), [("orbit", 5), ("ellipse", 5), ("spiral", 5), ("train", 5)]
)
def test_a_path_has_as_many_frames_as_one_asks_for(run: Run, path: str, frames: int) -> None:
    shots = videos.plan_render(run, RenderOptions(path=path, frames=frames, size=24))
    assert len(shots.cameras) == len(shots.names) == frames and shots.split is None
    assert (shots.cameras.width, shots.cameras.height) == (24, 24)
    low, high = shots.span
    away = np.linalg.norm(np.asarray(shots.cameras.T_world_camera)[:, :3, 3], axis=-1)
    assert low < away.min() and away.max() < high


def test_a_split_is_seen_by_its_cameras_at_its_size_with_its_pictures(run: Run) -> None:
    shots = videos.plan_render(run, RenderOptions(path="test", size=99, every=2))
    assert shots.split is not None and shots.names == ("r_0", "r_2")[: len(shots.names)]
    assert len(shots.names) == -(-VIEWS["test"] // 2)
    assert (shots.cameras.width, shots.cameras.height) == (SIZE, SIZE)
    wanted = make_scene().splits["test"].cameras
    np.testing.assert_allclose(shots.cameras.T_world_camera, wanted.T_world_camera[::2], atol=1e-6)


def test_names_that_no_file_can_have_are_changed() -> None:
    assert videos.name_files(["a/b", "c\\d"]) == ("a_b", "c_d")
    assert videos.name_files(["a/b", "a_b"]) == ("0000-a_b", "0001-a_b")


def test_numbers_are_those_of_the_rendering(run: Run, tmp_path: Path) -> None:
    import OpenEXR

    options = RenderOptions(path="test", channels=("rgb", "depth"), formats=("npy", "exr"))
    videos.fill_folder(run, options, tmp_path / "out", 2.0)
    found = picture(run, 1, options)
    for channel, wanted in (("rgb", found.rgb), ("depth", found.median_depth)):
        folder = tmp_path / "out" / channel
        assert {p.suffix for p in folder.iterdir()} == {".npy", ".exr"}
        np.testing.assert_array_equal(np.load(folder / "r_1.npy"), wanted)
        (content,) = OpenEXR.File(str(folder / "r_1.exr")).channels().values()
        np.testing.assert_array_equal(content.pixels, wanted)
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_videos_without_frames_leave_no_frames(run: Run, tmp_path: Path) -> None:
    options = RenderOptions(frames=2, size=16, channels=("rgb",), formats=("mp4", "webp"))
    videos.fill_folder(run, options, tmp_path / "out", 10.0)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["render.json", "rgb.mp4", "rgb.webp"]
    with Image.open(tmp_path / "out/rgb.webp") as webp:
        assert (webp.n_frames, webp.size, webp.info["loop"]) == (2, (16, 16), 0)


class RenderCancelled(Exception):
    """Somebody has pulled the plug."""


def test_what_was_broken_off_goes_on_and_is_the_same_in_the_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = RenderOptions(frames=4, size=16, formats=("gif", "png"))
    content = videos.describe_plan(run, options)
    videos.fill_folder(run, options, tmp_path / "whole", 10.0)
    assert not videos.is_resumable(tmp_path / "whole", content)

    rendered: list[int] = []
    draw = images.draw_channel

    def draw_some(*arguments: Any) -> Any:
        rendered.append(1)
        if len(rendered) == 8:
            raise RenderCancelled
        return draw(*arguments)

    monkeypatch.setattr(images, "draw_channel", draw_some)
    with pytest.raises(RenderCancelled):
        videos.fill_folder(run, options, tmp_path / "parts", 10.0)
    assert videos.is_resumable(tmp_path / "parts", content)
    assert videos.find_folder(tmp_path / "parts", content) == tmp_path / "parts"
    # Nothing half-written stays behind.
    assert all(p.suffix in (".png", "") for p in (tmp_path / "parts").rglob("[!r.]*"))
    rendered.clear()
    monkeypatch.setattr(images, "draw_channel", lambda *a: rendered.append(1) or draw(*a))
    videos.fill_folder(run, options, tmp_path / "parts", 10.0)
    assert len(rendered) == 2 * 3
    assert "where 2 of 4 frames are" in capsys.readouterr().out
    files = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.*")}
    assert files == {p.relative_to(tmp_path / "parts") for p in (tmp_path / "parts").rglob("*.*")}
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize("change", [{"frames": 5}, {"elevation": 31.0}, {"supersample": 2}])
def test_frames_of_something_else_are_not_gone_on_with(
    run: Run, tmp_path: Path, change: dict[str, Any]
) -> None:
    content = videos.describe_plan(run, RenderOptions(frames=4))
    folder = tmp_path / "orbit"
    folder.mkdir()
    (folder / videos.RENDER_FILE).write_text(json.dumps({**content, "done": False}))
    assert videos.is_resumable(folder, content)
    other = videos.describe_plan(run, dataclasses.replace(RenderOptions(frames=4), **change))
    assert not videos.is_resumable(folder, other)
    assert videos.find_folder(folder, other) == tmp_path / "orbit-2"
    (folder / videos.RENDER_FILE).write_text("{")
    assert not videos.is_resumable(folder, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ("error",)}, "--channels error needs pictures .* --path test"),
        ({"path": "test", "formats": ("npy",)}, "comparison is a picture, no numbers"),
        ({"colors": "mauve"}, "--colors is mauve: give one of"),
        ({"path": "nowhere"}, "--path nowhere is none of orbit"),
        ({"path": "test", "data": Path("/nowhere")}, "/nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    run: Run, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        videos.fill_folder(run, RenderOptions(**change), tmp_path / "out", 24.0)
    assert "\n" not in str(caught.value)

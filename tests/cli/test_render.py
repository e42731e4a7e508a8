"""`jaxrf render`: the files that it writes, and the folders that it refuses."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from programs import assert_one_sentence, error_line
from scenes import read_mp4

from jaxrf.cli import main as cli

pytestmark = pytest.mark.as_used


def test_render_writes_videos_and_frames_of_every_channel(run_copy: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "orbit"
    arguments = ["--frames", "3", "--size", "18", "--output", str(output), "--fps", "10"]
    assert cli.run_command("render", [str(run_copy), *arguments]) == 0
    for channel in ("rgb", "depth", "opacity"):
        video = read_mp4(output / f"{channel}.mp4")
        assert video.shape == (3, 18, 18, 3)
        with Image.open(output / f"{channel}.gif") as gif:
            assert (gif.n_frames, gif.size, gif.info["loop"]) == (3, (18, 18), 0)
        names = sorted(p.name for p in (output / channel).iterdir())
        assert names == ["0000.png", "0001.png", "0002.png"]
        frames = np.stack([iio.imread(output / channel / name) for name in names])
        assert frames.shape == (3, 18, 18, 3) and frames.dtype == np.uint8
        assert np.abs(frames.astype(int) - video).mean() < 12
    opacity = iio.imread(output / "opacity" / "0000.png")
    assert np.all(opacity[..., 0] == opacity[..., 1])
    rgb, clear = iio.imread(output / "rgb" / "0000.png"), opacity[..., 0] == 0
    assert np.all(rgb[clear] == 255)


def test_render_refuses_a_folder_that_is_not_empty(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    assert cli.run_command("render", [str(run_copy), "--output", str(output), "--frames", "1"]) == 2
    assert_one_sentence(capsys, str(output), "--output")
    assert [p.name for p in output.iterdir()] == ["precious.txt"]


def test_render_numbers_its_folders_and_renders_chosen_channels_only(run_copy: Path) -> None:
    arguments = [str(run_copy), "--frames", "1", "--size", "8", "--channels", "depth"]
    for name in ("orbit", "orbit-2"):
        assert cli.run_command("render", arguments) == 0
        assert sorted(p.name for p in (run_copy / name).iterdir()) == [
            "depth", "depth.gif", "depth.mp4", "render.json",
        ]  # fmt: skip


def test_render_refuses_an_output_below_a_file(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file")
    assert cli.run_command("render", [str(run_copy), "--output", str(tmp_path / "file/orbit")]) == 2
    assert_one_sentence(capsys, str(tmp_path / "file/orbit"), "--output")


@pytest.mark.parametrize("name", ["frames", "fps", "size", "radius", "supersample"])
def test_render_refuses_numbers_that_are_not_positive(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command("render", [f"--{name}", "0"]) == 2
    assert f"--{name} is 0" in error_line(capsys)

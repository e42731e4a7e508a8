"""The commands as a user has them: a whole tiny training, what it leaves, what goes wrong."""

import dataclasses
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layouts import write_llff
from PIL import Image
from scenes import (
    SIZE,
    TINY,
    VIEWS,
    differing_leaves,
    make_scene,
    read_mp4,
    tiny_nerf,
    tiny_tensorf,
    write_scene,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from jaxrf.cameras.base import image_rays
from jaxrf.cli import commands
from jaxrf.cli import main as cli
from jaxrf.core.errors import InputError
from jaxrf.models import methods
from jaxrf.training import config as configs
from jaxrf.training import runs, summaries

pytestmark = pytest.mark.as_used

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def keep_jax_settings() -> Iterator[None]:
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("data") / "ball")


def options(data: Path, run: Path, *more: str) -> list[str]:
    return [*TINY, "--data", str(data), "--run-dir", str(run), *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scene_folder: Path) -> Path:
    """A whole training with all that belongs to it. Do not change it: copy it."""
    run = tmp_path_factory.mktemp("runs") / "ball"
    assert cli.train(options(scene_folder, run, "--validate-every", "0.34")) == 0
    return run


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# ---------------------------------------------------------------------------------------------
# What a training leaves
# ---------------------------------------------------------------------------------------------


def test_metrics_have_every_key(trained: Path, scene_folder: Path) -> None:
    values = json.loads((trained / "metrics.json").read_text())
    assert set(values) == {
        "test", "seconds", "steps", "devices", "rays_per_second", "samples_per_second",
        "validations",
        "peak_memory_bytes", "background", "resolution", "dataset", "hardware", "versions",
    }  # fmt: skip
    assert values["devices"] == 1
    seconds = values["seconds"]
    assert set(seconds) == {
        "startup", "first_step", "compile", "train", "validate", "evaluate", "total"
    }  # fmt: skip
    assert all(isinstance(s, float) and s > 0 for s in seconds.values())
    parts = [seconds[k] for k in ("compile", "train", "validate", "evaluate")]
    assert sum(parts) <= seconds["total"] + 0.01
    assert seconds["startup"] < seconds["first_step"] < seconds["total"]
    validations = values["validations"]
    assert [set(v) for v in validations] == [{"step", "seconds", "psnr"}] * 2
    times = [v["seconds"] for v in validations]
    assert seconds["first_step"] < times[0] < times[1] < seconds["total"]
    assert set(values["test"]) == {"psnr", "ssim", "per_image"}
    per_image = values["test"]["per_image"]
    assert [set(item) for item in per_image] == [{"name", "psnr", "ssim"}] * VIEWS["test"]
    assert [item["name"] for item in per_image] == ["r_0", "r_1"]
    assert values["test"]["psnr"] == pytest.approx(np.mean([i["psnr"] for i in per_image]))
    assert values["test"]["ssim"] == pytest.approx(np.mean([i["ssim"] for i in per_image]))
    assert values["steps"] == 24
    assert values["rays_per_second"] > 0
    assert values["samples_per_second"] > values["rays_per_second"]
    assert values["peak_memory_bytes"] > 1e7
    assert values["background"] == "white"
    assert values["resolution"] == [SIZE, SIZE]
    assert values["dataset"] == "ball"
    assert "CPU" in values["hardware"]
    assert {"python", "jax", "jaxlib", "optax", "numpy"} <= set(values["versions"])
    assert values["versions"]["jax"] == jax.__version__


def test_psnr_is_the_mean_over_views_of_the_clipped_rendering(trained: Path) -> None:
    run = runs.open_run(trained)
    split = make_scene().splits["test"]
    expected = []
    render = jax.jit(methods.render_rays, static_argnums=(0, 1, 2))
    for index, rgba in enumerate(split.images):
        rays = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), image_rays(split.cameras, index, 2.0, 6.0)
        )
        rendering = render(
            run.config.field, run.stage, 8192, run.state.params, run.state.grid, rays, jnp.ones(3)
        )
        rgb = np.clip(np.asarray(rendering.rgb, np.float64).reshape(SIZE, SIZE, 3), 0, 1)
        values = rgba.astype(np.float64) / 255
        truth = values[..., :3] * values[..., 3:] + 1 - values[..., 3:]
        expected.append(-10 * np.log10(np.mean((rgb - truth) ** 2)))
    found = json.loads((trained / "metrics.json").read_text())["test"]
    assert [i["psnr"] for i in found["per_image"]] == pytest.approx(expected, abs=1e-3)
    assert found["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)


def test_geometry_is_exported_where_it_is_said(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--run", str(own_run), "--views", "2"]
    mesh = [*run, "--format", "mesh", "--resolution", "12", "--level", "0.001", "--keep-hidden"]
    assert cli.export(mesh) == 0
    assert (own_run / "mesh.glb").read_bytes()[:4] == b"glTF"
    assert "vertices" in capsys.readouterr().out
    assert cli.export([*mesh, "--output", str(tmp_path / "mesh.stl")]) == 2
    assert ".glb, .ply or .obj" in capsys.readouterr().err
    assert cli.export([*mesh, "--level", "0"]) == 2
    assert "--level is 0: give a number between 0 and 1" in capsys.readouterr().err
    assert cli.export([*mesh, "--level", "0.9999"]) == 2
    assert "Nothing is as opaque" in capsys.readouterr().err


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(trained), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_the_scalars(trained: Path, events: EventAccumulator) -> None:
    last = {}
    steps = [s.step for s in events.Scalars("train/loss")]
    # The first dispatch is of one step, the others are of 4 at most, fewer if these take long.
    assert steps[0] == 1 and steps[-1] == 24
    assert all(0 < later - step <= 4 for step, later in itertools.pairwise(steps))
    assert {6, 12} <= set(steps), "dispatches end at growths"
    for tag in (
        "train/loss", "train/psnr", "train/grad_norm", "train/opacity", "train/dropped_rays",
        "train/gradient_norm_grid", "train/gradient_norm_network",
        "learning_rate/grid", "learning_rate/network", "speed/rays_per_second",
        "speed/samples_per_second", "machine/memory_gib", "machine/peak_memory_gib",
    ):  # fmt: skip
        scalars = events.Scalars(tag)
        assert [s.step for s in scalars] == steps, tag
        assert all(np.isfinite(s.value) for s in scalars), tag
        last[tag] = scalars[-1].value
    assert last["learning_rate/grid"] == pytest.approx(0.06 * 0.05, rel=1e-4)
    assert last["learning_rate/network"] == pytest.approx(4e-3 * 0.05, rel=1e-4)
    assert last["train/grad_norm"] > 0
    assert last["machine/peak_memory_gib"] >= 0.99 * last["machine/memory_gib"] > 0.01
    # 0.34 of 24 steps is 8.16: validated with the first dispatches that end past 8.16 and 16.32.
    validated = [next(step for step in steps if step > due) for due in (8.16, 16.32)]
    assert [s.step for s in events.Scalars("val/psnr")] == validated
    assert [s.step for s in events.Scalars("val/ssim")] == validated
    validations = json.loads((trained / "metrics.json").read_text())["validations"]
    assert [v["step"] for v in validations] == validated
    assert [s.step for s in events.Scalars("test/psnr")] == [24]


def test_tensorboard_scalars_are_those_of_the_metrics(
    trained: Path, events: EventAccumulator
) -> None:
    test = json.loads((trained / "metrics.json").read_text())["test"]
    assert events.Scalars("test/psnr")[0].value == pytest.approx(test["psnr"], rel=1e-5)
    assert events.Scalars("test/ssim")[0].value == pytest.approx(test["ssim"], rel=1e-5)


@pytest.mark.parametrize("name", ["test/view/r_0", "test/view/r_1", "val/view/r_0"])
def test_tensorboard_has_the_images(trained: Path, events: EventAccumulator, name: str) -> None:
    split, index = name.split("/view/r_")
    sheets = [iio.imread(image.encoded_image_string) for image in events.Images(name)]
    assert len(sheets) == (2 if split == "val" else 1)
    # Of each picture's pixels one, from below its caption on.
    factor = math.ceil(summaries.LEAST_WIDTH / SIZE)
    side = factor * SIZE
    head = (sheets[-1].shape[0] - summaries.GAP) // 2 - side
    first, second = (
        sheets[-1][head : head + side : factor, left : left + side : factor]
        for left in (0, side + summaries.GAP)
    )
    first = np.concatenate([first, second], axis=1)
    values = make_scene().splits[split].images[int(index)].astype(np.float64) / 255
    truth = values[..., :3] * values[..., 3:] + 1 - values[..., 3:]
    assert np.abs(first[:, :SIZE] / 255.0 - truth).max() < 0.01
    if split == "test":
        scored = json.loads((trained / "metrics.json").read_text())["test"]["per_image"]
        psnr = -10 * np.log10(np.mean((first[:, SIZE:] / 255.0 - truth) ** 2))
        assert psnr == pytest.approx(scored[int(index)]["psnr"], abs=0.1)


def test_tensorboard_has_the_orbit_and_the_settings(
    trained: Path, events: EventAccumulator
) -> None:
    (orbit,) = events.Images("video/orbit")
    frames = iio.imread(orbit.encoded_image_string, index=None, extension=".gif")
    assert frames.shape == (3, 17, 17, 3)
    assert orbit.step == 24
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("config")]
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert '"batch_samples": 4096' in text


def test_every_tag_is_in_the_table_and_the_other_way_round(events: EventAccumulator) -> None:
    written = {tag for kind in ("scalars", "images", "histograms", "tensors")
               for tag in events.Tags()[kind]}  # fmt: skip
    written = {tag.removesuffix("/text_summary") for tag in written}
    table = (ROOT / "docs/howto/logs.md").read_text()
    tags = re.findall(r"^\| `([^`]+)` \| (?:scalar|image|histogram|text) \|", table, re.MULTILINE)
    patterns = {tag: re.sub(r"GROUP|PATH|NAME|N(?=_)", r"[\\w/.-]+", tag) for tag in tags}
    missing = {tag for tag in written if not any(re.fullmatch(p, tag) for p in patterns.values())}
    assert not missing, "docs/howto/logs.md lacks them"
    # What only an accelerator, a backend or weights of LPIPS give, and what takes half a second.
    rare = ("accelerator", "device", "lpips", "cpu_percent")
    never = {
        tag
        for tag, pattern in patterns.items()
        if not any(word in tag for word in rare)
        and not any(re.fullmatch(pattern, found) for found in written)
    }
    assert not never, "nothing writes them"


def test_the_run_is_a_row_of_the_table_of_hyper_parameters(
    trained: Path, events: EventAccumulator
) -> None:
    contents = events.PluginTagToContent("hparams")
    start = hparams.parse_session_start_info_plugin_data(contents[hparams.SESSION_START_INFO_TAG])
    assert start.hparams["dataset"].string_value == "ball"
    assert start.hparams["steps"].number_value == 24.0
    assert start.hparams["field.kind"].string_value == "tensorf"
    experiment = hparams.parse_experiment_plugin_data(contents[hparams.EXPERIMENT_TAG])
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == ["test/psnr", "test/ssim", "speed/train_seconds"]
    assert set(metrics) <= set(events.Tags()["scalars"])
    seconds = json.loads((trained / "metrics.json").read_text())["seconds"]
    trained_for = events.Scalars("speed/train_seconds")[0].value
    assert trained_for == pytest.approx(seconds["train"] + seconds["compile"], abs=0.01)
    columns = {info.name for info in experiment.hparam_infos}
    assert set(start.hparams) <= columns
    # Those of other fields have their place in the same table.
    assert {"field.num_subdivisions", "field.log2_hashmap_size", "field.skip"} & columns
    shown = {info.name for info in experiment.hparam_infos if info.differs}
    assert shown == set(summaries.LEADING)


def test_the_text_log_tells_the_training_in_whole_lines(trained: Path) -> None:
    text = (trained / "train.log").read_text()
    assert text.endswith("\n")
    moments, sentences = zip(*(line.split("  ", 1) for line in text.splitlines()), strict=True)
    assert list(moments) == sorted(moments)
    assert sentences[0].startswith("begun at step 0 of 24: tensorf on ball; CPU")
    score = json.loads((trained / "metrics.json").read_text())
    for entry in score["validations"]:
        wanted = f"step {entry['step']}: validation PSNR {entry['psnr']:.2f} dB on 2 views"
        assert wanted in sentences
    for line in (trained / "log.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "train/loss" in values:
            start = f"step {values['step']} of 24: loss {values['train/loss']:.5f}, PSNR "
            assert len([s for s in sentences if s.startswith(start)]) == 1
    assert [s for s in sentences if re.match(r"step 12: .* rays a step", s)]
    assert f"Test: PSNR {score['test']['psnr']:.2f} dB" in sentences[-2]
    assert sentences[-1].startswith("Video: ")


def test_the_video_has_its_frames(trained: Path) -> None:
    frames = read_mp4(trained / "orbit.mp4")
    assert frames.shape == (3, 16, 16, 3)  # 17 is odd
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 0.5


def test_config_is_kept_and_nothing_else_lies_around(trained: Path) -> None:
    stored = runs.read_config(trained)
    assert stored.steps == 24 and stored.run_dir == trained
    names = {p.name.split(".")[0] if p.name.startswith("events") else p.name
             for p in trained.iterdir()}  # fmt: skip
    files = {"config.json", "metrics.json", "orbit.mp4", "log.jsonl", "train.log"}
    assert names == files | {"checkpoints", "events"}
    steps = {p.name for p in (trained / "checkpoints").iterdir() if p.is_dir()}
    validations = json.loads((trained / "metrics.json").read_text())["validations"]
    assert steps <= {"24", *(str(v["step"]) for v in validations)}
    assert "24" in steps and len(steps) >= 2


# ---------------------------------------------------------------------------------------------
# eval and render
# ---------------------------------------------------------------------------------------------


def test_eval_repeats_the_figures_of_training(own_run: Path) -> None:
    before = json.loads((own_run / "metrics.json").read_text())
    assert cli.main(["eval", str(own_run)]) == 0
    after = json.loads((own_run / "metrics.json").read_text())
    assert after["test"] == before["test"]
    for key in ("steps", "background", "resolution", "dataset", "hardware", "versions"):
        assert after[key] == before[key], key
    assert set(after) == set(before) and set(after["seconds"]) == set(before["seconds"])


def test_eval_does_not_forget_how_fast_training_was(own_run: Path) -> None:
    before = json.loads((own_run / "metrics.json").read_text())
    assert cli.main(["eval", str(own_run)]) == 0
    after = json.loads((own_run / "metrics.json").read_text())
    assert after["rays_per_second"] == pytest.approx(before["rays_per_second"], rel=0.2)


def test_eval_of_another_split_background_and_size(own_run: Path) -> None:
    before = (own_run / "metrics.json").read_bytes()
    arguments = ["--split", "val", "--background", "black", "--downscale", "2"]
    assert cli.evaluate([str(own_run), *arguments]) == 0
    assert (own_run / "metrics.json").read_bytes() == before
    values = json.loads((own_run / "metrics_val.json").read_text())
    assert values["background"] == "black" and values["resolution"] == [SIZE // 2, SIZE // 2]
    assert len(values["val"]["per_image"]) == VIEWS["val"]


def test_scoring_again_keeps_what_was_measured_of_the_training_and_its_views(own_run: Path) -> None:
    config = json.loads((own_run / "config.json").read_text())
    config["test_every"] = 2
    (own_run / "config.json").write_text(json.dumps(config))
    before = json.loads((own_run / "metrics.json").read_text())
    assert cli.evaluate([str(own_run)]) == 0
    after = json.loads((own_run / "metrics.json").read_text())
    assert len(after["test"]["per_image"]) == -(-VIEWS["test"] // 2)
    assert after["peak_memory_bytes"] == before["peak_memory_bytes"]
    changed = {key for key in before["seconds"] if after["seconds"][key] != before["seconds"][key]}
    assert changed <= {"evaluate"} and after["seconds"].keys() == before["seconds"].keys()
    assert cli.evaluate([str(own_run), "--every", "1"]) == 0
    whole = json.loads((own_run / "metrics.json").read_text())
    assert len(whole["test"]["per_image"]) == VIEWS["test"]


def test_render_writes_videos_and_frames_of_every_channel(own_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "orbit"
    arguments = ["--frames", "3", "--size", "18", "--output", str(output), "--fps", "10"]
    assert cli.render([str(own_run), *arguments]) == 0
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


def test_render_refuses_an_output_with_something_in_it(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    assert cli.render([str(own_run), "--output", str(output), "--frames", "1"]) == 2
    assert_one_sentence(capsys, str(output), "--output")
    assert [p.name for p in output.iterdir()] == ["precious.txt"]


def test_render_numbers_its_folders_and_leaves_out_channels(own_run: Path) -> None:
    arguments = ["--run", str(own_run), "--frames", "1", "--size", "8", "--channels", "depth"]
    for name in ("orbit", "orbit-2"):
        assert cli.render(arguments) == 0
        assert sorted(p.name for p in (own_run / name).iterdir()) == [
            "depth", "depth.gif", "depth.mp4", "render.json",
        ]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# What can be wrong
# ---------------------------------------------------------------------------------------------


def assert_one_sentence(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and lines[0].endswith(".")
    for word in words:
        assert word in lines[0], lines[0]


def change_frames(folder: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / f"transforms_{split}.json"
    transforms = json.loads(path.read_text())
    change(transforms)
    path.write_text(json.dumps(transforms))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def write_deep_png(path: Path) -> None:
    """16-bit RGB by hand, as Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(6 * SIZE)) * SIZE)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def spoil_pose(transforms: dict[str, Any]) -> None:
    transforms["frames"][1]["transform_matrix"][0][3] = float("nan")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing folder": (shutil.rmtree, ""),
    "missing split": (lambda f: (f / "transforms_train.json").unlink(), " transforms_train.json"),
    "empty split": (
        lambda f: change_frames(f, "train", lambda t: t["frames"].clear()),
        "transforms_train.json",
    ),
    "pose that is no number": (
        lambda f: change_frames(f, "train", spoil_pose),
        "transforms_train.json",
    ),
    "JSON cut off": (lambda f: truncate(f / "transforms_train.json"), "transforms_train.json"),
    "missing picture": (lambda f: (f / "train/r_3.png").unlink(), "train/r_3.png"),
    "truncated picture": (lambda f: truncate(f / "train/r_3.png"), "train/r_3.png"),
    "picture of another size": (
        lambda f: Image.new("RGBA", (8, 16)).save(f / "train/r_3.png"),
        "train/r_3.png",
    ),
    "grey picture": (
        lambda f: Image.new("L", (SIZE, SIZE)).save(f / "train/r_3.png"),
        "train/r_3.png",
    ),
    "16-bit picture": (lambda f: write_deep_png(f / "train/r_3.png"), "train/r_3.png"),
    "truncated picture of val": (lambda f: truncate(f / "val/r_1.png"), "val/r_1.png"),
    "missing test split": (
        lambda f: (f / "transforms_test.json").unlink(),
        " transforms_test.json",
    ),
    "empty test split": (
        lambda f: change_frames(f, "test", lambda t: t["frames"].clear()),
        "transforms_test.json",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_data_end_in_one_sentence_before_there_is_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    spoil, name = FAULTS[fault]
    folder = write_scene(tmp_path / "ball")
    spoil(folder)
    run = tmp_path / "run"
    assert cli.train(options(folder, run, "--steps", "1", "--validate-every", "0.5")) == 2
    # A file that is not there is named after its folder, with a space between.
    words = [str(folder), name] if name.startswith(" ") else [str(folder / name)]
    assert_one_sentence(capsys, *words)
    assert not run.exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"ball"}


def test_a_run_folder_with_something_in_it_is_not_touched(
    tmp_path: Path, scene_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("mine")
    assert cli.train(options(scene_folder, tmp_path)) == 2
    assert_one_sentence(capsys, str(tmp_path), "--run-dir", "--resume")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "mine"


@pytest.mark.parametrize("below", ["file/run", "/proc/run"])
def test_a_run_folder_that_cannot_be_written_is_named(
    tmp_path: Path, scene_folder: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "file").write_text("a file")
    assert cli.train(options(scene_folder, tmp_path / below)) == 2
    assert_one_sentence(capsys, str(tmp_path / below), "--run-dir")


def test_render_checks_its_output_folder(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file")
    assert cli.render([str(own_run), "--output", str(tmp_path / "file/orbit")]) == 2
    assert_one_sentence(capsys, str(tmp_path / "file/orbit"), "--output")


@pytest.mark.parametrize(
    ("key", "value"),
    [("density_components", 3), ("feature_dim", 5), ("width", 9), ("layers", 3)],
)
@pytest.mark.parametrize("command", ["resume", "render", "eval"])
def test_a_checkpoint_of_another_configuration_is_refused(
    own_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    key: str,
    value: int,
) -> None:
    config = json.loads((own_run / "config.json").read_text())
    assert config["field"][key] != value
    config["field"][key] = value
    (own_run / "config.json").write_text(json.dumps(config))
    metrics = (own_run / "metrics.json").read_bytes()
    steps = sorted(p.name for p in (own_run / "checkpoints").iterdir())
    if command == "resume":
        code = cli.train(["--resume", "--run-dir", str(own_run)])
    elif command == "render":
        code = cli.render([str(own_run), "--output", str(tmp_path / "out")])
    else:
        code = cli.evaluate([str(own_run)])
    assert code == 2
    assert_one_sentence(capsys, str(own_run / "checkpoints"), "step 24")
    assert not (tmp_path / "out").exists()
    assert (own_run / "metrics.json").read_bytes() == metrics
    assert sorted(p.name for p in (own_run / "checkpoints").iterdir()) == steps


def test_a_config_that_is_no_config_is_named(
    own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_run / "config.json"
    path.write_text(path.read_text().replace('"batch_rays"', '"batch_arrays"'))
    assert cli.render([str(own_run)]) == 2
    assert_one_sentence(capsys, str(path), "batch_arrays")


def test_resuming_with_other_pictures_is_refused(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_scene(tmp_path / "ball")
    pixels = iio.imread(folder / "train/r_0.png")
    pixels[3, 3] = (1, 2, 3, 255)
    iio.imwrite(folder / "train/r_0.png", pixels)
    assert cli.train(["--resume", "--run-dir", str(own_run), "--data", str(folder)]) == 2
    assert_one_sentence(capsys, str(folder), str(own_run), "--data")


def test_resuming_a_run_that_is_done_scores_it_again(
    own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((own_run / "metrics.json").read_text())
    assert cli.train(["--resume", "--run-dir", str(own_run), "--video.frames", "0"]) == 0
    assert json.loads((own_run / "metrics.json").read_text())["test"] == before["test"]
    assert "at step 24 of 24" in capsys.readouterr().out
    notes = (own_run / "train.log").read_text().splitlines()
    assert len([line for line in notes if "resumed at step 24 of 24" in line]) == 1
    assert len([line for line in notes if "begun at step 0" in line]) == 1
    assert "Test: " in notes[-1]


def test_a_training_that_diverges_ends_in_one_sentence(
    tmp_path: Path, scene_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["--optimizer.grid-lr", "1e30", "--optimizer.mlp-lr", "1e30"]
    arguments = options(scene_folder, tmp_path / "run", *rates, "--validate-every", "0")
    assert cli.train([*arguments, "--optimizer.clip-norm", "1e30"]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if "error: " in line]
    assert "--optimizer.grid-lr" in line
    last = (tmp_path / "run/train.log").read_text().splitlines()[-1]
    assert last.partition("  ")[2] == line[line.index("error: ") :]


# ---------------------------------------------------------------------------------------------
# Signals, in processes of their own
# ---------------------------------------------------------------------------------------------


class Training:
    """train_lego.py in a process of its own."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "stdout.txt", folder / "stderr.txt"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "train_lego.py"), *arguments],
                stdout=out, stderr=err, cwd=folder, env=environment,
            )  # fmt: skip

    def wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.005)

    def finish(self) -> tuple[int, str, str]:
        try:
            code = self.process.wait(timeout=300)
        finally:
            self.process.kill()
        return code, self.out.read_text(), self.err.read_text()


# Long enough to be caught on its way, and the same in every dispatch.
LONG = ["--steps", "400", "--steps-per-dispatch", "2", "--validate-every", "0"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, scene_folder: Path) -> runs.Run:
    run = tmp_path_factory.mktemp("whole") / "run"
    arguments = options(scene_folder, run, *LONG, "--video.frames", "0")
    code, _, errors = Training(run.parent / "logs", arguments).finish()
    assert code == 0, errors
    return runs.open_run(run)


def stages_begun(training: Training) -> int:
    return training.out.read_text().count(" rays a step, ")


def assert_resumes_to_the_same_bits(tmp_path: Path, run: Path, uninterrupted: runs.Run) -> None:
    code, out, errors = Training(tmp_path / "second", ["--resume", "--run-dir", str(run)]).finish()
    assert code == 0, errors
    assert "Resuming" in out and "Traceback" not in errors
    resumed = runs.open_run(run)
    assert resumed.stage == uninterrupted.stage
    assert differing_leaves(resumed.state, uninterrupted.state) == []
    before = json.loads((uninterrupted.folder / "metrics.json").read_text())
    assert json.loads((run / "metrics.json").read_text())["test"] == before["test"]
    # Whatever ended it, the logs have whole lines and were added to.
    notes = (run / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in notes)
    assert [note.split()[2] for note in notes if " on ball; " in note] == ["begun", "resumed"]
    scalars = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert scalars[-1]["step"] == 400
    # In TensorBoard no step is there twice.
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    steps = [scalar.step for scalar in events.Scalars("train/loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stages"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_saves_and_the_run_can_be_resumed(
    tmp_path: Path,
    scene_folder: Path,
    uninterrupted: runs.Run,
    number: signal.Signals,
    stages: int,
) -> None:
    run = tmp_path / "run"
    arguments = options(scene_folder, run, *LONG, "--video.frames", "0")
    first = Training(tmp_path / "first", [*arguments, "--checkpoint-seconds", "1000"])
    first.wait_for(lambda: stages_begun(first) >= stages)
    first.process.send_signal(number)
    code, out, errors = first.finish()
    assert code == 128 + number, errors
    assert "Traceback" not in errors
    assert f"--resume --run-dir {run}" in out
    stopped = runs.open_run(run)
    assert 0 < int(stopped.state.step) < 400
    assert f"Stopped at step {int(stopped.state.step)} of 400" in out
    assert not (run / "metrics.json").exists()
    assert_resumes_to_the_same_bits(tmp_path, run, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_resumes_from_its_last_checkpoint(
    tmp_path: Path, scene_folder: Path, uninterrupted: runs.Run, seed: int
) -> None:
    run = tmp_path / "run"
    arguments = options(scene_folder, run, *LONG, "--video.frames", "0")
    first = Training(tmp_path / "first", [*arguments, "--checkpoint-seconds", "0.02"])
    checkpoints = run / "checkpoints"
    first.wait_for(lambda: any(p.name.isdigit() for p in checkpoints.glob("*")))
    time.sleep(random.Random(seed).uniform(0.0, 0.5))
    first.process.kill()
    code, _, _ = first.finish()
    assert code == -signal.SIGKILL
    assert 0 < int(runs.open_run(run).state.step) < 400
    assert_resumes_to_the_same_bits(tmp_path, run, uninterrupted)


@pytest.mark.slow
def test_the_built_in_scene_trains_to_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXRF_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    arguments = (
        "--preset tensorf-small --steps 250 --bricks.size 40 --bricks.train-views 40 "
        "--bricks.test-views 4 --video.frames 0 --validate-every 0 --field.initial-voxels 32768 "
        "--field.final-voxels 110592 --batch-samples 32768"
    )
    assert cli.train(arguments.split()) == 0
    (run,) = (tmp_path / "runs").iterdir()
    values = json.loads((run / "metrics.json").read_text())
    assert values["dataset"] == "bricks" and values["resolution"] == [40, 40]
    assert values["test"]["psnr"] > 18.0


def test_hardware_and_versions_are_described() -> None:
    assert commands.describe_hardware().count("\n") == 0
    assert "CPU cores" in commands.describe_hardware()
    assert all(isinstance(v, str) and v for v in commands.describe_versions().values())


def test_every_second_picture_is_scored_on_demand(own_run: Path) -> None:
    assert cli.evaluate(["--run", str(own_run), "--split", "train", "--every", "4"]) == 0
    values = json.loads((own_run / "metrics_train.json").read_text())["train"]
    assert [item["name"] for item in values["per_image"]] == ["r_0", "r_4"]
    assert values["psnr"] == pytest.approx(np.mean([i["psnr"] for i in values["per_image"]]))


# ---------------------------------------------------------------------------------------------
# --budget
# ---------------------------------------------------------------------------------------------


def test_a_budget_that_ends_before_training_begins_is_refused(
    scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(scene_folder, tmp_path / "run", "--budget", "0.5")
    assert cli.train(arguments) == 2
    assert "--budget 0.5 is too short here: starting took" in capsys.readouterr().err


@pytest.mark.slow
def test_training_is_done_within_its_budget(tmp_path: Path, scene_folder: Path) -> None:
    """However long compilation takes; once programs are cached, as it was planned."""
    for name, budget in (("first", 45.0), ("again", 25.0)):
        arguments = ["--preset", "voxels-small", "--data", str(scene_folder)]
        arguments += ["--batch-rays", "256", "--batch-samples", "8192", "--budget", f"{budget}"]
        arguments += ["--field.initial-resolution", "16", "--field.num-subdivisions", "1"]
        arguments += ["--run-dir", str(tmp_path / name), "--video.frames", "0"]
        code = f"from jaxrf import cli; raise SystemExit(cli.train({arguments!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        values = json.loads((tmp_path / name / "metrics.json").read_text())
        seconds = values["seconds"]
        assert seconds["total"] - seconds["evaluate"] < budget + 1.0
    assert seconds["total"] - seconds["evaluate"] > 20.0
    config = runs.read_config(tmp_path / "again")
    assert config.budget == 25.0 and len(config.knots) >= 2
    assert 0.9 * config.steps < values["steps"] <= config.steps


@pytest.mark.parametrize("size", [(25, 40), (31, 31), (None, None)])
def test_lpips_is_computed_or_it_is_said_why_not(
    size: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {"1": 0, "2": 3, "3": 6, "4": 8, "5": 10}
    arrays = {
        f"net.slice{part}.{layer}.{kind}": np.zeros(1)
        for part, layer in layers.items()
        for kind in ("weight", "bias")
    } | {f"lin{number}.model.1.weight": np.zeros(1) for number in range(5)}
    np.savez(tmp_path / "alex.npz", **arrays)
    path = tmp_path / "alex.npz" if size[0] else None
    config = tiny_tensorf(lpips=path)
    weights = commands._load_lpips(config, size if size[0] else (100, 100))
    said = capsys.readouterr().out
    assert (weights is not None) == (size == (31, 31)) == (said == "")
    if size[0] == 25:
        assert "pictures of 31 pixels or more along each side, these have 25x40" in said
    elif size[0] is None:
        assert "it needs its weights, --lpips FILE" in said


def test_every_layout_is_validated_on_if_it_has_views_for_it(tmp_path: Path) -> None:
    config = configs.make_preset("nerf-small")
    held_out = commands._load_val(write_llff(tmp_path / "capture"), config)
    assert held_out is not None and held_out.name == "val" and len(held_out) == 1
    folder = write_scene(tmp_path / "ball")
    assert commands._load_val(folder, dataclasses.replace(config, validate_every=0.0)) is None
    (folder / "transforms_val.json").write_text("{")
    with pytest.raises(InputError, match=r"transforms_val\.json is not whole JSON"):
        commands._load_val(folder, config)
    (folder / "transforms_val.json").unlink()
    assert commands._load_val(folder, config) is None


def test_a_background_that_is_not_that_of_the_pictures_is_doubted() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    images = np.zeros((2, 8, 8, 4), np.uint8)
    images[..., 3] = 255
    images[:, 2:6, 2:6, 0] = 200
    black = dataclasses.replace(scene, splits={"train": dataclasses.replace(split, images=images)})
    doubt = commands._doubt_background(tiny_nerf(background="white"), black)
    assert doubt is not None and "--background black spares that." in doubt
    for background in ("black", "random"):
        assert commands._doubt_background(tiny_nerf(background=background), black) is None
    # Transparent pictures are before any background.
    assert commands._doubt_background(tiny_nerf(background="white"), scene) is None

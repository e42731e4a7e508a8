"""A training from start to end: the files that it leaves, resuming, divergence, budgets."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_one_sentence, training_arguments
from scenes import SIZE, VIEWS, make_scene, read_mp4, write_scene
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from jaxrf.cameras.base import image_rays
from jaxrf.cli import main as cli
from jaxrf.models.base import RenderSpec, render_rays
from jaxrf.training import runs, summaries

pytestmark = pytest.mark.as_used

ROOT = Path(__file__).resolve().parents[2]


def test_metrics_json_has_every_key(trained: Path, scene_folder: Path) -> None:
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
    spec = RenderSpec(run.config.model, run.stage, run.config.ray_convention, 8192)
    render = jax.jit(render_rays, static_argnums=0)
    for index, rgba in enumerate(split.images):
        rays = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), image_rays(split.cameras, index, 2.0, 6.0)
        )
        rendering = render(spec, run.state.params, run.state.grid, rays, jnp.ones(3))
        rgb = np.clip(np.asarray(rendering.rgb, np.float64).reshape(SIZE, SIZE, 3), 0, 1)
        values = rgba.astype(np.float64) / 255
        truth = values[..., :3] * values[..., 3:] + 1 - values[..., 3:]
        expected.append(-10 * np.log10(np.mean((rgb - truth) ** 2)))
    test = json.loads((trained / "metrics.json").read_text())["test"]
    assert [i["psnr"] for i in test["per_image"]] == pytest.approx(expected, abs=1e-3)
    assert test["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(trained), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_every_scalar_at_every_dispatch(
    trained: Path, events: EventAccumulator
) -> None:
    last = {}
    steps = [s.step for s in events.Scalars("train/loss")]
    # The first dispatch has one step, later ones at most 4, and fewer if steps are slow.
    assert steps[0] == 1 and steps[-1] == 24
    assert all(0 < later - step <= 4 for step, later in itertools.pairwise(steps))
    assert {6, 12} <= set(steps), "dispatches end at growths"
    for tag in (
        "train/loss", "train/psnr", "train/grad_norm", "train/opacity", "train/dropped_rays",
        "train/grad_norm_grid", "train/grad_norm_mlp",
        "learning_rate/grid", "learning_rate/mlp", "speed/rays_per_second",
        "speed/samples_per_second", "machine/memory_gib", "machine/peak_memory_gib",
    ):  # fmt: skip
        scalars = events.Scalars(tag)
        assert [s.step for s in scalars] == steps, tag
        assert all(np.isfinite(s.value) for s in scalars), tag
        last[tag] = scalars[-1].value
    assert last["learning_rate/grid"] == pytest.approx(0.06 * 0.05, rel=1e-4)
    assert last["learning_rate/mlp"] == pytest.approx(4e-3 * 0.05, rel=1e-4)
    assert last["train/grad_norm"] > 0
    assert last["machine/peak_memory_gib"] >= 0.99 * last["machine/memory_gib"] > 0.01
    # 0.34 of 24 steps is 8.16: validations follow the first dispatches past 8.16 and 16.32.
    validated = [next(step for step in steps if step > due) for due in (8.16, 16.32)]
    assert [s.step for s in events.Scalars("val/psnr")] == validated
    assert [s.step for s in events.Scalars("val/ssim")] == validated
    validations = json.loads((trained / "metrics.json").read_text())["validations"]
    assert [v["step"] for v in validations] == validated
    assert [s.step for s in events.Scalars("test/psnr")] == [24]


def test_tensorboard_scalars_equal_metrics_json(trained: Path, events: EventAccumulator) -> None:
    test = json.loads((trained / "metrics.json").read_text())["test"]
    assert events.Scalars("test/psnr")[0].value == pytest.approx(test["psnr"], rel=1e-5)
    assert events.Scalars("test/ssim")[0].value == pytest.approx(test["ssim"], rel=1e-5)


@pytest.mark.parametrize("name", ["test/view/r_0", "test/view/r_1", "val/view/r_0"])
def test_tensorboard_images_show_truth_and_rendering(
    trained: Path, events: EventAccumulator, name: str
) -> None:
    split, index = name.split("/view/r_")
    sheets = [iio.imread(image.encoded_image_string) for image in events.Images(name)]
    assert len(sheets) == (2 if split == "val" else 1)
    # Images are enlarged by repeating pixels, below a caption: take one pixel of each block.
    factor = math.ceil(summaries.MIN_WIDTH / SIZE)
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


def test_tensorboard_has_the_orbit_and_the_config(trained: Path, events: EventAccumulator) -> None:
    (orbit,) = events.Images("video/orbit")
    frames = iio.imread(orbit.encoded_image_string, index=None, extension=".gif")
    assert frames.shape == (3, 17, 17, 3)
    assert orbit.step == 24
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("config")]
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert '"batch_samples": 4096' in text


def test_docs_list_exactly_the_tags_that_are_written(events: EventAccumulator) -> None:
    written = {tag for kind in ("scalars", "images", "histograms", "tensors")
               for tag in events.Tags()[kind]}  # fmt: skip
    written = {tag.removesuffix("/text_summary") for tag in written}
    table = (ROOT / "docs/howto/logs.md").read_text()
    tags = re.findall(r"^\| `([^`]+)` \| (?:scalar|image|histogram|text) \|", table, re.MULTILINE)
    patterns = {tag: re.sub(r"GROUP|PATH|NAME|N(?=_)", r"[\\w/.-]+", tag) for tag in tags}
    missing = {tag for tag in written if not any(re.fullmatch(p, tag) for p in patterns.values())}
    assert not missing, "docs/howto/logs.md lacks them"
    # Tags that need an accelerator, a backend, weights of LPIPS, or half a second of training.
    rare = ("accelerator", "device", "lpips", "cpu_percent")
    never = {
        tag
        for tag, pattern in patterns.items()
        if not any(word in tag for word in rare)
        and not any(re.fullmatch(pattern, name) for name in written)
    }
    assert not never, "nothing writes them"


def test_tensorboard_lists_the_hyper_parameters(trained: Path, events: EventAccumulator) -> None:
    contents = events.PluginTagToContent("hparams")
    start = hparams.parse_session_start_info_plugin_data(contents[hparams.SESSION_START_INFO_TAG])
    assert start.hparams["dataset"].string_value == "ball"
    assert start.hparams["num_steps"].number_value == 24.0
    assert start.hparams["field.type"].string_value == "tensorf"
    assert start.hparams["model.type"].string_value == "packed"
    experiment = hparams.parse_experiment_plugin_data(contents[hparams.EXPERIMENT_TAG])
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == ["test/psnr", "test/ssim", "speed/train_seconds"]
    assert set(metrics) <= set(events.Tags()["scalars"])
    seconds = json.loads((trained / "metrics.json").read_text())["seconds"]
    trained_for = events.Scalars("speed/train_seconds")[0].value
    assert trained_for == pytest.approx(seconds["train"] + seconds["compile"], abs=0.01)
    columns = {info.name for info in experiment.hparam_infos}
    assert set(start.hparams) <= columns
    # Options of other fields and models are columns of the same table.
    assert {"field.num_pyramid_levels", "model.num_fine_samples"} <= columns
    assert {"field.num_subdivisions", "field.log2_hashmap_size", "field.skip"} & columns
    visible = {info.name for info in experiment.hparam_infos if info.differs}
    assert visible == set(summaries.LEADING_COLUMNS)


def test_train_log_has_dispatches_validations_and_results(trained: Path) -> None:
    text = (trained / "train.log").read_text()
    assert text.endswith("\n")
    moments, sentences = zip(*(line.split("  ", 1) for line in text.splitlines()), strict=True)
    assert list(moments) == sorted(moments)
    assert sentences[0].startswith("begun at step 0 of 24: tensorf on ball; CPU")
    score = json.loads((trained / "metrics.json").read_text())
    for entry in score["validations"]:
        pattern = rf"step {entry['step']}: validation PSNR (\d+\.\d\d) dB on 2 views"
        (psnr,) = (match[1] for s in sentences if (match := re.fullmatch(pattern, s)))
        # metrics.json has three digits, of which the log rounds its two.
        assert float(psnr) == pytest.approx(entry["psnr"], abs=0.0055 + 1e-9)
    for line in (trained / "log.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "train/loss" in values:
            start = f"step {values['step']} of 24: loss {values['train/loss']:.5f}, training PSNR "
            assert len([s for s in sentences if s.startswith(start)]) == 1
    assert [s for s in sentences if re.match(r"step 12: .* rays a step", s)]
    assert f"Test: PSNR {score['test']['psnr']:.2f} dB" in sentences[-2]
    assert sentences[-1].startswith("Video: ")


def test_orbit_video_has_all_frames(trained: Path) -> None:
    frames = read_mp4(trained / "orbit.mp4")
    assert frames.shape == (3, 16, 16, 3)  # 17 is odd
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 0.5


def test_run_folder_has_exactly_the_documented_files(trained: Path) -> None:
    stored = runs.read_config(trained)
    assert stored.num_steps == 24 and stored.run_dir == trained
    names = {p.name.split(".")[0] if p.name.startswith("events") else p.name
             for p in trained.iterdir()}  # fmt: skip
    files = {"config.json", "metrics.json", "orbit.mp4", "log.jsonl", "train.log"}
    assert names == files | {"checkpoints", "events"}
    steps = {p.name for p in (trained / "checkpoints").iterdir() if p.is_dir()}
    validations = json.loads((trained / "metrics.json").read_text())["validations"]
    assert steps <= {"24", *(str(v["step"]) for v in validations)}
    assert "24" in steps and len(steps) >= 2


def test_resume_of_a_run_without_a_checkpoint_begins_it_again(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run_copy / "metrics.json").read_text())
    shutil.rmtree(run_copy / "checkpoints")
    half_written = run_copy / "checkpoints" / "4.orbax-checkpoint-tmp"
    half_written.mkdir(parents=True)
    arguments = ["--resume", "--run-dir", str(run_copy), "--video.frames", "0"]
    assert cli.run_command("train", arguments) == 0
    assert "was stopped before its first checkpoint: it begins again." in capsys.readouterr().out
    assert json.loads((run_copy / "metrics.json").read_text())["test"] == before["test"]
    assert not half_written.exists()
    events = EventAccumulator(str(run_copy), size_guidance={"scalars": 0})
    events.Reload()
    steps = [scalar.step for scalar in events.Scalars("train/loss")]
    assert steps == sorted(set(steps))


def test_resume_of_a_finished_run_scores_it_again(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run_copy / "metrics.json").read_text())
    assert (
        cli.run_command("train", ["--resume", "--run-dir", str(run_copy), "--video.frames", "0"])
        == 0
    )
    assert json.loads((run_copy / "metrics.json").read_text())["test"] == before["test"]
    assert "at step 24 of 24" in capsys.readouterr().out
    notes = (run_copy / "train.log").read_text().splitlines()
    assert len([line for line in notes if "resumed at step 24 of 24" in line]) == 1
    assert len([line for line in notes if "begun at step 0" in line]) == 1
    assert "Test: " in notes[-1]


def test_resume_refuses_other_training_images(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_scene(tmp_path / "ball")
    pixels = iio.imread(folder / "train/r_0.png")
    pixels[3, 3] = (1, 2, 3, 255)
    iio.imwrite(folder / "train/r_0.png", pixels)
    assert (
        cli.run_command("train", ["--resume", "--run-dir", str(run_copy), "--data", str(folder)])
        == 2
    )
    assert_one_sentence(capsys, str(folder), str(run_copy), "--data")


def test_a_diverging_training_ends_in_one_sentence(
    tmp_path: Path, scene_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["--optimizer.grid-lr", "1e30", "--optimizer.mlp-lr", "1e30"]
    arguments = training_arguments(scene_folder, tmp_path / "run", *rates, "--validate-every", "0")
    assert cli.run_command("train", [*arguments, "--optimizer.clip-norm", "1e30"]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if "error: " in line]
    assert "--optimizer.grid-lr" in line
    last = (tmp_path / "run/train.log").read_text().splitlines()[-1]
    assert last.partition("  ")[2] == line[line.index("error: ") :]


def test_a_budget_shorter_than_startup_is_refused(
    scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = training_arguments(scene_folder, tmp_path / "run", "--budget", "0.5")
    assert cli.run_command("train", arguments) == 2
    assert "--budget 0.5 is too short here: starting took" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_training_ends_within_its_budget(tmp_path: Path, scene_folder: Path) -> None:
    """Once with an empty compilation cache and once with a warm one, which leaves more steps."""
    for name, budget in (("first", 45.0), ("again", 25.0)):
        arguments = ["--preset", "voxels-small", "--data", str(scene_folder)]
        arguments += ["--batch-rays", "256", "--batch-samples", "8192", "--budget", f"{budget}"]
        arguments += ["--field.initial-resolution", "16", "--field.num-subdivisions", "1"]
        arguments += ["--run-dir", str(tmp_path / name), "--video.frames", "0"]
        command = [sys.executable, "-m", "jaxrf", "train", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        values = json.loads((tmp_path / name / "metrics.json").read_text())
        seconds = values["seconds"]
        assert seconds["total"] - seconds["evaluate"] < budget + 1.0
    assert seconds["total"] - seconds["evaluate"] > 20.0
    config = runs.read_config(tmp_path / "again")
    assert config.budget == 25.0 and len(config.schedule_knots) >= 2
    assert 0.9 * config.num_steps < values["steps"] <= config.num_steps


@pytest.mark.slow
def test_the_built_in_scene_trains_to_a_useful_psnr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXRF_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    arguments = (
        "--preset tensorf-small --num-steps 250 --synthetic-scene.size 40 "
        "--synthetic-scene.train-views 40 --synthetic-scene.test-views 4 --video.frames 0 "
        "--validate-every 0 --field.initial-voxels 32768 "
        "--field.final-voxels 110592 --batch-samples 32768"
    )
    assert cli.run_command("train", arguments.split()) == 0
    (run,) = (tmp_path / "runs").iterdir()
    values = json.loads((run / "metrics.json").read_text())
    assert values["dataset"] == "bricks" and values["resolution"] == [40, 40]
    assert values["test"]["psnr"] > 18.0

"""`jaxrf eval`: repeats the scores of training, or scores otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
from scenes import SIZE, VIEWS

from jaxrf.cli import main as cli

pytestmark = pytest.mark.as_used


def test_eval_repeats_the_metrics_of_training(run_copy: Path) -> None:
    before = json.loads((run_copy / "metrics.json").read_text())
    assert cli.main(["eval", str(run_copy)]) == 0
    after = json.loads((run_copy / "metrics.json").read_text())
    assert after["test"] == before["test"]
    for key in ("steps", "background", "resolution", "dataset", "hardware", "versions"):
        assert after[key] == before[key], key
    assert set(after) == set(before) and set(after["seconds"]) == set(before["seconds"])


def test_eval_keeps_the_speed_of_training(run_copy: Path) -> None:
    before = json.loads((run_copy / "metrics.json").read_text())
    assert cli.main(["eval", str(run_copy)]) == 0
    after = json.loads((run_copy / "metrics.json").read_text())
    assert after["rays_per_second"] == pytest.approx(before["rays_per_second"], rel=0.2)


def test_eval_scores_another_split_background_and_size(run_copy: Path) -> None:
    before = (run_copy / "metrics.json").read_bytes()
    arguments = ["--split", "val", "--background", "black", "--downscale", "2"]
    assert cli.run_command("eval", [str(run_copy), *arguments]) == 0
    assert (run_copy / "metrics.json").read_bytes() == before
    values = json.loads((run_copy / "metrics_val.json").read_text())
    assert values["background"] == "black" and values["resolution"] == [SIZE // 2, SIZE // 2]
    assert len(values["val"]["per_image"]) == VIEWS["val"]


def test_eval_keeps_training_metrics_and_test_every(run_copy: Path) -> None:
    config = json.loads((run_copy / "config.json").read_text())
    config["test_every"] = 2
    (run_copy / "config.json").write_text(json.dumps(config))
    before = json.loads((run_copy / "metrics.json").read_text())
    assert cli.run_command("eval", [str(run_copy)]) == 0
    after = json.loads((run_copy / "metrics.json").read_text())
    assert len(after["test"]["per_image"]) == -(-VIEWS["test"] // 2)
    assert after["peak_memory_bytes"] == before["peak_memory_bytes"]
    changed = {key for key in before["seconds"] if after["seconds"][key] != before["seconds"][key]}
    assert changed <= {"evaluate"} and after["seconds"].keys() == before["seconds"].keys()
    assert cli.run_command("eval", [str(run_copy), "--every", "1"]) == 0
    full = json.loads((run_copy / "metrics.json").read_text())
    assert len(full["test"]["per_image"]) == VIEWS["test"]


def test_eval_every_scores_every_kth_image(run_copy: Path) -> None:
    assert cli.run_command("eval", [str(run_copy), "--split", "train", "--every", "4"]) == 0
    values = json.loads((run_copy / "metrics_train.json").read_text())["train"]
    assert [item["name"] for item in values["per_image"]] == ["r_0", "r_4"]
    assert values["psnr"] == pytest.approx(np.mean([i["psnr"] for i in values["per_image"]]))

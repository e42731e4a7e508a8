"""The six experiments: which there are, how they are trained, what the report has."""

import dataclasses
import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from scenes import write_scene

from jaxrf.core.errors import InputError
from jaxrf.presets import preset_name
from jaxrf.studies import experiments, presets
from jaxrf.studies.options import ExperimentsOptions
from jaxrf.training.config import TrainConfig

pytestmark = pytest.mark.as_used


def study_base() -> TrainConfig:
    return dataclasses.replace(presets.study_base(), num_steps=6)


def study_bitnerf_parallel() -> TrainConfig:
    return dataclasses.replace(presets.study_bitnerf_parallel(), num_steps=6)


def test_study_has_six_experiments_of_equal_epochs() -> None:
    made = {preset_name(preset): preset() for preset in experiments.STUDY}
    assert len(made) == 6
    # Each trains on every image about fifty times.
    assert len({config.num_steps * config.batch_rays for config in made.values()}) == 1
    assert made["study-parallel"] == dataclasses.replace(made["study-base"], devices=2)
    assert made["study-bitnerf-parallel"] == dataclasses.replace(made["study-bitnerf"], devices=2)
    assert made["study-base"].devices == made["study-bitnerf"].devices == 1
    changed = dataclasses.replace(made["study-base"].field, compute_dtype="bfloat16")
    assert made["study-mixed"] == dataclasses.replace(made["study-base"], field=changed)


@pytest.mark.slow
def test_experiments_are_trained_once_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiments, "STUDY", (study_base, study_bitnerf_parallel))
    monkeypatch.setattr(experiments, "SHORT_WIDTH", 8)
    monkeypatch.setattr(experiments, "SHORT_RAYS", 64)
    options = ExperimentsOptions(data=write_scene(tmp_path / "ball"), output=tmp_path / "out")
    assert experiments.run(options) == 0
    report = (options.output / "report.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in report.splitlines() if line.startswith("| study-")]
    assert [row[1].strip() for row in rows] == ["study-base", "study-bitnerf-parallel"]
    assert [row[2].strip() for row in rows] == ["1", "2"]
    bits = [float(row[-2]) for row in rows]
    assert bits[0] == 32.0 and bits[1] < 32.0
    for picture in ("loss.png", "grad_norm.png", "psnr.png", "views.png"):
        assert f"({picture})" in report
        assert np.ptp(iio.imread(options.output / picture)) > 0
    config = options.output / "study-bitnerf-parallel-short-0" / "config.json"
    assert json.loads(config.read_text(encoding="utf-8"))["devices"] == 2
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in options.output.glob("*/metrics.json")}
    assert len(before) == 2 and experiments.run(options) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "tensorboard --logdir" in capsys.readouterr().out


def test_an_unknown_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only base names no experiment: choose of study-base"):
        experiments.run(ExperimentsOptions(only=("base",), output=tmp_path))

"""Trainings that a signal stops: they resume to the same bits."""

import json
import random
import re
import signal
import time
from pathlib import Path

import pytest
from programs import TrainingProcess, training_arguments
from scenes import differing_leaves
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxrf.training import runs

pytestmark = pytest.mark.as_used


# Long enough to be interrupted before the end, and the same steps in every dispatch.
LONG = ["--num-steps", "400", "--steps-per-dispatch", "2", "--validate-every", "0"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, scene_folder: Path) -> runs.Run:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    arguments = training_arguments(scene_folder, run, *LONG, "--video.frames", "0")
    code, _, errors = TrainingProcess(run.parent / "logs", arguments).finish()
    assert code == 0, errors
    return runs.open_run(run)


def count_stages(training: TrainingProcess) -> int:
    return training.out.read_text().count(" rays a step, ")


def assert_resumes_to_the_same_bits(tmp_path: Path, run: Path, uninterrupted: runs.Run) -> None:
    code, out, errors = TrainingProcess(
        tmp_path / "second", ["--resume", "--run-dir", str(run)]
    ).finish()
    assert code == 0, errors
    assert "Resuming" in out and "Traceback" not in errors
    resumed = runs.open_run(run)
    assert resumed.stage == uninterrupted.stage
    assert differing_leaves(resumed.state, uninterrupted.state) == []
    before = json.loads((uninterrupted.folder / "metrics.json").read_text())
    assert json.loads((run / "metrics.json").read_text())["test"] == before["test"]
    # The logs have complete lines only, and the resumed run appends to them.
    notes = (run / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in notes)
    assert [note.split()[2] for note in notes if " on ball; " in note] == ["begun", "resumed"]
    scalars = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert scalars[-1]["step"] == 400
    # TensorBoard has no step twice.
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    steps = [scalar.step for scalar in events.Scalars("train/loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stages"),
    [(signal.SIGTERM, 2), pytest.param(signal.SIGINT, 1, marks=pytest.mark.long)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_saves_a_run_that_resumes_to_the_same_bits(
    tmp_path: Path,
    scene_folder: Path,
    uninterrupted: runs.Run,
    number: signal.Signals,
    stages: int,
) -> None:
    run = tmp_path / "run"
    arguments = training_arguments(scene_folder, run, *LONG, "--video.frames", "0")
    first = TrainingProcess(tmp_path / "first", [*arguments, "--checkpoint-seconds", "1000"])
    first.wait_for(lambda: count_stages(first) >= stages)
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
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_run_resumes_from_its_last_checkpoint(
    tmp_path: Path, scene_folder: Path, uninterrupted: runs.Run, seed: int
) -> None:
    run = tmp_path / "run"
    arguments = training_arguments(scene_folder, run, *LONG, "--video.frames", "0")
    first = TrainingProcess(tmp_path / "first", [*arguments, "--checkpoint-seconds", "0.02"])
    checkpoints = run / "checkpoints"
    first.wait_for(lambda: any(p.name.isdigit() for p in checkpoints.glob("*")))
    time.sleep(random.Random(seed).uniform(0.0, 0.5))
    first.process.kill()
    code, _, _ = first.finish()
    assert code == -signal.SIGKILL
    assert 0 < int(runs.open_run(run).state.step) < 400
    assert_resumes_to_the_same_bits(tmp_path, run, uninterrupted)

"""Trainings killed at random moments of their whole life, which resume to the same bits.

`make torture` kills many times (JAXRF_KILLS); the slow tests do so a few times.
"""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from programs import TrainingProcess, training_arguments
from scenes import differing_leaves, write_scene
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxrf.cli.training_results import VIDEO_FILE
from jaxrf.training import runs

pytestmark = [pytest.mark.as_used, pytest.mark.slow]

NUM_KILLS = int(os.environ.get("JAXRF_KILLS", "3"))
NUM_STEPS = 120
# Every kind of write happens often: checkpoints, validations, scores, a video.
OPTIONS = [
    "--num-steps", str(NUM_STEPS), "--steps-per-dispatch", "2", "--validate-every", "0.3",
    "--checkpoint-seconds", "0.2", "--video.frames", "6",
]  # fmt: skip
# Of one run, before it may finish.
MAX_KILLS_OF_A_RUN = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("data") / "ball")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[runs.Run, float]:
    """A run that nothing happened to, and the seconds of its process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    # The second time compiled programs are stored.
    for name in ("first", "second"):
        begun = time.monotonic()
        training = TrainingProcess(
            folder / f"{name}_logs", training_arguments(data, folder / name, *OPTIONS)
        )
        code, _, errors = training.finish()
        seconds = time.monotonic() - begun
        assert code == 0, errors
    return runs.open_run(folder / "second"), seconds


def begin_or_resume(folder: Path, arguments: list[str], run: Path) -> TrainingProcess:
    """What a user does: resumes, or begins if there is no run yet."""
    if not (run / runs.CONFIG_FILE).exists():
        return TrainingProcess(folder, arguments)
    return TrainingProcess(folder, ["--resume", "--run-dir", str(run)])


def assert_whole_logs(run: Path) -> None:
    """Complete lines only, each step once, and nothing half written left behind."""
    notes = (run / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in notes)
    scalars = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert scalars[-1]["step"] == NUM_STEPS
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    steps = [scalar.step for scalar in events.Scalars("train/loss")]
    # Its writer keeps the last seconds to itself, so a kill after the last step takes them.
    assert steps == sorted(set(steps))
    leftovers = [path.name for path in run.rglob("*") if "tmp" in path.name]
    assert leftovers == []


@pytest.mark.parametrize("seed", range(NUM_KILLS))
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    tmp_path: Path, data: Path, undisturbed: tuple[runs.Run, float], seed: int
) -> None:
    expected, seconds = undisturbed
    rng = random.Random(seed)
    run = tmp_path / "run"
    arguments = training_arguments(data, run, *OPTIONS)
    for attempt in range(rng.randint(1, MAX_KILLS_OF_A_RUN)):
        training = begin_or_resume(tmp_path / f"killed_{attempt}", arguments, run)
        time.sleep(rng.uniform(0.0, seconds))
        training.process.kill()
        code, _, errors = training.finish()
        assert code in (0, -signal.SIGKILL), errors
    training = begin_or_resume(tmp_path / "last", arguments, run)
    code, _, errors = training.finish()
    assert code == 0 and "Traceback" not in errors, errors
    resumed = runs.open_run(run)
    assert resumed.stage == expected.stage
    assert differing_leaves(resumed.state, expected.state) == []
    scores = [
        json.loads((r.folder / "metrics.json").read_text())["test"] for r in (resumed, expected)
    ]
    assert scores[0] == scores[1]
    assert (run / VIDEO_FILE).read_bytes() == (expected.folder / VIDEO_FILE).read_bytes()
    assert_whole_logs(run)

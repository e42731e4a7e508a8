"""Edited folders of runs and camera paths: opening them ends in one sentence or a run."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from corruptions import corrupt_bytes, corrupt_json

from jaxrf.cameras.paths import read_path
from jaxrf.core.errors import InputError
from jaxrf.training import runs

# Corrupted files of each kind; more are tried with JAXRF_CORRUPTIONS=100.
EACH = int(os.environ.get("JAXRF_CORRUPTIONS", "30"))
SECONDS = 10.0


def check_sentence(error: InputError, number: int) -> None:
    text = error.for_command_line
    assert 10 < len(text) < 1500 and "\n" not in text, f"{number}: {text}"


@pytest.mark.parametrize("name", ["config.json", "_CHECKPOINT_METADATA", "metadata", "d/*"])
def test_corrupted_runs_end_in_one_sentence_or_a_run(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noticed, last = 0, runs.last_step(trained)
    for number in range(EACH):
        chance = random.Random(f"{name} {number}")
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained, folder)
        paths = [path for path in sorted(folder.rglob(name)) if path.is_file()]
        path = chance.choice(paths)
        is_json = name == "config.json" or path.read_bytes()[:1] == b"{"
        (corrupt_json if is_json and chance.random() < 0.8 else corrupt_bytes)(path, chance)
        started = time.monotonic()
        try:
            run = runs.open_run(folder)
        except InputError as error:
            check_sentence(error, number)
            noticed += 1
        else:
            # An earlier checkpoint is used in place of a damaged one.
            noticed += int(run.state.step) < last
        assert time.monotonic() - started < SECONDS, number
    # Some bytes mean nothing.
    assert noticed > EACH // 10
    assert "Traceback" not in capsys.readouterr().err


def test_corrupted_camera_paths_end_in_one_sentence_or_a_path(tmp_path: Path) -> None:
    frame = {"camera_to_world": np.eye(4).ravel().tolist(), "fov": 50.0, "aspect": 1.5}
    content = {
        "camera_type": "perspective", "render_width": 64, "render_height": 48, "fps": 24,
        "seconds": 2.0, "camera_path": [frame] * 4,
    }  # fmt: skip
    file, sentences = tmp_path / "path.json", 0
    for number in range(EACH):
        chance = random.Random(number)
        file.write_text(json.dumps(content))
        (corrupt_json if chance.random() < 0.8 else corrupt_bytes)(file, chance)
        try:
            path = read_path(file)
        except InputError as error:
            check_sentence(error, number)
            sentences += 1
        else:
            assert np.all(np.isfinite(path.cameras.T_world_camera)) and path.fps > 0.0
    assert sentences > EACH // 4

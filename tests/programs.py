"""Commands as tests run them, and what they print."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scenes import TINY

ROOT = Path(__file__).resolve().parents[1]


def training_arguments(data: Path, run: Path, *more: str) -> list[str]:
    """Returns the options of a tiny training."""
    return [*TINY, "--data", str(data), "--run-dir", str(run), *more]


def assert_one_sentence(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Asserts that stderr is one error sentence with these words."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and lines[0].endswith(".")
    for word in words:
        assert word in lines[0], lines[0]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Returns stderr, which is one error sentence; stdout is empty."""
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("error: ") and line.endswith(".")
    assert output.out == ""
    return line


class TrainingProcess:
    """train_lego.py in another process."""

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

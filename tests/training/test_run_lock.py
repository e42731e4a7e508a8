"""The lock on a run's folder: one process at a time, whatever ends it."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxrf.core.errors import InputError
from jaxrf.training.run_lock import lock_run

HOLD = """
import sys, time
from pathlib import Path
from jaxrf.training.run_lock import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        message = rf"another process \(number {first.pid}\)"
        with pytest.raises(InputError, match=message), lock_run(tmp_path):
            pass
    finally:
        first.kill()
        first.wait()
    with lock_run(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_can_be_held_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), lock_run(tmp_path):
        raise ValueError("stop")
    with lock_run(tmp_path):
        pass

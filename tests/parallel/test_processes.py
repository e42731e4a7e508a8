"""Several processes: they train as one, agree, and end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from scenes import TINY, differing_leaves, write_scene

from jaxrf.core.errors import InputError
from jaxrf.parallel import processes
from jaxrf.training import runs

pytestmark = pytest.mark.as_used

TESTS = Path(__file__).resolve().parents[1]


def find_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start_training(
    data: Path, run_dir: Path, *more: str, name: str = "single", **environment: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jaxrf", "train", "--run-dir", str(run_dir)]
    if "--resume" not in more:
        command += [] if "--preset" in more else TINY
        command += ["--data", str(data), "--background", "random", "--video.frames", "0"]
    # Last, as they may say otherwise.
    command += more
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)} | environment
    # Files, as a pipe that is not read would block the process.
    paths = (run_dir.with_name(f"{run_dir.name}-{name}{end}") for end in (".out", ".err"))
    out, err = (path.open("a", encoding="utf-8") for path in paths)
    with out, err:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=err)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def start_processes(data: Path, run_dir: Path, *more: str) -> list[subprocess.Popen[bytes]]:
    together = ["--coordinator", f"localhost:{find_port()}", "--processes", "2"]
    return [
        start_training(data, run_dir, *together, "--process-id", str(index), *more, name=str(index))
        for index in range(2)
    ]


def start_under_slurm(data: Path, run_dir: Path, *more: str) -> list[subprocess.Popen[bytes]]:
    """Two processes started as by SLURM, which derives the port from the number of the job."""
    job = next(job for job in range(4096) if is_free(61440 + job))
    slurm = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    return [
        start_training(
            data,
            run_dir,
            *("--coordinator", "auto", *more),
            name=str(index),
            **slurm,
            SLURM_PROCID=str(index),
            SLURM_LOCALID=str(index),
        )
        for index in range(2)
    ]


def is_free(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("localhost", port)) != 0


PRESETS = [
    ["--preset", name]
    for name in (
        "nerf-tiny",
        "bitnerf-tiny",
        "tensorf-small",
        "voxels-small",
        "hashgrid-small",
        "pynerf-small",
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        *(pytest.param(preset, marks=pytest.mark.long) for preset in PRESETS),
    ],
)
def test_two_processes_compute_the_bits_of_one(options: list[str], tmp_path: Path) -> None:
    data = write_scene(tmp_path / "ball")
    order = ["--shards", "2", *options]
    if options:
        order += ["--num-steps", "5", "--batch-rays", "128", "--supersample", "1"]
        order += ["--batch-samples", "16384"]
    start = start_processes if options in PRESETS else start_under_slurm
    workers = start(data, tmp_path / "two", *order)
    for index, process in enumerate(workers):
        process.wait(timeout=600)
        assert process.returncode == 0, read(tmp_path / f"two-{index}.err")
    outputs = [read(tmp_path / f"two-{index}.out") for index in range(2)]
    assert "Test: PSNR" in outputs[0] and "Test: PSNR" not in outputs[1]
    single = start_training(data, tmp_path / "one", *order)
    assert single.wait(timeout=600) == 0
    two, one = (runs.open_run(tmp_path / name) for name in ("two", "one"))
    assert differing_leaves(two.state, one.state) == []
    scores = [runs.read_metrics(tmp_path / name)["test"]["psnr"] for name in ("two", "one")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert "ended early" not in read(tmp_path / "two-0.err") + read(tmp_path / "two-1.err")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.long), 1])
def test_training_resumes_after_one_process_is_lost_and_the_other_ended(
    lost: int, tmp_path: Path
) -> None:
    data, run_dir = write_scene(tmp_path / "ball"), tmp_path / "run"
    workers = start_processes(data, run_dir, "--num-steps", "100000", "--checkpoint-seconds", "1")
    deadline = time.monotonic() + 300
    while not list(run_dir.glob("checkpoints/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(5)
    workers[lost].kill()
    killed = time.monotonic()
    workers[1 - lost].wait(timeout=120)
    assert time.monotonic() - killed < 60
    errors = read(tmp_path / f"run-{1 - lost}.err")
    assert workers[1 - lost].returncode != 0
    assert "start all of them again with --resume" in errors, errors
    assert errors.count("ended early") == 1
    step = int(runs.open_run(run_dir).state.step)
    # Resume on one device, or on two again.
    if lost:
        again = start_processes(data, run_dir, "--resume")
    else:
        again = [start_training(data, run_dir, "--resume", name="0")]
    resumed = f"Resuming {run_dir} at step {step}"
    deadline = time.monotonic() + 120
    while resumed not in read(tmp_path / "run-0.out") and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(15)
    again[-1].send_signal(signal.SIGINT)
    for process in again:
        process.wait(timeout=120)
    assert resumed in read(tmp_path / "run-0.out"), read(tmp_path / "run-0.err")
    assert int(runs.open_run(run_dir).state.step) > step


def test_an_interrupt_ends_one_of_several_processes_without_waiting_for_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once training is over, no signal is shared: another process would wait in its scoring."""
    exit_codes: list[int] = []
    monkeypatch.setattr(os, "_exit", exit_codes.append)
    with pytest.raises(KeyboardInterrupt), processes.abort_on_peer_failure():
        raise KeyboardInterrupt
    assert not exit_codes
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with processes.abort_on_peer_failure():
        raise KeyboardInterrupt
    assert exit_codes == [130]
    assert "Interrupted" in capsys.readouterr().err


def test_functions_of_a_single_process_return_its_values() -> None:
    assert processes.is_main_process()
    assert processes.broadcast_from_main([True, None, "x"]) == [True, None, "x"]
    assert processes.allreduce_max(3) == 3
    calls: list[int] = []
    processes.main_process_first(lambda: calls.append(1))
    assert calls == [1]
    with processes.silence_non_main(), processes.abort_on_peer_failure():
        pass


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError, InputError])
def test_abort_on_peer_failure_ends_one_of_several_processes_at_once(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_codes: list[int] = []
    monkeypatch.setattr(os, "_exit", exit_codes.append)
    with pytest.raises(kind, match="Gloo"), processes.abort_on_peer_failure():
        raise kind("UNKNOWN: Gloo all-reduce failed")
    assert not exit_codes
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with processes.abort_on_peer_failure():
        raise kind("UNKNOWN: Gloo all-reduce failed")
    assert len(exit_codes) == 1 and exit_codes[0] > 0
    assert "UNKNOWN: Gloo all-reduce failed" in capsys.readouterr().err


def test_init_distributed_rejects_a_missing_number_or_index_of_processes() -> None:
    with pytest.raises(InputError, match="add processes and process_id"):
        processes.init_distributed("localhost:1", None, None)

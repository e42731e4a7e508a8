"""Several devices and processes: they give what one gives."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scenes import TINY, differing_leaves, write_scene

from jaxrf.core.errors import InputError
from jaxrf.parallel import devices, processes, sums
from jaxrf.training import runs

pytestmark = pytest.mark.as_used

TESTS = Path(__file__).resolve().parent


def run_devices(counts: str, kind: str, **more: str) -> dict[str, Any]:
    """What `devices.py` finds of one kind of field."""
    command = [sys.executable, str(TESTS / "devices.py"), counts, kind]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"PYTHONPATH": path} | more
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])[kind]


KINDS = ["nerf", "bitnerf", "tensorf", "voxels", "hashgrid", "pynerf"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "counts"),
    [(kind, "2,4,8") for kind in KINDS],
)
def test_devices_give_the_gradient_of_one_and_in_a_fixed_order_its_bits(
    kind: str, counts: str
) -> None:
    found = run_devices(counts, kind)
    assert found["gradient"].keys() == found["bits"].keys() == set(counts.split(","))
    for devices, apart in found["gradient"].items():
        assert apart < 1e-6, f"on {devices} devices"
    assert not any(found["bits"].values()), found["bits"]
    assert found["picture"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_devices_stay_together_for_many_steps(kind: str) -> None:
    found = run_devices("2,4,8", kind, JAX_ENABLE_X64="1")
    assert found.keys() == {"2", "4", "8"}
    assert max(found.values()) < 1e-9, found


# ---------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------


def find_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start_training(
    data: Path, run_dir: Path, *more: str, name: str = "alone", **environment: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jaxrf", "train", "--run-dir", str(run_dir), *more]
    if "--resume" not in more:
        command += [] if "--preset" in more else TINY
        command += ["--data", str(data), "--background", "random", "--video.frames", "0"]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)} | environment
    # Into files: a pipe that nobody reads would block it.
    said = (run_dir.with_name(f"{run_dir.name}-{name}{end}") for end in (".out", ".err"))
    out, err = (path.open("a", encoding="utf-8") for path in said)
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
    """As SLURM would start two tasks; the number of the job settles the port."""
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
@pytest.mark.parametrize("options", [[], *PRESETS])
def test_two_processes_give_the_bits_of_one(options: list[str], tmp_path: Path) -> None:
    data = write_scene(tmp_path / "ball")
    order = ["--shards", "2", *options]
    if options:
        order += ["--steps", "5", "--batch-rays", "128", "--supersample", "1"]
        order += ["--batch-samples", "16384"]
    start = start_processes if options in PRESETS else start_under_slurm
    processes = start(data, tmp_path / "two", *order)
    for index, process in enumerate(processes):
        process.wait(timeout=600)
        assert process.returncode == 0, read(tmp_path / f"two-{index}.err")
    said = [read(tmp_path / f"two-{index}.out") for index in range(2)]
    assert "Test: PSNR" in said[0] and "Test: PSNR" not in said[1]
    one = start_training(data, tmp_path / "one", *order)
    assert one.wait(timeout=600) == 0
    found, wanted = (runs.open_run(tmp_path / name) for name in ("two", "one"))
    assert differing_leaves(found.state, wanted.state) == []
    scores = [runs.read_metrics(tmp_path / name)["test"]["psnr"] for name in ("two", "one")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert "ended early" not in read(tmp_path / "two-0.err") + read(tmp_path / "two-1.err")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_if_a_process_is_lost_the_other_ends_and_training_goes_on_later(
    lost: int, tmp_path: Path
) -> None:
    data, run_dir = write_scene(tmp_path / "ball"), tmp_path / "run"
    processes = start_processes(data, run_dir, "--steps", "100000", "--checkpoint-seconds", "1")
    deadline = time.monotonic() + 300
    while not list(run_dir.glob("checkpoints/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(5)
    processes[lost].kill()
    killed = time.monotonic()
    processes[1 - lost].wait(timeout=120)
    assert time.monotonic() - killed < 60
    errors = read(tmp_path / f"run-{1 - lost}.err")
    assert processes[1 - lost].returncode != 0
    assert "start all of them again with --resume" in errors, errors
    assert errors.count("ended early") == 1
    step = int(runs.open_run(run_dir).state.step)
    # On one device now, or on two again.
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


@pytest.mark.parametrize("count", [1, 2, 8])
def test_pairs_are_added_in_one_order(count: int) -> None:
    """Numbers of very different size, whose sum depends on the order."""
    parts = np.random.default_rng(0).normal(size=count).astype(np.float32)
    parts *= np.float32(10.0) ** np.arange(count, dtype=np.float32)

    def add_slowly(parts: list[np.float32]) -> np.float32:
        if len(parts) == 1:
            return parts[0]
        half = len(parts) // 2
        return add_slowly(parts[:half]) + add_slowly(parts[half:])

    total = jax.jit(
        lambda x: sums.pairwise_sum(
            lambda part: part, x, count, np.float32(0.0), lambda a, b: a + b
        )
    )(parts)
    assert np.float32(total) == add_slowly(list(parts))


def test_alone_a_process_decides_for_itself() -> None:
    assert processes.is_main_process()
    assert processes.broadcast_from_main([True, None, "x"]) == [True, None, "x"]
    assert processes.allreduce_max(3) == 3
    done: list[int] = []
    processes.main_process_first(lambda: done.append(1))
    assert done == [1]
    with processes.silence_non_main(), processes.abort_on_peer_failure():
        pass


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError, InputError])
def test_of_several_processes_one_that_cannot_go_on_waits_for_none(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with pytest.raises(kind, match="Gloo"), processes.abort_on_peer_failure():
        raise kind("UNKNOWN: Gloo all-reduce failed")
    assert not left
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with processes.abort_on_peer_failure():
        raise kind("UNKNOWN: Gloo all-reduce failed")
    assert len(left) == 1 and left[0] > 0
    assert "UNKNOWN: Gloo all-reduce failed" in capsys.readouterr().err


def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(InputError, match=r"--devices asks for 1000, but there"):
        devices.make_mesh(1000)


def test_processes_that_do_not_know_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="add --processes and --process-id"):
        processes.init_distributed("localhost:1", None, None)

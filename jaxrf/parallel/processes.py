"""Several processes that train together: how they start, agree and fail.

A decision that depends on one process's clock, signals or disk is made by process 0 and sent to the
others (`broadcast_from_main`), so that all of them run the same programs.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from jaxrf.core import memory
from jaxrf.core.errors import InputError, describe_for_command_line

# A process without a heartbeat for this many seconds counts as lost.
HEARTBEAT_TIMEOUT_SECONDS = 30

Tree = TypeVar("Tree")


def init_distributed(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process to the others; call it before anything is computed.

    Args:
      coordinator: host:port of process 0, or "auto" under SLURM, MPI or on a TPU pod.
      num_processes: the number of processes.
      process_id: the index of this process, counted from 0.

    Raises:
      InputError: if the processes cannot connect.
    """
    addresses: dict[str, Any] = {}
    if coordinator != "auto":
        if num_processes is None or process_id is None:
            raise InputError(
                "--coordinator names a host, but the number of processes or the index of this one "
                "is missing: add --processes and --process-id."
            )
        addresses = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    try:
        jax.distributed.initialize(
            **addresses,
            initialization_timeout=120,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )
    except (ValueError, IndexError, RuntimeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"The processes could not connect through --coordinator {coordinator} ({reason}): give "
            "host:port of process 0, which every process must be able to reach."
        ) from error
    _report_abnormal_exit(
        f"Process {jax.process_index()} of {jax.process_count()} has ended early. If nothing above "
        "says what to change, it or another one was lost: start all of them again with --resume, "
        "from the last checkpoint."
    )


def _report_abnormal_exit(message: str) -> None:
    """Prints a message if this process ends without running its exit handlers.

    JAX aborts a process that loses its connection to process 0. A child process waits for the end
    of its standard input and prints the message in the name of the aborted one.
    """
    program = "import sys; sys.stdin.read() or sys.exit(sys.argv[1])"
    reporter = subprocess.Popen(
        [sys.executable, "-S", "-c", program, message],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )

    def report_normal_exit() -> None:
        reporter.communicate(b"normal exit")

    atexit.register(report_normal_exit)


def is_main_process() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def broadcast_from_main(value: Tree) -> Tree:
    """Process 0's value, on all processes; it must be JSON serializable."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode() if is_main_process() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(size, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))))


def main_process_first(action: Callable[[], object]) -> None:
    """Runs an action in process 0 while the other processes wait.

    Raises:
      InputError: on all processes, if the action fails with InputError or OSError in process 0.
    """
    problem = None
    if is_main_process():
        try:
            action()
        except (InputError, OSError) as error:
            problem = describe_for_command_line(error)
    problem = broadcast_from_main(problem)
    if problem is not None:
        raise InputError(problem)


def allreduce_max(number: int) -> int:
    """The maximum of the numbers of all processes, on all of them."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


@contextlib.contextmanager
def silence_non_main() -> Iterator[None]:
    """Discards the standard output of all processes but 0; errors are still printed."""
    with contextlib.ExitStack() as stack:
        if not is_main_process():
            devnull = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(devnull))
        yield


@contextlib.contextmanager
def abort_on_peer_failure() -> Iterator[None]:
    """Ends this process with one sentence if it or another one fails, without waiting for any.

    With a single process, exceptions are raised as usual.
    """
    try:
        yield
    except InputError as error:
        if jax.process_count() == 1:
            raise
        print(f"error: {error.for_command_line}", file=sys.stderr, flush=True)
        os._exit(2)
    except KeyboardInterrupt:
        if jax.process_count() == 1:
            raise
        print("Interrupted: the other processes end, too.", file=sys.stderr, flush=True)
        os._exit(130)
    # A connection that breaks while a program is dispatched raises ValueError.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or memory.ran_out(error):
            raise
        reason = str(error).strip().split("\n", 1)[0][:200]
        print(
            f"\nerror: Process {jax.process_index()} of {jax.process_count()} cannot continue with "
            f"the others ({reason}).",
            file=sys.stderr,
            flush=True,
        )
        # JAX's exit handlers would wait for the lost process.
        os._exit(1)

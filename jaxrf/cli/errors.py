"""Errors as the command line reports them: one sentence, an exit code, no traceback."""

import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from jaxrf.core.errors import InputError


def run_and_report(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code.

    Errors that a user can fix are printed as one sentence: an InputError ends with code 2, failures
    of training and of memory with code 1. Other exceptions are bugs and propagate.
    """
    _hide_leftovers()
    try:
        return command()
    except InputError as error:
        print(f"error: {error.for_command_line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has exited, as `| head` does; nothing more can be printed there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        sentence = _describe_failure(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1


def _hide_leftovers() -> None:
    """Prints no tracebacks of what a failed checkpoint leaves in threads; its error is raised."""
    if getattr(sys.excepthook, "hides_leftovers", False):
        return
    print_error, print_unraisable = sys.excepthook, sys.unraisablehook

    def print_other_error(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            print_error(kind, error, trace)

    def print_other_unraisable(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        if code is None or "orbax" not in code.co_filename:
            print_unraisable(unraisable)

    print_other_error.hides_leftovers = True  # type: ignore[attr-defined]
    sys.excepthook, sys.unraisablehook = print_other_error, print_other_unraisable


def _describe_failure(error: Exception) -> str | None:
    """Returns a sentence for failures of training, of memory and of disks, None for bugs."""
    from jaxrf.core import memory
    from jaxrf.training.loop import DivergedError

    if isinstance(error, DivergedError):
        return error.for_command_line
    if memory.disk_ran_out(error):
        return (
            "The disk is full, or a quota or the largest size of a file is reached: make room, or "
            "name another folder with --run-dir or --output. Checkpoints from before are whole; "
            "continue a training with --resume."
        )
    if memory.ran_out(error):
        return (
            "Memory ran out: lower --batch-samples while training or --render-samples while "
            "rendering, shrink the pictures with --downscale, or let other programs on the device "
            "have less (XLA_PYTHON_CLIENT_MEM_FRACTION sets JAX's share)."
        )
    return None

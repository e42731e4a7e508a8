"""A lock on a run's folder, so that two trainings never write to the same one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxrf.core.errors import InputError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder until the block ends, or the process does, however it does.

    Raises:
      InputError: another process holds it.
    """
    path = folder / LOCK_FILE
    while True:
        with path.open("a+", encoding="ascii") as file:
            if not _try_lock(file):
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise InputError(
                    f"The run {folder} is being trained by another process (number {holder}): wait "
                    "for it to end, or stop it first."
                )
            if not _is_file_at(file, path):
                # The process that held it has removed it since it was opened.
                continue
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _is_file_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool:
    """Locks an open file unless another process has; True on file systems without locks."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True

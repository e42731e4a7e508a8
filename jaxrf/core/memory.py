"""Memory that is free, that was used at peak, and that a program needs; and what ran out."""

import errno
import os
from pathlib import Path
from typing import Any

import jax
import psutil

CGROUP = Path("/sys/fs/cgroup")
# No space left, no quota left, file too large.
DISK_ERRORS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def free_bytes() -> int:
    """Bytes that JAX can still allocate on the accelerator, or on the host within its container."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        cached = next((int(x.split()[1]) for x in lines if x.startswith("inactive_file ")), 0)
    except (OSError, ValueError):
        # There is no container, or it has no limit: memory.max then holds "max".
        return free
    return min(free, max(limit - used + cached, 0))


def peak_bytes() -> int:
    """Peak memory in bytes: of the accelerator if there is one, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return host_peak_bytes()


def host_peak_bytes() -> int:
    """Peak memory of this process on the host, in bytes."""
    import resource

    # The kernel updates the maximum only from time to time.
    recorded_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(recorded_peak, psutil.Process().memory_info().rss)


def needed_bytes(program: Any) -> int:
    """Bytes that a compiled program allocates in addition to its arguments; 0 if unknown."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    new_outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(new_outputs, 0))


def ran_out(error: BaseException) -> bool:
    """Whether an error reports that memory ran out; libraries say the same of a full disk."""
    if disk_ran_out(error):
        return False
    return "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)


def disk_ran_out(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, reports a full disk, quota or largest file."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        if any(os.strerror(number) in str(error) for number in DISK_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False

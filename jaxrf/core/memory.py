"""Memory: how much is free, how much was used, how much a compiled program asks for."""

from pathlib import Path
from typing import Any

import jax
import psutil

CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Memory that JAX may still take: the accelerator's, or the machine's and its container's."""
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
        # No container, or none with a limit: its memory.max then says "max".
        return free
    return min(free, max(limit - used + cached, 0))


def peak_bytes() -> int:
    """Most memory used so far: the accelerator's if there is one, else this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return host_peak_bytes()


def host_peak_bytes() -> int:
    """Most memory of the host that this process has used so far."""
    import resource

    # The kernel brings the maximum up to date only now and then.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(most, psutil.Process().memory_info().rss)


def needed_bytes(program: Any) -> int:
    """What a compiled program allocates when it runs, its arguments apart; 0 if it cannot tell."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(fresh, 0))


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)

"""What the machine does while it trains: processor, memory, accelerators."""

import contextlib
import os
import time
from typing import Any

import jax
import psutil

from jaxrf.core import memory

GIB = 2**30
# Over less time, shares of a processor are mostly 0 or all.
MIN_INTERVAL_SECONDS = 0.5


class Machine:
    """Reads how busy the machine is; of NVIDIA's accelerators if `nvidia-ml-py` is installed."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        # Shares of a processor are those since the last call, the first of which gives 0.
        self._process.cpu_percent()
        psutil.cpu_percent()
        self._shares: dict[str, float] = {}
        self._looked = time.monotonic()
        self._nvml: Any = None
        self._accelerators: list[Any] | None = None

    def read(self) -> dict[str, float]:
        """Figures by name, units at their ends; what cannot be read here is left out."""
        if self._accelerators is None:
            self._nvml, self._accelerators = open_nvml()
        now = time.monotonic()
        if now - self._looked >= MIN_INTERVAL_SECONDS:
            self._looked = now
            self._shares = {
                "cpu_percent": psutil.cpu_percent(),
                "process_cpu_percent": self._process.cpu_percent(),
            }
        values = self._shares | {
            "memory_gib": self._process.memory_info().rss / GIB,
            "peak_memory_gib": memory.host_peak_bytes() / GIB,
        }
        for number, device in enumerate(jax.local_devices()):
            stats = device.memory_stats() or {}
            for name, key in (("memory", "bytes_in_use"), ("peak_memory", "peak_bytes_in_use")):
                if key in stats:
                    values[f"device{number}_{name}_gib"] = stats[key] / GIB
        for number, handle in enumerate(self._accelerators):
            found = read_accelerator(self._nvml, handle)
            values |= {f"accelerator{number}_{name}": value for name, value in found.items()}
        return values


def open_nvml() -> tuple[Any, list[Any]]:
    """NVIDIA's management library and its accelerators, of those that this process may see.

    None and none where the package `nvidia-ml-py`, the driver or an accelerator is missing.
    """
    try:
        import pynvml
    except ImportError:
        return None, []
    try:
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            count = pynvml.nvmlDeviceGetCount()
            return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        handles = []
        for name in filter(None, visible.replace(" ", "").split(",")):
            if name == "-1":
                # As for CUDA, what follows is not seen.
                break
            if name.isdecimal():
                handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
            else:
                handles.append(pynvml.nvmlDeviceGetHandleByUUID(name))
        return pynvml, handles
    except pynvml.NVMLError:
        return None, []


def read_accelerator(nvml: Any, handle: Any) -> dict[str, float]:
    """Utilization, memory and power of an accelerator; what it does not tell is left out."""
    values: dict[str, float] = {}
    with contextlib.suppress(nvml.NVMLError):
        values["utilization_percent"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with contextlib.suppress(nvml.NVMLError):
        values["memory_gib"] = nvml.nvmlDeviceGetMemoryInfo(handle).used / GIB
    with contextlib.suppress(nvml.NVMLError):
        # In milliwatts.
        values["power_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
    return values

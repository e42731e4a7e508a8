"""Load of the machine: processor, memory, accelerators."""

import contextlib
import os
import time
from typing import Any

import jax
import psutil

from jaxrf.core import memory

GIB = 2**30
# Over shorter intervals, the load of a processor is mostly measured as 0 or 100 %.
MIN_INTERVAL_SECONDS = 0.5


class Machine:
    """Measures load and memory of the host and of accelerators.

    Load and power of NVIDIA's accelerators need the package `nvidia-ml-py`.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        # psutil measures the load since its last call; the first call returns 0.
        self._process.cpu_percent()
        psutil.cpu_percent()
        self._cpu_load: dict[str, float] = {}
        self._cpu_load_time = time.monotonic()
        self._nvml: Any = None
        self._accelerators: list[Any] | None = None

    def read(self) -> dict[str, float]:
        """Measurements by name; names end in their unit. Unavailable measurements are left out."""
        if self._accelerators is None:
            self._nvml, self._accelerators = open_nvml()
        now = time.monotonic()
        if now - self._cpu_load_time >= MIN_INTERVAL_SECONDS:
            self._cpu_load_time = now
            self._cpu_load = {
                "cpu_percent": psutil.cpu_percent(),
                "process_cpu_percent": self._process.cpu_percent(),
            }
        values = self._cpu_load | {
            "memory_gib": self._process.memory_info().rss / GIB,
            "peak_memory_gib": memory.host_peak_bytes() / GIB,
        }
        for number, device in enumerate(jax.local_devices()):
            stats = device.memory_stats() or {}
            for name, key in (("memory", "bytes_in_use"), ("peak_memory", "peak_bytes_in_use")):
                if key in stats:
                    values[f"device{number}_{name}_gib"] = stats[key] / GIB
        for number, handle in enumerate(self._accelerators):
            measured = read_accelerator(self._nvml, handle)
            values |= {f"accelerator{number}_{name}": value for name, value in measured.items()}
        return values


def open_nvml() -> tuple[Any, list[Any]]:
    """NVIDIA's management library and handles of the accelerators that this process may use.

    Returns (None, []) where the package `nvidia-ml-py`, the driver or an accelerator is missing.
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
                # CUDA ignores all entries after -1.
                break
            if name.isdecimal():
                handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
            else:
                handles.append(pynvml.nvmlDeviceGetHandleByUUID(name))
        return pynvml, handles
    except pynvml.NVMLError:
        return None, []


def read_accelerator(nvml: Any, handle: Any) -> dict[str, float]:
    """Utilization, memory and power of an accelerator; unsupported measurements are left out."""
    values: dict[str, float] = {}
    with contextlib.suppress(nvml.NVMLError):
        values["utilization_percent"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with contextlib.suppress(nvml.NVMLError):
        values["memory_gib"] = nvml.nvmlDeviceGetMemoryInfo(handle).used / GIB
    with contextlib.suppress(nvml.NVMLError):
        # The library reports milliwatts.
        values["power_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
    return values

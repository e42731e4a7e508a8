"""The hardware and the versions that results depend on."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax
import psutil

PACKAGES = ("jaxrf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_hardware() -> str:
    """Returns one line about the device that JAX computes on and the host."""
    device = jax.devices()[0]
    host = f"{os.cpu_count()} CPU cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    kind = platform.processor() or platform.machine()
    if device.platform == "cpu":
        return f"CPU ({kind}), {host}"
    return f"{jax.device_count()} x {device.device_kind}, host {host}"


def describe_processor() -> str:
    """Returns the processor's name and its widest vector extension, as Linux reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    values = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = values.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    return f"{values.get('model name', 'unknown')} {widest}".strip()


def describe_versions() -> dict[str, str]:
    """Returns the versions of Python and of `PACKAGES`, by name."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions

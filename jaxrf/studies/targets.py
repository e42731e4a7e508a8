"""Accelerators to compile for that need not be there: their rates and their topologies.

Rates are those of data sheets (NVIDIA: H100, H200 and A100 SXM and Ada architecture; Google: system
architecture of TPU v5e, v5p and v6e), for which no program is made; times of launches and reads are
assumptions that a device would have to confirm.
"""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Mapping
from typing import Any

from jaxrf.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Target:
    """Rates and sizes of one device of a kind.

    Attributes:
      name: on the command line, such as "h200".
      title: in reports.
      memory_bytes: of its large memory.
      bandwidth: bytes/s of that.
      matmul_flops: operations/s of float32 products at JAX's precision "highest".
      half_flops: the same of 16-bit products.
      element_ops: float32 operations/s of everything else.
      link_bandwidth: bytes/s that a device sends to others.
      launch_seconds: of the shortest kernel, which others cannot hide.
      read_seconds: until the host has read a number and launched what follows; 0 where the device
        itself decides.
      granule: bytes that move at least for a row that is looked up.
      packages: Python packages that compile for it.
    """

    name: str
    title: str
    memory_bytes: float
    bandwidth: float
    matmul_flops: float
    half_flops: float
    element_ops: float
    link_bandwidth: float
    launch_seconds: float
    read_seconds: float
    granule: int
    packages: tuple[str, ...]

    @property
    def platform(self) -> str:
        """JAX's name of the kind of device."""
        return "tpu" if "libtpu" in self.packages else "cuda"


@dataclasses.dataclass(frozen=True)
class GpuDescription:
    """Numbers by which XLA chooses kernels for a GPU.

    Attributes:
      capability: major and minor number of its instruction set.
      cores: streaming multiprocessors.
      threads_per_core: that run at the same time.
      shared_memory: bytes in a core, and that a block may ask for.
      cache: bytes of the second level.
      clock: GHz.
    """

    capability: tuple[int, int]
    cores: int
    threads_per_core: int
    shared_memory: tuple[int, int]
    cache: int
    clock: float


def _gpu(
    name: str, title: str, memory: float, bandwidth: float, flops: float, half: float, link: float
) -> Target:
    packages = ("jax_cuda13_plugin",)
    return Target(
        name, title, memory, bandwidth, flops, half, flops, link, 2.5e-6, 15e-6, 32, packages
    )


def _tpu(
    name: str, title: str, memory: float, bandwidth: float, half: float, ops: float, link: float
) -> Target:
    # A float32 product at the highest precision is six of bfloat16.
    return Target(
        name, title, memory, bandwidth, half / 6, half, ops, link, 0.5e-6, 0.0, 512, ("libtpu",)
    )


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        _gpu("h100", "NVIDIA H100 SXM", 80e9, 3.35e12, 67e12, 989e12, 450e9),
        _gpu("h200", "NVIDIA H200 SXM", 141e9, 4.8e12, 67e12, 989e12, 450e9),
        _gpu("a100", "NVIDIA A100 SXM", 80e9, 2.039e12, 19.5e12, 312e12, 300e9),
        _gpu("rtx4090", "NVIDIA RTX 4090", 24e9, 1.008e12, 82.6e12, 165e12, 32e9),
        _tpu("v5e", "TPU v5e", 16e9, 819e9, 197e12, 6.1e12, 200e9),
        _tpu("v5p", "TPU v5p", 95e9, 2.765e12, 459e12, 14e12, 600e9),
        _tpu("v6e", "TPU v6e", 32e9, 1.64e12, 918e12, 7.2e12, 448e9),
    )
}
GPUS: Mapping[str, GpuDescription] = {
    "h100": GpuDescription((9, 0), 132, 2048, (233472, 232448), 50 << 20, 1.98),
    "h200": GpuDescription((9, 0), 132, 2048, (233472, 232448), 50 << 20, 1.98),
    "a100": GpuDescription((8, 0), 108, 2048, (167936, 166912), 40 << 20, 1.41),
    "rtx4090": GpuDescription((8, 9), 128, 1536, (102400, 101376), 72 << 20, 2.52),
}
# Chips along the two axes of a slice of v5e or v6e by their number.
FLAT_SLICES = {1: (2, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
               256: (16, 16)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Slice:
    """Several devices of a kind: `parse_slice("h200:8")`."""

    target: Target
    count: int

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.target.name}:{self.count}"


def parse_slice(text: str) -> Slice:
    """Reads "kind:number", such as "v5e:4"; one device where the number is left out.

    Raises:
      InputError: there is no such kind, or no such slice of it.
    """
    name, _, number = text.partition(":")
    target = TARGETS.get(name.lower())
    if target is None:
        kinds = ", ".join(TARGETS)
        raise InputError(f"--compile-for {text} is unknown: give one of {kinds} and :NUMBER.")
    if not re.fullmatch(r"[1-9]\d*", number or "1"):
        raise InputError(f"--compile-for {text} has no number of devices: write {name}:1.")
    count = int(number or 1)
    if target.platform == "tpu" and count not in FLAT_SLICES:
        counts = ", ".join(str(count) for count in FLAT_SLICES)
        raise InputError(f"--compile-for {text} is no slice: give {name}: and one of {counts}.")
    return Slice(target, count)


def require_packages(target: Target) -> None:
    """Requires the packages that compile for a device.

    Raises:
      InputError: they are missing; with the command that installs them.
    """
    if not all(importlib.util.find_spec(name) for name in target.packages):
        extra = "tpu" if target.platform == "tpu" else "cuda13"
        raise InputError(
            f"--compile-for {target.name} needs {target.packages[0]}: pip install 'jax[{extra}]'."
        )


def compiler_environment(devices: Slice) -> dict[str, str]:
    """Variables of a process that compiles for absent devices; JAX itself runs on the CPU."""
    environment = {"JAX_PLATFORMS": "cpu"}
    if devices.target.platform == "tpu":
        chips = math.prod(slice_shape(devices))
        environment |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": f"{ACCELERATOR_TYPES[devices.target.name]}-{chips}",
            "TPU_WORKER_HOSTNAMES": "localhost",
        }
    return environment


# libtpu's names of slices.
ACCELERATOR_TYPES = {"v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}


def slice_shape(devices: Slice) -> tuple[int, ...]:
    """Chips along each axis of the smallest slice that has as many."""
    shape = FLAT_SLICES[devices.count]
    return (*shape, 1) if devices.target.name == "v5p" else shape


def find_devices(devices: Slice) -> list[Any]:
    """Devices to compile for, of a topology; none of them has to be there.

    The variables of `compiler_environment` must be set before JAX starts.
    """
    from jax.experimental import topologies

    target = devices.target
    if target.platform == "tpu":
        shape = "x".join(str(side) for side in slice_shape(devices))
        topology = topologies.get_topology_desc(f"{target.name}:{shape}", "tpu")
    else:
        topology = topologies.get_topology_desc(
            target.name,
            "cuda",
            topology=f"1x1x{devices.count}",
            target_config=describe_gpu(target),
        )
    return list(topology.devices)[: devices.count]


def describe_gpu(target: Target) -> str:
    """A GPU as XLA's GpuTargetConfigProto, in text form."""
    gpu = GPUS[target.name]
    in_core, in_block = gpu.shared_memory
    return f"""gpu_device_info {{
      cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
      core_count: {gpu.cores} fpus_per_core: 128 threads_per_core_limit: {gpu.threads_per_core}
      threads_per_block_limit: 1024 threads_per_warp: 32
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      shared_memory_per_block: 49152 shared_memory_per_core: {in_core}
      shared_memory_per_block_optin: {in_block}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      l2_cache_size: {gpu.cache} clock_rate_ghz: {gpu.clock}
      memory_bandwidth: {int(target.bandwidth)} device_memory_size: {int(target.memory_bytes)}
    }}
    platform_name: "CUDA"
    runtime_version {{ major: 13 }}
    dnn_version_info {{ major: 9 minor: 12 }}
    device_description_str: "{target.title}"
    """

"""How long a counted training step takes on a device, by a plain model.

A kernel takes as long as the slowest of what bounds it: its launch, the bytes that it moves, its
matrix products and its other operations. A step takes the sum over its kernels, one after the
other, and over the numbers for which the device waits for its host. A collective takes as long as
its bytes on the link of one device: twice (n - 1) / n of them for an all-reduce over n devices,
once for the others. Nothing overlaps, no cache helps, and every rate is that of the data sheet, so
a device may be slower or, where a table fits into a cache, faster.
"""

import dataclasses

from jaxrf.studies.hlo_counts import Kernel, StepCount
from jaxrf.studies.targets import Target


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a step.

    Attributes:
      launch, memory, matmul, element: of the kernels that each of these bounds.
      host: in which the device waits for the host.
      link: of collectives.
    """

    launch: float
    memory: float
    matmul: float
    element: float
    host: float
    link: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(dataclasses.astuple(self))


def predict_step(count: StepCount, target: Target, num_devices: int = 1) -> Prediction:
    """Predicts the time of a step from its kernels on one of so many devices."""
    seconds = dict.fromkeys(("launch", "memory", "matmul", "element", "link"), 0.0)
    for kernel in count.kernels:
        bounds = bound_kernel(kernel, target, num_devices)
        slowest = max(bounds, key=lambda name: bounds[name])
        seconds[slowest] += kernel.repeats * bounds[slowest]
    return Prediction(**seconds, host=count.host_reads * target.read_seconds)


def bound_kernel(kernel: Kernel, target: Target, num_devices: int = 1) -> dict[str, float]:
    """Seconds that each resource needs for one run of a kernel."""
    bounds = {"launch": target.launch_seconds}
    if kernel.is_collective:
        passes = 2.0 if kernel.opcode == "all-reduce" else 1.0
        share = passes * (num_devices - 1) / num_devices
        return bounds | {"link": share * kernel.written_bytes / target.link_bandwidth}
    rate = target.half_flops if kernel.is_half else target.matmul_flops
    return bounds | {
        "memory": kernel.moved_bytes(target.granule) / target.bandwidth,
        "matmul": kernel.matmul_flops / rate,
        "element": kernel.element_ops / target.element_ops,
    }

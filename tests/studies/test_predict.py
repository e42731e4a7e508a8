"""Predicted times of steps, against sums by hand."""

import dataclasses

import pytest

from jaxrf.studies import predict
from jaxrf.studies.hlo_counts import Kernel, StepCount
from jaxrf.studies.targets import TARGETS

TARGET = dataclasses.replace(
    TARGETS["h200"], bandwidth=100.0, matmul_flops=10.0, half_flops=40.0, element_ops=5.0,
    link_bandwidth=50.0, launch_seconds=1.0, read_seconds=0.5, granule=32,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "bound", "seconds"),
    [
        (Kernel("a", "fusion", 1.0, 10.0, 10.0), "launch", 1.0),
        (Kernel("a", "fusion", 3.0, 300.0, 100.0), "memory", 12.0),
        (Kernel("a", "fusion", 1.0, rows=10.0, row_bytes=80.0), "memory", 3.2),
        (Kernel("a", "fusion", 1.0, rows=10.0, row_bytes=800.0), "memory", 8.0),
        (Kernel("a", "fusion", 1.0, matmul_flops=80.0), "matmul", 8.0),
        (Kernel("a", "fusion", 1.0, matmul_flops=80.0, is_half=True), "matmul", 2.0),
        (Kernel("a", "fusion", 2.0, element_ops=20.0), "element", 8.0),
        (Kernel("a", "all-reduce", 1.0, 100.0, 100.0), "link", 3.0),
        (Kernel("a", "all-gather", 1.0, 25.0, 100.0), "link", 1.5),
    ],
)
def test_a_kernel_takes_its_slowest_bound(kernel: Kernel, bound: str, seconds: float) -> None:
    prediction = predict.predict_step(StepCount((kernel,), 0.0, ()), TARGET, num_devices=4)
    assert getattr(prediction, bound) == pytest.approx(seconds)
    assert prediction.total == pytest.approx(seconds)


def test_a_step_takes_the_sum_of_kernels_and_reads() -> None:
    kernels = Kernel("a", "fusion", 2.0), Kernel("b", "fusion", 1.0, 400.0)
    prediction = predict.predict_step(StepCount(kernels, 3.0, ()), TARGET)
    assert prediction.total == pytest.approx(2.0 + 4.0 + 1.5)
    assert (prediction.launch, prediction.memory, prediction.host) == (2.0, 4.0, 1.5)

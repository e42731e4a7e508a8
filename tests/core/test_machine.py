"""What is read of the machine, with a management library of NVIDIA's that is made up."""

import sys
import types
from typing import Any

import jax
import psutil
import pytest

from jaxrf.core import machine
from jaxrf.core.machine import GIB, Machine


class NVMLError(Exception):
    pass


def make_nvml(**changes: Any) -> Any:
    """A library with three accelerators; a handle is an index, or the UUID that was asked for."""

    def refuse(_: Any) -> Any:
        raise NVMLError("not supported")

    nvml = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: index if index < 3 else refuse(index),
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=70, memory=5),
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=3 * GIB, total=8 * GIB),
        nvmlDeviceGetPowerUsage=lambda handle: 123_456,
    )
    for name, change in changes.items():
        setattr(nvml, name, refuse if change is None else change)
    return nvml


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    # None stands for a package that is not installed.
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_machine_reports_memory_of_this_process() -> None:
    values = Machine().read()
    used = psutil.Process().memory_info().rss / GIB
    assert values["memory_gib"] == pytest.approx(used, rel=0.2)
    assert values["peak_memory_gib"] >= 0.9 * values["memory_gib"]
    assert not [name for name in values if "accelerator" in name]


def test_machine_cpu_load_covers_at_least_half_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, shares = 100.0, iter([0.0, 20.0, 60.0])
    monkeypatch.setattr(machine.time, "monotonic", lambda: now)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: next(shares))
    watched = Machine()
    result = []
    for now in (100.1, 100.6, 100.7, 101.2):  # noqa: B007
        result.append(watched.read().get("cpu_percent"))
    assert result == [None, 20.0, 20.0, 60.0]


def test_read_accelerator_converts_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", make_nvml())
    values = Machine().read()
    for number in range(3):
        assert values[f"accelerator{number}_utilization_percent"] == 70.0
        assert values[f"accelerator{number}_memory_gib"] == 3.0
        assert values[f"accelerator{number}_power_watts"] == pytest.approx(123.456)
    assert len([name for name in values if "accelerator" in name]) == 9


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        ("GPU-ab, 1", ["GPU-ab", 1]),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("7", []),
    ],
)
def test_open_nvml_respects_visible_devices(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[Any]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", make_nvml())
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.open_nvml()[1] == expected


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_open_nvml_without_driver_returns_none(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: Any) -> Any:
        raise NVMLError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", make_nvml(**{broken: fail}))
    assert set(Machine().read()) == {"memory_gib", "peak_memory_gib"}


def test_read_accelerator_leaves_out_unsupported_measurements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = make_nvml(nvmlDeviceGetUtilizationRates=None, nvmlDeviceGetCount=lambda: 1)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    result = {name for name in Machine().read() if "accelerator" in name}
    assert result == {"accelerator0_memory_gib", "accelerator0_power_watts"}


def test_machine_reports_memory_of_devices_that_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = [{"bytes_in_use": GIB, "peak_bytes_in_use": 2 * GIB}, {"bytes_in_use": GIB // 2}, None]
    devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    result = {name: value for name, value in Machine().read().items() if "device" in name}
    assert result == {
        "device0_memory_gib": 1.0, "device0_peak_memory_gib": 2.0, "device1_memory_gib": 0.5
    }  # fmt: skip

"""Steps compiled for devices that are not there; these tests have the compilers of few machines."""

import dataclasses
import importlib.util
from types import SimpleNamespace

import pytest
from scenes import make_scene, tiny_hashgrid

from jaxrf.parallel.devices import make_mesh
from jaxrf.presets import make_preset
from jaxrf.studies import compile_for, targets


def test_memory_fits_if_arguments_temporaries_and_new_outputs_do() -> None:
    analysis = SimpleNamespace(
        argument_size_in_bytes=60, temp_size_in_bytes=30, output_size_in_bytes=25,
        alias_size_in_bytes=20,
    )  # fmt: skip
    target = dataclasses.replace(targets.TARGETS["v5e"], memory_bytes=95.0)
    assert compile_for.measure_memory(analysis, target) == {
        "argument_bytes": 60, "temporary_bytes": 30, "fits": True,
    }  # fmt: skip
    smaller = dataclasses.replace(target, memory_bytes=94.0)
    assert not compile_for.measure_memory(analysis, smaller)["fits"]


def test_rounds_follow_from_the_function_of_a_loop() -> None:
    functions = {
        "while.1": "_sum_before, core/packing.py:105",
        "while.2": "DensityTrackedGrid.maybe_update, sampling/density_tracking.py:101",
        "while.3": "train_steps, training/step.py:133",
    }
    rounds = compile_for.guess_rounds(functions, make_preset("hashgrid-ngp"))
    assert rounds == {"while.1": 7.0, "while.2": 1 / 16}


def test_the_functions_whose_loops_are_open_exist() -> None:
    from jaxrf.core import packing
    from jaxrf.rendering import packed
    from jaxrf.sampling.density_tracking import DensityTrackedGrid

    names = [*vars(packing), *vars(packed), *vars(DensityTrackedGrid)]
    assert {*compile_for.SUMS, "maybe_update"} <= set(names)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("W0 noise\nXlaRuntimeError: RESOURCE_EXHAUSTED: 20G of 16G\n", "RESOURCE_EXHAUSTED: 20G"),
        ("Traceback\nValueError: no\nat exit\n", "ValueError: no"),
        ("", "exit code -6"),
    ],
)
def test_a_failure_is_told_by_its_line(stderr: str, reason: str) -> None:
    assert reason in compile_for.summarize_failure(stderr, -6)


@pytest.mark.slow
def test_a_step_is_counted_on_the_devices_that_there_are() -> None:
    target = targets.TARGETS["h200"]
    counts = compile_for.count_on_mesh(tiny_hashgrid(), make_scene(16), make_mesh(1), target)
    assert counts["fits"] and counts["kernels"] > 10 and counts["collectives"] == {}
    assert counts["matmul_flops"] > 0 and counts["rows"] > 0
    assert counts["step_seconds"] == pytest.approx(sum(counts["prediction"].values()))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["h200:1", "h200:2", "v5e:4"])
def test_a_preset_is_compiled_for_a_device_that_is_not_there(name: str) -> None:
    devices = targets.parse_slice(name)
    missing = [p for p in devices.target.packages if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    counts = compile_for.compile_preset(make_preset("voxels-small"), devices)
    assert counts.get("error") is None and counts["fits"]
    assert counts["kernels"] > 50 and counts["rows"] > counts["samples"]
    # Gradients are added over the devices, if there are several.
    assert (counts["collectives"] != {}) == (devices.count > 1)

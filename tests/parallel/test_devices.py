"""Several devices: they compute what one device computes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxrf.core.errors import InputError
from jaxrf.parallel import devices

pytestmark = pytest.mark.as_used

TESTS = Path(__file__).resolve().parents[1]


def run_devices(counts: str, kind: str, **more: str) -> dict[str, Any]:
    """The output of `tests/devices.py` for one kind of field."""
    command = [sys.executable, str(TESTS / "devices.py"), counts, kind]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"PYTHONPATH": path} | more
    completed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.strip().splitlines()[-1])[kind]


KINDS = ["nerf", "bitnerf", "tensorf", "voxels", "hashgrid", "pynerf"]
# Cameras that are trained too; in float64 the fields tell enough.
REFINED = "refined"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        pytest.param(kind, "2,4,8", marks=[] if kind == "hashgrid" else pytest.mark.long)
        for kind in KINDS
    ]
    + [(REFINED, "2,4,8")],
)
def test_devices_compute_the_gradient_of_one_device_and_with_shards_its_bits(
    kind: str, counts: str
) -> None:
    results = run_devices(counts, kind)
    assert results["gradient"].keys() == results["bits"].keys() == set(counts.split(","))
    for num_devices, error in results["gradient"].items():
        assert error < 1e-6, f"on {num_devices} devices"
    assert not any(results["bits"].values()), results["bits"]
    assert results["image"] == 0.0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_devices_agree_with_one_device_over_many_steps_in_float64(kind: str) -> None:
    errors = run_devices("2,4,8", kind, JAX_ENABLE_X64="1")
    assert errors.keys() == {"2", "4", "8"}
    assert max(errors.values()) < 1e-9, errors


def test_make_mesh_rejects_more_devices_than_there_are() -> None:
    with pytest.raises(InputError, match=r"devices asks for 1000, but there"):
        devices.make_mesh(1000)

"""Pages of steps compiled for absent devices: rows, failures, and reports that are continued."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxrf.cli import bench
from jaxrf.core.errors import InputError
from jaxrf.studies import compile_for, compile_report
from jaxrf.studies.options import BenchOptions

COUNTS: dict[str, Any] = {
    "scene": "lego-sized", "num_steps": 20_000, "compile_seconds": 35.0,
    "argument_bytes": 724 << 20, "temporary_bytes": 700 << 20, "fits": True, "samples": 1 << 18,
    "kernels": 197, "launches": 240.9, "host_reads": 18.1, "open_loops": [], "rows": 1.247e8,
    "matmul_flops": 1.51e10, "element_ops": 2.4e9, "moved_bytes": 8.28e9,
    "collectives": {"all-reduce": (2.0, 3 << 20)}, "step_seconds": 0.002456,
    "prediction": {
        "launch": 0.0005, "memory": 0.0016, "matmul": 0.0001, "element": 0.0, "host": 0.0003,
        "link": 0.0,
    },
    "training_seconds": 49.1,
}  # fmt: skip


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the slices that were compiled for, of which one fails."""
    names: list[str] = []

    def compile_preset(config: Any, devices: Any, time_limit: float) -> dict[str, Any]:
        names.append(devices.name)
        return {"error": "RESOURCE_EXHAUSTED: a | b"} if devices.count == 8 else COUNTS

    monkeypatch.setattr(compile_for, "compile_preset", compile_preset)
    monkeypatch.setattr(compile_report.targets, "require_packages", lambda target: None)
    return names


def test_the_page_has_a_row_for_each_step_and_says_what_failed(
    tmp_path: Path, compiled: list[str]
) -> None:
    options = BenchOptions(
        compile_for=("h200:1", "v5e:8"), presets=("hashgrid-ngp",), output=tmp_path, name="x"
    )
    assert bench.run(options) == 0
    (path,) = tmp_path.glob("*-x.md")
    page = path.read_text()
    assert (
        "| hashgrid-ngp | h200:1 | 2.46 | 0.50 | 1.60 | 0.10 | 0.00 | 0.30 | 0.00 | 20,000 | 49 s |"
        in page
    )
    assert "| hashgrid-ngp | h200:1 | 724 MiB | 700 MiB | yes | 197, 241 | 18.1 | 8.28 GB |" in page
    assert "2 all-reduce of 3.0 MiB" in page
    assert "| hashgrid-ngp | v5e:8 | RESOURCE_EXHAUSTED: a \\| b |" in page
    assert "| NVIDIA H200 SXM | 141 GB | 4800 | 67, 989 | 450 | 2.5, 15 | 32 B |" in page
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    # What failed is tried again, and nothing else.
    again = BenchOptions(
        compile_for=("h200:1", "v5e:8"), presets=("hashgrid-ngp",), output=tmp_path, name="x",
        resume=True,
    )  # fmt: skip
    assert bench.run(again) == 0
    assert compiled == ["h200:1", "v5e:8", "v5e:8"]


def test_reports_of_other_versions_are_not_continued(tmp_path: Path) -> None:
    stem = tmp_path / "report"
    assert compile_report.read_rows(stem) == []
    stem.with_suffix(".json").write_text(json.dumps({"rows": [], "versions": {"jax": "0.1"}}))
    with pytest.raises(InputError, match=r"was made with .*0\.1.*choose another .*name"):
        compile_report.read_rows(stem)
    stem.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match="cannot be continued"):
        compile_report.read_rows(stem)


@pytest.mark.parametrize(
    ("seconds", "text"), [(49.2, "49 s"), (720.0, "12 min"), (12_600.0, "3.5 h")]
)
def test_durations_have_a_fitting_unit(seconds: float, text: str) -> None:
    assert compile_report.format_duration(seconds) == text


def test_unknown_devices_are_refused_before_anything_is_compiled(compiled: list[str]) -> None:
    with pytest.raises(InputError, match="h300:1 is unknown"):
        bench.run(BenchOptions(compile_for=("h200:1", "h300:1"), presets=("hashgrid-ngp",)))
    assert compiled == []

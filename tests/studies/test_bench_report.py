"""Reports of the benchmark: tables, plots, and which reports are continued."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from reports import ROOFLINE, make_result

from jaxrf.core.errors import InputError
from jaxrf.studies import bench_report
from jaxrf.studies.options import BenchOptions

pytestmark = pytest.mark.as_used


def test_format_report_has_a_row_for_each_run_and_the_machine() -> None:
    report = {
        "hardware": "CPU", "processor": "abacus",
        "versions": {"jax": "1", "python": "2"}, "roofline": vars(ROOFLINE),
        "runs": [make_result("voxels-small", []), make_result("nerf-small", [])],
    }  # fmt: skip
    text = bench_report.format_report(report)
    assert text.startswith("# Benchmark of 2026-01-02\n")
    later = report | {"runs": [make_result("a", []), make_result("b", []) | {"date": "2026-01-05"}]}
    assert bench_report.format_report(later).startswith("# Benchmark of 2026-01-02 to 2026-01-05\n")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    # Every line of a table has as many cells as its head.
    assert len({line.count("|") for line in tables[:3]}) == 1
    assert len({line.count("|") for line in tables[3:]}) == 1
    assert (
        "| 16x16 | nerf-small, 0 | 60 | 30.12 dB, 0.9000 | 2 | 12,345 | 5.0, 1.5 | 12 | - | - "
        "| - | 150.0k | 3.00M | 25% |" in text
    )
    assert "| 1 GFLOP/s | 2 GFLOP/s | 3 GB/s | 4 M/s | 5 M/s |" in text


def test_plot_curves_accepts_a_run_without_validations() -> None:
    drawn = bench_report.plot_curves(
        [make_result("a", [(1.0, 20.0), (2.0, 25.0)]), make_result("b", [])]
    )
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_curves_draws_the_longest_of_several_budgets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, long, other = (
        make_result("a", [(1.0, 20.0)]),
        make_result("a", [(5.0, 30.0)]) | {"budget": 300.0},
        make_result("a", [(2.0, 25.0)]) | {"resolution": [32, 32]},
    )
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(
        bench_report.images, "encode_plot", lambda curves, *_: drawn.append(curves) or b""
    )
    bench_report.plot_curves([short, long, other])
    assert list(drawn[0].values()) == [long["curve"], other["curve"]]


def test_read_results_continues_only_reports_of_this_machine(tmp_path: Path) -> None:
    stem = tmp_path / "2026-01-02-study"
    assert bench_report.read_results(stem) == []
    options = BenchOptions(output=tmp_path, name="study", resume=True)
    assert bench_report.report_stem(options).name == f"{datetime.date.today().isoformat()}-study"
    results = [make_result("voxels-small", [(1.0, 20.0)]) | {"downscale": 4}]
    bench_report.write_report(stem, ROOFLINE, results)
    stored = bench_report.read_results(stem)
    assert bench_report.report_stem(options) == stem
    assert bench_report.report_stem(dataclasses.replace(options, resume=False)) != stem
    assert [run["preset"] for run in stored] == ["voxels-small"] and stored[0]["downscale"] == 4

    path = stem.with_suffix(".json")
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"processor": "an abacus"}))
    with pytest.raises(InputError, match="processor an abacus"):
        bench_report.read_results(stem)
    for text in (
        "{",
        json.dumps(report | {"runs": [{"curve": []}]}),
        json.dumps({"runs": 3}),
        "[]",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="cannot be continued"):
            bench_report.read_results(stem)

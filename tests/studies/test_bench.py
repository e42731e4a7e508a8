"""The benchmark: which presets it refuses, which runs it does, what it writes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from reports import ROOFLINE, make_result
from scenes import write_scene

from jaxrf.cli import main as cli
from jaxrf.studies import bench
from jaxrf.studies.options import BenchOptions

pytestmark = pytest.mark.as_used


def test_bench_refuses_invalid_presets_before_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--presets", "no-such"]) == 2
    assert "no-such is unknown" in capsys.readouterr().err
    assert cli.main(["bench", "--budget", "-1"]) == 2
    assert cli.main(["bench", "--presets", "nerf-small --num-steps -1"]) == 2
    assert "--num-steps is -1" in capsys.readouterr().err


def test_bench_resume_skips_runs_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, float]] = []

    def train(_: Any, preset: str, seed: int, downscale: int, budget: float, folder: Path) -> None:
        trained.append((preset, budget))

    def summarize(folder: Path, preset: str, seed: int, budget: float, _: Any) -> dict[str, Any]:
        return make_result(preset, [(1.0, 20.0)]) | {"budget": budget}

    monkeypatch.setattr(bench.bench_runs, "train", train)
    monkeypatch.setattr(bench.bench_runs, "summarize", summarize)
    monkeypatch.setattr(bench.roofline, "measure_roofline", lambda: ROOFLINE)
    monkeypatch.setattr(bench.sources, "ensure_bricks", lambda _: None)
    options = BenchOptions(presets=("voxels-small",), budget=(60.0,), output=tmp_path)
    assert bench.run(options) == 0
    more = dataclasses.replace(
        options, presets=("voxels-small", "nerf-small"), budget=(30.0, 60.0), resume=True
    )
    assert bench.run(more) == 0
    added = [("voxels-small", 30.0), ("nerf-small", 30.0), ("nerf-small", 60.0)]
    assert trained == [("voxels-small", 60.0), *added]
    (path,) = tmp_path.glob("*.json")
    assert len(json.loads(path.read_text())["runs"]) == 4
    assert bench.run(more) == 0 and len(trained) == 4


@pytest.mark.slow
@pytest.mark.long
def test_bench_writes_its_report(tmp_path: Path) -> None:
    data = write_scene(tmp_path / "ball")
    arguments = ["bench", "--data", str(data), "--budget", "60", "--presets", "voxels-small"]
    assert cli.main([*arguments, "--every", "1", "--output", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    report = json.loads(path.read_text())
    (run,) = report["runs"]
    assert run["preset"] == "voxels-small" and run["trained_by_seconds"] < 61
    assert 0 < run["share_of_roofline"] < 2 and all(report["roofline"].values())
    assert len(run["curve"]) >= 2 and run["frame_seconds"]["400"] > 0
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".md", ".png"}

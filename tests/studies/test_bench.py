"""The benchmark: what it counts, finds and writes; that it runs is a slow test."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import make_scene, tiny_nerf, tiny_tensorf, write_scene

from jaxrf.cli import main as cli
from jaxrf.cli.options import BenchOptions
from jaxrf.core.errors import InputError
from jaxrf.models import methods
from jaxrf.studies import bench
from jaxrf.studies.bench import ROW, Roofline
from jaxrf.training import transitions
from jaxrf.training.config import NeRFConfig, VoxelsConfig

pytestmark = pytest.mark.as_used


@pytest.mark.parametrize(
    ("level", "expected"), [(20.0, 10.0), (25.0, 10.0), (26.0, 15.0), (29.0, 35.0), (31.0, None)]
)
def test_levels_are_reached_between_validations(level: float, expected: float | None) -> None:
    curve = [(10.0, 25.0), (20.0, 27.0), (30.0, 26.5), (40.0, 31.0 - 1e-3)]
    found = bench.find_time(curve, level)
    if level == 29.0:
        # From the dip at 30 s on: 2.5 of 4.499 dB of the way.
        expected = 30.0 + 10.0 * 2.5 / (31.0 - 1e-3 - 26.5)
    assert found == (None if expected is None else pytest.approx(expected, abs=0.05))
    assert bench.find_time([], level) is None


@pytest.mark.parametrize(
    "field",
    [
        NeRFConfig(),
        NeRFConfig(layers=4, width=64, skip=2, color_width=32, num_position_frequencies=5),
        NeRFConfig(layers=2, width=8, skip=9, color_width=3, num_direction_frequencies=1),
    ],
)
def test_work_of_a_nerf_is_that_of_its_matrices(field: NeRFConfig) -> None:
    config = tiny_nerf(field=field)
    stage = transitions.first_stage(config, make_scene().aabb)
    params = jax.eval_shape(lambda: methods.make_field(field, stage).init(jax.random.key(0)))
    matrices = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    work = bench.count_work(field, stage)
    assert work.flops == 3 * 2 * sum(matrices)
    assert work.gathered == work.scattered == 0


def test_work_of_grids_is_that_of_their_rows() -> None:
    voxels = bench.count_work(VoxelsConfig(feature_dim=7), methods.Stage((8,) * 3, (8,) * 3, 1, 1))
    assert (voxels.flops, voxels.gathered, voxels.scattered) == (0.0, 8.0, 8.0)
    config = tiny_tensorf()
    stage = transitions.first_stage(config, make_scene().aabb)
    field: Any = config.field
    one, half = (
        bench.count_work(field, dataclasses.replace(stage, sample_budget=100, color_budget=colored))
        for colored in (0, 50)
    )
    assert one.gathered == 18 * (field.density_components + field.feature_components) / ROW
    assert one.gathered - half.gathered == 18 * 0.5 * field.feature_components / ROW
    assert one.flops == 2 * half.flops > 0


ROOFLINE = Roofline(matmul=1.0, layer=2.0, memory=3.0, gather=4.0, scatter=5.0)


def make_result(preset: str, curve: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "date": "2026-01-02", "preset": preset, "seed": 0, "dataset": "ball",
        "resolution": [16, 16], "views": 2, "background": "white", "budget": 60.0,
        "parameters": 12345, "compile_seconds": 1.5,
        "psnr": 30.123, "ssim": 0.9, "first_step_seconds": 5.0,
        "seconds_to_db": {f"{level:g}": None for level in bench.LEVELS} | {"25": 12.0},
        "rays_per_second": 1.5e5, "samples_per_second": 3e6, "share_of_roofline": 0.25,
        "peak_memory_bytes": 2**31, "frame_seconds": {"200": 0.1, "400": 0.4}, "curve": curve,
    }  # fmt: skip


def test_a_report_has_a_row_for_each_run_and_the_machine() -> None:
    report = {
        "hardware": "CPU", "processor": "some",
        "versions": {"jax": "1", "python": "2"}, "roofline": vars(ROOFLINE),
        "runs": [make_result("voxels-small", []), make_result("nerf-small", [])],
    }  # fmt: skip
    text = bench.format_report(report)
    assert text.startswith("# Benchmark of 2026-01-02\n")
    later = report | {"runs": [make_result("a", []), make_result("b", []) | {"date": "2026-01-05"}]}
    assert bench.format_report(later).startswith("# Benchmark of 2026-01-02 to 2026-01-05\n")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    # As many cells in each line of a table as in its head.
    assert len({line.count("|") for line in tables[:3]}) == 1
    assert len({line.count("|") for line in tables[3:]}) == 1
    assert (
        "| 16x16 | nerf-small, 0 | 60 | 30.12 dB, 0.9000 | 2 | 12,345 | 5.0, 1.5 | 12 | - | - "
        "| - | 150.0k | 3.00M | 25% |" in text
    )
    assert "| 1 GFLOP/s | 2 GFLOP/s | 3 GB/s | 4 M/s | 5 M/s |" in text


def test_curves_are_drawn_even_where_there_is_none() -> None:
    drawn = bench.plot_curves([make_result("a", [(1.0, 20.0), (2.0, 25.0)]), make_result("b", [])])
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"


def test_of_runs_that_differ_by_their_budget_the_longest_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, long, other = (
        make_result("a", [(1.0, 20.0)]),
        make_result("a", [(5.0, 30.0)]) | {"budget": 300.0},
        make_result("a", [(2.0, 25.0)]) | {"resolution": [32, 32]},
    )
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(
        bench.pictures, "encode_plot", lambda curves, *_: drawn.append(curves) or b""
    )
    bench.plot_curves([short, long, other])
    assert list(drawn[0].values()) == [long["curve"], other["curve"]]


def test_the_best_time_of_a_call_is_about_what_it_takes() -> None:
    product = jax.jit(jnp.matmul)
    a = jnp.asarray(np.ones((256, 256), np.float32))
    assert 0.0 < bench.best_seconds(product, a, a) < 1.0
    assert bench.describe_processor()


def test_an_unknown_preset_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--presets", "no-such"]) == 2
    assert "no-such is unknown" in capsys.readouterr().err
    assert cli.main(["bench", "--budget", "-1"]) == 2
    assert cli.main(["bench", "--presets", "nerf-small --steps -1"]) == 2
    assert "--steps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    data = write_scene(tmp_path / "ball")
    arguments = ["bench", "--data", str(data), "--budget", "30", "--presets", "voxels-small"]
    assert cli.main([*arguments, "--every", "1", "--output", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    report = json.loads(path.read_text())
    (run,) = report["runs"]
    assert run["preset"] == "voxels-small" and run["trained_by_seconds"] < 31
    assert 0 < run["share_of_roofline"] < 2 and all(report["roofline"].values())
    assert len(run["curve"]) >= 2 and run["frame_seconds"]["400"] > 0
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".md", ".png"}


def test_a_report_of_this_machine_is_gone_on_with_and_another_is_not(tmp_path: Path) -> None:
    stem = tmp_path / "2026-01-02-some"
    assert bench.read_results(stem) == []
    options = BenchOptions(output=tmp_path, name="some", resume=True)
    assert bench.find_stem(options).name == f"{datetime.date.today().isoformat()}-some"
    wanted = [make_result("voxels-small", [(1.0, 20.0)]) | {"downscale": 4}]
    bench.write_report(stem, ROOFLINE, wanted)
    found = bench.read_results(stem)
    assert bench.find_stem(options) == stem
    assert bench.find_stem(dataclasses.replace(options, resume=False)) != stem
    assert [run["preset"] for run in found] == ["voxels-small"] and found[0]["downscale"] == 4

    path = stem.with_suffix(".json")
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"processor": "an abacus"}))
    with pytest.raises(InputError, match="processor an abacus"):
        bench.read_results(stem)
    for text in (
        "{",
        json.dumps(report | {"runs": [{"curve": []}]}),
        json.dumps({"runs": 3}),
        "[]",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="cannot be continued"):
            bench.read_results(stem)


def test_runs_that_are_there_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, float]] = []

    def train(_: Any, preset: str, seed: int, downscale: int, budget: float, folder: Path) -> None:
        trained.append((preset, budget))

    def summarise(folder: Path, preset: str, seed: int, budget: float, _: Any) -> dict[str, Any]:
        return make_result(preset, [(1.0, 20.0)]) | {"budget": budget}

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(bench, "summarise", summarise)
    monkeypatch.setattr(bench, "measure_roofline", lambda: ROOFLINE)
    monkeypatch.setattr(bench.sources, "ensure_bricks", lambda _: None)
    options = BenchOptions(presets=("voxels-small",), budget=(60.0,), output=tmp_path)
    assert bench.run_bench(options) == 0
    more = dataclasses.replace(
        options, presets=("voxels-small", "nerf-small"), budget=(30.0, 60.0), resume=True
    )
    assert bench.run_bench(more) == 0
    rest = [("voxels-small", 30.0), ("nerf-small", 30.0), ("nerf-small", 60.0)]
    assert trained == [("voxels-small", 60.0), *rest]
    (path,) = tmp_path.glob("*.json")
    assert len(json.loads(path.read_text())["runs"]) == 4
    assert bench.run_bench(more) == 0 and len(trained) == 4

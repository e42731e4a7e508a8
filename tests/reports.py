"""Invented results of a benchmark, for tests of its reports."""

from typing import Any

from jaxrf.studies import bench_runs
from jaxrf.studies.roofline import Roofline

ROOFLINE = Roofline(matmul=1.0, layer=2.0, memory=3.0, gather=4.0, scatter=5.0)


def make_result(preset: str, curve: list[tuple[float, float]]) -> dict[str, Any]:
    """Returns a result as a report stores it."""
    return {
        "date": "2026-01-02", "preset": preset, "seed": 0, "dataset": "ball",
        "resolution": [16, 16], "views": 2, "background": "white", "budget": 60.0,
        "parameters": 12345, "compile_seconds": 1.5,
        "psnr": 30.123, "ssim": 0.9, "first_step_seconds": 5.0,
        "seconds_to_db": {f"{level:g}": None for level in bench_runs.LEVELS} | {"25": 12.0},
        "rays_per_second": 1.5e5, "samples_per_second": 3e6, "share_of_roofline": 0.25,
        "peak_memory_bytes": 2**31, "frame_seconds": {"200": 0.1, "400": 0.4}, "curve": curve,
    }  # fmt: skip

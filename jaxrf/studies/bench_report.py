"""Reports of the benchmark: JSON, a table in Markdown, and a plot of PSNR over time."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from jaxrf.core import environment
from jaxrf.core.errors import InputError
from jaxrf.evaluation import images
from jaxrf.evaluation.metrics import format_metrics, select_metrics
from jaxrf.studies.bench_runs import FRAME_SIZES, LEVELS
from jaxrf.studies.options import BenchOptions
from jaxrf.studies.roofline import Roofline
from jaxrf.training import runs

# Keys that identify a run.
RUN_KEY = ("downscale", "preset", "budget", "seed")


def report_stem(options: BenchOptions) -> Path:
    """Returns the path of the report without its ending.

    With `options.resume` it is the newest report of that name, if there is one; else today's.
    """
    if options.resume:
        reports = sorted(options.output.glob(f"????-??-??-{options.name}.json"))
        if reports:
            return reports[-1].with_suffix("")
    return options.output / f"{datetime.date.today().isoformat()}-{options.name}"


def read_results(stem: Path) -> list[dict[str, Any]]:
    """Returns the runs of a report; none if there is no report.

    Raises:
      InputError: it was measured on another machine or with other versions, or is damaged.
    """
    path = stem.with_suffix(".json")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        machine = {name: report[name] for name in ("hardware", "processor", "versions")}
        results = [
            {**run, "curve": [(point[0], point[1]) for point in run["curve"]]}
            for run in report["runs"]
        ]
        if any(key not in run for run in results for key in RUN_KEY):
            raise ValueError("it is of an earlier version")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be continued ({error}): choose another --name or leave out --resume."
        ) from error
    for name, value in describe_machine().items():
        if machine[name] != value:
            raise InputError(
                f"{path} was measured with {name} {machine[name]}, here it is {value}: choose "
                "another --name."
            )
    return results


def describe_machine() -> dict[str, Any]:
    """Returns the hardware and versions that results depend on."""
    return {
        "hardware": environment.describe_hardware(),
        "processor": environment.describe_processor(),
        "versions": environment.describe_versions(),
    }


def format_profile_heading(roofline: Roofline, dataset: str, steps: int) -> str:
    """Returns the beginning of a page of profiles."""
    versions = environment.describe_versions()
    lines = [
        f"# Profile of {datetime.date.today().isoformat()}",
        "",
        f"{environment.describe_hardware()}; processor {environment.describe_processor()}. jax "
        f"{versions['jax']}, Python {versions['python']}. {dataset}, {steps} steps, of which the "
        "last ones are recorded. Made by `jaxrf bench --profile`.",
        "",
        *_format_roofline(dataclasses.asdict(roofline)),
    ]
    return "\n".join(lines) + "\n"


def _format_roofline(roofline: dict[str, float]) -> list[str]:
    return [
        "| float32 matmul | layer 65,536x256x256 | memory | gather of rows of 8 | scatter |",
        "|---|---|---|---|---|",
        f"| {roofline['matmul']:.0f} GFLOP/s | {roofline['layer']:.0f} GFLOP/s | "
        f"{roofline['memory']:.0f} GB/s | {roofline['gather']:.0f} M/s | "
        f"{roofline['scatter']:.0f} M/s |",
    ]


def write_report(stem: Path, roofline: Roofline, results: list[dict[str, Any]]) -> str:
    """Writes the results as JSON, as a table and as a plot; returns the table."""
    report = {
        **describe_machine(),
        "roofline": dataclasses.asdict(roofline),
        "runs": results,
    }
    table = format_report(report)
    runs.write_text(stem.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    runs.write_text(stem.with_suffix(".md"), table)
    stem.with_suffix(".png").write_bytes(plot_curves(results))
    return table


def format_report(report: dict[str, Any]) -> str:
    """Returns a report as Markdown."""
    roofline, results, versions = report["roofline"], report["runs"], report["versions"]
    headings = ", ".join(metric.heading for metric in select_metrics(results[0]))
    dates = sorted({run["date"] for run in results})
    lines = [
        f"# Benchmark of {' to '.join(dates[:1] + dates[1:][-1:])}",
        "",
        f"{report['hardware']}; processor {report['processor']}. jax {versions['jax']}, Python "
        f"{versions['python']}. {results[0]['dataset']} on {results[0]['background']}, "
        "seconds from the start of the process, compilation cache empty, validations "
        "not counted. `first step` and `compile` are seconds; `compile` counts those in which "
        "training waited. Frames are rendered with one ray per pixel. Made by `jaxrf bench`.",
        "",
        *_format_roofline(roofline),
        "",
        f"| pictures | preset, seed | budget s | test {headings} | test views | parameters "
        "| first step, compile | "
        + " | ".join(f"{level:g} dB s" for level in LEVELS)
        + " | rays/s | samples/s | of the roofline | 200x200, 400x400 frame s | memory |",
        "|---" * (12 + len(LEVELS)) + "|",
        *(_format_run(run) for run in results),
    ]
    return "\n".join(lines) + "\n"


def _format_run(run: dict[str, Any]) -> str:
    times = (run["seconds_to_db"][f"{level:g}"] for level in LEVELS)
    cells = [
        "x".join(str(n) for n in run["resolution"]),
        f"{run['preset']}, {run['seed']}",
        f"{run['budget']:g}",
        ", ".join(format_metrics(run)),
        str(run["views"]),
        f"{run['parameters']:,}",
        f"{run['first_step_seconds']:.1f}, {run['compile_seconds']:.1f}",
        *("-" if t is None else f"{t:.0f}" for t in times),
        f"{run['rays_per_second'] / 1e3:.1f}k",
        f"{run['samples_per_second'] / 1e6:.2f}M",
        f"{run['share_of_roofline']:.0%}",
        ", ".join(f"{run['frame_seconds'][str(size)]:.2f}" for size in FRAME_SIZES),
        f"{run['peak_memory_bytes'] / 2**30:.1f} GiB",
    ]
    return "| " + " | ".join(cells) + " |"


def plot_curves(results: list[dict[str, Any]]) -> bytes:
    """Plots PSNR on validation views over the seconds since the start, as PNG.

    Of runs that differ only by their budget, the longest is drawn.
    """
    ordered = sorted(results, key=lambda run: run["budget"])
    longest = {(run["preset"], *run["resolution"], run["seed"]): run for run in ordered}
    results = [run for run in results if run in longest.values()]
    titles = [
        (
            run["preset"],
            "x".join(str(n) for n in run["resolution"]),
            f"{run['budget']:g} s",
            f"seed {run['seed']}",
        )
        for run in results
    ]
    # Properties that all runs share go into the plot's title instead of the legend.
    shared = [part for part, *others in zip(*titles, strict=True) if set(others) <= {part}]
    curves = {
        ", ".join(title[:1] + tuple(part for part in title[1:] if part not in shared)): run["curve"]
        for title, run in zip(titles, results, strict=True)
    }
    title = ", ".join([results[0]["dataset"], *shared, f"on {results[0]['background']}"])
    return images.encode_plot(curves, "seconds since the start", "validation PSNR, dB", title)

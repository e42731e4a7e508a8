"""`jaxrf bench --compile-for`: steps compiled for absent accelerators, as JSON and a page."""

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrf.core import environment
from jaxrf.core.errors import InputError
from jaxrf.studies import bench_report, compile_for, targets
from jaxrf.studies.options import BenchOptions
from jaxrf.studies.targets import TARGETS, Target
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig

# What a row of the report is of.
KEY = ("preset", "devices")
BOUNDS = ("launch", "memory", "matmul", "element", "host", "link")
MODEL = """A kernel takes as long as the slowest of its launch, the bytes that it moves, its matrix
products (float32 at the highest precision, if the preset asks for no other) and its other
operations, at the rates below. A step takes the sum over its kernels, one after the other, and over
the numbers that the host reads. Of a row that is looked up, at least a granule moves. A collective
takes its bytes on one device's link: twice (n - 1) / n of them for an all-reduce over n devices,
once for others. Nothing overlaps and no cache helps. Loops that end when their data say so count as
7 rounds in sums along rays and as 1 in 16 steps in updates of the occupancy grid. Counted is the
last stage, with every sample budget full; the predicted training takes all its steps at that rate,
without compilation, validation and images. On a TPU look-ups are bounded by their bytes alone, and
arrays that XLA keeps on the chip cost nothing, so its times are lower bounds."""


def run(options: BenchOptions, configs: Sequence[TrainConfig]) -> int:
    """Compiles each preset for each target; writes JSON and a page. Returns the exit code.

    Args:
      options: of the benchmark.
      configs: of its presets.

    Raises:
      InputError: a target is unknown, or the packages that compile for it are missing.
    """
    slices = [targets.parse_slice(text) for text in options.compile_for]
    for devices in slices:
        targets.require_packages(devices.target)
    runs.make_writable(options.output, "--output")
    stem = bench_report.report_stem(options)
    rows = read_rows(stem) if options.resume else []
    done = {tuple(row[key] for key in KEY) for row in rows if "error" not in row}
    page = write_rows(stem, rows)
    for devices in slices:
        for preset, config in zip(options.preset_names, configs, strict=True):
            if (preset, devices.name) in done:
                continue
            print(f"{preset} for {devices.name} ...", flush=True)
            counts = compile_for.compile_preset(config, devices, 60.0 * options.compile_minutes)
            row = {"preset": preset, "devices": devices.name, **counts}
            rows = [r for r in rows if any(r[key] != row[key] for key in KEY)] + [row]
            # Written after every step, so that an interruption loses only one.
            page = write_rows(stem, rows)
    print(f"{page}\nWritten to {stem}.json and .md")
    return 0


def read_rows(stem: Path) -> list[dict[str, Any]]:
    """The rows of a report; none if there is no report.

    Raises:
      InputError: it is damaged, or of other versions.
    """
    path = stem.with_suffix(".json")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows, versions = report["rows"], report["versions"]
        rows = [row for row in rows if all(key in row for key in KEY)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be continued ({error}): choose another --name or leave out --resume."
        ) from error
    if versions != describe_versions():
        raise InputError(
            f"{path} was made with {versions}, here are {describe_versions()}: choose another "
            "--name."
        )
    return rows


def describe_versions() -> dict[str, str]:
    """Versions of jax and of the compilers; those that are missing are left out."""
    versions = {"jax": environment.describe_versions()["jax"]}
    for name in ("jax-cuda13-pjrt", "libtpu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_rows(stem: Path, rows: list[dict[str, Any]]) -> str:
    """Writes the rows as JSON and as a page; returns the page."""
    report = {
        "date": datetime.date.today().isoformat(),
        "versions": describe_versions(),
        "targets": {name: vars(target) for name, target in TARGETS.items()},
        "rows": rows,
    }
    page = format_page(report)
    runs.write_text(stem.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    runs.write_text(stem.with_suffix(".md"), page)
    return page


def format_page(report: dict[str, Any]) -> str:
    """A report as Markdown: the model, and a table each of times, counts and failures."""
    rows = report["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    compiled = [row for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row]
    used = {row["devices"].partition(":")[0]: None for row in rows}
    lines = [
        f"# Compiled for accelerators on {report['date']}",
        "",
        f"Predictions, not measurements: no such device was there. {versions}. Scenes have the "
        "sizes of Lego, 100 images of 800x800, and for captures of 161 images of 1297x840. Made "
        "by `jaxrf bench --compile-for`.",
        "",
        *MODEL.splitlines(),
        "",
        "| device | memory | memory GB/s | float32, 16-bit TFLOP/s | link GB/s | launch, read µs "
        "| granule |",
        "|---|---|---|---|---|---|---|",
        *(_format_target(TARGETS[name]) for name in used),
        "",
        "## Time",
        "",
        "Milliseconds of a step, and what bounds them.",
        "",
        "| preset | devices | predicted ms | " + " | ".join(BOUNDS) + " | steps | training |",
        "|---" * (5 + len(BOUNDS)) + "|",
        *(_format_time(row) for row in compiled),
        "",
        "## Counts",
        "",
        "For one device. Kernels are fusions, library calls, copies and collectives in the text of "
        "a step; launches count those in loops as often as they run.",
        "",
        "| preset | devices | arguments | temporaries | fits | kernels, launches | host reads "
        "| moved | looked-up rows | matmul, other GFLOP | collectives | compiled in s |",
        "|---" * 12 + "|",
        *(_format_counts(row) for row in compiled),
    ]
    if failed:
        lines += ["", "## Not compiled", "", "| preset | devices | why |", "|---|---|---|"]
        lines += [
            f"| {row['preset']} | {row['devices']} | {_escape(row['error'])} |" for row in failed
        ]
    return "\n".join(lines) + "\n"


def _format_target(target: Target) -> str:
    cells = [
        target.title,
        f"{target.memory_bytes / 1e9:.0f} GB",
        f"{target.bandwidth / 1e9:.0f}",
        f"{target.matmul_flops / 1e12:.0f}, {target.half_flops / 1e12:.0f}",
        f"{target.link_bandwidth / 1e9:.0f}",
        f"{1e6 * target.launch_seconds:g}, {1e6 * target.read_seconds:g}",
        f"{target.granule} B",
    ]
    return "| " + " | ".join(cells) + " |"


def _format_time(row: dict[str, Any]) -> str:
    cells = [
        row["preset"],
        row["devices"],
        f"{1e3 * row['step_seconds']:.2f}",
        *(f"{1e3 * row['prediction'][name]:.2f}" for name in BOUNDS),
        f"{row['num_steps']:,}",
        format_duration(row["training_seconds"]),
    ]
    return "| " + " | ".join(cells) + " |"


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit that suits them: "49 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _format_counts(row: dict[str, Any]) -> str:
    collectives = [
        f"{count:.0f} {kind} of {size / 2**20:.1f} MiB"
        for kind, (count, size) in row["collectives"].items()
    ]
    cells = [
        row["preset"],
        row["devices"],
        f"{row['argument_bytes'] / 2**20:,.0f} MiB",
        f"{row['temporary_bytes'] / 2**20:,.0f} MiB",
        "yes" if row["fits"] else "no",
        f"{row['kernels']}, {row['launches']:.0f}",
        f"{row['host_reads']:.1f}",
        f"{row['moved_bytes'] / 1e9:.2f} GB",
        f"{row['rows'] / 1e6:.1f} M",
        f"{row['matmul_flops'] / 1e9:.1f}, {row['element_ops'] / 1e9:.1f}",
        ", ".join(collectives) or "-",
        f"{row['compile_seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """A text that a cell of a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")

"""What this machine can do and what each field makes of it: `jaxrf bench`."""

import dataclasses
import datetime
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from jaxrf.cli import commands
from jaxrf.cli.options import BenchOptions, RenderOptions
from jaxrf.core import grids
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.evaluation import images
from jaxrf.export import render_plan
from jaxrf.models.methods import Stage
from jaxrf.training import runs
from jaxrf.training.config import (
    BitNeRFConfig,
    CustomConfig,
    FieldConfig,
    HashGridConfig,
    NeRFConfig,
    PyNeRFConfig,
    SyntheticSceneConfig,
    TensoRFConfig,
    TrainConfig,
    VoxelsConfig,
    make_preset,
)

LEVELS = (25.0, 28.0, 30.0, 32.0)
# A row of so many channels is the unit in which look-ups are counted.
ROW = 8
# Times of everything short are the best of so many.
TRIES = 5
# Frames that take so many seconds are timed once only, compilation included.
LONG_FRAME = 30.0
# What tells a run from another one.
RUN_KEY = ("downscale", "preset", "budget", "seed")


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Rates that this machine reaches at the operations that fields are made of.

    Attributes:
      matmul: float32 GFLOP/s, square matrices of 4096.
      layer: the same for 65,536 x 256 times 256 x 256, a layer of the original NeRF.
      memory: GB/s read and written by an addition in place.
      gather: million rows of 8 channels a second, read at random from 262,144.
      scatter: the same, added to.
    """

    matmul: float
    layer: float
    memory: float
    gather: float
    scatter: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What one sample costs in training, gradient included.

    Attributes:
      flops: in dense layers.
      gathered, scattered: rows of 8 channels.
    """

    flops: float
    gathered: float
    scattered: float


def run_bench(options: BenchOptions) -> int:
    """Measures the machine and every preset; writes JSON, a table and a plot. Exit code."""
    commands.set_up_jax("highest")
    runs.make_writable(options.output, "--output")
    if sources.find_source(make_config(options, options.presets[0])).folder is None:
        # Rendered now, lest the first run pay for it.
        sources.ensure_bricks(SyntheticSceneConfig())
    stem = find_stem(options)
    results = read_results(stem) if options.resume else []
    done = {tuple(run[part] for part in RUN_KEY) for run in results}
    seeds = range(options.seeds)
    plan = [
        run
        for run in itertools.product(options.downscale, options.presets, options.budget, seeds)
        if run not in done
    ]
    print("Measuring what the machine can do ...", flush=True)
    roofline = measure_roofline()
    table = write_report(stem, roofline, results) if results else ""
    with tempfile.TemporaryDirectory(prefix="jaxrf-bench-") as folder:
        for number, (downscale, preset, budget, seed) in enumerate(plan):
            print(
                f"{number + 1} of {len(plan)}: {preset}, seed {seed}, pictures at 1/{downscale}, "
                f"{budget:g} s ...",
                flush=True,
            )
            run_dir = Path(folder) / f"run-{number}"
            train(options, preset, seed, downscale, budget, run_dir)
            summary = summarise(run_dir, preset, seed, budget, roofline)
            results.append({"downscale": downscale, **summary})
            results.sort(key=lambda run: [run[part] for part in RUN_KEY])
            # After every run, lest what took hours be lost.
            table = write_report(stem, roofline, results)
    print(f"{table}\nWritten to {stem}.json, .md and .png")
    return 0


def find_stem(options: BenchOptions) -> Path:
    """Where the report goes, without its ending: the newest one to be gone on with, or today's."""
    if options.resume:
        found = sorted(options.output.glob(f"????-??-??-{options.name}.json"))
        if found:
            return found[-1].with_suffix("")
    return options.output / f"{datetime.date.today().isoformat()}-{options.name}"


def read_results(stem: Path) -> list[dict[str, Any]]:
    """The runs of a report; none if there is no report.

    Raises:
      InputError: if it was measured on another machine or with other versions, or is damaged.
    """
    path = stem.with_suffix(".json")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = {name: report[name] for name in ("hardware", "processor", "versions")}
        results = [
            {**run, "curve": [(point[0], point[1]) for point in run["curve"]]}
            for run in report["runs"]
        ]
        if any(part not in run for run in results for part in RUN_KEY):
            raise ValueError("it is of an earlier version")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be continued ({error}): choose another --name or leave out --resume."
        ) from error
    for name, here in describe_machine().items():
        if found[name] != here:
            raise InputError(
                f"{path} was measured with {name} {found[name]}, here it is {here}: choose another "
                "--name."
            )
    return results


def describe_machine() -> dict[str, Any]:
    """What figures depend on besides the code."""
    return {
        "hardware": commands.describe_hardware(),
        "processor": describe_processor(),
        "versions": commands.describe_versions(),
    }


def write_report(stem: Path, roofline: Roofline, results: list[dict[str, Any]]) -> str:
    """Writes what was measured as JSON, as a table and as a plot; returns the table."""
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


def make_config(options: BenchOptions, preset: str) -> TrainConfig:
    """The configuration that a preset is trained with, apart from options that follow its name."""
    return dataclasses.replace(make_preset(preset.split()[0]), data=options.data)


def train(
    options: BenchOptions, preset: str, seed: int, downscale: int, budget: float, run_dir: Path
) -> None:
    """Trains in a process of its own with an empty compilation cache, as a first run would."""
    command = [
        sys.executable, "-m", "jaxrf", "train", "--preset", *shlex.split(preset),
        "--seed", str(seed), "--run-dir", str(run_dir), "--budget", str(budget),
        "--downscale", str(downscale), "--test-every", str(options.every), "--video.frames", "0",
        "--validate-every", "0.1", "--validate-apart", "--validation-views", "2",
    ]  # fmt: skip
    if options.data is not None:
        command += ["--data", str(options.data)]
    cache = run_dir.with_name(f"{run_dir.name}-cache")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise InputError(f"Training {preset} failed: {''.join(last)}")


def summarise(
    run_dir: Path, preset: str, seed: int, budget: float, roofline: Roofline
) -> dict[str, Any]:
    """The figures of one trained run."""
    metrics = runs.read_metrics(run_dir)
    run = runs.open_run(run_dir)
    curve = [(v["seconds"], v["psnr"]) for v in metrics["validations"]]
    work = count_work(run.config.field, run.stage)
    ideal = (
        work.flops / (roofline.layer * 1e9)
        + work.gathered / (roofline.gather * 1e6)
        + work.scattered / (roofline.scatter * 1e6)
    )
    seconds = metrics["seconds"]
    return {
        "date": datetime.date.today().isoformat(),
        "preset": preset,
        "seed": seed,
        "budget": budget,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state.params)),
        "dataset": metrics["dataset"],
        "resolution": metrics["resolution"],
        "background": metrics["background"],
        "psnr": metrics["test"]["psnr"],
        "ssim": metrics["test"]["ssim"],
        "views": len(metrics["test"]["per_image"]),
        "steps": metrics["steps"],
        "trained_by_seconds": seconds["total"] - seconds["evaluate"] - seconds["validate"],
        "first_step_seconds": seconds["first_step"],
        "compile_seconds": seconds["compile"],
        "rays_per_second": metrics["rays_per_second"],
        "samples_per_second": metrics["samples_per_second"],
        "share_of_roofline": metrics["samples_per_second"] * ideal,
        "peak_memory_bytes": metrics["peak_memory_bytes"],
        "seconds_to_db": {f"{level:g}": find_time(curve, level) for level in LEVELS},
        "frame_seconds": {str(size): time_frame(run, size) for size in (200, 400)},
        "curve": curve,
    }


def find_time(curve: list[tuple[float, float]], level: float) -> float | None:
    """When a curve of (seconds, PSNR) first reaches a level, linear in between; None if never."""
    before: tuple[float, float] | None = None
    for seconds, psnr in curve:
        if psnr >= level:
            if before is None:
                return seconds
            share = (level - before[1]) / (psnr - before[1])
            return round(before[0] + share * (seconds - before[0]), 1)
        before = (seconds, psnr)
    return None


def time_frame(run: runs.Run, size: int) -> float:
    """Seconds for a frame of so many pixels along each side at one ray each, compilation apart."""
    render = runs.make_render_fn(run, supersample=1)
    orbit = render_plan.path_cameras(run, RenderOptions(frames=4, size=size))
    times = []
    for index in (0, 0, 1, 2, 3):
        started = time.perf_counter()
        render(orbit, index)
        times.append(time.perf_counter() - started)
        if times[-1] > LONG_FRAME:
            return times[-1]
    return float(np.median(times[1:]))


def count_work(config: FieldConfig, stage: Stage) -> Work:
    """What one sample costs in training: dense layers thrice (value and both gradients)."""
    match config:
        case HashGridConfig():
            rows = 8 * config.levels * config.channels / ROW
            encoded = config.levels * config.channels
            seen = config.feature_dim + config.num_sh_bands**2
            layers = encoded + (config.density_layers - 1) * config.width + 1 + config.feature_dim
            layers += seen + (config.color_layers - 1) * config.width + 3
            return Work(6.0 * config.width * layers, rows, rows)
        case PyNeRFConfig():
            tables = min(config.heads, 2) if config.tables == "separate" else 1
            encoded = config.levels * config.channels
            rows = 8 * encoded * tables / ROW
            heads = config.heads * config.width * (encoded + 1 + config.feature_dim)
            seen = config.feature_dim + config.num_sh_bands**2
            shade = config.color_width * (seen + (config.color_layers - 1) * config.color_width + 3)
            shade *= config.heads if config.blend == "results" else 1
            return Work(6.0 * (heads + shade), rows, rows)
        case CustomConfig():
            # What the field of a user costs is not known here.
            return Work(0.0, 0.0, 0.0)
        case VoxelsConfig():
            rows = 8 * (1 + config.feature_dim) / ROW
            return Work(0.0, rows, rows)
        case TensoRFConfig():
            colored = stage.color_budget / stage.sample_budget if stage.color_budget else 1.0
            channels = config.density_components + colored * config.feature_components
            planes = 3 if config.factors == "vm" else 0
            rows = (4 * planes + 2 * 3) * channels / ROW
            products = max(planes, 1) * config.feature_components
            flops = 2 * products * config.feature_dim * colored
            return Work(3.0 * flops, rows, rows)
        case NeRFConfig() | BitNeRFConfig():
            position, direction = (
                3 + 6 * n
                for n in (config.num_position_frequencies, config.num_direction_frequencies)
            )
            trunk = (config.layers - 1) * config.width**2 + position * config.width
            trunk += position * config.width if config.skip < config.layers else 0
            head = config.width + config.width**2 + config.color_width * (config.width + direction)
            return Work(6.0 * (trunk + head + 3 * config.color_width), 0.0, 0.0)
    assert_never(config)


def measure_roofline() -> Roofline:
    """Measures the machine; takes some seconds on a CPU and little on an accelerator."""
    rng = np.random.default_rng(0)

    def product(m: int, k: int, n: int) -> float:
        a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((m, k), (k, n)))
        return 2e-9 * m * k * n / best_seconds(jax.jit(jnp.matmul), a, b)

    rows, count = 1 << 18, 1 << 16
    table = jnp.asarray(rng.normal(size=(rows, ROW)), jnp.float32)
    index = jnp.asarray(rng.integers(0, rows, (count, 8)), jnp.int32)
    weight = jnp.ones((count, 8), jnp.float32)
    values = jnp.ones((count, ROW), jnp.float32)
    loops = 8

    # In a loop, as in training: what a single call allocates costs more than its work.
    @jax.jit
    def gather(table: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            return total + grids.weighted_gather(table, jnp.roll(index, step, axis=0), weight)

        return jax.lax.fori_loop(0, loops, add, values)

    @jax.jit
    def scatter(table: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
        def add(step: jax.Array, table: jax.Array) -> jax.Array:
            shifted = jnp.roll(index, step, axis=0)
            return (
                table
                + jax.vjp(lambda t: grids.weighted_gather(t, shifted, weight), table)[1](values)[0]
            )

        return jax.lax.fori_loop(0, loops, add, table)

    looked_up = 1e-6 * loops * count * 8
    addition = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    long = jnp.zeros((1 << 26,), jnp.float32)
    times = []
    for _ in range(TRIES + 1):
        started = time.perf_counter()
        long = jax.block_until_ready(addition(long))
        times.append(time.perf_counter() - started)
    return Roofline(
        matmul=product(4096, 4096, 4096),
        layer=product(1 << 16, 256, 256),
        memory=2e-9 * long.nbytes / min(times[1:]),
        gather=looked_up / best_seconds(gather, table, index, weight),
        scatter=looked_up / best_seconds(scatter, table, index, weight),
    )


def best_seconds(fn: Callable[..., Any], *arguments: Any) -> float:
    """The best time of a few calls, the first of all left out."""
    times = []
    for _ in range(TRIES + 1):
        started = time.perf_counter()
        jax.block_until_ready(fn(*arguments))
        times.append(time.perf_counter() - started)
    return min(times[1:])


def describe_processor() -> str:
    """The name of the processor, as Linux knows it, and what it computes with."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    values = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = values.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    return f"{values.get('model name', 'unknown')} {widest}".strip()


def format_report(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    roofline, results = report["roofline"], report["runs"]
    first = results[0]
    versions = report["versions"]
    dates = sorted({run["date"] for run in results})
    lines = [
        f"# Benchmark of {' to '.join(dates[:1] + dates[1:][-1:])}",
        "",
        f"{report['hardware']}; processor {report['processor']}. jax {versions['jax']}, Python "
        f"{versions['python']}. {first['dataset']} on {first['background']}, "
        "seconds from the start of the process, compilation cache empty, validations "
        "apart. `first step` and `compile` are seconds, the latter those in which training "
        "waited. Frames are rendered with one ray a pixel. Made by `jaxrf bench`.",
        "",
        "| float32 matmul | layer 65,536x256x256 | memory | gather of rows of 8 | scatter |",
        "|---|---|---|---|---|",
        f"| {roofline['matmul']:.0f} GFLOP/s | {roofline['layer']:.0f} GFLOP/s | "
        f"{roofline['memory']:.0f} GB/s | {roofline['gather']:.0f} M/s | "
        f"{roofline['scatter']:.0f} M/s |",
        "",
        "| pictures | preset, seed | budget s | test PSNR, SSIM | test views | parameters "
        "| first step, compile | "
        + " | ".join(f"{level:g} dB s" for level in LEVELS)
        + " | rays/s | samples/s | of the roofline | 200x200, 400x400 frame s | memory |",
        "|---" * (12 + len(LEVELS)) + "|",
    ]
    for run in results:
        times = (run["seconds_to_db"][f"{level:g}"] for level in LEVELS)
        cells = [
            "x".join(str(n) for n in run["resolution"]),
            f"{run['preset']}, {run['seed']}",
            f"{run['budget']:g}",
            f"{run['psnr']:.2f} dB, {run['ssim']:.4f}",
            str(run["views"]),
            f"{run['parameters']:,}",
            f"{run['first_step_seconds']:.1f}, {run['compile_seconds']:.1f}",
            *("-" if t is None else f"{t:.0f}" for t in times),
            f"{run['rays_per_second'] / 1e3:.1f}k",
            f"{run['samples_per_second'] / 1e6:.2f}M",
            f"{run['share_of_roofline']:.0%}",
            ", ".join(f"{run['frame_seconds'][s]:.2f}" for s in ("200", "400")),
            f"{run['peak_memory_bytes'] / 2**30:.1f} GiB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_curves(results: list[dict[str, Any]]) -> bytes:
    """PSNR on validation views against seconds since the start, as PNG.

    Of runs that differ by their budget alone the longest has a line.
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
    # What all runs share tells none apart, and stands above the plot.
    common = [part for part, *others in zip(*titles, strict=True) if set(others) <= {part}]
    curves = {
        ", ".join(title[:1] + tuple(part for part in title[1:] if part not in common)): run["curve"]
        for title, run in zip(titles, results, strict=True)
    }
    title = ", ".join([results[0]["dataset"], *common, f"on {results[0]['background']}"])
    return images.encode_plot(curves, "seconds since the start", "validation PSNR, dB", title)

"""The benchmark: measures the machine, trains every preset, writes a report."""

import dataclasses
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxrf.core.jax_setup import set_up_jax
from jaxrf.data import sources
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.studies import bench_report, bench_runs, profile, roofline
from jaxrf.studies.bench_report import RUN_KEY
from jaxrf.studies.options import BenchOptions
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig


def run(options: BenchOptions) -> int:
    """Measures the machine and every preset; writes JSON, a table and a plot.

    Returns the exit code.
    """
    set_up_jax("highest")
    runs.make_writable(options.output, "--output")
    if sources.find_source(options.data, SyntheticSceneConfig()).folder is None:
        # Rendered now, so that its time does not count for the first run.
        sources.ensure_bricks(SyntheticSceneConfig())
    stem = bench_report.report_stem(options)
    results = bench_report.read_results(stem) if options.resume else []
    done = {tuple(result[key] for key in RUN_KEY) for result in results}
    seeds = range(options.seeds)
    grid = itertools.product(options.downscale, options.preset_names, options.budget, seeds)
    plan = [run_key for run_key in grid if run_key not in done]
    print("Measuring what the machine can do ...", flush=True)
    rates = roofline.measure_roofline()
    table = bench_report.write_report(stem, rates, results) if results else ""
    with tempfile.TemporaryDirectory(prefix="jaxrf-bench-") as folder:
        for number, (downscale, preset, budget, seed) in enumerate(plan):
            print(
                f"{number + 1} of {len(plan)}: {preset}, seed {seed}, pictures at 1/{downscale}, "
                f"{budget:g} s ...",
                flush=True,
            )
            run_dir = Path(folder) / f"run-{number}"
            bench_runs.train(options, preset, seed, downscale, budget, run_dir)
            summary = bench_runs.summarize(run_dir, preset, seed, budget, rates)
            results.append({"downscale": downscale, **summary})
            results.sort(key=lambda result: [result[key] for key in RUN_KEY])
            # Written after every run, so that an interruption loses only the run in progress.
            table = bench_report.write_report(stem, rates, results)
    print(f"{table}\nWritten to {stem}.json, .md and .png")
    return 0


def run_profiles(options: BenchOptions, configs: Sequence[TrainConfig]) -> int:
    """Profiles the training of each preset; writes a page in Markdown. Returns the exit code.

    Args:
      options: of the benchmark.
      configs: of its presets.
    """
    set_up_jax("highest")
    runs.make_writable(options.output, "--output")
    folder = sources.find_source(options.data, SyntheticSceneConfig()).folder
    folder = folder or sources.ensure_bricks(SyntheticSceneConfig())
    rates = roofline.measure_roofline()
    stem = bench_report.report_stem(options)
    path = stem.with_name(f"{stem.name}-profile.md")
    page = bench_report.format_profile_heading(rates, folder.name, options.profile_steps)
    for downscale, (preset, config) in itertools.product(
        options.downscale, zip(options.preset_names, configs, strict=True)
    ):
        config = dataclasses.replace(config, downscale=downscale, num_steps=options.profile_steps)
        scene = sources.load_scene(folder, ["train"], config)
        width, height = scene.train.cameras.width, scene.train.cameras.height
        section = profile.format_profile(
            f"{preset}, {width}x{height}", profile.profile_training(config, scene), rates
        )
        print(section, flush=True)
        page += f"\n{section}"
        # Written after every preset, so that an interruption loses only one.
        runs.write_text(path, page)
    print(f"Written to {path}")
    return 0

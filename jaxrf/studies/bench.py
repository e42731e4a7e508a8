"""The benchmark: measures the machine, trains every preset, writes a report."""

import itertools
import tempfile
from pathlib import Path

from jaxrf.core.jax_setup import set_up_jax
from jaxrf.data import sources
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.studies import bench_report, bench_runs, roofline
from jaxrf.studies.bench_report import RUN_KEY
from jaxrf.studies.options import BenchOptions
from jaxrf.training import runs


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
    grid = itertools.product(options.downscale, options.presets, options.budget, seeds)
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

"""The six experiments of the seed study, run and reported on: `jaxrf experiments`.

Base, mixed precision, mixed precision with larger batches, BitNeRF, and the first and the last of
these on two devices. What is compared is what changes: precision, batch, quantisation, devices.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from jaxrf.cli import commands
from jaxrf.cli.options import ExperimentsOptions
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.evaluation import images, scoring
from jaxrf.export import ternary
from jaxrf.training import config as configs
from jaxrf.training import runs, train
from jaxrf.training.config import BitNeRFConfig, TrainConfig
from jaxrf.training.runs import Run

STUDY = (
    configs.study_base,
    configs.study_mixed,
    configs.study_mixed_large,
    configs.study_bitnerf,
    configs.study_parallel,
    configs.study_bitnerf_parallel,
)
# A short run's options, besides the preset's: what a CPU can do of it.
SHORT_WIDTH, SHORT_RAYS = 64, 512
# Of a ternary weight: five of them to a byte.
TRIT_BITS = 1.6
CURVES = {"train/loss": "loss", "train/grad_norm": "gradient norm", "train/psnr": "PSNR, dB"}


def run_experiments(options: ExperimentsOptions) -> int:
    """Trains what is not trained yet and writes report.md with its plots; returns the exit code."""
    chosen = [preset for preset in STUDY if is_chosen(configs.preset_name(preset), options)]
    if not chosen:
        known = ", ".join(configs.preset_name(preset) for preset in STUDY)
        raise InputError(f"--only {' '.join(options.only)} names no experiment: choose of {known}.")
    runs.make_writable(options.output, "--output")
    trained = {}
    for number, preset in enumerate(chosen):
        name = configs.preset_name(preset)
        folder = options.output / f"{name}-{options.length}-{options.seed}"
        print(f"{number + 1} of {len(chosen)}: {name} ...", flush=True)
        if not (folder / runs.METRICS_FILE).exists():
            try:
                train_one(preset(), name, options, folder)
            except InputError as error:
                print(f"Left out: {error}")
                continue
        trained[name] = folder
    if not trained:
        raise InputError("None of the experiments could be trained; what hindered them is above.")
    found = {name: runs.open_run(folder) for name, folder in trained.items()}
    report = write_report(found, options)
    print(f"{report}\nWritten to {options.output}: report.md and its pictures.")
    print(f"All curves: tensorboard --logdir {options.output}")
    return 0


def is_chosen(name: str, options: ExperimentsOptions) -> bool:
    """Whether an experiment is to be run."""
    return not options.only or name in options.only


def train_one(config: TrainConfig, name: str, options: ExperimentsOptions, folder: Path) -> None:
    """Trains in a process of its own, with two devices out of one CPU where it takes two."""
    command = [sys.executable, "-m", "jaxrf", "train", "--run-dir", str(folder)]
    if any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        command.append("--resume")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        command += ["--preset", name, "--seed", str(options.seed), "--steps", str(config.steps)]
        command += ["--video.frames", "0", "--validate-every", "0.1"]
        if options.length == "short":
            rays = SHORT_RAYS * config.batch_rays // configs.study_base().batch_rays
            command += ["--field.width", str(SHORT_WIDTH), "--batch-rays", str(rays)]
        if options.data is not None:
            command += ["--data", str(options.data)]
    environment = dict(os.environ)
    if (config.devices or 1) > 1 and not configs.expects_accelerator():
        flag = f"--xla_force_host_platform_device_count={config.devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise InputError(f"Training {name} failed: {''.join(last)}")


def write_report(found: dict[str, Run], options: ExperimentsOptions) -> str:
    """Writes curves, depth maps and the table; returns the table."""
    for tag, title in CURVES.items():
        curves = {name: runs.read_curve(run.folder, tag) for name, run in found.items()}
        file = f"{tag.rpartition('/')[2]}.png"
        (options.output / file).write_bytes(images.encode_plot(curves, "step", title))
    (options.output / "views.png").write_bytes(draw_views(found))
    table = format_table(found)
    names = ", ".join(found)
    text = (
        f"# The experiments of the seed study, {options.length}\n\n{table}\n"
        + "".join(
            f"![{title} of {names}]({tag.rpartition('/')[2]}.png)\n\n"
            for tag, title in CURVES.items()
        )
        + f"![Truth; then picture and depth of {names}](views.png)\n"
    )
    runs.write_text(options.output / "report.md", text)
    return table


def format_table(found: dict[str, Run]) -> str:
    """What came out, a line for each experiment, as Markdown."""
    first = runs.read_metrics(next(iter(found.values())).folder)
    lines = [
        f"{first['hardware']}. {first['dataset']} on {first['background']}, test views. Made by "
        "`jaxrf experiments`.",
        "",
        "| experiment | devices | test PSNR | SSIM | last loss | steps | training s | rays/s "
        "| memory | bits a weight |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        metrics = runs.read_metrics(run.folder)
        loss = runs.read_curve(run.folder, "train/loss")[-1][1]
        cells = [
            name,
            str(metrics["devices"]),
            f"{metrics['test']['psnr']:.2f} dB",
            f"{metrics['test']['ssim']:.4f}",
            f"{loss:.5f}",
            str(metrics["steps"]),
            f"{metrics['seconds']['train']:.0f}",
            f"{metrics['rays_per_second'] / 1e3:.1f}k",
            f"{metrics['peak_memory_bytes'] / 2**30:.1f} GiB",
            f"{count_bits(run):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def count_bits(run: Run) -> float:
    """Bits of a weight on average; those of the trunk are packed where they are ternary."""
    ternary_bits = plain_bits = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.state.shown):
        names = [getattr(part, "key", "") for part in path]
        inside = any(name.startswith("trunk_") for name in names) and names[-1] == "kernel"
        if isinstance(run.config.field, BitNeRFConfig) and inside:
            ternary_bits += TRIT_BITS * leaf.size
        else:
            plain_bits += 32.0 * leaf.size
    return (ternary_bits + plain_bits) / ternary.count_weights(run.state.shown)


def draw_views(found: dict[str, Run]) -> bytes:
    """The first test view: truth, and below it picture and depth of every experiment, as PNG.

    Depths have the same colours in all of them.
    """
    first = next(iter(found.values()))
    folder = sources.find_data(Path(first.scene.data))
    split = sources.load_scene(folder, ["test"], first.config.downscale).splits["test"]
    background = train.background_color(first.config)
    scored = {}
    for name, run in found.items():
        commands.set_up_jax(run.config.matmul_precision)
        render = runs.make_render_fn(run)
        scored[name] = next(iter(scoring.score_split(render, split, background, [0])))
    renderings = [view.rendering for view in scored.values()]
    seen = np.concatenate([r.median_depth[r.opacity > 0.5] for r in renderings])
    low, high = np.percentile(seen, [2.0, 98.0]) if seen.size else (0.0, 1.0)
    columns = {
        name: [
            view.truth,
            np.clip(view.rendering.rgb, 0.0, 1.0),
            images.colorize_depth(
                view.rendering.median_depth, view.rendering.opacity, float(low), float(high)
            ),
        ]
        for name, view in scored.items()
    }
    return images.encode_columns(columns, ["truth", "picture", "depth"])

"""Report of the experiments: curves, a table, and the first test view of every run."""

from pathlib import Path

import jax
import numpy as np

from jaxrf.core.jax_setup import set_up_jax
from jaxrf.data import sources
from jaxrf.evaluation import images, scoring
from jaxrf.evaluation.metrics import format_metrics, select_metrics
from jaxrf.export import ternary
from jaxrf.fields.bitnerf import BitNeRF
from jaxrf.studies.options import ExperimentsOptions
from jaxrf.training import runs
from jaxrf.training.runs import Run
from jaxrf.training.state import background_color

# Bits of a packed ternary weight: five weights fit into a byte.
TRIT_BITS = 1.6
# TensorBoard tags of the curves, with the title of each axis.
CURVES = {"train/loss": "loss", "train/grad_norm": "gradient norm", "train/psnr": "PSNR, dB"}


def write_report(trained: dict[str, Run], options: ExperimentsOptions) -> str:
    """Writes curves, depth maps and the table of the trained runs by name; returns the table."""
    for tag, title in CURVES.items():
        curves = {name: runs.read_curve(run.folder, tag) for name, run in trained.items()}
        (options.output / _curve_file(tag)).write_bytes(images.encode_plot(curves, "step", title))
    (options.output / "views.png").write_bytes(draw_views(trained))
    table = format_table(trained)
    names = ", ".join(trained)
    text = (
        f"# The experiments of the seed study, {options.length}\n\n{table}\n"
        + "".join(f"![{title} of {names}]({_curve_file(tag)})\n\n" for tag, title in CURVES.items())
        + f"![Truth; then picture and depth of {names}](views.png)\n"
    )
    runs.write_text(options.output / "report.md", text)
    return table


def _curve_file(tag: str) -> str:
    return f"{tag.rpartition('/')[2]}.png"


def format_table(trained: dict[str, Run]) -> str:
    """Returns the results as Markdown, one line for each experiment."""
    first = runs.read_metrics(next(iter(trained.values())).folder)
    scored = select_metrics(first["test"])
    headings = " | ".join(metric.heading for metric in scored)
    lines = [
        f"{first['hardware']}. {first['dataset']} on {first['background']}, test views. Made by "
        "`jaxrf experiments`.",
        "",
        f"| experiment | devices | test {headings} | last loss | steps "
        "| training s | rays/s | memory | bits a weight |",
        "|---" * (8 + len(scored)) + "|",
    ]
    for name, run in trained.items():
        metrics = runs.read_metrics(run.folder)
        loss = runs.read_curve(run.folder, "train/loss")[-1][1]
        cells = [
            name,
            str(metrics["devices"]),
            *format_metrics(metrics["test"]),
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
    """Returns the mean bits per weight; ternary weights of a BitNeRF's trunk count as packed."""
    ternary_bits = plain_bits = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.state.eval_params):
        names = [getattr(part, "key", "") for part in path]
        in_trunk = any(name.startswith("trunk_") for name in names) and names[-1] == "kernel"
        if BitNeRF.match(run.config.field) is not None and in_trunk:
            ternary_bits += TRIT_BITS * leaf.size
        else:
            plain_bits += 32.0 * leaf.size
    return (ternary_bits + plain_bits) / ternary.count_weights(run.state.eval_params)


def draw_views(trained: dict[str, Run]) -> bytes:
    """Draws the first test view, and below it image and depth of every experiment, as PNG.

    All depths use the same color range.
    """
    first = next(iter(trained.values()))
    folder = sources.find_data(Path(first.scene.data))
    split = sources.load_scene(folder, ["test"], first.config).splits["test"]
    background = background_color(first.config)
    scored = {}
    for name, run in trained.items():
        set_up_jax(run.config.matmul_precision)
        render = runs.make_render_fn(run)
        scored[name] = next(iter(scoring.score_split(render, split, background, [0])))
    renderings = [view.rendering for view in scored.values()]
    depths = np.concatenate([r.median_depth[r.opacity > 0.5] for r in renderings])
    near, far = np.percentile(depths, [2.0, 98.0]) if depths.size else (0.0, 1.0)
    columns = {
        name: [
            view.target_rgb,
            np.clip(view.rendering.rgb, 0.0, 1.0),
            images.colorize_depth(
                view.rendering.median_depth, view.rendering.opacity, float(near), float(far)
            ),
        ]
        for name, view in scored.items()
    }
    return images.encode_columns(columns, ["truth", "picture", "depth"])

"""Images, histograms and hyperparameters of a training for TensorBoard.

`docs/howto/logs.md` lists every tag.
"""

import dataclasses
import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxrf import fields, models
from jaxrf.evaluation import images
from jaxrf.evaluation.metrics import describe_metrics
from jaxrf.evaluation.scoring import ViewMetrics
from jaxrf.fields.base import Params
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import EventWriter, Hyperparameters

# Values of a histogram at most; of more, evenly spaced ones are taken.
MAX_VALUES = 1 << 14
# Smaller images are enlarged by an integer factor to at least this width. TensorBoard would blur
# them.
MIN_WIDTH = 200
# Pixels between the images of a sheet.
GAP = 8
# Error at which its color map ends.
MAX_ERROR = 0.25
# Options that are not hyperparameters: paths, devices, outputs.
EXCLUDED_OPTIONS = {
    "data",
    "run_dir",
    "resume",
    "schedule_knots",
    "coordinator",
    "processes",
    "process_id",
}
EXCLUDED_OPTIONS |= {"lpips", "video", "view", "viewer", "keep_checkpoints", "checkpoint_seconds"}
# Columns that a table of runs displays first; TensorBoard begins with five.
LEADING_COLUMNS = ("batch_rays", "dataset", "field.type", "seed", "num_steps")


def dispatch_scalars(
    metrics: Any, steps: int, seconds: float, groups: Collection[str]
) -> dict[str, float]:
    """Scalars of a dispatch by tag, from the `state.Metrics` of its steps.

    `groups` are the parameter groups. The norms of "grid" and "mlp" are included if they are there.
    """
    norms = {"grid": metrics.grid_grad_norm, "mlp": metrics.mlp_grad_norm}
    return {
        "train/loss": float(metrics.loss),
        "train/grad_norm": float(metrics.grad_norm),
        "train/opacity": float(metrics.opacity),
        "train/dropped_rays": float(metrics.overflowed),
        "speed/samples_per_second": steps * float(metrics.num_samples) / seconds,
        **{f"train/grad_norm_{group}": float(norms[group]) for group in groups if group in norms},
    }


def write_view(events: EventWriter, split: str, view: ViewMetrics, step: int) -> None:
    """Writes the sheet of a view (`draw_sheet`)."""
    events.image(f"{split}/view/{view.name}", partial(draw_sheet, view, step), step)


def write_rays(events: EventWriter, split: str, view: ViewMetrics, step: int) -> None:
    """Writes histograms of the opacity of a view's rays, and of the depth of opaque ones."""
    opacity = subsample(view.rendering.opacity)
    depth = subsample(view.rendering.median_depth)[opacity > 0.5]
    events.histogram(f"{split}/opacity", opacity, step)
    events.histogram(f"{split}/depth", depth, step)


def write_parameters(
    events: EventWriter, params: Params, groups: Params, grid: OccupancyGrid, step: int
) -> None:
    """Writes histograms of the parameters, by group and path, and of the occupancy grid's cells.

    The arrays must be on a device of this process. `groups` holds the optimizer group of each.
    """
    for tag, values in collect_parameters(params, groups).items():
        events.histogram(f"parameters/{tag}", values, step)
    if (cells := collect_cells(grid)) is not None:
        events.histogram("parameters/occupancy", cells, step)


def collect_parameters(params: Params, groups: Params) -> dict[str, Float[np.ndarray, "n"]]:
    """At most `MAX_VALUES` values of each array by `group/path`.

    The weights and biases of a layer share an entry, and so do the arrays of a tuple.
    """
    labels = jax.tree.leaves(groups)
    values: dict[str, list[np.ndarray]] = {}
    for (path, leaf), group in zip(
        jax.tree_util.tree_flatten_with_path(params)[0], labels, strict=True
    ):
        # Elements of a tuple, such as the three planes, have no names and share a histogram.
        parts = (getattr(part, "name", getattr(part, "key", None)) for part in path)
        names = [str(part) for part in parts if part not in (None, "params", "kernel", "bias")]
        values.setdefault("/".join([group, *names]), []).append(subsample(np.asarray(leaf)))
    return {tag: np.concatenate(leaves) for tag, leaves in values.items()}


def collect_cells(grid: OccupancyGrid) -> Float[np.ndarray, "n"] | None:
    """Weights or optical depths of occupied cells, at most `MAX_VALUES`; None if not tracked.

    The weight of a cell is the largest that a ray gave it, decayed since. The optical depth is that
    of one step.
    """
    cells = grid.cell_values(subsample)
    return None if cells is None else cells[cells > 1e-4]


def subsample(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "n"]:
    """A copy of at most `MAX_VALUES` evenly spaced values."""
    flat = values.reshape(-1)
    return flat[:: max(math.ceil(flat.size / MAX_VALUES), 1)].astype(np.float32)


def draw_sheet(view: ViewMetrics, step: int) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet of truth, rendering, error, depth and opacity of a view, and its metrics."""
    rendering = view.rendering
    hit = rendering.median_depth[rendering.opacity > 0.5]
    low, high = (float(hit.min()), float(hit.max())) if hit.size else (0.0, 1.0)
    panels = {
        "truth": view.target_rgb,
        "rendering": np.clip(rendering.rgb, 0.0, 1.0),
        f"error, 0 to {MAX_ERROR:g}": images.colorize_error(
            rendering.rgb, view.target_rgb, MAX_ERROR
        ),
        f"depth, {low:.2f} to {high:.2f}": images.colorize_depth(
            rendering.median_depth, rendering.opacity, low, high
        ),
        "opacity, 0 to 1": np.repeat(rendering.opacity[..., None], 3, axis=-1),
    }
    height, width, _ = view.target_rgb.shape
    factor = max(math.ceil(MIN_WIDTH / width), 1)
    # Legible when the sheet is displayed small; five lines fit.
    font_size = max(round(factor * min(width / 11, height / 7)), 1)
    head = round(1.5 * font_size)
    column_width, row_height = factor * width + GAP, factor * height + head + GAP
    sheet = Image.new("RGB", (3 * column_width - GAP, 2 * row_height - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(font_size)
    for number, (caption, panel) in enumerate(panels.items()):
        left, top = number % 3 * column_width, number // 3 * row_height
        draw.text((left + 2, top + 2), caption, "black", font)
        enlarged = images.to_uint8(panel).repeat(factor, axis=0).repeat(factor, axis=1)
        sheet.paste(Image.fromarray(enlarged), (left, top + head))
    text = "\n".join([view.name, f"step {step:,}", *describe_metrics(view.scores)])
    draw.multiline_text((2 * column_width + 2, row_height + head), text, "black", font)
    return np.array(sheet)


def write_row(
    events: EventWriter, config: TrainConfig, dataset: str, results: dict[str, float], step: int
) -> None:
    """Writes the row of a finished run in TensorBoard's table of hyperparameters."""
    values = flatten_config(config, dataset)
    # Columns of all fields and models, as the table may hold runs of others.
    columns: Hyperparameters = {}
    for name in fields.FIELDS:
        columns |= flatten_part("field.", getattr(fields, name)())
    for name in models.MODELS:
        columns |= flatten_part("model.", getattr(models, name)())
    events.hyperparameters(values, results, step, columns | values, LEADING_COLUMNS)


def flatten_config(config: TrainConfig, dataset: str) -> Hyperparameters:
    """Hyperparameters by dotted name, without those that are None."""
    parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    flat: Hyperparameters = {"dataset": dataset}
    flat |= {"field.type": config.field.name, "model.type": config.model.name}
    for name, part in parts.items():
        if name not in EXCLUDED_OPTIONS:
            flat |= flatten_part(name, part)
    return flat


def flatten_part(name: str, value: Any) -> Hyperparameters:
    """The numbers of an option by dotted name."""
    if dataclasses.is_dataclass(value):
        prefix = name if name.endswith(".") else f"{name}."
        flat: Hyperparameters = {}
        for part in dataclasses.fields(value):
            flat |= flatten_part(prefix + part.name, getattr(value, part.name))
        return flat
    if value is None:
        return {}
    if isinstance(value, bool | str):
        return {name: value}
    if isinstance(value, int | float):
        return {name: float(value)}
    if isinstance(value, Path):
        return {name: str(value)}
    return {name: " ".join(str(element) for element in value)}

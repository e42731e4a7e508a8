"""What TensorBoard shows of a training beside its scalars: pictures, histograms, settings.

`docs/howto/logs.md` lists every tag.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxrf.evaluation import images
from jaxrf.evaluation.scoring import Scored
from jaxrf.fields.base import Params
from jaxrf.models import methods
from jaxrf.sampling.occupancy import FADING, DensityEmaGrid, OccupancyGrid, WeightTrackedGrid
from jaxrf.training.config import FieldConfig, TrainConfig
from jaxrf.training.logs import EventWriter, Hyperparameters

# Of more values a histogram takes only so many, evenly spread.
MOST_VALUES = 1 << 14
# Small pictures are enlarged by a whole factor up to this width, lest they be blurred when shown.
LEAST_WIDTH = 200
# Pixels between the pictures of a sheet.
GAP = 8
# Error from which on its picture is brightest.
MOST_ERROR = 0.25
# What is no hyper-parameter: where things are, and on what they run.
LEFT_OUT = {"data", "run_dir", "resume", "knots", "coordinator", "processes", "process_id"}
LEFT_OUT |= {"lpips", "video", "view", "viewer", "keep_checkpoints", "checkpoint_seconds"}
# What a table of runs is to show first: TensorBoard begins with five columns.
LEADING = ("batch_rays", "dataset", "field.kind", "seed", "steps")


def write_view(events: EventWriter, split: str, scored: Scored, step: int) -> None:
    """The sheet of a view, as `draw_sheet` makes it, drawn in the background."""
    events.picture(f"{split}/view/{scored.name}", partial(draw_sheet, scored, step), step)


def write_rays(events: EventWriter, split: str, scored: Scored, step: int) -> None:
    """Histograms of a view's rays: their opacities, and the depths of those that hit something."""
    opacity = thin_out(scored.rendering.opacity)
    depth = thin_out(scored.rendering.median_depth)[opacity > 0.5]
    events.histogram(f"{split}/opacity", opacity, step)
    events.histogram(f"{split}/depth", depth, step)


def write_parameters(events: EventWriter, params: Params, grid: OccupancyGrid, step: int) -> None:
    """Histograms of the parameters, by group and place, and of what an occupancy grid holds.

    Both lie on this process's own device.
    """
    for tag, values in collect_parameters(params).items():
        events.histogram(f"parameters/{tag}", values, step)
    if (cells := collect_cells(grid)) is not None:
        events.histogram("parameters/occupancy", cells, step)


def collect_parameters(params: Params) -> dict[str, Float[np.ndarray, "n"]]:
    """Some of the parameters by `group/path`; a layer's weights and biases are one entry."""
    labels = jax.tree.leaves(methods.label_params(params))
    found: dict[str, list[np.ndarray]] = {}
    for (path, leaf), group in zip(
        jax.tree_util.tree_flatten_with_path(params)[0], labels, strict=True
    ):
        keys = [str(key) for key in (getattr(part, "key", None) for part in path) if key]
        kept = [key for key in keys if key not in ("params", "kernel", "bias")]
        found.setdefault("/".join([group, *kept]), []).append(thin_out(np.asarray(leaf)))
    return {tag: np.concatenate(leaves) for tag, leaves in found.items()}


def collect_cells(grid: OccupancyGrid) -> Float[np.ndarray, "n"] | None:
    """Some cells' weight or optical depth, of those that have any; None if the grid knows none.

    The weight is the largest that a ray gave the cell, that of long ago counting less; the optical
    depth is that of a step.
    """
    if isinstance(grid, WeightTrackedGrid):
        # As `occupancy.decayed_max_weights`, without anything to compile.
        ago = float(grid.clock) - 1.0 - thin_out(np.asarray(grid.memory))
        cells = np.exp(math.log(FADING) * ago)
    elif isinstance(grid, DensityEmaGrid):
        cells = thin_out(np.asarray(grid.optical))
    else:
        return None
    return cells[cells > 1e-4]


def thin_out(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "n"]:
    """At most `MOST_VALUES` of the values, evenly spread, copied."""
    flat = values.reshape(-1)
    return flat[:: max(math.ceil(flat.size / MOST_VALUES), 1)].astype(np.float32)


def draw_sheet(scored: Scored, step: int) -> UInt8[np.ndarray, "h w 3"]:
    """Truth, rendering, error, depth and opacity of a view under captions, and its figures."""
    seen = scored.rendering
    hit = seen.median_depth[seen.opacity > 0.5]
    low, high = (float(hit.min()), float(hit.max())) if hit.size else (0.0, 1.0)
    panels = {
        "truth": scored.truth,
        "rendering": np.clip(seen.rgb, 0.0, 1.0),
        f"error, 0 to {MOST_ERROR:g}": images.error_picture(seen.rgb, scored.truth, MOST_ERROR),
        f"depth, {low:.2f} to {high:.2f}": images.depth_picture(
            seen.median_depth, seen.opacity, low, high
        ),
        "opacity, 0 to 1": np.repeat(seen.opacity[..., None], 3, axis=-1),
    }
    height, width, _ = scored.truth.shape
    factor = max(math.ceil(LEAST_WIDTH / width), 1)
    # So large that they can be read when a sheet is shown small, and five lines fit.
    letters = max(round(factor * min(width / 11, height / 7)), 1)
    head = round(1.5 * letters)
    across, down = factor * width + GAP, factor * height + head + GAP
    sheet = Image.new("RGB", (3 * across - GAP, 2 * down - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(letters)
    for number, (caption, panel) in enumerate(panels.items()):
        left, top = number % 3 * across, number // 3 * down
        draw.text((left + 2, top + 2), caption, "black", font)
        enlarged = images.to_uint8(panel).repeat(factor, axis=0).repeat(factor, axis=1)
        sheet.paste(Image.fromarray(enlarged), (left, top + head))
    figures = f"{scored.name}\nstep {step:,}\nPSNR {scored.psnr:.2f} dB\nSSIM {scored.ssim:.4f}"
    if scored.lpips is not None:
        figures += f"\nLPIPS {scored.lpips:.4f}"
    draw.multiline_text((2 * across + 2, down + head), figures, "black", font)
    return np.array(sheet)


def write_row(
    events: EventWriter, config: TrainConfig, dataset: str, results: dict[str, float], step: int
) -> None:
    """The row of a run that is done in TensorBoard's table of hyper-parameters."""
    values = flatten_config(config, dataset)
    # Of every kind of field, as runs of others may be in the table.
    kinds = [dataclasses.replace(config, field=kind()) for kind in get_args(FieldConfig)]
    columns: Hyperparameters = {}
    for other in kinds:
        columns |= flatten_config(other, dataset)
    events.hyperparameters(values, results, step, columns | values, LEADING)


def flatten_config(config: TrainConfig, dataset: str) -> Hyperparameters:
    """Hyper-parameters by dotted name; those that are not set are left out."""
    flat: Hyperparameters = {"dataset": dataset}

    def add(prefix: str, part: Mapping[str, Any]) -> None:
        for name, value in part.items():
            match value:
                case None:
                    pass
                case dict():
                    add(f"{prefix}{name}.", value)
                case bool() | str():
                    flat[prefix + name] = value
                case int() | float():
                    flat[prefix + name] = float(value)
                case Path():
                    flat[prefix + name] = str(value)
                case _:
                    flat[prefix + name] = " ".join(str(v) for v in value)

    every = dataclasses.asdict(config)
    add("", {name: value for name, value in every.items() if name not in LEFT_OUT})
    return flat

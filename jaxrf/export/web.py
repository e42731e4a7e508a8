"""A ternary run as one page that any browser shows, without a server or anything to install.

The weights, five trits to a byte, and the occupancy grid lie in the page; a fragment shader marches
and evaluates the network as `rendering.march.march_and_render` does.
"""

import base64
import gzip
import html
import importlib.resources
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core import encodings
from jaxrf.core.errors import InputError
from jaxrf.export.ternary import PACKINGS, check_ternary, pack_trits, quantise
from jaxrf.fields.bitnerf import LEAST_SCALE
from jaxrf.models import methods
from jaxrf.training import runs, train
from jaxrf.training.config import BitNeRFConfig
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import camera_distance_range


def write_page(run: Run, path: Path) -> int:
    """Writes a run as a page; returns the bytes of its weights as they are packed there.

    Args:
      run: of a BitNeRF on an occupancy grid, in a box.
      path: of the page.

    Raises:
      InputError: if the run is another one, or the file cannot be written.
    """
    _check(run)
    parts = _pack(run)
    packed = gzip.compress(b"".join(parts.values()), mtime=0)
    data = base64.b64encode(packed).decode()
    meta = {**_describe(run), "parts": [[name, len(part)] for name, part in parts.items()]}
    pixel = np.rint(255.0 * train.background_color(run.config)).astype(int)
    page = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    words = {
        "NAME": html.escape(run.scene.name),
        "BACKGROUND": f"rgb({', '.join(map(str, pixel))})",
        # A name in the data must not end the script.
        "META": json.dumps(meta).replace("<", "\\u003c"),
        "DATA": data,
    }
    for word, value in words.items():
        page = page.replace(f"@{word}@", value)
    runs.make_writable(path.absolute().parent, "--output")
    runs.write_text(path, page)
    return len(parts["weights"])


def _check(run: Run) -> None:
    """InputError if the page could not show the run as it is."""
    check_ternary(run)
    field = run.config.field
    assert isinstance(field, BitNeRFConfig)
    reasons = {
        "does not march through an occupancy grid": not methods.marches(field),
        "fills space without bounds": run.state.grid.bounds is not None,
        "is in normalised device coordinates": run.scene.ndc is not None,
        "encodes parts of cones": field.encoding != "fourier",
        "is coloured by rays": field.shading != "per_sample",
        "lays out rays as another program does": field.convention != RayConvention(),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(
                f"The run {run.folder} {reason}, which a page cannot show: train a preset as "
                "bitnerf-small, or export ternary16."
            )


def _name_layers(field: BitNeRFConfig) -> list[str]:
    """The layers in the order in which the page has them."""
    head = ["bottleneck", "view"] if field.use_directions else []
    return [*(f"trunk_{i}" for i in range(field.layers)), "density_head", *head, "rgb_head"]


def _list_layers(run: Run) -> list[dict[str, Array]]:
    """Kernels and biases in that order."""
    assert isinstance(run.config.field, BitNeRFConfig)
    network = run.state.shown["fine"]["params"]
    return [network[name] for name in _name_layers(run.config.field)]


def _pack(run: Run) -> dict[str, bytes]:
    """What fills most of the page, by name."""
    layers = _list_layers(run)
    quantised = [quantise(jnp.asarray(layer["kernel"])) for layer in layers]
    trits = [np.asarray(ternary).astype(np.int8).reshape(-1) for ternary, _ in quantised]
    scales = np.array([scale for _, scale in quantised], "<f4")
    biases = np.concatenate([np.asarray(layer["bias"], "<f4") for layer in layers])
    return {
        "weights": pack_trits(np.concatenate(trits), PACKINGS["ternary16"]).tobytes(),
        "scales": scales.tobytes(),
        "biases": biases.tobytes(),
        "occupied": np.packbits(np.asarray(run.state.grid.occupied)).tobytes(),
    }


def _describe(run: Run) -> dict[str, Any]:
    """What the page's program is made of."""
    field, scene, grid = run.config.field, run.scene, run.state.grid
    assert isinstance(field, BitNeRFConfig)
    stage, tight = methods.eval_stage(field, run.stage, grid, crop_to_occupied=True)
    step = float(methods.step_length(field, stage, grid.aabb))
    usual = camera_distance_range(scene)
    place = np.array(scene.poses[0]).reshape(3, 4)[:, 3] if scene.poses else None
    away = (np.array([1.0, 0.0, 0.5]) if place is None else place - scene.focus).astype(float)

    def encoded(octaves: int) -> int:
        zero = jnp.zeros(3)
        return encodings.fourier(zero, octaves, field.encode_input, field.frequency).shape[-1]

    kernels = [layer["kernel"].shape for layer in _list_layers(run)]
    weights = sum(math.prod(shape) for shape in kernels)
    return {
        "layers": [list(shape) for shape in kernels],
        "trunk": field.layers,
        "skip": field.skip,
        "width": field.width,
        "color_width": field.color_width,
        "position": encoded(field.num_position_frequencies),
        "direction": encoded(field.num_direction_frequencies) if field.use_directions else 0,
        "num_position_frequencies": field.num_position_frequencies,
        "num_direction_frequencies": field.num_direction_frequencies,
        "encode_input": field.encode_input,
        "use_directions": field.use_directions,
        "frequency": field.frequency,
        "density_bias": field.density_bias,
        "activation": field.activation,
        "epsilon": field.norm_epsilon,
        "least_scale": LEAST_SCALE,
        "stop": field.convention.stop,
        "threshold": field.color_threshold,
        "aabb": np.asarray(grid.aabb, float).tolist(),
        "tight": np.asarray(tight, float).tolist(),
        "cells": list(grid.occupied.shape),
        "step": step,
        "steps": math.ceil(float(np.linalg.norm(tight[1] - tight[0])) / step) + 1,
        "background": train.background_color(run.config).astype(float).tolist(),
        "near": scene.near,
        "far": scene.far,
        "focus": list(scene.focus),
        "radius": scene.radius,
        "usual": list(usual),
        "slope": 0.5 * scene.height / scene.focal,
        "angle": math.atan2(away[1], away[0]),
        "height": math.atan2(away[2], math.hypot(away[0], away[1])),
        "said": f"{scene.name}: {weights:,} ternary weights.",
    }

"""A ternary run as one HTML page that renders in any browser, without a server or other files.

The page holds the weights, five trits to a byte, and the occupancy grid. Its fragment shader
marches through the grid and evaluates the network like `render.march_and_render`.
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
from jaxrf.export.ternary import PACKINGS, check_ternary, pack_trits, quantize_layers
from jaxrf.fields.bitnerf import MIN_SCALE, BitNeRF
from jaxrf.models.packed import PackedModel
from jaxrf.training import runs, scene_metadata
from jaxrf.training.runs import Run
from jaxrf.training.state import background_color


def write_page(run: Run, path: Path) -> int:
    """Writes a run as an HTML page; returns the number of bytes of its packed weights.

    Args:
      run: of a BitNeRF on an occupancy grid, in a bounded box.
      path: of the page.

    Raises:
      InputError: a page cannot show the run, or the file cannot be written.
    """
    _check_run(run)
    buffers = _pack_buffers(run)
    packed = gzip.compress(b"".join(buffers.values()), mtime=0)
    meta = {
        **_describe_run(run),
        "buffers": [[name, len(buffer)] for name, buffer in buffers.items()],
    }
    background = np.rint(255.0 * background_color(run.config)).astype(int)
    page = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    placeholders = {
        "NAME": html.escape(run.scene.name),
        "BACKGROUND": f"rgb({', '.join(map(str, background))})",
        # Escaped, so that a name in the metadata cannot end the script.
        "META": json.dumps(meta).replace("<", "\\u003c"),
        "DATA": base64.b64encode(packed).decode(),
    }
    for placeholder, value in placeholders.items():
        page = page.replace(f"@{placeholder}@", value)
    runs.make_writable(path.absolute().parent, "--output")
    runs.write_text(path, page)
    return len(buffers["weights"])


def _check_run(run: Run) -> None:
    """Raises InputError if a page would not show the same images as the run."""
    check_ternary(run)
    field, model = _bitnerf(run), run.config.model
    unsupported = {
        "does not march through an occupancy grid": model.samples_per_ray() is not None,
        "covers unbounded space": run.state.grid.bounds is not None,
        "is in normalized device coordinates": run.scene.ndc is not None,
        "encodes conical frusta": field.encoding != "fourier",
        "evaluates colors per ray": model.colors_per_ray(field),
        "follows the ray convention of another program": run.config.ray_convention
        != RayConvention(),
    }
    for reason, holds in unsupported.items():
        if holds:
            raise InputError(
                f"The run {run.folder} {reason}, which a page cannot show: train a preset like "
                "bitnerf-small, or export with --format ternary-1.6bit."
            )


def _bitnerf(run: Run) -> BitNeRF:
    """The run's field, which `check_ternary` has checked."""
    field = BitNeRF.match(run.config.field)
    assert field is not None
    return field


def _layer_names(field: BitNeRF) -> list[str]:
    """The layers in the order of the page."""
    view_layers = ["bottleneck", "view"] if field.use_directions else []
    trunk = [f"trunk_{i}" for i in range(field.layers)]
    return [*trunk, "density_head", *view_layers, "rgb_head"]


def _list_layers(run: Run) -> list[dict[str, Array]]:
    """Kernels and biases of the layers in the order of the page."""
    network = run.state.eval_params.field["params"]
    return [network[name] for name in _layer_names(_bitnerf(run))]


def _pack_buffers(run: Run) -> dict[str, bytes]:
    """The arrays of the page: weights, scales, biases and the occupancy grid."""
    layers = _list_layers(run)
    trits, scales = quantize_layers(layers)
    biases = np.concatenate([np.asarray(layer["bias"], "<f4") for layer in layers])
    return {
        "weights": pack_trits(np.concatenate(trits), PACKINGS["ternary-1.6bit"]).tobytes(),
        "scales": np.array(scales, "<f4").tobytes(),
        "biases": biases.tobytes(),
        "occupied": np.packbits(np.asarray(run.state.grid.occupied)).tobytes(),
    }


def _describe_run(run: Run) -> dict[str, Any]:
    """The numbers from which the page makes its shader and its first view."""
    return _describe_network(run) | _describe_marching(run) | _describe_first_view(run)


def _describe_network(run: Run) -> dict[str, Any]:
    field = _bitnerf(run)

    def encoded_size(num_frequencies: int) -> int:
        encoded = encodings.fourier(
            jnp.zeros(3), num_frequencies, field.encode_input, field.frequency
        )
        return encoded.shape[-1]

    directions = field.use_directions
    kernels = [layer["kernel"].shape for layer in _list_layers(run)]
    num_weights = sum(math.prod(shape) for shape in kernels)
    return {
        "layers": [list(shape) for shape in kernels],
        "num_trunk_layers": field.layers,
        "skip": field.skip,
        "width": field.width,
        "color_width": field.color_width,
        "position_size": encoded_size(field.num_position_frequencies),
        "direction_size": encoded_size(field.num_direction_frequencies) if directions else 0,
        "num_position_frequencies": field.num_position_frequencies,
        "num_direction_frequencies": field.num_direction_frequencies,
        "encode_input": field.encode_input,
        "use_directions": field.use_directions,
        "frequency": field.frequency,
        "density_bias": field.density_bias,
        "activation": field.activation,
        "norm_epsilon": field.norm_epsilon,
        "min_scale": MIN_SCALE,
        "caption": f"{run.scene.name}: {num_weights:,} ternary weights.",
    }


def _describe_marching(run: Run) -> dict[str, Any]:
    config, grid = run.config, run.state.grid
    model = config.model
    assert isinstance(model, PackedModel)
    _, occupied_aabb = model.eval_stage(run.stage, grid, config.ray_convention, crop=True)
    step_size = float(model.step_size(run.stage.field, grid.aabb))
    diagonal = float(np.linalg.norm(occupied_aabb[1] - occupied_aabb[0]))
    return {
        "aabb": np.asarray(grid.aabb, float).tolist(),
        "occupied_aabb": np.asarray(occupied_aabb, float).tolist(),
        "grid_resolution": list(grid.occupied.shape),
        "step_size": step_size,
        "max_steps": math.ceil(diagonal / step_size) + 1,
        "transmittance_threshold": config.ray_convention.transmittance_threshold,
        "color_threshold": model.color_threshold,
        "background": background_color(run.config).astype(float).tolist(),
    }


def _describe_first_view(run: Run) -> dict[str, Any]:
    scene = run.scene
    offset = np.array([1.0, 0.0, 0.5])
    if scene.poses:
        offset = np.array(scene.poses[0]).reshape(3, 4)[:, 3] - scene.focus
    x, y, z = offset.astype(float)
    return {
        "near": scene.near,
        "far": scene.far,
        "focus": list(scene.focus),
        "radius": scene.radius,
        "camera_distance_range": list(scene_metadata.camera_distance_range(scene)),
        # Half the image height at distance 1.
        "slope": 0.5 * scene.height / scene.focal,
        "azimuth": math.atan2(y, x),
        "elevation": math.atan2(z, math.hypot(x, y)),
    }

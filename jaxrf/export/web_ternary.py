"""A ternary run for a page: its packed weights and its occupancy grid.

The page's fragment shader marches through the grid and evaluates the network at every sample, like
`render.march_and_render`.
"""

import math
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
from jaxrf.training.runs import Run


def shows_ternary(run: Run) -> bool:
    """Whether a page can show the run itself: a ternary network on an occupancy grid in a box."""
    try:
        check_ternary(run)
    except InputError:
        return False
    field, model = _bitnerf(run), run.config.model
    return (
        model.samples_per_ray() is None
        and run.state.grid.bounds is None
        and run.scene.ndc is None
        and field.encoding == "fourier"
        and not model.colors_per_ray(field)
        and run.config.ray_convention == RayConvention()
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


def pack_ternary(run: Run) -> dict[str, bytes]:
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


def describe_ternary(run: Run) -> dict[str, Any]:
    """The numbers from which the page makes its shader."""
    return _describe_network(run) | _describe_marching(run)


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
    }

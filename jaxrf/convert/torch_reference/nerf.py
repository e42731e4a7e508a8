"""Networks of the NeRF programs, which return raw outputs at points."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxrf.convert.torch_reference.layers import Network, Outputs, StateDict, make_linear
from jaxrf.convert.torch_reference.rendering import RenderRules

_NERF = RenderRules(
    pixel_offset=0.0,
    num_coarse_samples=64,
    num_fine_samples=128,
    unit_directions=True,
    lengths_along_ray=True,
    inclusive_transmittance=False,
    white_background=True,
)
_SMALL_NERF = RenderRules(
    pixel_offset=0.0,
    num_coarse_samples=64,
    num_fine_samples=0,
    unit_directions=False,
    lengths_along_ray=False,
    inclusive_transmittance=False,
    white_background=False,
)
# By the format of the weights.
RENDER_RULES = {
    "nerf-pytorch": _NERF,
    "nerfmlp": _NERF,
    "nerfmlp (older)": _NERF,
    "TensorFlow NeRF": _NERF,
    "jaxnerf": _NERF._replace(padded_distribution=False),
    "NeRF-experiments NeRF": _SMALL_NERF._replace(num_coarse_samples=32, white_background=True),
    "NeRF-experiments BitNeRF": _SMALL_NERF._replace(num_coarse_samples=32, white_background=True),
    "NeRF-from-scratch": _SMALL_NERF._replace(white_background=True),
    "Jiayi Pan's NeRF": _SMALL_NERF,
    "Jiayi Pan's tiny NeRF": _SMALL_NERF._replace(num_coarse_samples=32),
}


def encode(
    x: Tensor, num_frequencies: int, include_input: bool = True, factor: float = 1.0
) -> Tensor:
    """Returns x, then sine and cosine of one octave after the other, each of all coordinates."""
    parts = [x] if include_input else []
    for octave in range(num_frequencies):
        parts.append(torch.sin(x * (2.0**octave * factor)))
        parts.append(torch.cos(x * (2.0**octave * factor)))
    return torch.cat(parts, dim=-1)


def encode_by_coordinate(x: Tensor, num_frequencies: int) -> Tensor:
    """Returns all of x (the coordinate and its waves), then all of y, then all of z."""
    parts = []
    for axis in range(3):
        value = x[..., axis]
        parts.append(value)
        for octave in range(num_frequencies):
            parts += [torch.sin(2.0**octave * value), torch.cos(2.0**octave * value)]
    return torch.stack(parts, dim=-1)


def encode_sines_first(x: Tensor, num_frequencies: int) -> Tensor:
    """Returns x, then all sines, then all cosines."""
    scaled = torch.cat([x * 2.0**octave for octave in range(num_frequencies)], dim=-1)
    return torch.cat([x, torch.sin(scaled), torch.cos(scaled)], dim=-1)


def _infer_frequencies(encoding_size: int) -> tuple[int, bool]:
    """Returns the octaves of an encoding, and whether it includes its input."""
    return encoding_size // 6, encoding_size % 6 == 3


def _density_last(encoded: Tensor, trunk: Tensor, output: Tensor) -> Outputs:
    """Returns the outputs of a network whose last layer gives r, g, b and density."""
    return {
        "encoding": encoded,
        "trunk": trunk,
        "density": output[..., 3],
        "color": output[..., :3],
    }


def nerf_pytorch(
    arrays: Mapping[str, np.ndarray],
    dtype: torch.dtype,
    head_names: tuple[str, str, str],
    factor: float,
) -> Network:
    """Returns a network of nerf-pytorch, or of nerfmlp, which has other names for its heads.

    Args:
      arrays: the state dict.
      dtype: to compute in.
      head_names: of the density, bottleneck and view layers.
      factor: of the angles.
    """
    state = StateDict(arrays, dtype)
    trunk = state.layers("pts_linears")
    num_frequencies, include_input = _infer_frequencies(trunk[0].in_features)
    has_view = state.has("rgb_linear")
    if has_view:
        density, bottleneck, view = (state.layer(name) for name in head_names)
        rgb = state.layer("rgb_linear")
        direction_size = view.in_features - bottleneck.out_features
        num_direction_frequencies = _infer_frequencies(direction_size)[0]
    else:
        output = state.layer("output_linear")

    def run(position: Tensor, direction: Tensor) -> Outputs:
        encoded = encode(position, num_frequencies, include_input, factor)
        h = encoded
        for index, layer in enumerate(trunk):
            if index and layer.in_features == trunk[index - 1].out_features + encoded.shape[-1]:
                h = torch.cat([encoded, h], dim=-1)
            h = torch.relu(layer(h))
        if not has_view:
            return _density_last(encoded, h, output(h))
        encoded_direction = encode(direction, num_direction_frequencies, include_input, factor)
        view_input = torch.cat([bottleneck(h), encoded_direction], dim=-1)
        return {
            "encoding": encoded,
            "trunk": h,
            "density": density(h)[..., 0],
            "color": rgb(torch.relu(view(view_input))),
        }

    return run


def nerf_tensorflow(arrays: list[np.ndarray], dtype: torch.dtype) -> Network:
    """Returns the original's network of 24 arrays: kernels (in, out) and biases in turn."""
    names = [f"pts_linears.{index}" for index in range(8)]
    names += ["feature_linear", "views_linears.0", "rgb_linear", "alpha_linear"]
    state = {}
    for index, name in enumerate(names):
        state[f"{name}.weight"] = np.asarray(arrays[2 * index]).T
        state[f"{name}.bias"] = np.asarray(arrays[2 * index + 1])
    head_names = ("alpha_linear", "feature_linear", "views_linears.0")
    return nerf_pytorch(state, dtype, head_names, 1.0)


def jaxnerf(layers: Mapping[str, Any], dtype: torch.dtype, legacy_order: bool) -> Network:
    """Returns jaxnerf's network, whose skip connection joins [hidden, encoded position]."""
    dense = [
        make_linear(layers[f"Dense_{i}"]["kernel"].T, layers[f"Dense_{i}"]["bias"], dtype)
        for i in range(len(layers))
    ]
    trunk, (density, bottleneck, view, rgb) = dense[:-4], dense[-4:]
    num_frequencies = (trunk[0].in_features - 3) // 6
    num_direction_frequencies = (view.in_features - bottleneck.out_features - 3) // 6
    encoding = encode if legacy_order else encode_sines_first

    def run(position: Tensor, direction: Tensor) -> Outputs:
        encoded = encoding(position, num_frequencies)
        h = encoded
        for index, layer in enumerate(trunk):
            if index and layer.in_features > trunk[index - 1].out_features:
                h = torch.cat([h, encoded], dim=-1)
            h = torch.relu(layer(h))
        encoded_direction = encoding(direction, num_direction_frequencies)
        view_input = torch.cat([bottleneck(h), encoded_direction], dim=-1)
        return {
            "encoding": encoded,
            "trunk": h,
            "density": density(h)[..., 0],
            "color": rgb(torch.relu(view(view_input))),
        }

    return run


class _BitLinear:
    """y = (Xq Wq) s_x s_w + b on rows that are normalized and scaled by a gain."""

    def __init__(self, state: StateDict, name: str) -> None:
        layer = state.layer(f"{name}.linear")
        gain = np.array(state.arrays[f"{name}.norm.weight"])
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.gain = torch.as_tensor(gain, dtype=state.dtype)
        self.scale = layer.weight.detach().abs().mean().clamp(min=1e-5)
        self.weight = torch.round(layer.weight.detach() / self.scale).clamp(-1, 1)
        self.bias = layer.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        mean_square = x.pow(2).mean(dim=-1, keepdim=True)
        x = x * torch.rsqrt(mean_square + torch.finfo(torch.float32).eps) * self.gain
        row_scale = (x.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-5)
        quantized = torch.round(x / row_scale).clamp(-128, 127)
        return quantized @ self.weight.T * row_scale * self.scale + self.bias


def nerf_experiments(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """Returns NeRF-experiments' NeRF or BitNeRF: a projection, layers, an output layer."""
    state = StateDict(arrays, dtype)
    projection, output = state.layer("input_layer"), state.layer("output_layer")
    layers: list[nn.Linear | _BitLinear] = [*state.layers("layers")]
    while state.has(f"layers.{len(layers)}.linear"):
        layers.append(_BitLinear(state, f"layers.{len(layers)}"))
    num_frequencies, include_input = _infer_frequencies(projection.in_features)

    def run(position: Tensor, direction: Tensor) -> Outputs:
        del direction
        encoded = encode(position, num_frequencies, include_input)
        h = projection(encoded)
        for layer in layers:
            if layer.in_features > h.shape[-1]:
                h = torch.cat([h, encoded], dim=-1)
            h = torch.relu(layer(h))
        return _density_last(encoded, h, output(h))

    return run


def nerf_scratch(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """Returns NeRF-from-scratch's network: linear layers 0, 2, 4, ... with ReLUs between."""
    *trunk, output = StateDict(arrays, dtype).layers("layers", stride=2)
    num_frequencies, include_input = _infer_frequencies(trunk[0].in_features)

    def run(position: Tensor, direction: Tensor) -> Outputs:
        del direction
        encoded = encode(position, num_frequencies, include_input, math.pi)
        h = encoded
        for layer in trunk:
            h = torch.relu(layer(h))
        return _density_last(encoded, h, output(h))

    return run


def nerf_basic(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """Returns Jiayi Pan's NeRF: four layers, a skip into the third."""
    state = StateDict(arrays, dtype)
    fc_1, fc_2, fc_3, fc_4 = (state.layer(f"fc_{index}") for index in range(1, 5))
    density, bottleneck = state.layer("sigma"), state.layer("fc_noact")
    view, rgb = state.layer("fc_dir"), state.layer("rgb")
    num_frequencies = (fc_1.in_features - 3) // 6
    num_direction_frequencies = (view.in_features - bottleneck.out_features - 3) // 6

    def run(position: Tensor, direction: Tensor) -> Outputs:
        encoded = encode_by_coordinate(position, num_frequencies)
        h = torch.relu(fc_2(torch.relu(fc_1(encoded))))
        h = torch.relu(fc_4(torch.relu(fc_3(torch.cat([encoded, h], dim=-1)))))
        encoded_direction = encode_by_coordinate(direction, num_direction_frequencies)
        view_input = torch.cat([bottleneck(h), encoded_direction], dim=-1)
        return {
            "encoding": encoded,
            "trunk": h,
            "density": density(h)[..., 0],
            "color": rgb(torch.relu(view(view_input))),
        }

    return run


def nerf_tiny(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """Returns Jiayi Pan's tiny NeRF: two layers and an output layer."""
    state = StateDict(arrays, dtype)
    layer_1, layer_2, output = (state.layer(f"layer{index}") for index in (1, 2, 3))
    num_frequencies = (layer_1.in_features - 3) // 6

    def run(position: Tensor, direction: Tensor) -> Outputs:
        del direction
        encoded = encode_by_coordinate(position, num_frequencies)
        h = torch.relu(layer_2(torch.relu(layer_1(encoded))))
        return _density_last(encoded, h, output(h))

    return run

"""Rebuilds the program that wrote a file: its networks, their raw outputs, and its images."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from jaxrf.cameras.base import Cameras
from jaxrf.convert import (
    instant_ngp,
    jaxnerf,
    nerf_experiments,
    nerf_plain,
    nerf_pytorch,
    nerf_tensorflow,
    nerfstudio,
    tensorf,
)
from jaxrf.convert.files.read import Content
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.torch_reference import nerf, rendering
from jaxrf.convert.torch_reference.instant_ngp import InstantNGP
from jaxrf.convert.torch_reference.layers import Network
from jaxrf.convert.torch_reference.nerfacto import Nerfacto
from jaxrf.convert.torch_reference.rendering import PinholeCamera
from jaxrf.convert.torch_reference.tensorf import TensoRF

SmallNetwork = Callable[[Any, torch.dtype], Network]
# How to build each of the small networks, and a weight that it alone has.
SMALL_NETWORKS: dict[str, tuple[SmallNetwork, str]] = {
    nerf_plain.SCRATCH: (nerf.nerf_scratch, "layers.0.weight"),
    nerf_plain.BASIC: (nerf.nerf_basic, "fc_1.weight"),
    nerf_plain.TINY: (nerf.nerf_tiny, "layer1.weight"),
}


def make_networks(
    file_format: str, content: Content, options: FormatOptions, double: bool
) -> list[Network]:
    """Returns the networks that wrote a file, the coarse one first.

    Args:
      file_format: of the converted weights.
      content: of the file.
      options: of the conversion.
      double: computes in float64 instead of float32.
    """
    dtype = torch.float64 if double else torch.float32
    match file_format:
        case nerf_tensorflow.FORMAT:
            contents, _ = nerf_tensorflow.read_siblings(content)
            return [nerf.nerf_tensorflow(file.tree, dtype) for file in contents]
        case tensorf.FORMAT:
            return [TensoRF(content.tree, dtype)]
        case instant_ngp.FORMAT:
            return [InstantNGP(content.tree, dtype)]
        case nerfstudio.TORCH | nerfstudio.TCNN:
            field = nerfstudio.find_field(content)
            assert field is not None
            return [Nerfacto(field[1], not options.bounded, options.density_factor, dtype)]
        case "jaxnerf":
            layers_of = jaxnerf.find_networks(content.tree) or {}
            return [
                nerf.jaxnerf(layers_of[name], dtype, options.legacy_order)
                for name in sorted(layers_of)
            ]
        case nerf_experiments.FULL_PRECISION | nerf_experiments.TERNARY:
            arrays = nerf_experiments.find_network(content)
            assert arrays is not None
            return [nerf.nerf_experiments(arrays, dtype)]
        case nerf_plain.SCRATCH | nerf_plain.BASIC | nerf_plain.TINY:
            build, weight_name = SMALL_NETWORKS[file_format]
            states = nerf_plain.list_states(content)
            return [build(next(s for s in states if weight_name in s), dtype)]
    networks = nerf_pytorch.find_networks(content)
    assert networks is not None and networks[0] == file_format
    head_names = nerf_pytorch.HEAD_NAMES[file_format]
    # Not taken from the converter, which is to be checked.
    factor = math.pi if file_format == nerf_pytorch.OLDER_NERFMLP else 1.0
    return [nerf.nerf_pytorch(arrays, dtype, head_names, factor) for _, arrays in networks[1]]


@torch.no_grad()
def evaluate(network: Network, points: Any, directions: Any) -> dict[str, np.ndarray]:
    """Returns the raw outputs of a network at points and directions (n, 3)."""
    outputs = network(torch.tensor(np.array(points)), torch.tensor(np.array(directions)))
    return {name: value.numpy() for name, value in outputs.items()}


def render(
    file_format: str,
    networks: list[Network],
    cameras: Cameras,
    near_far: tuple[float, float],
    edges: np.ndarray | None,
    options: FormatOptions,
    double: bool,
    places_samples: bool,
) -> dict[str, np.ndarray]:
    """Renders the first camera's image as the program does.

    Args:
      file_format: of the converted weights.
      networks: of `make_networks`.
      cameras: pinhole cameras.
      near_far: range of distances.
      edges: (height, width, n + 1) distances along rays of jaxrf's intervals; None if rays have
        different numbers of them.
      options: of the conversion.
      double: computes in float64 instead of float32.
      places_samples: places fine samples by the coarse network's weights; False takes jaxrf's.

    Returns:
      rgb, opacity, depth and, with edges, the weights of samples; (height, width, ...).
    """
    camera = to_pinhole(cameras)
    if file_format in nerfstudio.FORMATS:
        # Its samples depend on proposal networks, which are not rebuilt.
        assert edges is not None
        return cast(Nerfacto, networks[0]).render(camera, edges)
    if file_format == instant_ngp.FORMAT:
        return cast(InstantNGP, networks[0]).render(camera, near_far)
    if file_format == tensorf.FORMAT:
        return cast(TensoRF, networks[0]).render(camera, near_far, white_background=True)
    rules = nerf.RENDER_RULES[file_format]
    if file_format in nerf_experiments.FORMATS:
        rules = rules._replace(inclusive_transmittance=options.inclusive)
    # Fine samples follow from the inverse of a distribution, whose slopes amplify rounding.
    fine_distances = None
    if len(networks) > 1 and not places_samples:
        assert edges is not None
        fine_distances = edges[..., :-1]
    dtype = torch.float64 if double else torch.float32
    return rendering.render(networks, camera, rules, near_far, dtype, fine_distances)


def to_pinhole(cameras: Cameras) -> PinholeCamera:
    """Returns the first camera."""
    return PinholeCamera(
        np.asarray(cameras.T_world_camera[0], np.float64),
        (float(cameras.focal[0, 0]), float(cameras.focal[0, 1])),
        (float(cameras.principal_point[0, 0]), float(cameras.principal_point[0, 1])),
        cameras.width,
        cameras.height,
    )

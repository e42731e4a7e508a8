"""Rendering as the NeRF programs do it: rays, samples along them, and compositing."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jaxrf.convert.torch_reference.layers import Network, Outputs


class PinholeCamera(NamedTuple):
    """A pinhole camera with OpenGL axes.

    T_world_camera: (4, 4).
    focal, principal_point: (x, y), in pixels.
    width, height: of the image.
    """

    T_world_camera: np.ndarray
    focal: tuple[float, float]
    principal_point: tuple[float, float]
    width: int
    height: int


class RenderRules(NamedTuple):
    """How a program renders.

    pixel_offset: where in a pixel its ray passes, 0 being the top left corner.
    num_coarse_samples, num_fine_samples: per ray.
    unit_directions: whether networks see directions of unit length.
    lengths_along_ray: whether interval lengths are measured along rays, or along the camera's axis.
    inclusive_transmittance: whether the transmittance includes a sample's own absorption.
    padded_distribution: whether each weight is padded by 1e-5 before fine samples are drawn; or
      weights are padded only where they sum to less, and samples end just before the end.
    white_background: or black.
    """

    pixel_offset: float
    num_coarse_samples: int
    num_fine_samples: int
    unit_directions: bool
    lengths_along_ray: bool
    inclusive_transmittance: bool
    white_background: bool
    padded_distribution: bool = True


def make_rays(
    camera: PinholeCamera, pixel_offset: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns origins and directions (height, width, 3); directions are 1 long along the axis."""
    rows, columns = torch.meshgrid(
        torch.arange(camera.height, dtype=dtype) + pixel_offset,
        torch.arange(camera.width, dtype=dtype) + pixel_offset,
        indexing="ij",
    )
    x = (columns - camera.principal_point[0]) / camera.focal[0]
    y = -(rows - camera.principal_point[1]) / camera.focal[1]
    pose = torch.as_tensor(np.array(camera.T_world_camera), dtype=dtype)
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1) @ pose[:3, :3].T
    return pose[:3, 3].expand(directions.shape), directions


def make_unit_rays(camera: PinholeCamera, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns origins and unit directions (rays, 3) through the centers of pixels."""
    origins, directions = (x.reshape(-1, 3) for x in make_rays(camera, 0.5, dtype))
    return origins, directions / directions.norm(dim=-1, keepdim=True)


def assemble_image(chunks: list[Outputs], camera: PinholeCamera) -> dict[str, np.ndarray]:
    """Returns the outputs of successive chunks of rays as arrays (height, width, ...)."""
    flat = {name: torch.cat([chunk[name] for chunk in chunks]).numpy() for name in chunks[0]}
    shape = (camera.height, camera.width)
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in flat.items()}


def composite(
    outputs: Outputs, depths: Tensor, direction_lengths: Tensor, rules: RenderRules
) -> tuple[Tensor, Outputs]:
    """Returns the weights of samples (r, n), and rgb, opacity and depth of their rays.

    Args:
      outputs: raw density (r, n) and color (r, n, 3).
      depths: (r, n) of the samples, along the camera's axis.
      direction_lengths: (r,).
      rules: of the program.
    """
    lengths = depths[:, 1:] - depths[:, :-1]
    lengths = torch.cat([lengths, torch.full_like(lengths[:, :1], 1e10)], dim=-1)
    if rules.lengths_along_ray:
        lengths = lengths * direction_lengths[:, None]
    alpha = 1.0 - torch.exp(-torch.relu(outputs["density"]) * lengths)
    transmittance = torch.cumprod(1.0 - alpha + 1e-10, dim=-1)
    if not rules.inclusive_transmittance:
        transmittance = shift_right(transmittance)
    weights = alpha * transmittance
    rgb = (weights[..., None] * torch.sigmoid(outputs["color"])).sum(dim=1)
    opacity = weights.sum(dim=-1)
    if rules.white_background:
        rgb = rgb + (1.0 - opacity)[:, None]
    return weights, {"rgb": rgb, "opacity": opacity, "depth": (weights * depths).sum(dim=-1)}


def shift_right(transmittance: Tensor) -> Tensor:
    """Returns the transmittance (r, n) before each sample, from the transmittance after each."""
    return torch.cat([torch.ones_like(transmittance[:, :1]), transmittance[:, :-1]], dim=-1)


def add_fine_samples(depths: Tensor, weights: Tensor, count: int, padded: bool = True) -> Tensor:
    """Returns the depths and `count` more, sorted.

    The new ones are evenly spaced quantiles of the distribution of the weights.
    """
    middles = 0.5 * (depths[:, 1:] + depths[:, :-1])
    fine = (_padded_quantiles if padded else _unpadded_quantiles)(middles, weights, count)
    return torch.sort(torch.cat([depths, fine], dim=-1), dim=-1).values


def _unpadded_quantiles(middles: Tensor, weights: Tensor, count: int) -> Tensor:
    """Returns quantiles as jaxnerf computes them since 2021."""
    interior = weights[:, 1:-1]
    missing = (1e-5 - interior.sum(dim=-1, keepdim=True)).clamp(min=0.0)
    interior = interior + missing / interior.shape[-1]
    pdf = interior / interior.sum(dim=-1, keepdim=True)
    interior_edges = torch.cumsum(pdf[:, :-1], dim=-1).clamp(max=1.0)
    zero = torch.zeros_like(pdf[:, :1])
    cdf = torch.cat([zero, interior_edges, zero + 1.0], dim=-1)
    last = 1.0 - torch.finfo(torch.float32).eps
    u = torch.linspace(0.0, last, count, dtype=cdf.dtype).expand(len(cdf), count).contiguous()
    stop = torch.searchsorted(cdf.contiguous(), u, right=True).clamp(min=1, max=cdf.shape[-1] - 1)
    low, high = cdf.gather(1, stop - 1), cdf.gather(1, stop)
    fraction = torch.nan_to_num((u - low) / (high - low), 0.0).clamp(0.0, 1.0)
    start_depth, stop_depth = middles.gather(1, stop - 1), middles.gather(1, stop)
    return start_depth + fraction * (stop_depth - start_depth)


def _padded_quantiles(middles: Tensor, weights: Tensor, count: int) -> Tensor:
    """Returns quantiles as NeRF's code computes them."""
    interior = weights[:, 1:-1] + 1e-5
    pdf = interior / interior.sum(dim=-1, keepdim=True)
    cdf = torch.cumsum(pdf, dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    u = torch.linspace(0.0, 1.0, count, dtype=cdf.dtype).expand(len(cdf), count).contiguous()
    above = torch.searchsorted(cdf.contiguous(), u, right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=cdf.shape[-1] - 1)
    low, high = cdf.gather(1, below), cdf.gather(1, above)
    span = torch.where(high - low < 1e-5, torch.ones_like(low), high - low)
    start, stop = middles.gather(1, below), middles.gather(1, above)
    return start + (u - low) / span * (stop - start)


@torch.no_grad()
def render(
    networks: list[Network],
    camera: PinholeCamera,
    rules: RenderRules,
    near_far: tuple[float, float],
    dtype: torch.dtype,
    fine_distances: np.ndarray | None = None,
    rays_per_chunk: int = 1024,
) -> dict[str, np.ndarray]:
    """Renders an image without random numbers.

    Args:
      networks: the coarse one first.
      camera: to render from.
      rules: of the program.
      near_far: depths along the camera's axis.
      dtype: to compute in.
      fine_distances: (height, width, n) of the samples of the last of several networks, along
        rays; by default they follow from the weights of the network before.
      rays_per_chunk: limits the memory.

    Returns:
      rgb, opacity, depth and the weights of the last network, (height, width, ...).
    """
    origins, directions = (
        rays.reshape(-1, 3) for rays in make_rays(camera, rules.pixel_offset, dtype)
    )
    if fine_distances is not None:
        fine_distances = fine_distances.reshape(len(origins), -1)
    chunks: list[Outputs] = []
    for start in range(0, len(origins), rays_per_chunk):
        chunk = slice(start, start + rays_per_chunk)
        distances = None if fine_distances is None else fine_distances[chunk]
        chunks.append(
            _render_rays(networks, origins[chunk], directions[chunk], rules, near_far, distances)
        )
    return assemble_image(chunks, camera)


def _render_rays(
    networks: list[Network],
    origins: Tensor,
    directions: Tensor,
    rules: RenderRules,
    near_far: tuple[float, float],
    fine_distances: np.ndarray | None,
) -> Outputs:
    near, far = near_far
    dtype, direction_lengths = origins.dtype, directions.norm(dim=-1)
    view_directions = directions
    if rules.unit_directions:
        view_directions = directions / direction_lengths[:, None]
    fraction = torch.linspace(0.0, 1.0, rules.num_coarse_samples, dtype=dtype)
    depths = (near * (1.0 - fraction) + far * fraction).expand(len(origins), -1)
    for index, network in enumerate(networks):
        points = origins[:, None] + depths[..., None] * directions[:, None]
        outputs = network(points, view_directions[:, None].expand(points.shape))
        weights, rendering = composite(outputs, depths, direction_lengths, rules)
        if index + 1 < len(networks):
            depths = add_fine_samples(
                depths, weights, rules.num_fine_samples, rules.padded_distribution
            )
            if fine_distances is not None:
                distances = torch.as_tensor(np.array(fine_distances), dtype=dtype)
                depths = distances / direction_lengths[:, None]
    # Depth along the ray, as jaxrf has it.
    depth = rendering["depth"] * direction_lengths
    return rendering | {"weights": weights, "depth": depth}

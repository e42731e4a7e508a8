"""TensoRF: its field, VM or CP, its alpha mask, and its rendering."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxrf.convert.torch_reference.layers import Outputs, StateDict, apply_mlp, to_tensor
from jaxrf.convert.torch_reference.rendering import (
    PinholeCamera,
    assemble_image,
    make_unit_rays,
    shift_right,
)

RAYS_PER_CHUNK = 256


class TensoRF:
    """A field of TensoRF; calling it returns raw outputs at points (n, 3)."""

    def __init__(self, tree: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kwargs = tree["kwargs"]
        state = tree["state_dict"]

        def tensors(name: str) -> list[Tensor]:
            names = (f"{name}.{i}" for i in range(3))
            return [to_tensor(state[key], dtype) for key in names if key in state]

        self.planes = {part: tensors(f"{part}_plane") for part in ("density", "app")}
        self.lines = {part: tensors(f"{part}_line") for part in ("density", "app")}
        self.basis = to_tensor(state["basis_mat.weight"], dtype)
        self.mlp = StateDict(state, dtype).layers("renderModule.mlp", stride=2)
        self.aabb = to_tensor(self.kwargs["aabb"], dtype)
        self.mask = None
        if "alphaMask.mask" in tree:
            shape = [int(n) for n in tree["alphaMask.shape"]][-3:]
            bits = np.unpackbits(np.asarray(tree["alphaMask.mask"]).ravel())
            volume = bits[: math.prod(shape)].reshape(shape)
            self.mask = torch.as_tensor(volume, dtype=torch.bool)
            self.mask_aabb = to_tensor(tree["alphaMask.aabb"], dtype)

    def __call__(self, points: Tensor, directions: Tensor) -> Outputs:
        features = self.features(points)
        return {
            "density": self.raw_density(points),
            "features": features,
            "color": self.raw_color(features, directions),
        }

    def raw_density(self, points: Tensor) -> Tensor:
        """Returns the sum of all density components."""
        unit = _normalize(points, self.aabb)
        return torch.stack([p.sum(dim=0) for p in self._products("density", unit)]).sum(dim=0)

    def features(self, points: Tensor) -> Tensor:
        """Returns the appearance features."""
        products = self._products("app", _normalize(points, self.aabb))
        return torch.cat(products).T @ self.basis.T

    def raw_color(self, features: Tensor, directions: Tensor) -> Tensor:
        """Returns the output of the color network."""
        parts = [features, directions]
        if self.kwargs["shadingMode"] == "MLP_Fea" and self.kwargs["fea_pe"] > 0:
            parts.append(_encode(features, int(self.kwargs["fea_pe"])))
        if self.kwargs["view_pe"] > 0:
            parts.append(_encode(directions, int(self.kwargs["view_pe"])))
        return apply_mlp(self.mlp, torch.cat(parts, dim=-1))

    @torch.no_grad()
    def render(
        self, camera: PinholeCamera, near_far: tuple[float, float], white_background: bool
    ) -> dict[str, np.ndarray]:
        """Returns rgb, opacity and depth of an image, (height, width, ...)."""
        origins, directions = make_unit_rays(camera, self.dtype)
        size = self.aabb[1] - self.aabb[0]
        resolution = torch.as_tensor([int(n) for n in self.kwargs["gridSize"]], dtype=self.dtype)
        step = (size / (resolution - 1.0)).mean() * float(self.kwargs["step_ratio"])
        num_steps = int((size.square().sum().sqrt() / step).item()) + 1
        chunks = []
        for start in range(0, len(origins), RAYS_PER_CHUNK):
            o = origins[start : start + RAYS_PER_CHUNK]
            d = directions[start : start + RAYS_PER_CHUNK]
            nonzero = torch.where(d == 0, torch.full_like(d, 1e-6), d)
            enter = torch.minimum((self.aabb[1] - o) / nonzero, (self.aabb[0] - o) / nonzero)
            first = enter.amax(dim=-1).clamp(min=near_far[0], max=near_far[1])
            distances = first[:, None] + step * torch.arange(num_steps, dtype=self.dtype)
            chunks.append(self._render_rays(o, d, distances, white_background))
        return assemble_image(chunks, camera)

    def _render_rays(
        self, origins: Tensor, directions: Tensor, distances: Tensor, white_background: bool
    ) -> Outputs:
        points = origins[:, None] + distances[..., None] * directions[:, None]
        density = self._density_along_rays(points)
        lengths = distances[:, 1:] - distances[:, :-1]
        lengths = torch.cat([lengths, torch.zeros_like(distances[:, :1])], -1)
        alpha = 1.0 - torch.exp(-density * lengths * float(self.kwargs["distance_scale"]))
        weights = alpha * shift_right(torch.cumprod(1.0 - alpha + 1e-10, dim=-1))
        visible = weights > float(self.kwargs["rayMarch_weight_thres"])
        rgb = torch.zeros_like(points)
        if visible.any():
            view_directions = directions[:, None].expand(points.shape)[visible]
            color = self.raw_color(self.features(points[visible]), view_directions)
            rgb[visible] = torch.sigmoid(color)
        opacity = weights.sum(dim=-1)
        pixel = (weights[..., None] * rgb).sum(dim=1)
        if white_background:
            pixel = pixel + (1.0 - opacity)[:, None]
        # TensoRF adds (1 - opacity) times the last coordinate of the direction to the depth. That
        # has no meaning and is left out.
        return {
            "rgb": pixel.clamp(0.0, 1.0),
            "opacity": opacity,
            "depth": (weights * distances).sum(dim=-1),
        }

    def _density_along_rays(self, points: Tensor) -> Tensor:
        """Returns the density (r, n) of points, 0 outside the box and in masked cells."""
        # The first point of a ray lies on the border, which belongs to the box. In TensoRF rounding
        # decides whether it counts, so that in fog rays differ at random.
        tolerance = 3e-6 * (self.aabb[1] - self.aabb[0])
        valid = (points >= self.aabb[0] - tolerance) & (points <= self.aabb[1] + tolerance)
        valid = valid.all(dim=-1)
        if self.mask is not None:
            valid[valid.clone()] = self._is_unmasked(points[valid])
        density = torch.zeros(points.shape[:-1], dtype=points.dtype)
        if valid.any():
            raw = self.raw_density(points[valid])
            if self.kwargs["fea2denseAct"] == "softplus":
                raw = nn.functional.softplus(raw + float(self.kwargs["density_shift"]))
            density[valid] = torch.relu(raw)
        return density

    def _is_unmasked(self, points: Tensor) -> Tensor:
        """Returns whether the interpolated mask is above 0 at points (n, 3)."""
        assert self.mask is not None
        last = torch.tensor(self.mask.shape[::-1]) - 1
        scaled = (_normalize(points, self.mask_aabb) + 1.0) * 0.5 * last
        # As on the border of the box, rounding would decide in TensoRF on planes of the mask.
        nearest = scaled.round()
        scaled = torch.where((scaled - nearest).abs() <= 6e-6 * last, nearest, scaled)
        unmasked = torch.zeros(len(points), dtype=torch.bool)
        # The points of nonzero weight; beyond the mask there are none.
        for corner in np.ndindex(2, 2, 2):
            index = torch.where(torch.tensor(corner) == 1, scaled.ceil(), scaled.floor()).long()
            exists = ((index >= 0) & (index <= last)).all(dim=-1)
            x, y, z = index.clamp(min=torch.zeros_like(last), max=last).unbind(dim=-1)
            unmasked |= exists & self.mask[z, y, x]
        return unmasked

    def _products(self, part: str, unit: Tensor) -> list[Tensor]:
        """Returns (components, points) of planes times lines, or of three lines."""

        def sample(image: Tensor, at: Tensor) -> Tensor:
            grid = at.view(1, -1, 1, 2)
            values = nn.functional.grid_sample(image, grid, align_corners=True)
            return values.view(image.shape[1], -1)

        lines = []
        for line, axis in zip(self.lines[part], (2, 1, 0), strict=True):
            along = unit[:, axis]
            lines.append(sample(line, torch.stack([torch.zeros_like(along), along], dim=-1)))
        if not self.planes[part]:
            return [lines[0] * lines[1] * lines[2]]
        planes = [
            sample(plane, unit[:, list(axes)])
            for plane, axes in zip(self.planes[part], ((0, 1), (0, 2), (1, 2)), strict=True)
        ]
        return [plane * line for plane, line in zip(planes, lines, strict=True)]


def _normalize(points: Tensor, aabb: Tensor) -> Tensor:
    """Returns points in the box as coordinates from -1 to 1."""
    return (points - aabb[0]) * (2.0 / (aabb[1] - aabb[0])) - 1.0


def _encode(x: Tensor, num_frequencies: int) -> Tensor:
    """Returns all sines, then all cosines, coordinate by coordinate."""
    scaled = x[..., None] * 2.0 ** torch.arange(num_frequencies, dtype=x.dtype)
    scaled = scaled.reshape(*x.shape[:-1], -1)
    return torch.cat([torch.sin(scaled), torch.cos(scaled)], dim=-1)

"""nerfacto's hash field, in its PyTorch layout or in that of tiny-cuda-nn."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from jaxrf.convert.torch_reference.layers import (
    Outputs,
    StateDict,
    apply_mlp,
    make_linear,
    to_tensor,
)
from jaxrf.convert.torch_reference.rendering import PinholeCamera, assemble_image, make_unit_rays

HASH_PRIMES = (1, 2654435761, 805459861)
BASE_RESOLUTION = 16
RAYS_PER_CHUNK = 256


class Nerfacto:
    """A field of nerfacto; calling it returns raw outputs at points (n, 3)."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        contract: bool,
        density_factor: float,
        dtype: torch.dtype,
    ) -> None:
        self.dtype, self.contract, self.density_factor = dtype, contract, density_factor
        self.aabb = torch.as_tensor(np.array(arrays.get("aabb", [[-1.0] * 3, [1.0] * 3])))
        self.aabb = self.aabb.to(dtype)
        vectors = [
            a for name, a in arrays.items() if "mlp_base" in name and name.endswith("params")
        ]
        self.is_tcnn = any(vector.size for vector in vectors)
        embeddings = [a for name, a in arrays.items() if name.startswith("embedding_appearance")]
        self.appearance = torch.zeros(0, dtype=dtype)
        if embeddings:
            mean = torch.as_tensor(np.array(embeddings[0])).double().mean(0)
            self.appearance = mean.to(dtype)
        self.num_levels = int(arrays.get("num_levels", np.array(16)))
        self.rows_per_level = 1 << int(arrays.get("log2_hashmap_size", np.array(19)))
        self.max_resolution = int(arrays.get("max_res", np.array(2048)))
        if self.is_tcnn:
            self._read_tcnn(arrays)
        else:
            self._read_torch(arrays)

    def _read_torch(self, arrays: Mapping[str, np.ndarray]) -> None:
        table_name = next(name for name in arrays if name.endswith("hash_table"))
        self.table = to_tensor(arrays[table_name], self.dtype)
        self.rows_per_level = len(self.table) // self.num_levels
        base_name = table_name.replace("0.hash_table", "1").replace("encoding.hash_table", "mlp")
        state = StateDict(arrays, self.dtype)
        self.base = state.layers(f"{base_name}.layers")
        self.head = state.layers("mlp_head.layers")

    def _read_tcnn(self, arrays: Mapping[str, np.ndarray]) -> None:
        def vector(part: str) -> Tensor:
            names = [n for n in arrays if n.startswith(part) and n.endswith("params")]
            return to_tensor(arrays[names[0]], self.dtype).ravel()

        base, head = vector("mlp_base"), vector("mlp_head")
        # The vector is the network, then the table. Its length tells both sizes.
        resolutions = [self.max_resolution] if "max_res" in arrays else [2048, 1024]
        candidates = itertools.product(resolutions, (1, 2, 4, 8), (16, 32, 64, 128), (1, 2, 3))
        for self.max_resolution, num_features, width, num_hidden in candidates:
            num_rows = sum(self._tcnn_rows(scale) for scale in self._scales())
            inputs = _pad_to_16(self.num_levels * num_features)
            network_size = len(base) - num_rows * num_features
            if network_size == width * (inputs + 16) + (num_hidden - 1) * width * width:
                break
        else:
            raise ValueError("the vector fits no network")
        hidden = [(width, width)] * (num_hidden - 1)
        self.base = self._split_layers(base, [(width, inputs), *hidden, (16, width)])
        self.table = base[network_size:].reshape(-1, num_features)
        head_inputs = _pad_to_16(31 + len(self.appearance))
        num_hidden = (len(head) - width * (head_inputs + 16)) // (width * width)
        hidden = [(width, width)] * num_hidden
        self.head = self._split_layers(head, [(width, head_inputs), *hidden, (16, width)])

    def _split_layers(self, vector: Tensor, shapes: list[tuple[int, int]]) -> list[nn.Linear]:
        layers, start = [], 0
        for outputs, inputs in shapes:
            weight = vector[start : start + outputs * inputs].reshape(outputs, inputs)
            layers.append(make_linear(weight, torch.zeros(outputs), self.dtype))
            start += outputs * inputs
        return layers

    def _scales(self) -> list[float]:
        """Returns the number that unit coordinates are multiplied with on each level."""
        growth = np.exp(
            (np.log(self.max_resolution) - np.log(BASE_RESOLUTION)) / max(self.num_levels - 1, 1)
        )
        if self.is_tcnn:
            return tcnn_scales(torch.tensor(growth), self.num_levels, BASE_RESOLUTION)
        levels = torch.arange(self.num_levels)
        return [float(v) for v in torch.floor(BASE_RESOLUTION * growth**levels)]

    def _tcnn_rows(self, scale: float) -> int:
        """Returns the rows of a level: a multiple of 8 that holds its vertices, or the maximum."""
        return min(-(-((math.ceil(scale) + 1) ** 3) // 8) * 8, self.rows_per_level)

    def __call__(self, points: Tensor, directions: Tensor, in_world_space: bool = False) -> Outputs:
        """Returns raw outputs at points (n, 3), which are contracted unless `in_world_space`."""
        if in_world_space or not self.contract:
            unit = self._normalize(points)
        else:
            unit = (points + 2.0) / 4.0
        encoded = self._look_up(unit)
        num_padding = self.base[0].in_features - encoded.shape[-1]
        output = apply_mlp(self.base, nn.functional.pad(encoded, (0, num_padding)))
        appearance = self.appearance.expand(len(points), -1)
        x = torch.cat([self._harmonics(directions), output[:, 1:], appearance], dim=-1)
        num_padding = self.head[0].in_features - x.shape[-1]
        # tiny-cuda-nn pads with ones; in the PyTorch layout these are embeddings that the file does
        # not have.
        padding = torch.full((len(x), num_padding), float(self.is_tcnn), dtype=self.dtype)
        color = apply_mlp(self.head, torch.cat([x, padding], dim=-1))
        return {
            "encoding": encoded,
            "density": output[:, 0],
            "features": output[:, 1:],
            "color": color[:, :3],
        }

    def _normalize(self, points: Tensor) -> Tensor:
        """Returns points of the world as coordinates from 0 to 1."""
        if not self.contract:
            return (points - self.aabb[0]) / (self.aabb[1] - self.aabb[0])
        norm = points.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
        contracted = torch.where(norm < 1, points, (2 - 1 / norm) * points / norm)
        return (contracted + 2.0) / 4.0

    def _look_up(self, unit: Tensor) -> Tensor:
        """Returns the interpolated features of all levels."""
        levels, first_row = [], 0
        for level, scale in enumerate(self._scales()):
            if self.is_tcnn:
                levels.append(self._look_up_tcnn(unit, scale, first_row))
                first_row += self._tcnn_rows(scale)
            else:
                levels.append(self._look_up_torch(unit, scale, level * self.rows_per_level))
        return torch.cat(levels, dim=-1)

    def _look_up_tcnn(self, unit: Tensor, scale: float, first_row: int) -> Tensor:
        scaled = unit * scale + 0.5
        points_per_side = math.ceil(scale) + 1
        rows = self._tcnn_rows(scale)
        low = torch.floor(scaled)
        features = torch.zeros(len(unit), self.table.shape[1], dtype=self.dtype)
        for corner in np.ndindex(2, 2, 2):
            offset = torch.tensor(corner)
            at = low.long() + offset
            weight = trilinear_weight(scaled - low, offset)
            if points_per_side**3 <= rows:
                x, y, z = at.unbind(dim=-1)
                index = (x + points_per_side * (y + points_per_side * z)) % rows
            else:
                index = hash_vertices(at, rows)
            features = features + weight[:, None] * self.table[first_row + index]
        return features

    def _look_up_torch(self, unit: Tensor, scale: float, first_row: int) -> Tensor:
        scaled = unit * scale
        low = torch.floor(scaled)
        features = torch.zeros(len(unit), self.table.shape[1], dtype=self.dtype)
        for corner in np.ndindex(2, 2, 2):
            offset = torch.tensor(corner)
            # The upper vertex of an integer coordinate is that coordinate.
            at = torch.where(offset == 1, torch.ceil(scaled), low).long()
            weight = trilinear_weight(scaled - low, offset)
            index = hash_vertices(at, self.rows_per_level)
            features = features + weight[:, None] * self.table[first_row + index]
        return features

    def _harmonics(self, directions: Tensor) -> Tensor:
        """Returns 16 spherical harmonics.

        nerfstudio halves directions to coordinates from 0 to 1. tiny-cuda-nn undoes that, while the
        PyTorch code does not, and leaves out the Condon-Shortley sign.
        """
        if self.is_tcnn:
            return tcnn_harmonics(directions)
        return tcnn_harmonics(0.5 * (directions + 1.0), sign=1.0)

    @torch.no_grad()
    def render(self, camera: PinholeCamera, edges: np.ndarray) -> dict[str, np.ndarray]:
        """Renders an image on black from intervals along rays.

        Args:
          camera: to render from.
          edges: (height, width, n + 1) distances of the intervals along rays.

        Returns:
          rgb, opacity, depth and weights, (height, width, ...).
        """
        origins, directions = make_unit_rays(camera, self.dtype)
        tdist = to_tensor(edges, self.dtype).reshape(len(origins), -1)
        chunks = []
        for start in range(0, len(origins), RAYS_PER_CHUNK):
            chunk = slice(start, start + RAYS_PER_CHUNK)
            chunks.append(self._render_rays(origins[chunk], directions[chunk], tdist[chunk]))
        return assemble_image(chunks, camera)

    def _render_rays(self, origins: Tensor, directions: Tensor, tdist: Tensor) -> Outputs:
        shape = (len(origins), tdist.shape[1] - 1)
        middle = 0.5 * (tdist[:, 1:] + tdist[:, :-1])
        points = (origins[:, None] + middle[..., None] * directions[:, None]).reshape(-1, 3)
        view_directions = directions[:, None].expand(*shape, 3).reshape(-1, 3)
        outputs = self(points, view_directions, in_world_space=True)
        density = self.density_factor * torch.exp(outputs["density"]).reshape(shape)
        optical_depth = density * tdist.diff(dim=-1)
        before = torch.cat([torch.zeros_like(optical_depth[:, :1]), optical_depth[:, :-1]], dim=-1)
        transmittance = torch.exp(-torch.cumsum(before, dim=-1))
        weights = transmittance * (1.0 - torch.exp(-optical_depth))
        rgb = torch.sigmoid(outputs["color"]).reshape(*shape, 3)
        return {
            "rgb": (weights[..., None] * rgb).sum(dim=1),
            "opacity": weights.sum(dim=-1),
            "depth": (weights * middle).sum(dim=-1),
            "weights": weights,
        }


def tcnn_scales(growth: Tensor, num_levels: int, base_resolution: int) -> list[float]:
    """Returns the number that unit coordinates are multiplied with on each level, in float32.

    exp2(level * log2(growth)) * base_resolution - 1, each step computed in float64 and rounded.
    """
    octave = torch.log2(growth.float().double()).float()
    octaves = torch.arange(num_levels, dtype=torch.float32) * octave
    powers = torch.exp2(octaves.double()).float()
    return [float(v) for v in powers * float(base_resolution) - 1.0]


def tcnn_harmonics(directions: Tensor, sign: float = -1.0) -> Tensor:
    """Returns 16 spherical harmonics of directions (n, 3), with the Condon-Shortley sign."""
    x, y, z = directions.unbind(dim=-1)
    xx, yy, zz = x * x, y * y, z * z
    values = [
        0.28209479177387814 * torch.ones_like(x),
        sign * 0.4886025119029199 * y,
        0.4886025119029199 * z,
        sign * 0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        sign * 1.0925484305920792 * y * z,
        0.9461746957575601 * zz - 0.31539156525252005,
        sign * 1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        sign * 0.5900435899266435 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        sign * 0.4570457994644658 * y * (5 * zz - 1),
        0.3731763325901154 * z * (5 * zz - 3),
        sign * 0.4570457994644658 * x * (5 * zz - 1),
        1.445305721320277 * z * (xx - yy),
        sign * 0.5900435899266435 * x * (xx - 3 * yy),
    ]
    return torch.stack(values, dim=-1)


def _pad_to_16(size: int) -> int:
    """Returns the next multiple of 16, as tiny-cuda-nn pads inputs."""
    return -(-size // 16) * 16


def trilinear_weight(fraction: Tensor, offset: Tensor) -> Tensor:
    """Returns the weight (n,) of the vertex at an offset of zeros and ones in each cell."""
    return torch.where(offset == 1, fraction, 1.0 - fraction).prod(dim=-1)


def hash_vertices(vertices: Tensor, rows: int) -> Tensor:
    """Returns the row of each vertex (n, 3)."""
    mixed = vertices * torch.tensor(HASH_PRIMES)
    return (mixed[:, 0] ^ mixed[:, 1] ^ mixed[:, 2]) % rows

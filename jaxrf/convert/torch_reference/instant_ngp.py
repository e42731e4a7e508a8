"""instant-ngp's field and its march through cascades of occupied cells, in the unit cube."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxrf.convert.torch_reference.layers import Outputs, apply_mlp, make_linear
from jaxrf.convert.torch_reference.nerfacto import (
    hash_vertices,
    tcnn_harmonics,
    tcnn_scales,
    trilinear_weight,
)
from jaxrf.convert.torch_reference.rendering import PinholeCamera, assemble_image, make_unit_rays

CELLS = 128
STEP = math.sqrt(3.0) / 1024
RAYS_PER_CHUNK = 64


class InstantNGP:
    """A field of instant-ngp; calling it returns raw outputs at points (n, 3) of the data set."""

    def __init__(self, tree: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.dtype, snapshot = dtype, tree["snapshot"]
        dataset = snapshot["nerf"]["dataset"]
        self.scale, self.offset = (
            float(dataset["scale"]),
            torch.tensor(dataset["offset"], dtype=torch.float64),
        )
        self.aabb_scale = int(snapshot["nerf"].get("aabb_scale", dataset.get("aabb_scale", 1)))
        side = torch.full((3,), 0.5 * self.aabb_scale, dtype=dtype)
        self.aabb = torch.stack([0.5 - side, 0.5 + side])
        corners = (self.aabb.double()[:, [2, 0, 1]] - self.offset.double()) / self.scale
        # Rounded as in jaxrf: the finest cells may be as small as some bits of it.
        self.corners = corners.float().to(dtype)
        self._read_crop(snapshot)
        self._read_params(tree, snapshot)
        self._read_bits(snapshot)

    def _read_crop(self, snapshot: Mapping[str, Any]) -> None:
        box = snapshot.get("render_aabb", snapshot["nerf"]["dataset"].get("render_aabb"))
        self.crop = self.aabb
        turn = torch.tensor(snapshot.get("render_aabb_to_local", np.eye(3).tolist()))
        if box is None or not torch.allclose(turn.double(), torch.eye(3).double(), atol=1e-4):
            return
        low, high = (torch.tensor(box[key], dtype=self.dtype) for key in ("min", "max"))
        if bool((low < high).all()):
            self.crop = torch.stack([low, high])

    def _read_params(self, tree: Mapping[str, Any], snapshot: Mapping[str, Any]) -> None:
        is_half = snapshot.get("params_type", "__half") == "__half"
        numbers = snapshot["params_binary"].tobytes()
        vector = np.frombuffer(numbers, np.float16 if is_half else np.float32).astype(np.float64)
        encoding = tree["encoding"]
        self.max_rows = 1 << encoding.get("log2_hashmap_size", 19)
        num_levels, channels = encoding.get("n_levels", 16), encoding.get("n_features_per_level", 2)
        multiple = 8 if tree["network"].get("otype") == "CutlassMLP" else 16
        inputs = -(-num_levels * channels // multiple) * multiple

        def count(network: Mapping[str, Any], inputs: int, outputs: int) -> int:
            width, hidden = network["n_neurons"], network["n_hidden_layers"]
            return int(width * (inputs + outputs) + (hidden - 1) * width * width)

        num_weights = count(tree["network"], inputs, 16)
        for growth, color_outputs in itertools.product(self._growths(encoding), (16, 8)):
            self.scales = tcnn_scales(growth, num_levels, encoding["base_resolution"])
            num_rows = sum(self._rows(scale) for scale in self.scales)
            num_color = count(tree["rgb_network"], 32, color_outputs)
            if num_weights + num_color + num_rows * channels == len(vector):
                break
        start = 0

        def read_layers(network: Mapping[str, Any], inputs: int, outputs: int) -> list[nn.Linear]:
            nonlocal start
            layers = []
            hidden = [network["n_neurons"]] * network["n_hidden_layers"]
            widths = [inputs, *hidden, outputs]
            for fan_in, fan_out in itertools.pairwise(widths):
                weight = vector[start : start + fan_in * fan_out].reshape(fan_out, fan_in)
                layers.append(make_linear(weight, np.zeros(fan_out), self.dtype))
                start += fan_in * fan_out
            return layers

        self.density_layers = read_layers(tree["network"], inputs, 16)
        self.color_layers = read_layers(tree["rgb_network"], 32, color_outputs)
        self.table = torch.as_tensor(vector[start:].reshape(-1, channels), dtype=self.dtype)

    def _growths(self, encoding: Mapping[str, Any]) -> list[Tensor]:
        """Returns what the ratio of two levels' resolutions may be: where it is left out, rounded.

        The finest level then has 2048 cells along a side of the unit cube.
        """
        if encoding.get("per_level_scale"):
            return [torch.tensor(encoding["per_level_scale"], dtype=torch.float32)]
        ratio = 2048.0 * self.aabb_scale / encoding["base_resolution"]
        log = torch.tensor(math.log(ratio), dtype=torch.float32)
        exponent = log / max(encoding.get("n_levels", 16) - 1, 1)
        growth = torch.tensor(math.exp(float(exponent)), dtype=torch.float32)
        ends = torch.tensor([0.0, math.inf])
        return [growth, *torch.nextafter(growth.expand(2), ends)]

    def _rows(self, scale: float) -> int:
        """Returns the rows of a level: a multiple of 8 that holds its vertices, or the maximum."""
        return min(-(-((math.ceil(scale) + 1) ** 3) // 8) * 8, self.max_rows)

    def _read_bits(self, snapshot: Mapping[str, Any]) -> None:
        depths = np.frombuffer(snapshot["density_grid_binary"].tobytes(), np.float16)
        by_cascade = depths.astype(np.float64).reshape(-1, CELLS**3)
        threshold = min(0.01, np.maximum(by_cascade[0], 0.0).mean())
        bits = torch.as_tensor(by_cascade > threshold)
        self.last_cascade = 0
        while 1 << self.last_cascade < self.aabb_scale:
            self.last_cascade += 1
        side = torch.arange(CELLS)
        cells = bits[:, _morton(torch.stack(torch.meshgrid(side, side, side, indexing="ij"), -1))]
        self.cells = [self._widen(cells[c], c) for c in range(self.last_cascade + 1)]

    def _widen(self, cells: Tensor, cascade: int) -> Tensor:
        """Returns a cascade's cells, each set if one is within 1/256 of the largest box's side.

        jaxrf has one grid of 256 cells along a side in place of all cascades.
        """
        size = 1 << max(self.last_cascade - 1 - cascade, 0)
        pooled = nn.functional.max_pool3d(cells[None, None].float(), size)[0, 0] > 0.0
        for axis in range(3):
            pooled = pooled.repeat_interleave(size, dim=axis)
        return pooled

    def _to_cube(self, points: Tensor) -> Tensor:
        """Returns points of the data set in the unit cube, whose x is the files' y."""
        moved = points * self.scale + self.offset.to(self.dtype)
        return torch.stack([moved[..., 1], moved[..., 2], moved[..., 0]], dim=-1)

    def __call__(self, points: Tensor, directions: Tensor) -> Outputs:
        """Returns raw outputs at points and directions (n, 3)."""
        size = self.corners[1] - self.corners[0]
        unit = ((points.to(self.dtype) - self.corners[0]) / size)[:, [1, 2, 0]]
        x, y, z = directions.to(self.dtype).unbind(dim=-1)
        encoded = self._look_up(unit)
        padding = self.density_layers[0].in_features - encoded.shape[-1]
        output = apply_mlp(self.density_layers, nn.functional.pad(encoded, (0, padding)))
        harmonics = tcnn_harmonics(torch.stack([y, z, x], dim=-1))
        color = apply_mlp(self.color_layers, torch.cat([output, harmonics], dim=-1))
        return {
            "encoding": encoded,
            "density": output[:, 0],
            "features": output,
            "color": color[:, :3],
        }

    def _look_up(self, unit: Tensor) -> Tensor:
        levels, first_row = [], 0
        for scale in self.scales:
            side = math.ceil(scale) + 1
            rows = self._rows(scale)
            scaled = unit * scale + 0.5
            low = torch.floor(scaled)
            features = torch.zeros(len(unit), self.table.shape[1], dtype=self.dtype)
            for corner in np.ndindex(2, 2, 2):
                offset = torch.tensor(corner)
                x, y, z = (low.long() + offset).unbind(dim=-1)
                if rows < side**3:
                    index = hash_vertices(low.long() + offset, rows)
                else:
                    index = (x + side * y + side * side * z) % rows
                weight = trilinear_weight(scaled - low, offset)
                features = features + weight[:, None] * self.table[first_row + index]
            levels.append(features)
            first_row += rows
        return torch.cat(levels, dim=-1)

    def _is_occupied(self, cube: Tensor) -> Tensor:
        """Returns whether points of the cube (..., 3) are in a cell with something in it."""
        from_middle = (cube - 0.5).abs().amax(dim=-1)
        _, exponent = torch.frexp(from_middle)
        cascade = (exponent + 1).clamp(0, self.last_cascade).long()
        side = torch.exp2(cascade.to(self.dtype))[..., None]
        cell = ((cube - 0.5) / side + 0.5).mul(CELLS).floor().long()
        exists = ((cell >= 0) & (cell < CELLS)).all(dim=-1)
        x, y, z = cell.clamp(0, CELLS - 1).unbind(dim=-1)
        occupied = torch.stack([cells[x, y, z] for cells in self.cells], dim=-1)
        # jaxrf crops by the cells of its one grid.
        size = 2.0**self.last_cascade / min(CELLS << self.last_cascade, 256)
        low_face = self.aabb[0] + ((cube - self.aabb[0]) / size).floor() * size
        inside = (low_face + size > self.crop[0] + 1e-3 * size) & (
            low_face < self.crop[1] - 1e-3 * size
        )
        inside = inside.all(dim=-1)
        return occupied.gather(-1, cascade[..., None])[..., 0] & exists & inside

    @torch.no_grad()
    def render(self, camera: PinholeCamera, near_far: tuple[float, float]) -> dict[str, np.ndarray]:
        """Renders an image on black, in steps that do not grow with the distance.

        Args:
          camera: to render from.
          near_far: range of distances.

        Returns:
          rgb, opacity and depth, (height, width, ...).
        """
        origins, directions = make_unit_rays(camera, self.dtype)
        chunks = []
        for start in range(0, len(origins), RAYS_PER_CHUNK):
            o = origins[start : start + RAYS_PER_CHUNK]
            d = directions[start : start + RAYS_PER_CHUNK]
            chunks.append(self._render_rays(o, d, near_far))
        return assemble_image(chunks, camera)

    def _render_rays(
        self, origins: Tensor, directions: Tensor, near_far: tuple[float, float]
    ) -> Outputs:
        step = STEP / self.scale
        nonzero = torch.where(directions == 0, torch.full_like(directions, 1e-6), directions)
        crossings = (self.corners[:, None] - origins) / nonzero
        enter = crossings.amin(dim=0).amax(dim=-1).clamp(min=near_far[0])
        leave = crossings.amax(dim=0).amin(dim=-1).clamp(max=near_far[1])
        num_steps = max(int(((leave - enter) / step).max().ceil().item()), 1)
        distances = enter[:, None] + step * (torch.arange(num_steps, dtype=self.dtype) + 0.5)
        points = origins[:, None] + distances[..., None] * directions[:, None]
        lengths = (leave[:, None] - distances + 0.5 * step).clamp(0.0, step)
        occupied = self._is_occupied(self._to_cube(points)) & (lengths > 0.0)
        density = torch.zeros(points.shape[:-1], dtype=self.dtype)
        rgb = torch.zeros_like(points)
        if occupied.any():
            towards = directions[:, None].expand(points.shape)[occupied]
            outputs = self(points[occupied], towards)
            density[occupied] = torch.exp(outputs["density"]) * self.scale
            rgb[occupied] = torch.sigmoid(outputs["color"])
        alpha = 1.0 - torch.exp(-density * lengths)
        before = torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha[:, :-1]], dim=-1)
        weights = alpha * torch.cumprod(before, dim=-1)
        return {
            "rgb": (weights[..., None] * rgb).sum(dim=1),
            "opacity": weights.sum(dim=-1),
            "depth": (weights * distances).sum(dim=-1),
        }


def _morton(cell: Tensor) -> Tensor:
    """Returns the number of each cell (..., 3), whose bits are those of x, y and z in turn."""
    number = torch.zeros_like(cell[..., 0])
    for bit in range(7):
        for axis in range(3):
            number |= ((cell[..., axis] >> bit) & 1) << (3 * bit + axis)
    return number

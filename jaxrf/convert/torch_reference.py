"""The programs that weights come from, rebuilt in PyTorch to compare with.

Written from the description of each format alone; nothing here uses the rest of jaxrf but for
reading the file. What is compared: encoding, trunk, raw density and raw colour at points, and
pictures with chance switched off.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]


class View(NamedTuple):
    """A pinhole camera with OpenGL axes.

    pose: (4, 4) camera-to-world.
    focal, middle: focal lengths and principal point along x and y, in pixels.
    width, height: of the picture.
    """

    pose: np.ndarray
    focal: tuple[float, float]
    middle: tuple[float, float]
    width: int
    height: int


class Sampling(NamedTuple):
    """How a program renders.

    pixel_center: added to a pixel's column and row.
    coarse, fine: samples.
    unit_view: whether networks see directions of unit length.
    true_lengths: whether lengths are multiplied by that of the direction.
    inclusive: whether the transmittance includes a sample's own absorption.
    white: whether white is behind, or black.
    """

    pixel_center: float
    coarse: int
    fine: int
    unit_view: bool
    true_lengths: bool
    inclusive: bool
    white: bool


_ORIGINAL = Sampling(0.0, 64, 128, True, True, False, True)
_COURSE = Sampling(0.0, 64, 0, False, False, False, False)
# By what wrote the weights.
SAMPLINGS = {
    "nerf-pytorch": _ORIGINAL,
    "nerfmlp": _ORIGINAL,
    "nerfmlp (older)": _ORIGINAL,
    "TensorFlow NeRF": _ORIGINAL,
    "jaxnerf": _ORIGINAL,
    "NeRF-experiments NeRF": _COURSE._replace(coarse=32, white=True),
    "NeRF-experiments BitNeRF": _COURSE._replace(coarse=32, white=True),
    "NeRF-from-scratch": _COURSE._replace(white=True),
    "Jiayi Pan's NeRF": _COURSE,
    "Jiayi Pan's tiny NeRF": _COURSE._replace(coarse=32),
}

Network = Callable[[Tensor, Tensor], Outputs]


def encode(x: Tensor, octaves: int, include_input: bool = True, factor: float = 1.0) -> Tensor:
    """x, then sine and cosine of one octave after the other, each of all coordinates."""
    parts = [x] if include_input else []
    for octave in range(octaves):
        parts.append(torch.sin(x * (2.0**octave * factor)))
        parts.append(torch.cos(x * (2.0**octave * factor)))
    return torch.cat(parts, dim=-1)


def encode_by_coordinate(x: Tensor, octaves: int) -> Tensor:
    """Everything of x, then of y, then of z."""
    parts = []
    for axis in range(3):
        value = x[..., axis]
        parts.append(value)
        for octave in range(octaves):
            parts += [torch.sin(2.0**octave * value), torch.cos(2.0**octave * value)]
    return torch.stack(parts, dim=-1)


def encode_sines_first(x: Tensor, octaves: int) -> Tensor:
    """x, then all sines, then all cosines."""
    scaled = torch.cat([x * 2.0**octave for octave in range(octaves)], dim=-1)
    return torch.cat([x, torch.sin(scaled), torch.cos(scaled)], dim=-1)


def _linear(weight: Any, bias: Any, dtype: torch.dtype) -> nn.Linear:
    """A layer of a weight (out, in) and a bias."""
    weight, bias = (
        torch.as_tensor(np.array(v) if isinstance(v, np.ndarray) else v).to(dtype)
        for v in (weight, bias)
    )
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


class _Arrays(NamedTuple):
    """A state dict and the precision to compute in."""

    arrays: Mapping[str, np.ndarray]
    dtype: torch.dtype

    def layer(self, name: str) -> nn.Linear:
        return _linear(self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"], self.dtype)

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.arrays


def _octaves(size: int) -> tuple[int, bool]:
    return ((size - 3) // 6, True) if size % 6 == 3 else (size // 6, False)


def nerf_pytorch(
    arrays: Mapping[str, np.ndarray], dtype: torch.dtype, names: tuple[str, str, str], factor: float
) -> Network:
    """nerf-pytorch's network and nerfmlp's, which has other names for its heads.

    Args:
      arrays: the state dict.
      dtype: to compute in.
      names: of density, bottleneck and view layers.
      factor: of the angles.
    """
    state = _Arrays(arrays, dtype)
    count = sum(name.startswith("pts_linears.") and name.endswith("weight") for name in arrays)
    trunk = [state.layer(f"pts_linears.{index}") for index in range(count)]
    octaves, include = _octaves(trunk[0].in_features)
    has_view = state.has("rgb_linear")
    if has_view:
        density, bottleneck, view = (state.layer(name) for name in names)
        rgb = state.layer("rgb_linear")
        across = _octaves(view.in_features - bottleneck.out_features)[0]
    else:
        output = state.layer("output_linear")

    def run(position: Tensor, direction: Tensor) -> Outputs:
        encoded = encode(position, octaves, include, factor)
        h = encoded
        for index, layer in enumerate(trunk):
            if index and layer.in_features == trunk[index - 1].out_features + encoded.shape[-1]:
                h = torch.cat([encoded, h], dim=-1)
            h = torch.relu(layer(h))
        outputs = {"encoding": encoded, "trunk": h}
        if not has_view:
            out = output(h)
            return outputs | {"density": out[..., 3], "color": out[..., :3]}
        seen = torch.cat([bottleneck(h), encode(direction, across, include, factor)], dim=-1)
        return outputs | {
            "density": density(h)[..., 0],
            "color": rgb(torch.relu(view(seen))),
        }

    return run


def nerf_tensorflow(arrays: list[np.ndarray], dtype: torch.dtype) -> Network:
    """The original's network: 24 arrays, kernels (in, out) and biases in turn."""
    names = [f"pts_linears.{index}" for index in range(8)]
    names += ["feature_linear", "views_linears.0", "rgb_linear", "alpha_linear"]
    state = {}
    for index, name in enumerate(names):
        state[f"{name}.weight"] = np.asarray(arrays[2 * index]).T
        state[f"{name}.bias"] = np.asarray(arrays[2 * index + 1])
    heads = ("alpha_linear", "feature_linear", "views_linears.0")
    return nerf_pytorch(state, dtype, heads, 1.0)


def jaxnerf(layers: Mapping[str, Any], dtype: torch.dtype, legacy_order: bool) -> Network:
    """jaxnerf's network: the hidden units come before the encoded position in the skip."""
    dense = [
        _linear(layers[f"Dense_{i}"]["kernel"].T, layers[f"Dense_{i}"]["bias"], dtype)
        for i in range(len(layers))
    ]
    trunk, (density, bottleneck, view, rgb) = dense[:-4], dense[-4:]
    octaves = (trunk[0].in_features - 3) // 6
    across = (view.in_features - bottleneck.out_features - 3) // 6
    order = encode if legacy_order else encode_sines_first

    def run(position: Tensor, direction: Tensor) -> Outputs:
        encoded = order(position, octaves)
        h = encoded
        for index, layer in enumerate(trunk):
            if index and layer.in_features > trunk[index - 1].out_features:
                h = torch.cat([h, encoded], dim=-1)
            h = torch.relu(layer(h))
        seen = torch.cat([bottleneck(h), order(direction, across)], dim=-1)
        return {
            "encoding": encoded,
            "trunk": h,
            "density": density(h)[..., 0],
            "color": rgb(torch.relu(view(seen))),
        }

    return run


class _BitLinear:
    """y = (Xq Wq) s_x s_w + b on rows that are normalised and scaled by a gain."""

    def __init__(self, state: _Arrays, name: str) -> None:
        layer = state.layer(f"{name}.linear")
        gain = np.array(state.arrays[f"{name}.norm.weight"])
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.gain = torch.as_tensor(gain, dtype=state.dtype)
        self.scale = layer.weight.detach().abs().mean().clamp(min=1e-5)
        self.weight = torch.round(layer.weight.detach() / self.scale).clamp(-1, 1)
        self.bias = layer.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(dim=-1, keepdim=True)
        x = x * torch.rsqrt(mean + torch.finfo(torch.float32).eps) * self.gain
        row = (x.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-5)
        whole = torch.round(x / row).clamp(-128, 127)
        return whole @ self.weight.T * row * self.scale + self.bias


def nerf_experiments(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """NeRF-experiments' NeRF or BitNeRF: a projection, layers, an output of rgb and density."""
    state = _Arrays(arrays, dtype)
    first, output = state.layer("input_layer"), state.layer("output_layer")
    ternary = state.has("layers.0.linear")
    layers: list[Any] = []
    while state.has(f"layers.{len(layers)}{'.linear' * ternary}"):
        name = f"layers.{len(layers)}"
        layers.append(_BitLinear(state, name) if ternary else state.layer(name))
    octaves, include = _octaves(first.in_features)

    def run(position: Tensor, direction: Tensor) -> Outputs:
        del direction
        encoded = encode(position, octaves, include)
        h = first(encoded)
        for layer in layers:
            if layer.in_features > h.shape[-1]:
                h = torch.cat([h, encoded], dim=-1)
            h = torch.relu(layer(h))
        out = output(h)
        return {"encoding": encoded, "trunk": h, "density": out[..., 3], "color": out[..., :3]}

    return run


def nerf_scratch(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """NeRF-from-scratch's: linear layers 0, 2, 4, ... with ReLUs between."""
    state = _Arrays(arrays, dtype)
    layers: list[nn.Linear] = []
    while state.has(f"layers.{2 * len(layers)}"):
        layers.append(state.layer(f"layers.{2 * len(layers)}"))
    octaves, include = _octaves(layers[0].in_features)

    def run(position: Tensor, direction: Tensor) -> Outputs:
        del direction
        encoded = encode(position, octaves, include, math.pi)
        h = encoded
        for layer in layers[:-1]:
            h = torch.relu(layer(h))
        out = layers[-1](h)
        return {"encoding": encoded, "trunk": h, "density": out[..., 3], "color": out[..., :3]}

    return run


def nerf_basic(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """Jiayi Pan's NeRF: four layers, a skip into the third."""
    state = _Arrays(arrays, dtype)
    one, two, three, four = (state.layer(f"fc_{index}") for index in range(1, 5))
    sigma, plain, aside, rgb = (state.layer(n) for n in ("sigma", "fc_noact", "fc_dir", "rgb"))
    octaves = (one.in_features - 3) // 6
    across = (aside.in_features - plain.out_features - 3) // 6

    def run(position: Tensor, direction: Tensor) -> Outputs:
        encoded = encode_by_coordinate(position, octaves)
        h = torch.relu(two(torch.relu(one(encoded))))
        h = torch.relu(four(torch.relu(three(torch.cat([encoded, h], dim=-1)))))
        seen = torch.cat([plain(h), encode_by_coordinate(direction, across)], dim=-1)
        return {
            "encoding": encoded,
            "trunk": h,
            "density": sigma(h)[..., 0],
            "color": rgb(torch.relu(aside(seen))),
        }

    return run


def nerf_tiny(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Network:
    """Jiayi Pan's tiny NeRF: two layers and an output of rgb and density."""
    state = _Arrays(arrays, dtype)
    one, two, three = (state.layer(f"layer{index}") for index in (1, 2, 3))
    octaves = (one.in_features - 3) // 6

    def run(position: Tensor, direction: Tensor) -> Outputs:
        del direction
        encoded = encode_by_coordinate(position, octaves)
        h = torch.relu(two(torch.relu(one(encoded))))
        out = three(h)
        return {"encoding": encoded, "trunk": h, "density": out[..., 3], "color": out[..., :3]}

    return run


class TensoRF:
    """TensoRF's field, VM or CP, with its alpha mask and its way along rays."""

    def __init__(self, tree: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kwargs = tree["kwargs"]
        state = tree["state_dict"]

        def tensors(name: str) -> list[Tensor]:
            return [
                torch.as_tensor(np.array(state[f"{name}.{i}"]), dtype=dtype)
                for i in range(3)
                if f"{name}.{i}" in state
            ]

        self.planes = {part: tensors(f"{part}_plane") for part in ("density", "app")}
        self.lines = {part: tensors(f"{part}_line") for part in ("density", "app")}
        self.basis = torch.as_tensor(np.array(state["basis_mat.weight"]), dtype=dtype)
        arrays = _Arrays(state, dtype)
        self.mlp: list[Any] = []
        while arrays.has(f"renderModule.mlp.{2 * len(self.mlp)}"):
            self.mlp.append(arrays.layer(f"renderModule.mlp.{2 * len(self.mlp)}"))
        self.aabb = torch.as_tensor(np.array(self.kwargs["aabb"]), dtype=dtype)
        self.mask = None
        if "alphaMask.mask" in tree:
            shape = [int(n) for n in tree["alphaMask.shape"]][-3:]
            bits = np.unpackbits(np.asarray(tree["alphaMask.mask"]).ravel())
            volume = bits[: math.prod(shape)].reshape(1, 1, *shape)
            self.mask = torch.as_tensor(volume, dtype=dtype)
            self.mask_aabb = torch.as_tensor(np.array(tree["alphaMask.aabb"]), dtype=dtype)

    def _normalise(self, points: Tensor, aabb: Tensor) -> Tensor:
        return (points - aabb[0]) * (2.0 / (aabb[1] - aabb[0])) - 1.0

    def _products(self, part: str, unit: Tensor) -> list[Tensor]:
        """(components, points) of planes times lines, or of three lines."""

        def look_up(image: Tensor, at: Tensor) -> Tensor:
            found = nn.functional.grid_sample(image, at.view(1, -1, 1, 2), align_corners=True)
            return found.view(image.shape[1], -1)

        lines = []
        for line, axis in zip(self.lines[part], (2, 1, 0), strict=True):
            along = unit[:, axis]
            lines.append(look_up(line, torch.stack([torch.zeros_like(along), along], dim=-1)))
        if not self.planes[part]:
            return [lines[0] * lines[1] * lines[2]]
        planes = [
            look_up(plane, unit[:, list(axes)])
            for plane, axes in zip(self.planes[part], ((0, 1), (0, 2), (1, 2)), strict=True)
        ]
        return [plane * line for plane, line in zip(planes, lines, strict=True)]

    def raw_density(self, points: Tensor) -> Tensor:
        """The sum of all density components."""
        unit = self._normalise(points, self.aabb)
        return torch.stack([p.sum(dim=0) for p in self._products("density", unit)]).sum(dim=0)

    def features(self, points: Tensor) -> Tensor:
        """The appearance features."""
        products = self._products("app", self._normalise(points, self.aabb))
        return torch.cat(products).T @ self.basis.T

    def raw_color(self, features: Tensor, directions: Tensor) -> Tensor:
        """What the colour network gives."""

        def encode_all_sines(x: Tensor, octaves: int) -> Tensor:
            scaled = x[..., None] * 2.0 ** torch.arange(octaves, dtype=x.dtype)
            scaled = scaled.reshape(*x.shape[:-1], -1)
            return torch.cat([torch.sin(scaled), torch.cos(scaled)], dim=-1)

        parts = [features, directions]
        if self.kwargs["shadingMode"] == "MLP_Fea" and self.kwargs["fea_pe"] > 0:
            parts.append(encode_all_sines(features, int(self.kwargs["fea_pe"])))
        if self.kwargs["view_pe"] > 0:
            parts.append(encode_all_sines(directions, int(self.kwargs["view_pe"])))
        x = torch.cat(parts, dim=-1)
        for layer in self.mlp[:-1]:
            x = torch.relu(layer(x))
        return self.mlp[-1](x)

    def __call__(self, points: Tensor, directions: Tensor) -> Outputs:
        features = self.features(points)
        return {
            "density": self.raw_density(points),
            "features": features,
            "color": self.raw_color(features, directions),
        }

    @torch.no_grad()
    def render(self, view: View, seen_range: tuple[float, float], white: bool) -> dict[str, Any]:
        """A whole picture: rgb, opacity and depth."""
        origins, directions = (x.reshape(-1, 3) for x in make_rays(view, 0.5, self.dtype))
        directions = directions / directions.norm(dim=-1, keepdim=True)
        size = self.aabb[1] - self.aabb[0]
        counts = torch.as_tensor([int(n) for n in self.kwargs["gridSize"]], dtype=self.dtype)
        step = (size / (counts - 1.0)).mean() * float(self.kwargs["step_ratio"])
        number = int((size.square().sum().sqrt() / step).item()) + 1
        parts = []
        for start in range(0, len(origins), 256):
            o, d = origins[start : start + 256], directions[start : start + 256]
            safe = torch.where(d == 0, torch.full_like(d, 1e-6), d)
            enter = torch.minimum((self.aabb[1] - o) / safe, (self.aabb[0] - o) / safe)
            begin = enter.amax(dim=-1).clamp(min=seen_range[0], max=seen_range[1])
            places = begin[:, None] + step * torch.arange(number, dtype=self.dtype)
            parts.append(self._add_up(o, d, places, white))
        whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        shape = (view.height, view.width)
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in whole.items()}

    def _add_up(self, o: Tensor, d: Tensor, places: Tensor, white: bool) -> Outputs:
        points = o[:, None] + places[..., None] * d[:, None]
        # The first point of a ray lies on the border, which belongs to the box. TensoRF leaves it
        # to rounding, so that in fog some of them count and some do not.
        spare = 3e-6 * (self.aabb[1] - self.aabb[0])
        valid = (points >= self.aabb[0] - spare) & (points <= self.aabb[1] + spare)
        valid = valid.all(dim=-1)
        if self.mask is not None:
            at = self._normalise(points[valid], self.mask_aabb).view(1, -1, 1, 1, 3)
            found = nn.functional.grid_sample(self.mask, at, align_corners=True).view(-1)
            valid[valid.clone()] = found > 0
        density = torch.zeros_like(places)
        if valid.any():
            raw = self.raw_density(points[valid])
            if self.kwargs["fea2denseAct"] == "softplus":
                raw = nn.functional.softplus(raw + float(self.kwargs["density_shift"]))
            density[valid] = torch.relu(raw)
        apart = torch.cat([places[:, 1:] - places[:, :-1], torch.zeros_like(places[:, :1])], -1)
        alpha = 1.0 - torch.exp(-density * apart * float(self.kwargs["distance_scale"]))
        through = torch.cumprod(1.0 - alpha + 1e-10, dim=-1)
        through = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], dim=-1)
        weights = alpha * through
        seen = weights > float(self.kwargs["rayMarch_weight_thres"])
        rgb = torch.zeros(*places.shape, 3, dtype=self.dtype)
        if seen.any():
            towards = d[:, None].expand(points.shape)[seen]
            rgb[seen] = torch.sigmoid(self.raw_color(self.features(points[seen]), towards))
        opacity = weights.sum(dim=-1)
        color = (weights[..., None] * rgb).sum(dim=1)
        if white:
            color = color + (1.0 - opacity)[:, None]
        # TensoRF adds the part of nothing times the direction's last coordinate to its depth, which
        # means nothing and is left out.
        return {
            "rgb": color.clamp(0.0, 1.0),
            "opacity": opacity,
            "depth": (weights * places).sum(dim=-1),
        }


class Nerfacto:
    """nerfstudio's hash field, with its PyTorch layout or tiny-cuda-nn's."""

    PRIMES = (1, 2654435761, 805459861)

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        contract: bool,
        density_factor: float,
        dtype: torch.dtype,
    ) -> None:
        self.dtype, self.contract, self.factor = dtype, contract, density_factor
        self.aabb = torch.as_tensor(np.array(arrays.get("aabb", [[-1.0] * 3, [1.0] * 3])))
        self.aabb = self.aabb.to(dtype)
        flat = [a for name, a in arrays.items() if name.endswith("params") and "mlp_base" in name]
        self.flat = any(a.size for a in flat)
        looks = [a for name, a in arrays.items() if name.startswith("embedding_appearance")]
        mean = torch.as_tensor(np.array(looks[0])).double().mean(0) if looks else torch.zeros(0)
        self.looks = mean.to(dtype)
        self.levels = int(arrays.get("num_levels", np.array(16)))
        self.rows = 1 << int(arrays.get("log2_hashmap_size", np.array(19)))
        self.finest = int(arrays.get("max_res", np.array(2048)))
        (self._read_flat if self.flat else self._read_layers)(arrays)

    def _read_layers(self, arrays: Mapping[str, np.ndarray]) -> None:
        name = next(name for name in arrays if name.endswith("hash_table"))
        self.table = torch.as_tensor(np.array(arrays[name]), dtype=self.dtype)
        self.rows = len(self.table) // self.levels
        state = _Arrays(arrays, self.dtype)
        base = name.replace("0.hash_table", "1").replace("encoding.hash_table", "mlp")
        self.base = [state.layer(n) for n in _count_layers(state, f"{base}.layers")]
        self.head = [state.layer(n) for n in _count_layers(state, "mlp_head.layers")]

    def _read_flat(self, arrays: Mapping[str, np.ndarray]) -> None:
        def vector(part: str) -> Tensor:
            names = [n for n in arrays if n.startswith(part) and n.endswith("params")]
            return torch.as_tensor(np.array(arrays[names[0]]), dtype=self.dtype).ravel()

        base, head = vector("mlp_base"), vector("mlp_head")
        # Networks come first; what they take is known once the table's size is.
        known = [self.finest] if "max_res" in arrays else [2048, 1024]
        tries = itertools.product(known, (1, 2, 4, 8), (16, 32, 64, 128), (1, 2, 3))
        for self.finest, channels, width, layers in tries:
            counts = [
                min(-(-((math.ceil(scale) + 1) ** 3) // 8) * 8, self.rows)
                for scale in self._scales()
            ]
            inputs = -(-self.levels * channels // 16) * 16
            rest = len(base) - sum(counts) * channels
            if rest == width * (inputs + 16) + (layers - 1) * width * width:
                break
        else:
            raise ValueError("the vector fits no network")
        between = [(width, width)] * (layers - 1)
        self.base = self._take(base, [(width, inputs), *between, (16, width)])
        self.table = base[rest:].reshape(-1, channels)
        seen = -(-(31 + len(self.looks)) // 16) * 16
        hidden = (len(head) - width * (seen + 16)) // (width * width)
        self.head = self._take(head, [(width, seen), *[(width, width)] * hidden, (16, width)])

    def _take(self, flat: Tensor, sizes: list[tuple[int, int]]) -> list[Any]:
        layers, start = [], 0
        for after, before in sizes:
            weight = flat[start : start + after * before].reshape(after, before)
            layers.append(_linear(weight, torch.zeros(after), self.dtype))
            start += after * before
        return layers

    def _scales(self) -> list[float]:
        growth = np.exp((np.log(self.finest) - np.log(16)) / max(self.levels - 1, 1))
        if self.flat:
            level = torch.arange(self.levels, dtype=torch.float32)
            octaves = torch.exp2(level * torch.log2(torch.tensor(growth, dtype=torch.float32)))
            return [float(v) for v in octaves * 16.0 - 1.0]
        levels = torch.arange(self.levels)
        return [float(v) for v in torch.floor(16 * growth**levels)]

    def _look_up(self, unit: Tensor) -> Tensor:
        parts, first = [], 0
        for level, scale in enumerate(self._scales()):
            if self.flat:
                scaled = unit * scale + 0.5
                points = math.ceil(scale) + 1
                rows = min(-(-(points**3) // 8) * 8, self.rows)
            else:
                scaled, points, rows = unit * scale, 0, self.rows
                first = level * rows
            low = torch.floor(scaled)
            part = scaled - low
            found = torch.zeros(len(unit), self.table.shape[1], dtype=self.dtype)
            for corner in np.ndindex(2, 2, 2):
                up = torch.tensor(corner)
                # The corner above is the next whole number, or the same one.
                if self.flat:
                    at = low.long() + up
                else:
                    at = torch.where(up == 1, torch.ceil(scaled), low).long()
                weight = torch.where(up == 1, part, 1.0 - part).prod(dim=-1)
                if self.flat and points**3 <= rows:
                    index = (at[:, 0] + points * (at[:, 1] + points * at[:, 2])) % rows
                else:
                    mixed = at * torch.tensor(self.PRIMES)
                    index = (mixed[:, 0] ^ mixed[:, 1] ^ mixed[:, 2]) % rows
                found = found + weight[:, None] * self.table[first + index]
            parts.append(found)
            first += rows if self.flat else 0
        return torch.cat(parts, dim=-1)

    def _normalise(self, points: Tensor) -> Tensor:
        if not self.contract:
            return (points - self.aabb[0]) / (self.aabb[1] - self.aabb[0])
        size = points.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
        pulled = torch.where(size < 1, points, (2 - 1 / size) * points / size)
        return (pulled + 2.0) / 4.0

    def _harmonics(self, directions: Tensor) -> Tensor:
        # Of unit length again inside of tiny-cuda-nn, halved where it is missing.
        x, y, z = (directions if self.flat else 0.5 * (directions + 1.0)).unbind(dim=-1)
        sign = -1.0 if self.flat else 1.0
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

    def __call__(self, points: Tensor, directions: Tensor, marched: bool = False) -> Outputs:
        """Raw outputs; points are in contracted space already unless they were `marched` to."""
        if marched or not self.contract:
            unit = self._normalise(points)
        else:
            unit = (points + 2.0) / 4.0
        encoded = self._look_up(unit)
        missing = self.base[0].in_features - encoded.shape[-1]
        x = nn.functional.pad(encoded, (0, missing))
        for layer in self.base[:-1]:
            x = torch.relu(layer(x))
        out = self.base[-1](x)
        seen = self._harmonics(directions)
        looks = self.looks.expand(len(points), -1)
        x = torch.cat([seen, out[:, 1:], looks], dim=-1)
        missing = self.head[0].in_features - x.shape[-1]
        # tiny-cuda-nn pads with ones; elsewhere it is appearances that the file does not have.
        padding = torch.full((len(x), missing), 1.0 if self.flat else 0.0, dtype=self.dtype)
        x = torch.cat([x, padding], dim=-1)
        for layer in self.head[:-1]:
            x = torch.relu(layer(x))
        return {
            "encoding": encoded,
            "density": out[:, 0],
            "features": out[:, 1:],
            "color": self.head[-1](x)[:, :3],
        }

    @torch.no_grad()
    def render(self, view: View, edges: np.ndarray) -> dict[str, Any]:
        """A whole picture on black from given intervals (height, width, n + 1) along unit rays."""
        origins, directions = (x.reshape(-1, 3) for x in make_rays(view, 0.5, self.dtype))
        directions = directions / directions.norm(dim=-1, keepdim=True)
        flat = torch.as_tensor(np.array(edges), dtype=self.dtype).reshape(len(origins), -1)
        samples, parts = flat.shape[1] - 1, []
        for start in range(0, len(origins), 256):
            o, d = origins[start : start + 256], directions[start : start + 256]
            along = flat[start : start + 256]
            middle = 0.5 * (along[:, 1:] + along[:, :-1])
            points = (o[:, None] + middle[..., None] * d[:, None]).reshape(-1, 3)
            towards = d[:, None].expand(len(o), samples, 3).reshape(-1, 3)
            outputs = self(points, towards, marched=True)
            density = self.factor * torch.exp(outputs["density"]).reshape(len(o), samples)
            depth = density * along.diff(dim=-1)
            before = torch.cat([torch.zeros_like(depth[:, :1]), depth[:, :-1]], dim=-1)
            through = torch.exp(-torch.cumsum(before, dim=-1))
            weights = through * (1.0 - torch.exp(-depth))
            rgb = torch.sigmoid(outputs["color"]).reshape(len(o), samples, 3)
            parts.append(
                {
                    "rgb": (weights[..., None] * rgb).sum(dim=1),
                    "opacity": weights.sum(dim=-1),
                    "depth": (weights * middle).sum(dim=-1),
                    "weights": weights,
                }
            )
        whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        shape = (view.height, view.width)
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in whole.items()}


def _count_layers(state: _Arrays, prefix: str) -> list[str]:
    names: list[str] = []
    while state.has(f"{prefix}.{len(names)}"):
        names.append(f"{prefix}.{len(names)}")
    return names


# ---------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------


def make_rays(view: View, pixel_center: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Origins and directions (height, width, 3); these reach one unit along the axis."""
    rows, columns = torch.meshgrid(
        torch.arange(view.height, dtype=dtype) + pixel_center,
        torch.arange(view.width, dtype=dtype) + pixel_center,
        indexing="ij",
    )
    x = (columns - view.middle[0]) / view.focal[0]
    y = -(rows - view.middle[1]) / view.focal[1]
    pose = torch.as_tensor(np.array(view.pose), dtype=dtype)
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1) @ pose[:3, :3].T
    return pose[:3, 3].expand(directions.shape), directions


def add_up(
    outputs: Outputs, places: Tensor, lengths: Tensor, sampling: Sampling
) -> tuple[Tensor, Outputs]:
    """Weights of samples, and rgb, opacity and depth of their ray.

    Args:
      outputs: raw density (r, n) and colour (r, n, 3).
      places: (r, n) along the direction as it is.
      lengths: (r,) of the directions.
      sampling: how.
    """
    apart = places[:, 1:] - places[:, :-1]
    apart = torch.cat([apart, torch.full_like(apart[:, :1], 1e10)], dim=-1)
    if sampling.true_lengths:
        apart = apart * lengths[:, None]
    alpha = 1.0 - torch.exp(-torch.relu(outputs["density"]) * apart)
    through = torch.cumprod(1.0 - alpha + 1e-10, dim=-1)
    if not sampling.inclusive:
        through = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], dim=-1)
    weights = alpha * through
    rgb = (weights[..., None] * torch.sigmoid(outputs["color"])).sum(dim=1)
    opacity = weights.sum(dim=-1)
    if sampling.white:
        rgb = rgb + (1.0 - opacity)[:, None]
    return weights, {"rgb": rgb, "opacity": opacity, "depth": (weights * places).sum(dim=-1)}


def place_more(places: Tensor, weights: Tensor, count: int) -> Tensor:
    """The places and `count` more, evenly in the distribution of the weights, sorted."""
    middles = 0.5 * (places[:, 1:] + places[:, :-1])
    inner = weights[:, 1:-1] + 1e-5
    pdf = inner / inner.sum(dim=-1, keepdim=True)
    cdf = torch.cumsum(pdf, dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    u = torch.linspace(0.0, 1.0, count, dtype=places.dtype).expand(len(places), count).contiguous()
    above = torch.searchsorted(cdf.contiguous(), u, right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=cdf.shape[-1] - 1)
    low, high = cdf.gather(1, below), cdf.gather(1, above)
    span = torch.where(high - low < 1e-5, torch.ones_like(low), high - low)
    start, stop = middles.gather(1, below), middles.gather(1, above)
    more = start + (u - low) / span * (stop - start)
    return torch.sort(torch.cat([places, more], dim=-1), dim=-1).values


@torch.no_grad()
def render(
    networks: list[Network],
    view: View,
    sampling: Sampling,
    seen_range: tuple[float, float],
    dtype: torch.dtype,
    at_once: int = 1024,
    distances: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """A whole picture without chance: weights of the last network, rgb, opacity and depth.

    Args:
      networks: the coarse one first.
      view: the camera.
      sampling: how.
      seen_range: near and far, along the axis.
      dtype: to compute in.
      at_once: rays.
      distances: (height, width, n) along rays, of the samples that the last of several networks
        sees; by default where the one before found something.
    """
    near, far = seen_range
    origins, directions = (
        rays.reshape(-1, 3) for rays in make_rays(view, sampling.pixel_center, dtype)
    )
    parts: list[Outputs] = []
    for start in range(0, len(origins), at_once):
        o, d = origins[start : start + at_once], directions[start : start + at_once]
        lengths = d.norm(dim=-1)
        seen = d / lengths[:, None] if sampling.unit_view else d
        share = torch.linspace(0.0, 1.0, sampling.coarse, dtype=dtype)
        places = (near * (1.0 - share) + far * share).expand(len(o), -1)
        for index, network in enumerate(networks):
            points = o[:, None] + places[..., None] * d[:, None]
            outputs = network(points, seen[:, None].expand(points.shape))
            weights, found = add_up(outputs, places, lengths, sampling)
            if index + 1 < len(networks):
                places = place_more(places, weights, sampling.fine)
                if distances is not None:
                    given = distances.reshape(len(origins), -1)[start : start + at_once]
                    places = torch.as_tensor(np.array(given), dtype=dtype) / lengths[:, None]
        # Distances along the ray, as everywhere else.
        parts.append(found | {"weights": weights, "depth": found["depth"] * lengths})
    whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    shape = (view.height, view.width)
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in whole.items()}

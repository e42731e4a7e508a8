"""nerfstudio's checkpoints (.ckpt): the hash field of nerfacto and its kin, in both layouts.

Its PyTorch code hashes the corners of every level; tiny-cuda-nn keeps rows for small levels, has
the grid half a cell further out, and stores everything in one vector. Weights of one are of no use
to the other.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.convert.files import Content, take_number
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    ConvertedGrid,
    Linear,
    float32,
    read_step,
    stack_layers,
)
from jaxrf.core.errors import InputError
from jaxrf.core.hash_grids import hash_level_scales, plan_scaled_hash_levels
from jaxrf.training import config as configs
from jaxrf.training.config import HashGridConfig

HashLayout = Literal["all_hashed", "tcnn"]
FORMS = TORCH, TCNN = "nerfstudio (torch)", "nerfstudio (tiny-cuda-nn)"
BOX = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
# Of bands 0 to 3, which harmonics have the Condon-Shortley sign; its PyTorch code leaves it out.
SIGNS = np.array([1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1], np.float32)
BASE, HARMONICS = 16, 16
SAMPLES, APPEARANCE = 256, 32
# Cells of the finest level where the file does not say; older versions have the second.
FINEST = 2048, 1024
LIMITS = {"num_levels": (1, 64), "log2_hashmap_size": (1, 26), "max_res": (BASE, 1 << 20)}
# tiny-cuda-nn makes widths multiples of this.
PADDED_TO = 16
TABLES = ("mlp_base.model.0.hash_table", "mlp_base.0.hash_table", "mlp_base.encoding.hash_table")
FLAT = ("mlp_base.tcnn_encoding.params", "mlp_base.model.params", "mlp_base.params")
FLAT_HEAD = ("mlp_head.tcnn_encoding.params", "mlp_head.params")


class Shape(NamedTuple):
    """Sizes of a hash field that its weights alone do not tell.

    levels, channels, log2_hashmap_size, finest: of the table.
    width: of the networks.
    """

    levels: int
    channels: int
    log2_hashmap_size: int
    finest: int
    width: int


def find_field(content: Content) -> tuple[str, Arrays] | None:
    """The layout of a checkpoint's field, and its arrays by their names in the field."""
    tree = content.tree
    if not isinstance(tree, Mapping) or not isinstance(tree.get("pipeline"), Mapping):
        return None
    state = {name: leaf for name, leaf in tree["pipeline"].items() if isinstance(leaf, np.ndarray)}
    # Beside what tiny-cuda-nn uses there may be a table that nothing does.
    for form, marks in ((TCNN, FLAT), (TORCH, TABLES)):
        for name in state:
            # Proposal networks have tables too.
            if state[name].size and name.endswith(tuple(f"field.{mark}" for mark in marks)):
                prefix = name[: name.index("field.") + len("field.")]
                inner = {
                    k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
                }
                return form, inner
    return None


def convert(content: Content, contract: bool, density_factor: float = 1.0) -> Converted | None:
    """The weights of such a file; None if it is of another program.

    `contract` is whether space was contracted, and `density_factor` its average_init_density, of
    which the file tells nothing.
    """
    found = find_field(content)
    if found is None:
        return None
    form, arrays = found
    read = _read_torch if form == TORCH else _read_tcnn
    table, density, color, shape = read(arrays, content)
    hash_layout: HashLayout = "all_hashed" if form == TORCH else "tcnn"
    rows = count_rows(shape, hash_layout)
    if table.shape != (rows, shape.channels):
        raise InputError(
            f"The table of {content.path} is of {table.shape}, not {(rows, shape.channels)}."
        )
    features = density[-1].kernel.shape[1] - 1
    preset = configs.hashgrid_ngp()
    field = HashGridConfig(
        levels=shape.levels,
        channels=shape.channels,
        coarsest=BASE,
        finest=shape.finest,
        log2_hashmap_size=shape.log2_hashmap_size,
        width=shape.width,
        density_layers=len(density) - 1,
        color_layers=len(color) - 1,
        feature_dim=features,
        density_shift=0.0,
        density_scale=density_factor,
        hash_layout=hash_layout,
        bias=True,
        normalize_dirs_01=form == TORCH,
        sampler="hierarchical",
        num_coarse_samples=SAMPLES,
        num_fine_samples=0,
        contract=contract,
    )
    params = {
        "coarse": {
            "table": float32(table),
            "density_mlp": stack_layers(density),
            "color_mlp": stack_layers(color),
        }
    }
    aabb = float32(arrays.get("aabb", BOX))
    if aabb.shape != (2, 3) or not np.all(np.isfinite(aabb)) or not np.all(aabb[0] < aabb[1]):
        raise InputError(f"aabb in {content.path} is no box: the file is damaged.")
    if contract:
        aabb = BOX
    notes = [
        "Samples are even along rays; nerfstudio's own are drawn where its proposals say.",
        f"Density has a factor of {density_factor:g}; recent nerfacto has 0.01 (--density-factor).",
        "Cameras have to stand as in its training: dataparser_transforms.json says how.",
        f"Space is taken to be {'contracted, unless --bounded' if contract else 'bounded'}.",
    ]
    config = dataclasses.replace(preset, field=field, supersample=1, background="black")
    grid = ConvertedGrid(aabb, np.ones((1, 1, 1), bool), (1, 1, 1))
    step = content.tree.get("step", 0)
    return Converted(
        form,
        config,
        params,
        read_step(step),
        near=0.05,
        far=6.0,
        notes=tuple(notes),
        grid=grid,
    )


def count_rows(shape: Shape, hash_layout: HashLayout) -> int:
    """Rows of all levels of a table."""
    scales = hash_level_scales(shape.levels, BASE, shape.finest, hash_layout)
    return plan_scaled_hash_levels(scales, 1 << shape.log2_hashmap_size, hash_layout).starts[-1]


def _number(arrays: Arrays, content: Content, name: str, default: int) -> int:
    """How many levels there are and the like; InputError beyond what fields have."""
    if name not in arrays:
        return default
    return int(take_number(arrays, name, *LIMITS[name], content.path))


def mean_appearance(arrays: Arrays) -> Float[np.ndarray, "k"]:
    """The mean embedding of all pictures; nothing if there are none."""
    for name in ("embedding_appearance.embedding.weight", "embedding_appearance.weight"):
        if name in arrays:
            return float32(arrays[name].mean(axis=0, dtype=np.float64))
    return np.zeros(0, np.float32)


def _join_head(
    kernel: Float[np.ndarray, "i o"],
    bias: Float[np.ndarray, "o"],
    features: int,
    appearance: Float[np.ndarray, "k"],
    signs: Float[np.ndarray, "16"],
) -> Linear:
    """The head's first layer for [features, harmonics], the mean appearance in its bias."""
    seen, geometry, rest = np.split(kernel, [HARMONICS, HARMONICS + features])
    looks, ones = rest[: len(appearance)], rest[len(appearance) :]
    # What tiny-cuda-nn pads inputs with is 1.
    bias = bias + appearance @ looks + ones.sum(axis=0)
    return Linear(np.concatenate([geometry, seen * signs[:, None]]), bias)


def _read_torch(
    arrays: Arrays, content: Content
) -> tuple[np.ndarray, list[Linear], list[Linear], Shape]:
    mark = next(name for name in TABLES if name in arrays)
    table = arrays[mark]
    base = mark.replace("0.hash_table", "1").replace("encoding.hash_table", "mlp")

    def read(prefix: str) -> list[Linear]:
        layers: list[Linear] = []
        while f"{prefix}.layers.{len(layers)}.weight" in arrays:
            name = f"{prefix}.layers.{len(layers)}"
            layers.append(Linear(arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]))
        if len(layers) < 2:
            raise InputError(
                f"{content.path} has no layers {prefix}.layers.0, 1, ...: it is not whole."
            )
        return layers

    density, color = read(base), read("mlp_head")
    features = density[-1].kernel.shape[1] - 1
    appearance = mean_appearance(arrays)
    rest = color[0].kernel.shape[0] - HARMONICS - features
    if not len(appearance) and rest > 0:
        # Whose embeddings were left out, on average has none.
        appearance = np.zeros(rest, np.float32)
    wanted = HARMONICS + features + len(appearance)
    if color[0].kernel.shape[0] != wanted:
        raise InputError(
            f"mlp_head in {content.path} takes {color[0].kernel.shape[0]} numbers, not {wanted}."
        )
    color[0] = _join_head(color[0].kernel, color[0].bias, features, appearance, SIGNS)
    channels = max(table.shape[1], 1)
    levels = _number(arrays, content, "num_levels", density[0].kernel.shape[0] // channels)
    log2_hashmap_size = round(math.log2(max(table.shape[0] / levels, 1.0)))
    finest = _number(arrays, content, "max_res", FINEST[0])
    return (
        table,
        density,
        color,
        Shape(levels, channels, log2_hashmap_size, finest, density[0].kernel.shape[1]),
    )


def _read_tcnn(
    arrays: Arrays, content: Content
) -> tuple[np.ndarray, list[Linear], list[Linear], Shape]:
    flat = float32(next(arrays[name] for name in FLAT if name in arrays)).ravel()
    head = next((float32(arrays[name]).ravel() for name in FLAT_HEAD if name in arrays), None)
    if head is None:
        raise InputError(f"{content.path} has no mlp_head beside mlp_base: it is not whole.")
    levels = _number(arrays, content, "num_levels", 16)
    log2_hashmap_size = _number(arrays, content, "log2_hashmap_size", 19)
    known = _number(arrays, content, "max_res", 0)
    fitting = []
    for finest, channels in itertools.product([known] if known else FINEST, (1, 2, 4, 8)):
        rows = count_rows(Shape(levels, channels, log2_hashmap_size, finest, 0), "tcnn")
        for width, layers in itertools.product((16, 32, 64, 128), (1, 2, 3)):
            sizes = padded_sizes(levels * channels, width, layers, PADDED_TO)
            if sum(map(math.prod, sizes)) + rows * channels == len(flat):
                fitting.append((Shape(levels, channels, log2_hashmap_size, finest, width), sizes))
    if len(fitting) != 1:
        raise InputError(
            f"mlp_base of {content.path} has {len(flat)} numbers, which fit {len(fitting)} shapes "
            f"of {levels} levels of 2^{log2_hashmap_size} rows; one was wanted."
        )
    shape, sizes = fitting[0]
    density, rest = split_layers(flat, sizes)
    # What is padded to the table's features is 0.
    density[0] = Linear(density[0].kernel[: levels * shape.channels], density[0].bias)
    table = rest.reshape(-1, shape.channels)
    features = PADDED_TO - 1
    appearance = mean_appearance(arrays)
    inputs = -(-(HARMONICS + features + len(appearance)) // PADDED_TO) * PADDED_TO
    for layers in (1, 2, 3, 4):
        sizes = padded_sizes(inputs, shape.width, layers, PADDED_TO)
        if sum(map(math.prod, sizes)) == len(head):
            color, _ = split_layers(head, sizes)
            break
    else:
        raise InputError(
            f"mlp_head of {content.path} has {len(head)} numbers, which fit no layers."
        )
    ones = np.ones(HARMONICS, np.float32)
    color[0] = _join_head(color[0].kernel, color[0].bias, features, appearance, ones)
    color[-1] = Linear(color[-1].kernel[:, :3], color[-1].bias[:3])
    return table, density, color, shape


def padded_sizes(inputs: int, width: int, hidden: int, outputs: int) -> list[tuple[int, int]]:
    """(out, in) of each layer of tiny-cuda-nn's, whose inputs and outputs are padded."""
    inputs = -(-inputs // PADDED_TO) * PADDED_TO
    sides = [inputs, *[width] * hidden, outputs]
    return [(after, before) for before, after in itertools.pairwise(sides)]


def split_layers(
    flat: Float[np.ndarray, "n"], sizes: Sequence[tuple[int, int]]
) -> tuple[list[Linear], Float[np.ndarray, "rest"]]:
    """Layers without bias, row-major (out, in) one after the other, and what follows them."""
    layers, start = [], 0
    for after, before in sizes:
        weight = flat[start : start + after * before].reshape(after, before)
        layers.append(Linear(weight.T, np.zeros(after, np.float32)))
        start += after * before
    return layers, flat[start:]


def write(
    params: Mapping[str, Any],
    field: HashGridConfig,
    aabb: Float[np.ndarray, "2 3"],
    step: int,
    pictures: int,
) -> dict[str, Any]:
    """A field as nerfstudio's checkpoint in its PyTorch layout, as arrays.

    Its pictures, so many, have an appearance of zeros there, which nothing depends on.
    """
    features = field.feature_dim
    state: dict[str, Any] = {
        "aabb": float32(aabb),
        "max_res": np.array(field.finest),
        "num_levels": np.array(field.levels),
        "log2_hashmap_size": np.array(field.log2_hashmap_size),
        "mlp_base.model.0.hash_table": float32(np.asarray(params["table"])),
    }
    if pictures:
        nothing = np.zeros((pictures, APPEARANCE), np.float32)
        state["embedding_appearance.embedding.weight"] = nothing
    for part, name in (("density_mlp", "mlp_base.model.1"), ("color_mlp", "mlp_head")):
        layers = params[part]["params"]
        for index in range(len(layers)):
            kernel = np.asarray(layers[f"Dense_{index}"]["kernel"])
            bias = layers[f"Dense_{index}"].get("bias")
            if part == "color_mlp" and index == 0:
                geometry, seen = kernel[:features], kernel[features:]
                looks = np.zeros((APPEARANCE, kernel.shape[1]), np.float32)
                kernel = np.concatenate([seen * SIGNS[:, None], geometry, looks])
            state[f"{name}.layers.{index}.weight"] = float32(kernel.T)
            missing = np.zeros(kernel.shape[1], np.float32)
            state[f"{name}.layers.{index}.bias"] = missing if bias is None else float32(bias)
    pipeline = {f"_model.field.{name}": value for name, value in state.items()}
    return {"step": step, "pipeline": pipeline, "optimizers": {}, "schedulers": {}, "scalers": {}}

"""nerfstudio's checkpoints (.ckpt): nerfacto's hash field, in its PyTorch layout and in tcnn's.

The PyTorch code hashes the vertices of every level. tiny-cuda-nn stores small levels densely,
shifts the grid by half a cell, and keeps all parameters in one vector. Weights of one layout cannot
be used in the other.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf import presets
from jaxrf.convert.files.arrays import read_number, read_step
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    ConvertedGrid,
    Linear,
    float32,
    from_mlp_params,
    to_mlp_params,
)
from jaxrf.core.errors import InputError
from jaxrf.core.hash_grids import hash_level_scales, plan_scaled_hash_levels
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.base import ModelParams
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.training.config import TrainConfig

HashLayout = Literal["all_hashed", "tcnn"]
FORMATS = TORCH, TCNN = "nerfstudio (torch)", "nerfstudio (tiny-cuda-nn)"
HASH_LAYOUTS: dict[str, HashLayout] = {TORCH: "all_hashed", TCNN: "tcnn"}
# The box that contraction leaves unchanged.
CONTRACTED_AABB = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
# The Condon-Shortley sign of the harmonics of bands 0 to 3, which the PyTorch code leaves out.
HARMONIC_SIGNS = np.array([1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1], np.float32)
NUM_HARMONICS = 16
BASE_RESOLUTION = 16
NUM_SAMPLES, APPEARANCE_DIM = 256, 32
# Of the finest level, where the file does not say; the second is of older versions.
DEFAULT_MAX_RESOLUTIONS = 2048, 1024
LIMITS = {
    "num_levels": (1, 64),
    "log2_hashmap_size": (1, 26),
    "max_res": (BASE_RESOLUTION, 1 << 20),
}
# tiny-cuda-nn pads widths to a multiple of this.
TCNN_ALIGNMENT = 16
TABLE_NAMES = (
    "mlp_base.model.0.hash_table",
    "mlp_base.0.hash_table",
    "mlp_base.encoding.hash_table",
)
TCNN_BASE_NAMES = ("mlp_base.tcnn_encoding.params", "mlp_base.model.params", "mlp_base.params")
TCNN_HEAD_NAMES = ("mlp_head.tcnn_encoding.params", "mlp_head.params")
APPEARANCE_NAMES = ("embedding_appearance.embedding.weight", "embedding_appearance.weight")


class FieldSizes(NamedTuple):
    """Sizes of a hash field.

    num_levels, features_per_level, log2_hashmap_size, max_resolution: of the table.
    width: of the networks.
    """

    num_levels: int
    features_per_level: int
    log2_hashmap_size: int
    max_resolution: int
    width: int


class FieldWeights(NamedTuple):
    """The weights of a hash field.

    table: rows of all levels, one level after the other.
    density_layers: the last one gives log density and features.
    color_layers: the first one takes [features, harmonics].
    """

    table: Float[np.ndarray, "rows features"]
    density_layers: list[Linear]
    color_layers: list[Linear]
    sizes: FieldSizes


def find_field(content: Content) -> tuple[str, Arrays] | None:
    """Returns the format of a checkpoint and its field's arrays by their names in the field.

    None if the file is of another program.
    """
    tree = content.tree
    if not isinstance(tree, Mapping) or not isinstance(tree.get("pipeline"), Mapping):
        return None
    state = {name: leaf for name, leaf in tree["pipeline"].items() if isinstance(leaf, np.ndarray)}
    # A checkpoint of tiny-cuda-nn may hold an unused table as well, so its layout comes first.
    for file_format, field_names in ((TCNN, TCNN_BASE_NAMES), (TORCH, TABLE_NAMES)):
        # Proposal networks have tables too, but not in "field.".
        suffixes = tuple(f"field.{name}" for name in field_names)
        for name in state:
            if state[name].size and name.endswith(suffixes):
                prefix = name[: name.index("field.") + len("field.")]
                arrays = {
                    key.removeprefix(prefix): array
                    for key, array in state.items()
                    if key.startswith(prefix)
                }
                return file_format, arrays
    return None


def convert(content: Content, contract: bool, density_factor: float = 1.0) -> Converted | None:
    """Returns the weights of a file of nerfstudio; None if it is of another program.

    Args:
      content: of the file.
      contract: whether space was contracted, which the file does not record.
      density_factor: nerfstudio's average_init_density, which the file does not record.

    Raises:
      InputError: if arrays are missing or of the wrong shape.
    """
    match = find_field(content)
    if match is None:
        return None
    file_format, arrays = match
    weights = (_read_torch if file_format == TORCH else _read_tcnn)(arrays, content)
    sizes, layout = weights.sizes, HASH_LAYOUTS[file_format]
    table_shape = (count_rows(sizes, layout), sizes.features_per_level)
    if weights.table.shape != table_shape:
        raise InputError(
            f"The hash table in {content.path} is of shape {weights.table.shape}, not "
            f"{table_shape}: the file is damaged."
        )
    aabb = float32(arrays.get("aabb", CONTRACTED_AABB))
    if aabb.shape != (2, 3) or not np.all(np.isfinite(aabb)) or not np.all(aabb[0] < aabb[1]):
        raise InputError(f"aabb in {content.path} is no box: the file is damaged.")
    grid_aabb = CONTRACTED_AABB if contract else aabb
    return Converted(
        file_format,
        make_config(weights, file_format, contract, density_factor),
        make_model_params(weights),
        read_step(content.tree.get("step", 0)),
        near=0.05,
        far=6.0,
        notes=(
            "Samples are evenly spaced along rays; nerfstudio draws them from its proposals.",
            f"Density has a factor of {density_factor:g}; recent nerfacto has 0.01 "
            "(--density-factor).",
            "Cameras have to be placed as in its training; dataparser_transforms.json has the "
            "transformation.",
            f"Space is taken to be {'contracted, unless --bounded' if contract else 'bounded'}.",
        ),
        grid=ConvertedGrid(grid_aabb),
    )


def make_config(
    weights: FieldWeights, file_format: str, contract: bool, density_factor: float
) -> TrainConfig:
    """Returns the configuration that renders such weights."""
    sizes = weights.sizes
    field = HashGrid(
        num_levels=sizes.num_levels,
        features_per_level=sizes.features_per_level,
        base_resolution=BASE_RESOLUTION,
        max_resolution=sizes.max_resolution,
        log2_hashmap_size=sizes.log2_hashmap_size,
        width=sizes.width,
        density_layers=len(weights.density_layers) - 1,
        color_layers=len(weights.color_layers) - 1,
        feature_dim=weights.density_layers[-1].kernel.shape[1] - 1,
        density_shift=0.0,
        density_scale=density_factor,
        hash_layout=HASH_LAYOUTS[file_format],
        bias=True,
        normalize_dirs_01=file_format == TORCH,
    )
    model = HierarchicalModel(num_coarse_samples=NUM_SAMPLES, num_fine_samples=0, contract=contract)
    return dataclasses.replace(
        presets.hashgrid_ngp(), field=field, model=model, supersample=1, background="black"
    )


def make_model_params(weights: FieldWeights) -> ModelParams:
    """Returns the parameters of a model of one hash field."""
    field_params = {
        "table": float32(weights.table),
        "density_mlp": to_mlp_params(weights.density_layers),
        "color_mlp": to_mlp_params(weights.color_layers),
    }
    return ModelParams(field_params)


def count_rows(sizes: FieldSizes, layout: HashLayout) -> int:
    """Returns the number of rows of all levels of a table."""
    scales = hash_level_scales(sizes.num_levels, BASE_RESOLUTION, sizes.max_resolution, layout)
    return plan_scaled_hash_levels(scales, 1 << sizes.log2_hashmap_size, layout).starts[-1]


def mean_appearance(arrays: Arrays) -> Float[np.ndarray, "k"]:
    """Returns the mean appearance embedding of all images; empty if there are none."""
    for name in APPEARANCE_NAMES:
        if name in arrays:
            return float32(arrays[name].mean(axis=0, dtype=np.float64))
    return np.zeros(0, np.float32)


def _read_size(arrays: Arrays, content: Content, name: str, default: int) -> int:
    """Returns a size of the table; InputError if it is outside its limits."""
    if name not in arrays:
        return default
    return int(read_number(arrays, name, *LIMITS[name], content.path))


def _fold_appearance(
    layer: Linear,
    num_features: int,
    appearance: Float[np.ndarray, "k"],
    signs: Float[np.ndarray, "16"],
) -> Linear:
    """Returns the head's first layer for [features, harmonics].

    The program's inputs are [harmonics, features, appearance, padding]. The mean appearance and the
    padding are constant, so they become part of the bias.
    """
    splits = np.split(layer.kernel, [NUM_HARMONICS, NUM_HARMONICS + num_features])
    harmonic_rows, feature_rows, constant_rows = splits
    appearance_rows = constant_rows[: len(appearance)]
    padding_rows = constant_rows[len(appearance) :]
    # tiny-cuda-nn pads inputs with ones.
    bias = layer.bias + appearance @ appearance_rows + padding_rows.sum(axis=0)
    return Linear(np.concatenate([feature_rows, harmonic_rows * signs[:, None]]), bias)


def _read_torch(arrays: Arrays, content: Content) -> FieldWeights:
    table_name = next(name for name in TABLE_NAMES if name in arrays)
    table = arrays[table_name]
    base_name = table_name.replace("0.hash_table", "1").replace("encoding.hash_table", "mlp")
    density_layers = _read_torch_layers(arrays, base_name, content)
    color_layers = _read_torch_layers(arrays, "mlp_head", content)
    num_features = density_layers[-1].kernel.shape[1] - 1
    num_inputs = color_layers[0].kernel.shape[0]
    appearance = mean_appearance(arrays)
    if not len(appearance) and num_inputs > NUM_HARMONICS + num_features:
        # The embeddings were left out of the file; their mean is taken to be zero.
        appearance = np.zeros(num_inputs - NUM_HARMONICS - num_features, np.float32)
    expected_inputs = NUM_HARMONICS + num_features + len(appearance)
    if num_inputs != expected_inputs:
        raise InputError(
            f"mlp_head in {content.path} takes {num_inputs} numbers, not {expected_inputs}: the "
            "file is damaged."
        )
    color_layers[0] = _fold_appearance(color_layers[0], num_features, appearance, HARMONIC_SIGNS)
    features_per_level = max(table.shape[1], 1)
    inferred_levels = density_layers[0].kernel.shape[0] // features_per_level
    num_levels = _read_size(arrays, content, "num_levels", inferred_levels)
    sizes = FieldSizes(
        num_levels,
        features_per_level,
        log2_hashmap_size=round(math.log2(max(table.shape[0] / num_levels, 1.0))),
        max_resolution=_read_size(arrays, content, "max_res", DEFAULT_MAX_RESOLUTIONS[0]),
        width=density_layers[0].kernel.shape[1],
    )
    return FieldWeights(table, density_layers, color_layers, sizes)


def _read_torch_layers(arrays: Arrays, prefix: str, content: Content) -> list[Linear]:
    layers: list[Linear] = []
    while f"{prefix}.layers.{len(layers)}.weight" in arrays:
        name = f"{prefix}.layers.{len(layers)}"
        layers.append(Linear(arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]))
    if len(layers) < 2:
        raise InputError(
            f"{content.path} is incomplete: it has no layers {prefix}.layers.0, 1, ..."
        )
    return layers


def _read_tcnn(arrays: Arrays, content: Content) -> FieldWeights:
    base = float32(next(arrays[name] for name in TCNN_BASE_NAMES if name in arrays)).ravel()
    heads = [float32(arrays[name]).ravel() for name in TCNN_HEAD_NAMES if name in arrays]
    if not heads:
        raise InputError(f"{content.path} is incomplete: it has no mlp_head beside mlp_base.")
    sizes, shapes = _infer_tcnn_sizes(arrays, len(base), content)
    density_layers, table = split_layers(base, shapes)
    # The inputs that pad the table's features are zero.
    num_inputs = sizes.num_levels * sizes.features_per_level
    density_layers[0] = density_layers[0]._replace(kernel=density_layers[0].kernel[:num_inputs])
    num_features = TCNN_ALIGNMENT - 1
    appearance = mean_appearance(arrays)
    head_inputs = NUM_HARMONICS + num_features + len(appearance)
    color_layers = _split_head(heads[0], head_inputs, sizes.width, content)
    signs = np.ones(NUM_HARMONICS, np.float32)
    color_layers[0] = _fold_appearance(color_layers[0], num_features, appearance, signs)
    color_layers[-1] = Linear(color_layers[-1].kernel[:, :3], color_layers[-1].bias[:3])
    return FieldWeights(
        table.reshape(-1, sizes.features_per_level), density_layers, color_layers, sizes
    )


def _infer_tcnn_sizes(
    arrays: Arrays, num_params: int, content: Content
) -> tuple[FieldSizes, list[tuple[int, int]]]:
    """Returns the only sizes whose network and table have `num_params`, and the layers' shapes."""
    num_levels = _read_size(arrays, content, "num_levels", 16)
    log2_hashmap_size = _read_size(arrays, content, "log2_hashmap_size", 19)
    max_resolution = _read_size(arrays, content, "max_res", 0)
    resolutions = [max_resolution] if max_resolution else DEFAULT_MAX_RESOLUTIONS
    matches = []
    for resolution, features in itertools.product(resolutions, (1, 2, 4, 8)):
        sizes = FieldSizes(num_levels, features, log2_hashmap_size, resolution, width=0)
        table_params = count_rows(sizes, HASH_LAYOUTS[TCNN]) * features
        for width, num_hidden in itertools.product((16, 32, 64, 128), (1, 2, 3)):
            shapes = padded_shapes(num_levels * features, width, num_hidden, TCNN_ALIGNMENT)
            if sum(map(math.prod, shapes)) + table_params == num_params:
                matches.append((sizes._replace(width=width), shapes))
    if len(matches) != 1:
        raise InputError(
            f"mlp_base in {content.path} has {num_params} numbers, which fit {len(matches)} shapes "
            f"of {num_levels} levels of 2^{log2_hashmap_size} rows instead of one: the file is "
            "damaged, or of an unknown variant."
        )
    return matches[0]


def _split_head(
    head: Float[np.ndarray, "n"], num_inputs: int, width: int, content: Content
) -> list[Linear]:
    for num_hidden in (1, 2, 3, 4):
        shapes = padded_shapes(num_inputs, width, num_hidden, TCNN_ALIGNMENT)
        if sum(map(math.prod, shapes)) == len(head):
            return split_layers(head, shapes)[0]
    raise InputError(
        f"mlp_head in {content.path} has {len(head)} numbers, which fit no layers of width "
        f"{width}: the file is damaged."
    )


def padded_shapes(
    num_inputs: int, width: int, num_hidden: int, num_outputs: int, alignment: int = TCNN_ALIGNMENT
) -> list[tuple[int, int]]:
    """Returns (out, in) of each layer of a network of tiny-cuda-nn, whose inputs are padded."""
    padded_inputs = -(-num_inputs // alignment) * alignment
    widths = [padded_inputs, *[width] * num_hidden, num_outputs]
    return [(outputs, inputs) for inputs, outputs in itertools.pairwise(widths)]


def split_layers(
    vector: Float[np.ndarray, "n"], shapes: Sequence[tuple[int, int]]
) -> tuple[list[Linear], Float[np.ndarray, "m"]]:
    """Returns layers without bias, stored in order as (out, in), and the numbers after them."""
    layers, start = [], 0
    for num_outputs, num_inputs in shapes:
        stop = start + num_outputs * num_inputs
        weight = vector[start:stop].reshape(num_outputs, num_inputs)
        layers.append(Linear(weight.T, np.zeros(num_outputs, np.float32)))
        start = stop
    return layers, vector[start:]


def to_checkpoint(
    params: Mapping[str, Any],
    field: HashGrid,
    aabb: Float[np.ndarray, "2 3"],
    step: int,
    num_images: int,
) -> dict[str, Any]:
    """Returns a field as a checkpoint of arrays in nerfstudio's PyTorch layout.

    The appearance embeddings of its images are zero, and so are the weights they are multiplied
    with.
    """
    state: dict[str, Any] = {
        "aabb": float32(aabb),
        "max_res": np.array(field.max_resolution),
        "num_levels": np.array(field.num_levels),
        "log2_hashmap_size": np.array(field.log2_hashmap_size),
        TABLE_NAMES[0]: float32(np.asarray(params["table"])),
    }
    if num_images:
        state[APPEARANCE_NAMES[0]] = np.zeros((num_images, APPEARANCE_DIM), np.float32)
    density_layers = from_mlp_params(params["density_mlp"])
    color_layers = from_mlp_params(params["color_mlp"])
    kernel = color_layers[0].kernel
    feature_rows, harmonic_rows = kernel[: field.feature_dim], kernel[field.feature_dim :]
    appearance_rows = np.zeros((APPEARANCE_DIM, kernel.shape[1]), np.float32)
    rows = [harmonic_rows * HARMONIC_SIGNS[:, None], feature_rows, appearance_rows]
    color_layers[0] = color_layers[0]._replace(kernel=np.concatenate(rows))
    for name, layers in (("mlp_base.model.1", density_layers), ("mlp_head", color_layers)):
        for index, layer in enumerate(layers):
            state[f"{name}.layers.{index}.weight"] = float32(layer.kernel.T)
            state[f"{name}.layers.{index}.bias"] = float32(layer.bias)
    pipeline = {f"_model.field.{name}": value for name, value in state.items()}
    return {"step": step, "pipeline": pipeline, "optimizers": {}, "schedulers": {}, "scalers": {}}

"""Writes files as other programs do, with random weights, for the tests of converters."""

import gzip
import itertools
import math
import pickle
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from flax import serialization

WIDTH, NUM_POSITION_FREQUENCIES, NUM_DIRECTION_FREQUENCIES = 24, 10, 4
# Sizes of the encodings.
POSITION = 3 + 6 * NUM_POSITION_FREQUENCIES
DIRECTION = 3 + 6 * NUM_DIRECTION_FREQUENCIES


def random_layer(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[Any, Any]:
    """Returns a weight (out, in) that keeps the size of signals, and a bias."""
    weight = rng.normal(0.0, np.sqrt(2.0 / inputs), (outputs, inputs)).astype(np.float32)
    return weight, rng.normal(0.0, 0.1, outputs).astype(np.float32)


def damp_octaves(weight: Any, num_frequencies: int, first_column: int, num_inputs: int = 3) -> Any:
    """Scales the weights of high octaves down, as in trained networks.

    The columns from `first_column` on belong to an encoding that starts with `num_inputs`
    coordinates.
    """
    for octave in range(num_frequencies):
        start = first_column + num_inputs + 6 * octave
        weight[:, start : start + 6] *= 2.0**-octave
    return weight


def add_layer(
    state: dict[str, Any], rng: np.random.Generator, name: str, inputs: int, outputs: int
) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = random_layer(rng, inputs, outputs)


def as_tensors(state: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.tensor(array) for name, array in state.items()}


def nerf_pytorch_state(
    seed: int,
    names: tuple[str, str, str] = ("alpha_linear", "feature_linear", "views_linears.0"),
    skip: int = 5,
    directions: bool = True,
) -> dict[str, Any]:
    """Returns a network of 8 layers; layer `skip` takes the encoded position again."""
    rng, state = np.random.default_rng(seed), {}
    for index in range(8):
        inputs = POSITION if index == 0 else WIDTH + POSITION * (index == skip)
        add_layer(state, rng, f"pts_linears.{index}", inputs, WIDTH)
        if inputs != WIDTH:
            damp_octaves(state[f"pts_linears.{index}.weight"], NUM_POSITION_FREQUENCIES, 0)
    if not directions:
        # The program makes a layer for directions, and a fifth output, nevertheless.
        add_layer(state, rng, names[2], WIDTH, WIDTH // 2)
        add_layer(state, rng, "output_linear", WIDTH, 5)
        return state
    density, bottleneck, view = names
    add_layer(state, rng, view, WIDTH + DIRECTION, WIDTH // 2)
    add_layer(state, rng, bottleneck, WIDTH, WIDTH)
    add_layer(state, rng, density, WIDTH, 1)
    add_layer(state, rng, "rgb_linear", WIDTH // 2, 3)
    return state


def write_nerf_pytorch(path: Path, directions: bool = True, legacy: bool = False) -> Path:
    content = {
        "global_step": 200_000,
        "network_fn_state_dict": as_tensors(nerf_pytorch_state(0, directions=directions)),
        "network_fine_state_dict": as_tensors(nerf_pytorch_state(1, directions=directions)),
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.99)}]},
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_nerfmlp(path: Path, older: bool = False) -> Path:
    bottleneck = "feature_linear" if older else "bottleneck_linear"
    names = ("sigma_linear", bottleneck, "view_linear")
    torch.save(as_tensors(nerf_pytorch_state(2, names, 4 if older else 5)), path)
    return path


def write_tensorflow(path: Path) -> Path:
    """Writes model_000000.npy and, in the same folder, the fine network."""
    order = [f"pts_linears.{index}" for index in range(8)]
    order += ["feature_linear", "views_linears.0", "rgb_linear", "alpha_linear"]
    for seed, part in ((3, ""), (4, "fine_")):
        state = nerf_pytorch_state(seed)
        arrays = np.empty(24, object)
        for index, name in enumerate(order):
            arrays[2 * index] = np.ascontiguousarray(state[f"{name}.weight"].T)
            arrays[2 * index + 1] = state[f"{name}.bias"]
        np.save(path.with_name(f"model_{part}000000.npy"), arrays, allow_pickle=True)
    return path.with_name("model_000000.npy")


def write_jaxnerf(path: Path) -> Path:
    networks = {}
    for seed in (0, 1):
        rng, layers = np.random.default_rng(10 + seed), {}
        sizes = [(POSITION, WIDTH)]
        sizes += [(WIDTH + POSITION * (index == 5), WIDTH) for index in range(1, 8)]
        sizes += [(WIDTH, 1), (WIDTH, WIDTH), (WIDTH + DIRECTION, WIDTH // 2), (WIDTH // 2, 3)]
        for index, size in enumerate(sizes):
            weight, bias = random_layer(rng, *size)
            if index in (0, 5):
                # All sines come before all cosines.
                for wave in range(2 * NUM_POSITION_FREQUENCIES):
                    start = (WIDTH if index else 0) + 3 + 3 * wave
                    weight[:, start : start + 3] *= 2.0 ** -(wave % NUM_POSITION_FREQUENCIES)
            layers[f"Dense_{index}"] = {"kernel": np.ascontiguousarray(weight.T), "bias": bias}
        networks[f"MLP_{seed}"] = layers
    state = {"optimizer": {"target": {"params": networks}, "state": {"step": np.int32(7)}}}
    path.write_bytes(serialization.msgpack_serialize(state))
    return path


def write_experiments(path: Path, ternary: bool = False, prefix: str = "") -> Path:
    rng, state = np.random.default_rng(5), {}
    encoded = 3 + 6 * 16
    add_layer(state, rng, "input_layer", encoded, WIDTH)
    damp_octaves(state["input_layer.weight"], 16, 0)
    for index in range(8):
        inputs = WIDTH + encoded * (index == 4)
        name = f"layers.{index}{'.linear' * ternary}"
        add_layer(state, rng, name, inputs, WIDTH)
        if index == 4 and not ternary:
            damp_octaves(state[f"{name}.weight"], 16, WIDTH)
        if ternary:
            gain = rng.uniform(0.5, 1.5, inputs).astype(np.float32)
            state[f"layers.{index}.norm.weight"] = gain
    add_layer(state, rng, "output_layer", WIDTH, 4)
    torch.save(as_tensors({f"{prefix}{name}": value for name, value in state.items()}), path)
    return path


def write_scratch(path: Path, include_input: bool = True) -> Path:
    rng, state = np.random.default_rng(6), {}
    sizes = [3 * include_input + 6 * 6, WIDTH, WIDTH, WIDTH, 4]
    for index, size in enumerate(itertools.pairwise(sizes)):
        add_layer(state, rng, f"layers.{2 * index}", *size)
    damp_octaves(state["layers.0.weight"], 6, 0, 3 * include_input)
    torch.save({"model_state_dict": as_tensors(state), "epoch": 3}, path)
    return path


def basic_state() -> dict[str, Any]:
    rng, state = np.random.default_rng(7), {}
    for name, inputs, outputs in (
        ("fc_1", POSITION, WIDTH),
        ("fc_2", WIDTH, WIDTH),
        ("fc_3", POSITION + WIDTH, WIDTH),
        ("fc_4", WIDTH, WIDTH),
        ("sigma", WIDTH, 1),
        ("fc_noact", WIDTH, WIDTH),
        ("fc_dir", WIDTH + DIRECTION, WIDTH // 2),
        ("rgb", WIDTH // 2, 3),
    ):
        add_layer(state, rng, name, inputs, outputs)
    for name in ("fc_1", "fc_3"):
        damp_octaves_by_coordinate(state[f"{name}.weight"])
    return state


def damp_octaves_by_coordinate(weight: Any) -> None:
    """As `damp_octaves`, for encodings with all of x before all of y and of z."""
    for axis in range(3):
        for octave in range(NUM_POSITION_FREQUENCIES):
            start = axis * (1 + 2 * NUM_POSITION_FREQUENCIES) + 1 + 2 * octave
            weight[:, start : start + 2] *= 2.0**-octave


def write_basic(path: Path) -> Path:
    # In float64; layers are element 0 of a sequence, except for sigma.
    state = {
        name.replace(".", ".0.", name != "sigma.weight"): a for name, a in basic_state().items()
    }
    tensors = {name: torch.tensor(a, dtype=torch.float64) for name, a in state.items()}
    torch.save({"model_state_dict": tensors, "epoch": 1, "loss": 0.1}, path)
    return path


def write_tiny(path: Path) -> Path:
    rng, state = np.random.default_rng(8), {}
    for name, inputs, outputs in (
        ("layer1", POSITION, WIDTH),
        ("layer2", WIDTH, WIDTH),
        ("layer3", WIDTH, 4),
    ):
        add_layer(state, rng, name, inputs, outputs)
    damp_octaves_by_coordinate(state["layer1.weight"])
    np.savez(path.with_suffix(".npz"), **state)
    return path.with_suffix(".npz")


def write_tensorf(
    path: Path,
    factors: str = "vm",
    ranks: tuple[tuple[int, ...], tuple[int, ...]] = ((4, 4, 4), (6, 6, 6)),
    mask: bool = True,
    activation: str = "softplus",
    shading: str = "MLP_Fea",
    mask_aabb: np.ndarray | None = None,
) -> Path:
    """Writes a field with three different resolutions, occupied in a ball."""
    rng, state = np.random.default_rng(9), {}
    grid, aabb = (13, 11, 9), np.array([[-1.2, -1.0, -0.8], [1.3, 1.1, 0.9]], np.float32)
    for name, counts in zip(("density", "app"), ranks, strict=True):
        for index, axis in enumerate((2, 1, 0)):
            count = counts[index % len(counts)]
            across, down = ((0, 1), (0, 2), (1, 2))[index]
            scale = 1.5 if name == "density" else 0.5
            line = rng.normal(0.3, scale, (1, count, grid[axis], 1))
            if name == "density":
                # Low density on the faces of the box, where rays enter.
                line[:, :, [0, -1]] = 0.0
            state[f"{name}_line.{index}"] = line.astype(np.float32)
            if factors == "vm":
                plane = rng.normal(0.3, scale, (1, count, grid[down], grid[across]))
                if name == "density":
                    plane[:, :, [0, -1]] = plane[..., [0, -1]] = 0.0
                state[f"{name}_plane.{index}"] = plane.astype(np.float32)
    components = sum(ranks[1]) if factors == "vm" else ranks[1][0]
    features, num_frequencies = 5, (2 if shading == "MLP_Fea" else 0, 2)
    basis = rng.normal(0.0, 0.5, (features, components)).astype(np.float32)
    state["basis_mat.weight"] = basis
    inputs = features * (1 + 2 * num_frequencies[0]) + 3 * (1 + 2 * num_frequencies[1])
    for number, sizes in ((0, (inputs, WIDTH)), (2, (WIDTH, WIDTH)), (4, (WIDTH, 3))):
        add_layer(state, rng, f"renderModule.mlp.{number}", *sizes)
    kwargs = {
        "aabb": torch.tensor(aabb),
        "gridSize": list(grid),
        "density_n_comp": list(ranks[0]),
        "appearance_n_comp": list(ranks[1]),
        "app_dim": features,
        "density_shift": -3.0,
        "alphaMask_thres": 1e-4,
        "distance_scale": 25,
        "rayMarch_weight_thres": 1e-4,
        "fea2denseAct": activation,
        "near_far": [2.0, 6.0],
        "step_ratio": 0.5,
        "shadingMode": shading,
        "pos_pe": 6,
        "view_pe": 2,
        "fea_pe": 2,
        "featureC": WIDTH,
        "device": torch.device("cpu"),
        "numbers": np.float32(0.5),
    }
    content: dict[str, Any] = {"kwargs": kwargs, "state_dict": as_tensors(state)}
    if mask:
        mask_aabb = aabb if mask_aabb is None else mask_aabb
        axes = [np.linspace(low, high, n) for low, high, n in zip(*mask_aabb, grid, strict=True)]
        z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
        inside = x**2 + y**2 + z**2 < 0.6**2
        content |= {
            "alphaMask.shape": torch.Size([1, 1, *inside.shape]),
            "alphaMask.mask": np.packbits(inside.reshape(-1)),
            "alphaMask.aabb": torch.tensor(mask_aabb),
        }
    torch.save(content, path)
    return path


def tensorf_fog(
    points: np.ndarray, mask_aabb: np.ndarray, density: float = 0.06, grid: int = 9
) -> dict[str, Any]:
    """Returns the tree of a TensoRF of constant density in a box of -1.5 to 1.5, with a mask.

    `points` of the mask are flags (x, y, z).
    """
    rng, state = np.random.default_rng(12), {}
    for name in ("density", "app"):
        for index in range(3):
            level = density if name == "density" and index == 0 else 0.0
            state[f"{name}_line.{index}"] = np.full((1, 1, grid, 1), level, np.float32)
            state[f"{name}_plane.{index}"] = np.ones((1, 1, grid, grid), np.float32)
    state["basis_mat.weight"] = rng.normal(0.0, 0.5, (3, 3)).astype(np.float32)
    for number, sizes in ((0, (6, WIDTH)), (2, (WIDTH, WIDTH)), (4, (WIDTH, 3))):
        add_layer(state, rng, f"renderModule.mlp.{number}", *sizes)
    kwargs = {
        "aabb": np.array([[-1.5] * 3, [1.5] * 3], np.float32),
        "gridSize": [grid] * 3,
        "density_shift": 0.0,
        "alphaMask_thres": 1e-4,
        "distance_scale": 25,
        "rayMarch_weight_thres": 1e-4,
        "fea2denseAct": "relu",
        "near_far": [2.0, 6.0],
        "step_ratio": 0.5,
        "shadingMode": "MLP_Fea",
        "view_pe": 0,
        "fea_pe": 0,
    }
    return {
        "kwargs": kwargs,
        "state_dict": state,
        "alphaMask.shape": [1, 1, *points.T.shape],
        "alphaMask.mask": np.packbits(points.T.reshape(-1)),
        "alphaMask.aabb": mask_aabb,
    }


def write_nerfstudio(path: Path, tcnn: bool = False, appearance: int = 5) -> Path:
    """Writes a hash field of 4 levels of 2 features, in PyTorch's or tiny-cuda-nn's layout."""
    rng, width = np.random.default_rng(11), 16
    num_levels, log2_hashmap_size, max_resolution = 4, 12, 60
    state: dict[str, Any] = {
        "aabb": np.array([[-1.5, -1.4, -1.3], [1.5, 1.6, 1.7]], np.float32),
        "max_res": np.array(max_resolution),
        "num_levels": np.array(num_levels),
        "log2_hashmap_size": np.array(log2_hashmap_size),
        "embedding_appearance.embedding.weight": rng.normal(size=(3, appearance)),
    }
    inputs = 16 + 15 + appearance
    if tcnn:
        growth = np.exp((np.log(max_resolution) - np.log(16)) / (num_levels - 1))
        scales = [16 * growth**level - 1 for level in range(num_levels)]
        sides = [int(np.ceil(scale - 1e-4)) + 1 for scale in scales]
        rows = sum(min(-(-(n**3) // 8) * 8, 1 << log2_hashmap_size) for n in sides)
        padded = -(-inputs // 16) * 16

        def layers(*sizes: tuple[int, int]) -> np.ndarray:
            weights = [rng.normal(0, (2.0 / i) ** 0.5, (o, i)).ravel() for o, i in sizes]
            return np.concatenate(weights)

        table = rng.normal(0.0, 1.0, rows * 2)
        base = np.concatenate([layers((width, 16), (16, width)), table])
        head = layers((width, padded), (width, width), (16, width))
        state["mlp_base.tcnn_encoding.params"] = base.astype(np.float32)
        state["mlp_head.tcnn_encoding.params"] = head.astype(np.float32)
        state["direction_encoding.tcnn_encoding.params"] = np.zeros(0, np.float32)
    else:
        table = rng.normal(0.0, 1.0, (num_levels << log2_hashmap_size, 2)).astype(np.float32)
        state["mlp_base.model.0.hash_table"] = table
        add_layer(state, rng, "mlp_base.model.1.layers.0", 2 * num_levels, width)
        add_layer(state, rng, "mlp_base.model.1.layers.1", width, 16)
        for index, size in enumerate(((inputs, width), (width, width), (width, 3))):
            add_layer(state, rng, f"mlp_head.layers.{index}", *size)
    tensors = {f"_model.field.{name}": torch.tensor(value) for name, value in state.items()}
    # Proposal networks have tables too.
    tensors["_model.proposal_networks.0.mlp_base.0.hash_table"] = torch.zeros(8, 2)
    content = {"step": 29_999, "pipeline": tensors, "optimizers": {}, "schedulers": {}}
    torch.save(content | {"scalers": {}}, path)
    return path


def write_instant_ngp(
    path: Path,
    aabb_scale: int = 1,
    packing: Callable[[bytes], bytes] = gzip.compress,
    changes: Mapping[str, Any] | None = None,
    half: bool = True,
) -> Path:
    """Writes a snapshot of 4 levels of 2 features, whose cells in a ball are occupied.

    `changes` are of entries, by their keys joined with dots.
    """
    rng, width, levels, log2_rows = np.random.default_rng(12), 16, 4, 12
    # The finest level of a snapshot has 2048 cells along a side of the unit cube.
    growth = (2048 * aabb_scale / 16) ** (1.0 / (levels - 1))
    sides = [math.ceil(16 * growth**level - 1 - 1e-4) + 1 for level in range(levels)]
    rows = sum(min(-(-(n**3) // 8) * 8, 1 << log2_rows) for n in sides)
    shapes = [(width, 16), (16, width), (width, 32), (width, width), (16, width)]
    layers = [rng.normal(0, (2.0 / i) ** 0.5, (o, i)).ravel() for o, i in shapes]
    params = np.concatenate([*layers, rng.normal(0.0, 1.0, rows * 2)])
    params = params.astype(np.float16 if half else np.float32)
    cascades, number = [], np.arange(128**3)
    cell = [sum(((number >> (3 * bit + axis)) & 1) << bit for bit in range(7)) for axis in range(3)]
    for level in range(1 + int(np.log2(aabb_scale))):
        x, y, z = ((c + 0.5) / 128 * 2**level - 2**level / 2 for c in cell)
        # Not the same along any two axes, nor on the two sides of the middle.
        inside = (x - 0.1) ** 2 + (1.3 * y) ** 2 + (1.6 * (z + 0.05)) ** 2 < 0.16
        cascades.append(np.where(inside | ((x > 0.9) & (y > 0.3)), 0.5, -1.0).astype(np.float16))
    half_side = 0.5 * aabb_scale
    box = {"min": [0.5 - half_side] * 3, "max": [0.5 + half_side] * 3}
    pose = [[0.8, 0.0, 0.6, 0.1], [0.0, 1.0, 0.0, 0.4], [-0.6, 0.0, 0.8, -0.9]]
    mlp = {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None"}
    harmonics = {"otype": "SphericalHarmonics", "degree": 4, "n_dims_to_encode": 3}
    dataset = {
        "n_images": 1,
        "paths": ["images/0001.jpg"],
        "metadata": [{"resolution": [40, 30], "focal_length": [50.0, 50.0]}],
        "xforms": [{"start": pose, "end": pose}],
        "scale": 0.33,
        "offset": [0.5, 0.45, 0.55],
        "aabb_scale": aabb_scale,
        "n_extra_learnable_dims": 0,
        "is_hdr": False,
        "from_mitsuba": False,
    }
    tree: dict[str, Any] = {
        "dir_encoding": {"otype": "Composite", "nested": [harmonics, {"otype": "Identity"}]},
        "encoding": {
            "otype": "HashGrid",
            "n_levels": levels,
            "n_features_per_level": 2,
            "log2_hashmap_size": log2_rows,
            "base_resolution": 16,
        },
        "network": {**mlp, "n_neurons": width, "n_hidden_layers": 1},
        "rgb_network": {**mlp, "n_neurons": width, "n_hidden_layers": 2},
        "snapshot": {
            "version": 1,
            "mode": "nerf",
            "aabb": box,
            "render_aabb": box,
            "density_grid_size": 128,
            "density_grid_binary": np.concatenate(cascades).tobytes(),
            "n_params": len(params),
            "params_type": "__half" if half else "float",
            "params_binary": params.tobytes(),
            "training_step": 35_000,
            "nerf": {"aabb_scale": aabb_scale, "dataset": dataset},
        },
    }
    for name, value in (changes or {}).items():
        *parents, key = name.split(".")
        part = tree
        for parent in parents:
            part = part[parent]
        part[key] = value
    path.write_bytes(packing(msgpack.packb(tree)))
    return path


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "nerf-pytorch": ("nerf-pytorch", write_nerf_pytorch),
    "nerf-pytorch without directions": (
        "nerf-pytorch",
        lambda path: write_nerf_pytorch(path, directions=False),
    ),
    "nerf-pytorch before torch 1.6": (
        "nerf-pytorch",
        lambda path: write_nerf_pytorch(path, legacy=True),
    ),
    "nerfmlp": ("nerfmlp", write_nerfmlp),
    "nerfmlp (older)": ("nerfmlp (older)", lambda path: write_nerfmlp(path, older=True)),
    "tensorflow": ("TensorFlow NeRF", write_tensorflow),
    "jaxnerf": ("jaxnerf", write_jaxnerf),
    "experiments": (
        "NeRF-experiments NeRF",
        lambda path: write_experiments(path, prefix="_orig_mod.module."),
    ),
    "experiments, ternary": (
        "NeRF-experiments BitNeRF",
        lambda path: write_experiments(path, ternary=True),
    ),
    "scratch": ("NeRF-from-scratch", write_scratch),
    "scratch without input": (
        "NeRF-from-scratch",
        lambda path: write_scratch(path, include_input=False),
    ),
    "basic": ("Jiayi Pan's NeRF", write_basic),
    "tiny": ("Jiayi Pan's tiny NeRF", write_tiny),
    "tensorf": ("TensoRF", write_tensorf),
    "tensorf, other ranks, relu, no mask": (
        "TensoRF",
        lambda path: write_tensorf(
            path, ranks=((5, 2, 2), (6, 3, 3)), mask=False, activation="relu"
        ),
    ),
    "nerfstudio": ("nerfstudio (torch)", write_nerfstudio),
    "nerfstudio, tiny-cuda-nn": (
        "nerfstudio (tiny-cuda-nn)",
        lambda path: write_nerfstudio(path, tcnn=True),
    ),
    "instant-ngp": ("instant-ngp", write_instant_ngp),
    "instant-ngp, large": (
        "instant-ngp",
        lambda path: write_instant_ngp(path, aabb_scale=4, packing=zlib.compress, half=False),
    ),
    "tensorf, fog": ("TensoRF", lambda path: write_tensorf(path, mask=False)),
    "tensorf cp": (
        "TensoRF",
        lambda path: write_tensorf(path, "cp", ranks=((6,), (8,)), shading="MLP"),
    ),
}


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def pickle_as_npy(data: Any) -> bytes:
    """Returns an .npy of objects whose pickle holds any data."""
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (24,), }"
    text += b" " * (63 - (len(header) + 2 + len(text)) % 64) + b"\n"
    return header + len(text).to_bytes(2, "little") + text + pickle.dumps(data)

"""Files as other programs write them, with random weights, for the tests of converters."""

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import serialization

WIDTH, OCTAVES, ACROSS = 24, 10, 4
POSITION, DIRECTION = 3 + 6 * OCTAVES, 3 + 6 * ACROSS


def random_layer(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[Any, Any]:
    """Weight (out, in) and bias, such that signals neither fade nor grow."""
    weight = rng.normal(0.0, np.sqrt(2.0 / inputs), (outputs, inputs)).astype(np.float32)
    return weight, rng.normal(0.0, 0.1, outputs).astype(np.float32)


def fade(weight: Any, octaves: int, first: int, fewer: int = 3) -> Any:
    """Makes what fine octaves are multiplied with small, as training does.

    Columns from `first` on are those of an encoding that holds `fewer` numbers besides the waves.
    """
    for octave in range(octaves):
        start = first + fewer + 6 * octave
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
    """A network of 8 layers; the encoded position joins again at layer `skip`."""
    rng, state = np.random.default_rng(seed), {}
    for index in range(8):
        inputs = POSITION if index == 0 else WIDTH + POSITION * (index == skip)
        add_layer(state, rng, f"pts_linears.{index}", inputs, WIDTH)
        if inputs != WIDTH:
            fade(state[f"pts_linears.{index}.weight"], OCTAVES, 0)
    if not directions:
        # The layer for directions is made all the same, and a fifth output.
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
    """model_000000.npy; the fine network is written beside it."""
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
                # All sines come before all cosines there.
                for wave in range(2 * OCTAVES):
                    start = (WIDTH if index else 0) + 3 + 3 * wave
                    weight[:, start : start + 3] *= 2.0 ** -(wave % OCTAVES)
            layers[f"Dense_{index}"] = {"kernel": np.ascontiguousarray(weight.T), "bias": bias}
        networks[f"MLP_{seed}"] = layers
    state = {"optimizer": {"target": {"params": networks}, "state": {"step": np.int32(7)}}}
    path.write_bytes(serialization.msgpack_serialize(state))
    return path


def write_experiments(path: Path, ternary: bool = False, prefix: str = "") -> Path:
    rng, state = np.random.default_rng(5), {}
    encoded = 3 + 6 * 16
    add_layer(state, rng, "input_layer", encoded, WIDTH)
    fade(state["input_layer.weight"], 16, 0)
    for index in range(8):
        inputs = WIDTH + encoded * (index == 4)
        name = f"layers.{index}{'.linear' * ternary}"
        add_layer(state, rng, name, inputs, WIDTH)
        if index == 4 and not ternary:
            fade(state[f"{name}.weight"], 16, WIDTH)
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
    fade(state["layers.0.weight"], 6, 0, 3 * include_input)
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
        fade_by_coordinate(state[f"{name}.weight"])
    return state


def fade_by_coordinate(weight: Any) -> None:
    """As `fade`, where the waves of x come before those of y and z."""
    for axis in range(3):
        for octave in range(OCTAVES):
            start = axis * (1 + 2 * OCTAVES) + 1 + 2 * octave
            weight[:, start : start + 2] *= 2.0**-octave


def write_basic(path: Path) -> Path:
    # It is of double precision, and most layers begin a sequence.
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
    fade_by_coordinate(state["layer1.weight"])
    np.savez(path.with_suffix(".npz"), **state)
    return path.with_suffix(".npz")


def write_tensorf(
    path: Path,
    factors: str = "vm",
    ranks: tuple[tuple[int, ...], tuple[int, ...]] = ((4, 4, 4), (6, 6, 6)),
    mask: bool = True,
    activation: str = "softplus",
    shading: str = "MLP_Fea",
) -> Path:
    """A field of no two sides alike; a ball of it is occupied."""
    rng, state = np.random.default_rng(9), {}
    grid, aabb = (13, 11, 9), np.array([[-1.2, -1.0, -0.8], [1.3, 1.1, 0.9]], np.float32)
    for name, counts in zip(("density", "app"), ranks, strict=True):
        for index, axis in enumerate((2, 1, 0)):
            count = counts[index % len(counts)]
            across, down = ((0, 1), (0, 2), (1, 2))[index]
            scale = 1.5 if name == "density" else 0.5
            line = rng.normal(0.3, scale, (1, count, grid[axis], 1))
            if name == "density":
                # Only fog on the box's faces, where rays begin.
                line[:, :, [0, -1]] = 0.0
            state[f"{name}_line.{index}"] = line.astype(np.float32)
            if factors == "vm":
                plane = rng.normal(0.3, scale, (1, count, grid[down], grid[across]))
                if name == "density":
                    plane[:, :, [0, -1]] = plane[..., [0, -1]] = 0.0
                state[f"{name}_plane.{index}"] = plane.astype(np.float32)
    components = sum(ranks[1]) if factors == "vm" else ranks[1][0]
    features, octaves = 5, (2 if shading == "MLP_Fea" else 0, 2)
    basis = rng.normal(0.0, 0.5, (features, components)).astype(np.float32)
    state["basis_mat.weight"] = basis
    inputs = features * (1 + 2 * octaves[0]) + 3 * (1 + 2 * octaves[1])
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
        axes = [np.linspace(low, high, n) for low, high, n in zip(*aabb, grid, strict=True)]
        z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
        inside = x**2 + y**2 + z**2 < 0.6**2
        content |= {
            "alphaMask.shape": torch.Size([1, 1, *inside.shape]),
            "alphaMask.mask": np.packbits(inside.reshape(-1)),
            "alphaMask.aabb": torch.tensor(aabb),
        }
    torch.save(content, path)
    return path


def write_nerfstudio(path: Path, tcnn: bool = False, appearance: int = 5) -> Path:
    """A hash field of 4 levels of 2 channels, as PyTorch or tiny-cuda-nn has it."""
    rng, width, levels, log2_hashmap_size, finest = np.random.default_rng(11), 16, 4, 12, 60
    state: dict[str, Any] = {
        "aabb": np.array([[-1.5, -1.4, -1.3], [1.5, 1.6, 1.7]], np.float32),
        "max_res": np.array(finest),
        "num_levels": np.array(levels),
        "log2_hashmap_size": np.array(log2_hashmap_size),
        "embedding_appearance.embedding.weight": rng.normal(size=(3, appearance)),
    }
    inputs = 16 + 15 + appearance
    if tcnn:
        # Cells 16 - 1, ... up to 64 - 1; rows of 16^3 do not fit into 2^10.
        growth = np.exp((np.log(finest) - np.log(16)) / (levels - 1))
        cells = [int(np.ceil(16 * growth**level - 1 - 1e-4)) + 1 for level in range(levels)]
        rows = sum(min(-(-(n**3) // 8) * 8, 1 << log2_hashmap_size) for n in cells)
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
        table = rng.normal(0.0, 1.0, (levels << log2_hashmap_size, 2)).astype(np.float32)
        state["mlp_base.model.0.hash_table"] = table
        add_layer(state, rng, "mlp_base.model.1.layers.0", 2 * levels, width)
        add_layer(state, rng, "mlp_base.model.1.layers.1", width, 16)
        for index, size in enumerate(((inputs, width), (width, width), (width, 3))):
            add_layer(state, rng, f"mlp_head.layers.{index}", *size)
    tensors = {f"_model.field.{name}": torch.tensor(value) for name, value in state.items()}
    # Proposals have tables too.
    tensors["_model.proposal_networks.0.mlp_base.0.hash_table"] = torch.zeros(8, 2)
    content = {"step": 29_999, "pipeline": tensors, "optimizers": {}, "schedulers": {}}
    torch.save(content | {"scalers": {}}, path)
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
    "tensorf, fog": ("TensoRF", lambda path: write_tensorf(path, mask=False)),
    "tensorf cp": (
        "TensoRF",
        lambda path: write_tensorf(path, "cp", ranks=((6,), (8,)), shading="MLP"),
    ),
}


class Touch:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def pickle_array_of(thing: Any) -> bytes:
    """An .npy whose pickle holds something."""
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (24,), }"
    text += b" " * (63 - (len(header) + 2 + len(text)) % 64) + b"\n"
    return header + len(text).to_bytes(2, "little") + text + pickle.dumps(thing)

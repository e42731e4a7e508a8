"""Runs written as the checkpoints of other programs, such that these see what jaxrf sees."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from jaxrf.convert import nerf_pytorch, nerfstudio, tensorf_torch
from jaxrf.convert.networks import from_params
from jaxrf.core.errors import InputError
from jaxrf.training import runs
from jaxrf.training.config import HashGridConfig, NeRFConfig, TensoRFConfig
from jaxrf.training.runs import Run

Program = Literal["nerf-pytorch", "tensorf", "nerfstudio"]


def write_file(run: Run, path: Path, program: Program) -> tuple[str, ...]:
    """Writes a run as a checkpoint of another program.

    Args:
      run: of a field that the program has.
      path: of the file.
      program: which.

    Returns:
      What the user should know, a sentence each.

    Raises:
      InputError: if the program has no such field, or PyTorch is missing.
    """
    makers = {
        "nerf-pytorch": _to_nerf_pytorch,
        "tensorf": _to_tensorf,
        "nerfstudio": _to_nerfstudio,
    }
    content = makers[program](run)
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"To write for {program} needs PyTorch, which is not installed: pip install torch."
        ) from error

    def to_tensors(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: to_tensors(value) for name, value in node.items()}
        if isinstance(node, np.ndarray) and node.dtype != np.uint8:
            return torch.tensor(node)
        return node

    runs.make_writable(path.absolute().parent, "--output")
    with runs.atomic_path(path) as temporary:
        torch.save(to_tensors(content), temporary)
    convention = run.config.field.convention
    if program == "nerf-pytorch" and convention.pixel_center != 0.0:
        return ("nerf-pytorch looks through pixels' corners: its pictures are half a pixel off.",)
    return ()


def _refuse(run: Run, program: Program, kind: str) -> InputError:
    return InputError(
        f"The run {run.folder} is of the field {run.config.field.kind}, which {program} does not "
        f"have: name a run of a {kind}."
    )


def _check_options(run: Run, program: Program, wanted: dict[str, Any]) -> None:
    """InputError that names all options of the field that are not as the program has them."""
    other = {
        name: value for name, value in wanted.items() if getattr(run.config.field, name) != value
    }
    if other:
        options = " ".join(
            f"--field.{'no-' * (value is False)}{name.replace('_', '-')}{_spell(value)}"
            for name, value in other.items()
        )
        raise InputError(
            f"The run {run.folder} is not as {program} has its fields: train one with {options}."
        )


def _check_bounded(run: Run, program: Program) -> None:
    """InputError if a run fills contracted space."""
    if run.config.field.contract:
        raise InputError(
            f"The run {run.folder} fills contracted space, which {program} does not have: train "
            "one with --field.contract False."
        )


def _spell(value: Any) -> str:
    """What follows an option that is to have this value."""
    return "" if isinstance(value, bool) else f" {value}"


def _to_nerf_pytorch(run: Run) -> dict[str, Any]:
    field = run.config.field
    if not isinstance(field, NeRFConfig):
        raise _refuse(run, "nerf-pytorch", "nerf")
    wanted: dict[str, Any] = {
        "sampler": "hierarchical",
        "shading": "per_sample",
        "quadrature": "points",
        "activation": "relu",
        "encoding": "fourier",
        "frequency": 1.0,
        "encode_input": True,
        "project": False,
        "density_bias": 0.0,
        "appearance_dim": 0,
        "skip": 5,
        "color_width": field.width // 2 if field.use_directions else field.color_width,
    }
    _check_options(run, "nerf-pytorch", wanted)
    _check_bounded(run, "nerf-pytorch")
    names = {"coarse": "network_fn_state_dict", "fine": "network_fine_state_dict"}
    states = {
        names[part]: nerf_pytorch.write(
            from_params(params, field.skip), bool(field.num_fine_samples)
        )
        for part, params in run.state.shown.items()
    }
    count = sum(len(state) for state in states.values())
    # Adam's state of nothing: its moments begin anew.
    group = {
        "lr": 5e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "amsgrad": False,
        "params": list(range(count)),
    }
    optimizer = {"state": {}, "param_groups": [group]}
    return {"global_step": int(run.state.step), **states, "optimizer_state_dict": optimizer}


def _to_tensorf(run: Run) -> dict[str, Any]:
    field = run.config.field
    if not isinstance(field, TensoRFConfig):
        raise _refuse(run, "tensorf", "tensorf")
    wanted = {"color": "mlp", "layers": 2, "shading": "per_sample", "appearance_dim": 0}
    _check_options(run, "tensorf", wanted)
    _check_bounded(run, "tensorf")
    grid = run.state.grid
    content = tensorf_torch.write(
        run.state.shown,
        field,
        np.asarray(grid.aabb),
        run.stage.resolution,
        (run.scene.near, run.scene.far),
    )
    mask = find_mask(np.asarray(grid.occupied))
    return content | {
        "alphaMask.shape": [1, 1, *mask.T.shape],
        "alphaMask.mask": np.packbits(mask.T.reshape(-1)),
        "alphaMask.aabb": np.asarray(grid.aabb),
    }


def _to_nerfstudio(run: Run) -> dict[str, Any]:
    field = run.config.field
    if not isinstance(field, HashGridConfig):
        raise _refuse(run, "nerfstudio", "hashgrid")
    wanted: dict[str, Any] = {
        "shading": "per_sample",
        "hash_layout": "all_hashed",
        "normalize_dirs_01": True,
        "coarsest": nerfstudio.BASE,
        "num_sh_bands": 4,
        "density_shift": 0.0,
        "density_scale": 1.0,
        "appearance_dim": 0,
    }
    _check_options(run, "nerfstudio", wanted)
    params = run.state.shown
    grid = run.state.grid
    box = np.asarray(grid.aabb if grid.bounds is None else grid.bounds)
    if grid.bounds is not None and not np.array_equal(box, nerfstudio.BOX):
        raise InputError(
            f"In the run {run.folder} space is contracted around another box than -1 to 1, which "
            "nerfstudio does not have: train without --field.contract."
        )
    last = params["fine"] if "fine" in params else params["coarse"]
    return nerfstudio.write(last, field, box, int(run.state.step), run.scene.train_views)


def find_mask(occupied: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "px py pz"]:
    """Points of a mask whose interpolation is above 0 in the occupied cells, and only there.

    A point at the corner of cells stands for all that touch it: if that can give the cells, corners
    are enough. Else there are points in the middles of cells too, which stand for their cell.
    """
    padded = np.pad(occupied, 1, constant_values=True)
    corners = np.ones([n + 1 for n in occupied.shape], bool)
    for x, y, z in np.ndindex(2, 2, 2):
        # Beyond the box there is nothing that a point could wrongly stand for.
        part = padded[x : x + corners.shape[0], y : y + corners.shape[1], z : z + corners.shape[2]]
        corners &= part
    touched = np.zeros_like(occupied)
    for x, y, z in np.ndindex(2, 2, 2):
        shape = occupied.shape
        touched |= corners[x : x + shape[0], y : y + shape[1], z : z + shape[2]]
    if np.array_equal(touched, occupied):
        return corners
    middles = np.zeros([2 * n + 1 for n in occupied.shape], bool)
    middles[1::2, 1::2, 1::2] = occupied
    return middles

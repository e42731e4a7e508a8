"""Writes runs as checkpoints of other programs, which then render the same images."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from jaxrf.convert import nerf_pytorch, nerfstudio, tensorf_checkpoint
from jaxrf.convert.files.torch_file import write_torch
from jaxrf.convert.networks import from_params
from jaxrf.core.errors import InputError
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.fields.nerf import NeRF
from jaxrf.fields.tensorf import TensoRF
from jaxrf.models.packed import PackedModel
from jaxrf.sampling.alpha_mask import AlphaMaskedGrid
from jaxrf.training import runs, summaries
from jaxrf.training.runs import Run

Program = Literal["nerf-pytorch", "tensorf", "nerfstudio"]


def write_file(run: Run, path: Path, program: Program) -> tuple[str, ...]:
    """Writes a run as a checkpoint of another program.

    Args:
      run: its field has to be one that the program has.
      path: of the file.
      program: to write for.

    Returns:
      Sentences for the user.

    Raises:
      InputError: if the program has no such field, or PyTorch is missing.
    """
    makers = {
        "nerf-pytorch": _to_nerf_pytorch,
        "tensorf": _to_tensorf,
        "nerfstudio": _to_nerfstudio,
    }
    checkpoint = makers[program](run)
    runs.make_writable(path.absolute().parent, "--output")
    try:
        with runs.atomic_path(path) as temporary:
            write_torch(checkpoint, temporary)
    except ImportError as error:
        raise InputError(
            f"Writing for {program} needs PyTorch, which is not installed: pip install torch."
        ) from error
    if program == "nerf-pytorch" and run.config.ray_convention.pixel_center != 0.0:
        return (
            "nerf-pytorch's rays pass the pixels' corners: its images are shifted by half a pixel.",
        )
    return ()


def _wrong_field(run: Run, program: Program, kind: str) -> InputError:
    return InputError(
        f"The run {run.folder} is of the field {run.config.field.name}, which {program} does not "
        f"have: name a run of a {kind}."
    )


def _check_options(run: Run, program: Program, required: dict[str, Any]) -> None:
    """InputError that names all options with values that the program does not have.

    `required` holds values by the dotted names of options.
    """
    config = run.config
    flat = summaries.flatten_config(config, run.scene.name) | {
        "model": config.model.name,
        "model.coloring": "per_ray" if config.model.colors_per_ray(config.field) else "per_sample",
    }
    other = {name: value for name, value in required.items() if flat.get(name) != value}
    if other:
        options = " ".join(_spell_option(name, value) for name, value in other.items())
        raise InputError(
            f"The field of the run {run.folder} differs from those of {program}: train one with "
            f"`{options}`."
        )


def _check_bounded(run: Run, program: Program) -> None:
    """InputError if a run's space is contracted."""
    if run.config.model.contract:
        raise InputError(
            f"The run {run.folder} fills contracted space, which {program} does not have: train "
            "one with --model.contract False."
        )


def _spell_option(name: str, value: Any) -> str:
    """Returns the option of a dotted name, and the value that it is to have."""
    part, _, last = name.rpartition(".")
    prefix = f"--{part}." if part else "--"
    option = last.replace("_", "-")
    if isinstance(value, bool):
        return f"{prefix}{'' if value else 'no-'}{option}"
    return f"{prefix}{option} {value}"


def _to_nerf_pytorch(run: Run) -> dict[str, Any]:
    field, params = NeRF.match(run.config.field), run.state.eval_params
    if field is None:
        raise _wrong_field(run, "nerf-pytorch", "nerf")
    required: dict[str, Any] = {
        "model": "hierarchical",
        "model.coloring": "per_sample",
        "model.quadrature": "points",
        "model.appearance_dim": 0,
        "field.activation": "relu",
        "field.encoding": "fourier",
        "field.frequency": 1.0,
        "field.encode_input": True,
        "field.project": False,
        "field.density_bias": 0.0,
        "field.skip": 5,
        "field.color_width": field.width // 2 if field.use_directions else field.color_width,
    }
    _check_options(run, "nerf-pytorch", required)
    _check_bounded(run, "nerf-pytorch")
    first = params.field if params.coarse is None else params.coarse
    networks = {"network_fn_state_dict": first}
    if params.coarse is not None:
        networks["network_fine_state_dict"] = params.field
    states = {
        name: nerf_pytorch.to_state_dict(
            from_params(network, field.skip), params.coarse is not None
        )
        for name, network in networks.items()
    }
    count = sum(len(state) for state in states.values())
    # The state of an Adam whose moments start from zero.
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
    field, model = TensoRF.match(run.stage.field), run.config.model
    if field is None:
        raise _wrong_field(run, "tensorf", "tensorf")
    required = {
        "field.color_head": "mlp",
        "field.layers": 2,
        "model.coloring": "per_sample",
        "model.appearance_dim": 0,
    }
    _check_options(run, "tensorf", required)
    _check_bounded(run, "tensorf")
    assert isinstance(model, PackedModel), "TensoRF is marched through"
    grid = run.state.grid
    checkpoint = tensorf_checkpoint.to_checkpoint(
        run.state.eval_params.field,
        field,
        np.asarray(grid.aabb),
        (run.scene.near, run.scene.far),
        model.color_threshold,
    )
    if isinstance(grid, AlphaMaskedGrid):
        mask, mask_aabb = np.asarray(grid.mask_points), np.asarray(grid.mask_aabb)
    else:
        mask, mask_aabb = make_alpha_mask(np.asarray(grid.occupied)), np.asarray(grid.aabb)
    return checkpoint | {
        "alphaMask.shape": [1, 1, *mask.T.shape],
        "alphaMask.mask": np.packbits(mask.T.reshape(-1)),
        "alphaMask.aabb": mask_aabb,
    }


def _to_nerfstudio(run: Run) -> dict[str, Any]:
    field = HashGrid.match(run.config.field)
    if field is None:
        raise _wrong_field(run, "nerfstudio", "hashgrid")
    required: dict[str, Any] = {
        "model.coloring": "per_sample",
        "model.appearance_dim": 0,
        "field.hash_layout": "all_hashed",
        "field.normalize_dirs_01": True,
        "field.base_resolution": nerfstudio.BASE_RESOLUTION,
        "field.num_sh_bands": 4,
        "field.density_shift": 0.0,
        "field.density_scale": 1.0,
    }
    _check_options(run, "nerfstudio", required)
    grid = run.state.grid
    aabb = np.asarray(grid.aabb if grid.bounds is None else grid.bounds)
    is_nerfacto = np.array_equal(aabb, nerfstudio.CONTRACTED_AABB)
    if grid.bounds is not None and not (is_nerfacto and grid.contraction_norm == "max"):
        raise InputError(
            f"The run {run.folder} contracts space around another box than -1 to 1 or by another "
            "norm than max, which nerfacto does not have: train without --model.contract."
        )
    field_params = run.state.eval_params.field
    step, num_images = int(run.state.step), run.scene.train_views
    return nerfstudio.to_checkpoint(field_params, field, aabb, step, num_images)


def make_alpha_mask(occupied: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "px py pz"]:
    """Returns a mask of points whose trilinear interpolation is above 0 in occupied cells alone.

    A set point occupies all cells that touch it. Points at the corners of cells suffice if some
    choice of them gives the occupied cells exactly; otherwise the mask has twice the resolution,
    and a point in the center of each occupied cell.
    """
    # Beyond the box there is no cell that a point could occupy wrongly.
    padded = np.pad(occupied, 1, constant_values=True)
    corners = np.ones([n + 1 for n in occupied.shape], bool)
    for x, y, z in np.ndindex(2, 2, 2):
        shape = corners.shape
        corners &= padded[x : x + shape[0], y : y + shape[1], z : z + shape[2]]
    touched = np.zeros_like(occupied)
    for x, y, z in np.ndindex(2, 2, 2):
        shape = occupied.shape
        touched |= corners[x : x + shape[0], y : y + shape[1], z : z + shape[2]]
    if np.array_equal(touched, occupied):
        return corners
    centers = np.zeros([2 * n + 1 for n in occupied.shape], bool)
    centers[1::2, 1::2, 1::2] = occupied
    return centers

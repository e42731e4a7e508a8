"""Proof that converted weights are the same field: compared with the program they come from.

That program is rebuilt in PyTorch (`references`) and reads the file by itself. Compared are what
the networks give at random points, stage by stage, and a whole picture with chance switched off.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrf.cameras.base import Cameras, apply_ray_convention, image_rays
from jaxrf.cameras.poses import look_at
from jaxrf.convert import (
    jaxnerf,
    nerf_experiments,
    nerf_plain,
    nerf_pytorch,
    nerfstudio,
    tensorf_torch,
)
from jaxrf.convert import (
    runs as adopt,
)
from jaxrf.convert.files import Content
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import Converted
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.evaluation import scoring
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.fields.nerf import NeRF
from jaxrf.fields.tensorf import TensoRF
from jaxrf.models import methods
from jaxrf.sampling import occupancy
from jaxrf.training import train
from jaxrf.training.config import BitNeRFConfig, EncodedMLPConfig, SampledConfig

POINTS = 1 << 17
CHUNK = 8192
# Of raw outputs, relative to the largest of their kind; of pixels, absolute.
RAW_TOLERANCE = 1e-5
MEAN_TOLERANCE, MOST_TOLERANCE = 1e-5, 1e-4
QUANTILE = 0.999
# Of encodings, up to which a picture in float32 is judged: positions are known to 5e-7 there.
MOST_FREQUENCY = 1024.0


class Row(NamedTuple):
    """The difference of one stage.

    stage: what was compared.
    largest, mean, high: of the absolute differences; `high` is their 99.9th percentile.
    scale: the largest absolute value of the reference.
    passed: None where nothing is asked.
    """

    stage: str
    largest: float
    mean: float
    high: float
    scale: float
    passed: bool | None


def compare(stage: str, ours: np.ndarray, theirs: np.ndarray, judge: str | None = None) -> Row:
    """The difference of two arrays; `judge` is "raw", "pixels", or None.

    What is not finite is infinitely far off.
    """
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    if ours.shape != theirs.shape:
        return Row(stage, math.inf, math.inf, math.inf, 0.0, False)
    with np.errstate(invalid="ignore"):
        apart = np.abs(ours - theirs)
    apart = np.where(np.isfinite(apart), apart, np.inf)
    scale = float(np.abs(theirs).max(initial=0.0))
    largest, mean = float(apart.max(initial=0.0)), float(apart.mean())
    high = float(np.quantile(apart, QUANTILE, method="higher"))
    passed = None
    if judge == "raw":
        passed = largest <= RAW_TOLERANCE * max(scale, 1e-30)
    elif judge == "pixels":
        passed = mean <= MEAN_TOLERANCE and high <= MOST_TOLERANCE
    return Row(stage, largest, mean, high, scale, passed)


def format_rows(rows: Sequence[Row]) -> str:
    """Rows as a table."""
    lines = [f"{'stage':<24}{'largest':>12}{'99.9 %':>12}{'mean':>12}{'of at most':>12}"]
    for row in rows:
        verdict = {None: "", True: "  same", False: "  DIFFERENT"}[row.passed]
        numbers = "".join(f"{v:>12.2e}" for v in (row.largest, row.high, row.mean, row.scale))
        lines.append(f"{row.stage:<24}{numbers}{verdict}")
    return "\n".join(lines)


def make_references(form: str, content: Content, wishes: FormatOptions, double: bool) -> list[Any]:
    """The networks that wrote a file, the coarse one first.

    Raises:
      InputError: without PyTorch.
    """
    try:
        import torch

        from jaxrf.convert import torch_reference
    except ImportError as error:
        raise InputError(
            "To check weights needs PyTorch, which is not installed: pip install torch."
        ) from error
    dtype = torch.float64 if double else torch.float32
    match form:
        case "TensorFlow NeRF":
            from jaxrf.convert.nerf_tensorflow import find_contents

            contents, _ = find_contents(content)
            return [torch_reference.nerf_tensorflow(each.tree, dtype) for each in contents]
        case tensorf_torch.FORM:
            return [torch_reference.TensoRF(content.tree, dtype)]
        case nerfstudio.TORCH | nerfstudio.TCNN:
            state = nerfstudio.find_field(content)
            assert state is not None
            wished = (not wishes.bounded, wishes.density_factor)
            return [torch_reference.Nerfacto(state[1], *wished, dtype)]
        case "jaxnerf":
            found = jaxnerf.find_networks(content.tree) or {}
            order = wishes.legacy_order
            return [torch_reference.jaxnerf(found[name], dtype, order) for name in sorted(found)]
        case "NeRF-experiments NeRF" | "NeRF-experiments BitNeRF":
            arrays = nerf_experiments.find_network(content)
            assert arrays is not None
            return [torch_reference.nerf_experiments(arrays, dtype)]
        case "NeRF-from-scratch" | "Jiayi Pan's NeRF" | "Jiayi Pan's tiny NeRF":
            makers = {
                "NeRF-from-scratch": (torch_reference.nerf_scratch, "layers.0.weight"),
                "Jiayi Pan's NeRF": (torch_reference.nerf_basic, "fc_1.weight"),
                "Jiayi Pan's tiny NeRF": (torch_reference.nerf_tiny, "layer1.weight"),
            }
            make, mark = makers[form]
            states = (arrays for arrays in nerf_plain.list_states(content) if mark in arrays)
            return [make(next(states), dtype)]
    named = nerf_pytorch.find_networks(content)
    assert named is not None and named[0] == form
    factor = math.pi if form == "nerfmlp (older)" else 1.0
    return [
        torch_reference.nerf_pytorch(arrays, dtype, nerf_pytorch.NAMES[form], factor)
        for _, arrays in named[1]
    ]


def check_points(
    converted: Converted, content: Content, wishes: FormatOptions, count: int, double: bool
) -> list[Row]:
    """Compares what each network gives at random points, stage by stage, before activations.

    In float32 nothing is asked of layers of 8-bit activations: where a number is on the edge
    between two steps, rounding decides.
    """
    with jax.enable_x64(double):
        return _check_points(converted, content, wishes, count, double)


def _check_points(
    converted: Converted, content: Content, wishes: FormatOptions, count: int, double: bool
) -> list[Row]:
    networks = make_references(converted.form, content, wishes, double)
    import torch

    stage, grid = adopt.place(converted, converted.config, adopt.BOX)
    aabb = _cast(grid.aabb, double)
    low, high = np.asarray(aabb)
    judged = double or not isinstance(converted.config.field, BitNeRFConfig)
    key_points, key_directions = jax.random.split(jax.random.key(0))
    points = low[None] + (high - low)[None] * jax.random.uniform(key_points, (count, 3))
    directions = jax.random.normal(key_directions, (count, 3))
    directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
    field = methods.make_field(converted.config.field, stage)
    assert isinstance(field, NeRF | TensoRF | HashGrid)
    run, rows = jax.jit(field.debug_outputs), []
    for (name, weights), network in zip(_name_networks(converted), networks, strict=True):
        params = _cast(weights, double) | {"aabb": aabb}
        found = [
            run(params, points[start : start + CHUNK], directions[start : start + CHUNK])
            for start in range(0, count, CHUNK)
        ]
        ours = {part: np.concatenate([np.asarray(f[part]) for f in found]) for part in found[0]}
        with torch.no_grad():
            outputs = network(torch.tensor(np.array(points)), torch.tensor(np.array(directions)))
        theirs = {part: value.numpy() for part, value in outputs.items()}
        if converted.encoding:
            theirs["encoding"] = theirs["encoding"][:, list(converted.encoding)]
        for part in ("encoding", "trunk", "features", "density", "color"):
            if part in ours:
                judge = "raw" if judged and part in ("density", "color") else None
                rows.append(compare(f"{name} {part}", ours[part], theirs[part], judge))
    return rows


def _name_networks(converted: Converted) -> list[tuple[str, Any]]:
    """The parameters of each network, the coarse one first."""
    if isinstance(converted.config.field, SampledConfig):
        return list(converted.params.items())
    return [("field", converted.params)]


def default_camera(size: int) -> Cameras:
    """A camera that looks at the origin from where NeRF-synthetic's stand."""
    pose = look_at(np.array([2.4, 2.0, 2.5]), np.zeros(3))
    focal = 0.5 * size / math.tan(0.5 * 0.6911112070083618)
    return Cameras(
        T_world_camera=pose[None].astype(np.float32),
        focal=np.full((1, 2), focal, np.float32),
        principal_point=np.full((1, 2), 0.5 * size, np.float32),
        width=size,
        height=size,
    )


def check_pictures(
    converted: Converted, content: Content, wishes: FormatOptions, cameras: Cameras, double: bool
) -> list[Row]:
    """Compares the pixels of the first camera's picture, and the weights of its samples.

    Weights are compared where rays have a fixed number of samples. Depth is a share of `far`, as
    colour and opacity are between 0 and 1.
    """
    networks = make_references(converted.form, content, wishes, double)
    import torch

    from jaxrf.convert import torch_reference

    view = torch_reference.View(
        np.asarray(cameras.T_world_camera[0], np.float64),
        (float(cameras.focal[0, 0]), float(cameras.focal[0, 1])),
        (float(cameras.principal_point[0, 0]), float(cameras.principal_point[0, 1])),
        cameras.width,
        cameras.height,
    )
    dtype = torch.float64 if double else torch.float32
    seen_range, far = (converted.near, converted.far), converted.far
    judge = "pixels" if double or not _amplifies(converted) else None
    with jax.enable_x64(double):
        ours = _render(converted, cameras, double)
    if converted.form in (nerfstudio.TORCH, nerfstudio.TCNN):
        # Where samples are is a matter of proposals there, and of the search for them.
        theirs = networks[0].render(view, ours["edges"])
    elif converted.form == tensorf_torch.FORM:
        theirs = networks[0].render(view, seen_range, white=True)
    else:
        sampling = torch_reference.SAMPLINGS[converted.form]
        if converted.form in nerf_experiments.FORMS:
            sampling = sampling._replace(inclusive=wishes.inclusive)
        # Where a network found something is the inverse of a distribution, whose slopes magnify
        # rounding: in float64 each program looks by itself, in float32 theirs where ours does.
        given = ours["edges"][..., :-1] if len(networks) > 1 and not double else None
        theirs = torch_reference.render(
            networks, view, sampling, seen_range, dtype, distances=given
        )
    rows = [
        compare("rgb", ours["rgb"], theirs["rgb"], judge),
        compare("opacity", ours["opacity"], theirs["opacity"], judge),
        compare("depth / far", ours["depth"] * ours["opacity"] / far, theirs["depth"] / far, judge),
    ]
    if "weights" in ours:
        rows.insert(0, compare("weights", ours["weights"], theirs["weights"]))
    return rows


def _amplifies(converted: Converted) -> bool:
    """Whether rounding shows in a picture in float32: sines of many turns, steps of 8 bits."""
    field = converted.config.field
    if not isinstance(field, EncodedMLPConfig):
        return False
    most = field.frequency * 2.0 ** (field.num_position_frequencies - 1)
    return isinstance(field, BitNeRFConfig) or most > MOST_FREQUENCY


def _cast(tree: Any, double: bool) -> Any:
    """The numbers of a tree in one precision."""

    def cast(x: Any) -> Any:
        x = jnp.asarray(x)
        wanted = jnp.float64 if double else jnp.float32
        return x.astype(wanted) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def _render(converted: Converted, cameras: Cameras, double: bool) -> dict[str, np.ndarray]:
    """Our picture, with the weights of the last network's samples if each ray has as many."""
    dtype = np.float64 if double else np.float32
    # Few samples at once: the picture is small.
    config = dataclasses.replace(converted.config, render_samples=1 << 14)
    stage, grid = adopt.place(converted, config, adopt.BOX)

    params, grid, cameras = (_cast(tree, double) for tree in (converted.params, grid, cameras))
    scene_range = (converted.near, converted.far)
    background = train.background_color(config).astype(dtype)
    picture = scoring.make_render_fn(config, stage, params, grid, scene_range, background)(
        cameras, 0
    )
    found = {"rgb": picture.rgb, "opacity": picture.opacity, "depth": picture.depth}
    if methods.marches(config.field):
        return found
    seen = apply_ray_convention(cameras, config.field.convention)
    rays = jax.jit(image_rays)(seen, jnp.asarray(0), *scene_range)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rays)

    @jax.jit
    def weigh(chunk: Rays) -> tuple[Array, Array]:
        behind = jnp.zeros((*chunk.near.shape, 3), dtype)
        levels = methods.render_hierarchical(config.field, stage, params, grid, None, chunk, behind)
        return levels[-1].weights, occupancy.to_ray_distances(grid, levels[-1].tdist, chunk.origins)

    count, parts = cameras.width * cameras.height, []
    for start in range(0, count, CHUNK // 8):
        chunk = jax.tree.map(lambda x, at=start: x[at : at + CHUNK // 8], flat)
        parts.append(jax.device_get(weigh(chunk)))
    shape = (cameras.height, cameras.width, -1)
    weights, edges = (np.concatenate(part).reshape(shape) for part in zip(*parts, strict=True))
    return found | {"weights": weights, "edges": edges}


def passes(rows: Sequence[Row]) -> bool:
    """Whether nothing that is asked for differs."""
    return all(row.passed is not False for row in rows)

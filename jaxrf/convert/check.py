"""Compares converted weights with the program they come from.

The program is rebuilt in PyTorch (`torch_reference`) and reads the file itself. The comparison
covers the raw outputs of networks at random points, stage by stage, and an image rendered without
random numbers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrf.cameras.base import Cameras, apply_ray_convention, image_rays
from jaxrf.cameras.poses import look_at
from jaxrf.convert import instant_ngp
from jaxrf.convert.files.read import Content
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import Converted
from jaxrf.convert.to_run import DEFAULT_AABB, init_stage
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.evaluation import scoring
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.sampling import occupancy
from jaxrf.training.config import TrainConfig
from jaxrf.training.state import background_color

# In float32; in float64, and of the program in both to measure its rounding.
NUM_POINTS, NUM_EXACT_POINTS = 1 << 17, 1 << 13
POINTS_PER_CHUNK, RAYS_PER_CHUNK = 8192, 256
# Of raw outputs, relative to the largest value of their kind.
RAW_TOLERANCE = 1e-5
# Of pixels, absolute: of the mean error and of its 99.9th percentile.
MEAN_TOLERANCE, QUANTILE_TOLERANCE = 1e-5, 1e-4
QUANTILE = 0.999
# In float32, this multiple of the program's own rounding is allowed in addition: both programs
# round, and the rounding of the two is not known to be of the same sign or exactly as large.
ROUNDING_FACTOR = 3.0


class Comparison(NamedTuple):
    """The difference between jaxrf and the program in one stage.

    stage: name of the arrays that were compared.
    max_error, mean_error, quantile_error: of absolute differences; the last is the 99.9th
      percentile.
    scale: the largest absolute value of the program.
    rounding: the 99.9th percentile of the program's own rounding; 0 where it is not measured.
    passed: None if the stage is not judged.
    """

    stage: str
    max_error: float
    mean_error: float
    quantile_error: float
    scale: float
    rounding: float
    passed: bool | None


def compare(
    stage: str,
    array: np.ndarray,
    reference: np.ndarray,
    judge: Literal["raw", "pixels"] | None = None,
    rounding: np.ndarray | None = None,
) -> Comparison:
    """Compares an array with that of the program.

    Args:
      stage: name of the arrays.
      array: of jaxrf.
      reference: of the program. Differences that are not finite count as infinite.
      judge: the tolerances to apply.
      rounding: differences between the program in float32 and in float64, by which the tolerances
        grow (`ROUNDING_FACTOR`).
    """
    if array.shape != reference.shape:
        return Comparison(stage, math.inf, math.inf, math.inf, 0.0, 0.0, False)
    errors = _differences(array, reference)
    rounding = np.zeros(1) if rounding is None else rounding
    rounding = np.where(np.isfinite(rounding), rounding, 0.0)
    scale = float(np.abs(np.asarray(reference, np.float64)).max(initial=0.0))
    max_error, mean_error = float(errors.max(initial=0.0)), float(errors.mean())
    quantile_error, quantile_rounding = _quantile(errors), _quantile(rounding)
    passed = None
    if judge == "raw":
        allowed = RAW_TOLERANCE * max(scale, 1e-30)
        passed = max_error <= allowed + ROUNDING_FACTOR * float(rounding.max(initial=0.0))
    elif judge == "pixels":
        passed = (
            mean_error <= MEAN_TOLERANCE + ROUNDING_FACTOR * float(rounding.mean())
            and quantile_error <= QUANTILE_TOLERANCE + ROUNDING_FACTOR * quantile_rounding
        )
    return Comparison(
        stage, max_error, mean_error, quantile_error, scale, quantile_rounding, passed
    )


def _differences(array: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns absolute differences in float64, infinite where they are not finite."""
    array, reference = (np.asarray(x, np.float64) for x in (array, reference))
    with np.errstate(invalid="ignore"):
        errors = np.abs(array - reference)
    return np.where(np.isfinite(errors), errors, np.inf)


def _quantile(errors: np.ndarray) -> float:
    return float(np.quantile(errors, QUANTILE, method="higher")) if errors.size else 0.0


def passes(rows: Sequence[Comparison]) -> bool:
    """Whether no judged stage differs."""
    return all(row.passed is not False for row in rows)


def format_rows(rows: Sequence[Comparison]) -> str:
    """Returns comparisons as a table."""
    titles = ("max error", "99.9 %", "mean", "max value", "rounding")
    lines = [f"{'stage':<24}{''.join(f'{title:>12}' for title in titles)}"]
    for row in rows:
        verdict = {None: "", True: "  same", False: "  DIFFERENT"}[row.passed]
        values = (row.max_error, row.quantile_error, row.mean_error, row.scale, row.rounding)
        lines.append(f"{row.stage:<24}{''.join(f'{v:>12.2e}' for v in values)}{verdict}")
    return "\n".join(lines)


def import_programs() -> Any:
    """Returns `torch_reference.programs`; InputError without PyTorch."""
    try:
        import jaxrf.convert.torch_reference.programs as programs
    except ImportError as error:
        raise InputError(
            "Checking weights needs PyTorch, which is not installed: pip install torch."
        ) from error
    return programs


def check_points(
    converted: Converted, content: Content, options: FormatOptions, num_points: int, double: bool
) -> list[Comparison]:
    """Compares raw outputs of each network at random points, stage by stage.

    In float32 the program's own rounding is measured at the first `NUM_EXACT_POINTS`. BitNeRFs are
    not judged there: where an activation lies between two of its 8-bit levels, rounding decides.

    Args:
      converted: the weights to check.
      content: of the file.
      options: of the conversion.
      num_points: in the scene's box.
      double: computes in float64 instead of float32.

    Raises:
      InputError: without PyTorch.
    """
    programs = import_programs()
    networks = programs.make_networks(converted.format, content, options, double)
    exact_networks = programs.make_networks(converted.format, content, options, True)
    is_judged = double or not converted.config.field.quantizes_activations()
    rows = []
    with jax.enable_x64(double):
        points, directions = _random_points(converted, num_points, double)
        for (name, outputs), network, exact_network in zip(
            _raw_outputs(converted, points, directions, double),
            networks,
            exact_networks,
            strict=True,
        ):
            references = programs.evaluate(network, points, directions)
            exact = {}
            if not double:
                first = (np.asarray(x[:NUM_EXACT_POINTS], np.float64) for x in (points, directions))
                exact = programs.evaluate(exact_network, *first)
            rows += _compare_outputs(converted, name, outputs, references, exact, is_judged)
    return rows


def _compare_outputs(
    converted: Converted,
    name: str,
    outputs: dict[str, np.ndarray],
    references: dict[str, np.ndarray],
    exact: dict[str, np.ndarray],
    is_judged: bool,
) -> list[Comparison]:
    """Compares the outputs of one network.

    Args:
      converted: the weights to check.
      name: of the network.
      outputs: of jaxrf.
      references: of the program.
      exact: of the program in float64 at the first points; empty to measure no rounding.
      is_judged: whether raw density and color are judged.
    """
    rows = []
    for stage in ("encoding", "trunk", "features", "density", "color"):
        if stage not in outputs:
            continue
        judge: Literal["raw"] | None = None
        if is_judged and stage in ("density", "color"):
            judge = "raw"
        reference, rounding = references[stage], None
        if stage in exact:
            rounding = _differences(reference[: len(exact[stage])], exact[stage])
        if stage == "encoding" and converted.encoding_order:
            reference = reference[:, list(converted.encoding_order)]
        rows.append(compare(f"{name} {stage}", outputs[stage], reference, judge, rounding))
    return rows


def _random_points(converted: Converted, count: int, double: bool) -> tuple[Array, Array]:
    """Returns positions in the scene's box, and unit directions."""
    _, grid = init_stage(converted, converted.config, DEFAULT_AABB)
    low, high = np.asarray(_cast(grid.aabb, double))
    position_key, direction_key = jax.random.split(jax.random.key(0))
    points = low[None] + (high - low)[None] * jax.random.uniform(position_key, (count, 3))
    directions = jax.random.normal(direction_key, (count, 3))
    return points, directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)


def _raw_outputs(
    converted: Converted, points: Array, directions: Array, double: bool
) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns (name, outputs by stage) of each network, the coarse one first."""
    stage, grid = init_stage(converted, converted.config, DEFAULT_AABB)
    evaluate, aabb = jax.jit(stage.field.debug_outputs), _cast(grid.aabb, double)
    named_outputs = []
    for name, field_params in _list_field_params(converted):
        params = _cast(field_params, double)
        chunks = [
            evaluate(
                params,
                points[start : start + POINTS_PER_CHUNK],
                directions[start : start + POINTS_PER_CHUNK],
                aabb,
            )
            for start in range(0, len(points), POINTS_PER_CHUNK)
        ]
        outputs = {
            part: np.concatenate([np.asarray(chunk[part]) for chunk in chunks])
            for part in chunks[0]
        }
        named_outputs.append((name, outputs))
    return named_outputs


def _list_field_params(converted: Converted) -> list[tuple[str, Any]]:
    """Returns (name, parameters) of each network, the coarse one first."""
    params = converted.params
    coarse = [] if params.coarse is None else [("coarse", params.coarse)]
    return [*coarse, ("fine" if coarse else "field", params.field)]


def default_camera(size: int) -> Cameras:
    """Returns a camera that looks at the origin from a distance as in NeRF-synthetic."""
    pose = look_at(np.array([2.4, 2.0, 2.5]), np.zeros(3))
    focal = 0.5 * size / math.tan(0.5 * 0.6911112070083618)
    return Cameras(
        T_world_camera=pose[None].astype(np.float32),
        focal=np.full((1, 2), focal, np.float32),
        principal_point=np.full((1, 2), 0.5 * size, np.float32),
        width=size,
        height=size,
    )


def check_images(
    converted: Converted, content: Content, options: FormatOptions, cameras: Cameras, double: bool
) -> list[Comparison]:
    """Compares the pixels of the first camera's image, and the weights of its samples.

    Weights are compared if all rays have the same number of samples. Depth is divided by `far`, so
    that it lies between 0 and 1 as color and opacity do. In float32 the program is rendered in
    float64 as well, from the same samples, to measure its own rounding. BitNeRFs are not judged
    there, as in `check_points`.

    Args:
      converted: the weights to check.
      content: of the file.
      options: of the conversion.
      cameras: pinhole cameras.
      double: computes in float64 instead of float32.

    Raises:
      InputError: without PyTorch.
    """
    programs = import_programs()
    with jax.enable_x64(double):
        image = _render(converted, cameras, double)
    near_far, edges = (converted.near, converted.far), image.get("edges")

    def render_original(in_float64: bool) -> dict[str, np.ndarray]:
        # In float64 it places fine samples itself; to measure its rounding they stay the same.
        return programs.render(
            converted.format,
            programs.make_networks(converted.format, content, options, in_float64),
            cameras,
            near_far,
            edges,
            options,
            double=in_float64,
            places_samples=double,
        )

    reference = render_original(double)
    exact = None if double else render_original(True)
    # Depth of jaxrf is normalized by opacity.
    image = image | {"depth": image["depth"] * image["opacity"]}
    judge: Literal["pixels"] | None = None
    if double or not converted.config.field.quantizes_activations():
        judge = "pixels"
    rows = []
    for stage, key, unit in (
        ("weights", "weights", 1.0),
        ("rgb", "rgb", 1.0),
        ("opacity", "opacity", 1.0),
        ("depth / far", "depth", converted.far),
    ):
        if key not in image:
            continue
        rounding = None if exact is None else _differences(reference[key], exact[key]) / unit
        rows.append(
            compare(
                stage,
                image[key] / unit,
                reference[key] / unit,
                None if key == "weights" else judge,
                rounding,
            )
        )
    return rows


def _cast(tree: Any, double: bool) -> Any:
    """Returns a tree with floats in one precision."""
    dtype = jnp.float64 if double else jnp.float32

    def cast(x: Any) -> Any:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def _render(converted: Converted, cameras: Cameras, double: bool) -> dict[str, np.ndarray]:
    """Returns rgb, opacity and depth of our image, (height, width, ...).

    With it, if all rays have the same number of samples, the weights of the last network's samples
    and the edges of their intervals, as distances along rays.
    """
    # Few samples at once, as the image is small.
    config = dataclasses.replace(converted.config, render_samples=1 << 14)
    if converted.format == instant_ngp.FORMAT:
        # Its rays stop earlier than ours, and stretch the light they have then; both go on here.
        convention = dataclasses.replace(config.ray_convention, transmittance_threshold=0.0)
        config = dataclasses.replace(config, ray_convention=convention)
    stage, grid = init_stage(converted, config, DEFAULT_AABB)
    params, grid, cameras = (_cast(tree, double) for tree in (converted.params, grid, cameras))
    near_far = (converted.near, converted.far)
    background = background_color(config).astype(np.float64 if double else np.float32)
    trained = TrainedField(config, stage, params, grid, near_far, background)
    if config.model.samples_per_ray() is not None:
        return _render_levels(config, trained, near_far, cameras)
    rendering = scoring.make_render_fn(trained, crop_to_occupied=False)(cameras, 0)
    return {"rgb": rendering.rgb, "opacity": rendering.opacity, "depth": rendering.depth}


def _render_levels(
    config: TrainConfig, trained: TrainedField, near_far: tuple[float, float], cameras: Cameras
) -> dict[str, np.ndarray]:
    """Returns rgb, opacity, depth, weights (height, width, n) and edges (height, width, n + 1).

    They are those of the last network, from one pass that also gives what images do not show.
    """
    grid, model = trained.grid, config.model
    cameras = apply_ray_convention(cameras, config.ray_convention)
    image_of_rays = jax.jit(image_rays)(cameras, jnp.asarray(0), *near_far)
    rays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), image_of_rays)
    assert isinstance(model, HierarchicalModel)

    @jax.jit
    def render_chunk(chunk: Rays) -> dict[str, Array]:
        background = jnp.broadcast_to(jnp.asarray(trained.background), (*chunk.near.shape, 3))
        level = model.render_levels(
            trained.stage, trained.params, grid, None, chunk, background, config.ray_convention
        )[-1]
        return {
            "rgb": level.rendering.rgb,
            "opacity": level.rendering.opacity,
            "depth": level.rendering.depth,
            "weights": level.weights,
            "edges": occupancy.s_to_t(grid, level.sdist, chunk.origins),
        }

    chunks = []
    for start in range(0, cameras.width * cameras.height, RAYS_PER_CHUNK):
        chunk = jax.tree.map(lambda x, start=start: x[start : start + RAYS_PER_CHUNK], rays)
        chunks.append(jax.device_get(render_chunk(chunk)))
    shape = (cameras.height, cameras.width)
    joined = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in joined.items()}

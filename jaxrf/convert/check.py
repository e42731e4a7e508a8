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
from jaxrf.convert.files.read import Content
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import Converted
from jaxrf.convert.to_run import DEFAULT_AABB, init_stage
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.evaluation import scoring
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.models.base import StageSpec
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.config import TrainConfig
from jaxrf.training.state import background_color

NUM_POINTS = 1 << 17
POINTS_PER_CHUNK, RAYS_PER_CHUNK = 8192, 1024
# Of raw outputs, relative to the largest value of their kind.
RAW_TOLERANCE = 1e-5
# Of pixels, absolute: of the mean error and of its 99.9th percentile.
MEAN_TOLERANCE, QUANTILE_TOLERANCE = 1e-5, 1e-4
QUANTILE = 0.999
# Above this frequency of encodings, images in float32 are not judged: float32 stores positions to
# 5e-7, which is then a large fraction of a period.
MAX_JUDGED_FREQUENCY = 1024.0


class Comparison(NamedTuple):
    """The difference between jaxrf and the program in one stage.

    stage: name of the arrays that were compared.
    max_error, mean_error, quantile_error: of absolute differences; the last is the 99.9th
      percentile.
    scale: the largest absolute value of the program.
    passed: None if the stage is not judged.
    """

    stage: str
    max_error: float
    mean_error: float
    quantile_error: float
    scale: float
    passed: bool | None


def compare(
    stage: str,
    array: np.ndarray,
    reference: np.ndarray,
    judge: Literal["raw", "pixels"] | None = None,
) -> Comparison:
    """Compares an array with that of the program.

    Args:
      stage: name of the arrays.
      array: of jaxrf.
      reference: of the program. Differences that are not finite count as infinite.
      judge: the tolerances to apply.
    """
    array, reference = (np.asarray(x, np.float64) for x in (array, reference))
    if array.shape != reference.shape:
        return Comparison(stage, math.inf, math.inf, math.inf, 0.0, False)
    with np.errstate(invalid="ignore"):
        errors = np.abs(array - reference)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    scale = float(np.abs(reference).max(initial=0.0))
    max_error, mean_error = float(errors.max(initial=0.0)), float(errors.mean())
    quantile_error = float(np.quantile(errors, QUANTILE, method="higher"))
    passed = None
    if judge == "raw":
        passed = max_error <= RAW_TOLERANCE * max(scale, 1e-30)
    elif judge == "pixels":
        passed = mean_error <= MEAN_TOLERANCE and quantile_error <= QUANTILE_TOLERANCE
    return Comparison(stage, max_error, mean_error, quantile_error, scale, passed)


def passes(rows: Sequence[Comparison]) -> bool:
    """Whether no judged stage differs."""
    return all(row.passed is not False for row in rows)


def format_rows(rows: Sequence[Comparison]) -> str:
    """Returns comparisons as a table."""
    lines = [f"{'stage':<24}{'max error':>12}{'99.9 %':>12}{'mean':>12}{'max value':>12}"]
    for row in rows:
        verdict = {None: "", True: "  same", False: "  DIFFERENT"}[row.passed]
        values = (row.max_error, row.quantile_error, row.mean_error, row.scale)
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

    BitNeRFs are not judged in float32: where an activation lies between two of its 8-bit levels,
    rounding decides.

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
    is_judged = double or not converted.config.field.quantizes_activations()
    rows = []
    with jax.enable_x64(double):
        points, directions = _random_points(converted, num_points, double)
        for (name, outputs), network in zip(
            _raw_outputs(converted, points, directions, double), networks, strict=True
        ):
            references = programs.evaluate(network, points, directions)
            if converted.encoding_order:
                encoding = references["encoding"]
                references["encoding"] = encoding[:, list(converted.encoding_order)]
            for stage in ("encoding", "trunk", "features", "density", "color"):
                if stage in outputs:
                    judge: Literal["raw"] | None = None
                    if is_judged and stage in ("density", "color"):
                        judge = "raw"
                    rows.append(
                        compare(f"{name} {stage}", outputs[stage], references[stage], judge)
                    )
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
    that it lies between 0 and 1 as color and opacity do.

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
    networks = programs.make_networks(converted.format, content, options, double)
    with jax.enable_x64(double):
        image = _render(converted, cameras, double)
    near_far = (converted.near, converted.far)
    reference = programs.render(
        converted.format, networks, cameras, near_far, image.get("edges"), options, double
    )
    judge: Literal["pixels"] | None = None
    if double or not _amplifies_rounding(converted):
        judge = "pixels"
    far = converted.far
    # Depth of jaxrf is normalized by opacity.
    depth = image["depth"] * image["opacity"] / far
    rows = [
        compare("rgb", image["rgb"], reference["rgb"], judge),
        compare("opacity", image["opacity"], reference["opacity"], judge),
        compare("depth / far", depth, reference["depth"] / far, judge),
    ]
    if "weights" in image:
        rows.insert(0, compare("weights", image["weights"], reference["weights"]))
    return rows


def _amplifies_rounding(converted: Converted) -> bool:
    """Whether rounding shows in a float32 image: high frequencies, or 8-bit activations."""
    field = converted.config.field
    return field.quantizes_activations() or field.max_frequency() > MAX_JUDGED_FREQUENCY


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
    stage, grid = init_stage(converted, config, DEFAULT_AABB)
    params, grid, cameras = (_cast(tree, double) for tree in (converted.params, grid, cameras))
    near_far = (converted.near, converted.far)
    background = background_color(config).astype(np.float64 if double else np.float32)
    render = scoring.make_render_fn(TrainedField(config, stage, params, grid, near_far, background))
    rendering = render(cameras, 0)
    image = {"rgb": rendering.rgb, "opacity": rendering.opacity, "depth": rendering.depth}
    if config.model.samples_per_ray() is None:
        return image
    weights, edges = _sample_weights(config, stage, params, grid, cameras, near_far)
    return image | {"weights": weights, "edges": edges}


def _sample_weights(
    config: TrainConfig,
    stage: StageSpec,
    params: Any,
    grid: OccupancyGrid,
    cameras: Cameras,
    near_far: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights (height, width, n) and edges (height, width, n + 1) of the last network."""
    cameras = apply_ray_convention(cameras, config.ray_convention)
    image_of_rays = jax.jit(image_rays)(cameras, jnp.asarray(0), *near_far)
    rays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), image_of_rays)
    dtype, model = jnp.asarray(grid.aabb).dtype, config.model
    assert isinstance(model, HierarchicalModel)

    @jax.jit
    def render_chunk(chunk: Rays) -> tuple[Array, Array]:
        background = jnp.zeros((*chunk.near.shape, 3), dtype)
        levels = model.render_levels(
            stage, params, grid, None, chunk, background, config.ray_convention
        )
        distances = occupancy.s_to_t(grid, levels[-1].sdist, chunk.origins)
        return levels[-1].weights, distances

    chunks = []
    for start in range(0, cameras.width * cameras.height, RAYS_PER_CHUNK):
        chunk = jax.tree.map(lambda x, start=start: x[start : start + RAYS_PER_CHUNK], rays)
        chunks.append(jax.device_get(render_chunk(chunk)))
    shape = (cameras.height, cameras.width, -1)
    weights, edges = (np.concatenate(parts).reshape(shape) for parts in zip(*chunks, strict=True))
    return weights, edges

"""The networks of a model as callables for the renderer: a field with its parameters closed over.

Letters in shapes: r rays, m samples.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrf.cameras import contraction
from jaxrf.core import rngs
from jaxrf.core.rays import ConicalFrusta, Multisamples, multisample_cones
from jaxrf.fields.base import Field, FieldContext, Params
from jaxrf.models.base import Appearance, Model, ModelParams
from jaxrf.rendering.volume import RadianceFns
from jaxrf.sampling.occupancy import OccupancyGrid, contract_positions, lookup

# Share of a box's size within which a point counts as on its border, whatever rounding says.
AABB_EPS = 3e-6

# The offset that is added to features of samples seen from cameras.
AppearanceFn = Callable[[Int[Array, "m"]], Float[Array, "_ k"]]


def close_over_params(
    field: Field,
    params: Params,
    grid: OccupancyGrid,
    noise: Float[Array, "m"] | None = None,
    appearance_fn: AppearanceFn | None = None,
    chunks: int = 1,
) -> RadianceFns:
    """A field with its parameters as callables for the renderer.

    With a grid of contracted space the field is one of that space, though its density is one per
    length in the scene.

    Args:
      field: with the shapes of the stage.
      params: of one network.
      grid: gives the box, and cells to fields that use them.
      noise: standard normal numbers for the samples that densities are asked for at.
      appearance_fn: gives the offset of features by the camera that they are seen from.
      chunks: in which samples are computed (`checkpoint_in_chunks`).
    """

    def density(positions: Array, frusta: ConicalFrusta, noise: Array | None) -> tuple[Array, Any]:
        count = field.multisamples_per_sample()
        points = multisample_cones(positions, frusta, count) if count > 1 else None
        if grid.bounds is None:
            context = FieldContext(frusta.radii, grid.aabb, frusta, grid, noise, points)
            return field.density(params, positions, context)
        # Bent cones have no simple form: there a sample is as long as it is wide.
        space = grid.bounds, grid.contraction_norm
        radii = contraction.contract_radii(frusta.radii, positions, *space)
        if points is not None:
            stds = contraction.contract_radii(points.stds, points.positions, *space)
            points = Multisamples(contraction.contract(points.positions, *space), stds)
        positions = contraction.contract(positions, *space)
        context = FieldContext(radii, grid.aabb, None, grid, noise, points)
        return field.density(params, positions, context)

    def color(features: Array, directions: Array, camera_index: Array) -> Array:
        if appearance_fn is not None:
            offset = appearance_fn(camera_index)
            features = features.astype(offset.dtype).at[:, : offset.shape[-1]].add(offset)
        return field.color(params, features, directions)

    def features(latent: Any) -> Array:
        return field.features(params, latent)

    chunked_density = checkpoint_in_chunks(density, chunks)
    return RadianceFns(
        lambda positions, frusta: chunked_density(positions, frusta, noise),
        checkpoint_in_chunks(features, chunks),
        checkpoint_in_chunks(color, chunks),
    )


def checkpoint_in_chunks(fn: Callable[..., Any], chunks: int) -> Callable[..., Any]:
    """A function of arrays that begin with samples, computed in chunks, and again for a gradient.

    Intermediate results are not stored for the gradient but computed again, a chunk at a time
    (Chen et al. 2016, "Training deep nets with sublinear memory cost"). With one chunk it is the
    function itself.
    """
    return fn if chunks == 1 else partial(_apply_in_chunks, fn, chunks)


def _apply_in_chunks(fn: Callable[..., Any], chunks: int, *arguments: Any) -> Any:
    count = jax.tree.leaves(arguments)[0].shape[0]
    chunked = jax.tree.map(partial(_split_samples, chunks), arguments)
    results = jax.lax.map(jax.checkpoint(lambda chunk: fn(*chunk)), chunked)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)


def _split_samples(chunks: int, x: Array) -> Array:
    """Reshapes an array from (m, ...) to (chunks, m / chunks, ...), padded by its last sample."""
    size = -(-x.shape[0] // chunks)
    padding = ((0, chunks * size - x.shape[0]), *((0, 0),) * (x.ndim - 1))
    return jnp.pad(x, padding, mode="edge").reshape(chunks, size, *x.shape[1:])


def make_appearance_fn(appearance: Appearance | None, mean: bool) -> AppearanceFn | None:
    """The offset that images add to features: each its own, or the mean of all; None if none.

    A linear map of a code for each image (Martin-Brualla et al. 2021, section 4.1, whose network
    takes the code itself).
    """
    if appearance is None:
        return None
    codes, matrix = appearance
    if mean:
        average = jnp.mean(codes, axis=0, keepdims=True) @ matrix
        return lambda camera_index: average
    return lambda camera_index: codes[camera_index] @ matrix


def bind_network(
    model: Model,
    field: Field,
    network: Params,
    params: ModelParams,
    grid: OccupancyGrid,
    *,
    trains: bool,
    noise: Float[Array, "m"] | None = None,
    crop_aabb: Float[Array, "2 3"] | None = None,
) -> RadianceFns:
    """One of a model's networks for the renderer, with each image's appearance, or with their mean.

    Density outside of `crop_aabb` is left out.
    """
    appearance_fn = make_appearance_fn(params.appearance, mean=not trains)
    chunks = model.checkpoint_chunks if trains else 1
    fns = close_over_params(field, network, grid, noise, appearance_fn, chunks)
    return mask_outside_aabb(fns, crop_aabb)


def mask_outside_aabb(fns: RadianceFns, aabb: Float[Array, "2 3"] | None) -> RadianceFns:
    """A field without its density outside of a box in the scene; None leaves it as it is."""
    if aabb is None:
        return fns

    def density(positions: Array, frusta: ConicalFrusta) -> tuple[Array, Any]:
        unmasked, latent = fns.density(positions, frusta)
        return jnp.where(in_aabb(positions, aabb), unmasked, 0.0), latent

    return fns._replace(density=density)


def clamp_to_aabb(
    positions: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"], depth: float = 0.0
) -> Float[Array, "*batch 3"]:
    """Moves positions that rounding may have put just outside of a box onto its border.

    Or inside it, by a share `depth` of the box's size. Other positions stay as they are.
    """
    low, high = (side.reshape((1,) * (positions.ndim - 1) + (3,)) for side in aabb)
    margin = AABB_EPS * (high - low)
    close = jnp.all((positions >= low - margin) & (positions <= high + margin), axis=-1)
    inwards = depth * (high - low)
    clamped = jnp.clip(positions, low + inwards, high - inwards)
    return jnp.where(close[..., None], clamped, positions)


def in_aabb(
    positions: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> Bool[Array, "*batch"]:
    """Whether positions are in a box, its border included."""
    low, high = (side.reshape((1,) * (positions.ndim - 1) + (3,)) for side in aabb)
    return jnp.all((positions >= low) & (positions <= high), axis=-1)


def draw_noise(
    field: Field, key: jax.Array | None, rays: int, samples: int
) -> Float[Array, "m"] | None:
    """Standard normal numbers for the samples of rays, if the field wants any."""
    if key is None or not field.noise_std():
        return None
    # The same key serves to place samples.
    return rngs.normal(rngs.fold_in(key, 1), (rays, samples)).ravel()


def make_density_fn(
    field: Field, params: ModelParams, grid: OccupancyGrid, radius: Float[Array, ""] | float
) -> Callable[[Float[Array, "m 3"]], Float[Array, "m"]]:
    """Density per scene unit at positions in the scene, 0 where the grid is not occupied.

    A position stands for the part of a cone of this radius that is about as long as wide.
    """
    fns = close_over_params(field, params.field, grid)

    def density(positions: Array) -> Array:
        one = jnp.ones_like(positions[:, 0])
        upwards = jnp.broadcast_to(jnp.array([[0.0, 0.0, 1.0]], positions.dtype), positions.shape)
        frusta = ConicalFrusta(upwards, radius * one, one - radius, one + radius)
        unmasked, _ = fns.density(positions, frusta)
        return jnp.where(lookup(grid, contract_positions(grid, positions)), unmasked, 0.0)

    return density

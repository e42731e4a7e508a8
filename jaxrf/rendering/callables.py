"""Rendering of two plain functions, a density and a color, without a field or a model."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrf.core.rays import ConicalFrusta, Rays
from jaxrf.rendering import packed
from jaxrf.rendering.packed import PackedRendering
from jaxrf.rendering.volume import RadianceFns
from jaxrf.sampling.packed import PackedSamples


def render_packed(
    density_fn: Callable[[Float[Array, "m 3"]], tuple[Float[Array, "m"], Any]],
    color_fn: Callable[[Any, Float[Array, "m 3"]], Float[Array, "m 3"]],
    rays: Rays,
    samples: PackedSamples,
    background: Float[Array, "r 3"],
) -> PackedRendering:
    """Renders rays from packed samples by emission and absorption; differentiable.

    w_i = T_i (1 - exp(-density_i delta_i)), rgb = sum w_i color_i + (1 - sum w_i) background (Max
    1995).

    Args:
      density_fn: positions (m, 3) -> density (m,) per scene unit, and a latent that begins with m.
      color_fn: (latent, unit directions (m, 3)) -> rgb (m, 3) in [0, 1].
      rays: batch shape (r,).
      samples: along them, such as of `OccupancyGrid.march`.
      background: (r, 3) colors.

    Examples:
      >>> import jax, numpy as np, jaxrf
      >>> rays = jaxrf.Rays.create([0.0, 0.0, 4.0], [[0.0, 0.0, -1.0]], near=2.0, far=6.0)
      >>> grid = jaxrf.OccupancyGrid.create(np.array([[-1.0] * 3, [1.0] * 3]), resolution=8)
      >>> samples = grid.march(rays, step_size=0.1)
      >>> fog = render_packed(
      ...     lambda positions: (0.5 + 0.0 * positions[:, 0], positions),
      ...     lambda latent, directions: 0.0 * latent,
      ...     rays, samples, jax.numpy.ones((1, 3)),
      ... )
      >>> print(f"{float(fog.opacity[0]):.3f}")
      0.632
    """

    def density(positions: Array, frusta: ConicalFrusta) -> tuple[Array, Any]:
        del frusta
        return density_fn(positions)

    def color(features: Array, directions: Array, camera_index: Int[Array, "m"]) -> Array:
        del camera_index
        return color_fn(features, directions)

    fns = RadianceFns(density, lambda latent: latent, color)
    return packed.render_packed_samples(fns, rays, samples, jnp.asarray(background))

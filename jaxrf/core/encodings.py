"""Encodings of positions and directions."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core.rays import ConicalFrusta


def fourier(
    x: Float[Array, "*batch d"],
    num_frequencies: int,
    include_input: bool = True,
    frequency: float = 1.0,
) -> Float[Array, "*batch e"]:
    """Sines and cosines of a vector at doubling frequencies (NeRF, eq. 4).

    Args:
      x: vectors of d coordinates.
      num_frequencies: number of frequencies; with 0 the result is x, or empty.
      include_input: whether x comes first.
      frequency: lowest frequency f; pi in the paper, 1 in its code.

    Returns:
      [x,] sin(2^0 f x), cos(2^0 f x), sin(2^1 f x), cos(2^1 f x), ..., each over all d coordinates:
      d (2 num_frequencies [+ 1]) numbers.
    """
    parts = [x] if include_input else []
    for exponent in range(num_frequencies):
        scaled = x * (frequency * 2.0**exponent)
        parts += [jnp.sin(scaled), jnp.cos(scaled)]
    return jnp.concatenate(parts, axis=-1) if parts else x[..., :0]


def integrated_fourier(
    x: Float[Array, "*batch d"], variance: Float[Array, "*batch d"], num_frequencies: int
) -> Float[Array, "*batch e"]:
    """Expectation of `fourier`, without the input, over a Gaussian (Mip-NeRF, eq. 14).

    E[sin(2^l x)] = sin(2^l x) exp(-4^l variance / 2), likewise for cosines: frequencies that are
    finer than the Gaussian fade out.

    Args:
      x: mean.
      variance: along each coordinate.
      num_frequencies: number of frequencies, 2^0 to 2^(num_frequencies - 1).
    """
    if num_frequencies == 0:
        return x[..., :0]
    fades = [jnp.exp(-0.5 * 4.0**exponent * variance) for exponent in range(num_frequencies)]
    # Each frequency has a sine and a cosine.
    repeated = jnp.concatenate([f for fade in fades for f in (fade, fade)], axis=-1)
    return fourier(x, num_frequencies, include_input=False) * repeated


def conical_frustum_to_gaussian(
    middles: Float[Array, "m 3"], frusta: ConicalFrusta
) -> tuple[Float[Array, "m 3"], Float[Array, "m 3"]]:
    """Mean of the points in conical frusta, and their variance along each coordinate.

    Mip-NeRF, eq. 7 and 8, and the diagonal of eq. 16.

    Args:
      middles: points of the cones' axes halfway between the ends of the frusta.
      frusta: the frusta.
    """
    middle, half = 0.5 * (frusta.starts + frusta.ends), 0.5 * (frusta.ends - frusta.starts)
    squared, half_squared = jnp.square(middle), jnp.square(half)
    # Gradients divide by the square of the denominator, which has to be a normal float32 too.
    denominator = jnp.maximum(3.0 * squared + half_squared, 1e-15)
    shift = 2.0 * middle * half_squared / denominator
    # With ratios instead of fourth powers, nothing leaves the range of float32.
    ratio = half_squared / denominator
    along = half_squared / 3.0 - 4.0 / 15.0 * ratio * ratio * (12.0 * squared - half_squared)
    across = squared / 4.0 + 5.0 / 12.0 * half_squared - 4.0 / 15.0 * ratio * half_squared
    across = jnp.square(frusta.base_radii) * across
    axes = jnp.square(frusta.directions)
    variance = along[:, None] * axes + across[:, None] * (1.0 - axes)
    return middles + shift[:, None] * frusta.directions, jnp.maximum(variance, 0.0)


def spherical_harmonics(
    directions: Float[Array, "*batch 3"], degree: int
) -> Float[Array, "*batch k"]:
    """Real spherical harmonics of bands 0 to degree - 1 at unit directions: degree^2 numbers.

    Orthonormal over the sphere, with the Condon-Shortley phase, in the order (l, m) = (0, 0),
    (1, -1), (1, 0), (1, 1), (2, -2), ...

    Args:
      directions: of unit length.
      degree: number of bands, 1 to 4.
    """
    assert 1 <= degree <= 4
    x, y, z = (directions[..., axis] for axis in range(3))
    xx, yy, zz = x * x, y * y, z * z
    pi = math.pi
    bands = [
        [jnp.full_like(x, 0.5 * math.sqrt(1 / pi))],
        [math.sqrt(3 / (4 * pi)) * v for v in (-y, z, -x)],
        [
            0.5 * math.sqrt(15 / pi) * x * y,
            -0.5 * math.sqrt(15 / pi) * y * z,
            0.25 * math.sqrt(5 / pi) * (3.0 * zz - 1.0),
            -0.5 * math.sqrt(15 / pi) * x * z,
            0.25 * math.sqrt(15 / pi) * (xx - yy),
        ],
        [
            -0.25 * math.sqrt(35 / (2 * pi)) * y * (3.0 * xx - yy),
            0.5 * math.sqrt(105 / pi) * x * y * z,
            -0.25 * math.sqrt(21 / (2 * pi)) * y * (5.0 * zz - 1.0),
            0.25 * math.sqrt(7 / pi) * z * (5.0 * zz - 3.0),
            -0.25 * math.sqrt(21 / (2 * pi)) * x * (5.0 * zz - 1.0),
            0.25 * math.sqrt(105 / pi) * z * (xx - yy),
            -0.25 * math.sqrt(35 / (2 * pi)) * x * (xx - 3.0 * yy),
        ],
    ]
    return jnp.stack([value for band in bands[:degree] for value in band], axis=-1)

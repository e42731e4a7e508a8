"""Encodings of positions and directions."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core.rays import ConicalFrusta


def fourier(
    x: Float[Array, "*batch d"],
    octaves: int,
    include_input: bool = True,
    frequency: float = 1.0,
) -> Float[Array, "*batch e"]:
    """Sines and cosines of a vector at doubling frequencies (NeRF, eq. 4).

    [x,] sin(2^0 f x), cos(2^0 f x), sin(2^1 f x), cos(2^1 f x), ..., each over all d coordinates:
    d (2 octaves [+ 1]) numbers. With no octaves it is x, or nothing. The lowest frequency f is pi
    in the paper, and 1 in its code.
    """
    parts = [x] if include_input else []
    for octave in range(octaves):
        scaled = x * (frequency * 2.0**octave)
        parts += [jnp.sin(scaled), jnp.cos(scaled)]
    return jnp.concatenate(parts, axis=-1) if parts else x[..., :0]


def integrated_fourier(
    x: Float[Array, "*batch d"], variance: Float[Array, "*batch d"], octaves: int
) -> Float[Array, "*batch e"]:
    """The expectation of `fourier`, without the input, over a Gaussian (Mip-NeRF, eq. 14).

    E[sin(2^l x)] = sin(2^l x) exp(-4^l variance / 2), likewise for cosines: what is finer than the
    Gaussian fades out.

    Args:
      x: mean.
      variance: along each coordinate.
      octaves: frequencies 2^0 to 2^(octaves - 1).
    """
    if octaves == 0:
        return x[..., :0]
    faded = [jnp.exp(-0.5 * 4.0**octave * variance) for octave in range(octaves)]
    # A sine and a cosine of each.
    twice = jnp.concatenate([f for fade in faded for f in (fade, fade)], axis=-1)
    return fourier(x, octaves, include_input=False) * twice


def conical_frustum_to_gaussian(
    middles: Float[Array, "m 3"], frusta: ConicalFrusta
) -> tuple[Float[Array, "m 3"], Float[Array, "m 3"]]:
    """Mean of the points in parts of cones, and their variance along each coordinate.

    Mip-NeRF, eq. 7 and 8, and the diagonal of eq. 16.

    Args:
      middles: points of the axes halfway through the parts.
      frusta: the parts.
    """
    middle, half = 0.5 * (frusta.starts + frusta.ends), 0.5 * (frusta.ends - frusta.starts)
    squared, half_squared = jnp.square(middle), jnp.square(half)
    # Its square, by which gradients divide, has to be a float32 too.
    whole = jnp.maximum(3.0 * squared + half_squared, 1e-15)
    shift = 2.0 * middle * half_squared / whole
    # Shares of the whole, lest fourth powers leave the range of float32.
    share = half_squared / whole
    along = half_squared / 3.0 - 4.0 / 15.0 * share * share * (12.0 * squared - half_squared)
    across = squared / 4.0 + 5.0 / 12.0 * half_squared - 4.0 / 15.0 * share * half_squared
    across = jnp.square(frusta.slopes) * across
    axes = jnp.square(frusta.directions)
    variance = along[:, None] * axes + across[:, None] * (1.0 - axes)
    return middles + shift[:, None] * frusta.directions, jnp.maximum(variance, 0.0)


def spherical_harmonics(
    directions: Float[Array, "*batch 3"], degree: int
) -> Float[Array, "*batch k"]:
    """The degree^2 real spherical harmonics of bands 0 to degree - 1 at unit directions.

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

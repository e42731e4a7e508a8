"""Encodings of positions and directions."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def fourier(
    x: Float[Array, "*batch d"], octaves: int, include_input: bool = True
) -> Float[Array, "*batch e"]:
    """Sines and cosines of a vector at doubling frequencies (NeRF, eq. 4, without the factor pi).

    [x,] sin(2^0 x), cos(2^0 x), sin(2^1 x), cos(2^1 x), ..., each over all d coordinates:
    d (2 octaves [+ 1]) numbers. With no octaves it is x, or nothing.
    """
    parts = [x] if include_input else []
    for octave in range(octaves):
        scaled = x * 2.0**octave
        parts += [jnp.sin(scaled), jnp.cos(scaled)]
    return jnp.concatenate(parts, axis=-1) if parts else x[..., :0]

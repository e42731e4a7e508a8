"""Interpolation in grids: lines and planes of feature rows, with corners on the box's faces.

Tables are row-major, a row being the features of one grid point, so that a look-up reads
contiguous memory.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def _split(coordinates: Float[Array, "m"], size: int) -> tuple[Int[Array, "m"], Float[Array, "m"]]:
    """Cell and fraction of coordinates in [0, 1], which are clamped to it (align_corners)."""
    scaled = jnp.clip(coordinates, 0.0, 1.0) * (size - 1)
    cell = jnp.clip(jnp.floor(scaled).astype(jnp.int32), 0, max(size - 2, 0))
    return cell, scaled - cell


def sample_line(
    line: Float[Array, "size c"], coordinates: Float[Array, "m"]
) -> Float[Array, "m c"]:
    """Linear interpolation of a line of rows at coordinates in [0, 1]; 0 and 1 are its end rows."""
    size = line.shape[0]
    cell, fraction = _split(coordinates, size)
    upper = jnp.minimum(cell + 1, size - 1)
    return line[cell] * (1.0 - fraction)[:, None] + line[upper] * fraction[:, None]


def sample_plane(
    plane: Float[Array, "height width c"],
    across: Float[Array, "m"],
    down: Float[Array, "m"],
) -> Float[Array, "m c"]:
    """Bilinear interpolation of a plane of rows.

    Args:
      plane: (height, width, c).
      across: (m,) coordinate in [0, 1] along the width.
      down: (m,) coordinate in [0, 1] along the height.
    """
    height, width, channels = plane.shape
    rows = plane.reshape(height * width, channels)
    x, fx = _split(across, width)
    y, fy = _split(down, height)
    right = jnp.minimum(x + 1, width - 1)
    top = y * width
    bottom = jnp.minimum(y + 1, height - 1) * width
    # One gather per corner: stacking the corners' indices into one gather is several times slower.
    upper = (
        rows[top + x] * ((1 - fx) * (1 - fy))[:, None]
        + rows[top + right] * (fx * (1 - fy))[:, None]
    )
    lower = rows[bottom + x] * ((1 - fx) * fy)[:, None] + rows[bottom + right] * (fx * fy)[:, None]
    return upper + lower


def resample_line(
    line: Float[Array, "size c"], size: int, start: float, stop: float
) -> Float[Array, "new_size c"]:
    """A line with `size` rows that spans [start, stop] of the old one's [0, 1]."""
    return sample_line(line, jnp.linspace(start, stop, size))


def resample_plane(
    plane: Float[Array, "height width c"],
    size: tuple[int, int],
    start: tuple[float, float],
    stop: tuple[float, float],
) -> Float[Array, "new_height new_width c"]:
    """A plane of `size` (height, width) that spans [start, stop] (down, across) of the old one."""
    down, across = jnp.meshgrid(
        jnp.linspace(start[0], stop[0], size[0]),
        jnp.linspace(start[1], stop[1], size[1]),
        indexing="ij",
    )
    return sample_plane(plane, across.ravel(), down.ravel()).reshape(*size, plane.shape[-1])

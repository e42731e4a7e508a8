"""The Fourier encoding against a loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.encodings import fourier

encode = jax.jit(fourier, static_argnames=("octaves", "include_input"))


def fourier_slowly(x: np.ndarray, octaves: int, include_input: bool) -> list[float]:
    """The sines of all coordinates, then their cosines, octave by octave."""
    out = [float(v) for v in x] if include_input else []
    for octave in range(octaves):
        for wave in (math.sin, math.cos):
            for v in x:
                out.append(wave(float(v) * 2**octave))
    return out


@pytest.mark.parametrize("include_input", [False, True])
@pytest.mark.parametrize("octaves", [0, 1, 4])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_encoding_equals_loop_for_any_batch_shape(
    batch: tuple[int, ...], octaves: int, include_input: bool
) -> None:
    x = np.random.default_rng(0).uniform(-2, 2, (*batch, 3)).astype(np.float32)
    encoded = encode(jnp.asarray(x), octaves=octaves, include_input=include_input)
    assert encoded.shape == (*batch, 3 * (2 * octaves + include_input))
    for index in np.ndindex(batch):
        expected = fourier_slowly(x[index], octaves, include_input)
        np.testing.assert_allclose(encoded[index], expected, atol=1e-5)


def test_encodings_of_positions_and_directions_have_the_paper_s_sizes() -> None:
    assert encode(jnp.zeros(3), octaves=10).shape == (63,)
    assert encode(jnp.zeros(3), octaves=4).shape == (27,)


def test_gradient_is_the_derivative_of_the_waves() -> None:
    x = jnp.asarray([0.0, 0.5, 1e3])
    jacobian = jax.jacobian(lambda x: fourier(x, 3, include_input=False))(x)
    assert np.all(np.isfinite(jacobian))
    for octave in range(3):
        frequency = 2.0**octave
        rows = jacobian[6 * octave : 6 * octave + 6]
        np.testing.assert_allclose(
            rows[:3], np.diag(frequency * np.cos(frequency * np.asarray(x))), atol=1e-4
        )
        np.testing.assert_allclose(
            rows[3:], np.diag(-frequency * np.sin(frequency * np.asarray(x))), atol=1e-4
        )

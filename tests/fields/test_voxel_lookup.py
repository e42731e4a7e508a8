"""Look-ups in the table of voxels: the kernel against JAX, in values and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core.kernels import calls
from jaxrf.fields import voxel_grid, voxel_lookup
from jaxrf.fields.voxel_lookup import look_up, look_up_with_xla

BOX = np.array([[-1.0, 0.5, 2.0], [2.0, 3.5, 5.0]], np.float32)


def make_case(channels: int, count: int = 400) -> tuple[Any, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    occupied = rng.random((10, 10, 10)) < 0.3
    grid = voxel_grid.pad_grid(voxel_grid.index_cells(occupied, BOX, 2.0), 700)
    rows = voxel_grid.count_rows(grid) + 5
    table = jnp.asarray(rng.normal(size=(rows, channels)), jnp.float32)
    positions = rng.uniform(BOX[0] - 0.3, BOX[1] + 0.3, (count, 3))
    return grid, table, jnp.asarray(positions, jnp.float32)


def weigh(found: Any, upstream: jax.Array) -> jax.Array:
    """A number of what was found in cells."""
    inside = found.cells > 0
    others = jnp.where(inside[:, None], found.others, 0.0)
    return jnp.sum(jnp.where(inside, found.first, 0.0) * upstream[:, 0]) + jnp.sum(
        jnp.square(others) * upstream[:, 1:]
    )


@pytest.mark.parametrize("channels", [5, 8, 16])
def test_look_up_equals_jax_in_values_and_gradients(channels: int) -> None:
    grid, table, positions = make_case(channels)
    upstream = jnp.asarray(np.random.default_rng(1).normal(size=(len(positions), channels)))
    upstream = upstream.astype(jnp.float32)

    def total(look: Any, table: Any, positions: Any) -> Any:
        return weigh(look(grid, table, positions), upstream)

    found, expected = (f(grid, table, positions) for f in (look_up, look_up_with_xla))
    np.testing.assert_array_equal(found.cells, expected.cells)
    inside = np.asarray(found.cells) > 0
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_allclose(found.first[inside], expected.first[inside], atol=1e-5)
    np.testing.assert_allclose(found.others[inside], expected.others[inside], atol=1e-5)
    for argument in (1, 2):
        fast, slow = (
            jax.jit(jax.grad(total, argument), static_argnums=0)(look, table, positions)
            for look in (look_up, look_up_with_xla)
        )
        assert np.any(fast)
        np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-3)


def test_look_up_of_only_the_density_has_a_gradient() -> None:
    grid, table, positions = make_case(8)
    gradients = [
        jax.grad(lambda t, f=f: jnp.sum(jnp.where((x := f(grid, t, positions)).cells, x.first, 0)))(
            table
        )
        for f in (look_up, look_up_with_xla)
    ]
    np.testing.assert_allclose(*gradients, atol=1e-5)


def test_look_up_takes_kernels_only_for_rows_that_they_can_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []

    def note(*arguments: Any) -> Any:
        called.append(arguments)
        return look_up_with_xla(*arguments)

    monkeypatch.setattr(voxel_lookup, "_look_up", note)
    for channels, switch, expected in ((8, "on", 1), (9, "on", 0), (8, "off", 0)):
        monkeypatch.setenv(calls.SWITCH, switch)
        called.clear()
        look_up(*make_case(channels, 3))
        assert len(called) == (expected if calls._has_numba() else 0)


def test_slots_are_ids_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, _, positions = make_case(8)
    expected, _ = voxel_grid.find_cells(grid, positions)
    for switch in ("on", "off"):
        monkeypatch.setenv(calls.SWITCH, switch)
        np.testing.assert_array_equal(grid.slots_of(positions), expected)

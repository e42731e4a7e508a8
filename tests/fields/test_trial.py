"""Values that a user's field must not have are found before training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core.errors import InputError
from jaxrf.fields.base import Field
from jaxrf.fields.trial import check_values, find_extremes
from jaxrf.sampling.occupancy import make_full_grid

AABB = jnp.array([[-1.0, -2.0, 1.0], [1.0, 2.0, 3.0]])


@dataclasses.dataclass(frozen=True)
class Linear(Field):
    """Density and color are the position along x, in [0, 1], times a factor, plus a number."""

    density_scale: float = 1.0
    density_shift: float = 0.0
    color_scale: float = 1.0
    color_shift: float = 0.0

    def init(self, key: jax.Array) -> Any:
        return {"zero": jnp.zeros(())}

    def density(self, params: Any, positions: Any, context: Any) -> Any:
        low, high = context.aabb[:1], context.aabb[1:]
        unit = (positions - low) / (high - low)
        density = self.density_scale * unit[:, 0] + self.density_shift + params["zero"]
        return density, unit

    def color(self, params: Any, features: Any, directions: Any) -> Any:
        return self.color_scale * features + self.color_shift


def check(field: Field, bounds: Any = None) -> None:
    grid = make_full_grid((2, 2, 2), AABB, bounds)
    check_values(field, field.init(jax.random.key(0)), grid)


@pytest.mark.parametrize(
    "field", [Linear(), Linear(density_shift=1e3), Linear(color_scale=-1.0, color_shift=1.0)]
)
def test_values_at_the_borders_are_accepted(field: Field) -> None:
    check(field)


def test_extremes_are_those_of_the_positions_in_the_box() -> None:
    field = Linear(density_scale=3.0, color_scale=0.5)
    grid, unit = make_full_grid((2, 2, 2), AABB), np.linspace([0.2] * 3, [0.8] * 3, 5)
    unit = unit.astype(np.float32)
    found = find_extremes(field, field.init(jax.random.key(0)), grid, unit, unit)
    extremes = [found.min_density, found.max_density, found.min_color, found.max_color]
    np.testing.assert_allclose(extremes, [0.6, 2.4, 0.1, 0.4], rtol=1e-5)
    assert found.bad_densities == found.bad_colors == 0


class Poles(Linear):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        _, latent = super().density(params, positions, context)
        return 1.0 / jnp.where(positions[:, 0] > 0, 0.0, 1.0), latent


class LogColor(Linear):
    def color(self, params: Any, features: Any, directions: Any) -> Any:
        return jax.nn.sigmoid(jnp.log(features - 0.5))


class Unset(Linear):
    def init(self, key: jax.Array) -> Any:
        return {"zero": jnp.full((), jnp.nan)}


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (Linear(density_shift=-0.01), r"Linear.density is as low as -0\.0\d+ among 1024 random"),
        (Linear(density_scale=-50.0), r"Linear.density is as low as -(50|49\..) .*softplus"),
        (Poles(), r"Poles.density is not finite at \d+ of 1024 random positions in the box, at"),
        (Unset(), r"Unset.density is not finite at 1024 of 1024 .* check what init returns"),
        (LogColor(), r"LogColor.color is not finite at \d+ of 1024 random positions"),
        (Linear(color_scale=2.0), r"Linear.color is between .* and (2|1\.99) .*: return .*sigmoid"),
        (Linear(color_shift=-0.1), r"Linear.color is between -0\.0\d+ and 0\.9 among"),
    ],
)
def test_values_that_cannot_be_rendered_are_refused(field: Field, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(field)


def test_frusta_are_given_unless_space_is_contracted() -> None:
    seen: list[bool] = []

    class Asking(Linear):
        def density(self, params: Any, positions: Any, context: Any) -> Any:
            seen.append(context.frusta is not None and context.noise is None)
            return super().density(params, positions, context)

    check(Asking())
    check(Asking(), bounds=AABB)
    assert seen == [True, False]

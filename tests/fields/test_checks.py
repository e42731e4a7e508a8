"""Mistakes in a user's field are refused before training, with one sentence that names them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core.errors import InputError
from jaxrf.fields.base import Field
from jaxrf.fields.checks import broadcast_groups, check_definition, check_functions
from jaxrf.sampling.occupancy import make_full_grid

AABB = np.array([[-1.0] * 3, [1.0] * 3], np.float32)


@dataclasses.dataclass(frozen=True)
class Fog(Field):
    """A fog of one color; what its functions return can be changed."""

    channels: int = 3

    def init(self, key: jax.Array) -> Any:
        return {"raw": jnp.zeros(()), "layers": [{"w": jnp.zeros((3, self.channels))}]}

    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return jax.nn.softplus(params["raw"] + positions[:, 0]), positions

    def color(self, params: Any, features: Any, directions: Any) -> Any:
        return jax.nn.sigmoid(features @ params["layers"][0]["w"])


def check(field: Field) -> None:
    check_definition(field)
    check_functions(field, make_full_grid((2, 2, 2), jnp.asarray(AABB)), AABB)


def test_a_field_that_follows_the_rules_is_accepted() -> None:
    check(Fog())


class ColumnDensity(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return positions[:, :1], positions


class NoLatent(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return positions[:, 0]


class ChannelFirst(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return positions[:, 0], positions.T


class Gray(Fog):
    def color(self, params: Any, features: Any, directions: Any) -> Any:
        return features[:, :1]


class Misnamed(Fog):
    def param_groups(self, params: Any) -> Any:
        return {"raw": "mlp", "layers": "planes"}


class Incomplete(Fog):
    def param_groups(self, params: Any) -> Any:
        return {"raw": "mlp"}


class Colorless(Field):
    def init(self, key: jax.Array) -> Any:
        return {}

    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return positions[:, 0], positions


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (
            ColumnDensity(),
            r"ColumnDensity.density must return densities .*\(m,\); .*\(m, 1\)",
        ),
        (NoLatent(), r"NoLatent.density must return a tuple of two"),
        (ChannelFirst(), r"ChannelFirst.density .* arrays begin with m; one has shape \(3, m\)"),
        (Gray(), r"Gray.color must return colors of shape \(m, 3\); it returned \(m, 1\)"),
        (Fog(channels=4), r"Fog.color must return colors of shape \(m, 3\); it returned \(m, 4\)"),
        (Misnamed(), r"Misnamed.param_groups returns the group 'planes': .*'grid' and 'mlp'"),
        (Incomplete(), r"Incomplete.param_groups must return the structure of the parameters"),
        (Colorless(), r"Colorless has no color: define it"),
    ],
)
def test_functions_that_return_something_else_are_refused(field: Field, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(field)


class Undecorated(Field):
    """Its number is no attribute of the dataclass."""

    resolution: int = 16


class WithInit(Field):
    """Two of them would be equal."""

    def __init__(self, resolution: int) -> None:
        object.__setattr__(self, "resolution", resolution)


@dataclasses.dataclass(frozen=True)
class WithArray(Fog):
    table: Any = None


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (Fog, "a class: give an instance, such as Fog()"),
        ("voxels", "The field is a str: give a jaxrf.fields.Field"),
        (Undecorated(), "Undecorated is no dataclass"),
        (WithInit(16), "WithInit is no dataclass"),
        (WithArray(table=np.zeros(3)), "WithArray.table is of type ndarray"),
        (WithArray(table=[1, 2]), "WithArray.table is of type list"),
    ],
)
def test_definitions_that_cannot_be_a_configuration_are_refused(field: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        check_definition(field)
    assert sentence in str(caught.value)


def test_a_group_holds_for_a_whole_part_of_the_parameters() -> None:
    @dataclasses.dataclass(frozen=True)
    class Grouped(Fog):
        def param_groups(self, params: Any) -> Any:
            return {"raw": "grid", "layers": "mlp"}

    params = Fog().init(jax.random.key(0))
    assert broadcast_groups(Grouped(), params) == {"raw": "grid", "layers": [{"w": "mlp"}]}

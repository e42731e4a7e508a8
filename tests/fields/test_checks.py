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


class Latents(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return positions[:, 0], {"a": positions, "b": positions}


class FlatLatent(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return positions[:, 0], positions[:, 0]


class FlatFeatures(Fog):
    def features(self, params: Any, latent: Any) -> Any:
        return latent[:, 0]


class Counting(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return jnp.arange(positions.shape[0]), positions


class PenaltyOfEach(Fog):
    def regularization(self, params: Any, grid: Any, key: Any, tv_decay: Any) -> Any:
        return jnp.square(params["layers"][0]["w"])


class WithCount(Fog):
    def init(self, key: jax.Array) -> Any:
        return {"layers": [jnp.zeros(3), np.arange(3)]}


class HalfPrecision(Fog):
    def init(self, key: jax.Array) -> Any:
        return {"table": jnp.zeros(3, jnp.bfloat16)}


class WithName(Fog):
    def init(self, key: jax.Array) -> Any:
        return {"table": jnp.zeros(3), "name": "fog"}


class Nothing(Fog):
    def init(self, key: jax.Array) -> Any:
        return {}


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
        (
            Latents(),
            r"Latents.density returns a dict as the latent, and Latents has no features: define",
        ),
        (FlatLatent(), r"FlatLatent.density returns \(m,\) as the latent, and .* no features"),
        (FlatFeatures(), r"FlatFeatures.features must return .* \(m, c\); it returned \(m,\)"),
        (Counting(), r"Counting.density must return densities as floating-.*returned int32"),
        (PenaltyOfEach(), r"PenaltyOfEach.regularization must return one number; .* \(3, 3\)"),
        (WithCount(), r"WithCount.init returns params\['layers'\]\[1\] of type int32: parameters"),
        (HalfPrecision(), r"HalfPrecision.init returns params\['table'\] of type bfloat16"),
        (WithName(), r"WithName.init returns params\['name'\] of type str: return float32 arrays"),
        (Nothing(), r"Nothing.init returns no parameters"),
    ],
)
def test_functions_that_return_something_else_are_refused(field: Field, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(field)


class NumpyDensity(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return np.linalg.norm(positions, axis=-1), positions


class BranchingColor(Fog):
    def color(self, params: Any, features: Any, directions: Any) -> Any:
        if features.sum() > 0:
            return features
        return 0.0 * features


class MaskingFeatures(Fog):
    def features(self, params: Any, latent: Any) -> Any:
        return latent[latent[:, 0] > 0]


class FloatInit(Fog):
    def init(self, key: jax.Array) -> Any:
        return {"raw": jnp.full((), float(jax.random.normal(key)))}


class IndexingDensity(Fog):
    def density(self, params: Any, positions: Any, context: Any) -> Any:
        return [positions[:, 0]][positions[0, 0].astype(int)], positions


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (NumpyDensity(), r"NumpyDensity.density gives an array to numpy in line \d+, `return np\."),
        (
            BranchingColor(),
            r"BranchingColor.color decides .* in line \d+, `if features.sum.* jnp.where",
        ),
        (MaskingFeatures(), r"MaskingFeatures.features selects elements by a mask in line \d+"),
        (FloatInit(), r"FloatInit.init needs the value of an array as a number in line \d+"),
        (IndexingDensity(), r"IndexingDensity.density needs the value .* as an integer in line"),
    ],
)
def test_functions_that_cannot_be_compiled_are_refused_with_their_line(
    field: Field, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        check(field)
    assert "\n" not in str(caught.value)


def test_errors_of_a_function_itself_are_passed_on() -> None:
    class Broken(Fog):
        def density(self, params: Any, positions: Any, context: Any) -> Any:
            return positions[:, 0] / self.channels, params["no such key"]

    with pytest.raises(KeyError, match="no such key") as caught:
        check(Broken())
    assert any(entry.name == "density" for entry in caught.traceback)


class TwoArguments(Fog):
    def density(self, params: Any, x: Any) -> Any:  # type: ignore[override]
        return x[:, 0], x


class NoKey(Fog):
    def init(self) -> Any:  # type: ignore[override]
        return {}


class NoParams(Fog):
    def param_groups(self) -> Any:  # type: ignore[override]
        return "grid"


class OtherNames(Fog):
    def density(self, weights: Any, x: Any, more: Any, extra: int = 3) -> Any:
        return super().density(weights, x, more)

    @staticmethod
    def color(params: Any, features: Any, directions: Any) -> Any:  # type: ignore[override]
        return jax.nn.sigmoid(features)


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (
            TwoArguments(),
            "TwoArguments.density takes (self, params, x): it must take (self, params, positions, "
            "context).",
        ),
        (NoKey(), "NoKey.init takes (self): it must take (self, key)."),
        (NoParams(), "NoParams.param_groups takes (self): it must take (self, params)."),
    ],
)
def test_methods_that_take_other_arguments_are_refused(field: Field, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        check_definition(field)
    assert str(caught.value) == sentence


def test_arguments_may_have_other_names() -> None:
    check(OtherNames())


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


class WithoutType(Fog):
    resolution = 16


class WithoutTypeAgain(Fog):
    compute_dtype = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Features(Fog):
    features: int = 8  # type: ignore[assignment]


class Noise(Fog):
    noise_std = 0.1  # type: ignore[assignment]


class WithConstants(Fog):
    default_coloring = "per_ray"
    CHANNELS = 3
    _scale = 2.0


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (Fog, "a class: give an instance, such as Fog()"),
        ("voxels", "The field is a str: give an instance of a jaxrf.fields.Field"),
        (Undecorated(), "Undecorated is no dataclass"),
        (WithInit(16), "WithInit is no dataclass"),
        (WithArray(table=np.zeros(3)), "WithArray.table is of type ndarray"),
        (WithArray(table=[1, 2]), "WithArray.table is of type list"),
        (WithArray(table=(1, np.int64(2))), "WithArray.table is of type tuple"),
        (WithArray(table=np.float32(2)), "WithArray.table is of type float32"),
        (WithArray(table=jax.nn.relu), "WithArray.table is of type"),
        (WithoutType(), "WithoutType.resolution has no type, so it is no option and is not saved"),
        (WithoutType(), "write `resolution: int = 16`"),
        (WithoutTypeAgain(), "WithoutTypeAgain.compute_dtype has no type"),
        (Features(), "Features.features hides the method features that every field has"),
        (Noise(), "Noise.noise_std hides the method noise_std"),
    ],
)
def test_definitions_that_cannot_be_a_configuration_are_refused(field: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        check_definition(field)
    assert sentence in str(caught.value)


def test_constants_and_defaults_of_a_field_need_no_type() -> None:
    check(WithConstants())
    check(WithArray(table=(1, ("a", None), 2.0)))


def test_parameters_in_float64_of_numpy_become_float32() -> None:
    class Double(Fog):
        def init(self, key: jax.Array) -> Any:
            return {"raw": np.zeros(()), "layers": [{"w": np.zeros((3, 3))}]}

    assert Double().init(jax.random.key(0))["raw"].dtype == np.float64
    check(Double())
    params = jax.jit(Double().init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_a_group_holds_for_a_whole_part_of_the_parameters() -> None:
    @dataclasses.dataclass(frozen=True)
    class Grouped(Fog):
        def param_groups(self, params: Any) -> Any:
            return {"raw": "grid", "layers": "mlp"}

    params = Fog().init(jax.random.key(0))
    assert broadcast_groups(Grouped(), params) == {"raw": "grid", "layers": [{"w": "mlp"}]}

"""The contract of fields: its defaults, its checks, its parameter groups, and fields of users."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import Recorder, change, make_scene, tiny_hashgrid

from jaxrf.core.errors import InputError
from jaxrf.fields import FIELDS
from jaxrf.fields.base import Field, FieldContext, SampleCost, SceneInfo, StageTransition
from jaxrf.fields.bitnerf import BitNeRF
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.fields.nerf import NeRF
from jaxrf.fields.pynerf import PyNeRF
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxels import Voxels
from jaxrf.models.packed import PackedModel
from jaxrf.sampling.density_tracking import DensityTrackedGrid
from jaxrf.training import loop
from jaxrf.training.config import OptimizerConfig, TrainConfig
from jaxrf.training.config_json import from_json, load_field_class, make_user_field, to_json

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "blobs.py"
BOX = np.array([[-1.0, -2.0, 0.5], [1.5, 1.0, 1.7]], np.float32)

TINY_FIELDS: dict[str, Field] = {
    "voxels": Voxels(initial_resolution=4, feature_dim=3, width=4, num_subdivisions=1),
    "tensorf": TensoRF(
        density_components=2, feature_components=2, feature_dim=3, width=4, initial_voxels=64
    ),
    "cp": TensoRF(
        factors="cp", color_head="harmonics", density_components=2, feature_components=2,
        feature_dim=3, initial_voxels=64,
    ),
    "nerf": NeRF(layers=2, width=4, skip=1, color_width=4),
    "bitnerf": BitNeRF(layers=2, width=4, skip=1, color_width=4, full_precision_io=True),
    "hashgrid": HashGrid(num_levels=2, base_resolution=2, max_resolution=4, width=4),
    "pynerf": PyNeRF(
        num_pyramid_levels=2, num_levels=2, base_resolution=2, max_resolution=4, width=4,
        color_width=4,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fog(Field):
    """The same density and the same color everywhere: the least that a field has to define."""

    level: float = 2.0

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"raw": jnp.zeros(3)}

    def density(
        self, params: dict[str, jax.Array], positions: jax.Array, context: FieldContext
    ) -> tuple[jax.Array, jax.Array]:
        return jnp.full(positions.shape[:1], self.level), positions

    def color(
        self, params: dict[str, jax.Array], features: jax.Array, directions: jax.Array
    ) -> jax.Array:
        return jnp.broadcast_to(jax.nn.sigmoid(params["raw"])[None], features.shape)


# Defaults.


def test_field_defaults_leave_everything_to_the_model() -> None:
    fog, params = Fog(), Fog().init(jax.random.key(0))
    assert fog.name == "fog" and fog.compute_dtype == "float32" and hash(fog) == hash(Fog())
    assert not fog.prunes_grid and fog.default_coloring == "per_sample"
    assert fog.param_groups(params) == {"raw": "mlp"}
    assert fog.noise_std() == 0.0
    assert fog.composites_features() and not fog.needs_intervals()
    assert not fog.quantizes_activations()
    assert fog.step_size(BOX) is None and fog.grid_resolution(BOX) is None
    assert fog.min_voxel_size(BOX) == float("inf") and fog.grid_aabb(BOX) is BOX
    assert fog.resolve(SceneInfo(BOX, 0.1, False, 0.5)) is fog and fog.begin(BOX) is fog
    assert fog.canonical() is fog and fog.shape_key() == () and fog.sample_cost() == SampleCost()
    latent = jnp.ones((4, 3))
    assert fog.features(params, latent) is latent


def test_field_defaults_have_no_transitions() -> None:
    fog = Fog()
    assert fog.plan_transitions(round) == []
    supersample = StageTransition(3, False, None, 2)
    assert fog.delay_transitions([supersample]) == [supersample]
    assert not fog.resets_lr(supersample)
    grid = fog.init_grid(BOX, (3, 4, 5), 1.0, None)
    predicted = fog.predict_transition(supersample, grid)
    assert predicted is not None and predicted[0] is fog
    np.testing.assert_array_equal(predicted[1], BOX)
    params = fog.init(jax.random.key(0))
    field, new_grid, carry_over = fog.apply_transition(supersample, params, grid)
    assert field is fog and new_grid is grid and carry_over(params) is params


def test_field_default_grid_follows_the_density_and_is_described() -> None:
    grid = Fog().init_grid(BOX, (3, 4, 5), 1.0, None)
    assert isinstance(grid, DensityTrackedGrid) and grid.occupied.shape == (3, 4, 5)
    assert np.all(grid.occupied) and Fog().describe_grid(grid) == "100.0% of the box occupied"


def test_field_default_regularization_is_zero() -> None:
    grid = Fog().init_grid(BOX, (1, 1, 1), 1.0, None)
    key = jax.random.key(0)
    assert float(Fog().regularization({"raw": jnp.ones(3)}, grid, key, jnp.ones(()))) == 0.0


def test_field_without_its_methods_says_which_is_missing() -> None:
    bare, context = Field(), FieldContext(jnp.zeros(1), jnp.asarray(BOX))
    with pytest.raises(NotImplementedError, match="Field has no init"):
        bare.init(jax.random.key(0))
    with pytest.raises(NotImplementedError, match="Field has no density"):
        bare.density({}, jnp.zeros((1, 3)), context)
    with pytest.raises(NotImplementedError, match="Field has no color"):
        bare.color({}, jnp.zeros((1, 3)), jnp.zeros((1, 3)))
    with pytest.raises(InputError, match=r"Fog has no appearance_channels: define it.*dim at 0"):
        Fog().appearance_channels()
    with pytest.raises(InputError, match="Fog has no debug_outputs"):
        Fog().debug_outputs({}, jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.asarray(BOX))


def test_match_is_of_the_very_class() -> None:
    ternary = TINY_FIELDS["bitnerf"]
    assert BitNeRF.match(ternary) is ternary and NeRF.match(ternary) is None
    assert Field.match(ternary) is None


def test_a_field_of_three_methods_is_trained() -> None:
    config = change(tiny_hashgrid(num_steps=8), field=Fog())
    _, state = loop.fit(config, make_scene())
    assert int(state.step) == 8 and np.any(np.asarray(state.params.field["raw"]) != 0.0)


# Every field.


@pytest.mark.parametrize("name", TINY_FIELDS)
def test_fields_have_the_shapes_of_the_contract(name: str) -> None:
    field = TINY_FIELDS[name].begin(BOX)
    assert type(field).__name__ in FIELDS and field.name == type(field).__name__.lower()
    grid = field.init_grid(BOX, field.grid_resolution(BOX) or (4, 4, 4), 1.0, None)
    params = jax.jit(field.init)(jax.random.key(0, impl="rbg"))
    positions = jnp.asarray(np.random.default_rng(0).uniform(*BOX, (7, 3)), jnp.float32)
    directions = positions / jnp.linalg.norm(positions, axis=-1, keepdims=True)
    context = FieldContext(jnp.full(7, 0.01), jnp.asarray(BOX), grid=grid)
    density, latent = field.density(params, positions, context)
    features = field.features(params, latent)
    color = np.asarray(field.color(params, features, directions))
    assert density.shape == (7,) and np.all(np.asarray(density) >= 0)
    assert all(leaf.shape[0] == 7 for leaf in jax.tree.leaves(latent)) and features.ndim == 2
    assert color.shape == (7, 3) and np.all((color >= 0) & (color <= 1))
    assert 0 < field.appearance_channels() <= features.shape[1]
    cost = field.sample_cost()
    assert cost.flops + cost.rows > 0


def grid_leaves(name: str) -> tuple[set[str], set[str]]:
    """Names of the parameters in each group, "a.b" standing for params["a"]["b"]."""
    field = TINY_FIELDS[name].begin(BOX)
    params = jax.eval_shape(field.init, jax.random.key(0))
    groups = field.param_groups(params)
    assert jax.tree.structure(groups) == jax.tree.structure(params)
    names: dict[str, set[str]] = {"grid": set(), "mlp": set()}
    for path, group in jax.tree_util.tree_leaves_with_path(groups):
        names[group].add(".".join(part.key for part in path[:2] if hasattr(part, "key")))
    return names["grid"], names["mlp"]


@pytest.mark.parametrize(
    ("name", "grids", "networks"),
    [
        ("voxels", {"table"}, {"mlp"}),
        (
            "tensorf",
            {"density.planes", "density.lines", "features.planes", "features.lines"},
            {"basis", "mlp"},
        ),
        ("cp", {"density.lines", "features.lines"}, {"basis"}),
        ("nerf", set(), {"params"}),
        ("bitnerf", set(), {"params"}),
        ("hashgrid", {"table"}, {"density_mlp", "color_mlp"}),
        ("pynerf", {"table"}, {"hidden", "out", "color_mlp"}),
    ],
)
def test_param_groups_of_each_field(name: str, grids: set[str], networks: set[str]) -> None:
    in_grid, in_mlp = grid_leaves(name)
    assert in_grid == grids
    assert {path.split(".")[0] for path in in_mlp} == networks


@pytest.mark.parametrize("name", ["hashgrid", "pynerf", "tensorf", "cp"])
def test_fields_fill_the_box_of_the_context(name: str) -> None:
    """Twice the box at twice the positions and radii is the same field."""
    field = TINY_FIELDS[name].begin(BOX)
    params = jax.jit(field.init)(jax.random.key(0, impl="rbg"))
    params = jax.tree.map(lambda x: 1e3 * x if x.ndim == 2 and x.shape[-1] == 2 else x, params)
    positions = jnp.asarray(np.random.default_rng(0).uniform(*BOX, (9, 3)), jnp.float32)
    context = FieldContext(jnp.full(9, 0.2), jnp.asarray(BOX))
    doubled = FieldContext(2.0 * context.radii, 2.0 * context.aabb)
    density, _ = field.density(params, positions, context)
    wide_density, _ = field.density(params, 2.0 * positions, doubled)
    np.testing.assert_allclose(wide_density, density, rtol=1e-4)
    outside, _ = field.density(params, positions + 10.0, context)
    np.testing.assert_array_equal(outside, 0.0)


# Numbers that cannot be used.


NOT_POSITIVE: list[tuple[Callable[..., Field], str]] = [
    *((Voxels, name) for name in (
        "width", "feature_dim", "density_scale", "initial_resolution", "step_ratio",
    )),
    *((TensoRF, name) for name in (
        "width", "density_components", "feature_components", "feature_dim", "density_scale",
        "initial_voxels", "final_voxels", "occupancy_voxels", "step_ratio",
    )),
    *((kind, name) for kind in (NeRF, BitNeRF) for name in ("layers", "width", "color_width")),
    *((kind, name) for kind in (HashGrid, PyNeRF) for name in (
        "num_levels", "features_per_level", "base_resolution", "max_resolution", "width",
    )),
    (PyNeRF, "color_width"),
    (PyNeRF, "num_pyramid_levels"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), NOT_POSITIVE)
def test_fields_reject_numbers_that_are_not_positive(kind: Callable[..., Field], name: str) -> None:
    option, number = f"field.{name}", type(getattr(kind(), name))
    values = [number(0), number(-3)] + ([float("nan")] if number is float else [])
    for value in values:
        with pytest.raises(InputError, match=rf"^{option} is {value}: give a number above 0\.$"):
            kind(**{name: value})
        with pytest.raises(InputError, match=option):
            dataclasses.replace(kind(), **{name: value})


@pytest.mark.parametrize("subdivisions", [-1, 3])
def test_voxels_reject_more_subdivisions_than_times(subdivisions: int) -> None:
    complaint = f"field.num_subdivisions is {subdivisions}: give 0 to 2, or more times"
    with pytest.raises(InputError, match=complaint):
        Voxels(num_subdivisions=subdivisions)
    assert Voxels(num_subdivisions=3, upsample_at=(0.1, 0.2, 0.3)).num_subdivisions == 3


@pytest.mark.parametrize("channels", [2, 7, 27 + 3])
def test_tensorf_rejects_features_that_are_no_harmonics(channels: int) -> None:
    complaint = f"field.feature_dim is {channels}: harmonics need one of 3, 12, 27, 48"
    with pytest.raises(InputError, match=complaint):
        TensoRF(color_head="harmonics", feature_dim=channels)
    assert TensoRF(color_head="mlp", feature_dim=channels).feature_dim == channels


def test_a_model_rejects_summed_features_of_a_field_without_any() -> None:
    field = PyNeRF(blend="results")
    with pytest.raises(
        InputError, match=r"PyNeRF has no features.*set model.coloring to per_sample"
    ):
        TrainConfig(field=field, model=PackedModel(coloring="per_ray"))
    assert TrainConfig(field=field, model=PackedModel()).field is field


# Fields of users.


def test_blobs_of_the_tutorial_are_a_field() -> None:
    field = make_user_field(f"{TUTORIAL}:Blobs")
    assert isinstance(field, Field) and hash(field) == hash(type(field)())
    assert field.name == "blobs"


def blobs_config() -> TrainConfig:
    model = PackedModel(occupancy_resolution=8, occupancy_update_interval=4, steps_per_diagonal=32)
    source = f"{TUTORIAL}:Blobs"
    return tiny_hashgrid(
        field=make_user_field(source),
        field_source=source,
        model=model,
        num_steps=80,
        optimizer=OptimizerConfig(mlp_lr=0.03),
    )


def test_blobs_of_the_tutorial_learn() -> None:
    recorder = Recorder()
    loop.fit(blobs_config(), make_scene(), recorder)
    errors = [float(metrics.mse) for metrics in recorder.metrics]
    assert np.mean(errors[-3:]) < 0.35 * np.mean(errors[:3])


def test_config_with_a_user_field_is_read_from_its_json() -> None:
    config = blobs_config()
    assert from_json(to_json(config)) == config
    assert from_json(to_json(config), type(config.field)) == config
    # Without a file the class is found in its module.
    own = dataclasses.replace(config, field=Fog(level=3.0), field_source="")
    assert from_json(to_json(own), Fog) == own
    text = to_json(own).replace("Fog", "Cloud")
    with pytest.raises(ValueError, match="which is no field of this version"):
        from_json(text)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nothing.py:Field", "give a Python file and a name in it"),
        ("field.py", "give a Python file and a name in it"),
        ("field.py:Missing", "has no 'Missing'"),
        ("field.py:number", "number in .* is no class"),
        ("field.py:Needy", r"Needy in .* cannot be made .*missing 1 required.*"),
        ("field.py:Mutable", r"Mutable in .* cannot be made .*unhashable"),
        ("field.py:Wrong", r"Wrong in .* cannot be made .*InputError: field.size is 0"),
        ("field.py:Half", "Half in .* is no field: derive it from jaxrf.fields.Field"),
    ],
)
def test_make_user_field_rejects_other_objects_with_a_reason(
    tmp_path: Path, name: str, complaint: str
) -> None:
    (tmp_path / "field.py").write_text(
        "import dataclasses\nfrom jaxrf.core.checks import require_positive\n"
        "from jaxrf.fields import Field\nnumber = 3\n"
        "class Half:\n    def init(self, key): ...\n    def density(self): ...\n"
        "class Complete(Field):\n    def init(self, key): ...\n"
        "    def density(self, params, positions, context): ...\n"
        "    def color(self, params, features, directions): ...\n"
        "class Needy(Complete):\n    def __init__(self, size): ...\n"
        "@dataclasses.dataclass(frozen=True)\nclass Mutable(Complete):\n"
        "    sizes: list = dataclasses.field(default_factory=list)\n"
        "@dataclasses.dataclass(frozen=True)\nclass Wrong(Complete):\n    size: int = 0\n"
        "    def __post_init__(self): require_positive(self, 'size', prefix='field.')\n"
    )
    with pytest.raises(InputError, match=complaint):
        make_user_field(str(tmp_path / name))


def test_load_field_class_gives_the_class_itself() -> None:
    loaded: Any = load_field_class(f"{TUTORIAL}:Blobs")
    assert issubclass(loaded, Field) and loaded(num_blobs=3).num_blobs == 3

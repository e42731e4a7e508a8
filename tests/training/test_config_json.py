"""Configurations as JSON and back: presets, users' fields, damage, older formats."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from scenes import change, first_state, tiny_nerf, tiny_tensorf, tiny_voxels

from jaxrf import models, presets
from jaxrf.core.errors import InputError
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.fields.base import Field
from jaxrf.fields.nerf import NeRF
from jaxrf.models.base import StageSpec
from jaxrf.models.proposal import ProposalModel
from jaxrf.studies.presets import STUDY
from jaxrf.training import config_json, runs
from jaxrf.training.config import ScheduleKnot, TrainConfig

USER_FIELD = """
import dataclasses
import jax.numpy as jnp
from jaxrf.fields import Field

number = 3

class Plain:
    pass

@dataclasses.dataclass(frozen=True)
class Fog(Field):
    density_scale: float = 2.0
    colors: tuple[float, ...] = (0.5, 0.5, 0.5)

    def init(self, key): return {"raw": jnp.zeros(())}
    def density(self, params, positions, context):
        return jnp.exp(params["raw"]) * jnp.ones(len(positions)), positions
    def color(self, params, features, directions): return jnp.full((len(features), 3), 0.5)

@dataclasses.dataclass(frozen=True)
class Needy(Fog):
    size: int = dataclasses.field(kw_only=True)

@dataclasses.dataclass(frozen=True)
class Unhashable(Fog):
    sizes: list = dataclasses.field(default_factory=list)
"""


@dataclasses.dataclass(frozen=True)
class LocalField(Field):
    """A field of a module that is imported, not loaded from a file."""

    size: int = 3


@pytest.mark.parametrize("preset", (*presets.PRESETS, *STUDY), ids=presets.preset_name)
def test_every_preset_survives_json(preset: presets.Preset) -> None:
    original = preset()
    text = config_json.to_json(original)
    again = config_json.from_json(text)
    assert again == original
    assert type(again.field) is type(original.field)
    assert type(again.model) is type(original.model)
    assert config_json.to_json(again) == text
    assert hash(again) == hash(original)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_survives_json(name: str) -> None:
    numbers = {"appearance_dim": 3, "num_appearances": 2, "exposures": (0.01, 0.02)}
    original = tiny_nerf(model=getattr(models, name)(color_correction="affine", **numbers))
    again = config_json.from_json(config_json.to_json(original))
    assert again == original and type(again.model).__name__ == name


def test_numbers_that_are_not_the_defaults_survive_json() -> None:
    original = change(
        presets.tensorf_small(),
        data=Path("a/b"),
        run_dir=Path("/c"),
        resume=True,
        background="random",
        seed=2**32 - 1,
        synthetic_scene=SyntheticSceneConfig(size=7),
        schedule_knots=(ScheduleKnot(3, 1e-3), ScheduleKnot(1000, 0.1 + 0.2)),
        train_scale_schedule=((0.0, 8), (0.25, 1)),
        upsample_at=(),
        coloring="per_ray",
        prune_threshold=1e-300,
    )
    again = config_json.from_json(config_json.to_json(original))
    assert again == original
    assert isinstance(again.data, Path)


@pytest.mark.parametrize("make", [tiny_nerf, tiny_voxels, tiny_tensorf])
def test_a_stage_survives_json(make: Any) -> None:
    stage, _ = first_state(make())
    encoded = json.loads(json.dumps(config_json.encode(stage)))
    again = config_json.decode(StageSpec, encoded, "stage")
    assert again == stage and hash(again) == hash(stage)


# ---------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------


def replace_in_json(path: str, value: Any) -> str:
    """The JSON of a preset with one value replaced, by its dotted name."""
    tree = json.loads(config_json.to_json(presets.tensorf_small()))
    *parents, name = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[name] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    "path",
    ["nonsense", "field.nonsense", "optimizer.x", "field.num_coarse_samples", "model.nonsense",
     "model.num_coarse_samples"],
)  # fmt: skip
def test_an_unknown_key_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key '{path.split('.')[-1]}'"):
        config_json.from_json(replace_in_json(path, 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("num_steps", "1500"),
        ("num_steps", 1.5),
        ("num_steps", True),
        ("num_steps", None),
        ("resume", 1),
        ("resume", "yes"),
        ("background", "green"),
        ("background", 3),
        ("background", ["white"]),
        ("validate_every", "0.1"),
        ("validate_every", True),
        ("validate_every", None),
        ("data", 5),
        ("data", ["a"]),
        ("field.upsample_at", 0.5),
        ("field.upsample_at", ["half"]),
        ("field.upsample_at", "0.5"),
        ("field.width", [64]),
        ("model.coloring", "per_pixel"),
        ("model.contract", 1),
        ("optimizer", 3),
        ("optimizer", None),
        ("optimizer.beta1", {}),
        ("schedule_knots", 3),
        ("schedule_knots", [[3, 0.5]]),
        ("schedule_knots", [{"step": 3.5, "progress": 0.5}]),
        ("schedule_knots", [{"step": 3}]),
        ("train_scale_schedule", [[0.0]]),
        ("train_scale_schedule", [[0.0, 1, 2]]),
        ("field.prune_by", "density"),
        ("synthetic_scene.size", "128"),
        ("video", []),
    ],
)
def test_a_value_of_the_wrong_type_is_named(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"config\.{path}\b"):
        config_json.from_json(replace_in_json(path, value))


@pytest.mark.parametrize("kind", ["gaussians", None, 3, ["tensorf"]])
@pytest.mark.parametrize("part", ["field", "model"])
def test_an_unknown_type_of_field_or_model_is_named(part: str, kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"config\.{part}\.type"):
        config_json.from_json(replace_in_json(f"{part}.type", kind))


@pytest.mark.parametrize("value", [None, 3, "tensorf", []])
@pytest.mark.parametrize("part", ["field", "model"])
def test_a_field_or_model_that_is_no_object_is_named(part: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"config\.{part}"):
        config_json.from_json(replace_in_json(part, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"'])
def test_text_that_is_no_configuration_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        config_json.from_json(text)


def test_a_configuration_without_a_field_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="field"):
        config_json.from_json("{}")


def test_a_number_that_cannot_be_used_is_named_as_an_option() -> None:
    with pytest.raises(InputError, match=r"num_steps is 0: give a number above 0"):
        config_json.from_json(replace_in_json("num_steps", 0))


def test_an_integer_for_a_float_becomes_a_float() -> None:
    again = config_json.from_json(replace_in_json("checkpoint_seconds", 30))
    assert isinstance(again.checkpoint_seconds, float) and again.checkpoint_seconds == 30.0


def test_the_type_tells_fields_and_models_apart() -> None:
    text = json.dumps({"field": {"type": "nerf", "layers": 3}})
    assert config_json.from_json(text) == TrainConfig(field=NeRF(layers=3))
    text = json.dumps({"field": {"type": "nerf"}, "model": {"type": "proposal"}})
    assert config_json.from_json(text) == TrainConfig(field=NeRF(), model=ProposalModel())


def test_encode_rejects_values_without_a_form_in_json() -> None:
    with pytest.raises(TypeError, match="cannot write"):
        config_json.to_json({1, 2})


# ---------------------------------------------------------------------------------------------
# Older formats
# ---------------------------------------------------------------------------------------------

OLD_CONFIGS = [
    # The field held the options of the model, and its type was its kind.
    {"field": {"kind": "nerf", "coarse_samples": 64}, "steps": 1000},
    {"field": {"kind": "tensorf", "shading": "per_ray"}, "knots": []},
    {"field": {"kind": "custom", "source": "blobs.py:Blobs"}, "scales": 1},
]


@pytest.mark.parametrize("content", OLD_CONFIGS)
def test_a_run_of_an_older_format_is_refused_in_one_sentence(
    content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / runs.CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="is of an older version of jaxrf") as error:
        runs.read_config(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(ValueError):
        config_json.from_content(content)


# ---------------------------------------------------------------------------------------------
# Fields of users
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> str:
    """The file of a user's fields."""
    path = tmp_path / "my_fields.py"
    path.write_text(USER_FIELD)
    return str(path)


def test_a_field_of_a_file_survives_json(source: str) -> None:
    field = config_json.make_user_field(f"{source}:Fog")
    assert field.density_scale == 2.0  # type: ignore[attr-defined]
    config = dataclasses.replace(
        presets.for_field(dataclasses.replace(field, colors=(0.1, 0.2, 0.3))),  # type: ignore[call-arg]
        field_source=f"{source}:Fog",
    )
    text = config_json.to_json(config)
    again = config_json.from_json(text)
    assert again == config and hash(again) == hash(config)
    assert type(again.field) is type(field)
    with pytest.raises(ValueError, match="unknown key 'nonsense'"):
        content = json.loads(text)
        config_json.from_content(content | {"field": content["field"] | {"nonsense": 1}})
    with pytest.raises(ValueError, match=r"config\.field\.density_scale"):
        content["field"]["density_scale"] = "2"
        config_json.from_content(content)


def test_a_field_instance_survives_json_with_its_class() -> None:
    config = presets.for_field(LocalField(size=5))
    text = config_json.to_json(config)
    # Found in its module, as long as that is imported.
    assert config_json.from_json(text) == config
    assert config_json.from_json(text, LocalField) == config
    content = json.loads(text)
    content["field"]["type"] = "no_such_module:LocalField"
    with pytest.raises(ValueError, match=r"config\.field\.type is 'no_such_module:LocalField'"):
        config_json.from_content(content)
    assert config_json.from_content(content, LocalField) == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "number in .*my_fields.py is no class: name one in field"),
        ("Plain", "Plain in .*my_fields.py is no field: derive it from jaxrf.fields.Field"),
        ("Needy", "Needy in .*my_fields.py cannot be made without arguments.*size"),
        ("Unhashable", "Unhashable in .*my_fields.py cannot be made .*unhashable"),
        ("missing", "my_fields.py has no 'missing'"),
    ],
)
def test_make_user_field_says_what_is_wrong_with_a_class(
    source: str, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_json.make_user_field(f"{source}:{name}")


def test_a_missing_file_of_a_field_is_an_input_error(source: str) -> None:
    config = dataclasses.replace(
        presets.for_field(config_json.make_user_field(f"{source}:Fog")),
        field_source="nowhere.py:Fog",
    )
    with pytest.raises(InputError, match=r"field is 'nowhere.py:Fog'"):
        config_json.from_json(config_json.to_json(config))

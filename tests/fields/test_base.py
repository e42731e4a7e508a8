"""Fields that users bring: found in a file, refused with a reason, trained like any other."""

from pathlib import Path

import numpy as np
import pytest
from scenes import Recorder, make_scene, tiny_hashgrid

from jaxrf.core.errors import InputError
from jaxrf.fields.base import Field, load_field
from jaxrf.training import train
from jaxrf.training.config import CustomConfig, OptimizerConfig, from_json, make_preset, to_json

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "blobs.py"


def test_the_field_of_the_tutorial_is_a_field() -> None:
    field = load_field(f"{TUTORIAL}:Blobs")
    assert isinstance(field, Field) and hash(field) == hash(type(field)())


def test_the_field_of_the_tutorial_learns() -> None:
    config = tiny_hashgrid(
        field=CustomConfig(
            source=f"{TUTORIAL}:Blobs",
            sampler="occupancy",
            occupancy_resolution=8,
            occupancy_update_interval=4,
            max_steps=32,
        ),
        steps=80,
        optimizer=OptimizerConfig(mlp_lr=0.03),
    )
    assert from_json(to_json(config)) == config
    recorder = Recorder()
    train.fit(config, make_scene(), recorder)
    errors = [float(metrics.mse) for metrics in recorder.metrics]
    assert np.mean(errors[-3:]) < 0.35 * np.mean(errors[:3])


def test_the_preset_for_it_asks_for_a_class() -> None:
    config = make_preset("custom").field
    assert isinstance(config, CustomConfig)
    with pytest.raises(InputError, match="give a Python file and a name in it"):
        load_field(config.source)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nothing.py:Field", "give a Python file and a name in it"),
        ("field.py", "give a Python file and a name in it"),
        ("field.py:Missing", "has no 'Missing'"),
        ("field.py:number", "number in .* is no class"),
        ("field.py:Needy", r"Needy in .* cannot be made .*missing 1 required.*"),
        ("field.py:Mutable", r"Mutable in .* cannot be made .*unhashable"),
        ("field.py:Half", "is no field, it has no 'features'"),
    ],
)
def test_what_is_no_field_is_refused_with_a_reason(
    tmp_path: Path, name: str, complaint: str
) -> None:
    (tmp_path / "field.py").write_text(
        "import dataclasses\nnumber = 3\n"
        "class Half:\n    def init(self, key): ...\n    def density(self): ...\n"
        "class Needy:\n    def __init__(self, size): ...\n"
        "@dataclasses.dataclass\nclass Mutable:\n    size: int = 3\n"
    )
    with pytest.raises(InputError, match=complaint):
        load_field(str(tmp_path / name))

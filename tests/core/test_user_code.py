"""Code of users: found, run once, and what is wrong with it said in one sentence."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from scenes import NERF, make_scene, tiny_nerf

from jaxrf.core import user_code
from jaxrf.core.errors import InputError
from jaxrf.training import loop, losses, runs
from jaxrf.training.config import LossConfig, TrainConfig
from jaxrf.training.config_json import make_user_field

LOSS = """
import jax.numpy as jnp


def absolute(predicted, truth):
    return jnp.mean(jnp.abs(predicted - truth), axis=-1)
"""
FIELD = """
from __future__ import annotations
import dataclasses
from jaxrf.fields import Field

@dataclasses.dataclass(frozen=True)
class Nothing(Field):
    size: int = 3
    init = density = features = color = lambda *_: None
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def user_config(field: Path, loss: Path) -> TrainConfig:
    """A training with the field of one file and the loss of another."""
    source = f"{field}:Nothing"
    return TrainConfig(
        field=make_user_field(source),
        field_source=source,
        loss=LossConfig(source=f"{loss}:absolute"),
    )


def test_a_dataclass_with_postponed_annotations_is_a_field(tmp_path: Path) -> None:
    field: Any = make_user_field(f"{write(tmp_path / 'field.py', FIELD)}:Nothing")
    assert field.size == 3 and field == type(field)()


def test_load_distinguishes_files_of_the_same_name(tmp_path: Path) -> None:
    for value in (1, 2):
        path = write(tmp_path / str(value) / "same.py", f"number = {value}\n")
        assert user_code.load(f"{path}:number", "--x") == value


def test_load_runs_a_file_again_if_it_has_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "changing.py", "thing = object()\n")
    first = user_code.load(f"{path}:thing", "--x")
    assert user_code.load(f"{path}:thing", "--x") is first
    write(path, "thing = 'another'\n")
    assert user_code.load(f"{path}:thing", "--x") == "another"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = (\n", "SyntaxError: .*, line 1"),
        ("y = 1\nimport no_such_module\n", "ModuleNotFoundError: .*no_such_module.*, line 2"),
        ("def f():\n    raise ValueError('two\\nlines')\nf()\n", "ValueError: two, line 2"),
    ],
)
def test_load_reports_the_line_of_an_error(text: str, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path / "broken.py", text)
    with pytest.raises(InputError, match=rf"broken\.py cannot be run \({complaint}\)") as caught:
        user_code.load(f"{path}:x", "--field")
    assert "\n" not in str(caught.value)


def test_load_rejects_files_that_are_not_python(tmp_path: Path) -> None:
    path = write(tmp_path / "field.txt", "x = 1")
    with pytest.raises(InputError, match=r"must end in \.py"):
        user_code.load(f"{path}:x", "--field")


@pytest.mark.slow
def test_user_loss_is_minimized(tmp_path: Path) -> None:
    source = f"{write(tmp_path / 'loss.py', LOSS)}:absolute"
    rgb_loss_fn = losses.make_rgb_loss_fn(LossConfig(source=source))
    assert float(rgb_loss_fn(jnp.ones((1, 3)), jnp.zeros((1, 3)))[0]) == 1.0
    config = tiny_nerf(num_steps=2, loss=LossConfig(source=source))
    stage, state = loop.fit(config, make_scene())
    assert int(state.step) == 2 and stage.num_rays > 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def f(a):\n    return a\n", "TypeError"),
        ("def f(a, b):\n    return a - b\n", r"gives \(5, 3\)"),
        ("def f(a, b):\n    return ((a - b) ** 2).mean()\n", r"gives \(\)"),
        ("def f(a, b):\n    return None\n", "AttributeError"),
        ("f = 3\n", "TypeError"),
    ],
)
def test_user_loss_must_be_callable_and_scalar(text: str, complaint: str, tmp_path: Path) -> None:
    source = f"{write(tmp_path / 'loss.py', text)}:f"
    with pytest.raises(InputError, match=f"is no loss .*{complaint}"):
        losses.make_rgb_loss_fn(LossConfig(source=source))


def test_run_uses_its_copy_of_user_code(tmp_path: Path) -> None:
    field, loss = (write(tmp_path / name, text) for name, text in (("f.py", FIELD), ("l.py", LOSS)))
    config = user_config(field, loss)
    folder = tmp_path / "runs" / "one"
    runs.create_folder(folder)
    copied = runs.vendor_user_code(folder, config)
    runs.write_config(folder, copied)
    assert copied.field == config.field
    assert copied.field_source == f"{folder / 'f.py'}:Nothing"
    # Neither a change of the original nor a move of the run matters.
    field.write_text("raise ValueError")
    moved = folder.rename(tmp_path / "moved")
    result = runs.read_config(moved)
    assert type(result.field).__name__ == "Nothing"
    assert result.field_source == f"{moved / 'f.py'}:Nothing"
    assert result.loss.source == f"{moved / 'l.py'}:absolute"
    assert make_user_field(result.field_source) == result.field
    # Copied once more, as when a run is copied onto itself, nothing is lost.
    assert runs.vendor_user_code(moved, result) == result
    plain = TrainConfig(field=NERF)
    assert runs.vendor_user_code(moved, plain) == plain


def test_copy_into_rejects_a_different_file_of_the_same_name(tmp_path: Path) -> None:
    field = write(tmp_path / "a" / "own.py", FIELD)
    loss = write(tmp_path / "b" / "own.py", LOSS)
    config = user_config(field, loss)
    folder = tmp_path / "run"
    runs.create_folder(folder)
    with pytest.raises(InputError, match=r"another own\.py"):
        runs.vendor_user_code(folder, config)
    # One file may well hold both.
    both = write(tmp_path / "c" / "both.py", FIELD + LOSS)
    config = user_config(both, both)
    assert runs.vendor_user_code(folder, config).loss.source == f"{folder / 'both.py'}:absolute"

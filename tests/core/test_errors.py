"""Sentences of errors name options as they are typed, or as attributes in Python."""

import pickle

import pytest

from jaxrf.core.errors import InputError, MissingSplitError, describe_for_command_line


@pytest.mark.parametrize(
    ("typed", "in_python"),
    [
        ("--num-steps is 0: give more.", "num_steps is 0: give more."),
        ("lower --optimizer.grid-lr.", "lower optimizer.grid_lr."),
        ("use less (--batch-rays, --seed)", "use less (batch_rays, seed)"),
        ("start again with --resume, or not", "start again with resume, or not"),
        ("train one with `--model none`.", "train one with `--model none`."),
        ("set XLA_FLAGS=--xla_force_host", "set XLA_FLAGS=--xla_force_host"),
        ("/data/--odd/a--b is missing", "/data/--odd/a--b is missing"),
        ("3 -- or 4", "3 -- or 4"),
    ],
)
def test_python_gets_attributes_and_commands_get_options(typed: str, in_python: str) -> None:
    for error in (InputError(typed), MissingSplitError(typed)):
        assert str(error) == in_python
        assert error.for_command_line == describe_for_command_line(error) == typed
        # As when it is sent from one process to another.
        assert pickle.loads(pickle.dumps(error)).for_command_line == typed


def test_other_errors_are_described_by_their_text() -> None:
    assert describe_for_command_line(OSError("no --space left")) == "no --space left"

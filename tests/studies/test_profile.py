"""Profiles of training steps: which function an operation comes from, and how long it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from reports import ROOFLINE
from scenes import make_scene

from jaxrf.core import grids
from jaxrf.core.errors import InputError
from jaxrf.core.kernels import calls
from jaxrf.presets import make_preset
from jaxrf.studies import profile
from jaxrf.studies.options import BenchOptions

TEXT = """HloModule jit_f

FileNames
1 "/clones/jaxrf/jaxrf/fields/nerf.py"
2 "/clones/jaxrf/venv/optax/b.py"

FunctionNames
1 "outer"
2 "A.density.<locals>.inner"
3 "update"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=21 end_line=22 column=1 end_column=2}
3 {file_name_id=2 function_name_id=3 line=3 end_line=3 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=3 parent_frame_id=2}
4 {file_location_id=3 parent_frame_id=4}

ENTRY %main (x: f32[]) -> f32[] {
  %add.1 = f32[] add(%x, %x), metadata={op_name="add" stack_frame_id=2}
  %mul_fusion = f32[] fusion(%add.1), kind=kLoop, metadata={op_name="mul" stack_frame_id=3}
  %sub = f32[] subtract(%x, %x), metadata={op_name="sub" stack_frame_id=4}
  ROOT %copy.4 = f32[] copy(%mul_fusion)
}
"""


@pytest.mark.parametrize("other", ["/clones/jaxrf/venv/optax/b.py", optax.__file__])
def test_operations_are_those_of_the_innermost_function_of_jaxrf(other: str) -> None:
    inner = "A.density.inner, fields/nerf.py:21"
    text = TEXT.replace("/clones/jaxrf/venv/optax/b.py", other)
    assert profile.locate_operations(text) == {
        "add.1": inner,
        "mul_fusion": inner,
        "sub": "",
        "copy.4": "",
    }


def test_a_compiled_program_of_this_jax_has_the_tables() -> None:
    table, rows = jnp.zeros((64, 8)), jnp.zeros((5, 2), jnp.int32)
    run = jax.jit(grids.weighted_gather)
    text = run.lower(table, rows, jnp.ones((5, 2))).compile().as_text()
    functions = profile.locate_operations(text).values()
    assert any(function.startswith("weighted_gather, core/grids.py:") for function in functions)


def test_steps_of_a_training_are_measured() -> None:
    config = dataclasses.replace(make_preset("hashgrid-small"), num_steps=80, batch_rays=64)
    measured = profile.profile_training(config, make_scene())
    names = {operation.function.partition(",")[0] for operation in measured.operations}
    marching = "march" if calls.can_call() else "march_to_samples"
    assert {marching, "HashGrid.density"} <= names
    seconds = [operation.seconds for operation in measured.operations]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] >= 0.0
    assert 0.0 < seconds[0] < measured.step_seconds
    assert measured.busy_cores > 0.0 and measured.samples > 0.0
    text = profile.format_profile("hashgrid-small", measured, ROOFLINE)
    assert text.startswith("## hashgrid-small")
    slowest = next(operation.function for operation in measured.operations if operation.function)
    assert f"`{slowest.partition(',')[0]}`" in text


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(InputError, match="profile_steps is 10: give at least 80"):
        BenchOptions(profile_steps=10)

"""Compiling coming stages in the background."""

import dataclasses
import threading
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from scenes import (
    Recorder,
    differing_leaves,
    first_state,
    make_scene,
    slow,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)
from steps import make_spec, train_pixels

from jaxrf.fields.base import StageTransition
from jaxrf.models.base import StageSpec
from jaxrf.training import compile_ahead, loop, transitions
from jaxrf.training.compile_ahead import StepCompiler
from jaxrf.training.config import TrainConfig
from jaxrf.training.step import StepSpec


def pruned_by_weight(**changes: Any) -> TrainConfig:
    """`tiny_tensorf`, pruned by the weights that rays gave."""
    return tiny_tensorf(**{"prune_by": "weight", "prune_threshold": 0.03} | changes)


@pytest.mark.parametrize(
    "make",
    [slow(tiny_voxels), tiny_nerf, slow(tiny_tensorf), slow(pruned_by_weight)],
    ids=lambda make: make.__name__,
)
def test_no_stage_is_compiled_twice_and_none_in_vain(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    compiled: list[StageSpec] = []
    compile_steps = compile_ahead.compile_steps

    def record(spec: StepSpec, *arguments: Any) -> Any:
        compiled.append(spec.stage)
        return compile_steps(spec, *arguments)

    monkeypatch.setattr(compile_ahead, "compile_steps", record)
    config = make(num_steps=40, steps_per_dispatch=10, supersample=2, supersample_from=0.75)
    recorder = Recorder()
    stage, _ = loop.fit(config, make_scene(), recorder)
    stages = [s for _, s, _ in recorder.stages]
    assert stages[-1] == stage and stage.supersample == 2
    assert len(compiled) == len(set(compiled)) and set(stages) <= set(compiled)
    # The capacity that a table of voxels will need is not known beforehand.
    assert make is tiny_voxels or compiled == stages


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("make", [tiny_voxels, tiny_nerf, tiny_tensorf])
def test_abstract_next_state_has_the_shapes_of_the_next_state(make: Any, pruned: bool) -> None:
    config = make(supersample=2)
    box = np.array([[-1.5, -1.2, -1.0], [1.5, 1.0, 1.2]], np.float32)
    stage, state = first_state(config, box)
    if make is tiny_tensorf:
        field: Any = stage.field
        stage = dataclasses.replace(stage, field=dataclasses.replace(field, pruned=pruned))
    predicted = 0
    for transition in (
        StageTransition(9, True, None, 1),
        StageTransition(9, False, 12**3, 2),
        StageTransition(9, True, 12**3, 1),
    ):
        ahead = transitions.predict_next_stage(config, stage, transition, state.grid)
        new_stage, new_state = transitions.transition_stage(config, stage, state, transition)
        if ahead is None or ahead != new_stage:
            continue
        predicted += 1
        shapes = transitions.abstract_next_state(config, stage, ahead, state)
        assert jax.tree.structure(shapes) == jax.tree.structure(new_state)
        for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(new_state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert predicted == {tiny_voxels: 1, tiny_nerf: 3, tiny_tensorf: 3 if pruned else 1}[make]


def test_a_stage_that_is_not_compiled_in_time_is_not_entered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state from before the transition is left, which can be rendered and resumed."""
    compile_steps, released = compile_ahead.compile_steps, threading.Event()

    def compile_late(spec: StepSpec, *arguments: Any) -> Any:
        if not transitions.same_shapes(spec.stage, first):
            assert released.wait(60)
        return compile_steps(spec, *arguments)

    class Impatient(Recorder):
        def should_wait_for_compile(self) -> bool:
            return self.step == 0

    monkeypatch.setattr(compile_ahead, "compile_steps", compile_late)
    config = tiny_voxels()
    first = transitions.first_stage(config, make_scene().aabb, 1)
    try:
        stage, state = loop.fit(config, make_scene(), Impatient())
    finally:
        released.set()
    subdivides = next(t.step for t in transitions.plan_transitions(config) if t.num_voxels)
    assert int(state.step) == subdivides and transitions.same_shapes(stage, first)
    complete = loop.fit(config, make_scene(), Recorder())
    resumed = loop.fit(config, make_scene(), Recorder(), (stage, state))
    assert resumed[0] == complete[0] and differing_leaves(resumed[1], complete[1]) == []


def test_get_returns_the_program_that_was_begun() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    pixels = train_pixels()
    with StepCompiler(partial(make_spec, config), prefetches=False) as compiler:
        compiler.begin(stage, state, pixels)
        first = compiler.get(stage, state, pixels)
        assert compiler.get(stage, state, pixels) is first
        other = dataclasses.replace(stage, num_rays=32)
        assert compiler.get(other, state, pixels) is not first

"""`transition_stage`: what pruning, upsampling and subdividing keep of field, box and cells."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from renders import (
    ample,
    ball_params,
    outgoing_rays,
    render_batch,
    render_training_views,
    render_view,
)
from scenes import (
    BOX,
    LONG,
    ball_config,
    change,
    cp_config,
    first_state,
    linear_factors,
    positions_in,
    slow,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.core.rays import ConicalFrusta
from jaxrf.fields.base import StageTransition
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxel_grid import VoxelGrid
from jaxrf.fields.voxels import Voxels
from jaxrf.models.base import StageSpec
from jaxrf.models.networks import close_over_params
from jaxrf.models.packed import PackedModel
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.sampling.weight_tracking import (
    WeightTrackedGrid,
    decayed_max_weights,
    record_weights,
)
from jaxrf.training import transitions
from jaxrf.training.state import TrainState
from jaxrf.training.transitions import transition_stage


def are_same_arrays(tree: Any, other: Any) -> bool:
    """Whether all leaves are the very same arrays."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(a is b for a, b in pairs)


def resolution_of(stage: StageSpec) -> tuple[int, int, int]:
    assert isinstance(stage.field, TensoRF)
    return stage.field.resolution


def with_pruned(stage: StageSpec, pruned: bool) -> StageSpec:
    """The stage of a field that remembers whether cells were pruned; others stay as they are."""
    if not isinstance(stage.field, TensoRF):
        return stage
    return dataclasses.replace(stage, field=dataclasses.replace(stage.field, pruned=pruned))


def with_occupied(state: TrainState, occupied: np.ndarray) -> TrainState:
    grid = dataclasses.replace(state.grid, occupied=jnp.asarray(occupied))
    return dataclasses.replace(state, grid=grid)


def with_weights(state: TrainState, slots: Any, weights: Any) -> TrainState:
    """The state whose grid has recorded these weights in these slots."""
    assert isinstance(state.grid, WeightTrackedGrid)
    arrays = jnp.asarray(slots, jnp.int32), jnp.asarray(weights, jnp.float32)
    return dataclasses.replace(state, grid=record_weights(state.grid, *arrays))


def values_at(
    stage: StageSpec, state: TrainState, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Density and features of the field."""
    fns = close_over_params(stage.field, state.params.field, state.grid)
    zeros = jnp.zeros(len(positions))
    density, latent = fns.density(positions, ConicalFrusta(positions, zeros, zeros, zeros))
    return density, fns.features(latent)


# -- rendered images and weights ---------------------------------------------------------------


@pytest.mark.parametrize("prune_by", ["alpha", "weight"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("prune", [slow(False), True])
@pytest.mark.parametrize("voxels", [None, 20**3])
def test_a_transition_keeps_the_rendered_image(
    voxels: int | None, prune: bool, pruned: bool, prune_by: str
) -> None:
    config = ball_config(step_ratio=0.5, prune_by=prune_by)
    stage, state = first_state(config)
    state = dataclasses.replace(state, params=ball_params(stage, state.params))
    if pruned:
        state = render_training_views(config, stage, state)
        stage, state = transition_stage(config, stage, state, StageTransition(1, True, None))
    before = render_view(config, stage, state.params, state.grid)
    assert before.std(axis=0).min() > 0.05  # there is something to see
    state = render_training_views(config, stage, state)
    new_stage, new = transition_stage(config, stage, state, StageTransition(2, prune, voxels))
    assert isinstance(new.grid, WeightTrackedGrid) and isinstance(new_stage.field, TensoRF)
    if prune or voxels:
        assert not np.any(decayed_max_weights(new.grid)), "cells are other ones now"
    after = render_view(config, new_stage, new.params, new.grid)
    assert np.abs(after - before).mean() < 0.01
    assert new_stage.field.pruned == (prune or pruned)
    if prune or pruned:
        assert 0 < np.mean(new.grid.occupied) < 0.9 or voxels
    else:
        assert np.all(new.grid.occupied)
    only_pruned = state
    if prune:
        _, only_pruned = transition_stage(config, stage, state, StageTransition(2, True, None))
        cells = np.asarray(only_pruned.grid.occupied)
        assert np.all(~cells | np.asarray(state.grid.occupied)), "pruned cells have come back"
        assert are_same_arrays(only_pruned.params, state.params)
    if voxels is None:
        # Pruning without upsampling leaves the box and the grid points as they are.
        np.testing.assert_array_equal(new.grid.aabb, state.grid.aabb)
        assert transitions.same_shapes(stage, new_stage)
        assert are_same_arrays(new.params, state.params)
        np.testing.assert_array_equal(new.grid.occupied, only_pruned.grid.occupied)
        if not prune:
            assert new_stage == stage
    else:
        assert np.prod(new_stage.field.resolution) == pytest.approx(voxels, rel=0.2)
        assert not transitions.same_shapes(stage, new_stage)
        # The box shrinks to the cells occupied before, at the first pruning to those left.
        box = occupancy.occupied_aabb(state.grid if pruned else only_pruned.grid)
        np.testing.assert_allclose(new.grid.aabb, box, atol=1e-6)
        assert (np.prod(np.diff(new.grid.aabb, axis=0)) < 0.9 * 27) == (prune or pruned)
        # No position in a cell that was kept is lost on the other cells.
        assert np.all(occupancy.lookup(new.grid, positions_in(only_pruned.grid, 2000)))
    fresh = jax.eval_shape(partial(config.model.init_params, new_stage.field), jax.random.key(0))
    assert jax.tree.map(jnp.shape, new.params) == jax.tree.map(jnp.shape, fresh)


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_supersampling_alone_keeps_the_recorded_weights(make: Any) -> None:
    """Pruned by weight soon after, all cells that no ray met since would be dropped."""
    config = make(supersample=2)
    stage, state = first_state(config)
    state = render_training_views(config, stage, state)
    assert isinstance(state.grid, WeightTrackedGrid)
    weights = decayed_max_weights(state.grid)
    assert np.any(weights > 0.01)
    new_stage, new = transition_stage(config, stage, state, StageTransition(3, False, None, 2))
    assert isinstance(new.grid, WeightTrackedGrid) and new_stage.supersample == 2
    assert are_same_arrays(new.params, state.params)
    np.testing.assert_array_equal(new.grid.occupied, state.grid.occupied)
    np.testing.assert_array_equal(decayed_max_weights(new.grid), weights)


@pytest.mark.parametrize("voxels", [None, 10**3])
@pytest.mark.parametrize("prune_by", ["alpha", "weight"])
def test_pruning_an_empty_field_leaves_the_box(prune_by: str, voxels: int | None) -> None:
    config = ball_config(side=8, density_shift=-30.0, prune_by=prune_by)
    stage, state = first_state(config)
    state = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    state = render_training_views(config, stage, state)
    new_stage, new = transition_stage(config, stage, state, StageTransition(1, True, voxels))
    # By weight all cells stay: that none has any may be due to the rays.
    occupied = np.asarray(new.grid.occupied)
    assert np.all(occupied) if prune_by == "weight" else not np.any(occupied)
    np.testing.assert_allclose(new.grid.aabb, BOX)
    assert resolution_of(new_stage) == ((8, 8, 8) if voxels is None else (10, 10, 10))


@pytest.mark.slow
def test_pruning_by_weight_drops_hidden_cells_and_by_alpha_does_not() -> None:
    """An opaque ball: its middle has as much density as its surface, but no ray gets there."""
    kept = {}
    for prune_by in ("alpha", "weight"):
        config = ball_config(
            side=16,
            density_scale=1e4,
            occupancy_voxels=16**3,
            prune_by=prune_by,
            # Alpha is that of the density before its factor.
            prune_threshold=0.3 if prune_by == "weight" else 0.3 / 1e4,
        )
        stage, state = first_state(config)
        state = dataclasses.replace(state, params=ball_params(stage, state.params))
        state = render_training_views(config, stage, state)
        _, state = transition_stage(config, stage, state, StageTransition(1, True, None))
        kept[prune_by] = np.asarray(state.grid.occupied)
    assert np.all(kept["alpha"][7:9, 7:9, 7:9]) and not np.any(kept["weight"][7:9, 7:9, 7:9])
    assert not np.any(kept["weight"][:2, :2, :2]) and not np.any(kept["alpha"][:2, :2, :2])
    assert 0.05 < kept["weight"].mean() < kept["alpha"].mean() < 0.9


def test_pruning_by_alpha_leaves_the_density_s_factor_out() -> None:
    config = ball_config(side=12, density_scale=25.0, prune_by="alpha", prune_threshold=1e-4)
    stage, state = first_state(config)
    assert isinstance(config.model, PackedModel)
    step = float(config.model.step_size(stage.field, np.asarray(state.grid.aabb)))
    # softplus(raw - 10) step = 1e-4, nearly.
    edge = 10.0 + math.log(1e-4 / step)
    raw = np.where(np.arange(12) < 6, edge - 0.3, edge + 0.3)
    density = jax.tree.map(jnp.zeros_like, state.params.field["density"])
    # A single product, whose line runs along x.
    line = density["lines"][2].at[:, 0].set(jnp.asarray(raw, jnp.float32))
    plane = density["planes"][2].at[..., 0].set(1.0)
    density = {
        "planes": (*density["planes"][:2], plane),
        "lines": (*density["lines"][:2], line),
    }
    params = state.params._replace(field={**state.params.field, "density": density})
    state = dataclasses.replace(state, params=params)
    _, new = transition_stage(config, stage, state, StageTransition(6, True, None))
    occupied = np.asarray(new.grid.occupied)
    assert not occupied[:4].any() and occupied[7:].all()


@pytest.mark.parametrize("make", [tiny_voxels, tiny_tensorf])
def test_contracted_space_stays_complete_at_transitions(make: Any) -> None:
    config = make(contract=True)
    first, state = first_state(config)
    stage, batch = first, (jax.random.key(0), outgoing_rays(), jnp.ones((40, 3)))
    before = render_batch(config, ample(stage), state.params, state.grid, *batch)
    for transition in transitions.plan_transitions(config):
        if transition.num_voxels is None:
            continue
        upsampling = transition._replace(prune=False)
        stage, new = transition_stage(config, stage, state, upsampling)
        np.testing.assert_array_equal(new.grid.bounds, BOX)
        assert stage.max_blocks >= 1 and bool(np.all(np.asarray(new.grid.aabb[1]) >= 2.99))
        after = render_batch(config, ample(stage), new.params, new.grid, *batch)
        np.testing.assert_allclose(after.rgb[-1], before.rgb[-1], atol=0.05)
    assert stage != first


# -- values of the field -----------------------------------------------------------------------


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(
    ("prune", "num_voxels"), [(True, None), (False, 13**3), (True, 13**3), (True, 7**3)]
)
def test_linear_factors_are_the_same_in_all_cells_that_a_transition_keeps(
    prune: bool, num_voxels: int | None, pruned: bool, aabb: np.ndarray
) -> None:
    config = ball_config(side=9, density_shift=-1.0, prune_by="weight", prune_threshold=0.05)
    stage, state = first_state(config, aabb)
    params = state.params._replace(field=linear_factors(state.params.field))
    state, stage = dataclasses.replace(state, params=params), with_pruned(stage, pruned)
    occupied = np.zeros(stage.grid_resolution, bool)
    occupied[1:7, 2:5, 1:4] = True
    state = with_occupied(state, occupied)
    heavy = np.ravel_multi_index((5, 3, 2), stage.grid_resolution)
    state = with_weights(state, [heavy], [0.3])
    new_stage, new = transition_stage(config, stage, state, StageTransition(3, prune, num_voxels))
    positions = positions_in(new.grid)
    before, after = values_at(stage, state, positions), values_at(new_stage, new, positions)
    assert np.std(before[0]) > 1e-3
    for old_value, new_value in zip(before, after, strict=True):
        np.testing.assert_allclose(new_value, old_value, rtol=2e-3, atol=2e-4)
    if prune:
        # Of the occupied cells those next to the one with a weight are left.
        expected = np.zeros(stage.grid_resolution, bool)
        expected[4:7, 2:5, 1:4] = True
        cells = OccupancyGrid(jnp.asarray(expected), state.grid.aabb)
        assert np.all(occupancy.lookup(new.grid, positions_in(cells)))
        if num_voxels is None:
            np.testing.assert_array_equal(new.grid.occupied, expected)


def test_upsampling_onto_all_the_old_points_keeps_any_factors() -> None:
    config = ball_config(side=8)
    stage, state = first_state(config)
    new_stage, new = transition_stage(config, stage, state, StageTransition(3, False, 15**3))
    assert resolution_of(new_stage) == (15, 15, 15)
    np.testing.assert_array_equal(new.grid.aabb, BOX)
    positions = positions_in(new.grid)
    before, after = values_at(stage, state, positions), values_at(new_stage, new, positions)
    for old_value, new_value in zip(before, after, strict=True):
        # On lines and planes between the old points both are linear.
        np.testing.assert_allclose(new_value, old_value, rtol=1e-3, atol=1e-5)


def test_upsampling_keeps_lines_without_planes() -> None:
    config = cp_config(init_scale=0.5)
    stage, state = first_state(config)
    assert "mlp" not in state.params.field
    new_stage, new = transition_stage(config, stage, state, StageTransition(3, False, 15**3))
    positions = positions_in(new.grid)
    before, after = values_at(stage, state, positions), values_at(new_stage, new, positions)
    for old_value, new_value in zip(before, after, strict=True):
        np.testing.assert_allclose(new_value, old_value, rtol=1e-3, atol=1e-5)
    assert np.std(before[1]) > 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_upsampling_loses_no_position_in_an_occupied_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    box = np.stack([np.zeros(3), rng.uniform(1.0, 3.0, 3)]).astype(np.float32)
    config = ball_config(side=9, occupancy_voxels=9**3)
    stage, state = first_state(config, box)
    stage = with_pruned(stage, True)
    occupied = np.zeros(stage.grid_resolution, bool)
    occupied[1:, 1:, 1:] = rng.uniform(size=occupied[1:, 1:, 1:].shape) < 0.05
    state = with_occupied(state, occupied)
    _, new = transition_stage(config, stage, state, StageTransition(3, False, 12**3))
    assert np.all(occupancy.lookup(new.grid, positions_in(state.grid, 4000)))


# -- voxels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("subdivide", [False, True])
def test_voxels_without_weight_are_dropped_but_for_neighbors(subdivide: bool) -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    grid = state.grid
    assert isinstance(grid, VoxelGrid) and isinstance(stage.field, Voxels)
    number = np.asarray(grid.cell_ids).reshape(grid.occupied.shape)
    assert stage.field.prune_threshold is not None
    weights = [0.5, 0.5 * stage.field.prune_threshold]
    weighted = with_weights(state, [number[4, 5, 6], number[1, 1, 1]], weights)
    transition = StageTransition(6, True, 16**3 if subdivide else None)
    new_stage, new = transition_stage(config, stage, weighted, transition)
    assert isinstance(new.grid, VoxelGrid) and new_stage == stage
    assert int(new.grid.occupied.sum()) == 27 * (8 if subdivide else 1)
    low = -1.5 + 3.0 / 8 * np.array([3, 4, 5])
    np.testing.assert_allclose(new.grid.aabb[0], low, atol=1e-6)
    assert new.params.field["table"].shape == state.params.field["table"].shape
    # Where no voxel has weight, none is dropped.
    _, new = transition_stage(config, stage, state, transition)
    assert int(new.grid.occupied.sum()) == 8**3 * (8 if subdivide else 1)


def test_a_table_that_gets_too_small_is_made_larger() -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    new_stage, new = transition_stage(config, stage, state, StageTransition(6, False, 16**3))
    assert isinstance(new.grid, VoxelGrid) and isinstance(new_stage.field, Voxels)
    rows, cells = new_stage.field.table_rows, new_stage.field.table_cells
    assert rows >= 17**3 + 1 and cells >= 16**3 + 1
    assert rows % 4096 == 0
    assert new.grid.corner_rows.shape == (cells, 8)
    assert new.params.field["table"].shape == (rows, 8)


# -- stages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_nerf, tiny_voxels])
def test_predict_next_stage_gives_the_stage_that_comes_or_none(
    make: Any, pruned: bool, aabb: np.ndarray
) -> None:
    config = make(supersample=2)
    if make is tiny_tensorf:
        config = change(config, prune_by="weight", prune_threshold=0.1)
    stage, state = first_state(config, aabb)
    stage = with_pruned(stage, pruned)
    finer = {tiny_tensorf: 12**3, tiny_nerf: None, tiny_voxels: 16**3}[make]
    if isinstance(state.grid, WeightTrackedGrid):
        slots = np.arange(1, state.grid.max_weight_log.size, 7)
        if make is tiny_tensorf:
            # Only a corner of the occupied cells has weight: pruning will leave a smaller box.
            occupied = np.zeros(stage.grid_resolution, bool)
            occupied[1:7, 1:6, 1:4] = True
            state = with_occupied(state, occupied)
            slots = np.array([np.ravel_multi_index((2, 2, 2), stage.grid_resolution)])
        state = with_weights(state, slots, np.full(slots.shape, 0.5))
    is_predicted = []
    for prune in (False, True):
        for count in {None, finer}:
            for supersample in (1, 2):
                transition = StageTransition(3, prune, count, supersample)
                predicted = transitions.predict_next_stage(config, stage, transition, state.grid)
                reached, _ = transition_stage(config, stage, state, transition)
                assert reached.supersample == supersample
                is_predicted.append(predicted is not None)
                if predicted is None:
                    assert make is tiny_tensorf and count is not None and not pruned
                elif make is tiny_voxels:
                    # The capacity that the table needs is known only then.
                    fields: list[Any] = [predicted.field, reached.field]
                    bare = [
                        dataclasses.replace(field, table_rows=0, table_cells=0) for field in fields
                    ]
                    assert bare[0] == bare[1]
                    assert dataclasses.replace(predicted, field=reached.field) == reached
                    assert transitions.same_shapes(stage, predicted)
                else:
                    assert predicted == reached
    assert all(is_predicted) or (make is tiny_tensorf and not pruned and any(is_predicted))


def test_a_transition_of_a_nerf_changes_nothing() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    new_stage, new = transition_stage(config, stage, state, StageTransition(1, True, 99))
    assert new_stage == stage and new.grid is state.grid
    assert are_same_arrays(new, state)

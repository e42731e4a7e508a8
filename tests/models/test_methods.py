"""Methods: what a training batch predicts and what is rendered."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    BOX,
    LONG,
    ball_config,
    change_nerf,
    cp_config,
    first_state,
    linear_factors,
    make_scene,
    marching_nerf,
    mostly_slow,
    positions_in,
    proposing_hashgrid,
    slow,
    tiny_bitnerf,
    tiny_hashgrid,
    tiny_nerf,
    tiny_pynerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.cameras import contraction
from jaxrf.cameras.base import image_rays
from jaxrf.core.errors import InputError
from jaxrf.core.rays import ConicalFrusta, Rays, clip_to_aabb
from jaxrf.fields import tensorf, voxels
from jaxrf.fields.base import Params
from jaxrf.fields.voxels import VoxelGrid
from jaxrf.models import methods
from jaxrf.models.base import StageSpec
from jaxrf.rendering.packed import render_packed
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import DensityEmaGrid, OccupancyGrid, WeightTrackedGrid
from jaxrf.training import config as configs
from jaxrf.training import pixels as batches
from jaxrf.training import transitions
from jaxrf.training.config import (
    CustomConfig,
    PyNeRFConfig,
    TensoRFConfig,
    TrainConfig,
    VoxelsConfig,
)
from jaxrf.training.transitions import StageTransition

# Compiled whole: operation by operation they take much longer.
PREDICT = jax.jit(methods.predict, static_argnums=(0, 1))
RENDER = jax.jit(methods.render_rays, static_argnums=(0, 1, 2))


def spheres(radii: jax.Array) -> ConicalFrusta:
    """Parts of cones of which only the radii matter."""
    ones = jnp.ones_like(radii)
    return ConicalFrusta(jnp.stack([ones, 0 * ones, 0 * ones], axis=-1), radii, ones, ones)


def some_rays(count: int = 512) -> Rays:
    pixels = batches.to_device(make_scene().splits["train"])
    return batches.make_batch(pixels, jax.random.key(1), count, (2.0, 6.0), "white")[0]


def ball_params(stage: StageSpec, params: Params, aabb: np.ndarray = BOX) -> Params:
    """Factors whose raw density is a bump in the middle: x^2 + y^2 + z^2 is a sum of products."""

    def bump(size: int, axis: int) -> jax.Array:
        return jnp.exp(-2.0 * jnp.linspace(*aabb[:, axis], size) ** 2)

    density = jax.tree.map(jnp.zeros_like, params["density"])
    planes = list(density["planes"])
    lines = list(density["lines"])
    for index, ((across, down), axis) in enumerate(
        zip(tensorf.PLANE_AXES, tensorf.LINE_AXES, strict=True)
    ):
        res = stage.resolution
        plane = bump(res[down], down)[:, None] * bump(res[across], across)[None]
        planes[index] = planes[index].at[..., 0].set(10.0 * plane)
        lines[index] = lines[index].at[..., 0].set(bump(res[axis], axis))
    return {**params, "density": {"planes": tuple(planes), "lines": tuple(lines)}}


def roomy(stage: StageSpec) -> StageSpec:
    """The stage with budgets that surely suffice for some thousand rays."""
    colors = stage.color_budget and 1 << 16
    return dataclasses.replace(
        stage, block_budget=1 << 16, sample_budget=1 << 16, color_budget=colors
    )


def render_training_views(
    config: TrainConfig, stage: StageSpec, params: Params, grid: OccupancyGrid
) -> WeightTrackedGrid:
    """The grid after all training rays have been through it a few times."""
    rays = some_rays(2048)
    for number in range(3):
        rest = (jax.random.key(number), rays, jnp.ones((2048, 3)))
        prediction = PREDICT(config.field, roomy(stage), params, grid, *rest)
        assert not np.any(prediction.dropped)
        grid = prediction.grid
    assert isinstance(grid, WeightTrackedGrid)
    return grid


def render_view(
    config: TrainConfig, stage: StageSpec, params: Params, grid: OccupancyGrid
) -> np.ndarray:
    rays = image_rays(make_scene().splits["test"].cameras, 0, 2.0, 6.0)
    rays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rays)
    background = jnp.array([0.0, 0.9, 0.9])
    rendering = RENDER(config.field, stage, 1 << 13, params, grid, rays, background, grid.aabb)
    return np.asarray(rendering.rgb)


@pytest.mark.parametrize("prune_by", ["alpha", "weight"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("prune", [slow(False), True])
@pytest.mark.parametrize("voxels", [None, 20**3])
def test_a_growth_keeps_what_the_field_shows(
    voxels: int | None, prune: bool, pruned: bool, prune_by: str
) -> None:
    config = ball_config(step_ratio=0.5, prune_by=prune_by)
    stage, state = first_state(config)
    params, grid = ball_params(stage, state.params), state.grid
    if pruned:
        grid = render_training_views(config, stage, params, grid)
        stage, grid, _ = transitions.grow(
            config, stage, StageTransition(1, True, None, 1), params, grid
        )
    before = render_view(config, stage, params, grid)
    assert before.std(axis=0).min() > 0.05  # there is something to see
    grid = render_training_views(config, stage, params, grid)
    new_stage, new, carry_over = transitions.grow(
        config, stage, StageTransition(2, prune, voxels, 1), params, grid
    )
    assert isinstance(new, WeightTrackedGrid)
    if prune or voxels:
        assert not np.any(occupancy.decayed_max_weights(new)), "cells are other ones now"
    after = render_view(config, new_stage, carry_over(params), new)
    assert np.abs(after - before).mean() < 0.01
    assert new_stage.pruned == (prune or pruned)
    if prune or pruned:
        assert 0 < np.mean(new.occupied) < 0.9 or voxels
    else:
        assert np.all(new.occupied)
    alone = grid
    if prune:
        _, alone, same = transitions.grow(
            config, stage, StageTransition(2, True, None, 1), params, grid
        )
        assert np.all(~alone.occupied | grid.occupied), "what was pruned has come back"
        assert same(params) is params
    if voxels is None:
        # Pruning alone leaves the box and the grid points as they are.
        np.testing.assert_array_equal(new.aabb, grid.aabb)
        assert transitions.same_shapes(stage, new_stage) and carry_over(params) is params
        np.testing.assert_array_equal(new.occupied, alone.occupied)
        if not prune:
            assert new_stage == stage
    else:
        assert np.prod(new_stage.resolution) == pytest.approx(voxels, rel=0.2)
        assert not transitions.same_shapes(stage, new_stage)
        # The box shrinks to what was occupied before, at the first pruning to what is left.
        box = occupancy.occupied_aabb(grid if pruned else alone)
        np.testing.assert_allclose(new.aabb, box, atol=1e-6)
        assert (np.prod(np.diff(new.aabb, axis=0)) < 0.9 * 27) == (prune or pruned)
        # No place that was kept is lost on the other cells.
        kept = positions_in(alone, 2000)
        assert np.all(occupancy.lookup(new, kept))
    shapes = jax.tree.map(jnp.shape, carry_over(params))
    fresh = methods.init_params(config.field, new_stage, jax.random.key(0))
    assert shapes == jax.tree.map(jnp.shape, fresh)


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_more_sub_rays_alone_make_the_grid_forget_nothing(make: Any) -> None:
    """Pruned by weight soon after, all that was not seen since would be dropped."""
    config = make(supersample=2)
    stage, state = first_state(config)
    grid = render_training_views(config, stage, state.params, state.grid)
    seen = occupancy.decayed_max_weights(grid)
    assert np.any(seen > 0.01)
    growth = StageTransition(3, False, None, 2)
    new_stage, new, carry_over = transitions.grow(config, stage, growth, state.params, grid)
    assert isinstance(new, WeightTrackedGrid) and new_stage.supersample == 2
    assert carry_over(state.params) is state.params
    np.testing.assert_array_equal(new.occupied, grid.occupied)
    np.testing.assert_array_equal(occupancy.decayed_max_weights(new), seen)


@pytest.mark.parametrize("voxels", [None, 10**3])
@pytest.mark.parametrize("prune_by", ["alpha", "weight"])
def test_pruning_an_empty_field_leaves_the_box(prune_by: str, voxels: int | None) -> None:
    config = ball_config(side=8, density_shift=-30.0, prune_by=prune_by)
    stage, state = first_state(config)
    params = jax.tree.map(jnp.zeros_like, state.params)
    grid = render_training_views(config, stage, params, state.grid)
    new_stage, new, _ = transitions.grow(
        config, stage, StageTransition(1, True, voxels, 1), params, grid
    )
    # By weight all cells stay in doubt: that nothing was seen may be due to the rays.
    assert np.all(new.occupied) if prune_by == "weight" else not np.any(new.occupied)
    np.testing.assert_allclose(new.aabb, BOX)
    assert new_stage.resolution == ((8, 8, 8) if voxels is None else (10, 10, 10))


@pytest.mark.slow
def test_by_weight_what_is_hidden_is_pruned_and_by_alpha_it_is_not() -> None:
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
        params = ball_params(stage, state.params)
        grid = render_training_views(config, stage, params, state.grid)
        _, grid, _ = transitions.grow(
            config, stage, StageTransition(1, True, None, 1), params, grid
        )
        kept[prune_by] = np.asarray(grid.occupied)
    assert np.all(kept["alpha"][7:9, 7:9, 7:9]) and not np.any(kept["weight"][7:9, 7:9, 7:9])
    assert not np.any(kept["weight"][:2, :2, :2]) and not np.any(kept["alpha"][:2, :2, :2])
    assert 0.05 < kept["weight"].mean() < kept["alpha"].mean() < 0.9


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.7])
def test_blocks_reach_across_the_box_wherever_they_begin(
    ratio: float, make: Any, aabb: np.ndarray
) -> None:
    field = dataclasses.replace(make().field, step_ratio=ratio)
    config = make(field=field)
    stage, state = first_state(config, aabb)
    step = float(methods.step_length(config.field, stage, state.grid.aabb))
    diagonal = float(np.linalg.norm(np.diff(np.asarray(state.grid.aabb), axis=0)))
    # A ray may begin up to a step before the box.
    assert stage.blocks * methods.STEPS_PER_BLOCK * step >= diagonal + step
    assert (stage.blocks - 2) * methods.STEPS_PER_BLOCK * step < diagonal


def solid(config: TrainConfig) -> TrainConfig:
    """So dense that the first sample hides all behind it."""
    field = dataclasses.replace(config.field, density_scale=1e9)
    return dataclasses.replace(config, field=field)


BUDGETS = [
    (tiny_tensorf, "block_budget", 100),
    (tiny_tensorf, "sample_budget", 500),
    (tiny_tensorf, "color_budget", 400),
    (tiny_voxels, "block_budget", 100),
    (tiny_voxels, "sample_budget", 500),
    (tiny_hashgrid, "block_budget", 100),
    (tiny_hashgrid, "sample_budget", 500),
]


@pytest.mark.parametrize("shading", ["per_ray", slow("per_sample")])
@pytest.mark.parametrize(("make", "limited", "budget"), BUDGETS)
def test_rays_past_a_budget_are_dropped_and_the_others_are_as_with_ample_ones(
    make: Any, limited: str, budget: int, shading: str
) -> None:
    config = make(field=dataclasses.replace(make().field, shading=shading))
    stage, state = first_state(config)
    rest = (state.params, state.grid, jax.random.key(3), some_rays(200), jnp.ones((200, 3)))
    ample = PREDICT(config.field, roomy(stage), *rest)
    assert not np.any(ample.dropped)
    tight = PREDICT(config.field, dataclasses.replace(roomy(stage), **{limited: budget}), *rest)
    dropped = np.asarray(tight.dropped)
    kept = int(np.sum(~dropped))
    assert 0 < kept < 200 and np.array_equal(dropped, np.arange(200) >= kept)
    np.testing.assert_allclose(tight.rgb[-1][:kept], ample.rgb[-1][:kept], atol=1e-5)
    np.testing.assert_allclose(tight.opacity[:kept], ample.opacity[:kept], atol=1e-5)
    if limited == "sample_budget":
        assert int(tight.samples) == budget < int(ample.samples)


def first_cells(
    config: TrainConfig, stage: StageSpec, grid: OccupancyGrid, rays: Rays, key: jax.Array
) -> tuple[set[int], int]:
    """Flat indices of the cells in which rays take their first sample; how many samples in all."""
    offset = np.asarray(jax.random.uniform(key, rays.near.shape), np.float64)
    clipped = clip_to_aabb(rays, grid.aabb)
    step = float(methods.step_length(config.field, stage, grid.aabb))
    low, high = np.asarray(grid.aabb, np.float64)
    cells, samples = set(), 0
    for ray in range(len(offset)):
        near, far = float(clipped.near[ray]), float(clipped.far[ray])
        first = None
        for index in range(int((far - near) / step) + 3):
            start, stop = (
                np.clip(near + (index + e - offset[ray]) * step, near, far) for e in (0, 1)
            )
            middle = 0.5 * (start + stop)
            position = np.asarray(rays.origins[ray]) + middle * np.asarray(rays.directions[ray])
            cell = np.floor((position - low) / (high - low) * grid.occupied.shape).astype(int)
            if stop > start and np.all((cell >= 0) & (cell < grid.occupied.shape)):
                flat = int(np.ravel_multi_index(tuple(cell), grid.occupied.shape))
                if grid.occupied.ravel()[flat]:
                    samples += 1
                    first = flat if first is None else first
        if first is not None:
            cells.add(first)
    return cells, samples


@pytest.mark.parametrize("make", [slow(tiny_tensorf), tiny_voxels])
def test_rays_teach_the_grid_in_which_cells_they_end(make: Any) -> None:
    config = solid(make())
    stage, state = first_state(config, LONG)
    key, rays = jax.random.key(5), some_rays(60)
    rest = (state.params, state.grid, key, rays, jnp.ones((60, 3)))
    prediction = PREDICT(config.field, roomy(stage), *rest)
    wanted, samples = first_cells(config, stage, state.grid, rays, key)
    assert int(prediction.samples) == samples > 200
    grid = prediction.grid
    assert isinstance(grid, WeightTrackedGrid) and int(grid.clock) == 1
    weights = np.asarray(occupancy.decayed_max_weights(grid))
    if isinstance(grid, VoxelGrid):
        weights = weights[np.asarray(grid.number)]
    assert set(np.flatnonzero(weights > 0.5).tolist()) == wanted
    assert 10 < len(wanted) < 60
    # A second look does not erase what the first has seen.
    again = PREDICT(config.field, roomy(stage), *rest[:1], grid, *rest[2:]).grid
    assert isinstance(again, WeightTrackedGrid) and int(again.clock) == 2


def test_the_samples_of_a_nerf_are_those_of_both_networks() -> None:
    config = tiny_nerf()  # 12 coarse ones, then 12 + 8
    stage, state = first_state(config)
    rest = (jax.random.key(0), some_rays(16), jnp.ones((16, 3)))
    prediction = PREDICT(config.field, stage, state.params, state.grid, *rest)
    assert int(prediction.samples) == 16 * (12 + 20)


@pytest.mark.parametrize("shading", ["per_ray", slow("per_sample")])
def test_pictures_are_the_same_whether_features_are_computed_for_all_samples_or_for_some(
    shading: str,
) -> None:
    config = ball_config(shading=shading, color_threshold=0.0, density_scale=0.3)
    stage, state = first_state(config)
    params = ball_params(stage, linear_factors(state.params))
    everything, some = (dataclasses.replace(stage, color_budget=n) for n in (0, 100))
    pictures = [render_view(config, s, params, state.grid) for s in (everything, some)]
    np.testing.assert_allclose(pictures[1], pictures[0], atol=1e-5)
    thrifty = ball_config(shading=shading, color_threshold=0.05, density_scale=0.3)
    assert np.abs(render_view(thrifty, some, params, state.grid) - pictures[0]).max() > 0.01
    np.testing.assert_array_equal(render_view(thrifty, everything, params, state.grid), pictures[0])


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_only_what_lies_in_the_asked_box_is_rendered(make: Any) -> None:
    config = solid(make())
    stage, state = first_state(config)
    half = jnp.asarray(BOX).at[1, 0].set(0.0)
    # Downwards, one through the half that is asked for and one through the other.
    rays = dataclasses.replace(
        some_rays(2),
        origins=jnp.asarray([[-0.7, 0.1, 4.0], [0.7, 0.1, 4.0]]),
        directions=jnp.asarray([[0.0, 0.0, -1.0]] * 2),
    )
    rest = (state.params, state.grid, rays, jnp.ones(3))
    everything = RENDER(config.field, stage, 1 << 12, *rest, jnp.asarray(BOX))
    np.testing.assert_allclose(everything.opacity, 1.0, atol=2e-3)
    found = RENDER(config.field, stage, 1 << 12, *rest, half)
    np.testing.assert_allclose(found.opacity, [1.0, 0.0], atol=2e-3)


@pytest.mark.parametrize("make", [slow(tiny_tensorf), tiny_voxels])
def test_marching_through_what_is_occupied_alone_shows_the_same(make: Any) -> None:
    config = solid(make())
    stage, state = first_state(config)
    occupied = np.zeros(state.grid.occupied.shape, bool)
    occupied[1:4, 2:6, 3:7] = True
    if isinstance(state.grid, VoxelGrid):
        grid: OccupancyGrid = voxels.refine(state.grid, occupied, 1, 4.0).grid
        grid = voxels.pad_grid(grid, stage.table_cells)
    else:
        plain = OccupancyGrid(jnp.asarray(occupied), state.grid.aabb)
        grid = occupancy.watch(plain, 8.0)
    tight, box = methods.eval_stage(config.field, stage, grid, crop_to_occupied=True)
    loose, whole_box = methods.eval_stage(config.field, stage, grid, crop_to_occupied=False)
    np.testing.assert_allclose(box, occupancy.occupied_aabb(grid), atol=1e-6)
    np.testing.assert_array_equal(whole_box, grid.aabb)
    assert dataclasses.replace(tight, blocks=stage.blocks) == loose
    assert loose.blocks == stage.blocks and methods.make_field(config.field, loose) == (
        methods.make_field(config.field, stage)
    )
    step = float(methods.step_length(config.field, stage, grid.aabb))
    assert 0 < tight.blocks < stage.blocks
    assert tight.blocks * methods.STEPS_PER_BLOCK * step >= np.linalg.norm(np.diff(box, axis=0))
    rays = some_rays(300)
    whole, part = (
        RENDER(config.field, s, 1 << 12, state.params, grid, rays, jnp.ones(3), jnp.asarray(b))
        for s, b in ((loose, whole_box), (tight, box))
    )
    # Steps begin elsewhere, which decides for rays that only cut an edge of a cell.
    same = np.abs(np.asarray(whole.opacity - part.opacity)) < 1e-3
    assert np.mean(same) > 0.9 and 0.1 < np.mean(part.opacity) < 0.9
    near = np.abs(np.asarray(whole.depth - part.depth))[same]
    assert np.max(near) <= step


@pytest.mark.parametrize("tight", [False, True])
def test_all_of_a_nerf_is_rendered(tight: bool) -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    _, box = methods.eval_stage(config.field, stage, state.grid, tight)
    np.testing.assert_array_equal(box, BOX)


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels, tiny_nerf])
def test_what_training_alone_needs_makes_no_other_program_to_render(make: Any) -> None:
    config = make()
    stage, state = first_state(config)
    bare, _ = methods.eval_stage(config.field, stage, state.grid, crop_to_occupied=False)
    changes = {"rays": 7, "supersample": 3, "block_budget": 8, "sample_budget": 9, "pruned": True}
    other = dataclasses.replace(stage, **changes)
    assert methods.eval_stage(config.field, other, state.grid, crop_to_occupied=False)[0] == bare
    # Whether features are computed for all samples does matter, for how many does not.
    some = [
        methods.eval_stage(
            config.field, dataclasses.replace(stage, color_budget=n), state.grid, False
        )[0]
        for n in (0, 5, 6)
    ]
    assert some[0] != some[1] == some[2]


def test_step_length_is_so_many_voxels() -> None:
    box = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 4.0]], np.float32)
    field = TensoRFConfig(step_ratio=0.25)
    stage = StageSpec((3, 5, 11), (1, 1, 1), 1, 1)
    wanted = 0.25 * np.mean([1.0, 0.5, 0.4])
    assert float(methods.step_length(field, stage, box)) == pytest.approx(wanted)
    # Voxels have their values at corners, of which there is one more than voxels along each axis.
    cubes, stage = VoxelsConfig(step_ratio=0.5), StageSpec((8, 8, 8), (8, 8, 8), 1, 1)
    assert float(methods.step_length(cubes, stage, 2 * BOX)) == pytest.approx(0.5 * 6.0 / 8)


def test_chunks_of_a_nerf_fit_the_allowance() -> None:
    for samples in (1 << 12, 1 << 16, 1 << 20):
        config = tiny_nerf(render_samples=samples)
        assert methods.rays_at_once(config) == max(64, samples // (12 + 12 + 8))


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels, tiny_hashgrid, marching_nerf])
def test_grids_render_as_many_rays_at_once_as_they_may_take_samples(make: Any) -> None:
    # Waves take some of their rays at a time, so that the samples do not add up.
    for samples in (1, 1 << 11, 1 << 20):
        assert methods.rays_at_once(make(render_samples=samples)) == samples


@pytest.mark.parametrize(
    "config",
    [
        tiny_tensorf(),
        tiny_nerf(),
        tiny_nerf(field=configs.NeRFConfig(num_fine_samples=0, width=8)),
        tiny_voxels(),
        tiny_hashgrid(),
        marching_nerf(),
        proposing_hashgrid(),
        tiny_hashgrid(field=PyNeRFConfig(heads=2, levels=2, log2_hashmap_size=8, finest=32)),
    ],
    ids=[
        "tensorf", "nerf", "coarse", "voxels", "hash grid", "marching nerf", "proposals", "pyramid"
    ],
)  # fmt: skip
def test_every_parameter_has_a_label(config: TrainConfig) -> None:
    _, state = first_state(config)
    labels = methods.label_params(state.params)
    assert jax.tree.structure(labels) == jax.tree.structure(state.params)
    assert set(jax.tree.leaves(labels)) <= {"grid", "network"}


def test_planes_and_lines_are_grids_and_the_rest_networks() -> None:
    config = tiny_tensorf()
    _, state = first_state(config)
    labels = methods.label_params(state.params)
    assert set(jax.tree.leaves([labels["density"], labels["features"]])) == {"grid"}
    assert set(jax.tree.leaves([labels["basis"], labels["mlp"]])) == {"network"}
    nerf = methods.label_params(first_state(tiny_nerf())[1].params)
    assert set(jax.tree.leaves(nerf)) == {"network"}


def test_a_nerf_without_fine_samples_has_one_network() -> None:
    config = tiny_nerf(field=dataclasses.replace(tiny_nerf().field, num_fine_samples=0))
    stage, state = first_state(config)
    assert set(state.params) == {"coarse"}
    rays = some_rays(16)
    key = jax.random.key(0)
    prediction = PREDICT(
        config.field, stage, state.params, state.grid, key, rays, jnp.ones((16, 3))
    )
    assert len(prediction.rgb) == 1 and not prediction.dropped.any()


def test_the_two_networks_of_a_nerf_start_differently() -> None:
    _, state = first_state(tiny_nerf())
    pairs = zip(
        jax.tree.leaves(state.params["coarse"]), jax.tree.leaves(state.params["fine"]), strict=True
    )
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_the_penalty_is_the_weighted_sum_of_its_terms() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    field = dataclasses.replace(
        config.field,
        l1_weight=0.5,
        l1_weight_pruned=0.25,
        density_tv_weight=2.0,
        feature_tv_weight=3.0,
    )
    params = state.params
    l1 = tensorf.l1_norm(params)
    variation = 2.0 * tensorf.total_variation(params["density"])
    variation += 3.0 * tensorf.total_variation(params["features"])
    rest = (state.grid, jax.random.key(0))
    found = methods.regularization(field, stage, params, *rest)
    np.testing.assert_allclose(found, 0.5 * l1 + variation, rtol=1e-6)
    faded = methods.regularization(field, stage, params, *rest, fade=jnp.asarray(0.1))
    np.testing.assert_allclose(faded, 0.5 * l1 + 0.1 * variation, rtol=1e-6)
    pruned = dataclasses.replace(stage, pruned=True)
    np.testing.assert_allclose(
        methods.regularization(field, pruned, params, *rest), 0.25 * l1 + variation, rtol=1e-6
    )
    nerf_stage, nerf = first_state(tiny_nerf())
    assert float(methods.regularization(tiny_nerf().field, nerf_stage, nerf.params, *rest)) == 0.0


def test_the_penalty_of_voxels_is_their_variation_in_some_cells() -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    field = dataclasses.replace(
        config.field, density_tv_weight=2.0, feature_tv_weight=3.0, tv_cells=4000
    )
    table = jax.random.normal(jax.random.key(2), state.params["table"].shape)
    params = state.params | {"table": table}
    assert isinstance(state.grid, VoxelGrid)
    everywhere = voxels.total_variation(table, state.grid.rows[1 : int(state.grid.count)])
    found = methods.regularization(field, stage, params, state.grid, jax.random.key(0))
    np.testing.assert_allclose(found, 2.0 * everywhere[0] + 3.0 * everywhere[1], rtol=0.03)
    none = dataclasses.replace(field, density_tv_weight=0.0, feature_tv_weight=0.0)
    assert float(methods.regularization(none, stage, params, state.grid, jax.random.key(0))) == 0.0


def test_training_rays_are_jittered_and_rendering_is_not() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    rays, behind = some_rays(32), jnp.ones((32, 3))
    predictions = [
        PREDICT(config.field, stage, state.params, state.grid, jax.random.key(k), rays, behind).rgb[
            -1
        ]
        for k in (0, 0, 1)
    ]
    assert np.array_equal(predictions[0], predictions[1])
    assert not np.array_equal(predictions[0], predictions[2])


@pytest.mark.parametrize(
    "config",
    [tiny_tensorf(), tiny_nerf(), tiny_voxels(), tiny_hashgrid()],
    ids=["tensorf", "nerf", "voxels", "hash grid"],
)
def test_rays_that_miss_the_box_show_the_background(config: TrainConfig) -> None:
    stage, state = first_state(config)
    rays = dataclasses.replace(some_rays(8), origins=jnp.full((8, 3), 50.0))
    background = jnp.array([0.1, 0.5, 0.7])
    rest = (state.params, state.grid, rays, background, state.grid.aabb)
    rendering = RENDER(config.field, stage, 1 << 12, *rest)
    np.testing.assert_allclose(rendering.rgb, np.tile(background, (8, 1)), atol=1e-6)
    np.testing.assert_allclose(rendering.opacity, 0.0, atol=1e-6)


def lively(params: Params, seed: int = 0) -> Params:
    """Parameters out of numpy, such that density and colour vary."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.6, x.shape), x.dtype), params)


@pytest.mark.parametrize("contract", [False, slow(True)])
def test_marching_shows_the_same_field_as_many_even_samples(contract: bool) -> None:
    config = tiny_hashgrid()
    scale = 0.1 if contract else 3.0
    field = dataclasses.replace(config.field, max_steps=400, density_scale=scale, contract=contract)
    stage, state = first_state(dataclasses.replace(config, field=field))
    params = lively(state.params)
    even = dataclasses.replace(
        field, sampler="hierarchical", num_coarse_samples=400, num_fine_samples=0
    )
    other_stage, other = first_state(dataclasses.replace(config, field=even))
    assert set(other.params) == {"coarse"} and not isinstance(other.grid, DensityEmaGrid)
    behind, key = jnp.asarray([0.0, 0.9, 0.9]), jax.random.key(0)
    rays = some_rays(40)
    box = jnp.asarray(BOX)
    found = [
        RENDER(field, stage, 1 << 13, params, state.grid, rays, behind, box),
        RENDER(even, other_stage, 1, {"coarse": params["fine"]}, other.grid, rays, behind, box),
    ]
    wanted = np.asarray(found[1].rgb)
    # Over infinite lengths any fog is opaque.
    assert wanted.std(axis=0).min() > 0.03 and 0.1 < np.mean(found[1].opacity) < 1.0 + contract
    np.testing.assert_allclose(found[0].rgb, wanted, atol=0.01)
    np.testing.assert_allclose(found[0].opacity, found[1].opacity, atol=0.01)
    behinds = jnp.broadcast_to(behind, (40, 3))
    for config_, stage_, params_, grid in (
        (field, roomy(stage), params, state.grid),
        (even, other_stage, {"coarse": params["fine"]}, other.grid),
    ):
        predicted = PREDICT(config_, stage_, params_, grid, key, rays, behinds)
        np.testing.assert_allclose(predicted.rgb[-1], wanted, atol=0.02)
        assert predicted.distortion.shape == (40,)
        found.append(predicted.distortion)
    np.testing.assert_allclose(found[2], found[3], rtol=0.05, atol=1e-3)


@pytest.mark.slow
def test_distortion_of_packed_samples_equals_a_double_loop() -> None:
    config = tiny_hashgrid()
    stage, state = first_state(config)
    stage, params, rays = roomy(stage), lively(state.params), some_rays(12)
    key, grid = jax.random.key(2), state.grid
    assert isinstance(grid, DensityEmaGrid)
    behind = jnp.ones((12, 3))
    predicted = PREDICT(config.field, stage, params, grid, key, rays, behind)
    budgets = (stage.blocks, methods.STEPS_PER_BLOCK, 1 << 10, 1 << 10)
    samples, _ = jax.jit(occupancy.march_to_samples, static_argnums=5)(
        grid,
        grid.coarse,
        clip_to_aabb(rays, grid.aabb),
        jax.random.uniform(key, (12,)),
        methods.step_length(config.field, stage, grid.aabb),
        occupancy.Marching(*budgets),
    )
    fns = methods.bind(methods.make_field(config.field, stage), params["fine"], grid)
    weights = jax.jit(lambda samples: render_packed(fns, rays, samples, behind).weights)(samples)
    for ray in range(12):
        mine = np.flatnonzero(samples.mask & (samples.ray_indices == ray))
        total = 0.0
        # Distances are from 0 at near to 1 at far: the scene is seen between 2 and 6.
        begin, end = ((np.asarray(t)[mine] - 2.0) / 4.0 for t in (samples.t_starts, samples.t_ends))
        for i, first in enumerate(mine):
            total += float(weights[first]) ** 2 * (end[i] - begin[i]) / 3.0
            for j, second in enumerate(mine):
                apart = abs(begin[i] + end[i] - begin[j] - end[j]) / 2.0
                total += float(weights[first] * weights[second]) * apart
        assert float(predicted.distortion[ray]) == pytest.approx(total, rel=1e-3, abs=1e-6)
    assert np.max(predicted.distortion) > 1e-3


def axis_rays() -> Rays:
    """Along the axes, through the middle, along a face and an edge, and past the box."""
    rows = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            for beside in ((0.0, 0.0), (1.5, 0.2), (1.5, -1.5), (1.7, 0.0)):
                rest = [a for a in range(3) if a != axis]
                origin, direction = np.zeros(3), np.zeros(3)
                origin[axis], direction[axis] = -4.0 * sign, sign
                origin[rest] = beside
                rows.append((origin, direction))
    origins, directions = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*rows, strict=True))
    rays = some_rays(len(rows))
    return dataclasses.replace(rays, origins=origins, directions=directions)


@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("contract", [False, True])
@pytest.mark.parametrize("make", [tiny_hashgrid, marching_nerf])
def test_gradients_through_marching_rays_along_the_axes_are_finite(
    make: Any, contract: bool, scale: float
) -> None:
    config = make()
    config = make(field=dataclasses.replace(config.field, contract=contract))
    stage, state = first_state(config)
    stage = roomy(stage)
    params, rays = lively(state.params), axis_rays()
    if make is tiny_hashgrid:
        config = make(field=dataclasses.replace(config.field, density_scale=scale))
    elif scale > 1.0:
        head = params["fine"]["params"]["density_head"]
        head["bias"] = head["bias"] + scale
    behind = jnp.ones((24, 3))

    def total(params: Params) -> Any:
        key = jax.random.key(0)
        predicted = methods.predict(config.field, stage, params, state.grid, key, rays, behind)
        return jnp.sum(predicted.rgb[-1]) + jnp.sum(predicted.distortion), predicted

    grads, predicted = jax.jit(jax.grad(total, has_aux=True))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    assert not np.any(predicted.dropped)
    if not contract:
        past = np.arange(24) % 4 == 3
        np.testing.assert_allclose(predicted.rgb[-1][past], 1.0, atol=1e-6)
        np.testing.assert_array_equal(predicted.opacity[past], 0.0)
    if scale > 1.0:
        np.testing.assert_allclose(predicted.opacity[::4], 1.0, atol=1e-5)
    else:
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


REFRESH = jax.jit(methods.refresh, static_argnums=(0, 1))


def test_cells_are_probed_now_and_then_and_their_turns_go_on() -> None:
    config = tiny_hashgrid()
    stage, state = first_state(config)
    params, grid = lively(state.params), state.grid
    assert isinstance(grid, DensityEmaGrid)
    step = methods.step_length(config.field, stage, grid.aabb)
    field, inner = methods.make_field(config.field, stage), params["fine"] | {"aabb": grid.aabb}
    probe = jax.jit(
        lambda grid, key, turn: occupancy.update_occupancy(
            grid,
            key,
            lambda positions, radii: field.density(inner, positions, radii)[0],
            step,
            turn,
            decay=0.95,
            threshold=0.01,
            reach=stage.reach,
        )
    )
    for number in range(13):
        key = jax.random.key(number)
        turn = number // 4
        wanted = probe(grid, jax.random.fold_in(key, turn), turn) if number % 4 == 0 else grid
        after = REFRESH(config.field, stage, params, grid, key)
        assert isinstance(after, DensityEmaGrid) and int(after.clock) == number + 1
        np.testing.assert_allclose(after.optical, wanted.optical, rtol=1e-5)
        np.testing.assert_array_equal(after.occupied, wanted.occupied)
        np.testing.assert_array_equal(after.coarse.occupied, wanted.coarse.occupied)
        grid = after
    assert np.all(grid.optical >= 0), "four turns are over"


@pytest.mark.parametrize("make", [tiny_nerf, tiny_tensorf])
def test_grids_that_are_not_probed_are_not_refreshed(make: Any) -> None:
    config = make()
    stage, state = first_state(config)
    key = jax.random.key(0)
    assert methods.refresh(config.field, stage, state.params, state.grid, key) is state.grid


@pytest.mark.slow
def test_samples_lie_in_occupied_cells_alone() -> None:
    config = solid(tiny_hashgrid())
    stage, state = first_state(config)
    occupied = np.zeros(stage.cells, bool)
    occupied[2:4, 3:5, 5:7] = True
    plain = OccupancyGrid(jnp.asarray(occupied), state.grid.aabb)
    grid = occupancy.init_density_ema(plain, stage.reach)
    rays = some_rays(300)
    rest = (state.params, grid, jax.random.key(0), rays, jnp.ones((300, 3)))
    predicted = PREDICT(config.field, roomy(stage), *rest)
    box = jnp.asarray(occupancy.occupied_aabb(grid), jnp.float32)
    clipped = clip_to_aabb(rays, box)
    length = np.asarray(clipped.far - clipped.near)
    step = float(methods.step_length(config.field, stage, BOX))
    opacity = np.asarray(predicted.opacity)
    assert np.all(opacity[length == 0] == 0) and np.all(opacity[length > step] > 0.999)
    assert 10 < np.sum(length > step) < 200
    # Rendering sees what training sees, in the whole box and in the tight one.
    tight, tight_box = methods.eval_stage(config.field, stage, grid, crop_to_occupied=True)
    assert tight.blocks < stage.blocks
    for s, b in ((stage, BOX), (tight, tight_box)):
        args = (state.params, grid, rays, jnp.ones(3), jnp.asarray(b))
        shown = np.asarray(RENDER(config.field, s, 1 << 12, *args).opacity)
        assert np.all(shown[length == 0] == 0) and np.all(shown[length > step] > 0.999)


@pytest.mark.parametrize("sampler", ["hierarchical", slow("occupancy")])
def test_density_is_noisy_in_training_and_not_in_rendering(sampler: str) -> None:
    make = tiny_nerf if sampler == "hierarchical" else marching_nerf
    plain, rays = make(), some_rays(16)
    noisy = make(field=dataclasses.replace(plain.field, density_noise=2.0))
    stage, state = first_state(plain)
    rest = (state.params, state.grid, jax.random.key(0), rays, jnp.ones((16, 3)))
    pair = [PREDICT(c.field, roomy(stage), *rest) for c in (plain, noisy)]
    for quiet, loud in zip(pair[0].rgb, pair[1].rgb, strict=True):
        assert np.max(np.abs(quiet - loud)) > 1e-3
    rest = (state.params, state.grid, rays, jnp.ones(3), state.grid.aabb)
    shown = [RENDER(c.field, stage, 1 << 12, *rest).rgb for c in (plain, noisy)]
    np.testing.assert_array_equal(shown[0], shown[1])


def test_the_penalty_of_lines_holds_their_nonorthogonality_and_variation() -> None:
    config = cp_config(orthogonality_weight=0.7, l1_weight=0.0, density_tv_weight=3.0)
    stage, state = first_state(config)
    rest = (state.params, state.grid, jax.random.key(0))
    found = methods.regularization(config.field, stage, *rest)
    wanted = 0.7 * tensorf.ortho_loss(state.params)
    wanted += 3.0 * tensorf.total_variation(state.params["density"])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert float(found) > 0


@pytest.mark.slow
def test_what_proposals_miss_teaches_them_alone() -> None:
    config = proposing_hashgrid()
    stage, state = first_state(config)
    rays = some_rays(48)
    behind = jnp.ones((48, 3))

    def missed(params: Params) -> jax.Array:
        key = jax.random.key(0)
        predicted = methods.predict(config.field, stage, params, state.grid, key, rays, behind)
        return jnp.sum(predicted.missed)

    # The field is denser than its proposal thinks.

    params = {**state.params, "fine": jax.tree.map(lambda x: 3.0 * x + 0.3, state.params["fine"])}
    value, slope = jax.jit(jax.value_and_grad(missed))(params)
    assert float(value) > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope["fine"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(slope["proposals"]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_proposals_count_among_the_samples_of_a_ray() -> None:
    field = proposing_hashgrid().field
    assert isinstance(field, configs.SampledConfig)
    assert methods.samples_per_ray(field) == 26 and not methods.marches(field)
    two = dataclasses.replace(field, num_proposal_samples=(32, 16), proposal_resolutions=(64, 128))
    assert methods.samples_per_ray(two) == 58
    assert [p.finest for p in methods.make_proposals(two)] == [64, 128]


# What captured scenes need of any field.

# One of each way of sampling and of each kind of grid.
WAYS = [slow(tiny_voxels), slow(tiny_tensorf), tiny_nerf, marching_nerf, proposing_hashgrid]


def capture(make: Any, **changes: Any) -> TrainConfig:
    config = make()
    return dataclasses.replace(config, field=dataclasses.replace(config.field, **changes))


def outgoing_rays(count: int = 40) -> Rays:
    """From within the box, to all sides."""
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = rng.uniform(-1.0, 1.0, (count, 3))
    return dataclasses.replace(
        some_rays(count),
        origins=jnp.asarray(origins, jnp.float32),
        directions=jnp.asarray(directions, jnp.float32),
        near=jnp.full((count,), 0.1),
    )


@pytest.mark.parametrize("make", WAYS)
def test_contracted_space_is_seen_beyond_the_box_and_the_range_of_distances(make: Any) -> None:
    config = capture(make, contract=True)
    stage, state = first_state(config)
    assert np.max(np.abs(state.grid.aabb)) >= 2.99
    rays = outgoing_rays()
    params = lively(state.params)
    behind = jnp.ones((40, 3))

    def total(params: Params) -> Any:
        key = jax.random.key(0)
        predicted = methods.predict(
            config.field, roomy(stage), params, state.grid, key, rays, behind
        )
        return jnp.sum(predicted.rgb[-1]) + jnp.sum(predicted.distortion), predicted

    grads, predicted = jax.jit(jax.grad(total, has_aux=True))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    # Hardly any of space is empty, and rays have no end.
    assert np.mean(predicted.opacity > 0.98) > 0.8
    shown = RENDER(config.field, stage, 1 << 12, params, state.grid, rays, jnp.ones(3))
    assert np.mean(shown.opacity > 0.98) > 0.8
    distance = jnp.linspace(0.5, 60.0, 7)
    far = (rays.origins[0][None] + distance[:, None] * rays.directions[:1]).astype(jnp.float32)
    grid = dataclasses.replace(state.grid, bounds=None)
    inner = params.get("fine", params)
    field = methods.make_field(config.field, stage)
    radii = jnp.full((7,), 0.01)
    cones = spheres(radii)
    bound = methods.bind(field, inner, state.grid).density(far, cones)[0]
    where, box = jnp.asarray(far), jnp.asarray(BOX)
    there = contraction.contract(where, box)
    shrunk = contraction.contract_radii(radii, where, box)
    expected = methods.bind(field, inner, grid).density(there, spheres(shrunk))[0]
    np.testing.assert_allclose(bound, expected, rtol=1e-5)
    assert np.all(np.asarray(bound)[-1] > 0)


@pytest.mark.parametrize("make", [tiny_voxels, tiny_tensorf])
def test_contracted_space_stays_whole_as_grids_grow(make: Any) -> None:
    config = capture(make, contract=True)
    stage, state = first_state(config)
    rays, key = outgoing_rays(), jax.random.key(0)
    behind = jnp.ones((40, 3))
    before = PREDICT(config.field, roomy(stage), state.params, state.grid, key, rays, behind)
    for growth in transitions.plan_transitions(config):
        if growth.voxels is None:
            continue
        divide = dataclasses.replace(stage)
        upsampling = growth._replace(prune=False)
        stage, grid, carry = transitions.grow(config, divide, upsampling, state.params, state.grid)
        np.testing.assert_array_equal(grid.bounds, BOX)
        assert stage.blocks >= 1 and bool(np.all(np.asarray(grid.aabb[1]) >= 2.99))
        params = carry(state.params)
        after = PREDICT(config.field, roomy(stage), params, grid, key, rays, behind)
        np.testing.assert_allclose(after.rgb[-1], before.rgb[-1], atol=0.05)


@pytest.mark.parametrize(
    "make", [slow(tiny_voxels), slow(cp_config), tiny_nerf, slow(tiny_hashgrid)]
)
def test_pictures_look_alike_until_their_codes_differ(make: Any) -> None:
    plain = make()
    config = capture(make, appearance_dim=3, num_appearances=6)
    stage, state = first_state(config)
    rays, behind, key = some_rays(60), jnp.zeros((60, 3)), jax.random.key(0)
    inner = {name: value for name, value in state.params.items() if name != "appearance"}
    assert state.params["appearance"]["codes"].shape == (6, 3)
    expected = PREDICT(plain.field, roomy(stage), inner, state.grid, key, rays, behind)
    found = PREDICT(config.field, roomy(stage), state.params, state.grid, key, rays, behind)
    np.testing.assert_allclose(found.rgb[-1], expected.rgb[-1], atol=1e-6)

    codes = jnp.zeros((6, 3)).at[2].set(5.0)
    changed = state.params | {"appearance": state.params["appearance"] | {"codes": codes}}
    seen = PREDICT(config.field, roomy(stage), changed, state.grid, key, rays, behind)
    others = np.asarray(rays.camera_index) != 2
    np.testing.assert_allclose(seen.rgb[-1][others], expected.rgb[-1][others], atol=1e-6)
    apart = np.abs(np.asarray(seen.rgb[-1] - expected.rgb[-1]))[~others]
    assert apart.max() > 1e-4
    np.testing.assert_allclose(seen.opacity, expected.opacity, atol=1e-6)

    # Views are shown with the mean of all codes, whichever camera they are seen from.
    mean = changed | {"appearance": changed["appearance"] | {"codes": jnp.full((6, 3), 5.0 / 6.0)}}
    views = [
        RENDER(config.field, stage, 1 << 12, params, state.grid, rays, jnp.zeros(3)).rgb
        for params in (changed, mean)
    ]
    np.testing.assert_allclose(views[0], views[1], atol=1e-5)


def test_codes_learn_from_their_own_pictures() -> None:
    config = capture(tiny_hashgrid, appearance_dim=3, num_appearances=6)
    stage, state = first_state(config)
    rays, behind = some_rays(60), jnp.zeros((60, 3))
    rays = dataclasses.replace(rays, camera_index=rays.camera_index % 4)

    def total(params: Params) -> Any:
        key = jax.random.key(0)
        grid = state.grid
        return jnp.sum(methods.predict(config.field, stage, params, grid, key, rays, behind).rgb[0])

    grads = jax.jit(jax.grad(total))(lively(state.params))["appearance"]["codes"]
    learning = np.any(np.asarray(grads) != 0, axis=-1)
    np.testing.assert_array_equal(learning, [True] * 4 + [False] * 2)


@pytest.mark.parametrize("blend", ["features", "results"])
def test_the_appearance_of_a_pyramid_leaves_the_shares_of_its_heads(blend: Any) -> None:
    field = PyNeRFConfig(
        heads=3, levels=2, finest=16, log2_hashmap_size=8, width=8, color_width=8, blend=blend,
        feature_dim=4, appearance_dim=2, num_appearances=6, occupancy_resolution=4, max_steps=16,
    )  # fmt: skip
    stage, state = first_state(tiny_hashgrid(field=field))
    channels = 12 if blend == "results" else 4
    assert state.params["appearance"]["matrix"].shape == (2, channels)
    rays = some_rays(8)
    args = (state.params, state.grid, jax.random.key(0), rays, jnp.zeros((8, 3)))
    assert np.all(np.isfinite(PREDICT(field, stage, *args).rgb[0]))


def test_a_field_whose_features_are_not_counted_has_no_appearances(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "class Bare:\n    init = density = features = color = lambda *_: None\n"
    )
    field = CustomConfig(source=f"{tmp_path / 'bare.py'}:Bare", appearance_dim=2)
    with pytest.raises(InputError, match="Bare has no feature_dim"):
        methods.init_params(field, StageSpec((1, 1, 1), (1, 1, 1), 1, 1), jax.random.key(0))


def test_at_first_every_cell_is_probed_at_once() -> None:
    config = tiny_hashgrid()
    field = dataclasses.replace(config.field, occupancy_warmup_steps=5)
    config = tiny_hashgrid(field=field)
    stage, state = first_state(config)
    params, grid = lively(state.params), state.grid
    assert isinstance(grid, DensityEmaGrid)
    first = REFRESH(config.field, stage, params, grid, jax.random.key(0))
    assert isinstance(first, DensityEmaGrid) and np.all(first.optical >= 0)
    # Step 4 is one of the first five still, step 8 is not: a quarter and those that are occupied.
    late = dataclasses.replace(grid, clock=jnp.asarray(8, jnp.int32))
    assert np.sum(REFRESH(config.field, stage, params, late, jax.random.key(0)).optical < 0) > 0
    early = dataclasses.replace(grid, clock=jnp.asarray(4, jnp.int32))
    assert np.all(REFRESH(config.field, stage, params, early, jax.random.key(0)).optical >= 0)


def nerf_slowly(
    config: TrainConfig, stage: StageSpec, params: Params, rays: Rays, near: float, far: float
) -> np.ndarray:
    """Pixels of a NeRF as its original code computes them, without jitter, in float64."""
    field, sampled = methods.make_field(config.field, stage), config.field
    assert isinstance(sampled, configs.NeRFConfig)

    def look(name: str, origin: np.ndarray, direction: np.ndarray, t: np.ndarray) -> Any:
        points = jnp.asarray(origin + t[:, None] * direction, jnp.float32)
        density, latent = field.density(params[name], points, jnp.zeros(len(t)))
        along = jnp.asarray(np.tile(direction, (len(t), 1)), jnp.float32)
        rgb = field.color(params[name], field.features(params[name], latent), along)
        dists = np.append(np.diff(t), 1e10)
        alpha = 1.0 - np.exp(-np.asarray(density, np.float64) * dists)
        light = np.cumprod(np.append(1.0, 1.0 - alpha[:-1] + 1e-10))
        weights = alpha * light
        return weights, weights @ np.asarray(rgb, np.float64) + 1.0 - weights.sum()

    pixels = []
    for origin, direction in zip(
        np.asarray(rays.origins, np.float64), np.asarray(rays.directions, np.float64), strict=True
    ):
        steps = np.linspace(0.0, 1.0, sampled.num_coarse_samples)
        if sampled.spacing == "linear":
            t = near * (1.0 - steps) + far * steps
        else:
            t = 1.0 / (1.0 / near * (1.0 - steps) + 1.0 / far * steps)
        weights, _ = look("coarse", origin, direction, t)
        middles, inner = 0.5 * (t[1:] + t[:-1]), weights[1:-1] + 1e-5
        cdf = np.append(0.0, np.cumsum(inner / inner.sum()))
        drawn = np.interp(np.linspace(0.0, 1.0, sampled.num_fine_samples), cdf, middles)
        t = np.sort(np.concatenate([t, drawn]))
        pixels.append(look("fine", origin, direction, t)[1])
    return np.array(pixels)


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
def test_points_give_the_pixels_of_the_original_code(spacing: Any) -> None:
    config = tiny_nerf()
    field = dataclasses.replace(config.field, quadrature="points", spacing=spacing)
    config = tiny_nerf(field=field)
    stage, state = first_state(config)
    params, rays = lively(state.params), some_rays(12)
    shown = RENDER(config.field, stage, 1 << 12, params, state.grid, rays, jnp.ones(3))
    wanted = nerf_slowly(config, stage, params, rays, 2.0, 6.0)
    assert np.std(wanted) > 0.02
    np.testing.assert_allclose(shown.rgb, wanted, atol=2e-4)


EVERY_FIELD = {
    "tensorf": tiny_tensorf(),
    "tensorf, per sample": tiny_tensorf(
        field=dataclasses.replace(
            tiny_tensorf().field, shading="per_sample", max_shaded_fraction=0.5
        )
    ),
    "cp": cp_config(),
    "voxels": tiny_voxels(),
    "nerf": tiny_nerf(),
    "nerf, points": change_nerf(quadrature="points"),
    "nerf, disparity, relu": change_nerf(spacing="disparity", activation="relu"),
    "nerf, integrated": change_nerf(encoding="integrated"),
    "marching nerf, integrated": marching_nerf(
        field=dataclasses.replace(marching_nerf().field, encoding="integrated")
    ),
    "bitnerf": tiny_bitnerf(),
    "hash grid": tiny_hashgrid(),
    "hash grid, bfloat16": tiny_hashgrid(
        field=dataclasses.replace(tiny_hashgrid().field, table_dtype="bfloat16")
    ),
    "proposals": proposing_hashgrid(),
    "pyramid": tiny_pynerf(),
    "pyramid, results": tiny_pynerf(blend="results"),
    "pyramid, separate": tiny_pynerf(tables="separate"),
}


@pytest.mark.parametrize("config", EVERY_FIELD.values(), ids=EVERY_FIELD)
def test_gradients_of_every_field_and_sampler_are_finite_at_the_extremes(
    config: TrainConfig,
) -> None:
    stage, state = first_state(config)
    stage = roomy(stage)
    rays = axis_rays()
    # Some without length, some that end before the box, the others along an axis, past it or in it.
    number = np.arange(24)
    far = np.where(number % 8 == 1, 2.0, np.where(number % 8 == 4, 2.1, 6.0))
    rays = dataclasses.replace(rays, far=jnp.asarray(far, jnp.float32))
    behind = jnp.ones((24, 3))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def differentiate(params: Params) -> Any:
        key = jax.random.key(0)
        predicted = methods.predict(config.field, stage, params, state.grid, key, rays, behind)
        loss = sum(jnp.sum(rgb) for rgb in predicted.rgb) + jnp.sum(predicted.distortion)
        penalty = methods.regularization(config.field, stage, params, state.grid, key)
        return loss + jnp.sum(predicted.missed) + penalty, predicted

    for scale in (1.0, 1e3):
        params = jax.tree.map(lambda x, scale=scale: scale * x, lively(state.params))
        grads, predicted = differentiate(params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
        assert all(np.all(np.isfinite(rgb)) for rgb in predicted.rgb)
        opacity = np.asarray(predicted.opacity)
        assert np.all((opacity >= 0) & (opacity < 1.001))
        if scale == 1.0:
            assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("config", mostly_slow([*EVERY_FIELD.values()], 5), ids=EVERY_FIELD)
def test_what_is_rendered_does_not_depend_on_how_rays_are_batched(config: TrainConfig) -> None:
    stage, state = first_state(config)
    params, rays = lively(state.params), some_rays(24)
    whole = RENDER(config.field, stage, 1 << 12, params, state.grid, rays, jnp.ones(3))
    part = jax.tree.map(lambda x: x[:7], rays)
    alone = RENDER(config.field, stage, 1 << 12, params, state.grid, part, jnp.ones(3))
    np.testing.assert_allclose(alone.rgb, whole.rgb[:7], atol=2e-5)


def test_what_lies_on_the_border_of_a_box_is_pulled_inside_and_nothing_else() -> None:
    aabb = jnp.array([[-1.0, -2.0, 0.0], [1.0, 2.0, 3.0]])
    given = jnp.array([[1.000001, 0.5, 3.000001], [1.001, 0.5, 1.0], [0.3, -2.0, 1.0], [0.3, 0, 1]])
    on_border = np.asarray(methods.clamp_to_aabb(given, aabb))
    np.testing.assert_array_equal(on_border[0], [1.0, 0.5, 3.0])
    np.testing.assert_array_equal(on_border[1:], given[1:])
    found = np.asarray(methods.clamp_to_aabb(given, aabb, methods.AABB_EPS))
    low, high = np.asarray(aabb)
    assert np.all((found[[0, 2]] > low) & (found[[0, 2]] < high))
    np.testing.assert_allclose(found, given, atol=2e-5)
    # Beyond rounding it stays where it is, and so does what is well inside.
    np.testing.assert_array_equal(found[[1, 3]], given[jnp.array([1, 3])])

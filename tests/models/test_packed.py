"""The packed model: budgets, marching through occupied cells, and updates of the grid."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from renders import (
    ample,
    axis_rays,
    ball_params,
    make_opaque,
    random_params,
    render_batch,
    render_image,
    render_view,
    train_rays,
)
from scenes import (
    BOX,
    LONG,
    ball_config,
    change,
    first_state,
    linear_factors,
    marching_nerf,
    slow,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.core.errors import InputError
from jaxrf.core.kernels import calls
from jaxrf.core.rays import Rays, clip_to_aabb
from jaxrf.fields import voxel_grid
from jaxrf.fields.base import FieldContext
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxel_grid import VoxelGrid
from jaxrf.fields.voxels import Voxels
from jaxrf.models.base import ModelParams, StageSpec
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.networks import close_over_params
from jaxrf.models.packed import PackedModel
from jaxrf.rendering.packed import render_packed_samples
from jaxrf.sampling import density_tracking, occupancy, weight_tracking
from jaxrf.sampling.density_tracking import DensityTrackedGrid
from jaxrf.sampling.marching import STEPS_PER_BLOCK, MarchConfig, march_to_samples
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.sampling.weight_tracking import WeightTrackedGrid
from jaxrf.training.config import TrainConfig

# -- numbers -----------------------------------------------------------------------------------


INTEGERS = ("steps_per_diagonal", "occupancy_resolution", "occupancy_update_interval")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in INTEGERS for value in (0, -1)),
        *(("max_colored_fraction", value) for value in (0.0, -0.5, float("nan"))),
    ],
)
def test_packed_model_refuses_numbers_that_are_not_positive(name: str, value: Any) -> None:
    option = f"model.{name} is {value}: give a number above 0"
    with pytest.raises(InputError, match=option):
        PackedModel(**{name: value})


def _step_size(config: TrainConfig, stage: StageSpec, aabb: Any) -> float:
    assert isinstance(config.model, PackedModel)
    return float(config.model.step_size(stage.field, aabb))


def test_step_size_is_step_ratio_voxels() -> None:
    box = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 4.0]], np.float32)
    factors = TensoRF(step_ratio=0.25, resolution=(3, 5, 11))
    expected = 0.25 * np.mean([1.0, 0.5, 0.4])
    assert float(PackedModel().step_size(factors, box)) == pytest.approx(expected)
    # Voxels have their values at corners, of which there is one more than voxels along each axis.
    cubes = Voxels(step_ratio=0.5, initial_resolution=8, num_subdivisions=0)
    assert float(PackedModel().step_size(cubes, 2 * BOX)) == pytest.approx(0.5 * 6.0 / 8)


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.7])
def test_max_blocks_reach_across_the_box_from_any_offset(
    ratio: float, make: Any, aabb: np.ndarray
) -> None:
    config = make(step_ratio=ratio)
    stage, state = first_state(config, aabb)
    step = _step_size(config, stage, state.grid.aabb)
    diagonal = float(np.linalg.norm(np.diff(np.asarray(state.grid.aabb), axis=0)))
    # A ray may begin up to a step before the box.
    assert stage.max_blocks * STEPS_PER_BLOCK * step >= diagonal + step
    assert (stage.max_blocks - 2) * STEPS_PER_BLOCK * step < diagonal


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels, tiny_hashgrid, marching_nerf])
def test_rays_per_chunk_is_the_number_of_samples(make: Any) -> None:
    # Waves take some of their rays at a time, so that the samples do not add up.
    for samples in (1, 1 << 11, 1 << 20):
        assert make().model.rays_per_chunk(samples) == samples
        assert make().model.samples_per_ray() is None


# -- training batches --------------------------------------------------------------------------

BUDGETS = [
    (tiny_tensorf, "block_budget", 100),
    (tiny_tensorf, "sample_budget", 500),
    (tiny_tensorf, "color_budget", 400),
    (tiny_voxels, "block_budget", 100),
    (tiny_voxels, "sample_budget", 500),
    (tiny_hashgrid, "block_budget", 100),
    (tiny_hashgrid, "sample_budget", 500),
]


@pytest.mark.parametrize("coloring", ["per_ray", slow("per_sample")])
@pytest.mark.parametrize(("make", "limited", "budget"), BUDGETS)
def test_rays_past_a_budget_overflow_and_the_others_are_as_with_ample_ones(
    monkeypatch: pytest.MonkeyPatch, make: Any, limited: str, budget: int, coloring: str
) -> None:
    if limited == "block_budget":
        # The kernel that marches has none.
        monkeypatch.setenv(calls.SWITCH, "off")
    config = make(coloring=coloring)
    stage, state = first_state(config)
    batch = (state.params, state.grid, jax.random.key(3), train_rays(200), jnp.ones((200, 3)))
    complete = render_batch(config, ample(stage), *batch)
    assert not np.any(complete.overflowed)
    limits: Any = {limited: budget}
    limited_rendering = render_batch(config, dataclasses.replace(ample(stage), **limits), *batch)
    overflowed = np.asarray(limited_rendering.overflowed)
    count = int(np.sum(~overflowed))
    assert 0 < count < 200 and np.array_equal(overflowed, np.arange(200) >= count)
    np.testing.assert_allclose(
        limited_rendering.rgb[-1][:count], complete.rgb[-1][:count], atol=1e-5
    )
    np.testing.assert_allclose(
        limited_rendering.opacity[:count], complete.opacity[:count], atol=1e-5
    )
    if limited == "sample_budget":
        assert int(limited_rendering.num_samples) == budget < int(complete.num_samples)


def _first_cells(
    config: TrainConfig, stage: StageSpec, grid: OccupancyGrid, rays: Rays, key: jax.Array
) -> tuple[set[int], int]:
    """Flat indices of the cells of the rays' first samples, and the number of all samples."""
    offset = np.asarray(jax.random.uniform(key, rays.near.shape), np.float64)
    clipped = clip_to_aabb(rays, grid.aabb)
    step = _step_size(config, stage, grid.aabb)
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
def test_render_train_records_the_weights_of_cells_in_which_rays_end(make: Any) -> None:
    config = make_opaque(make())
    stage, state = first_state(config, LONG)
    key, rays = jax.random.key(5), train_rays(60)
    batch = (key, rays, jnp.ones((60, 3)))
    rendering = render_batch(config, ample(stage), state.params, state.grid, *batch)
    expected, samples = _first_cells(config, stage, state.grid, rays, key)
    assert int(rendering.num_samples) == samples > 200
    grid = rendering.grid
    assert isinstance(grid, WeightTrackedGrid) and int(grid.step) == 1
    weights = np.asarray(weight_tracking.decayed_max_weights(grid))
    if isinstance(grid, VoxelGrid):
        weights = weights[np.asarray(grid.cell_ids)]
    assert set(np.flatnonzero(weights > 0.5).tolist()) == expected
    assert 10 < len(expected) < 60
    # A second batch does not erase what the first has recorded.
    again = render_batch(config, ample(stage), state.params, grid, *batch).grid
    assert isinstance(again, WeightTrackedGrid) and int(again.step) == 2


@pytest.mark.parametrize("coloring", ["per_ray", slow("per_sample")])
def test_images_are_the_same_whether_features_are_computed_for_all_or_for_some_samples(
    coloring: str,
) -> None:
    config = ball_config(coloring=coloring, color_threshold=0.0, density_scale=0.3)
    stage, state = first_state(config)
    linear = state.params._replace(field=linear_factors(state.params.field))
    params = ball_params(stage, linear)
    unlimited, limited = (dataclasses.replace(stage, color_budget=n) for n in (0, 100))
    images = [render_view(config, s, params, state.grid) for s in (unlimited, limited)]
    np.testing.assert_allclose(images[1], images[0], atol=1e-5)
    thresholded = change(config, color_threshold=0.05)
    difference = np.abs(render_view(thresholded, limited, params, state.grid) - images[0])
    assert difference.max() > 0.01
    np.testing.assert_array_equal(
        render_view(thresholded, unlimited, params, state.grid), images[0]
    )


@pytest.mark.parametrize("contract", [False, slow(True)])
def test_marching_renders_the_same_field_as_many_even_samples(contract: bool) -> None:
    scale = 0.1 if contract else 3.0
    config = tiny_hashgrid(steps_per_diagonal=400, density_scale=scale, contract=contract)
    stage, state = first_state(config)
    params = random_params(state.params)
    even = change(
        config,
        model=HierarchicalModel(num_coarse_samples=400, num_fine_samples=0, contract=contract),
    )
    even_stage, even_state = first_state(even)
    assert even_state.params.coarse is None
    assert not isinstance(even_state.grid, DensityTrackedGrid)
    color, key = jnp.asarray([0.0, 0.9, 0.9]), jax.random.key(0)
    view = (train_rays(40), color, jnp.asarray(BOX))
    marched = render_image(config, stage, 1 << 13, params, state.grid, *view)
    sampled = render_image(even, even_stage, 1, params, even_state.grid, *view)
    expected = np.asarray(sampled.rgb)
    # Over infinite lengths any fog is opaque.
    assert expected.std(axis=0).min() > 0.03
    assert 0.1 < np.mean(sampled.opacity) < 1.0 + contract
    np.testing.assert_allclose(marched.rgb, expected, atol=0.01)
    np.testing.assert_allclose(marched.opacity, sampled.opacity, atol=0.01)
    distortions = []
    for each_config, each_stage, grid in (
        (config, ample(stage), state.grid),
        (even, even_stage, even_state.grid),
    ):
        batch = (key, view[0], jnp.broadcast_to(color, (40, 3)))
        rendering = render_batch(each_config, each_stage, params, grid, *batch)
        np.testing.assert_allclose(rendering.rgb[-1], expected, atol=0.02)
        assert rendering.distortion_loss.shape == (40,)
        distortions.append(rendering.distortion_loss)
    np.testing.assert_allclose(distortions[0], distortions[1], rtol=0.05, atol=1e-3)


@pytest.mark.slow
def test_distortion_of_packed_samples_equals_a_double_loop() -> None:
    config = tiny_hashgrid()
    stage, state = first_state(config)
    stage, params, rays = ample(stage), random_params(state.params), train_rays(12)
    key, grid = jax.random.key(2), state.grid
    assert isinstance(grid, DensityTrackedGrid)
    background = jnp.ones((12, 3))
    rendering = render_batch(config, stage, params, grid, key, rays, background)
    samples, _ = jax.jit(march_to_samples, static_argnums=5)(
        grid,
        grid.coarse,
        clip_to_aabb(rays, grid.aabb),
        jax.random.uniform(key, (12,)),
        _step_size(config, stage, grid.aabb),
        MarchConfig(stage.max_blocks, STEPS_PER_BLOCK, 1 << 10, 1 << 10),
    )
    fns = close_over_params(stage.field, params.field, grid)
    weights = jax.jit(lambda s: render_packed_samples(fns, rays, s, background).weights)(samples)
    for ray in range(12):
        indices = np.flatnonzero(samples.mask & (samples.ray_indices == ray))
        total = 0.0
        # Distances are from 0 at near to 1 at far: the scene is seen between 2 and 6.
        begin, end = (
            (np.asarray(t)[indices] - 2.0) / 4.0 for t in (samples.t_starts, samples.t_ends)
        )
        for i, first in enumerate(indices):
            total += float(weights[first]) ** 2 * (end[i] - begin[i]) / 3.0
            for j, second in enumerate(indices):
                distance = abs(begin[i] + end[i] - begin[j] - end[j]) / 2.0
                total += float(weights[first] * weights[second]) * distance
        assert float(rendering.distortion_loss[ray]) == pytest.approx(total, rel=1e-3, abs=1e-6)
    assert np.max(rendering.distortion_loss) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("contract", [False, True])
@pytest.mark.parametrize("make", [tiny_hashgrid, marching_nerf])
def test_gradients_through_marching_rays_along_the_axes_are_finite(
    make: Any, contract: bool, scale: float
) -> None:
    config = make(contract=contract)
    stage, state = first_state(config)
    stage = ample(stage)
    params, rays = random_params(state.params), axis_rays()
    if make is tiny_hashgrid:
        field = dataclasses.replace(config.field, density_scale=scale)
        stage = dataclasses.replace(stage, field=field)
    elif scale > 1.0:
        head = params.field["params"]["density_head"]
        head["bias"] = head["bias"] + scale
    background = jnp.ones((24, 3))

    def total(params: ModelParams) -> Any:
        batch = (state.grid, jax.random.key(0), rays, background)
        rendering = config.model.render_train(stage, params, *batch, config.ray_convention)
        return jnp.sum(rendering.rgb[-1]) + jnp.sum(rendering.distortion_loss), rendering

    grads, rendering = jax.jit(jax.grad(total, has_aux=True))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    assert not np.any(rendering.overflowed)
    if not contract:
        past = np.arange(24) % 4 == 3
        np.testing.assert_allclose(rendering.rgb[-1][past], 1.0, atol=1e-6)
        np.testing.assert_array_equal(rendering.opacity[past], 0.0)
    if scale > 1.0:
        np.testing.assert_allclose(rendering.opacity[::4], 1.0, atol=1e-5)
    else:
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


# -- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_render_eval_renders_only_the_box_to_march_through(make: Any) -> None:
    config = make_opaque(make())
    stage, state = first_state(config)
    half = jnp.asarray(BOX).at[1, 0].set(0.0)
    # Downwards, one through the half that is asked for and one through the other.
    rays = dataclasses.replace(
        train_rays(2),
        origins=jnp.asarray([[-0.7, 0.1, 4.0], [0.7, 0.1, 4.0]]),
        directions=jnp.asarray([[0.0, 0.0, -1.0]] * 2),
    )
    view = (state.params, state.grid, rays, jnp.ones(3))
    full = render_image(config, stage, 1 << 12, *view, jnp.asarray(BOX))
    np.testing.assert_allclose(full.opacity, 1.0, atol=2e-3)
    halved = render_image(config, stage, 1 << 12, *view, half)
    np.testing.assert_allclose(halved.opacity, [1.0, 0.0], atol=2e-3)


@pytest.mark.parametrize("make", [slow(tiny_tensorf), tiny_voxels])
def test_images_of_the_box_of_occupied_cells_are_those_of_the_full_box(make: Any) -> None:
    config = make_opaque(make())
    stage, state = first_state(config)
    occupied = np.zeros(state.grid.occupied.shape, bool)
    occupied[1:4, 2:6, 3:7] = True
    if isinstance(state.grid, VoxelGrid):
        assert isinstance(stage.field, Voxels)
        grid: OccupancyGrid = voxel_grid.subdivide(state.grid, occupied, 1, 4.0).grid
        grid = voxel_grid.pad_grid(grid, stage.field.table_cells)
    else:
        plain = OccupancyGrid(jnp.asarray(occupied), state.grid.aabb)
        grid = weight_tracking.track_weights(plain, 8.0)
    cropped, box = config.model.eval_stage(stage, grid, config.ray_convention, crop=True)
    full, full_box = config.model.eval_stage(stage, grid, config.ray_convention, crop=False)
    np.testing.assert_allclose(box, occupancy.occupied_aabb(grid), atol=1e-6)
    np.testing.assert_array_equal(full_box, grid.aabb)
    assert dataclasses.replace(cropped, max_blocks=stage.max_blocks) == full
    assert full.max_blocks == stage.max_blocks and full.field == stage.field
    step = _step_size(config, stage, grid.aabb)
    assert 0 < cropped.max_blocks < stage.max_blocks
    diagonal = np.linalg.norm(np.diff(box, axis=0))
    assert cropped.max_blocks * STEPS_PER_BLOCK * step >= diagonal
    view = (state.params, grid, train_rays(300), jnp.ones(3))
    of_full, of_cropped = (
        render_image(config, s, 1 << 12, *view, jnp.asarray(b))
        for s, b in ((full, full_box), (cropped, box))
    )
    # Steps begin elsewhere, which decides for rays that only cut an edge of a cell.
    same = np.abs(np.asarray(of_full.opacity - of_cropped.opacity)) < 1e-3
    assert np.mean(same) > 0.9 and 0.1 < np.mean(of_cropped.opacity) < 0.9
    difference = np.abs(np.asarray(of_full.depth - of_cropped.depth))[same]
    assert np.max(difference) <= step


@pytest.mark.slow
def test_samples_lie_in_occupied_cells_only() -> None:
    config = make_opaque(tiny_hashgrid())
    stage, state = first_state(config)
    occupied = np.zeros(stage.grid_resolution, bool)
    occupied[2:4, 3:5, 5:7] = True
    plain = OccupancyGrid(jnp.asarray(occupied), state.grid.aabb)
    grid = density_tracking.track_density(plain, stage.dilation_cells)
    rays = train_rays(300)
    batch = (state.params, grid, jax.random.key(0), rays, jnp.ones((300, 3)))
    rendering = render_batch(config, ample(stage), *batch)
    box = jnp.asarray(occupancy.occupied_aabb(grid), jnp.float32)
    clipped = clip_to_aabb(rays, box)
    length = np.asarray(clipped.far - clipped.near)
    step = _step_size(config, stage, BOX)
    opacity = np.asarray(rendering.opacity)
    assert np.all(opacity[length == 0] == 0) and np.all(opacity[length > step] > 0.999)
    assert 10 < np.sum(length > step) < 200
    # Images show what training sees, in the full box and in that of the occupied cells.
    cropped, cropped_box = config.model.eval_stage(stage, grid, config.ray_convention, crop=True)
    assert cropped.max_blocks < stage.max_blocks
    for s, b in ((stage, BOX), (cropped, cropped_box)):
        view = (state.params, grid, rays, jnp.ones(3), jnp.asarray(b))
        opacity = np.asarray(render_image(config, s, 1 << 12, *view).opacity)
        assert np.all(opacity[length == 0] == 0) and np.all(opacity[length > step] > 0.999)


# -- updates of the grid -----------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update_grid(model: PackedModel, stage: StageSpec, *arguments: Any) -> Any:
    return model.update_grid(stage, *arguments, (1,))


def test_update_grid_evaluates_cells_at_intervals_in_consecutive_phases() -> None:
    config = tiny_hashgrid()
    stage, state = first_state(config)
    params, grid = random_params(state.params), state.grid
    assert isinstance(grid, DensityTrackedGrid) and isinstance(config.model, PackedModel)
    step = config.model.step_size(stage.field, grid.aabb)

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        context = FieldContext(radii, jnp.asarray(BOX))
        return stage.field.density(params.field, positions, context)[0]

    update = jax.jit(
        lambda grid, key, phase: density_tracking.update_occupancy(
            grid,
            key,
            density,
            step,
            phase,
            occupancy.OccupancySchedule(dilation_cells=stage.dilation_cells),
        )
    )
    for number in range(13):
        key = jax.random.key(number)
        phase = number // 4
        expected = update(grid, jax.random.fold_in(key, phase), phase) if number % 4 == 0 else grid
        after = _update_grid(config.model, stage, params, grid, key)
        assert isinstance(after, DensityTrackedGrid) and int(after.step) == number + 1
        np.testing.assert_allclose(after.max_optical_depth, expected.max_optical_depth, rtol=1e-5)
        np.testing.assert_array_equal(after.occupied, expected.occupied)
        np.testing.assert_array_equal(after.coarse.occupied, expected.coarse.occupied)
        grid = after
    assert np.all(grid.max_optical_depth >= 0), "four phases are over"


def test_update_grid_evaluates_every_cell_while_warming_up() -> None:
    config = tiny_hashgrid(occupancy_warmup_steps=5)
    stage, state = first_state(config)
    params, grid = random_params(state.params), state.grid
    assert isinstance(grid, DensityTrackedGrid)

    def update_at(step: int) -> Any:
        at_step = dataclasses.replace(grid, step=jnp.asarray(step, jnp.int32))
        return _update_grid(config.model, stage, params, at_step, jax.random.key(0))

    first = _update_grid(config.model, stage, params, grid, jax.random.key(0))
    assert isinstance(first, DensityTrackedGrid) and np.all(first.max_optical_depth >= 0)
    # Step 4 is one of the first five still, step 8 is not: a quarter and occupied ones.
    assert np.sum(update_at(8).max_optical_depth < 0) > 0
    assert np.all(update_at(4).max_optical_depth >= 0)


@pytest.mark.parametrize("make", [tiny_nerf, tiny_tensorf])
def test_update_grid_leaves_grids_that_do_not_follow_the_density(make: Any) -> None:
    config = make()
    stage, state = first_state(config)
    arguments = (state.params, state.grid, jax.random.key(0), (1,))
    assert config.model.update_grid(stage, *arguments) is state.grid


@pytest.mark.parametrize("feature_dim", [7, 15])
@pytest.mark.parametrize("crops", [False, True])
def test_images_of_voxels_are_the_same_with_and_without_kernels(
    monkeypatch: pytest.MonkeyPatch, crops: bool, feature_dim: int
) -> None:
    config = tiny_voxels()
    config = dataclasses.replace(
        config, field=dataclasses.replace(config.field, feature_dim=feature_dim, density_scale=2.0)
    )
    stage, state = first_state(config)
    params = random_params(state.params)
    view = (params, state.grid, train_rays(300), jnp.asarray([0.2, 0.5, 1.0]))
    images = []
    for switch in ("on", "off"):
        monkeypatch.setenv(calls.SWITCH, switch)
        jax.clear_caches()
        crop = jnp.asarray([[-0.5, -0.3, -9.0], [0.6, 9.0, 0.4]]) if crops else None
        images.append(render_image(config, stage, 1 << 12, *view, jnp.asarray(BOX), crop))
    with_kernel, without = images
    assert 0.1 < np.mean(without.opacity) < 0.95
    np.testing.assert_allclose(with_kernel.rgb, without.rgb, atol=3e-3)
    np.testing.assert_allclose(with_kernel.opacity, without.opacity, atol=2e-3)
    step = _step_size(config, stage, state.grid.aabb)
    for name in ("depth", "median_depth"):
        a, b = (np.asarray(getattr(image, name)) for image in images)
        assert np.quantile(np.abs(a - b), 0.98) < 0.02 * step
        assert np.max(np.abs(a - b)) < 2 * step

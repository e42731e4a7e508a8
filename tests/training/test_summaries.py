"""What TensorBoard gets of a training beside scalars."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import BOX, tiny_hashgrid, tiny_nerf, tiny_tensorf, tiny_voxels

from jaxrf.evaluation import images
from jaxrf.evaluation.scoring import ViewMetrics
from jaxrf.rendering.volume import Picture
from jaxrf.sampling.occupancy import (
    DensityEmaGrid,
    OccupancyGrid,
    WeightTrackedGrid,
    decayed_max_weights,
)
from jaxrf.training import summaries, train, transitions


def make_scored(height: int, width: int) -> ViewMetrics:
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return rng.uniform(0, 1, shape).astype(np.float32)

    seen = Picture(draw(height, width, 3), draw(height, width), *(2.0 + draw(2, height, width)))
    return ViewMetrics(0, "r_7", seen, draw(height, width, 3), 31.5, 0.91)


@pytest.mark.parametrize(("height", "width", "factor"), [(30, 40, 5), (200, 300, 1), (9, 200, 1)])
def test_a_sheet_shows_each_picture_enlarged_by_a_whole_factor(
    height: int, width: int, factor: int
) -> None:
    scored = make_scored(height, width)
    sheet = summaries.draw_sheet(scored, 300)
    tall, wide = factor * height, factor * width
    assert sheet.shape[1] == 3 * wide + 2 * summaries.GAP
    head = (sheet.shape[0] - summaries.GAP - 2 * tall) // 2
    assert 0 <= head < 0.3 * wide
    seen = scored.rendering
    hit = seen.median_depth[seen.opacity > 0.5]
    low, high = float(hit.min()), float(hit.max())
    depth = images.depth_picture(seen.median_depth, seen.opacity, low, high)
    wanted = {
        (0, 0): scored.truth,
        (0, 1): seen.rgb,
        (0, 2): images.error_picture(seen.rgb, scored.truth, 0.25),
        (1, 0): depth,
        (1, 1): np.repeat(seen.opacity[..., None], 3, axis=-1),
    }
    for (row, column), picture in wanted.items():
        top = row * (tall + head + summaries.GAP) + head
        left = column * (wide + summaries.GAP)
        found = sheet[top : top + tall : factor, left : left + wide : factor]
        np.testing.assert_array_equal(found, images.to_uint8(picture), str((row, column)))
        if head > 5:
            assert sheet[top - head : top, left : left + wide].min() < 128, "no caption"
    figures = sheet[tall + summaries.GAP + head :, 2 * (wide + summaries.GAP) :]
    assert (figures < 128).any() == (height > 9)


def test_a_view_that_nothing_is_seen_in_has_a_sheet(tmp_path: Path) -> None:
    scored = make_scored(20, 20)
    empty = scored.rendering._replace(opacity=np.zeros((20, 20), np.float32))
    sheet = summaries.draw_sheet(scored._replace(rendering=empty), 1)
    assert sheet.dtype == np.uint8 and sheet.shape == summaries.draw_sheet(scored, 1).shape


@pytest.mark.parametrize(
    ("config", "some"),
    [
        (tiny_tensorf(), {"grid/density/planes", "grid/features/lines", "network/basis"}),
        (tiny_voxels(), {"grid/table", "network/mlp/Dense_0", "network/mlp/Dense_1"}),
        (tiny_nerf(), {"network/fine/trunk_0", "network/coarse/density_head"}),
        (tiny_hashgrid(), {"grid/fine/table"}),
    ],
    ids=["tensorf", "voxels", "nerf", "hashgrid"],
)
def test_parameters_are_named_by_group_and_place(config: object, some: set[str]) -> None:
    stage = transitions.first_stage(config, BOX)
    shapes = jax.eval_shape(lambda: train.init_params(config, stage)[0])
    params = jax.tree.map(lambda x: jnp.asarray(np.ones(x.shape, x.dtype)), shapes)
    found = summaries.collect_parameters(params)
    assert some <= set(found)
    assert {tag.split("/")[0] for tag in found} <= {"grid", "network"}
    # Each is in one of them.
    if all(leaf.size <= summaries.MOST_VALUES for leaf in jax.tree.leaves(params)):
        total = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert sum(values.size for values in found.values()) == total


def test_a_layers_weights_and_biases_are_one() -> None:
    layer = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([9.0, 8.0])}
    found = summaries.collect_parameters({"mlp": {"params": {"Dense_0": layer}}})
    assert set(found) == {"network/mlp/Dense_0"}
    assert sorted(found["network/mlp/Dense_0"]) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 9.0]


@pytest.mark.parametrize("size", [1, 100, 1 << 14, (1 << 14) + 1, 100_000])
def test_of_many_values_some_are_taken_evenly(size: int) -> None:
    values = np.arange(size, dtype=np.float32).reshape(1, -1)
    some = summaries.thin_out(values)
    assert some.size <= 1 << 14 and (size > 1 << 14 or some.size == size)
    assert some.size >= min(size, 1 << 13)
    assert len(set(np.diff(some))) <= 1
    # The original may be changed at once.
    values[:] = -1.0
    assert some[-1] >= 0.0


def test_cells_are_those_that_hold_anything() -> None:
    cells = OccupancyGrid(jnp.asarray(np.ones((2, 3, 4), bool)), jnp.asarray(BOX))
    # One was given a weight of 1 in the last step, another one 10 steps before.
    memory = np.full(24, -1e9, np.float32)
    memory[[5, 17]] = [29.0, 19.0]
    clock = jnp.asarray(30, jnp.int32)
    watched = WeightTrackedGrid(cells.occupied, cells.aabb, cells, jnp.asarray(memory), clock)
    cells_of = summaries.collect_cells(watched)
    assert sorted(cells_of) == pytest.approx([0.97**10, 1.0])
    weights = np.asarray(decayed_max_weights(watched))
    np.testing.assert_allclose(cells_of, weights[weights > 1e-4], rtol=1e-5)

    optical = np.full(24, -2.0, np.float32)
    optical[[1, 2]] = [0.0, 0.4]
    radius = jnp.asarray(1.0)
    probed = DensityEmaGrid(cells.occupied, cells.aabb, cells, jnp.asarray(optical), clock, radius)
    assert summaries.collect_cells(probed) == pytest.approx([0.4])
    assert summaries.collect_cells(cells) is None


def test_settings_are_named_by_dots_and_what_is_none_is_left_out() -> None:
    config = tiny_voxels(seed=7, data=Path("/somewhere"), budget=None)
    flat = summaries.flatten_config(config, "ball")
    assert flat["dataset"] == "ball" and flat["seed"] == 7.0 and flat["field.kind"] == "voxels"
    assert flat["optimizer.grid_lr"] == config.optimizer.grid_lr
    assert flat["field.prune_at"] == " ".join(str(x) for x in config.field.prune_at)
    assert flat["filter_rays"] is config.filter_rays
    assert flat["field.convention.stop"] == 1e-3
    assert "budget" not in flat
    assert not any(name.split(".")[0] in summaries.LEFT_OUT for name in flat)
    assert all(isinstance(value, bool | float | str) for value in flat.values())

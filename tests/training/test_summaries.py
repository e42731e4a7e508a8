"""Images, histograms and hyperparameters for TensorBoard."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    BOX,
    proposing_hashgrid,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.evaluation import images
from jaxrf.evaluation.scoring import ViewMetrics
from jaxrf.fields.base import label_params
from jaxrf.models.base import ModelParams
from jaxrf.rendering.image import HostRendering
from jaxrf.sampling.density_tracking import DensityTrackedGrid
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.sampling.weight_tracking import WeightTrackedGrid, decayed_max_weights
from jaxrf.training import summaries, transitions
from jaxrf.training.config import TrainConfig


def make_view_metrics(height: int, width: int) -> ViewMetrics:
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return rng.uniform(0, 1, shape).astype(np.float32)

    rendering = HostRendering(
        draw(height, width, 3), draw(height, width), *(2.0 + draw(2, height, width))
    )
    return ViewMetrics(0, "r_7", rendering, draw(height, width, 3), {"psnr": 31.5, "ssim": 0.91})


@pytest.mark.parametrize(("height", "width", "factor"), [(30, 40, 5), (200, 300, 1), (9, 200, 1)])
def test_draw_sheet_enlarges_each_image_by_an_integer_factor(
    height: int, width: int, factor: int
) -> None:
    view = make_view_metrics(height, width)
    sheet = summaries.draw_sheet(view, 300)
    tall, wide = factor * height, factor * width
    assert sheet.shape[1] == 3 * wide + 2 * summaries.GAP
    head = (sheet.shape[0] - summaries.GAP - 2 * tall) // 2
    assert 0 <= head < 0.3 * wide
    rendering = view.rendering
    hit = rendering.median_depth[rendering.opacity > 0.5]
    low, high = float(hit.min()), float(hit.max())
    depth = images.colorize_depth(rendering.median_depth, rendering.opacity, low, high)
    expected = {
        (0, 0): view.target_rgb,
        (0, 1): rendering.rgb,
        (0, 2): images.colorize_error(rendering.rgb, view.target_rgb, 0.25),
        (1, 0): depth,
        (1, 1): np.repeat(rendering.opacity[..., None], 3, axis=-1),
    }
    for (row, column), picture in expected.items():
        top = row * (tall + head + summaries.GAP) + head
        left = column * (wide + summaries.GAP)
        panel = sheet[top : top + tall : factor, left : left + wide : factor]
        np.testing.assert_array_equal(panel, images.to_uint8(picture), str((row, column)))
        if head > 5:
            assert sheet[top - head : top, left : left + wide].min() < 128, "no caption"
    text = sheet[tall + summaries.GAP + head :, 2 * (wide + summaries.GAP) :]
    assert (text < 128).any() == (height > 9)


def test_draw_sheet_of_an_empty_view(tmp_path: Path) -> None:
    view = make_view_metrics(20, 20)
    empty = view.rendering._replace(opacity=np.zeros((20, 20), np.float32))
    sheet = summaries.draw_sheet(view._replace(rendering=empty), 1)
    assert sheet.dtype == np.uint8 and sheet.shape == summaries.draw_sheet(view, 1).shape


@pytest.mark.parametrize(
    ("config", "tags"),
    [
        (
            tiny_tensorf(),
            {"grid/field/density/planes", "grid/field/features/lines", "mlp/field/basis"},
        ),
        (tiny_voxels(), {"grid/field/table", "mlp/field/mlp/Dense_0", "mlp/field/mlp/Dense_1"}),
        (tiny_nerf(), {"mlp/field/trunk_0", "mlp/coarse/density_head"}),
        (tiny_hashgrid(), {"grid/field/table"}),
        (proposing_hashgrid(appearance_dim=2), {"grid/proposals/table", "mlp/appearance/codes"}),
    ],
    ids=["tensorf", "voxels", "nerf", "hashgrid", "proposals"],
)
def test_collect_parameters_names_them_by_group_and_path(
    config: TrainConfig, tags: set[str]
) -> None:
    stage = transitions.first_stage(config, BOX)
    shapes = jax.eval_shape(lambda: config.model.init_params(stage.field, jax.random.key(0)))
    params: ModelParams = jax.tree.map(lambda x: jnp.asarray(np.ones(x.shape, x.dtype)), shapes)
    groups = config.model.param_groups(stage.field, params)
    collected = summaries.collect_parameters(params, groups)
    assert tags <= set(collected)
    assert {tag.split("/")[0] for tag in collected} <= {"grid", "mlp"}
    # Elements of tuples, such as the three planes, have no tags of their own.
    assert not any(part.isdigit() for tag in collected for part in tag.split("/"))
    # Every value is in one of them.
    if all(leaf.size <= summaries.MAX_VALUES for leaf in jax.tree.leaves(params)):
        total = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert sum(values.size for values in collected.values()) == total


def test_collect_parameters_joins_weights_and_biases_of_a_layer() -> None:
    layer = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([9.0, 8.0])}
    params = {"mlp": {"params": {"Dense_0": layer}}}
    collected = summaries.collect_parameters(params, label_params(params, "mlp"))
    assert set(collected) == {"mlp/mlp/Dense_0"}
    assert sorted(collected["mlp/mlp/Dense_0"]) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 9.0]


@pytest.mark.parametrize("size", [1, 100, 1 << 14, (1 << 14) + 1, 100_000])
def test_subsample_takes_evenly_spaced_values(size: int) -> None:
    values = np.arange(size, dtype=np.float32).reshape(1, -1)
    taken = summaries.subsample(values)
    assert taken.size <= 1 << 14 and (size > 1 << 14 or taken.size == size)
    assert taken.size >= min(size, 1 << 13)
    assert len(set(np.diff(taken))) <= 1
    # The result is a copy.
    values[:] = -1.0
    assert taken[-1] >= 0.0


def test_collect_cells_returns_cells_with_a_weight_or_optical_depth() -> None:
    cells = OccupancyGrid(jnp.asarray(np.ones((2, 3, 4), bool)), jnp.asarray(BOX))
    # One cell got a weight of 1 in the last step, another one 10 steps earlier.
    memory = np.full(24, -1e9, np.float32)
    memory[[5, 17]] = [29.0, 19.0]
    clock = jnp.asarray(30, jnp.int32)
    watched = WeightTrackedGrid(
        occupied=cells.occupied,
        aabb=cells.aabb,
        coarse=cells,
        max_weight_log=jnp.asarray(memory),
        step=clock,
    )
    cells_of = summaries.collect_cells(watched)
    assert sorted(cells_of) == pytest.approx([0.97**10, 1.0])
    weights = np.asarray(decayed_max_weights(watched))
    np.testing.assert_allclose(cells_of, weights[weights > 1e-4], rtol=1e-5)

    optical = np.full(24, -2.0, np.float32)
    optical[[1, 2]] = [0.0, 0.4]
    radius = jnp.asarray(1.0)
    probed = DensityTrackedGrid(
        occupied=cells.occupied,
        aabb=cells.aabb,
        coarse=cells,
        max_optical_depth=jnp.asarray(optical),
        step=clock,
        radius=radius,
    )
    assert summaries.collect_cells(probed) == pytest.approx([0.4])
    assert summaries.collect_cells(cells) is None


def test_flatten_config_names_options_by_dots_and_leaves_out_none() -> None:
    config = tiny_voxels(seed=7, data=Path("/somewhere"), budget=None)
    flat = summaries.flatten_config(config, "ball")
    assert flat["dataset"] == "ball" and flat["seed"] == 7.0 and flat["field.type"] == "voxels"
    assert flat["optimizer.grid_lr"] == config.optimizer.grid_lr
    assert flat["field.prune_at"] == " ".join(str(x) for x in config.field.prune_at)
    assert flat["filter_rays"] is config.filter_rays
    assert flat["ray_convention.transmittance_threshold"] == 1e-3
    assert flat["model.type"] == "packed" and flat["model.steps_per_diagonal"] == 1024.0
    assert "budget" not in flat
    assert not any(name.split(".")[0] in summaries.EXCLUDED_OPTIONS for name in flat)
    assert all(isinstance(value, bool | float | str) for value in flat.values())

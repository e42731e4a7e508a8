"""Arithmetic and lookups of fields, against their parameters."""

import dataclasses
from typing import Any

import jax
import pytest
from scenes import make_scene, tiny_nerf, tiny_tensorf

from jaxrf.models import methods
from jaxrf.studies import work
from jaxrf.studies.roofline import ROW_CHANNELS
from jaxrf.training import transitions
from jaxrf.training.config import NeRFConfig, VoxelsConfig

pytestmark = pytest.mark.as_used


@pytest.mark.parametrize(
    "field",
    [
        NeRFConfig(),
        NeRFConfig(layers=4, width=64, skip=2, color_width=32, num_position_frequencies=5),
        NeRFConfig(layers=2, width=8, skip=9, color_width=3, num_direction_frequencies=1),
    ],
)
def test_count_work_of_a_nerf_counts_its_matrices(field: NeRFConfig) -> None:
    config = tiny_nerf(field=field)
    stage = transitions.first_stage(config, make_scene().aabb)
    params = jax.eval_shape(lambda: methods.make_field(field, stage).init(jax.random.key(0)))
    matrices = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    cost = work.count_work(field, stage)
    assert cost.flops == 3 * 2 * sum(matrices)
    assert cost.gathered == cost.scattered == 0


def test_count_work_of_grids_counts_their_rows() -> None:
    voxels = work.count_work(VoxelsConfig(feature_dim=7), methods.Stage((8,) * 3, (8,) * 3, 1, 1))
    assert (voxels.flops, voxels.gathered, voxels.scattered) == (0.0, 8.0, 8.0)
    config = tiny_tensorf()
    stage = transitions.first_stage(config, make_scene().aabb)
    field: Any = config.field
    one, half = (
        work.count_work(field, dataclasses.replace(stage, sample_budget=100, color_budget=colored))
        for colored in (0, 50)
    )
    assert one.gathered == 18 * (field.density_components + field.feature_components) / ROW_CHANNELS
    assert one.gathered - half.gathered == 18 * 0.5 * field.feature_components / ROW_CHANNELS
    assert one.flops == 2 * half.flops > 0

"""Arithmetic and lookups of fields, against their parameters."""

import dataclasses

import jax
import numpy as np
import pytest
from scenes import make_scene, tiny_nerf, tiny_tensorf

from jaxrf.fields.base import ROW_CHANNELS, Field
from jaxrf.fields.nerf import NeRF
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxels import Voxels
from jaxrf.models.base import StageSpec
from jaxrf.studies import roofline, work
from jaxrf.training import transitions

pytestmark = pytest.mark.as_used


@pytest.mark.parametrize(
    "field",
    [
        NeRF(),
        NeRF(layers=4, width=64, skip=2, color_width=32, num_position_frequencies=5),
        NeRF(layers=2, width=8, skip=9, color_width=3, num_direction_frequencies=1),
    ],
)
def test_count_work_of_a_nerf_counts_its_matrices(field: NeRF) -> None:
    stage = transitions.first_stage(tiny_nerf(field=field), make_scene().aabb)
    params = jax.eval_shape(stage.field.init, jax.random.key(0))
    matrices = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    cost = work.count_work(stage)
    assert cost.flops == 3 * 2 * sum(matrices)
    assert cost.gathered == cost.scattered == 0


def test_count_work_of_grids_counts_their_rows() -> None:
    assert ROW_CHANNELS == roofline.ROW_CHANNELS
    voxels = work.count_work(StageSpec(Voxels(feature_dim=7), (8,) * 3, 1, 1))
    assert (voxels.flops, voxels.gathered, voxels.scattered) == (0.0, 8.0, 8.0)
    config = tiny_tensorf()
    stage = transitions.first_stage(config, make_scene().aabb)
    field = TensoRF.match(config.field)
    assert field is not None
    one, half = (
        work.count_work(dataclasses.replace(stage, sample_budget=100, color_budget=colored))
        for colored in (0, 50)
    )
    assert one.gathered == 18 * (field.density_components + field.feature_components) / ROW_CHANNELS
    assert one.gathered - half.gathered == 18 * 0.5 * field.feature_components / ROW_CHANNELS
    assert one.flops == 2 * half.flops > 0


def test_count_work_of_a_field_that_does_not_say_is_zero() -> None:
    cost = work.count_work(StageSpec(Field(), (1, 1, 1), 1, 1))
    assert (cost.flops, cost.gathered, cost.scattered) == (0.0, 0.0, 0.0)
    assert cost.ideal_seconds(roofline.Roofline(*np.ones(5))) == 0.0

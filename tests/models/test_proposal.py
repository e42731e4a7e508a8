"""The proposal model: numbers of its proposals, and the loss that trains them."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from renders import train_rays
from scenes import change, first_state, proposing_hashgrid

from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.base import ModelParams, RenderSpec, render_rays
from jaxrf.models.proposal import ProposalModel
from jaxrf.rendering.volume import Rendering
from jaxrf.training import transitions


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"num_proposal_samples": (0,)}, "model.num_proposal_samples is 0: give a number above"),
        ({"num_proposal_samples": (64, -1)}, "model.num_proposal_samples is -1: give a number"),
        ({"num_nerf_samples": 0}, "model.num_nerf_samples is 0: give a number above 0"),
        ({"proposal_resolutions": (64, 0)}, "model.proposal_resolutions is 0: give a number"),
        ({"proposal_levels": 0}, "model.proposal_levels is 0: give a number above 0"),
        ({"proposal_block": 0}, "model.proposal_block is 0: give a number above 0"),
        ({"proposal_block": 6}, "model.proposal_block is 6: give a power of two"),
        ({"interlevel_weight": -0.1}, "model.interlevel_weight is -0.1: give 0 or more"),
        ({"pulse_widths": (0.0, 0.1)}, "model.pulse_widths is 0.0: give a number above 0"),
        ({"pulse_widths": (0.1,)}, "model.pulse_widths has 1 numbers: give one for each of the 2"),
        ({"num_proposal_samples": ()}, "model.num_proposal_samples has 0 numbers: give one for"),
        (
            {"num_proposal_samples": (64, 32), "proposal_resolutions": (64,)},
            "model.num_proposal_samples has 2 numbers: give one for each proposal",
        ),
    ],
)
def test_proposal_model_refuses_numbers_that_do_not_make_proposals(
    numbers: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        ProposalModel(**numbers)


def test_proposals_may_be_fewer_than_their_resolutions() -> None:
    model = ProposalModel(num_proposal_samples=(64,), proposal_resolutions=(32, 64))
    assert [field.max_resolution for field in model.proposal_fields()] == [32]


def test_samples_of_proposals_count_among_those_of_a_ray() -> None:
    model = proposing_hashgrid().model
    assert model.samples_per_ray() == 26
    two = ProposalModel(
        num_proposal_samples=(32, 16), proposal_resolutions=(64, 128), num_nerf_samples=10
    )
    assert two.samples_per_ray() == 58
    assert [field.max_resolution for field in two.proposal_fields()] == [64, 128]


def test_proposals_have_the_levels_that_are_given() -> None:
    assert [field.num_levels for field in ProposalModel().proposal_fields()] == [5, 5]
    few = ProposalModel(proposal_levels=2)
    assert [field.num_levels for field in few.proposal_fields()] == [2, 2]


def test_a_pass_that_rays_share_counts_once_in_a_chunk() -> None:
    model = ProposalModel(
        num_proposal_samples=(64, 32), num_nerf_samples=16, proposal_block=4, coloring="per_ray"
    )
    # A block of 16 rays has one pass of the first proposal and four of the second.
    block_samples = 64 + 4 * 32 + 16 * 16
    assert model.rays_per_chunk(10 * block_samples) == 10 * 16
    assert model.rays_per_chunk(1) == 64
    assert dataclasses.replace(model, proposal_block=1).rays_per_chunk(112_000) == 1000


def test_rays_of_a_group_share_their_samples_places_within_their_own_length() -> None:
    config = proposing_hashgrid()
    stage, state = first_state(config)
    stage, _ = config.model.eval_stage(stage, state.grid, config.ray_convention, crop=False)
    params = jax.tree.map(lambda x: 3.0 * x + 0.3, state.params)
    rays = train_rays(8)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), rays)
    # The last two of each group pass the scene's box.
    side = jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), 8)[:, None]
    spread = dataclasses.replace(repeated, origins=repeated.origins + 20.0 * side)

    @functools.partial(jax.jit, static_argnums=0)
    def render(group_size: int, rays: Rays) -> Rendering:
        spec = RenderSpec(config.model, stage, config.ray_convention, 1 << 10, group_size)
        return render_rays(spec, params, state.grid, rays, jnp.ones(3))

    alone = render(1, repeated)
    assert np.ptp(alone.rgb) > 0.1
    for name in ("rgb", "opacity", "depth", "median_depth"):
        shared, expected = getattr(render(4, repeated), name), getattr(alone, name)
        np.testing.assert_allclose(shared, expected, rtol=1e-4, atol=1e-4)
    opacity = render(4, spread).opacity.reshape(8, 4)
    np.testing.assert_array_equal(opacity[:, 2:], 0.0)
    assert np.all(opacity[:, :2] > 0.1)


@dataclasses.dataclass(frozen=True)
class Wall(HashGrid):
    """Opaque where contracted positions are farther out than those at `distance` half sides."""

    distance: float = 50.0

    def density(self, params: Any, positions: jax.Array, context: Any) -> tuple[jax.Array, Any]:
        is_wall = jnp.max(jnp.abs(positions), axis=-1) > 2.0 - 1.0 / self.distance
        return jnp.where(is_wall, 5.0, 0.0), jnp.zeros((positions.shape[0], self.feature_dim))


class WallModel(ProposalModel):
    """Its proposals know the wall."""

    def proposal_fields(self) -> list[HashGrid]:
        """Walls as far out as that of the field."""
        return [Wall(base_resolution=2, max_resolution=2, width=4, feature_dim=1)] * 2


@pytest.mark.parametrize("near", [0.05, 0.5])
def test_a_wall_at_fifty_times_the_radius_is_sampled_where_space_is_contracted(
    near: float,
) -> None:
    """Whatever the far distance of the data: rays have no end there."""
    box = np.array([[-1.0] * 3, [1.0] * 3])
    model = WallModel(num_proposal_samples=(64, 32), num_nerf_samples=16, contract=True)
    config = dataclasses.replace(
        proposing_hashgrid(), field=Wall(base_resolution=2, max_resolution=2, width=4), model=model
    )
    stage = transitions.first_stage(config, box)
    grid = transitions.init_grid(config, stage, box)
    stage, _ = model.eval_stage(stage, grid, config.ray_convention, crop=False)
    params = model.init_params(stage.field, jax.random.key(0))
    directions = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.6, 0.0, -0.8]])
    rays = Rays.create([0.1, 0.0, -0.2], directions, near=near, far=8.0)
    spec = RenderSpec(model, stage, config.ray_convention, 1 << 10)
    rendering = jax.jit(render_rays, static_argnums=0)(spec, params, grid, rays, jnp.ones(3))
    # The wall is a cube around the center.
    expected = [49.9, 50.0, (50.0 - 0.2) / 0.8]
    np.testing.assert_allclose(rendering.median_depth, expected, rtol=0.1)
    assert np.all(rendering.opacity > 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("pulse_widths", [(), (0.03,)])
def test_the_interlevel_loss_trains_proposals_only(pulse_widths: tuple[float, ...]) -> None:
    config = proposing_hashgrid()
    config = change(config, model=dataclasses.replace(config.model, pulse_widths=pulse_widths))
    stage, state = first_state(config)
    rays, background = train_rays(48), jnp.ones((48, 3))

    def interlevel(params: ModelParams) -> jax.Array:
        batch = (state.grid, jax.random.key(0), rays, background)
        rendering = config.model.render_train(stage, params, *batch, config.ray_convention)
        assert rendering.interlevel_loss is not None
        return jnp.sum(rendering.interlevel_loss)

    # The field is denser than its proposal predicts.
    denser = jax.tree.map(lambda x: 3.0 * x + 0.3, state.params.field)
    value, grads = jax.jit(jax.value_and_grad(interlevel))(state.params._replace(field=denser))
    assert float(value) > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads.field))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads.proposals))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))

"""The proposal model: numbers of its proposals, and the loss that trains them."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from renders import train_rays
from scenes import change, first_state, proposing_hashgrid

from jaxrf.core.errors import InputError
from jaxrf.models.base import ModelParams
from jaxrf.models.proposal import ProposalModel


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"num_proposal_samples": (0,)}, "model.num_proposal_samples is 0: give a number above"),
        ({"num_proposal_samples": (64, -1)}, "model.num_proposal_samples is -1: give a number"),
        ({"num_nerf_samples": 0}, "model.num_nerf_samples is 0: give a number above 0"),
        ({"proposal_resolutions": (64, 0)}, "model.proposal_resolutions is 0: give a number"),
        ({"proposal_levels": 0}, "model.proposal_levels is 0: give a number above 0"),
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

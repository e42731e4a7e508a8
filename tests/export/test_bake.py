"""Pages of any run: which draw the run itself, and how they become small enough."""

from typing import Any

import pytest
from scenes import tiny_bitnerf, tiny_voxels
from web_runs import MARCHING, make_web_run

from jaxrf.core.errors import InputError
from jaxrf.export import bake
from jaxrf.export.bake import BakeOptions, bake_page
from jaxrf.export.distill import DistillConfig
from jaxrf.training.runs import Run


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[DistillConfig]:
    """The configurations that voxels were taught with; none is trained."""
    configs: list[DistillConfig] = []

    def teach(run: Run, config: DistillConfig, *_: Any) -> tuple[Run, float]:
        configs.append(config)
        return make_web_run(tiny_voxels()), 31.0

    monkeypatch.setattr(bake, "distill_voxels", teach)
    return configs


def test_voxels_and_ternary_networks_are_drawn_themselves(taught: list[DistillConfig]) -> None:
    for config in (tiny_voxels(), tiny_bitnerf(**MARCHING)):
        assert bake_page(make_web_run(config), BakeOptions()).psnr is None
    assert taught == []


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (tiny_bitnerf(**MARCHING), {"bakes_ternary": True}),
        (tiny_bitnerf(), {}),
        (tiny_voxels(coloring="per_sample"), {}),
    ],
)
def test_other_runs_teach_voxels(
    config: Any, options: dict[str, Any], taught: list[DistillConfig]
) -> None:
    baked = bake_page(make_web_run(config), BakeOptions(**options, num_views=9, num_steps=7))
    assert baked.psnr == 31.0 and b"voxels" in baked.page.text
    assert [(c.num_views, c.num_steps, c.divisions) for c in taught] == [(9, 7, 0)]


def test_unbounded_runs_teach_smaller_voxels_for_longer(taught: list[DistillConfig]) -> None:
    bake_page(make_web_run(tiny_voxels(coloring="per_sample", contract=True)), BakeOptions())
    assert taught == [bake.CAPTURE]


def test_voxels_become_coarser_until_the_page_is_small_enough(
    taught: list[DistillConfig],
) -> None:
    run = make_web_run(tiny_voxels())
    with pytest.raises(InputError, match=r"more than max_size 0\.001: give a larger one"):
        bake_page(run, BakeOptions(max_bytes=1000))
    assert [config.divisions for config in taught] == [0, -1, -2]

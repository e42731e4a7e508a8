"""Checks of options: what passes, and how the option is named that does not."""

import types

import pytest

from jaxrf.core import checks
from jaxrf.core.errors import InputError


@pytest.mark.parametrize("value", [1, 0.5, None, (1, 2), (), (3, None)])
def test_require_positive_accepts_positive_numbers_and_none(value: object) -> None:
    checks.require_positive(types.SimpleNamespace(num_steps=value), "num_steps")


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (-1.5, "-1.5"), (float("nan"), "nan"), ((1, 0), "0")]
)
def test_require_positive_names_the_option_and_its_value(value: object, shown: str) -> None:
    options = types.SimpleNamespace(other=1, num_frames=value)
    with pytest.raises(InputError) as caught:
        checks.require_positive(options, "other", "num_frames", prefix="video.")
    assert str(caught.value) == f"video.num_frames is {shown}: give a number above 0."


def test_require_non_negative_accepts_zero_and_refuses_less() -> None:
    checks.require_non_negative(types.SimpleNamespace(every=0.0, other=None), "every", "other")
    for value in (-1, float("nan")):
        with pytest.raises(InputError, match=f"every is {value}: give 0 or more."):
            checks.require_non_negative(types.SimpleNamespace(every=value), "every")


def test_require_port_accepts_tcp_ports_alone() -> None:
    for port in (1, 8080, 65535):
        checks.require_port(types.SimpleNamespace(port=port), "port")
    for port in (0, -1, 65536):
        with pytest.raises(InputError, match=f"viewer.port is {port}: give a number from 1"):
            checks.require_port(types.SimpleNamespace(port=port), "port", prefix="viewer.")

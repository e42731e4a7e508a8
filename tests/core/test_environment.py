"""Descriptions of the machine."""

from jaxrf.core import environment


def test_hardware_and_versions_are_described() -> None:
    assert environment.describe_hardware().count("\n") == 0
    assert "CPU cores" in environment.describe_hardware()
    assert all(isinstance(v, str) and v for v in environment.describe_versions().values())
    assert environment.describe_processor()

"""A tiny trained run, shared by all tests of commands."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from programs import training_arguments
from scenes import write_scene

from jaxrf.cli import main as cli


@pytest.fixture(autouse=True)
def keep_jax_settings() -> Iterator[None]:
    """Undoes the matmul precision that a command sets."""
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny data set."""
    return write_scene(tmp_path_factory.mktemp("data") / "ball")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, scene_folder: Path) -> Path:
    """Folder of a complete training. It is shared: tests that change it use `run_copy`."""
    run = tmp_path_factory.mktemp("runs") / "ball"
    precision = jax.config.jax_default_matmul_precision
    arguments = training_arguments(scene_folder, run, "--validate-every", "0.34")
    assert cli.run_command("train", arguments) == 0
    jax.config.update("jax_default_matmul_precision", precision)
    return run


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, which a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))

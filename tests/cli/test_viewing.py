"""Pages of runs that are still trained: made again from each new checkpoint."""

import dataclasses
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest
from scenes import tiny_nerf, tiny_voxels
from web_runs import make_web_run

from jaxrf.cli import viewing
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig, ViewerConfig
from jaxrf.viewer import page_server
from jaxrf.viewer.page_server import PageServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    monkeypatch.setattr(viewing, "CHECKPOINT_POLL_SECONDS", 0.05)
    yield PageServer(page_server.WAITING, "127.0.0.1", 18180)


def save(run: runs.Run, step: int) -> None:
    manager = runs.open_checkpoints(run.folder, run.config)
    state = dataclasses.replace(run.state, step=jnp.asarray(step, jnp.int32))
    runs.save(manager, run.scene, run.stage, state, 1.0, None)
    manager.wait_until_finished()
    manager.close()


def save_run(config: TrainConfig, folder: Path, step: int) -> runs.Run:
    run = dataclasses.replace(make_web_run(config), folder=folder)
    runs.create_folder(folder)
    runs.write_config(folder, config)
    save(run, step)
    return run


def read(address: str) -> bytes:
    with urllib.request.urlopen(address) as response:
        return bytes(response.read())


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_page_follows_the_checkpoints_of_a_training(server: PageServer, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_voxels(), run_dir=tmp_path / "run")
    follower = viewing.PageFollower(server, tmp_path / "run")
    try:
        assert b"not saved a checkpoint yet" in read(server.address)
        run = save_run(config, tmp_path / "run", 3)
        wait(lambda: b"not saved" not in read(server.address))
        assert b"voxels" in read(server.address)
        number = read(server.address + "/number")
        save(run, 5)
        wait(lambda: read(server.address + "/number") != number)
    finally:
        follower.close()
    with pytest.raises(OSError):
        read(server.address)


def test_fields_that_no_page_draws_are_said_once(server: PageServer, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_nerf(), run_dir=tmp_path / "run")
    save_run(config, tmp_path / "run", 3)
    said: list[str] = []
    follower = viewing.PageFollower(server, tmp_path / "run", notify=said.append)
    wait(lambda: bool(said))
    follower.close()
    assert len(said) == 1 and "export --format web" in said[0]


def test_pages_of_trainings_are_asked_for(tmp_path: Path) -> None:
    for view, bake in ((False, True), (True, False)):
        config = dataclasses.replace(tiny_nerf(), view=view, viewer=ViewerConfig(bake=bake))
        assert viewing.open_page(config, tmp_path) is None

"""The render loop of a browser, with a simulated one."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pytest
from simulated_browser import SimulatedClient

from jaxrf.cameras.poses import look_at
from jaxrf.evaluation.interactive import InteractiveRenderer
from jaxrf.sampling.occupancy import visible_aabb
from jaxrf.viewer.client import FAR_CLIP, BrowserClient, RenderSettings, ViewerState
from jaxrf.viewer.crop_panel import NO_CROP
from jaxrf.viewer.poses import View

pytestmark = pytest.mark.as_used

VIEW = View(look_at(np.array([4.0, 0.0, 1.0]), np.zeros(3)), 0.8, 1.5)
SETTINGS = RenderSettings("rgb", 96, 0.1, NO_CROP, None, False)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def test_browser_client_refines_images_up_to_the_maximum_size(
    renderer: InteractiveRenderer,
) -> None:
    client, statistics = SimulatedClient(VIEW), []
    states: list[ViewerState | None] = [None]
    browser = BrowserClient(client, lambda: states[0], lambda: SETTINGS, statistics.append)
    try:
        assert not browser.camera_moving()
        states[0] = ViewerState(renderer, visible_aabb(renderer.grid), 0)
        browser.changed.set()
        wait_for(lambda: client.images and client.images[-1].shape == (64, 96, 3))
        widths = [image.shape[1] for image in client.images]
        assert widths == sorted(widths) and widths[0] < 96
        for image, depth in zip(client.images, client.depths, strict=True):
            assert depth is not None and depth.shape == image.shape[:2]
            assert depth.min() > 0.0 and depth.max() <= FAR_CLIP
        wait_for(lambda: statistics and statistics[-1].startswith("96 x 64, after"))
        client.move(client.camera)
        assert browser.camera_moving()
    finally:
        browser.close()


def test_browser_client_renders_a_new_state_of_a_training_once(
    renderer: InteractiveRenderer,
) -> None:
    client, statistics = SimulatedClient(VIEW), []
    state = ViewerState(renderer, visible_aabb(renderer.grid), 0)
    states = [state]
    settings = SETTINGS._replace(is_training=True)
    browser = BrowserClient(client, lambda: states[0], lambda: settings, statistics.append)
    try:
        wait_for(lambda: statistics and statistics[-1].startswith("96 x 64"))
        time.sleep(0.2)  # a sharp image with sub-rays may follow
        count = len(client.images)
        states[0] = state._replace(number=1)
        browser.changed.set()
        wait_for(lambda: len(client.images) > count)
        time.sleep(0.2)
        assert len(client.images) == count + 1
    finally:
        browser.close()


def test_browser_client_reports_errors_and_goes_on(renderer: InteractiveRenderer) -> None:
    client, statistics = SimulatedClient(VIEW), []
    box = visible_aabb(renderer.grid)
    tiles = dataclasses.replace(renderer.tiles, scene_range=lambda camera, index: 1 / 0)
    broken = dataclasses.replace(renderer, tiles=tiles)
    states = [ViewerState(broken, box, 0)]
    browser = BrowserClient(client, lambda: states[0], lambda: SETTINGS, statistics.append)
    try:
        wait_for(lambda: client.notifications)
        assert client.notifications[0][0] == "Cannot render" and not client.images
        states[0] = ViewerState(renderer, box, 1)
        browser.changed.set()
        wait_for(lambda: client.images)
    finally:
        browser.close()

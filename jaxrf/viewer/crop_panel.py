"""The panel that crops the scene to a box."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

BOX_COLOR = (40, 150, 90)
# The box that contains all of space.
NO_CROP = np.array([[-np.inf] * 3, [np.inf] * 3], np.float32)


class CropPanel:
    """A checkbox, and a slider for the limits of the box along each axis."""

    def __init__(self, server: Any, on_change: Callable[[], None]) -> None:
        """Adds the panel to a server, a `viser.ViserServer`; `on_change` follows each change."""
        self._server, self._on_change = server, on_change
        gui = server.gui
        with gui.add_folder("Crop", expand_by_default=False):
            self.enabled = gui.add_checkbox("Crop", False)
            self.sliders = [
                gui.add_multi_slider(axis, min=-1.0, max=1.0, step=0.01, initial_value=(-1.0, 1.0))
                for axis in "xyz"
            ]
        for handle in (self.enabled, *self.sliders):
            handle.on_update(lambda _: self._update())

    @property
    def aabb(self) -> Float[np.ndarray, "2 3"]:
        """The box to render, `NO_CROP` if cropping is off."""
        if not self.enabled.value:
            return NO_CROP
        return np.array([slider.value for slider in self.sliders], np.float32).T

    def fit_to(self, aabb: Float[np.ndarray, "2 3"]) -> None:
        """Sets the range of the sliders, and their values, to a box."""
        for slider, (low, high) in zip(self.sliders, aabb.T, strict=True):
            slider.min, slider.max, slider.step = round_outwards(float(low), float(high))
            slider.value = (slider.min, slider.max)

    def _update(self) -> None:
        scene = self._server.scene
        if self.enabled.value:
            scene.add_line_segments(
                "/crop", list_edges(self.aabb), BOX_COLOR, thickness=2.0, thickness_units="screen"
            )
        else:
            scene.remove_by_name("/crop")
        self._on_change()


def round_outwards(low: float, high: float) -> tuple[float, float, float]:
    """Minimum, maximum and step of a slider over an interval: 100 to 1000 decimal steps."""
    digits = 2 - math.floor(math.log10(max(high - low, 1e-6)))
    step = 10.0**-digits
    return (
        round(math.floor(low / step) * step, digits),
        round(math.ceil(high / step) * step, digits),
        round(step, max(digits, 0)),
    )


def list_edges(aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "12 2 3"]:
    """The end points of the edges of a box."""
    edges = []
    for axis in range(3):
        for corner in np.ndindex(2, 2):
            ends = np.stack([np.insert(corner, axis, end) for end in (0, 1)])
            edges.append(np.take_along_axis(aabb, ends, axis=0))
    return np.stack(edges)

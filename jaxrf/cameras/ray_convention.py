"""Where other programs place rays and how they accumulate light. Imports no jax."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RayConvention:
    """Differences of another program's rays and rendering, which its weights depend on."""

    pixel_center: float = 0.5
    """Position within a pixel, along both axes, that its ray passes; 0 is the top left corner."""
    range_along: Literal["ray", "axis"] = "ray"
    """Whether near and far are distances along the ray or depths along the camera's axis."""
    lengths_along: Literal["ray", "axis"] = "ray"
    """hierarchical: whether light is absorbed over lengths along the ray or over depths along the
    camera's axis."""
    view_directions: Literal["unit", "axis"] = "unit"
    """hierarchical: whether fields get directions of unit length, or of one unit of depth along the
    camera's axis."""
    transmittance: Literal["exclusive", "inclusive"] = "exclusive"
    """hierarchical: whether the light that reaches a sample has passed only the samples before it,
    or this sample too."""
    fine_samples: Literal["padded", "unpadded"] = "padded"
    """hierarchical, of points: whether the distribution of fine samples is padded by 1e-5 in every
    interval and inverted from 0 to 1, as in NeRF's code, or padded only where it sums to less than
    1e-5 and inverted up to just below 1, as in jaxnerf."""
    samples_at: Literal["middle", "start"] = "middle"
    """Marching: whether images are rendered with the field evaluated in the middle or at the start
    of steps."""
    transmittance_threshold: float = 1e-3
    """Marching: a ray ends when its transmittance falls below this."""

    def along_axis(self) -> bool:
        """Whether lengths or directions are those along the camera's axis."""
        return "axis" in (self.lengths_along, self.view_directions)

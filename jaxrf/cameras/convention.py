"""How programs lay out rays and composite samples, where they differ from this one."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RayConvention:
    """Where rays run and how light is summed up; the weights of other programs need theirs."""

    pixel_center: float = 0.5
    """Point of a pixel that its ray passes, along both axes; 0 is its top left corner."""
    range_along: Literal["ray", "axis"] = "ray"
    """Whether near and far are distances along the ray or along the camera's axis."""
    lengths_along: Literal["ray", "axis"] = "ray"
    """hierarchical: whether interval lengths are measured along the ray or along the axis."""
    view_directions: Literal["unit", "axis"] = "unit"
    """hierarchical: whether fields see directions of unit length, or of one unit along the camera's
    axis."""
    transmittance: Literal["exclusive", "inclusive"] = "exclusive"
    """hierarchical: whether light that reaches a sample has passed the samples before it, or also
    itself."""
    samples_at: Literal["middle", "start"] = "middle"
    """packed: whether a field is evaluated in the middle of steps or at their start when an image
    is rendered."""
    transmittance_threshold: float = 1e-3
    """packed: a ray ends when it lets less light than this pass."""

    def along_axis(self) -> bool:
        """Whether lengths or directions are those along the camera's axis."""
        return "axis" in (self.lengths_along, self.view_directions)

"""Options of reading a data set, the same for every format."""

import dataclasses
from typing import Literal

import numpy as np

from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a data set is read and where its scene is placed; distances are in the files' units."""

    downscale: int | None = None
    """Shrink the images by this whole factor, averaging areas. Default: 1, and for larger images
    what makes their longer side 1600 pixels at most."""
    skip_missing: bool = False
    """Leave out images that the data set lists but that do not exist."""
    hold_out: int = 8
    """Where the data set has no test images, every image of this number is held out, from the first
    on."""
    masks: bool = True
    """Read the masks of images, whose black pixels are neither trained on nor scored."""
    depth: bool = False
    """Read the depth of COLMAP's points and of depth maps, to train on it; --loss.depth-weight
    reads it, too."""
    depth_unit: float = 0.001
    """Unit of the numbers in depth maps, in the unit of the poses: 0.001 for millimeters beside
    meters. A file with integer_depth_scale says it itself."""
    axes: Literal["opengl", "opencv"] | None = None
    """Axes of the poses, where files may differ: opengl (y up, z backwards) or opencv (y down, z
    forwards). Default: those of the format."""
    near: float | None = None
    """Distance from the cameras at which rays begin. Default: from the cameras or points."""
    far: float | None = None
    """Distance from the cameras at which rays end."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Low and high corner of a box, x y z x y z. Nothing outside is reconstructed."""
    center: tuple[float, float, float] | None = None
    """Point that becomes the middle of the scene, x y z."""
    scale_to: float | None = None
    """Scene units from the middle to the farthest camera, along the axis where that is largest."""
    ndc: bool | None = None
    """Whether rays are in normalized device coordinates. Default: where all cameras of an LLFF
    or COLMAP scene face forward."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        if self.hold_out < 2:
            raise InputError(f"--hold-out is {self.hold_out}: give 2 or more.")
        require_positive(self, "downscale", "near", "far", "scale_to", "depth_unit")
        if self.near is not None and self.far is not None and self.near >= self.far:
            raise InputError(f"--near {self.near} is not below --far {self.far}: correct one.")
        numbers = [*(self.box or ()), *(self.center or ()), self.near, self.far, self.scale_to]
        if not all(number is None or np.isfinite(number) for number in numbers):
            raise InputError(
                "--near, --far, --box, --center and --scale-to are finite: correct it."
            )
        if self.box is not None:
            for axis, low, high in zip("xyz", self.box[:3], self.box[3:], strict=True):
                if not low < high:
                    raise InputError(
                        f"--box has {axis} from {low:g} to {high:g}: give the low corner first."
                    )


def load_options(options: LoadOptions) -> LoadOptions:
    """The part of larger options that says how a data set is read."""
    names = [field.name for field in dataclasses.fields(LoadOptions)]
    return LoadOptions(**{name: getattr(options, name) for name in names})

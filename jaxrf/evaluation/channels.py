"""Names of the images that can be drawn of a rendering. Imports no jax, so that --help is quick."""

from typing import Literal

# "truth", "error" and "comparison" need a target image.
Channel = Literal["rgb", "depth", "opacity", "truth", "error", "comparison"]

"""The channels that a rendering can be drawn as. Imports no jax: options name them."""

from typing import Literal

# The last three compare with a target image.
Channel = Literal["rgb", "depth", "opacity", "truth", "error", "comparison"]

"""Options of the built-in scene. Imports nothing heavy, so that --help is quick."""

import dataclasses

from jaxrf.core.checks import require_positive


@dataclasses.dataclass(frozen=True)
class SyntheticSceneConfig:
    """The built-in scene `bricks`, which is used when there is no data set."""

    size: int = 128
    """Width and height of the images, in pixels."""
    train_views: int = 100
    """Number of training images."""
    test_views: int = 25
    """Number of test images."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(self, "size", "train_views", "test_views", prefix="synthetic-scene.")

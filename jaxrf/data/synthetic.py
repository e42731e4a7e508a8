"""Options of the built-in scene."""

import dataclasses

from jaxrf.core.checks import require_positive


@dataclasses.dataclass(frozen=True)
class SyntheticSceneConfig:
    """The built-in scene `bricks`, used when there is no data set."""

    size: int = 128
    """Width and height of its images, in pixels."""
    train_views: int = 100
    """Number of training images."""
    test_views: int = 25
    """Number of test images."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(self, "size", "train_views", "test_views", prefix="synthetic-scene.")

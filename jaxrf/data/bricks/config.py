"""Options of the built-in scene. Imports nothing heavy, so that --help is quick."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SyntheticSceneConfig:
    """The built-in scene `bricks`, which is used when there is no data set."""

    size: int = 128
    """Width and height of the images, in pixels."""
    train_views: int = 100
    """Number of training images."""
    test_views: int = 25
    """Number of test images."""

"""The built-in scene: a brick-built house with exact geometry, rendered as a data set."""

"""The one exception that a user's mistake ends in."""


class InputError(Exception):
    """Something a user gave cannot be used; its text says what, where and what to do.

    Commands print it as one sentence and exit with code 2.
    """


class MissingSplitError(InputError):
    """A data set has no pictures of a split, which it may well lack."""

"""The one exception that a user's mistake ends in."""

import tokenize
import zipfile

# What numpy raises over a file of arrays that is damaged or something else. Headers are taken apart
# as Python's words are, which from 3.12 on has an error of its own.
NUMPY_LOAD_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
)


class InputError(Exception):
    """Something a user gave cannot be used; its text says what, where and what to do.

    Commands print it as one sentence and exit with code 2.
    """


class MissingSplitError(InputError):
    """A data set has no pictures of a split, which it may well lack."""

"""Exceptions that report a user's mistake in one sentence."""

import tokenize
import zipfile

# Exceptions that numpy raises for a damaged .npy or .npz file, or for another kind of file. It
# parses headers with Python's tokenizer, which has its own error from Python 3.12 on.
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
    """An input of the user's that cannot be used: one sentence says what, where and what to do.

    Commands print the sentence and exit with code 2.
    """


class MissingSplitError(InputError):
    """A data set has no images of a split. Callers may go on without the split."""

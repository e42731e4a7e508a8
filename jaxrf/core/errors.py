"""Exceptions that report a user's mistake in one sentence."""

import re
import tokenize
import zipfile

# An option of the command line in a sentence, such as --optimizer.grid-lr; or text in backquotes.
_OPTION = re.compile(r"`[^`]*`|(?<![^\s(])--([a-z][a-z0-9.-]*[a-z0-9])")

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


class SentenceError(Exception):
    """An error that one sentence explains, which may name options, such as --optimizer.grid-lr.

    `str` names them as attributes, optimizer.grid_lr, as they are called in Python; commands print
    `for_command_line`. Text in backquotes stays as it is.
    """

    def __str__(self) -> str:
        return _OPTION.sub(_name_attribute, self.for_command_line)

    @property
    def for_command_line(self) -> str:
        """The sentence with options as they are typed."""
        return super().__str__()


def _name_attribute(match: re.Match[str]) -> str:
    return match[1].replace("-", "_") if match[1] else match[0]


def describe_for_command_line(error: BaseException) -> str:
    """An error's text with options as they are typed."""
    return error.for_command_line if isinstance(error, SentenceError) else str(error)


class InputError(SentenceError):
    """An input of the user's that cannot be used: one sentence says what, where and what to do.

    Commands print the sentence and exit with code 2.
    """


class MissingSplitError(InputError):
    """A data set has no images of a split. Callers may go on without the split."""

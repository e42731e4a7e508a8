"""The order of a layer's inputs: programs differ in it by a permutation of the kernel's rows.

Each row of a kernel belongs to one input. Programs that encode positions in another order, or join
the skip connection the other way round, have the same rows in another order.
"""

from collections.abc import Sequence

# An element of an encoding: "x", "sin" or "cos"; its octave; its coordinate.
Label = tuple[str, int, int]


def input_labels(num_frequencies: int, include_input: bool = True) -> list[Label]:
    """Returns the order of `encodings.fourier`: x, then sines and cosines octave by octave."""
    labels = [("x", 0, axis) for axis in range(3)] if include_input else []
    for octave in range(num_frequencies):
        labels += [(wave, octave, axis) for wave in ("sin", "cos") for axis in range(3)]
    return labels


def label_by_coordinate(num_frequencies: int) -> list[Label]:
    """Returns the order in which all of x comes first, then all of y, then all of z."""
    labels: list[Label] = []
    for axis in range(3):
        labels.append(("x", 0, axis))
        for octave in range(num_frequencies):
            labels += [("sin", octave, axis), ("cos", octave, axis)]
    return labels


def label_sines_first(num_frequencies: int) -> list[Label]:
    """Returns jaxnerf's order: x, then the sines of all octaves, then the cosines."""
    labels = [("x", 0, axis) for axis in range(3)]
    for wave in ("sin", "cos"):
        labels += [(wave, octave, axis) for octave in range(num_frequencies) for axis in range(3)]
    return labels


def find_permutation(source: Sequence[Label], target: Sequence[Label], start: int = 0) -> list[int]:
    """Returns the row of each target label among the source labels, which begin at row `start`."""
    row_of = {label: start + index for index, label in enumerate(source)}
    return [row_of[label] for label in target]


def move_encoding_first(width: int, encoded_rows: Sequence[int]) -> list[int]:
    """Returns the rows of [encoding, hidden] in [hidden, encoding] with `width` hidden units."""
    return [*encoded_rows, *range(width)]


def infer_frequencies(encoding_size: int) -> tuple[int, bool] | None:
    """Returns the octaves of an encoding of three coordinates, and whether it includes these.

    None if no encoding has this size.
    """
    if encoding_size >= 3 and (encoding_size - 3) % 6 == 0:
        return (encoding_size - 3) // 6, True
    if encoding_size > 0 and encoding_size % 6 == 0:
        return encoding_size // 6, False
    return None

"""Progress of long loops: a bar on a terminal, an occasional line elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Seconds between two lines where standard error is no terminal, as in a log file.
LINE_INTERVAL = 10.0


def _stderr_is_terminal() -> bool:
    # A program without a console has no standard error.
    return sys.stderr is not None and sys.stderr.isatty()


class ProgressBar:
    """Progress of a task towards `total`, on standard error.

    A terminal gets a bar that is redrawn in place. Anything else gets plain lines: at most one
    every `LINE_INTERVAL` seconds, and a last one from `close`. A task that has nothing left to do
    prints nothing, and neither does one of unknown size before its first update.

    Use it as a context manager, or call `close`.

    Attributes:
      total: units of work in all, or None if unknown; may be assigned.
      n: units done.
    """

    def __init__(
        self,
        total: int | None,
        desc: str,
        unit: str = "it",
        *,
        initial: int = 0,
        unit_scale: bool = False,
        disable: bool = False,
    ) -> None:
        """Starts the clock.

        Args:
          total: units of work in all, or None if unknown.
          desc: title before the numbers.
          unit: name of one unit of work.
          initial: units done earlier, which do not count towards the rate.
          unit_scale: whether to print counts with the prefixes k, M and G.
          disable: print nothing, as on all processes but the main one.
        """
        self.total = total
        self.n = initial
        self._initial = initial
        self._desc = desc
        self._unit = unit
        self._unit_scale = unit_scale
        self._disable = disable
        self._postfix = ""
        self._start = self._last_line = time.monotonic()
        self._on_terminal = not disable and _stderr_is_terminal()
        self._bar: Any = None
        if total is not None and initial < total:
            self._draw()

    def update(self, n: int = 1) -> None:
        """Adds n units to the work done."""
        self.update_to(self.n + n)

    def update_to(self, n: int, total: int | None = None) -> None:
        """Sets the units done and, unless it is None, the units in all."""
        self.total = self.total if total is None else total
        self.n = n
        self._draw()

    def set_postfix(self, text: str) -> None:
        """Sets the text after the numbers."""
        self._postfix = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def write(self, line: str) -> None:
        """Prints a line to standard output, above the bar."""
        if self._on_terminal:
            tqdm.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands, or prints the last line."""
        if self._bar is not None:
            self._bar.close()
        elif not self._on_terminal and self.n > self._initial:
            self._print_line()
        self._disable = True
        self._bar = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _draw(self) -> None:
        if self._disable:
            return
        if not self._on_terminal:
            if time.monotonic() - self._last_line >= LINE_INTERVAL:
                self._print_line()
            return
        if self._bar is None:
            self._bar = tqdm(
                total=self.total,
                initial=self._initial,
                desc=self._desc,
                unit=self._unit,
                unit_scale=self._unit_scale,
            )
        self._bar.total = self.total
        self._bar.update(self.n - self._bar.n)

    def _print_line(self) -> None:
        if self._disable or sys.stderr is None:
            return
        self._last_line = time.monotonic()
        # Zero columns leave out the bar and keep the numbers.
        line = tqdm.format_meter(
            self.n,
            self.total,
            self._last_line - self._start,
            ncols=0,
            prefix=self._desc,
            unit=self._unit,
            unit_scale=self._unit_scale,
            initial=self._initial,
            postfix=self._postfix,
        )
        print(line, file=sys.stderr, flush=True)


def progress(
    items: Iterable[T],
    desc: str,
    unit: str = "it",
    *,
    total: int | None = None,
    disable: bool = False,
) -> Iterator[T]:
    """Yields the items and shows how many are done; see `ProgressBar`.

    Args:
      items: what to iterate over.
      desc: title before the numbers.
      unit: name of one item.
      total: number of items, where `len(items)` does not tell it.
      disable: print nothing.

    >>> list(progress(range(3), "squares", disable=True))
    [0, 1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with ProgressBar(total, desc, unit, disable=disable) as bar:
        for item in items:
            yield item
            bar.update()

"""Progress: a bar on terminals, plain lines elsewhere, nothing where nothing is left to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrf.core import progress as module
from jaxrf.core.progress import LINE_INTERVAL, ProgressBar, progress


class Streams:
    """What was printed so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._out = self._err = ""

    def _read(self) -> None:
        out, err = self._capsys.readouterr()
        self._out, self._err = self._out + out, self._err + err

    @property
    def out(self) -> str:
        self._read()
        return self._out

    @property
    def err(self) -> str:
        self._read()
        return self._err


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Streams:
    """Standard error is no terminal."""
    assert not module._stderr_is_terminal()
    return Streams(capsys)


@pytest.fixture
def terminal(log: Streams, monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Standard error is a terminal."""
    monkeypatch.setattr(module, "_stderr_is_terminal", lambda: True)
    return log


class Clock:
    """Stands for the clock of the module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_progress_yields_the_items_in_order(log: Streams) -> None:
    assert list(progress([3, 1, 2], "items")) == [3, 1, 2]
    assert list(progress((n for n in "abc"), "letters", "letter", total=3)) == ["a", "b", "c"]
    assert list(progress((n for n in "abc"), "letters")) == ["a", "b", "c"]


def test_progress_is_lazy(log: Streams) -> None:
    pulled = []
    items = progress((pulled.append(n) or n for n in range(5)), "items")
    assert pulled == [] and log.err == ""
    next(items)
    assert pulled == [0]


def test_a_terminal_gets_a_bar_redrawn_in_place(terminal: Streams) -> None:
    assert list(progress(range(7), "views", "view")) == list(range(7))
    text = terminal.err
    assert "\r" in text and text.count("\n") == 1 and text.endswith("\n")
    assert "views: 100%" in text and "7/7" in text and "view" in text


def test_a_terminal_bar_begins_at_once(terminal: Streams) -> None:
    bar = ProgressBar(10, "train", "step", initial=4)
    assert "train:  40%" in terminal.err and "4/10" in terminal.err
    bar.close()


def test_a_terminal_bar_shows_the_postfix_and_a_new_total(terminal: Streams) -> None:
    with ProgressBar(10, "train", "step") as bar:
        bar.total = 20
        bar.update(5)
        bar.set_postfix("loss 0.5, PSNR 20.00 dB")
        assert "5/20" in terminal.err
        assert "loss 0.5, PSNR 20.00 dB" in terminal.err


def test_write_on_a_terminal_goes_to_standard_output(terminal: Streams) -> None:
    with ProgressBar(10, "train", "step") as bar:
        bar.write("  step 3: grid 32x32x32")
    assert terminal.out == "  step 3: grid 32x32x32\n"
    assert "grid" not in terminal.err


def test_lines_have_no_carriage_returns_and_no_bars(log: Streams) -> None:
    list(progress(range(7), "views", "view"))
    assert "\r" not in log.err and "|" not in log.err
    (line,) = log.err.splitlines()
    assert line.startswith("views: 100% 7/7 [") and line.endswith("]")
    assert log.err.endswith("\n")


def test_lines_come_at_most_once_per_interval(log: Streams, clock: Clock) -> None:
    seconds = 95
    with ProgressBar(seconds, "train", "step") as bar:
        for _ in range(seconds):
            clock.now += 1.0
            bar.update()
    lines = log.err.splitlines()
    # After every tenth second, and at the end.
    assert len(lines) == int(seconds // LINE_INTERVAL) + 1
    assert " 10/95 [00:10<01:25, " in lines[0]
    assert " 95/95 [01:35<00:00, " in lines[-1]


def test_slow_updates_print_a_line_each(log: Streams, clock: Clock) -> None:
    bar = ProgressBar(3, "bake", "mesh")
    clock.now += 1000.0
    bar.update()
    assert len(log.err.splitlines()) == 1
    clock.now += LINE_INTERVAL - 0.5
    bar.update()
    assert len(log.err.splitlines()) == 1
    bar.close()
    assert len(log.err.splitlines()) == 2
    assert " 2/3 " in log.err.splitlines()[-1]


def test_lines_carry_the_postfix(log: Streams, clock: Clock) -> None:
    with ProgressBar(100, "train", "step") as bar:
        bar.set_postfix("loss 0.00133, PSNR 28.77 dB")
        assert log.err == ""
        clock.now += 20.0
        bar.update(50)
    first = log.err.splitlines()[0]
    assert first.endswith("2.50step/s, loss 0.00133, PSNR 28.77 dB]")


def test_write_in_a_log_prints_the_line_alone(log: Streams) -> None:
    with ProgressBar(10, "train", "step") as bar:
        bar.write("a line")
    assert log.out == "a line\n"
    assert log.err == ""


def test_the_rate_leaves_out_work_of_an_earlier_run(log: Streams, clock: Clock) -> None:
    with ProgressBar(1000, "train", "step", initial=900) as bar:
        clock.now += 10.0
        bar.update(50)
    assert "950/1000 [00:10<00:10,  5.00step/s]" in log.err


def test_an_unknown_total_may_become_known(log: Streams, clock: Clock) -> None:
    with ProgressBar(None, "lego", "B", unit_scale=True) as bar:
        clock.now += 10.0
        bar.update_to(3_000_000)
        clock.now += 10.0
        bar.update_to(6_000_000, 12_000_000)
    first, second, _ = log.err.splitlines()
    assert first.startswith("lego: 3.00MB [00:10, ")
    assert second.startswith("lego:  50% 6.00M/12.0M [00:20<00:20, ")


@pytest.mark.parametrize("stream", ["terminal", "log"])
@pytest.mark.parametrize(("total", "initial"), [(0, 0), (5, 5), (5, 7), (None, 0)])
def test_finished_work_prints_nothing(
    stream: str, total: int | None, initial: int, request: pytest.FixtureRequest
) -> None:
    streams = request.getfixturevalue(stream)
    with ProgressBar(total, "work", initial=initial):
        pass
    assert list(progress([], "items")) == []
    assert streams.err == ""


@pytest.mark.parametrize("stream", ["terminal", "log"])
def test_disabled_progress_prints_nothing(
    stream: str, request: pytest.FixtureRequest, clock: Clock
) -> None:
    streams = request.getfixturevalue(stream)
    with ProgressBar(5, "work", disable=True) as bar:
        clock.now += 100.0
        bar.update(3)
        bar.set_postfix("loss 1")
    assert list(progress(range(3), "items", disable=True)) == [0, 1, 2]
    assert streams.err == ""


@pytest.mark.parametrize("stream", ["terminal", "log"])
def test_closing_twice_prints_once(stream: str, request: pytest.FixtureRequest) -> None:
    streams = request.getfixturevalue(stream)
    bar = ProgressBar(5, "work")
    bar.update(2)
    bar.close()
    before = streams.err
    assert before.count("\n") == 1
    bar.update(1)
    bar.close()
    assert streams.err == before


def test_an_abandoned_loop_leaves_its_last_line(log: Streams) -> None:
    items = progress(iter(range(5)), "work", total=5)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()  # type: ignore[attr-defined]
    assert "2/5" in log.err


LOOP = "from jaxrf.core.progress import progress\nfor _ in progress(range(3), 'views'): pass\n"
ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_real_terminal_is_told_from_a_pipe() -> None:
    termios = pytest.importorskip("termios", reason="Windows has no pseudo-terminals")
    command = [sys.executable, "-c", LOOP]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert piped.stdout == "" and piped.stderr.startswith("views: 100% 3/3 [")
    assert "\r" not in piped.stderr
    ours, theirs = os.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 80))
        subprocess.run(command, cwd=ROOT, stderr=theirs, check=True)
        text = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert text.startswith("\r") and "100%|" in text

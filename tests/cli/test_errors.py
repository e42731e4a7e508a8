"""Errors of commands: their exit codes, and what is printed."""

from typing import Any

import pytest
from programs import error_line

from jaxrf.cli.errors import run_and_report


def test_run_and_report_explains_exhausted_memory_and_lets_bugs_propagate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(error: BaseException) -> Any:
        def command() -> int:
            raise error

        return command

    assert run_and_report(fail(RuntimeError("RESOURCE_EXHAUSTED: 3 GiB"))) == 1
    assert "--batch-samples" in error_line(capsys)
    assert run_and_report(fail(MemoryError())) == 1
    assert "--render-samples" in error_line(capsys)
    assert run_and_report(fail(KeyboardInterrupt())) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(ZeroDivisionError):
        run_and_report(fail(ZeroDivisionError()))

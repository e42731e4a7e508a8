"""Other processes that a study runs `jaxrf` in, so that nothing is compiled or cached before."""

import subprocess
import sys
from collections.abc import Mapping, Sequence

from jaxrf.core.errors import InputError


def run_jaxrf(arguments: Sequence[str], environment: Mapping[str, str], title: str) -> None:
    """Runs `jaxrf` with these arguments in another process.

    Raises:
      InputError: it failed; with `title` and the last line that it printed.
    """
    command = [sys.executable, "-m", "jaxrf", *arguments]
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise InputError(f"{title} failed: {''.join(last)}")

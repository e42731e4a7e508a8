"""Render a 360-degree orbit of a trained run: see --help."""

import sys

from jaxrf.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("render", prog="render_360.py"))

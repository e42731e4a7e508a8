"""Render a 360-degree orbit of a trained run: see --help."""

import sys

from jaxrf.cli.main import render

if __name__ == "__main__":
    sys.exit(render())

"""Train a radiance field on Lego, or on any set of images with cameras: see --help."""

import sys

from jaxrf.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", prog="train_lego.py"))

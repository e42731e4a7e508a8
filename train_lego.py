"""Train a radiance field on Lego, or on any set of pictures with cameras: see --help."""

import sys

from jaxrf.cli.main import train

if __name__ == "__main__":
    sys.exit(train())

"""`python -m jaxrf` is `jaxrf`."""

import sys

from jaxrf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

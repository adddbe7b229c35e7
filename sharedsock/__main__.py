"""`python -m sharedsock`: the command line."""

import sys

from sharedsock.cli import main

if __name__ == "__main__":
    sys.exit(main())

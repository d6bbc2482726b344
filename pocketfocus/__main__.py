"""`python -m pocketfocus` is the `pocketfocus` command."""

import sys

from pocketfocus.cli import main

if __name__ == "__main__":
    sys.exit(main())

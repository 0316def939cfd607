"""``python -m fastopt``: the same as the command ``fastopt``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

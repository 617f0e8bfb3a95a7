"""`python -m octavo.cli`: the same as the `octavo` script."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())

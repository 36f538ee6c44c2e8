"""`python -m vit_core.cli` is the `vit` command."""

import sys

from vit_core.cli import main

if __name__ == "__main__":
    sys.exit(main())

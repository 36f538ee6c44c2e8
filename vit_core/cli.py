"""The entry of the `vit` command, and of `python -m vit_core.cli`; the command itself stands in `vit_core.app.cli`."""

import sys

from vit_core.app.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())

"""`vit serve` whose model computes a batch when it is told to, so that a test knows what happens meanwhile.

python tests/gated.py ARGUMENTS...     for each batch, its size goes to the standard output and a line is awaited on the
standard input: "fail", or anything else to go on. At its end every batch goes on. HEADERS_WITHIN seconds those of a
request must arrive.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from command import HANGS

from vit_core.app.serve import server
from vit_core.app.serve.batching import Batcher
from vit_core.cli import main

compute = Batcher.compute


def gated(self: Batcher, model: Any, pixels: Any) -> Any:
    print(len(pixels), flush=True)
    if sys.stdin.readline().strip() == "fail":
        raise ValueError("a secret of the model")
    return compute(self, model, pixels)


Batcher.warm_up = lambda self: None  # type: ignore[method-assign]
Batcher.compute = gated  # type: ignore[method-assign]
server._HEADERS_WITHIN = float(os.environ.get("HEADERS_WITHIN", HANGS))
server._LAST_CHANCE = HANGS
sys.exit(main(["serve", *sys.argv[1:]]))

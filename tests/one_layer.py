"""Run a script with a model of one layer wherever it makes one: it trains as the whole does, in less time.

python tests/one_layer.py SCRIPT ARGUMENTS...
"""

from __future__ import annotations

import os
import runpy
import sys
from functools import partial

from vit_core.config import ViTConfig

_, script, *arguments = sys.argv
sys.argv = [script, *arguments]
sys.path[0] = os.path.dirname(script)
setattr(ViTConfig, "from_pretrained", partial(ViTConfig.from_pretrained, num_hidden_layers=1))  # noqa: B010
runpy.run_path(script, run_name="__main__")

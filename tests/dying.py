"""Run a script that dies by SIGKILL when it calls a function for the Nth time: at one place, however busy the machine.

python tests/dying.py MODULE:FUNCTION N RANK SCRIPT ARGUMENTS...     of several processes, the one of this RANK
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from importlib import import_module
from typing import Any

_, where, number, rank, script, *arguments = sys.argv
sys.argv = [script, *arguments]
if "keras" in where + script:
    import_module("lean")
sys.path[0] = os.path.dirname(script)
module, _, path = where.partition(":")
*parents, name = path.split(".")
owner: Any = import_module(module)
for parent in parents:
    owner = getattr(owner, parent)
function, left = getattr(owner, name), int(number)


def dying(*args: Any, **kwargs: Any) -> Any:
    global left
    left -= 1
    if left == 0 and os.environ.get("RANK", rank) == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)


setattr(owner, name, dying)
runpy.run_path(script, run_name="__main__")

"""transformers 5, which the environment has in a folder of its own beside 4.57.6, run in a process that takes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(sys.prefix) / "five"


def run(code: str, *arguments: object) -> str:
    """What a program prints that imports transformers 5 and this package; an error with its words when it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (FOLDER, ROOT))), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout

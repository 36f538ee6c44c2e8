"""Imported first by a process that is not about Keras's import, which takes half of the time as `vit` does it."""

from __future__ import annotations

from vit_core.app.cli import common

common._alone.set()
common.import_quietly("tf")

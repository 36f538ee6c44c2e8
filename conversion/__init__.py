"""Checkpoints of other layouts, read and written without any framework.

`containers` knows the files: bytes <-> named, lazily read arrays.
"""

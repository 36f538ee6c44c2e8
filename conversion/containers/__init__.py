"""The files that the core does not know: bytes <-> named, lazily read arrays."""

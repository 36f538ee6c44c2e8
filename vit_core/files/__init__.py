"""Bytes to named, lazily read tensors, and back: containers, documents, a folder that is saved, the hub."""

"""Files <-> named arrays, one module a kind of file. safetensors, HDF5 and msgpack are the core's own."""

from conversion.containers.pytorch_bin import StateDict, read_pytorch_bin, read_state_dicts, write_pytorch_bin

__all__ = ["StateDict", "read_pytorch_bin", "read_state_dicts", "write_pytorch_bin"]

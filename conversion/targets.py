"""What `convert` writes: the formats by the names a user gives them, and the kinds of file each can be in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vit_core.formats import FORMATS
from vit_core.formats.format import Format
from vit_core.formats.huggingface import FLAX_MSGPACK, PYTORCH_BIN, SAFETENSORS, TF_H5, Container


@dataclass(frozen=True)
class Target:
    """A format to write: one of Hugging Face's, named in safetensors metadata, or another library's."""

    title: str
    format: str
    containers: Mapping[str, Container]  # by name, the one that is written unless another is asked for first
    fmt: Format | None = None

    def container(self, name: str | None) -> Container:
        """The container of a name. Raises ValueError for one that this format is never in."""
        if name is None:
            return next(iter(self.containers.values()))
        if name not in self.containers:
            expected = ", ".join(self.containers)
            raise ValueError(f"container={name!r} is none that {self.title} is written in: expected {expected}.")
        return self.containers[name]


def _others() -> dict[str, Target]:
    found = {}
    for name, fmt in ((name, fmt) for name, fmt in FORMATS.items() if fmt.written):
        containers = {fmt.container.suffix.rpartition(".")[2]: fmt.container}
        if fmt.container is SAFETENSORS:
            containers["bin"] = PYTORCH_BIN
        found[name] = Target(fmt.title, name, containers, fmt)
    return found


ALL_CONTAINERS = (SAFETENSORS, PYTORCH_BIN, TF_H5, FLAX_MSGPACK, *(format.container for format in FORMATS.values()))
TARGETS: dict[str, Target] = {
    "torch": Target("Hugging Face's PyTorch ViT", "pt", {"safetensors": SAFETENSORS, "bin": PYTORCH_BIN}),
    "tf": Target("Hugging Face's TensorFlow ViT", "tf", {"safetensors": SAFETENSORS, "h5": TF_H5}),
    "flax": Target("Hugging Face's Flax ViT", "flax", {"safetensors": SAFETENSORS, "msgpack": FLAX_MSGPACK}),
    **_others(),
}

"""Pictures in PyTorch: prepared as the image processor does it, where the tensors are and in exported files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_core.pictures.graph import PictureOperations, Preparation


def operations(device: torch.device | str = "cpu", traced: bool = True) -> PictureOperations:
    """For tensors on a device; traced, for a program whose order of axes is chosen when it runs."""
    wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
    return PictureOperations(
        lengths=lambda x: x.shape,
        larger=torch.sym_max,
        scalar=lambda length: torch.scalar_tensor(length, **wide),
        count=lambda length: torch.arange(length, **wide),
        floor=torch.floor,
        sin=torch.sin,
        where=torch.where,
        total=lambda x: x.sum(-1, keepdim=True),
        largest=torch.max,
        running=lambda x: x.cumsum(0),
        either=lambda condition, a, b, *x: torch.cond(condition, a, b, x) if traced else (a if condition else b)(*x),
        reshape=torch.reshape,
        transpose=lambda x, axes: x.permute(*axes).contiguous(),
        take=lambda x, places: x[places.long()],
        wide=lambda x: x.double(),
        narrow=lambda x: x.to(torch.uint8),
        single=lambda x: x.float(),
        constant=lambda array: torch.as_tensor(array, device=device),
    )


class Preprocessing(nn.Module):
    """Pixels (B, C, h, w) in float32 of pictures (B, C, H, W), or of one (C, H, W), as an image processor makes them.

    Made by `processor.as_torch_module()`. The pixels are those of the processor to the last bit, on a CPU, of pictures
    of any size, one for the batch. Raises ValueError for a processor that makes pixels of many sizes and for pictures
    of another shape, TypeError for what is no tensor of uint8. num_channels: 1 or 3; if None, as many as have a mean
    of their own, or 3.
    """

    def __init__(self, processor: Any, num_channels: int | None = None) -> None:
        super().__init__()
        self.processor, self.preparation = processor, Preparation.of(processor, num_channels)

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures: (B, C, H, W) or (C, H, W), uint8."""
        if not isinstance(pictures, Tensor):
            got = type(pictures).__name__
            raise TypeError(f"Pictures must be a tensor of uint8, got a {got}: make one, or call the image processor.")
        if pictures.dtype != torch.uint8:
            raise TypeError(f"Pictures must be uint8, 0 to 255, got {pictures.dtype}: round them, and pass uint8.")
        channels = self.preparation.channels
        if pictures.ndim not in (3, 4) or pictures.shape[-3] != channels:
            raise ValueError(
                f"Pictures must have shape (B, {channels}, H, W) or ({channels}, H, W), got {tuple(pictures.shape)}."
            )
        if pictures.ndim == 3:
            return self.forward(pictures[None])[0]
        found = operations(pictures.device, traced=torch.compiler.is_compiling())
        return self.preparation(found, pictures.permute(0, 2, 3, 1))

    def extra_repr(self) -> str:
        """The size that is made."""
        return f"size={self.preparation.size}"

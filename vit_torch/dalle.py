"""The visual tokens of BEiT's paper: the encoder of DALL-E's discrete VAE, as transformers keeps it, in PyTorch.

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1 and appendix A.2. Agrees with `FlavaImageCodebook`
of transformers 4.57.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_core.files.documents import Document, read_json_object
from vit_core.formats.huggingface import find_weights, read_named

KIND = "flava_image_codebook"
GROUPS = (1, 2, 4, 8)  # of blocks: their widths, in hidden sizes; the picture is halved between two
STRIDE = 8  # pixels along a side that a token stands for
EPSILON = 0.1  # of the logit-Laplace distribution, which keeps colours off 0 and 1


class Encoder:
    """The encoder of a folder. Raises OSError and ValueError for one that is not of this kind."""

    def __init__(self, folder: Path) -> None:
        path = folder / "config.json"
        if folder.suffix == ".pkl" or ((folder / "encoder.pkl").exists() and not path.exists()):
            raise ValueError(
                f"{folder} is, or holds, OpenAI's pickled module, which runs code as it is read: pass a folder of "
                "transformers' FlavaImageCodebook, to which it is converted, such as facebook/flava-image-codebook."
            )
        config = read_json_object(path)
        if (kind := config.text("model_type", "none")) != KIND:
            raise ValueError(f"{folder} has the model_type {kind}, expected {KIND}.")
        self.blocks = _number(config, "num_blocks_per_group", 2)
        self.gain = 1 / (_number(config, "num_groups", len(GROUPS)) * self.blocks) ** 2
        self.channels, self.vocab_size = _number(config, "input_channels", 3), _number(config, "vocab_size", 8192)
        shapes = self._shapes(_number(config, "hidden_size", 256))
        tensors = read_named(find_weights(folder)).tensors
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if wrong := sorted(name for name in shapes | found if shapes.get(name) != found.get(name)):
            raise ValueError(
                f"{folder}: {wrong[0]} has shape {found.get(wrong[0])}, expected {shapes.get(wrong[0])} by config.json."
            )
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = accelerator or torch.device("cpu")
        self.weights = {
            name: torch.from_numpy(np.array(tensors[name].read(), np.float32)).to(self.device) for name in shapes
        }

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters by their names in files."""
        kernels = {"blocks.input": (width, self.channels, 7, 7)}
        before = width
        for group, factor in enumerate(GROUPS, start=1):
            after = factor * width
            for block in range(1, self.blocks + 1):
                name, inner = f"blocks.group_{group}.group.block_{block}", after // 4
                if before != after:
                    kernels[f"{name}.id_path"] = (after, before, 1, 1)
                kernels[f"{name}.res_path.path.conv_1"] = (inner, before, 3, 3)
                kernels[f"{name}.res_path.path.conv_2"] = (inner, inner, 3, 3)
                kernels[f"{name}.res_path.path.conv_3"] = (inner, inner, 3, 3)
                kernels[f"{name}.res_path.path.conv_4"] = (after, inner, 1, 1)
                before = after
        kernels["blocks.output.conv"] = (self.vocab_size, before, 1, 1)
        weights = {f"{name}.weight": shape for name, shape in kernels.items()}
        return weights | {f"{name}.bias": shape[:1] for name, shape in kernels.items()}

    @torch.no_grad()
    def __call__(self, colours: np.ndarray, grid: Sequence[int]) -> np.ndarray:
        """The tokens (B, N) on a grid, height x width, of pictures (B, C, H, W) of colours from 0 to 1."""
        x = torch.from_numpy(colours).to(self.device).clamp(0, 1)
        x = F.interpolate(x, [STRIDE * side for side in grid], mode="bilinear", antialias=True)
        x = self._conv("blocks.input", EPSILON + (1 - 2 * EPSILON) * x)
        for group in range(1, len(GROUPS) + 1):
            for block in range(1, self.blocks + 1):
                x = self._block(f"blocks.group_{group}.group.block_{block}", x)
            if group < len(GROUPS):
                x = F.max_pool2d(x, 2)
        tokens: np.ndarray = self._conv("blocks.output.conv", F.relu(x)).argmax(1).flatten(1).cpu().numpy()
        return tokens

    def _block(self, name: str, x: Tensor) -> Tensor:
        branch = x
        for i in range(1, 5):
            branch = self._conv(f"{name}.res_path.path.conv_{i}", F.relu(branch))
        if f"{name}.id_path.weight" in self.weights:
            x = self._conv(f"{name}.id_path", x)
        return x + self.gain * branch

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding="same")


def _number(config: Document, name: str, default: int) -> int:
    found = config.integer(name, default)
    if not found or found < 1:
        raise ValueError(f"{config.source}: {name} must be at least 1, got {found}.")
    return found

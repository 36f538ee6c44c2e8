"""Arrays in, arrays out: initialising, loading and saving the PyTorch models, and what else every model can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Self

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from conversion.reading import read
from vit_core.config import ViTConfig
from vit_core.initialization import BOUND, draw
from vit_core.params import ALL_PARTS, HEADS, PREFIX, TORCH, TORCH_V5, Spec, native_name, parse_name, specs
from vit_core.pretrained import PretrainedModel
from vit_core.safetensors_file import Tensor as StoredTensor
from vit_torch.attention import choose


def to_torch(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A stored tensor as a torch tensor in memory of its own; the memory that reading the file took is given back."""
    array = stored.read()
    if array.dtype == ml_dtypes.bfloat16:
        view = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    else:
        view = torch.from_numpy(array)
    tensor = torch.empty(stored.shape, dtype=dtype).copy_(view)
    stored.release()
    return tensor


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A torch tensor as an array on the host, bfloat16 included."""
    host = tensor.detach().cpu().contiguous()
    return host.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if host.dtype == torch.bfloat16 else host.numpy()


class ViTPreTrainedModel(nn.Module, PretrainedModel):
    """Base of the models. Its state dict has the names of transformers <= 5.8; the names since 5.9 load as well."""

    file_format = "pt"
    _read = staticmethod(read)
    main_input_name = "pixel_values"

    def __init__(self, config: ViTConfig, parts: frozenset[str]) -> None:
        super().__init__()
        config.validate()
        choose(config.attn_implementation, output_attentions=False)
        self.config = config
        self.parts = parts
        self.register_load_state_dict_pre_hook(_accept_new_names)

    def specs(self) -> dict[str, Spec]:
        """The table's entries of this model's parameters, by their names in its state dict."""
        prefixed = bool(self.parts & set(HEADS))
        return {native_name(s, TORCH, prefixed): s for s in specs(self.config, self.parts).values()}

    @torch.no_grad()
    def init_weights(self, seed: int | None = None, parts: Iterable[str] = ALL_PARTS | {""}) -> None:
        """Draw the parameters of these parts ("" is the trunk) anew: from torch's generator, or from `seed`.

        With a seed the values are those of every other framework. Parameters on the meta device are left alone.
        """
        for name, spec in self.specs().items():
            parameter = self.get_parameter(name)
            if spec.part in parts and not parameter.is_meta:
                parameter.copy_(initial(spec, self.config, seed))

    @classmethod
    def from_tensors(
        cls, config: ViTConfig, tensors: Mapping[str, StoredTensor], seed: int | None, **model_kwargs: Any
    ) -> Self:
        """A model of stored tensors, built on the meta device so that nothing is initialised to be thrown away."""
        with torch.device("meta"):
            model = cls(config, **model_kwargs)
        dtype = getattr(torch, config.dtype or "float32")
        state = {
            name: to_torch(tensors[spec.name], dtype) if spec.name in tensors else initial(spec, config, seed).to(dtype)
            for name, spec in model.specs().items()
        }
        model.load_state_dict(state, assign=True)
        return model.eval()

    def to_tensors(self) -> dict[str, StoredTensor]:
        """Every parameter by canonical name, copied to the host when it is read."""
        found = {}
        for name, spec in self.specs().items():
            parameter = self.get_parameter(name)
            dtype = np.dtype(str(parameter.dtype).removeprefix("torch."))
            found[spec.name] = StoredTensor(tuple(parameter.shape), dtype, partial(to_numpy, parameter), name)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of parameters, or of those that require a gradient."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings."""
        trunk = f"{PREFIX}." if self.parts & set(HEADS) else ""
        return self.get_submodule(f"{trunk}embeddings.patch_embeddings")

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute each layer in the backward pass; the keywords go to `torch.utils.checkpoint.checkpoint`."""
        for encoder in self._encoders():
            encoder.checkpointing = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def gradient_checkpointing_disable(self) -> None:
        """Keep every layer's activations again."""
        for encoder in self._encoders():
            encoder.checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return any(encoder.checkpointing is not None for encoder in self._encoders())

    def _encoders(self) -> list[Any]:
        return [module for module in self.modules() if hasattr(module, "checkpointing")]


def initial(spec: Spec, config: ViTConfig, seed: int | None) -> Tensor:
    """The initial float32 tensor of a parameter: the core's for this seed, or drawn with torch's generator."""
    if seed is not None:
        return torch.from_numpy(draw(spec, config, seed))
    if spec.init == "normal" and spec.leaf != "bias" and config.initializer_range:
        return nn.init.trunc_normal_(torch.empty(spec.shape), std=config.initializer_range, a=-BOUND, b=BOUND)
    return torch.full(spec.shape, 1.0 if (spec.init, spec.leaf) == ("norm", "weight") else 0.0)


def _accept_new_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename, in the copy that is being loaded, what transformers >= 5.9 calls the modules in memory."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        known = parse_name(name, TORCH_V5)
        if known and not name.endswith(known.name):
            trunk = f"{PREFIX}." if name.startswith(f"{PREFIX}.") else ""
            state[prefix + trunk + known.name] = state.pop(key)

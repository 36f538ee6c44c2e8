"""Arrays in, arrays out: initialising, loading and saving the PyTorch models, and what else every model can do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.files.tensor import Tensor as StoredTensor
from vit_core.formats.reading import read
from vit_core.initialization import BOUND, DRAWN, constant, draw, uniform_bound
from vit_core.loading import LoadReport, resolve_dtype
from vit_core.outputs import Output, Returns
from vit_core.parameter_groups import ParameterGroup
from vit_core.params import TORCH, TORCH_V5, Spec, native_name, parse_name, specs
from vit_core.pretrained import PretrainedModel
from vit_torch.attention import choose
from vit_torch.devices import accelerator, torch_device
from vit_torch.layers import hooks_of
from vit_torch.saving import check_replaced, refuse_wrapped, stored_tensor, unwrapped

_BY_TOKEN = {nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.Sequential, nn.ModuleList}


def to_torch(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A stored tensor on torch's default device; the memory that reading the file took is given back."""
    array = stored.read()
    if array.dtype == ml_dtypes.bfloat16:
        view = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    else:
        view = torch.from_numpy(array)
    tensor = torch.empty(stored.shape, dtype=dtype).copy_(view)
    stored.release()
    return tensor


class ViTPreTrainedModel(nn.Module, PretrainedModel):
    """Base of the models. Its state dict has the names of transformers <= 5.8; the names since 5.9 load as well."""

    file_format = "pt"
    weights_keyword = "state_dict"
    _read, _choose = staticmethod(read), staticmethod(choose)
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # For accelerate's maps of devices.
    _no_split_modules = ("ViTEmbeddings", "ViTLayer", "Dinov2Layer", "BeitLayer", "ViTMAEDecoder")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "architecture"):  # of a user's own class
            cls.architecture = cls.__name__

    def __init__(self, config: ViTConfig, parts: frozenset[str] | None = None) -> None:
        """`parts` are those of the table beside the trunk; by default, of a user's own class, those of its trunk."""
        super().__init__()
        self._check_member(config)
        config.validate()
        choose(config.attn_implementation, output_attentions=False)
        self.config = config
        self.num_labels = config.num_labels
        self._parts = None if parts is None else tuple(sorted(parts))  # pickled alike in every process

    def __setattr__(self, name: str, value: Any) -> None:
        """As any module's; a configuration of transformers, as its models of two give their parts one, is read."""
        if name == "config" and not isinstance(value, ViTConfig) and hasattr(value, "to_diff_dict"):
            value = self.config_class.from_dict(value.to_diff_dict())  # what its file holds, no words of generation
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _accept_new_names(self, state_dict, prefix)  # no hook, whose number would make each model another one to hash
        super()._load_from_state_dict(state_dict, prefix, *args)

    if TYPE_CHECKING:

        @overload
        def __call__(
            self: Returns[Output], *inputs: Any, return_dict: Literal[True] | None = None, **options: Any
        ) -> Output: ...

        @overload
        def __call__(self, *inputs: Any, **options: Any) -> Any: ...

        def __call__(self, *inputs: Any, **options: Any) -> Any:
            """What `forward` gives."""

    @property
    def parts(self) -> frozenset[str]:  # type: ignore[override]
        """The optional parts of the table that the model has."""
        trunk = getattr(self, self.base_model_prefix, None)
        return frozenset(getattr(trunk, "parts", ()) if self._parts is None else self._parts)

    @classmethod
    def parts_of(cls, config: ViTConfig, *args: Any, **kwargs: Any) -> frozenset[str]:
        """The optional parts of the table that a model built with these arguments has."""
        if cls.architecture in cls.family().models:
            return super().parts_of(config, *args, **kwargs)
        return cls(config, *args, **kwargs).parts

    @classmethod
    def from_config(cls, config: ViTConfig, **kwargs: Any) -> Self:
        """A new model of a configuration, in `dtype`, or else in the configuration's; see `PretrainedModel`."""
        given = [kwargs.pop(name, None) for name in ("torch_dtype", "dtype")]
        dtype = resolve_dtype(next((each for each in given if each is not None), config.dtype))
        config = config if config.dtype == dtype else config.copy(dtype=dtype)
        return super().from_config(config, **kwargs).to(getattr(torch, dtype))

    _from_config = from_config

    def post_init(self) -> None:
        """Draw what a user's own class has beside the table's parameters, as transformers does; call it last.

        Linear and convolutional layers are drawn as the trunk's are, LayerNorms are ones and zeros.
        """
        known = {name.rpartition(".")[0] for name in self.specs()}
        for name, module in self.named_modules():
            if name not in known:
                self._init_weights(module)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the parameters of one module, by its kind; a user's own class may do it in another way."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d) and std:
            nn.init.trunc_normal_(module.weight, std=std, a=-BOUND, b=BOUND)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            module.reset_parameters()

    def specs(self) -> dict[str, Spec]:
        """The table's entries of this model's parameters, by their names in its state dict."""
        prefixed = self.base_model is not self
        table = {native_name(s, TORCH, prefixed): s for s in specs(self.config, self.parts).values()}
        held = {unwrapped(name) for name, _ in self.named_parameters(remove_duplicate=False)}
        return {name: spec for name, spec in table.items() if name in held}

    @torch.no_grad()
    def init_weights(self, seed: int | None = None, parts: Collection[str] | None = None) -> None:
        """Draw the parameters anew, or those of these parts: from torch's generator, or from `seed`.

        With a seed the values are those of every other framework. Parameters on the meta device are left alone.
        """
        for name, spec in self.specs().items():
            parameter = self.get_parameter(name)
            if (parts is None or spec.part in parts) and not parameter.is_meta:
                parameter.copy_(initial(spec, self.config, seed))

    def parameter_groups(self, layer_decay: float = 1.0, freeze: bool = False) -> list[ParameterGroup]:
        """As `PretrainedModel`; what else is trained, such as a head of another kind, has the head's rate.

        With `freeze` that is what stands outside the trunk.
        """
        known, trunk = self.specs(), f"{self.base_model_prefix}."
        trained = {unwrapped(name): each for name, each in self.named_parameters() if each.requires_grad}
        added = [name for name in trained if name not in known and not (freeze and name.startswith(trunk))]
        groups = super().parameter_groups(layer_decay, freeze)
        for decay in (False, True):
            if names := tuple(name for name in added if (trained[name].dim() > 1) == decay):
                groups.append(ParameterGroup(names, 1.0, decay))
        return groups

    @staticmethod
    def _placed(device: Any) -> Any:
        if device is None:
            return nullcontext()
        return torch_device((accelerator() or "cpu") if device == "auto" else device)

    @classmethod
    def from_tensors(
        cls, config: ViTConfig, tensors: Mapping[str, StoredTensor], seed: int | None, **model_kwargs: Any
    ) -> Self:
        """A model of stored tensors, built on the meta device so that nothing is initialised to be thrown away.

        A user's own class is built as it is, since its `__init__` may compute. The model is on the device that holds
        where it is called, such as `with torch.device("cuda")`. Raises RuntimeError for the meta device, which would
        lose what is stored.
        """
        device = torch.get_default_device()
        if device.type == "meta":
            raise RuntimeError(
                f"Weights are not read onto the meta device, where {cls.__name__}(config) makes an empty model. For "
                'weights leave `with torch.device("meta")`, or torch.set_default_device("meta"), aside.'
            )
        dtype = getattr(torch, config.dtype or "float32")
        if cls.__module__.startswith("vit_torch."):
            with torch.device("meta"):
                model = cls(config, **model_kwargs)
        else:
            model = cls(config, **model_kwargs).to(dtype)
        table = model.specs()
        state = {
            name: to_torch(tensors[spec.name], dtype)
            if spec.name in tensors
            else torch.empty(spec.shape, dtype=dtype).copy_(initial(spec, config, seed))
            for name, spec in table.items()
        }
        model.load_state_dict(state, assign=True, strict=False)
        return model.eval()

    def load_additions(self, tensors: Mapping[str, StoredTensor], report: LoadReport, strict: bool) -> LoadReport:
        """The report, after what a user has added to the model is loaded, by its names.

        Raises ValueError for a tensor of another shape, if `strict`.
        """
        table = self.specs()
        own = {n: v for n, v in self.state_dict().items() if n not in table and isinstance(v, Tensor)}
        report.missing_keys = [name for name in report.missing_keys if name in table]
        for name, value in own.items():
            inner, wanted = name.removeprefix(f"{self.base_model_prefix}."), tuple(value.shape)
            stored = tensors.get(name) or tensors.get(inner)
            if stored is None:
                report.missing_keys.append(name)
                continue
            if stored.shape == wanted:
                value.copy_(to_torch(stored, value.dtype))
            elif strict:
                raise ValueError(f"{report.path} holds {name} of shape {stored.shape}, the model {wanted}.")
            else:
                report.mismatched_keys.append((name, stored.shape, wanted))
            report.unexpected_keys = [key for key in report.unexpected_keys if key != stored.source]
        return report

    def to_tensors(self) -> dict[str, StoredTensor]:
        """Every parameter by canonical name, copied to the host when it is read."""
        return self._weights()[0]

    def _weights(self, **given: Any) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
        own, table = self.state_dict(), self.specs()
        state = {unwrapped(name): value for name, value in given.get("state_dict", own).items()}
        if lost := [name for name in map(unwrapped, own) if name not in state]:
            raise ValueError(f"state_dict lacks {len(lost)} of the model's {len(own)} tensors: {', '.join(lost[:8])}.")
        refuse_wrapped(state)
        stored = {name: stored_tensor(name, value) for name, value in state.items()}
        if type(self).__module__.startswith("vit_torch."):  # a class of one's own may make other modules again
            check_replaced(self, state)
        return {spec.name: stored.pop(name) for name, spec in table.items()}, stored

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device

    @property
    def base_model(self) -> Any:
        """The trunk: the model itself where it has no head."""
        return getattr(self, self.base_model_prefix, self)

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """What transformers' Trainer counts of a step: six a parameter and token (Kaplan et al. 2020, section 2.1)."""
        pixels = input_dict[self.main_input_name]
        tokens = calls.num_patches(pixels.shape[2:], self.config) + self.config.num_prefix_tokens
        return 6 * len(pixels) * tokens * self.num_parameters(exclude_embeddings=exclude_embeddings)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, or of those that require a gradient; a ViT has no table of embeddings to exclude."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters and buffers."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def can_generate(self) -> bool:
        """False: it is no language model."""
        return False

    def get_output_embeddings(self) -> None:
        """None: it is no language model."""

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the patch embeddings' output, as adapters in a frozen trunk need it to be recomputed."""
        self.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings."""
        return self.base_model.embeddings.patch_embeddings

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute each layer in the backward pass; the keywords go to `torch.utils.checkpoint.checkpoint`.

        Raises ValueError for `every_n_layers` but 1, and for `offload`: every layer is recomputed, from the device.
        """
        if every_n_layers != 1 or offload:
            raise ValueError(
                f"Every layer is recomputed, from what stays on the device: leave out {every_n_layers=} and {offload=}."
            )
        for encoder in self._encoders():
            encoder.checkpointing = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The name of `gradient_checkpointing_enable` since transformers 5."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Keep every layer's activations again."""
        for encoder in self._encoders():
            encoder.checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return any(encoder.checkpointing is not None for encoder in self._encoders())

    activation_checkpointing_disable = gradient_checkpointing_disable

    def _encoders(self) -> list[Any]:
        return [module for module in self.modules() if hasattr(module, "checkpointing")]


def initial(spec: Spec, config: ViTConfig, seed: int | None) -> Tensor:
    """The initial float32 tensor of a parameter: the core's for this seed, or drawn with torch's generator."""
    if seed is not None or spec.row.fixed:
        return torch.from_numpy(draw(spec, config, seed or 0))
    if (value := constant(spec, config)) is not None:
        return torch.full(spec.shape, value)
    if spec.init == "xavier":
        return nn.init.uniform_(torch.empty(spec.shape), -uniform_bound(spec), uniform_bound(spec))
    bound, std = DRAWN[spec.init], config.initializer_range
    if bound == float("inf"):
        return nn.init.normal_(torch.empty(spec.shape), std=std)
    return nn.init.trunc_normal_(torch.empty(spec.shape), std=std, a=-bound, b=bound)


def shapes(*inputs: Tensor | None, **others: Tensor | None) -> dict[str, tuple[int, ...] | None]:
    """The shapes of a call's inputs, in the order of `calls.TENSORS`, by name. Raises TypeError for no tensor."""
    named = {**dict(zip(calls.TENSORS[: len(inputs)], inputs, strict=True)), **others}
    for name, value in named.items():
        calls.check_kind(name, value, Tensor, "pt")
    return {name: None if value is None else tuple(value.shape) for name, value in named.items()}


def watched(*modules: nn.Module) -> bool:
    """Whether something may see what one of these modules is given: a hook, on it or on all that there are, or itself.

    What PyTorch itself does, to shard a module or to count its operations for example, does not count.
    """
    hooks = hooks_of(*modules)
    return any(not str(hook.__module__).startswith("torch.") for hook in hooks) or not all(map(_by_token, modules))


def _by_token(module: nn.Module) -> bool:
    """Whether a module computes each token by itself, as far as that is known, or is this package's."""
    kind = type(module)
    if "forward" in module.__dict__:
        return False
    if kind in _BY_TOKEN or kind.__module__.startswith("vit_torch."):
        return True
    made_of = any(base in _BY_TOKEN or base.__module__.startswith("vit_torch.") for base in kind.__mro__)
    return made_of and kind.__module__.startswith("torch.")  # of which it makes another, as FSDP does


def _accept_new_names(module: Any, state: dict[str, Any], prefix: str) -> None:
    """Rename, in the copy that is being loaded, what transformers >= 5.9 calls the modules in memory."""
    prefix_of_trunk = f"{module.base_model_prefix}."
    pieces: dict[str, dict[int, Tensor]] = {}
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        known = parse_name(name, module.family(), TORCH_V5)
        if known and not name.endswith(known.file):
            trunk = prefix_of_trunk if name.startswith(prefix_of_trunk) else ""
            pieces.setdefault(prefix + trunk + known.file, {})[known.piece[0]] = state.pop(key)
    for name, found in pieces.items():
        state[name] = torch.cat([found[i] for i in sorted(found)]) if len(found) > 1 else next(iter(found.values()))

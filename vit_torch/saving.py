"""What of a PyTorch model is saved, tensor by tensor; what a checkpoint can't hold is refused or warned of, by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from vit_core.files.tensor import Tensor as StoredTensor
from vit_core.formats.heads import renamed_head
from vit_core.params import TORCH, Spec, native_name, specs
from vit_torch.activations import ACTIVATIONS, ViTActivation

_OF_HEAD = {nn.Linear, nn.Dropout, nn.Identity, nn.Sequential}  # in the classifier's place: what comes back as linear
_KINDS = {"linear": nn.Linear, "conv": nn.Conv2d, "norm": nn.LayerNorm}


def unwrapped(name: str) -> str:
    """The name of a parameter without those of modules of PyTorch that a layer may be wrapped in."""
    for wrapper in ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."):
        name = name.replace(wrapper, "")
    return name


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A torch tensor as an array on the host, bfloat16 included."""
    host = tensor.detach().cpu().contiguous()
    return host.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if host.dtype == torch.bfloat16 else host.numpy()


def stored_tensor(name: str, tensor: Any) -> StoredTensor:
    """A tensor of a state dict, to be saved. Raises ValueError, with its name, for what is no plain tensor."""
    of_torch = isinstance(tensor, Tensor) and type(tensor).__module__.partition(".")[0] == "torch"
    if of_torch and tensor.is_meta:
        raise ValueError(
            f"{name} is on the meta device, without values: what accelerate keeps on the disk or the CPU, for example, "
            "is saved with save_pretrained(folder, state_dict=accelerate.utils.get_state_dict_offloaded_model(model))."
        )
    if hasattr(tensor, "full_tensor"):  # a DTensor
        raise ValueError(
            f"{name} is divided over the processes, as FSDP2 and tensor parallelism do: gather the parameters in all "
            "of them, state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, "
            "cpu_offload=True)) of torch.distributed.checkpoint.state_dict, and save them in the first, "
            "save_pretrained(folder, state_dict=state)."
        )
    if not of_torch or tensor.is_quantized:
        raise ValueError(
            f"{name} is {type(tensor).__name__}, of a quantised layer or another kind of module, which checkpoints do "
            "not hold: save the model before it is quantised, and quantise it again when it is loaded; or put layers "
            "of floats in their places, whose weights are tensor.dequantize()."
        )
    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return StoredTensor(tuple(tensor.shape), dtype, partial(to_numpy, tensor), name)


def refuse_wrapped(names: Iterable[str]) -> None:
    """Raise ValueError for the names that adapters give the weights of the layers they wrap."""
    wrapped = [name for name in names if ".base_layer." in name or ".lora_" in name or ".modules_to_save." in name]
    if wrapped:
        raise ValueError(
            f"The model's layers are wrapped by an adapter ({', '.join(wrapped[:3])}...): save that with its own "
            "save_pretrained(), or merge it first: model = peft_model.merge_and_unload()."
        )


def check_replaced(model: Any, state: Mapping[str, Any]) -> None:
    """Raise ValueError for parameters of the configuration that a model lacks; warn of modules of other kinds."""
    prefixed = model.base_model is not model
    parts = model.parts if getattr(model.base_model, "pooler", None) else model.parts - {"pooler"}  # which may be None
    table = {native_name(s, TORCH, prefixed): s for s in specs(model.config, parts).values()}
    read_again: Mapping[str, Any] = renamed_head(dict(state), "classifier", "classifier")
    lost = [name for name in table if name not in read_again]
    if computed := [name for name in lost if _is_computed(name, state)]:
        raise ValueError(
            f"{len(computed)} parameters are computed from others by a parametrization, a norm or a pruning: "
            f"{', '.join(computed[:8])}. Make them weights first, by what is for it in torch.nn.utils: "
            'parametrize.remove_parametrizations(layer, "weight"), prune.remove(layer, "weight"), '
            "remove_weight_norm(layer) or remove_spectral_norm(layer). Then save again."
        )
    if lost:
        raise ValueError(
            f"The model lacks {len(lost)} parameters of its configuration, which would come back drawn anew: "
            f"{', '.join(lost[:8])}. Where you put another module in their place, make it in the __init__ of a "
            "class of your own; where you left it out, change model.config to what was built (num_labels=0 for no "
            "classifier). Then save again."
        )
    others = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if not _comes_back(model, unwrapped(f"{name}."), module, table)
    ]
    if others:
        warnings.warn(
            f"{len(others)} modules are of another kind than the configuration's: {', '.join(others[:8])}. Files "
            "hold parameters, not what modules compute: a model that is loaded has those of the configuration in "
            "their places. Make yours in the __init__ of a class of your own.",
            stacklevel=4,
        )


def _comes_back(model: Any, path: str, module: nn.Module, table: Mapping[str, Spec]) -> bool:
    """Whether a loaded model has such a module there; True of what a user has added."""
    above, _, last = path.removesuffix(".").rpartition(".")
    if hasattr(module, "_orig_mod"):
        return True  # of torch.compile, whose module comes as well
    if above.partition(".")[0] == "classifier":
        return type(module) in _OF_HEAD
    if last in ("intermediate_act_fn", "activation") and any(name.startswith(f"{above}.") for name in table):
        name = model.config.pooler_act if "pooler." in path else model.config.hidden_act
        return isinstance(module, ViTActivation) and module.function is ACTIVATIONS.get(str(name), name)
    if type(module).__module__.partition(".")[0] not in ("torch", "vit_torch"):
        return not any(name.startswith(path) for name in table)
    spec = table.get(f"{path}weight") if "weight" in dict(module.named_parameters(recurse=False)) else None
    return spec is None or isinstance(module, _KINDS[spec.kind])


def _is_computed(name: str, state: Mapping[str, Any]) -> bool:
    """Whether a module computes the parameter of a name, by `torch.nn.utils`, from others of the state."""
    module, _, leaf = name.rpartition(".")
    origins = (f"{module}.parametrizations.{leaf}.original", f"{name}_orig", f"{name}_g")
    return any(key.startswith(origins) for key in state)

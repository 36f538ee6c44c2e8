"""Keywords that callers of transformers pass to `from_pretrained`: what each means here, or what to do instead.

None of them is ignored that would change the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What they ask for happens anyway: files are mapped and fetched again where they left off; no code is ever run.
_ANYWAY = frozenset({
    "low_cpu_mem_usage", "trust_remote_code", "resume_download", "weights_only", "local_dir_use_symlinks",
    "_fast_init", "_from_auto", "_from_pipeline", "_commit_hash", "use_fast",
})  # fmt: skip
_QUANTISED = "load the model, then quantise it by your library's own function"
_PLACED = "a ViT is loaded whole, on one device: pass device_map with its name"
_INSTEAD = {
    "quantization_config": _QUANTISED,
    "load_in_8bit": _QUANTISED,
    "load_in_4bit": _QUANTISED,
    "max_memory": _PLACED,
    "offload_folder": _PLACED,
    "offload_state_dict": _PLACED,
    "offload_buffers": _PLACED,
    "tp_plan": _PLACED,
    "proxies": "set the environment variable HTTPS_PROXY",
    "mirror": "set the environment variable HF_ENDPOINT",
    "state_dict": "build the model from its configuration, then load_state_dict() it",
    "key_mapping": "the names of every known format are read; rename the tensors of another one in its file",
    "torchscript": "call torch.jit.trace(model, pixel_values, strict=False), which takes the model as it is",
    "gradient_checkpointing": "call model.gradient_checkpointing_enable(), in JAX enable_gradient_checkpointing()",
    "gguf_file": "GGUF holds no ViT that can be read: pass a checkpoint of another format",
    "tf_to_pt": "every format is read without it",
}

OF_CONFIGS = ("gradient_checkpointing", "torchscript")  # those that transformers reads in a configuration too


def unread(name: str, value: Any) -> str:
    """What is said of a configuration that has one of OF_CONFIGS: it is kept, and the model does not follow it."""
    return f"No model follows {name}={value!r} of its configuration: remove it there, and {_INSTEAD[name]}."


def understood(given: Mapping[str, Any], caller: str) -> dict[str, Any]:
    """The keywords that are left, `use_auth_token` by its newer name, `token`.

    Raises TypeError, with what to do instead, for those that ask for what this package does not do.
    """
    left = {name: value for name, value in given.items() if name not in _ANYWAY}
    if (token := left.pop("use_auth_token", None)) is not None and left.get("token") is None:
        left["token"] = token
    for name in left.keys() & _INSTEAD:
        if left.pop(name):
            raise TypeError(f"{caller}() takes no {name}: {_INSTEAD[name]}.")
    return left


def one_device(device_map: Any) -> Any:
    """The device that a `device_map` names for the whole model; "auto" for the one that is there; None for none.

    Raises ValueError for a map that parts the model.
    """
    if isinstance(device_map, Mapping):
        devices = list(dict.fromkeys(device_map.values()))
        if len(devices) != 1:
            raise ValueError(
                f'device_map must name one device for the whole model, as {{"": "cuda"}}, got {device_map!r}.'
            )
        return devices[0]
    return "auto" if device_map in ("auto", "balanced", "balanced_low_0", "sequential") else device_map

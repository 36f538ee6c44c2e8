"""The three backends by name, each imported when it is asked for.

All that the core knows of a framework's tensors stands here, in `call`, `array` and `place`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_core.calls import num_patches
from vit_core.family import ViTMAEConfig
from vit_core.outputs import ClassGradients

# By name, which is also that of the extra: the package, and the framework it is written in.
BACKENDS = {"torch": ("vit_torch", "torch"), "tf": ("vit_tf", "tensorflow"), "flax": ("vit_flax", "flax")}
# What TensorFlow and Keras import wherever it is installed, nearly half of the time of their own import, and what no
# command needs of them. Only a process that is ours alone may do without it: in another, Keras is to know pandas.
UNUSED = ("jax", "matplotlib", "pandas", "sklearn")

# Whether a framework that finds its accelerator itself has found one.
_ACCELERATORS: dict[str, Callable[[], Any]] = {
    "tf": lambda: import_module("tensorflow").config.list_physical_devices("GPU"),
    "flax": lambda: import_module("jax").default_backend() != "cpu",
}


def is_installed(name: str) -> bool:
    """Whether a backend's package and its framework are there."""
    return all(find_spec(module) is not None for module in BACKENDS[name])


def first_installed() -> str:
    """The first backend that is there. Raises ImportError when none is."""
    for name in BACKENDS:
        if is_installed(name):
            return name
    raise ImportError('No backend is installed: pip install "vit-trio[torch]", or with [tf] or [flax]')


def import_backend(name: str) -> Any:
    """The package of a backend. Raises ImportError that says what to install, ValueError for another name."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}.")
    return _import(name)


def import_exporter(name: str) -> Any:
    """The module of a backend that writes files for other runtimes."""
    return _import(name, ".exporting")


def import_engine(name: str) -> Any:
    """The module of a backend that trains. Raises ImportError that says what to install."""
    return _import(name, ".engine")


def import_dalle() -> Any:
    """The module of DALL-E's encoder. Raises ImportError where PyTorch is not installed."""
    return _import("torch", ".dalle")


def _import(name: str, room: str = "") -> Any:
    try:
        return import_module(f"{BACKENDS[name][0]}{room}")
    except ImportError as error:
        raise ImportError(f'The backend {name} is not installed ({error}): pip install "vit-trio[{name}]"') from error


def backend_of(model: Any) -> str:
    """The name of the backend that a model's class, or a base of it, comes from. Raises TypeError for others."""
    packages = {base.__module__.partition(".")[0] for base in type(bare(model)).__mro__}
    return next(name for name, (package, _) in BACKENDS.items() if package in packages)


def bare(model: Any) -> Any:
    """The model of this package that is one, or is in what torch.compile, DataParallel or PEFT makes of one.

    Raises TypeError for others.
    """
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if any(package in packages for package, _ in BACKENDS.values()):
        return model
    for place in ("_orig_mod", "module", "base_model.model"):
        with suppress(AttributeError):
            return bare(attrgetter(place)(model))
    raise TypeError(f"model must be a name, a path or a model of this package, got a {type(model).__name__}.")


def compiles_each_shape(model: Any) -> bool:
    """Whether a model takes long for pixels of a shape that it has not seen: there should be few of them then."""
    return backend_of(model) == "flax"


def call(model: Any, function: Callable[..., Any], pixel_values: NDArray[Any], **options: Any) -> Any:
    """What a function of a model, which may be the model itself, gives for pixels (B, C, H, W).

    In tensors of its framework, which training may go on from; options that are arrays become such as well.
    """
    given = {"pixel_values": pixel_values, **options}
    if backend_of(model) != "torch":
        return function(**given)
    torch, device = import_module("torch"), bare(model).device
    with torch.no_grad():
        return function(
            **{
                name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
                for name, value in given.items()
            }
        )


def array(tensor: Any) -> NDArray[np.float64]:
    """A tensor of any framework in NumPy."""
    own = tensor.cpu().double() if hasattr(tensor, "cpu") and hasattr(tensor, "double") else tensor
    return np.asarray(own).astype(np.float64)


def run(model: Any, pixel_values: NDArray[Any], **options: Any) -> dict[str, Any]:
    """What the model gives for pixels (B, C, H, W), by name: float64 arrays, or tuples of them.

    An MAE, which draws the patches that it keeps, keeps the same ones of all pictures of a size.
    """
    if isinstance(config := bare(model).config, ViTMAEConfig):
        shape = len(pixel_values), num_patches(pixel_values.shape[2:], config)
        options = {"noise": np.random.default_rng(0).random(shape, np.float32), **options}
    output = call(model, model, pixel_values, return_dict=True, **options)
    return {
        name: tuple(map(array, value)) if isinstance(value, tuple) else array(value) for name, value in output.items()
    }


def class_gradients(model: Any, pixel_values: NDArray[Any], label: int) -> ClassGradients:
    """The gradients of the logit of a label for pixels (B, C, H, W), in float64 arrays.

    Raises ValueError for a model without logits, and for a label that it has not.
    """
    function = partial(import_backend(backend_of(model)).class_gradients, model)
    return ClassGradients(*(tuple(map(array, each)) for each in call(model, function, pixel_values, label=label)))


def place(model: Any, device: Any) -> None:
    """Put a torch model on a device: a torch device, its name, or a number, n for "cuda:n" and -1 for the CPU.

    Raises ValueError for a device that is not there, and when the model is another framework's, but for a CPU that is
    all it sees.
    """
    backend = backend_of(model)
    if device in (-1, "cpu") and not (backend == "torch" or _ACCELERATORS[backend]()):
        return
    if backend != "torch":
        raise ValueError(
            f"device={device!r} is for the backend torch; {backend} takes the first accelerator that it sees: choose "
            "that with CUDA_VISIBLE_DEVICES."
        )
    model.to(_torch_devices().torch_device(device))


def replica(model: Any, device: Any) -> Any:
    """A copy of a torch model on a device that `place` takes. Raises ValueError as that does."""
    copied = deepcopy(model)
    place(copied, device)
    return copied


def accelerator(backend: str) -> str | None:
    """The device a backend's models do not find by themselves: CUDA, under torch, where there is any."""
    return _torch_devices().accelerator() if backend == "torch" else None


def _torch_devices() -> Any:
    return import_module("vit_torch.devices")

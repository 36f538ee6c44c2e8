"""What an image processor returns: a batch, as arrays of the framework that is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from vit_core.pictures.images import Array, shown

# return_tensors: the module, its function that takes a NumPy array, and the extra that installs it
_FRAMEWORKS = {
    "np": ("numpy", "asarray", ""),
    "pt": ("torch", "from_numpy", "torch"),
    "tf": ("tensorflow", "constant", "tf"),
    "jax": ("jax.numpy", "asarray", "flax"),
}


class BatchFeature(dict[str, Any]):
    """What a processor returns: a dict whose keys are attributes too."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={shown(value)}' for name, value in self.items())})"

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"There is no {name!r} here, only {sorted(self)}.") from None

    @property
    def data(self) -> dict[str, Any]:
        """Itself: that of transformers is no dict, and has one."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move torch tensors to a device and cast the floating ones to a dtype, in place. Returns self.

        Raises TypeError where there is none.
        """
        tensors = {name: value for name, value in self.items() if hasattr(value, "is_floating_point")}
        if not tensors:
            raise TypeError(f'{", ".join(self)}: none is a tensor of PyTorch, which `.to` needs: return_tensors="pt".')
        for name, value in tensors.items():
            if value.is_floating_point():
                self[name] = value.to(*args, **kwargs)
            else:
                places = [arg for arg in args if not isinstance(arg, type(value.dtype))]
                self[name] = value.to(*places, **{**kwargs, "dtype": value.dtype})
        return self


def converter(return_tensors: Any) -> Callable[[Array | list[Array]], Any]:
    """The function that makes what `return_tensors` names. Raises ValueError, or ImportError that names the extra."""
    kind = choice("return_tensors", return_tensors, (*_FRAMEWORKS, None))
    if kind is None:
        return list
    convert = imported(*_FRAMEWORKS[kind], f'return_tensors="{kind}"')
    return lambda results: convert(_stacked(results))


def imported(module: str, name: str, extra: str, wanted: str) -> Any:
    """What a module has by a name. Raises ImportError that names the extra of what is not there."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        needs = {"vit_tf": "tensorflow", "vit_torch": "torch"}.get(found := module.partition(".")[0], found)
        raise ImportError(f'{wanted} needs {needs}, which is not there: pip install "vit-trio[{extra}]"') from error


def _stacked(results: Array | list[Array]) -> Array:
    """The images as one batch. Raises ValueError if they differ in shape."""
    shapes = sorted({result.shape for result in results})
    if len(shapes) > 1:
        raise ValueError(
            f"Unable to create tensor of images of different shapes {shapes}: "
            "resize them to one size (do_resize=True and a size with height and width), or set return_tensors=None."
        )
    return results if isinstance(results, np.ndarray) else np.stack(results)


def choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> Any:
    value = getattr(value, "value", value)  # an enum's, as transformers has them
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value

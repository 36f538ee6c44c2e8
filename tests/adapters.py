"""Thin adapters: what a test needs of a backend, in NumPy. The tests themselves are written once."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_core.calls import num_patches
from vit_core.family import ViTMAEConfig, has_head


def objective(output: Any, total: Callable[[Any], Any]) -> Any:
    """The loss of an output; where it has none, the total of its states, maps or logits, squared or cubed."""
    if "loss" in output:
        return output.loss
    if "feature_maps" in output:
        return sum(total(each**2) for each in output.feature_maps)
    if "logits" in output:
        return total(output.logits**2)
    states = total(output.last_hidden_state**2)
    return states + total(output.pooler_output**3) if "pooler_output" in output else states


def with_noise(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a call, with noise for an MAE, which else draws it: the same for the same shape."""
    pixels = inputs.get("pixel_values")
    if not isinstance(model.config, ViTMAEConfig) or "noise" in inputs or getattr(pixels, "ndim", 0) != 4:
        return inputs
    size = pixels.shape[1:3] if getattr(model, "channels_axis", 1) == 3 else pixels.shape[2:]
    shape = (len(pixels), num_patches(size, model.config))
    return {**inputs, "noise": np.random.default_rng(0).random(shape, np.float32)}


class TorchBackend:
    """vit_torch: prefix-free class names, gradients by autograd."""

    name = "torch"
    prefix = ""
    keeps_wider_parameters = False

    def __init__(self) -> None:
        self.package: Any = importlib.import_module("vit_torch")
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # models are tiny: a second only waits

    def load(self, cls: str, path: Any, **kwargs: Any) -> Any:
        """A pretrained model, without the warnings about what was initialised anew."""
        return getattr(self.package, cls).from_pretrained(path, output_loading_info=True, **kwargs)[0]

    def build(self, cls: str, config: Any, dtype: str = "float32", **kwargs: Any) -> Any:
        """A new model in evaluation mode."""
        model = getattr(self.package, cls)(config, **kwargs)
        return model.to(getattr(self.torch, dtype)).eval()

    def call(self, model: Any, **inputs: Any) -> Any:
        """The output of a call with NumPy inputs, every tensor in it a NumPy array."""
        with self.torch.no_grad():
            return self._to_numpy(model(**self._to_torch(with_noise(model, inputs), model.device)))

    def step(self, model: Any, **inputs: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """The output of a call, and the gradient of its objective by canonical name."""
        output = model(**self._to_torch(with_noise(model, inputs), model.device))
        objective(output, self.torch.sum).backward()
        found = {s.name: model.get_parameter(n) for n, s in model.specs().items()}
        return self._to_numpy(output), {
            n: np.zeros(p.shape) if p.grad is None else p.grad.cpu().numpy() for n, p in found.items()
        }

    def trunk(self, model: Any) -> tuple[Any, Any]:
        """The trunk of a model, its parts callable, and the sequence of its layers."""
        trunk = getattr(model, model.base_model_prefix, model)
        return trunk, trunk.encoder.layer

    def tensor(self, array: np.ndarray) -> Any:
        """An array as the framework's tensor."""
        return self.torch.from_numpy(array).to(self.torch.get_default_device())

    def traced(self, model: Any, pixels: np.ndarray) -> None:
        """A call whose values can't be seen."""
        self.torch.export.export(model, (self.tensor(pixels),))

    def parameters(self, model: Any) -> dict[str, np.ndarray]:
        """Every parameter by canonical name, in PyTorch's layout."""
        return {name: tensor.read() for name, tensor in model.to_tensors().items()}

    def _to_torch(self, inputs: dict[str, Any], device: Any) -> dict[str, Any]:
        return {k: self.torch.from_numpy(v).to(device) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}

    def _to_numpy(self, value: Any) -> Any:
        if isinstance(value, self.torch.Tensor):
            return (value.float() if value.dtype == self.torch.bfloat16 else value).detach().cpu().numpy()
        if isinstance(value, tuple):
            return tuple(self._to_numpy(item) for item in value)
        if hasattr(value, "to_tuple"):
            return type(value)(**{name: self._to_numpy(item) for name, item in value.items()})
        return value


class TfBackend:
    """vit_tf: Keras models called eagerly, gradients by GradientTape."""

    name = "tf"
    prefix = "TF"
    keeps_wider_parameters = False

    def __init__(self) -> None:
        self.package: Any = importlib.import_module("vit_tf")
        self.tf: Any = importlib.import_module("tensorflow")

    def load(self, cls: str, path: Any, **kwargs: Any) -> Any:
        """A pretrained model, without the warnings about what was initialised anew."""
        return self._eager(getattr(self.package, cls).from_pretrained(path, output_loading_info=True, **kwargs)[0])

    def build(self, cls: str, config: Any, dtype: str = "float32", **kwargs: Any) -> Any:
        """A new model whose variables and computation have this dtype."""
        return self._eager(getattr(self.package, cls)(config, dtype=dtype, **kwargs))

    def _eager(self, model: Any) -> Any:
        """The model, whose graph takes longer to trace than a call of it takes (`test_tf.py` compares the two)."""
        model.run_eagerly = True
        return model

    def call(self, model: Any, **inputs: Any) -> Any:
        """The output of a call with NumPy inputs, every tensor in it a NumPy array."""
        return self._to_numpy(model(**with_noise(model, inputs)))

    def step(self, model: Any, **inputs: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """The output of a call, and the gradient of its objective by canonical name, which the model then holds."""
        variables, specs = model.variables_by_path(), model.specs()
        with self.tf.GradientTape() as tape:
            output = model(**with_noise(model, inputs))
            target = objective(output, self.tf.reduce_sum)
        zero = self.tf.UnconnectedGradients.ZERO
        found = tape.gradient(target, [variables[path].value for path in specs], unconnected_gradients=zero)
        for path, gradient in zip(specs, found, strict=True):
            variables[path].assign(gradient)
        return self._to_numpy(output), self.parameters(model)

    def trunk(self, model: Any) -> tuple[Any, Any]:
        """The trunk of a model, its parts callable, and the sequence of its layers."""
        trunk = getattr(model, model.base_model_prefix, model)
        return trunk, trunk.encoder.layer

    def tensor(self, array: np.ndarray) -> Any:
        """An array as the framework's tensor."""
        return self.tf.convert_to_tensor(array)

    def traced(self, model: Any, pixels: np.ndarray) -> None:
        """A call whose values can't be seen."""
        self.tf.function(model)(self.tensor(pixels))

    def parameters(self, model: Any) -> dict[str, np.ndarray]:
        """Every parameter by canonical name, in PyTorch's layout."""
        return {name: tensor.read() for name, tensor in model.to_tensors().items()}

    def _to_numpy(self, value: Any) -> Any:
        if self.tf.is_tensor(value):
            return (self.tf.cast(value, "float32") if value.dtype == "bfloat16" else value).numpy()
        if isinstance(value, tuple):
            return tuple(self._to_numpy(item) for item in value)
        if hasattr(value, "to_tuple"):
            return type(value)(**{name: self._to_numpy(item) for name, item in value.items()})
        return value


class FlaxBackend:
    """vit_flax: the wrapper classes, gradients by jax.grad of the module."""

    name = "flax"
    prefix = "Flax"
    keeps_wider_parameters = True  # than it computes in

    def __init__(self) -> None:
        self.package: Any = importlib.import_module("vit_flax")
        self.jax: Any = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)

    def load(self, cls: str, path: Any, **kwargs: Any) -> Any:
        """A pretrained model, without the warnings about what was initialised anew."""
        return getattr(self.package, cls).from_pretrained(path, output_loading_info=True, **kwargs)[0]

    def build(self, cls: str, config: Any, dtype: str = "float32", **kwargs: Any) -> Any:
        """A new model whose parameters and computation have this dtype."""
        kwargs.setdefault("seed", int(np.random.default_rng().integers(1 << 30)))
        model = getattr(self.package, cls)(config, dtype=dtype, **kwargs)
        model.params = self.jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
        return model

    def call(self, model: Any, **inputs: Any) -> Any:
        """The output of a call with NumPy inputs, every array in it a NumPy array."""
        return self._to_numpy(model(**with_noise(model, inputs)))

    def step(self, model: Any, **inputs: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """The output of a call, and the gradient of its objective by canonical name, which the model then holds."""

        def target(params: Any) -> Any:
            output = model.module.apply({"params": params}, **with_noise(model, inputs))
            return objective(output, self.jax.numpy.sum), output

        model.params, output = self.jax.jit(self.jax.grad(target, has_aux=True))(model.params)
        return self._to_numpy(output), self.parameters(model)

    def trunk(self, model: Any) -> tuple[Any, Any]:
        """The trunk of a model, its parts callable, and the sequence of its layers."""
        bound = model.module.bind({"params": model.params})
        trunk = getattr(bound, model.base_model_prefix) if has_head(model.parts) else bound
        return trunk, trunk.encoder.layer.layers

    def tensor(self, array: np.ndarray) -> Any:
        """An array as the framework's tensor."""
        return self.jax.numpy.asarray(array)

    def traced(self, model: Any, pixels: np.ndarray) -> None:
        """A call whose values can't be seen."""
        self.jax.jit(lambda x: model(x).logits)(self.tensor(pixels))

    def parameters(self, model: Any) -> dict[str, np.ndarray]:
        """Every parameter by canonical name, in PyTorch's layout."""
        return {name: tensor.read() for name, tensor in model.to_tensors().items()}

    def _to_numpy(self, value: Any) -> Any:
        if isinstance(value, self.jax.Array):
            return np.asarray(value.astype("float32") if value.dtype == "bfloat16" else value)
        if isinstance(value, tuple):
            return tuple(self._to_numpy(item) for item in value)
        if hasattr(value, "to_tuple"):
            return type(value)(**{name: self._to_numpy(item) for name, item in value.items()})
        return value


BACKENDS = {"torch": TorchBackend, "tf": TfBackend, "flax": FlaxBackend}

"""Thin adapters: what a test needs of a backend, in NumPy. The tests themselves are written once."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


class TorchBackend:
    """vit_torch: prefix-free class names, gradients by autograd."""

    name = "torch"
    prefix = ""
    keeps_wider_parameters = False

    def __init__(self) -> None:
        self.package: Any = importlib.import_module("vit_torch")
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(1)  # the models are tiny: a second thread only waits

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
            return self._to_numpy(model(**self._to_torch(inputs)))

    def gradients(self, model: Any, **inputs: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The loss and its gradients by canonical name."""
        loss = model(**self._to_torch(inputs)).loss
        loss.backward()
        return loss.item(), {spec.name: model.get_parameter(n).grad.numpy() for n, spec in model.specs().items()}

    def parameters(self, model: Any) -> dict[str, np.ndarray]:
        """Every parameter by canonical name, in PyTorch's layout."""
        return {name: tensor.read() for name, tensor in model.to_tensors().items()}

    def _to_torch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: self.torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}

    def _to_numpy(self, value: Any) -> Any:
        if isinstance(value, self.torch.Tensor):
            return (value.float() if value.dtype == self.torch.bfloat16 else value).detach().numpy()
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
        return getattr(self.package, cls).from_pretrained(path, output_loading_info=True, **kwargs)[0]

    def build(self, cls: str, config: Any, dtype: str = "float32", **kwargs: Any) -> Any:
        """A new model whose variables and computation have this dtype."""
        return getattr(self.package, cls)(config, dtype=dtype, **kwargs)

    def call(self, model: Any, **inputs: Any) -> Any:
        """The output of a call with NumPy inputs, every tensor in it a NumPy array."""
        return self._to_numpy(model(**inputs))

    def gradients(self, model: Any, **inputs: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The loss and its gradients by canonical name."""
        variables, specs = model.variables_by_path(), model.specs()
        with self.tf.GradientTape() as tape:
            loss = model(**inputs).loss
        found = tape.gradient(loss, [variables[path].value for path in specs])
        holder = type(model)(model.config, dtype=model.dtype_policy, **model.model_kwargs)
        for path, gradient in zip(specs, found, strict=True):
            holder.variables_by_path()[path].assign(gradient)
        return float(loss), self.parameters(holder)

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
        return self._to_numpy(model(**inputs))

    def gradients(self, model: Any, **inputs: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The loss and its gradients by canonical name."""

        def loss(params: Any) -> Any:
            return model.module.apply({"params": params}, **inputs).loss

        value, gradients = self.jax.jit(self.jax.value_and_grad(loss))(model.params)
        holder = type(model)(model.config, _do_init=False)[0]
        holder.params = gradients
        return float(value), self.parameters(holder)

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

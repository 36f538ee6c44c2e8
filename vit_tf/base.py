"""Arrays in, arrays out: building, initialising, loading, saving and calling the Keras models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial, wraps
from typing import Any, Literal, Self, overload

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.family import has_head, has_mask_token
from vit_core.files.tensor import Tensor as StoredTensor
from vit_core.files.tensor import own
from vit_core.formats.reading import read
from vit_core.initialization import constant, draw
from vit_core.outputs import Output, Returns
from vit_core.params import TF, Spec, native_name, specs, to_native
from vit_core.pretrained import PretrainedModel
from vit_tf.attention import choose
from vit_tf.module import Builder, drawn, loading
from vit_tf.serving import Serving
from vit_tf.training import Training, targets_follow

CHANNELS_AXIS = {"channels_first": 1, "channels_last": 3}  # by data_format
ASKED = ("output_attentions", "output_hidden_states", "return_dict")  # what a configuration has an answer to


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """A model's method, run as a tf.function where it is called eagerly: it is traced once for each kind of call.

    Not where the model is to `run_eagerly`, where a distribution strategy runs it, where its variables stand for other
    values (`stateless_call`), or where the states of layers are asked for, whose gradients no tape finds in a function.
    It is traced anew when a layer gets other variables, or the configuration another value, but not when something else
    of a layer is replaced, its activation for example.
    """

    @wraps(call)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, keras.KerasTensor) for each in args):  # of `features`; a call traces itself
            raise TypeError(
                "features takes pixels, and got a KerasTensor, which has no values: in a Functional model take "
                "model.base_model(inputs).last_hidden_state, or its hidden_states, and pool that."
            )
        stored = isinstance(self.get_input_embeddings().projection.bias.value, tf.Variable)
        states = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        if states or not tf.executing_eagerly() or self.run_eagerly or tf.distribute.has_strategy() or not stored:
            return call(self, *args, **kwargs)
        variables = tuple(map(id, self.variables))  # which LoRA and quantisation change
        if self._traced != variables or not self.config.is_still(self._seen):
            self._functions, self._traced = {}, variables
            self.__dict__["_seen"] = dict(vars(self.config))  # themselves, not as Keras wraps them
        if call.__name__ not in self._functions:
            self._functions[call.__name__] = tf.function(partial(call, self), reduce_retracing=True, autograph=False)
        return self._functions[call.__name__](*args, **kwargs)

    return run


class TFViTPreTrainedModel(Builder, Training, Serving, PretrainedModel, keras.Model):
    """Base of the models: Keras models that are built at once, loadable and savable.

    The first argument of a call is the pixels, or a list or dict of inputs. `data_format` is channels_first or
    channels_last; `seed` draws what every framework draws from it; `dtype` is a Keras dtype policy, by default the
    global one. `parts` are the optional parts of the table that the model has, by default those of its class.
    """

    file_format = "tf"
    _read, _choose = staticmethod(read), staticmethod(choose)
    main_input_name = "pixel_values"

    def __init__(
        self,
        config: ViTConfig,
        parts: frozenset[str] | None = None,
        *,
        seed: int | None = None,
        data_format: str = "channels_first",
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        self._check_member(config)
        config.validate()
        choose(config.attn_implementation, output_attentions=False)
        if data_format not in CHANNELS_AXIS:
            raise ValueError(f"data_format must be one of {', '.join(CHANNELS_AXIS)}, got {data_format!r}.")
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        self.config = config
        self.num_labels = config.num_labels
        self.data_format, self.channels_axis = data_format, CHANNELS_AXIS[data_format]
        self.parts = self.parts_of(config) if parts is None else parts
        self._functions: dict[str, Any] = {}  # of `compiled`, by the names of the methods
        self._traced: tuple[int, ...] = ()  # the variables they were traced with
        self.__dict__["_seen"] = {}  # the configuration's values then
        self.build(tuple(self._pixels_spec().shape))  # which TensorFlow's converter to LiteRT asks Keras for
        if seed is not None:
            self.init_weights(seed)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """The signature of a `call` of one's own that hands `**others` on names them: by it, inputs are known."""
        super().__init_subclass__(**kwargs)
        if inspect.isfunction(call := vars(cls).get("call")):
            next_one = inspect.signature(super(cls, cls).call)
            call.__signature__ = _whole(inspect.signature(call), next_one)  # type: ignore[attr-defined]

    def build(self, input_shape: Any = None) -> None:
        """Nothing: a model is built when it is made."""
        if not self.built:
            self.build_parts()

    def build_parts(self) -> None:
        """Make the layers; of a class of one's own as well."""
        raise NotImplementedError(f"{type(self).__name__} must make its layers in a method build_parts().")

    # ---- calling ---------------------------------------------------------------------------------------------

    @overload
    def __call__(
        self: Returns[Output], *inputs: Any, return_dict: Literal[True] | None = None, **options: Any
    ) -> Output: ...

    @overload
    def __call__(self, *inputs: Any, **options: Any) -> Any: ...

    @tf.autograph.experimental.do_not_convert  # which would wrap errors in words of its own
    def __call__(self, pixel_values: Any = None, *others: Any, **inputs: Any) -> Any:
        """The model's output; see `call`. Raises ValueError for what does not fit, TypeError for pixels of integers."""
        inputs = self._named((pixel_values, *others) if others else pixel_values, inputs)
        if targets_follow.get() and "labels" not in inputs:
            inputs.pop("teacher_logits", None)  # without labels there is no loss yet
        self._check(inputs)
        asked: dict[str, Any] = {name: inputs.get(name) for name in (*ASKED, "tokens")}
        options = calls.resolve_options(self.config, **asked)
        return super().__call__(**{**inputs, **{name: getattr(options, name) for name in ASKED}})

    def compute_output_spec(self, pixel_values: Any = None, *others: Any, **inputs: Any) -> Any:
        """For Keras: the output's shapes and dtypes, of the inputs of a call in any of its forms."""
        return super().compute_output_spec(**self._named((pixel_values, *others) if others else pixel_values, inputs))

    def _named(self, first: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Every input by name, arrays as tensors, from the first argument, a tensor, list or dict, and keywords."""
        known = list(inspect.signature(self.call).parameters)
        if isinstance(first, list | tuple):
            if len(first) > len(known):
                raise ValueError(f"Got a list of {len(first)} inputs, but there are only {', '.join(known)}.")
            first = dict(zip(known, first, strict=False))
        given = {**first, **inputs} if isinstance(first, Mapping) else {"pixel_values": first, **inputs}
        unknown = sorted(given.keys() - known)
        if unknown:
            raise TypeError(f"{type(self).__name__} takes no {', '.join(unknown)}: it takes {', '.join(known)}.")
        return {n: _as_tensor(v) if n in calls.TENSORS else v for n, v in given.items() if v is not None}

    def _check(self, inputs: Mapping[str, Any]) -> None:
        """Raises ValueError for inputs that do not fit, before Keras adds words of its own to what it passes on."""
        masked = inputs.get("bool_masked_pos")
        if "pixel_values" in inputs:
            calls.check_kind("pixel_values", inputs["pixel_values"], object, "tf")
        calls.check_inputs(
            self.config,
            {name: shape(inputs.get(name)) for name in (*calls.INPUTS, "noise")},
            interpolate=calls.interpolates(self.config, inputs.get("interpolate_pos_encoding")),
            has_mask_token=has_mask_token(self.config, "mask_token" in self.parts),
            channels_axis=self.channels_axis,
        )
        if not self._trunk().looked and _visible(inputs["pixel_values"]):
            self.look(inputs["pixel_values"].numpy())
        if "decoder" in self.parts and masked is not None:
            calls.check_reconstruction(self.config)
        if "lm_head" in self.parts:
            self._check_visual_tokens(inputs.get("labels"), masked)
        else:
            self._check_targets(inputs.get("labels"), inputs.get("teacher_logits"), inputs["pixel_values"].shape[0])

    def _check_visual_tokens(self, labels: Any, masked: Any) -> None:
        if labels is None:
            return
        count = int(np.count_nonzero(masked.numpy())) if _visible(masked) else masked
        calls.check_visual_tokens(tuple(labels.shape), _integers(labels), count, self.config)
        if _visible(labels):
            calls.check_visual_token_values(labels.numpy(), self.config)

    def _check_targets(self, labels: Any, teacher_logits: Any, batch: int | None) -> None:
        logits, problem = (batch, self.config.num_labels), None
        if labels is not None:
            problem = calls.problem_type(self.config, _integers(labels))
        if teacher_logits is not None:
            calls.check_distillation(problem, tuple(teacher_logits.shape), logits, self.config)
        if problem is not None:
            calls.check_labels(tuple(labels.shape), logits, problem, _integers(labels))
            if _visible(labels):
                calls.check_label_values(labels.numpy(), self.config)

    # ---- parameters ------------------------------------------------------------------------------------------

    def specs(self) -> dict[str, Spec]:
        """The table's entries of this model's parameters, by the paths of its variables below the model's own."""
        prefixed = has_head(self.parts)
        trunk = "" if prefixed else f"{self.base_model_prefix}{TF.separator}"
        table = specs(self.config, self.parts).values()
        return {native_name(s, TF, prefixed).removeprefix(trunk).removesuffix(TF.suffix): s for s in table}

    @classmethod
    def _arguments(cls) -> set[str]:
        taken = cls.family().arguments(cls.architecture, ()).keys()  # of those that a base may know and a member not
        return super()._arguments() - ({"add_pooling_layer", "use_mask_token"} - taken)

    def variables_by_path(self) -> dict[str, keras.Variable]:
        """The model's variables by the keys of `specs`."""
        return {v.path.removeprefix(f"{self.path}/"): v for v in self.weights}

    def __getattr__(self, name: str) -> Any:
        """The trunk by the names that transformers has for it, such as `base_model` and `vit`, without a head too.

        No properties: Keras would save what they return a second time.
        """
        if name in ("base_model", self.base_model_prefix) and "config" in vars(self):
            return self._trunk()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def get_input_embeddings(self) -> keras.layers.Layer:
        """The patch embeddings."""
        return self._trunk().embeddings.patch_embeddings

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, or of those that are trained; a ViT has no table of embeddings to exclude."""
        variables = self.variables_by_path()
        return sum(s.size for n, s in self.specs().items() if variables[n].trainable or not only_trainable)

    def init_weights(self, seed: int | None = None) -> None:
        """Draw every parameter anew: from TensorFlow's generator, or from `seed` what every framework draws from it."""
        variables = self.variables_by_path()
        for name, spec in self.specs().items():
            variables[name].assign(initial(spec, self.config, seed))

    @classmethod
    def from_tensors(
        cls, config: ViTConfig, tensors: Mapping[str, StoredTensor], seed: int | None, **model_kwargs: Any
    ) -> Self:
        """A model of stored tensors; a dtype of float32 leaves the dtype policy to Keras's global one."""
        token = loading.set(cache(tf.zeros))  # one for all variables of a shape
        try:
            model = cls(config, dtype=None if config.dtype in (None, "float32") else config.dtype, **model_kwargs)
        finally:
            loading.reset(token)
        variables = model.variables_by_path()
        for name, spec in model.specs().items():
            if spec.name in tensors:
                stored, variable = tensors[spec.name], variables[name]
                variable.assign(_shared(own(to_native(stored.read(), spec, TF), variable.dtype)))
                stored.release()
            else:
                variables[name].assign(initial(spec, config, seed))
        return model

    def to_tensors(self) -> dict[str, StoredTensor]:
        """Every parameter by canonical name, copied to the host when it is read; LoRA's adapters are merged.

        Raises ValueError that names the variables that are no parameters of a ViT, which checkpoints do not hold.
        """
        variables, found, merged = self.variables_by_path(), {}, {}
        for layer in self._flatten_layers():
            if getattr(layer, "lora_enabled", False):
                merged[layer._kernel.path.removeprefix(f"{self.path}/")] = layer
                for adapter in (layer.lora_kernel_a, layer.lora_kernel_b):
                    del variables[adapter.path.removeprefix(f"{self.path}/")]
        table = self.specs()
        if added := [name for name in variables if name not in table]:
            raise ValueError(
                f"Checkpoints of a ViT can't hold {len(added)} variables of layers that were quantised or added: "
                f"{', '.join(added[:8])}. Save the model before it is quantised, or as a whole by model.save(); the "
                "kernel of a layer of int8 was kernel / kernel_scale."
            )
        for name, spec in table.items():
            variable = variables[name]
            read = partial(_merged, merged[name]) if name in merged else variable.value.numpy
            tensor = StoredTensor(tuple(variable.shape), np.dtype(variable.dtype), read, name)
            found[spec.name] = tensor.transposed(TF.inverse(spec.kind, spec.leaf))
        return found

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each layer in the backward pass; call it before the model is compiled for training."""
        self._recompute(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep every layer's activations again."""
        self._recompute(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return bool(self._trunk().encoder.checkpointing)

    def _recompute(self, value: bool) -> None:
        for layer in self._flatten_layers():
            if hasattr(layer, "checkpointing"):
                layer.checkpointing = value
        self._trunk()._functions, self._functions = {}, {}

    def _trunk(self) -> Any:  # no property: Keras loads weights into what properties return, here the model itself
        return vars(self).get(self.base_model_prefix, self)

    # ---- Keras's own files -----------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """For `model.save`: what `from_config` builds the model from."""
        frozen = [path for path, layer in self._layers_by_path().items() if not layer.trainable]
        own = {"config": self.config.to_dict(), "data_format": self.data_format, "frozen": frozen}
        layers = self._layers_by_path().items()
        quantized = {path: how_quantized(layer) for path, layer in layers if layer.quantization_mode}
        adapted = {
            path: {"rank": layer.lora_rank, "lora_alpha": layer.lora_alpha}
            for path, layer in layers
            if getattr(layer, "lora_enabled", False)
        }
        changed = {"quantized": quantized, "lora": adapted}
        return {**super().get_config(), **own, **{name: of for name, of in changed.items() if of}}

    @classmethod
    def from_config(cls, config: dict[str, Any] | ViTConfig, custom_objects: Any = None, **kwargs: Any) -> Self:
        """A model from `get_config`, its weights not yet loaded; or of a ViTConfig.

        Layers are frozen, quantised and adapted by LoRA as they were.
        """
        if isinstance(config, ViTConfig):
            return super().from_config(config, **kwargs)
        options = dict(config)
        frozen, quantized, adapted = (options.pop(name, {}) for name in ("frozen", "quantized", "lora"))
        model = cls(cls.config_class.from_dict(options.pop("config")), **options)
        for path, layer in model._layers_by_path().items():  # a layer after the one that it is in
            layer.trainable = path not in frozen
            if path in quantized and not layer.quantization_mode:  # which its dtype policy may say already
                layer.quantize(**keras.saving.deserialize_keras_object(quantized[path]))
            if path in adapted:
                layer.enable_lora(**adapted[path])
        return model

    def _layers_by_path(self) -> dict[str, Any]:
        """Every layer with variables by its path below the model's own, those that hold others before these."""
        found = [layer for layer in self._flatten_layers(include_self=False) if layer.weights]
        return {layer.path.removeprefix(f"{self.path}/"): layer for layer in found}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """For Keras: nothing is left to build."""


def _whole(own: inspect.Signature, handed_on: inspect.Signature) -> inspect.Signature:
    """A signature whose `**others`, if it has any, are the parameters of another."""
    parameters = own.parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        return own
    _, *theirs = handed_on.parameters.values()
    others = [p.replace(kind=p.KEYWORD_ONLY) for p in theirs if p.name not in own.parameters]
    first = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return own.replace(parameters=[*first, *others, *(p for p in parameters if p.kind is p.KEYWORD_ONLY)])


def how_quantized(layer: Any) -> dict[str, Any]:
    """The arguments of `quantize` that a layer was quantised with, as Keras's files hold them."""
    kept = {"mode": layer.quantization_mode, "config": layer.quantization_config}
    return keras.saving.serialize_keras_object(kept)


def initial(spec: Spec, config: ViTConfig, seed: int | None) -> Any:
    """The initial array of a parameter, in Keras's layout: the core's for this seed, or drawn by TensorFlow."""
    if seed is None and constant(spec, config) is None and not spec.row.fixed:
        axes = TF.permutation(spec.kind, spec.leaf) or range(len(spec.shape))
        return drawn(spec, config)([spec.shape[i] for i in axes], tf.float32)
    return to_native(draw(spec, config, seed or 0), spec, TF)


def _shared(array: np.ndarray[Any, Any]) -> Any:
    """A tensor in the memory of an array; one of bfloat16 as it is, which NumPy hands to no library."""
    return array if array.dtype.kind == "V" else tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _merged(layer: Any) -> np.ndarray[Any, Any]:
    """The kernel of a layer with LoRA's product added, as the layer itself computes with."""
    return np.asarray(ops.convert_to_numpy(layer.kernel))


def shape(tensor: Any) -> tuple[int | None, ...] | None:
    """The shape of a tensor, None where a dimension is unknown while tracing; None of None."""
    return None if tensor is None else tuple(tensor.shape)


def _integers(labels: Any) -> bool:
    return not keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype))


def _visible(tensor: Any) -> bool:
    """Whether it is a tensor whose values are known, that is not while tracing."""
    return tf.is_tensor(tensor) and not tf.is_symbolic_tensor(tensor)


def _as_tensor(value: Any) -> Any:
    if not keras.backend.is_keras_tensor(value):
        value = tf.convert_to_tensor(value)
        if value.shape.rank is None:
            value = tf.ensure_shape(value, [None] * 4)
    return value

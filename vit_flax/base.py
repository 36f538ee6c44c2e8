"""Arrays in, arrays out: initialising, loading, saving and calling the JAX models through their wrapper classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, Literal, Protocol, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.module import _global_interceptor_stack
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.family import DECODER_LAYER, LAYER, has_head
from vit_core.files.tensor import Tensor, aligned, own
from vit_core.formats.reading import read
from vit_core.initialization import draw
from vit_core.outputs import Output, Returns, of_layers
from vit_core.params import FLAX, Spec, native_name, specs, to_native
from vit_core.pretrained import PretrainedModel
from vit_flax.attention import choose
from vit_flax.layers import wider

CHANNELS_AXIS = {"channels_first": 1, "channels_last": 3}  # by data_format
STATIC = (
    "train", "interpolate_pos_encoding", "output_attentions", "output_hidden_states", "return_dict", "tokens", "method",
    "layers", "pool", "reshape", "normalize",
)  # fmt: skip
Params = dict[str, Any]
Read = Callable[[], Any]  # an array
_LAYERS = {name.split(".")[-3] for name in (LAYER, DECODER_LAYER)}  # what is around modules with a number


class Wraps(Protocol[Output]):
    """A wrapper of a module whose calls return this class."""

    @property
    def module_class(self) -> type[Returns[Output]]:
        """The class of the module."""


class FlaxViTPreTrainedModel(PretrainedModel):
    """Base of the wrapper classes: a Linen module with its parameters, callable, loadable and savable.

    `module` is plain Linen; `params` is its parameter tree, that of Hugging Face's Flax ViT. With `_do_init=False` the
    result is the tuple (model, abstract params) and nothing is computed. `seed` draws what every framework draws from
    it. `dtype` is what is computed in. `scan_layers` compiles one layer for all, their parameters stacked along axis 0.
    """

    file_format = "flax"
    weights_keyword = "params"
    _read, _choose = staticmethod(read), staticmethod(choose)
    main_input_name = "pixel_values"
    _looked = False  # whether the range of pixels has been looked at
    module_class: ClassVar[Any]

    def __new__(cls, *args: Any, _do_init: bool = True, **kwargs: Any) -> Any:
        model = super().__new__(cls)
        if _do_init:
            return model
        model.__init__(*args, _do_init=False, **kwargs)  # type: ignore[misc]
        return model, model.params_shape_tree  # no instance of the class: Python leaves it as it is

    def __init__(
        self,
        config: ViTConfig,
        input_shape: tuple[int, ...] | None = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        *,
        data_format: str = "channels_first",
        scan_layers: bool = False,
        **model_kwargs: Any,
    ) -> None:
        self._check_member(config)
        config.validate()
        choose(config.attn_implementation, output_attentions=False)
        if data_format not in CHANNELS_AXIS:
            raise ValueError(f"data_format must be one of {', '.join(CHANNELS_AXIS)}, got {data_format!r}.")
        self.config = config
        self.num_labels = config.num_labels
        self.parts = self.parts_of(config, **model_kwargs)
        self.seed, self.input_shape = seed, input_shape
        dtype = jnp.dtype(dtype)
        self._use(
            self.module_class(
                config.copy(),
                dtype,
                wider(dtype),
                channels_axis=CHANNELS_AXIS[data_format],
                scan_layers=scan_layers,
                **model_kwargs,
            )
        )
        self._params: Params | None = self.init_weights(seed) if _do_init else None

    def _use(self, module: nn.Module) -> None:
        self.module = module
        self._apply, self._seen = jax.jit(partial(_apply, module), static_argnames=STATIC), dict(vars(self.config))

    def __getstate__(self) -> dict[str, Any]:
        compiled = ("_apply", "_seen")  # which is not pickled
        return {name: value for name, value in vars(self).items() if name not in compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._use(self.module)

    # ---- calling ---------------------------------------------------------------------------------------------

    @overload
    def __call__(
        self: Wraps[Output], *inputs: Any, return_dict: Literal[True] | None = None, **options: Any
    ) -> Output: ...

    @overload
    def __call__(self, *inputs: Any, **options: Any) -> Any: ...

    def __call__(  # type: ignore[misc]
        self,
        pixel_values: Any = None,
        params: Params | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """The module applied to `params`, by default the model's own, compiled once for each kind of call.

        Takes the arguments of the module's `__call__`. Training with dropout needs `dropout_rng`, a key. Raises
        ValueError for what does not fit, TypeError for what is no array of floats.
        """
        config = self.config
        options = calls.resolve_options(config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(config, interpolate_pos_encoding)
        # Before a key is asked for, and before jit, whose errors show the whole module.
        given = shapes(pixel_values, *map(inputs.get, calls.TENSORS[1:]))
        calls.check_pixel_values(given["pixel_values"], config, interpolate, self.module.channels_axis)
        rngs = self.rngs(inputs, dropout_rng, train)
        if inputs.get("labels") is not None:
            self.check_labels(inputs)
        tokens = {"tokens": inputs.pop("tokens")} if "tokens" in inputs else {}  # no array: a program for each number
        output = self._run(
            params,
            {"pixel_values": pixel_values, **inputs},
            rngs,
            **tokens,
            train=train,
            interpolate_pos_encoding=interpolate,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
            return_dict=True,
        )
        return output if options.return_dict else output.to_tuple()

    @of_layers
    def features(
        self,
        pixel_values: Any,
        layers: int | Sequence[int] = -1,
        pool: str | None = None,
        reshape: bool = False,
        normalize: bool = True,
        interpolate_pos_encoding: bool | None = None,
        params: Params | None = None,
    ) -> Array | tuple[Array, ...]:
        """Features of pixels (B, C, H, W) after one layer, an array, or after several, a tuple of them.

        `layers` counts as `hidden_states` does: 0 is the embeddings, -1 the last layer. `pool` takes the CLS token,
        "cls" (B, D), which is the default, the mean of the patches, "mean" (B, D), the default without a CLS token, or
        all "patches" (B, N, D), as maps with `reshape`, (B, D, h, w) or, where the model was built with channels_last,
        (B, h, w, D). `normalize` applies the final LayerNorm to each. Layers that are not asked for are not computed.
        Compiled once for each kind of call. Raises ValueError for what does not fit.
        """
        shapes(pixel_values)
        found: tuple[Array, ...] = self._run(
            params,
            {"pixel_values": pixel_values},
            {},
            method="features",
            layers=calls.depths(self.config, layers),
            pool=calls.pooling(self.config, pool, reshape),
            reshape=bool(reshape),
            normalize=bool(normalize),
            interpolate_pos_encoding=calls.interpolates(self.config, interpolate_pos_encoding),
        )
        return found

    def rngs(self, inputs: dict[str, Any], dropout_rng: Any, train: bool) -> dict[str, Any]:
        """The keys of a call, by the names that its module draws with. Raises ValueError for one that is missing."""
        config = self.config
        drawn = (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.drop_path_rate)
        if train and dropout_rng is None and any(drawn):
            raise ValueError("train=True draws dropout: pass a key for it, such as dropout_rng=jax.random.key(0).")
        return {} if dropout_rng is None else {"dropout": dropout_rng}

    def check_labels(self, inputs: Mapping[str, Any]) -> None:
        """Raise ValueError for labels of a call's inputs that are out of range, where their values are visible."""
        labels = inputs["labels"]
        if not isinstance(labels, jax.core.Tracer):
            calls.check_label_values(np.asarray(labels), self.config)

    def _look(self, pixels: Any) -> None:
        """Warn of pixels that nothing has normalised, at the first call whose values this process has."""
        hidden = isinstance(pixels, jax.core.Tracer) or not getattr(pixels, "is_fully_addressable", True)
        if not (self._looked or hidden or pixels is None) and (values := np.asarray(pixels)).size:
            self._looked = True
            calls.check_range(float(values.min()), float(values.max()))

    def _run(self, params: Params | None, inputs: dict[str, Any], rngs: dict[str, Any], **options: Any) -> Any:
        self._look(inputs["pixel_values"])
        if not self.config.is_still(self._seen):
            self._use(self.module.clone(config=self.config.copy()))
        apply = partial(_apply, self.module) if intercepted() else self._apply  # what is compiled is not intercepted
        return apply(self.params if params is None else params, inputs, rngs, **options)

    # ---- parameters ------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> Any:
        """What the model computes in."""
        return self.module.dtype

    @property
    def params(self) -> Params:
        """The parameter tree. Raises ValueError for a model built with `_do_init=False`."""
        if self._params is None:
            raise ValueError("The model was built with _do_init=False and holds no parameters: pass params=.")
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._check_params(params)
        self._params = params

    def _check_params(self, params: Params) -> None:
        """Raise ValueError that names every leaf that is not of the model's tree, or no array."""
        given, expected = (
            {"/".join(path): _shape_of(leaf) for path, leaf in flatten_dict(tree).items()}
            for tree in (params, self.params_shape_tree)
        )
        if given != expected:
            wrong = [
                f"{n}: {given.get(n, 'missing')}, expected {expected.get(n, 'nothing')}"
                for n in sorted(given.keys() | expected.keys())
                if given.get(n) != expected.get(n)
            ]
            raise ValueError("params must have the tree of the model:\n  " + "\n  ".join(wrong))

    @property
    def params_shape_tree(self) -> Params:
        """The tree with a jax.ShapeDtypeStruct for each array."""
        dtype = self.module.param_dtype
        table = {n: jax.ShapeDtypeStruct(_native_shape(s), dtype) for n, s in self.specs().items()}
        return self._tree(table, lambda leaves: jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), dtype))

    def specs(self) -> dict[str, Spec]:
        """The table's entries of this model's parameters, by their paths in the tree, joined by dots."""
        prefixed = has_head(self.parts)
        return {native_name(s, FLAX, prefixed): s for s in specs(self.config, self.parts).values()}

    @classmethod
    def _arguments(cls) -> set[str]:
        return super()._arguments() | (
            {"add_pooling_layer", "use_mask_token"} & {f.name for f in fields(cls.module_class)}
        )

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, all of them or those that are trained; there is no table of embeddings to exclude."""
        return sum(spec.size for spec in self.specs().values() if not (only_trainable and spec.row.fixed))

    def init_weights(
        self, rng: Any, input_shape: tuple[int, ...] | None = None, params: Params | None = None
    ) -> Params:
        """A parameter tree drawn from a seed or a key; what `params` has already is kept, abstract leaves aside."""
        seed = int(rng) if isinstance(rng, Integral) else int(jax.random.bits(rng))
        leaves = flatten_dict(params or {}).items()
        given = unflatten_dict({path: leaf for path, leaf in leaves if not isinstance(leaf, jax.ShapeDtypeStruct)})
        kept = {name: partial(jnp.asarray, array) for name, array in self._flat(given).items()}
        return self._made({**self._draws(seed), **kept})

    def _draws(self, seed: int) -> dict[str, Read]:
        """What draws each parameter."""

        def drawn(spec: Spec) -> np.ndarray:
            return to_native(draw(spec, self.config, seed), spec, FLAX).astype(self.module.param_dtype)

        return {name: partial(drawn, spec) for name, spec in self.specs().items()}

    def _made(self, reads: Mapping[str, Read]) -> Params:
        """The tree of what is read, one array after the other; what is not, or not of every layer, is abstract."""
        tree = self._tree(
            {name: reads.get(name) for name in self.specs()},
            lambda layers: None if None in layers else partial(_stacked, layers),
        )
        shapes = flatten_dict(self.params_shape_tree)
        return unflatten_dict(
            {path: jax.device_put(read()) if read else shapes[path] for path, read in flatten_dict(tree).items()}
        )

    def _tree(self, flat: Mapping[str, Any], stack: Callable[[list[Any]], Any]) -> Params:
        """The nested tree of arrays by dotted path; with `scan_layers`, those of all layers stacked."""
        paths = {tuple(name.split(".")): leaf for name, leaf in flat.items()}
        if self.module.scan_layers:
            layers: dict[tuple[str, ...], list[Any]] = {}
            for path in list(paths):
                if i := _numbered(path):
                    layers.setdefault((*path[:i], *path[i + 1 :]), []).append(paths.pop(path))
            paths.update({path: stack(leaves) for path, leaves in layers.items()})
        tree: Params = unflatten_dict(paths)
        return tree

    def _flat(self, tree: Params) -> dict[str, Any]:
        """Arrays by dotted path, layers apart; the inverse of `_tree`."""
        flat: dict[str, Any] = {}
        for path, leaf in flatten_dict(tree).items():
            if self.module.scan_layers and (i := _numbered(path)):
                flat.update({".".join((*path[:i], str(n), *path[i:])): leaf[n] for n in range(len(leaf))})
            else:
                flat[".".join(path)] = leaf
        return flat

    @classmethod
    def from_tensors(
        cls,
        config: ViTConfig,
        tensors: Mapping[str, Tensor],
        seed: int | None,
        *,
        _do_init: bool = True,
        **model_kwargs: Any,
    ) -> Any:
        """A model that computes in `config.dtype`; parameters are kept in the wider of that and their stored dtype.

        With `_do_init=False` the tuple (model, params), in which what is missing is abstract.
        """
        dtype = jnp.dtype(config.dtype or "float32")
        built: Any = cls(config, dtype=dtype, _do_init=False, **model_kwargs)  # a tuple, see __new__
        model: Self = built[0]

        def taken(spec: Spec) -> np.ndarray:
            stored = tensors[spec.name]
            array = own(to_native(stored.read(), spec, FLAX), wider(stored.dtype, dtype))
            stored.release()
            return array

        stored = {name: partial(taken, spec) for name, spec in model.specs().items() if spec.name in tensors}
        if not _do_init:
            return model, model._made(stored)
        model._params = model._made({**model._draws(seed or 0), **stored})
        return model

    def to_tensors(self) -> dict[str, Tensor]:
        """Every parameter by canonical name, copied to the host when it is read."""
        return self._weights()[0]

    def _weights(self, **given: Params) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if given:
            self._check_params(given["params"])
        flat, found = self._flat(given["params"] if given else self.params), {}
        for name, spec in self.specs().items():
            array = flat[name]
            tensor = Tensor(array.shape, np.dtype(array.dtype), partial(np.asarray, array), name)
            found[spec.name] = tensor.transposed(FLAX.inverse(spec.kind, spec.leaf))
        return found, {}

    def to_bf16(self, params: Params, mask: Any = None) -> Params:
        """The floating-point parameters cast to bfloat16, only where `mask`, a tree of booleans, is true if given."""
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Params, mask: Any = None) -> Params:
        """The floating-point parameters cast to float16; see `to_bf16`."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Params, mask: Any = None) -> Params:
        """The floating-point parameters cast to float32; see `to_bf16`."""
        return _cast(params, jnp.float32, mask)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass (`nn.remat`)."""
        self._use(self.module.clone(remat=True))

    def disable_gradient_checkpointing(self) -> None:
        """Keep every layer's activations again."""
        self._use(self.module.clone(remat=False))


def shapes(*inputs: Any, **others: Any) -> dict[str, tuple[int, ...] | None]:
    """The shapes of a call's inputs, in the order of `calls.TENSORS`, by name. Raises TypeError for no array."""
    named = {**dict(zip(calls.TENSORS, inputs, strict=False)), **others}
    for name, value in named.items():
        calls.check_kind(name, value, (Array, np.ndarray), "np")
    return {name: None if value is None else value.shape for name, value in named.items()}


def _shape_of(leaf: Any) -> Any:
    """The shape of an array, the name of the type of anything else: a quantised one has a shape, but is none."""
    return leaf.shape if isinstance(leaf, Array | np.ndarray | jax.ShapeDtypeStruct) else type(leaf).__name__


def intercepted() -> bool:
    """Whether `nn.intercept_methods` holds."""
    return bool(_global_interceptor_stack)


def _apply(module: nn.Module, params: Params, inputs: dict[str, Any], rngs: dict[str, Any], **options: Any) -> Any:
    return module.apply({"params": params}, **inputs, **options, rngs=rngs)


def _numbered(path: tuple[str, ...]) -> int:
    """Where, in the path of a parameter of a layer, its number stands or, stacked, is left out; 0 for another's."""
    return next((i for i, name in enumerate(path, 1) if name in _LAYERS), 0)


def _native_shape(spec: Spec) -> tuple[int, ...]:
    axes = FLAX.permutation(spec.kind, spec.leaf)
    return spec.shape if axes is None else tuple(spec.shape[i] for i in axes)


def _stacked(layers: Sequence[Read]) -> np.ndarray:
    """The arrays of all layers along axis 0, of which one is held beside, in the widest of their dtypes."""
    first = np.asarray(layers[0]())
    stack = aligned((len(layers), *first.shape), first.dtype)
    stack[0] = first
    for i, layer in enumerate((np.asarray(each()) for each in layers[1:]), start=1):
        stack = stack.astype(wider(stack.dtype, layer.dtype), copy=False)
        stack[i] = layer
    return stack


def _cast(params: Params, dtype: Any, mask: Any) -> Params:
    def cast(leaf: Any, chosen: bool = True) -> Any:
        return leaf.astype(dtype) if chosen and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    result: Params = jax.tree.map(cast, params) if mask is None else jax.tree.map(cast, params, mask)
    return result

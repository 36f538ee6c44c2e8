"""What a call of a model means, before any framework computes: options, checks and their words, the choice of loss.

Shapes come as tuples in which a dimension that is not known while tracing is None or symbolic; only known ones, plain
ints, are compared here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy.typing as npt

from vit_core.config import ViTConfig, pair

Shape = tuple[Any, ...]
INPUTS = ("pixel_values", "bool_masked_pos", "head_mask", "attention_mask")  # whose shapes a trunk checks
TENSORS = (*INPUTS, "labels", "teacher_logits", "noise")
NORMALIZED = 10.0  # beyond what any normalisation makes of pixels: ImageNet's gives -2.1 to 2.6


@dataclass(frozen=True)
class Options:
    """What a call asks for, the configuration's answer filled in where the call gives none.

    `tokens` is how many of the first tokens the last layer computes after its attention, None for all; `depth` how many
    layers are computed, None for all.
    """

    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    tokens: int | None = None
    depth: int | None = None

    @property
    def of_all_tokens(self) -> Options:
        """The same, with no tokens left out."""
        return replace(self, tokens=None)

    def of_layer(self, i: int, count: int) -> Options:
        """The same for layer `i` of `count`: no layer but the last that is computed leaves tokens out."""
        return self if i == (self.depth or count) - 1 else self.of_all_tokens

    def wanted(self, x: Any) -> Any:
        """Of all tokens, (B, S, D), those that a layer computes after its attention."""
        return x if self.tokens is None else x[:, : self.tokens]

    def first(self, x: Any, tokens: int | None) -> Any:
        """The first `tokens` of what was computed, (B, S, D): a slice of all of it would be an operation in exports."""
        return x if tokens == self.tokens else x[:, :tokens]

    def joined(self, x: Any, probs: Any) -> Any:
        """What a layer returns: `x`, with its attention's probabilities where they are asked for."""
        return (x, probs) if self.output_attentions else x

    def parted(self, returned: Any) -> tuple[Any, Any]:
        """(x, probs) of what a layer returned, probs None where they are not asked for."""
        return returned if self.output_attentions else (returned, None)


DEFAULT = Options()  # of a layer that is called by itself: all tokens, nothing but its result


def resolve_options(
    config: ViTConfig,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
    return_dict: bool | None = None,
    tokens: int | None = None,
    watched: bool = False,
) -> Options:
    """The options of one call that reads the first `tokens` alone.

    The last layer computes all of them where the call asks for a layer's states, where the model is `watched`, and
    where the configuration has no `skip_unread_tokens`. Raises ValueError for a number of tokens below 1.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens must be at least 1, the CLS token, or None for all of them: got {tokens}.")
    attentions = config.output_attentions if output_attentions is None else output_attentions
    hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    return Options(
        attentions,
        hidden_states,
        config.return_dict if return_dict is None else return_dict,
        None if attentions or hidden_states or watched or not config.skip_unread_tokens else tokens,
    )


def interpolates(config: ViTConfig, asked: bool | None) -> bool:
    """Whether position embeddings are resized to the pictures: as a call asks, or as the configuration does."""
    return config.always_interpolates if asked is None else bool(asked)


def has_own_grid(size: Sequence[Any], config: ViTConfig) -> bool:
    """Whether an image of `size`, height x width, is known to have the configuration's grid of patches."""
    return all(map(_known, size)) and grid(size, config) == config.grid


def depths(config: ViTConfig, layers: int | Sequence[int]) -> tuple[int, ...]:
    """After how many layers the hidden states are asked for: 0 is the embeddings, -1 the last layer.

    Raises ValueError for what is no number of a layer.
    """
    count = config.num_hidden_layers
    given = (layers,) if isinstance(layers, int) else tuple(layers) if isinstance(layers, Iterable) else ()
    if not given or not all(type(i) is int and -count - 1 <= i <= count for i in given):
        raise ValueError(
            f"layers must be a number from 0, the embeddings, to {count}, the last layer, or from -1, the last layer, "
            f"to {-count - 1}, or several: got {layers!r}."
        )
    return tuple(i % (count + 1) for i in given)


def pooling(config: ViTConfig, pool: str | None, reshape: bool = False) -> str:
    """How features are made of tokens: as asked, or of the CLS token where there is one, else of the mean.

    Raises ValueError for another way, for a token that the model has not, and to `reshape` what is no patches.
    """
    pool = pool or ("cls" if config.tokens else "mean")
    if pool not in ("cls", "mean", "patches") or (pool == "cls" and not config.tokens):
        ways = ("cls",) * bool(config.tokens) + ("mean", "patches")
        raise ValueError(f"pool must be one of {', '.join(ways)} for a {type(config).__name__}, got {pool!r}.")
    if reshape and pool != "patches":
        raise ValueError(f"reshape=True makes maps of pool='patches', got pool={pool!r}.")
    return pool


def features_options(config: ViTConfig, depths: Sequence[int], pool: str, watched: bool = False) -> Options:
    """The options of an encoder's call that computes what features need; all tokens where `resolve_options` asks so."""
    few = len(set(depths)) == 1 and pool == "cls" and config.skip_unread_tokens and not watched
    return Options(output_hidden_states=True, tokens=1 if few else None, depth=max(depths))


def backbone_options(config: ViTConfig, options: Options) -> Options:
    """The options of an encoder's call that computes a backbone's maps, and what else a call asks for."""
    if getattr(config, "add_fpn", False):
        raise ValueError("add_fpn=True asks for maps of four sizes, which this backbone has not: pass add_fpn=False.")
    whole = options.output_hidden_states or options.output_attentions
    return replace(options, output_hidden_states=True, depth=None if whole else max(config.stages))


def grid(size: Sequence[Any], config: ViTConfig) -> tuple[Any, Any]:
    """Patches along (height, width) of an image of `size`, (height, width) in pixels."""
    ph, pw = pair(config.patch_size)
    return size[0] // ph, size[1] // pw


def unseen(config: ViTConfig) -> str | None:
    """That a model leaves out the edge of its pictures, where they are no whole number of patches; else None."""
    size, patch = pair(config.image_size), pair(config.patch_size)
    seen = tuple(number * edge for number, edge in zip(config.grid, patch, strict=True))
    if seen == size:
        return None
    whole, part, edge = ("{}x{}".format(*each) for each in (size, seen, patch))
    return f"Of pictures of {whole} pixels only {part} are seen, the whole patches of {edge} from the top left."


def num_patches(size: Sequence[Any], config: ViTConfig) -> Any:
    """N, the number of patches of an image of `size`; None where that is not known."""
    if None in size:
        return None
    rows, columns = grid(size, config)
    return rows * columns


def wrong_size(height: Any, width: Any, config: ViTConfig) -> str:
    """The words for pixels whose size is not the model's."""
    expected = pair(config.image_size)
    return f"Input image size ({height}*{width}) doesn't match model ({expected[0]}*{expected[1]})."


def _known(dimension: Any) -> bool:
    return type(dimension) is int


def check_kind(name: str, value: Any, tensors: type | tuple[type, ...], return_tensors: str) -> None:
    """Raises TypeError unless an input, where there is one, is of the framework's `tensors`, and pixels are floats.

    `return_tensors` is what an image processor calls them.
    """
    if isinstance(value, tensors):
        dtype = getattr(value, "dtype", None)
        got = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
        fits = name != "pixel_values" or "float" in got
    else:
        got = f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
        fits = value is None
    if fits:
        return
    if name != "pixel_values":
        raise TypeError(f"{name} must be a tensor of the model's framework: got {got}.")
    raise TypeError(
        "pixel_values must be the floating-point tensor that an image processor makes of pictures, "
        f"processor(pictures, return_tensors={return_tensors!r}).pixel_values: got {got}."
    )


def check_range(lowest: float, highest: float) -> None:
    """Warn of pixels that nothing has normalised, such as those from 0 to 255."""
    if max(-lowest, highest) > NORMALIZED:
        warnings.warn(
            f"pixel_values are from {lowest:g} to {highest:g}, which no normalisation gives: prepare pictures with the "
            "model's image processor, processor(pictures), or tensors of 0 to 255 with processor.as_keras_layer() or "
            "processor.as_torch_module().",
            stacklevel=2,
        )


def check_pixel_values(shape: Shape | None, config: ViTConfig, interpolate: bool, channels_axis: int = 1) -> None:
    """Raises ValueError unless pixels of this shape, (B, C, H, W) or channels last, fit the model."""
    if shape is None:
        raise ValueError("You have to specify pixel_values")
    layout = "(batch, channels, height, width)" if channels_axis == 1 else "(batch, height, width, channels)"
    if len(shape) != 4:
        raise ValueError(f"pixel_values must have 4 dimensions, {layout}: got shape {tuple(shape)}.")
    channels = shape[channels_axis]
    height, width = shape[2:] if channels_axis == 1 else shape[1:3]
    if _known(channels) and channels != config.num_channels:
        raise ValueError(
            "Make sure that the channel dimension of the pixel values match with the one set in the configuration. "
            f"Expected {config.num_channels} but got {channels}."
        )
    expected, patch = pair(config.image_size), pair(config.patch_size)
    given = (height, width)
    if not interpolate and any(_known(g) and g != e for g, e in zip(given, expected, strict=True)):
        raise ValueError(wrong_size(height, width, config))
    if any(_known(g) and g < p for g, p in zip(given, patch, strict=True)):
        raise ValueError(
            f"Input image size ({height}*{width}) is smaller than one patch ({patch[0]}*{patch[1]}): pass a larger one."
        )


def check_bool_masked_pos(shape: Shape | None, patches: Any, has_mask_token: bool) -> None:
    """Raises ValueError unless a mask of this shape, (B, patches), can be applied. A shape of None is no mask."""
    if shape is None:
        return
    if not has_mask_token:
        raise ValueError(
            "bool_masked_pos was given, but this model has no mask token: those that can are built with "
            "use_mask_token=True, or made for masked image modelling."
        )
    if len(shape) != 2 or (_known(patches) and _known(shape[1]) and shape[1] != patches):
        raise ValueError(f"bool_masked_pos must have shape (batch, {patches}), one per patch: got {tuple(shape)}.")


def check_head_mask(shape: Shape | None, config: ViTConfig) -> None:
    """Raises ValueError unless a head mask has shape (h,) or (L, h). A shape of None is no mask."""
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    if shape is not None and tuple(shape) not in ((heads,), (layers, heads)):
        raise ValueError(
            f"head_mask must have shape ({heads},), one per head, or ({layers}, {heads}), one per layer and head: "
            f"got {tuple(shape)}."
        )


def check_attention_mask(shape: Shape | None, tokens: Any) -> None:
    """Raises ValueError unless an attention mask has shape (B, S) or (B, 1, S, S). A shape of None is no mask."""
    if shape is None:
        return
    last_fit = all(
        not _known(tokens) or not _known(n) or n == tokens for n in (shape[1:2] if len(shape) == 2 else shape[2:])
    )
    if len(shape) not in (2, 4) or not last_fit:
        raise ValueError(
            f"attention_mask must have shape (batch, {tokens}), 1 for tokens to attend to, or (batch, 1, {tokens}, "
            f"{tokens}), added to the scores; the CLS token is the first: got {tuple(shape)}."
        )


def num_kept(patches: int, config: Any) -> int:
    """How many of so many patches MAE's encoder sees (He et al. 2022, section 3). Raises ValueError for none."""
    kept = int(patches * (1 - config.mask_ratio))
    if not kept:
        raise ValueError(none_kept(patches, config))
    return kept


def none_kept(patches: Any, config: Any) -> str:
    """The words for a mask_ratio that keeps none of so many patches."""
    return f"mask_ratio={config.mask_ratio} keeps none of {patches} patches: pass a smaller one, or larger pictures."


def check_noise(shape: Shape | None, batch: Any, patches: Any) -> None:
    """Raises ValueError unless noise has shape (B, N). A shape of None is no noise: it is drawn."""
    if shape is not None and not _same(shape, (batch, patches)):
        raise ValueError(
            f"noise must have shape ({batch}, {patches}), a number for each patch of each picture: got {tuple(shape)}."
        )


def check_patches(shape: Shape, size: Sequence[Any], config: ViTConfig) -> None:
    """Raises ValueError unless patches have shape (B, N, P Q C), for an image of `size`, height x width."""
    patches, values = num_patches(size, config), math.prod(pair(config.patch_size)) * config.num_channels
    if not _same(shape, (None, patches, values)):
        raise ValueError(
            f"The patches of an image of {size[0]}*{size[1]} pixels must have shape (batch, {patches}, {values}): got "
            f"{tuple(shape)}."
        )


def check_inputs(
    config: ViTConfig,
    shapes: Mapping[str, Shape | None],
    *,
    interpolate: bool,
    has_mask_token: bool,
    channels_axis: int = 1,
) -> None:
    """Check the shapes of a call's inputs by name, None for those that are not given. Raises ValueError."""
    pixel_values = shapes["pixel_values"]
    check_pixel_values(pixel_values, config, interpolate, channels_axis)
    assert pixel_values is not None
    patches = num_patches(pixel_values[2:] if channels_axis == 1 else pixel_values[1:3], config)
    check_bool_masked_pos(shapes["bool_masked_pos"], patches, has_mask_token)
    check_noise(shapes.get("noise"), pixel_values[0], patches)
    check_head_mask(shapes["head_mask"], config)
    check_attention_mask(shapes["attention_mask"], None if patches is None else patches + config.num_prefix_tokens)


def check_reconstruction(config: ViTConfig) -> None:
    """Raises ValueError unless the decoder's output has the size of the input, as the masked loss needs."""
    if pair(config.patch_size) != pair(config.encoder_stride):
        raise ValueError(
            "When `bool_masked_pos` is provided, `patch_size` must be equal to `encoder_stride` to ensure that the "
            "reconstructed image has the same dimensions as the input. Got "
            f"`patch_size` = {config.patch_size} and `encoder_stride` = {config.encoder_stride}."
        )


def check_visual_tokens(shape: Shape, integers: bool, masked: Any, config: ViTConfig) -> None:
    """Raises ValueError unless labels of this shape and kind are the visual tokens of so many `masked` patches.

    None is no mask at all.
    """
    if masked is None:
        raise ValueError("labels are the visual tokens of masked patches: pass bool_masked_pos with them.")
    if not integers or not _same(shape, (masked,)):
        what, count = "integers" if integers else "floats", masked if _known(masked) else "one for each"
        raise ValueError(
            f"labels must be integers from 0 to {config.vocab_size - 1} of shape ({count},), the visual tokens of the "
            f"masked patches of all pictures in order: got {what} of shape {tuple(shape)}."
        )


def problem_type(config: ViTConfig, labels_are_integers: bool) -> str:
    """The configuration's problem type, or the one that the number of labels and their dtype imply.

    Raises ValueError for a model without labels.
    """
    if config.num_labels == 0:
        raise ValueError("labels were given, but the model has num_labels=0 and so no loss: leave them out.")
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "single_label_classification" if labels_are_integers else "multi_label_classification"


def score_function(config: ViTConfig) -> str:
    """The function that makes scores of the logits of this kind of problem."""
    if config.problem_type == "regression":
        return "none"
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    return "sigmoid" if several else "softmax"


def check_labels(shape: Shape, logits_shape: Shape, problem: str, integers: bool) -> None:
    """Raises ValueError unless labels of this shape and kind fit logits (B, K) under this problem type."""
    batch, count = logits_shape
    per_image: tuple[Shape, ...] = ((batch,), (batch, 1))
    if problem == "single_label_classification":
        allowed, values = per_image, f"integers from 0 to {count - 1}, or -100 to be ignored,"
    elif problem == "multi_label_classification":
        allowed, values = ((batch, count),), "numbers from 0 to 1"
    else:
        allowed, values = (per_image if count == 1 else ((batch, count),)), "numbers"
    fits = integers or problem != "single_label_classification"
    if not fits or not any(_same(shape, wanted) for wanted in allowed):
        what = "integers" if integers else "floats"
        raise ValueError(
            f"For problem_type {problem!r} labels must be {values} of shape {allowed[0]}: got {what} of shape "
            f"{tuple(shape)}."
        )


def check_distillation(labels: Any, teacher_shape: Shape, logits_shape: Shape, config: ViTConfig) -> None:
    """Raises ValueError unless a teacher's logits of this shape fit those of the model, (B, K), and labels are classes.

    `labels` is the problem type that they imply, None where there are none.
    """
    if labels != "single_label_classification":
        got = f"labels of problem_type {labels!r}" if labels else "no labels"
        raise ValueError(f"teacher_logits are distilled beside labels of classes, (batch,): got {got}.")
    if not _same(teacher_shape, logits_shape):
        raise ValueError(
            f"teacher_logits must have the shape of the model's logits, {tuple(logits_shape)} (num_labels="
            f"{config.num_labels}): got {tuple(teacher_shape)}."
        )


def _same(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        a == b for a, b in zip(shape, wanted, strict=True) if _known(a) and _known(b)
    )


def gives_classes(output: Mapping[str, Any]) -> bool:
    """Whether an output has logits of classes, (B, K), and not of patches, or none."""
    return "logits" in output and len(output["logits"].shape) == 2


def explained(config: ViTConfig, output: Mapping[str, Any], label: int | str) -> int:
    """The number of a label, given as that or by name. Raises ValueError unless an output has the label's logit."""
    if not gives_classes(output):
        given = ", ".join(output)
        raise ValueError(
            f"A classifier's logit has gradients, but this model gives {given}, and no logits of classes: load one."
        )
    try:
        number = index(config.label2id.get(label, -1) if isinstance(label, str) else label)
    except TypeError:  # of what is no whole number
        number = -1
    if not 0 <= number < config.num_labels:
        raise ValueError(
            f"label must be from 0 to {config.num_labels - 1}, or a name of config.label2id, got {label!r}."
        )
    return number


def check_label_values(values: npt.NDArray[Any], config: ViTConfig) -> None:
    """Raises ValueError for class labels out of range; other kinds of labels have no range."""
    integers = values.dtype.kind in "iub"
    if integers and problem_type(config, integers) == "single_label_classification":
        _check_range(values, config.num_labels, "num_labels")


def check_visual_token_values(values: npt.NDArray[Any], config: Any) -> None:
    """Raises ValueError for visual tokens out of range."""
    _check_range(values, config.vocab_size, "vocab_size")


def _check_range(values: npt.NDArray[Any], count: int, field: str) -> None:
    kept = values[values != -100]
    if kept.size and not 0 <= kept.min() <= kept.max() < count:
        raise ValueError(label_out_of_range(int(kept.min()), int(kept.max()), count, field))


def label_out_of_range(lowest: int, highest: int, count: int, field: str = "num_labels") -> str:
    """The words for class labels that the model has no class for; `field` is of the configuration, their `count`."""
    return (
        f"labels must be from 0 to {count - 1} ({field}={count}), or -100 to be ignored: got values from {lowest} "
        f"to {highest}."
    )

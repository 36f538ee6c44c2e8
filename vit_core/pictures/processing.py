"""Image processors: pictures in, `pixel_values` out, with NumPy and Pillow only.

Agree bit for bit with the `ViTImageProcessor`, `DeiTImageProcessor`, `BeitImageProcessor` and `BitImageProcessor` of
transformers 4.57.6, the slow ones and the fast. `vit_core.pictures.images` reads the pictures, `steps` beside it does
the arithmetic. The file format is that of `preprocessor_config.json` in Hugging Face repositories.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from vit_core.files.disk import write_atomically
from vit_core.files.documents import blaming, json_text, read_json_object, refuse_attributes
from vit_core.files.names import PREPROCESSOR_NAME
from vit_core.files.saving import save_document, settled
from vit_core.keywords import understood
from vit_core.pictures.batch import BatchFeature, choice, converter, imported
from vit_core.pictures.images import (
    FIRST,
    LAST,
    NONE,
    Array,
    flatten,
    infer_layout,
    is_scaled,
    load_image,
    load_rgb,
)
from vit_core.pictures.others import stated_by_others
from vit_core.pictures.steps import Steps, size_dict
from vit_core.validation import is_series

__all__ = [
    "AutoImageProcessor",
    "BatchFeature",
    "BeitFeatureExtractor",
    "BeitImageProcessor",
    "BeitImageProcessorFast",
    "BitImageProcessor",
    "BitImageProcessorFast",
    "DeiTFeatureExtractor",
    "DeiTImageProcessor",
    "DeiTImageProcessorFast",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "load_image",
]

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_TYPE_KEYS = ("image_processor_type", "feature_extractor_type")
_KEYS_OF_MODELS = {"model_type", "architecture", "registered_name"}  # in what transformers, timm and Keras say of one


class ViTImageProcessor:
    """Prepares images for a ViT: RGB, resize, centre crop, rescale, normalise, each of them optional.

    size: an int (square), (height, width), or a dict with height and width, or with shortest_edge (keeps the ratio).
    resample: a `PIL.Image.Resampling` or its number.
    image_mean, image_std: one number, or one a channel; 0.5 if None.
    do_convert_rgb: convert pictures that are not RGB, or, if False, refuse them; if None, what a path, bytes or a file
    object hold is converted, and PIL images are refused. Arrays stay as they are.
    backend: whose numbers are made, without it: "pil", those of the slow processors of transformers 4, or
    "torchvision", those of its fast ones and of version 5 on a CPU, which know no box and no hamming.
    Every other keyword is kept as an attribute and saved. Raises ValueError for a value that can't be.
    """

    _square = True  # whether an int is both edges of a size, or else the shortest one
    model_input_names = ("pixel_values",)

    def __init__(
        self,
        /,  # "self" may be a key of a file
        do_resize: bool = True,
        size: Any = None,
        resample: int = Image.Resampling.BILINEAR,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Any = None,
        image_std: Any = None,
        do_convert_rgb: bool | None = None,
        do_center_crop: bool | None = None,
        crop_size: Any = None,
        backend: str = "pil",
        **kwargs: Any,
    ) -> None:
        self.do_resize = do_resize
        self.size = size_dict("size", self._sized(224 if size is None else size))
        self.resample = resample
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = [0.5, 0.5, 0.5] if image_mean is None else image_mean
        self.image_std = [0.5, 0.5, 0.5] if image_std is None else image_std
        self.do_convert_rgb = do_convert_rgb
        self.do_center_crop = do_center_crop
        self.crop_size = None if crop_size is None else size_dict("crop_size", crop_size)
        self.backend = backend
        Steps.checked(vars(self))
        refuse_attributes(type(self), kwargs)
        for name, value in kwargs.items():
            if name not in _TYPE_KEYS:
                setattr(self, name, value)

    @property
    def is_fast(self) -> bool:
        """Whether transformers 4 calls it a fast one: those that prepare with torchvision."""
        return self.backend == "torchvision"

    def as_keras_layer(self, **options: Any) -> Any:
        """A Keras layer that prepares pictures (B, H, W, C), 0 to 255, as this processor does.

        options: those of `vit_tf.pictures.Preprocessing`, such as data_format. Raises ImportError without TensorFlow.
        """
        return imported("vit_tf.pictures", "Preprocessing", "tf", "as_keras_layer")(self, **options)

    def as_torch_module(self, **options: Any) -> Any:
        """A module that prepares pictures (B, C, H, W) in uint8 as this processor does, on their device.

        options: those of `vit_torch.pictures.Preprocessing`. Raises ImportError without PyTorch.
        """
        return imported("vit_torch.pictures", "Preprocessing", "torch", "as_torch_module")(self, **options)

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: Any = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: Any = None,
        image_std: Any = None,
        return_tensors: str | None = None,
        data_format: str | None = FIRST,
        input_data_format: str | None = None,
        do_convert_rgb: bool | None = None,
        do_center_crop: bool | None = None,
        crop_size: Any = None,
        device: Any = None,
        num_workers: int | None = None,
        segmentation_maps: None = None,
    ) -> BatchFeature:
        """Images as `pixel_values`: (B, C, H, W) float32, or a list of B arrays (C, H, W) if return_tensors is None.

        images: a PIL image, path, bytes, file object, array or tensor of any framework, a batch, or lists of these.
        Whole numbers count as 0..255, other floats as 0..1. What is None below is as the processor was made.

        return_tensors: "np", "pt", "tf" or "jax". device: where torch tensors go.
        data_format: "channels_first", "channels_last", or None for the input's own.
        input_data_format: the same for arrays, or "none" for (H, W); None infers it from the first image; with the
        backend "torchvision" from each.
        num_workers: threads for a batch, one a core if None; the result does not depend on it.
        segmentation_maps: none are taken, as no model here has a head for them.

        Without resizing, an array that is not uint8 keeps its dtype where neither rescaling nor normalising changes it.
        Raises ValueError for bad images (with the index in a batch), values and arguments, FileNotFoundError for a
        path, ImportError for a missing framework, TypeError for segmentation maps.
        """
        if segmentation_maps is not None:
            raise TypeError("segmentation_maps are prepared by none here, as no model segments: pass pictures alone.")
        given = {
            "do_resize": do_resize, "size": self._sized(size), "resample": resample,
            "do_center_crop": do_center_crop, "crop_size": crop_size,
            "do_rescale": do_rescale, "rescale_factor": rescale_factor,
            "do_normalize": do_normalize, "image_mean": image_mean, "image_std": image_std,
            "do_convert_rgb": do_convert_rgb, "backend": None,
        }  # fmt: skip
        steps = Steps.checked({name: getattr(self, name) if it is None else it for name, it in given.items()})
        data_format = choice("data_format", data_format, (FIRST, LAST, None))
        layout = choice("input_data_format", input_data_format, (FIRST, LAST, NONE, None))
        convert = converter(return_tensors)

        flat = flatten(images, 2 if layout == NONE else 3, steps.convert_rgb)
        if not flat:
            raise ValueError("There are no images: pass at least one.")
        first = flat[0]
        if layout is None and not steps.fused:
            layout = infer_layout(first.shape) if isinstance(first, np.ndarray) else LAST
        if steps.scale is not None and isinstance(first, np.ndarray) and is_scaled(first):
            warnings.warn(
                "The image is rescaled although its values lie in [0, 1], as if it had been rescaled before: "
                "set do_rescale=False if so.",
                UserWarning,
                stacklevel=2,
            )
        batch = BatchFeature(pixel_values=convert(_run(steps, flat, layout, data_format, num_workers)))
        return batch if device is None else batch.to(device)

    __call__ = preprocess

    def _sized(self, size: Any) -> Any:
        return size if self._square or not isinstance(size, int) else {"shortest_edge": size}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        use_fast: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """The processor of a folder, a JSON file or a hub repository, with arguments of `__init__` set anew.

        Where there is no preprocessor_config.json, that of timm's config.json or keras-hub's preset.
        The backend is torchvision where the file names a fast processor, as transformers 4 writes them; use_fast, as
        there, says which. Raises FileNotFoundError, ValueError for a file that is no processor's, TypeError for an
        override that is no argument.
        """
        if use_fast is not None:
            overrides = {"backend": "torchvision" if use_fast else "pil", **overrides}
        overrides = understood({**overrides, "token": token}, "from_pretrained")
        token = overrides.pop("token")

        def stored() -> Any:  # Self, which a nested function has no name for
            if Path(pretrained_model_name_or_path).is_file():
                return cls.from_json_file(pretrained_model_name_or_path)
            from vit_core.files import hub

            fetch = partial(
                hub.cached_file,
                pretrained_model_name_or_path,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                revision=revision,
                subfolder=subfolder,
            )
            try:
                return cls.from_json_file(fetch(PREPROCESSOR_NAME))
            except hub.NotCachedError:
                raise
            except FileNotFoundError:
                if (document := stated_by_others(fetch)) is None:
                    raise
                return cls.from_dict(document)

        processor: Self = settled(Path(pretrained_model_name_or_path) / subfolder, stored)
        return cls.from_dict(processor.to_dict(), **overrides) if overrides else processor

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """The processor in a `preprocessor_config.json`, old or new. Raises OSError, or ValueError naming the file."""
        values = read_json_object(Path(json_file))
        if not any(values.get(key) for key in _TYPE_KEYS) and not _KEYS_OF_MODELS.isdisjoint(values):
            raise ValueError(f"{json_file} is a model's configuration, no processor's: pass its folder.")
        with blaming(json_file):
            return cls.from_dict(values)

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """The processor with these arguments, as `to_dict` or a file gives them, `overrides` on top.

        Warns if they are another kind's. Raises TypeError for an override that is no argument.
        """
        kind = _kind_of(image_processor_dict)
        made = cls._class_for(kind)
        if not kind.startswith(("ViT", "DeiT", "Beit", "Bit")):
            warnings.warn(
                f"A {kind} may prepare images in another way than {made.__name__} does: check that its "
                "steps are these.",
                UserWarning,
                stacklevel=2,
            )
        backend = "torchvision" if kind.endswith("Fast") else "pil"
        values = {"backend": backend, **copy.deepcopy(dict(image_processor_dict))}
        processor = made(**values)
        if unknown := sorted(overrides.keys() - vars(processor).keys()):
            raise TypeError(f"{unknown} are no arguments of {cls.__name__}, which are {sorted(vars(processor))}.")
        return made(**{**values, **overrides}) if overrides else processor

    @classmethod
    def _class_for(cls, kind: str) -> type[Self]:
        """The class of what a file holds: this one."""
        return cls

    def to_dict(self) -> dict[str, Any]:
        """Every attribute, and the class that transformers is to read them with.

        Its ViT processor never crops, and Bit's alone keeps the ratio.
        """
        keeps = "shortest_edge" in (self.size or {}) or isinstance(self, BitImageProcessor)
        crops = self.do_center_crop or isinstance(self, DeiTImageProcessor)
        kind = "DeiTImageProcessor" if crops else "ViTImageProcessor"
        kind = "BeitImageProcessor" if isinstance(self, BeitImageProcessor) else kind
        kind = ("BitImageProcessor" if keeps else kind) + "Fast" * self.is_fast
        values = {name: value for name, value in vars(self).items() if name != "backend"}
        return {**copy.deepcopy(values), "image_processor_type": kind}

    def to_json_string(self) -> str:
        """`to_dict` as JSON, keys sorted, with a newline at the end."""
        return json_text(self.to_dict(), "This processor", _plain)

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write `to_json_string`, wholly or not at all."""
        write_atomically(Path(json_file_path), self.to_json_string().encode())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        repo_id: str | None = None,
        safe_serialization: bool | None = None,
        **hub_options: Any,
    ) -> list[str]:
        """Write preprocessor_config.json into a folder, made if need be. Returns the paths written.

        With `push_to_hub=True` it is then uploaded, with the options of `push_to_hub`. Raises TypeError for others, and
        for any without an upload; `safe_serialization` is accepted from transformers' pipelines.
        """
        from vit_core.files import hub

        options = hub.upload_options(hub_options, "save_pretrained", push_to_hub)
        path = Path(save_directory) / PREPROCESSOR_NAME
        save_document(path, self.to_json_string().encode())
        if push_to_hub:
            hub.upload(path.parent, repo_id or path.parent.resolve().name, names=[path.name], **options)
        return [str(path)]

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Upload the processor to a hub repository, made when it is not there; returns the address of the commit."""
        from vit_core.files import hub

        return hub.push(self.save_pretrained, repo_id, **hub_options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ViTImageProcessor) and self.to_json_string() == other.to_json_string()

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string().rstrip()}"


class DeiTImageProcessor(ViTImageProcessor):
    """`ViTImageProcessor` with the defaults of DeiT: bicubic to 256 pixels, then the 224 in the middle."""

    def __init__(
        self,
        /,
        do_resize: bool = True,
        size: Any = None,
        resample: int = Image.Resampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: Any = None,
        **kwargs: Any,
    ) -> None:
        size, crop_size = 256 if size is None else size, 224 if crop_size is None else crop_size
        super().__init__(do_resize, size, resample, do_center_crop=do_center_crop, crop_size=crop_size, **kwargs)


class BeitImageProcessor(DeiTImageProcessor):
    """The processor of BEiT, which has the defaults of DeiT's. Pictures alone: it takes no segmentation maps."""


class BeitImageProcessorFast(BeitImageProcessor):
    """`BeitImageProcessor` with the defaults that this name has in transformers: bicubic to 224 pixels, no crop."""

    def __init__(
        self,
        /,
        do_resize: bool = True,
        size: Any = None,
        resample: int = Image.Resampling.BICUBIC,
        do_center_crop: bool = False,
        crop_size: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(do_resize, 224 if size is None else size, resample, do_center_crop, crop_size, **kwargs)


class BitImageProcessor(ViTImageProcessor):
    """`ViTImageProcessor` with the defaults of BiT, which DINOv2 has: 224 pixels in the middle, CLIP's statistics.

    An int as size is the shortest edge.
    """

    _square = False

    def __init__(
        self,
        /,
        do_resize: bool = True,
        size: Any = None,
        resample: int = Image.Resampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: Any = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Any = None,
        image_std: Any = None,
        do_convert_rgb: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            do_resize,
            size,
            resample,
            do_rescale,
            rescale_factor,
            do_normalize,
            [*_CLIP_MEAN] if image_mean is None else image_mean,
            [*_CLIP_STD] if image_std is None else image_std,
            do_convert_rgb,
            do_center_crop,
            224 if crop_size is None else crop_size,
            **kwargs,
        )


class AutoImageProcessor(ViTImageProcessor):
    """The class that a file names: `from_pretrained` gives a processor of that class."""

    def __init__(self) -> None:
        raise TypeError("AutoImageProcessor is not made itself: AutoImageProcessor.from_pretrained(folder).")

    @classmethod
    def _class_for(cls, kind: str) -> Any:
        named = {
            "DeiT": DeiTImageProcessor,
            "BeitImageProcessorFast": BeitImageProcessorFast,
            "Beit": BeitImageProcessor,
            "Bit": BitImageProcessor,
        }
        return next((made for name, made in named.items() if kind.startswith(name)), ViTImageProcessor)


ViTImageProcessorFast = ViTFeatureExtractor = ViTImageProcessor
DeiTImageProcessorFast = DeiTFeatureExtractor = DeiTImageProcessor
BeitFeatureExtractor = BeitImageProcessor
BitImageProcessorFast = BitImageProcessor


def _plain(value: Any) -> Any:
    """As JSON has it: arrays, and mappings and sequences of other libraries."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if is_series(value) else value.tolist()


def _kind_of(document: Mapping[str, Any]) -> str:
    """What a `preprocessor_config.json` calls its class: a ViT's where it names none."""
    return str(next((document[key] for key in _TYPE_KEYS if document.get(key)), "ViT"))


def stated_by(document: Mapping[str, Any], *names: str) -> ViTImageProcessor:
    """The processor that the fields of these names in a `preprocessor_config.json` make, all else as its class has it.

    Raises ValueError that names the file.
    """
    given = {name: document[name] for name in names if name in document}
    with blaming(getattr(document, "source", "the preprocessor")):
        made: ViTImageProcessor = AutoImageProcessor._class_for(_kind_of(document))(**given)
    return made


def for_size(document: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """What a `preprocessor_config.json` says, for a model of pictures of height x width pixels.

    Where it crops, the crop has that size, and what is resized before it keeps its proportion to the crop.
    """
    size, stated = {"height": height, "width": width}, stated_by(document, "do_center_crop", "crop_size")
    if not stated.do_center_crop or not stated.crop_size:
        return {**document, "size": size}
    rows, columns = height / stated.crop_size["height"], width / stated.crop_size["width"]
    edges = (stated_by(document, "size").size or {}).items()
    resized = {name: round(edge * (columns if name == "width" else rows)) for name, edge in edges}
    return {**document, "size": resized, "crop_size": size}


def _run(
    steps: Steps, images: list[Any], layout: str | None, data_format: str | None, num_workers: int | None
) -> Array | list[Array]:
    """The images preprocessed, in order: in one buffer (B, ...) where their size allows it, else a list."""
    room = steps.room(len(images), data_format)

    def one(index: int) -> Array:
        image = images[index]
        try:
            image = image if isinstance(image, np.ndarray | Image.Image) else load_rgb(image, steps.convert_rgb)
            own = layout or (infer_layout(image.shape) if isinstance(image, np.ndarray) else LAST)
            return steps.apply(image, own, data_format, None if room is None else room[index])
        except ValueError as error:
            if len(images) == 1:
                raise
            raise ValueError(f"images[{index}] of {len(images)}: {error}") from error

    every, workers = range(len(images)), min(len(images), num_workers or _cores())
    if workers == 1:
        results = list(map(one, every))
    else:  # Pillow and NumPy release the lock where they compute; two threads at one large page would both clear it
        few = -(-len(images) // (4 * workers))
        neighbours = [every[first : first + few] for first in every[::few]]
        with ThreadPoolExecutor(workers) as pool:
            results = [made for share in pool.map(lambda share: list(map(one, share)), neighbours) for made in share]
    return room if room is not None and all(result.base is room for result in results) else results


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

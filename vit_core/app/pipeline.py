"""Image classification in one call, with any backend: pictures in, labels and scores out.

Arguments and results are those of Hugging Face's `pipeline("image-classification")`.
"""

from __future__ import annotations

import binascii
import os
import re
import warnings
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException, IncompleteRead
from io import BytesIO
from itertools import islice
from os.path import exists
from queue import SimpleQueue
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vit_core import calls
from vit_core.app.auto import architecture_for
from vit_core.app.backends import (
    accelerator,
    backend_of,
    first_installed,
    import_backend,
    place,
    replica,
    run,
)
from vit_core.assets import DIGITS
from vit_core.config import ViTConfig, pair
from vit_core.files.hub import DOWNLOAD_OPTIONS
from vit_core.formats.reading import read
from vit_core.keywords import understood
from vit_core.loading import LoadReport
from vit_core.pictures.images import LAST, as_bytes, as_rgb
from vit_core.pictures.processing import AutoImageProcessor, ViTImageProcessor, for_size, load_image

Array = NDArray[Any]
Predictions = list[dict[str, Any]]  # {"label": str, "score": float}, the highest score first
Result = Predictions | OSError | ValueError

TASK = "image-classification"
FUNCTIONS = ("softmax", "sigmoid", "none")
_ENCODED = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
_MODES = {1: "L", 4: "RGBA"}  # Pillow's modes by number of channels, where that is not RGB
_MOST_BYTES, _MOST_SECONDS = 1 << 28, 600  # of a picture from an address
_BASE64 = re.compile(r"[A-Za-z0-9+/\n]+={0,2}\n?")
_UNWRAPPED = str.maketrans("", "", "\n")


class ImageClassificationPipeline:
    """Classifies one image or several: `classifier("cat.png")`.

    top_k, function_to_apply, batch_size and timeout are what calls use that give none of their own. replicas: copies of
    the model on other devices, which take batches beside it.
    """

    task = TASK

    def __init__(
        self,
        model: Any,
        image_processor: ViTImageProcessor,
        *,
        top_k: int | None = 5,
        function_to_apply: str | None = None,
        batch_size: int = 1,
        timeout: float | None = None,
        replicas: Sequence[Any] = (),
    ) -> None:
        self.model, self.replicas = model, tuple(replicas)
        self.backend = backend_of(model)
        if not model.config.num_labels:
            raise ValueError("The model has num_labels=0 and so no classes: pass one that was saved with its labels.")
        self.image_processor = image_processor
        self.defaults: dict[str, Any] = {
            "top_k": top_k,
            "function_to_apply": function_to_apply,
            "batch_size": batch_size,
            "timeout": timeout,
        }
        self._checked({})
        if self.backend == "torch":
            for each in (model, *replicas):
                each.eval()

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The predictions for one image, or a list of them for a list of images or an array (B, C, H, W).

        For a generator, or a dataset with a length and numbered images, an iterator over them.
        An image is a path, an http(s) address, a data URL or base64, bytes, a binary file object, a PIL image, which is
        turned as its EXIF orientation says, or an array or tensor.
        options: top_k, all classes if None; function_to_apply, "softmax", "sigmoid" or "none", which if None follows
        the kind of problem; batch_size, how many images the model sees at once; timeout, seconds that an address may be
        silent, 30 if None. Raises OSError or ValueError for an image that can't be read, ValueError for an option that
        can't be.
        """
        if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):  # as an open file is, too
            return self._raised(inputs, **options)
        if _is_dataset(inputs):
            return self._raised((inputs[i] for i in range(len(inputs))), **options)
        several = isinstance(inputs, list | tuple) or getattr(inputs, "ndim", 0) == 4
        results = list(self._raised(inputs if several else [inputs], **options))
        return results if several else results[0]

    def _raised(self, images: Iterable[Any], **options: Any) -> Iterator[Predictions]:
        """What `stream` gives, errors raised."""
        for result in self.stream(images, **options):
            if isinstance(result, Exception):
                raise result
            yield result

    def stream(self, images: Iterable[Any], **options: Any) -> Iterator[Result]:
        """For each image, in order and as soon as its batch is done, its predictions, or why it can't be read.

        Takes what a call takes, but images one by one from any iterable, and prepares them in threads while the model
        is at work. Of images taken whose results are not given, there are two batches at most for each model: one for
        it to work at, and the next. Closing the iterator ends its threads.
        """
        used = self._checked(options)
        size, timeout = used.pop("batch_size"), used.pop("timeout")
        preparing = {} if timeout is None else {"timeout": timeout}
        rest, models = iter(images), (self.model, *self.replicas)
        free: SimpleQueue[Any] = SimpleQueue()
        for model in models:
            free.put(model)
        waiting: deque[Callable[[], list[Result]]] = deque()
        with _threads(len(models)) as runners, _threads(os.cpu_count() or 1) as decoders:
            while True:
                while len(waiting) < 2 * len(models) and (taken := list(islice(rest, size))):
                    batch = [decoders.submit(self._prepared, image, preparing) for image in taken]
                    task = partial(self._results, batch, free, used)
                    # One model runs in the caller's thread, where contexts such as autocast hold that were set there.
                    waiting.append(task if len(models) == 1 else runners.submit(task).result)
                if not waiting:
                    return
                yield from waiting.popleft()()

    def _results(
        self, batch: list[Future[Array | OSError | ValueError]], free: SimpleQueue[Any], used: dict[str, Any]
    ) -> list[Result]:
        """What a model that is free gives for a batch of images, once they are prepared."""
        prepared = [each.result() for each in batch]
        pixels = [each for each in prepared if not isinstance(each, Exception)]
        model = free.get()
        try:
            logits = iter(run(model, np.stack(pixels))["logits"] if pixels else ())
        finally:
            free.put(model)
        return [each if isinstance(each, Exception) else self.postprocess(next(logits), **used) for each in prepared]

    def preprocess(self, image: Any, timeout: float | None = None) -> Array:
        """One image as pixels (C, H, W) that fit the model. Raises OSError or ValueError."""
        layout = None
        if isinstance(image, _ENCODED) or hasattr(image, "read"):
            mode = _MODES.get(self.model.config.num_channels)
            picture = read_image(image, timeout)
            if mode is None:
                image = as_rgb(picture, convert=True)
            else:
                image = np.atleast_3d(np.asarray(as_bytes(picture, mode)))
                layout = LAST
        pixels = self.image_processor(image, input_data_format=layout, return_tensors="np")["pixel_values"]
        calls.check_pixel_values(pixels.shape, self.model.config, interpolate=False)
        if len(pixels) != 1:
            raise ValueError(f"Expected one image, got {len(pixels)}: pass several as one list, not as lists in it.")
        only: Array = pixels[0]
        return only

    def _prepared(self, image: Any, options: dict[str, Any]) -> Array | OSError | ValueError:
        try:
            return self.preprocess(image, **options)
        except (OSError, ValueError) as error:
            return error
        except (MemoryError, OverflowError) as error:
            name = image if isinstance(image, str | os.PathLike) else "An image"
            return ValueError(f"{name} takes more memory than there is ({error}): shrink it.")

    def postprocess(self, logits: Array, top_k: int | None, function_to_apply: str | None) -> Predictions:
        """The best `top_k` labels of logits (K,), with their scores."""
        if not np.isfinite(logits).all():
            raise ValueError(
                "The model's logits are not finite: its weights are damaged, or too large for its dtype, in which case "
                'dtype="float32" helps.'
            )
        scores = _scores(logits, function_to_apply or default_function(self.model.config))
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": self.model.config.id2label[int(i)], "score": float(scores[i])} for i in best]

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(options.keys() - self.defaults.keys())
        if unknown:
            raise TypeError(f"{unknown} are no options of a call, which are {', '.join(self.defaults)}.")
        used = {**self.defaults, **options}
        if used["timeout"] is not None and not used["timeout"] > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, or None, got {used['timeout']!r}.")
        for name in ("top_k", "batch_size"):
            value = used[name]
            if not (isinstance(value, int) and value >= 1) and (name, value) != ("top_k", None):
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}.")
        if used["function_to_apply"] not in (None, *FUNCTIONS):
            raise ValueError(
                f"function_to_apply must be one of {', '.join(FUNCTIONS)}, or None, got {used['function_to_apply']!r}."
            )
        return used


def pipeline(
    task: str = TASK,
    model: Any = None,
    *,
    backend: str | None = None,
    image_processor: ViTImageProcessor | str | os.PathLike[str] | None = None,
    device: Any = None,
    top_k: int | None = 5,
    function_to_apply: str | None = None,
    batch_size: int = 1,
    timeout: float | None = None,
    **options: Any,
) -> ImageClassificationPipeline:
    """A classifier of images.

    model: a folder, a hub id or a model of any backend; the digits model of the package if None.
    backend: torch, tf or flax; the first of them that is installed if None.
    image_processor: the model's own if None; without a preprocessor_config.json, one for the model's size, and a
    warning.
    device, for torch: a torch device, its name, n for "cuda:n" or -1 for the CPU; if None, a model given by name goes
    to CUDA where there is any. With a list of them the model is copied to each, and a batch goes to one that is free.
    options: those of `from_pretrained`, such as dtype and revision, for a model given by name, also as model_kwargs;
    framework (pt, tf, flax) and feature_extractor are older names of backend and image_processor.

    Raises ImportError that says what to install, OSError for what can't be found or fetched, and ValueError for
    anything else, a checkpoint without a classifier included.
    """
    if task != TASK:
        raise ValueError(f"task must be {TASK!r}, got {task!r}.")
    more = options.pop("model_kwargs", None) or {}
    options = understood({**options, **more}, "pipeline")
    options.pop("num_workers", None)  # threads prepare pictures, as many as there are cores
    if options.get("tokenizer", 0) is None:
        del options["tokenizer"]
    framework, extractor = options.pop("framework", None), options.pop("feature_extractor", None)
    backend = _one("backend", backend, "framework", "torch" if framework == "pt" else framework)
    image_processor = _one("image_processor", image_processor, "feature_extractor", extractor)
    device, *others = device if isinstance(device, list | tuple) and device else [device]
    if model is None or isinstance(model, str | os.PathLike):
        name = DIGITS if model is None else model
        loaded, report = load(name, backend, device, **options)
        if report.missing_keys or report.mismatched_keys:
            raise ValueError(report.warning(type(loaded).__name__))
        processor = find_processor(name, loaded.config, image_processor, **options)
    else:
        wrong = [*options, *(["backend"] if backend not in (None, backend_of(model)) else [])]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} can't be set for a model that is loaded: pass its name instead.")
        if device is not None:
            place(model, device)
        loaded, processor = model, find_processor(None, model.config, image_processor)
    return ImageClassificationPipeline(
        loaded,
        processor,
        top_k=top_k,
        function_to_apply=function_to_apply,
        batch_size=batch_size,
        timeout=timeout,
        replicas=[replica(loaded, each) for each in others],
    )


def _one(name: str, value: Any, older: str, other: Any) -> Any:
    """The value given by a name or by its older one. Raises ValueError where the two say otherwise."""
    if value is not None and other is not None and value != other:
        raise ValueError(f"{older}={other!r} is the older name of {name}, which is {value!r}: pass one of them.")
    return other if value is None else value


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, which are gone at the end, and the work with them that has not begun."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def load(
    name: str | os.PathLike[str],
    backend: str | None = None,
    device: Any = None,
    *,
    use_fast: bool | None = None,
    **options: Any,
) -> tuple[Any, LoadReport]:
    """A classifier by name, of whatever class it is, and what loading it did; arguments of `pipeline`.

    use_fast is accepted from callers of transformers; there is but one image processor.
    """
    backend = backend or first_installed()
    cls = getattr(import_backend(backend), architecture_for(name, "ForImageClassification", **options))
    model, report = cls.from_pretrained(name, output_loading_info=True, **options)
    if device is None and options.get("device_map") is None:
        device = accelerator(backend)
    if device is not None:
        place(model, device)
    return model, report


def find_processor(
    name: str | os.PathLike[str] | None,
    config: ViTConfig,
    given: ViTImageProcessor | str | os.PathLike[str] | None = None,
    **options: Any,
) -> ViTImageProcessor:
    """The processor given, itself or by name, or that of the model, of whatever format it is.

    Where that does not say how its pictures are prepared, the default and a warning.
    """
    if isinstance(given, ViTImageProcessor):
        return given
    options = {key: options[key] for key in DOWNLOAD_OPTIONS if key in options}
    if given is not None:
        return AutoImageProcessor.from_pretrained(given, **options)
    if name is not None:
        if not os.path.isfile(name):
            try:
                return AutoImageProcessor.from_pretrained(name, **options)
            except FileNotFoundError:
                pass
        heads = config.num_attention_heads  # which the files of some families do not state
        if stored := read(name, num_attention_heads=heads, head="drop", config=config, **options).processor:
            return AutoImageProcessor.from_dict(for_size(stored, *pair(config.image_size)))
    return _default_processor("The model" if name is None else str(name), config)


def _default_processor(name: str, config: ViTConfig) -> ViTImageProcessor:
    """The processor of a model that comes with none, and a warning that says what it does."""
    (height, width), half = pair(config.image_size), [0.5] * config.num_channels
    warnings.warn(
        f"{name} has no preprocessor_config.json: images are resized to {height}x{width} and normalised with mean and "
        "std 0.5. Pass image_processor=, or --image-processor, if the model was trained with others.",
        stacklevel=4,
    )
    return ViTImageProcessor(size={"height": height, "width": width}, image_mean=half, image_std=half)


def _is_dataset(inputs: Any) -> bool:
    """Whether something with a length and numbered items is neither one image nor an array nor a list of images."""
    if isinstance(inputs, (*_ENCODED, list, tuple)) or hasattr(inputs, "__array__") or hasattr(inputs, "read"):
        return False
    return hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__") and not isinstance(inputs, Mapping)


def read_image(source: Any, timeout: float | None = None) -> Image.Image:
    """The picture in anything `load_image` takes, upright, at an http(s) address, or in a data URL or base64.

    Raises OSError or ValueError; an address may be silent for `timeout` seconds, 30 if None.
    """
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(load_image(source))
    if not isinstance(source, str):
        return load_image(source)
    if source.startswith("data:image/") or (len(source) >= 64 and _BASE64.fullmatch(source) and not exists(source)):
        try:
            return load_image(b64decode(source.rpartition(",")[2].translate(_UNWRAPPED), validate=True))
        except binascii.Error as error:
            raise ValueError(f"The image {source[:40]!r}... is no base64 ({error}): pass a path or bytes.") from error
    if not source.startswith(("http://", "https://")):
        return load_image(source)
    try:
        with urlopen(Request(source, headers={"User-Agent": "vit-trio"}), timeout=timeout or 30) as response:
            content = b"".join(_chunks(response, source))
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise OSError(
            f"{source} can't be fetched ({getattr(error, 'reason', error)}): check the address and the network."
        ) from error
    file = BytesIO(content)
    file.name = source  # for errors to name
    return load_image(file)


def _chunks(response: Any, source: str) -> Iterator[bytes]:
    """What an address answers, piece by piece. Raises ValueError for more than a picture has, and for too long."""
    size, stated, end = 0, response.length, monotonic() + _MOST_SECONDS
    while (stated is None or size < stated) and (chunk := response.read1(1 << 16)):
        if (size := size + len(chunk)) > _MOST_BYTES:
            raise ValueError(f"{source} answers with more than {_MOST_BYTES} bytes: save it and pass the file.")
        if monotonic() > end:
            raise ValueError(f"{source} takes more than {_MOST_SECONDS} seconds to answer: save it and pass the file.")
        yield chunk
    if stated is not None and size < stated:
        raise IncompleteRead(b"", stated - size)


def default_function(config: ViTConfig) -> str:
    """The function that makes scores of the logits of this kind of problem."""
    if config.problem_type == "regression":
        return "none"
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    return "sigmoid" if several else "softmax"


def _scores(logits: Array, function: str) -> Array:
    if function == "sigmoid":
        return np.exp(-np.logaddexp(0, -logits))
    if function == "none":
        return logits
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())

"""What every pipeline does: pictures are prepared in threads, and go in batches through one model or several."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import groupby, islice
from numbers import Integral, Real
from queue import SimpleQueue
from typing import Any, BinaryIO, ClassVar, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_core import calls
from vit_core.app.backends import backend_of, bare
from vit_core.app.sources import read_image
from vit_core.config import ViTConfig, pair
from vit_core.files import hub
from vit_core.files.documents import blaming
from vit_core.pictures.images import LAST, in_channels, name_of
from vit_core.pictures.processing import ViTImageProcessor
from vit_core.pretrained import weights_patterns

Array = NDArray[Any]
Result = TypeVar("Result")  # of one image
Encoded = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image

_PREPARING = ("timeout", "image_processor_kwargs")  # the options that `preprocess` takes
_ENCODED = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)


class Results(Iterator[Result]):
    """The results of a dataset with a length, which `len` gives, and tqdm shows."""

    def __init__(self, results: Generator[Result], length: int) -> None:
        self.results, self.length = results, length

    def __next__(self) -> Result:
        return next(self.results)

    def close(self) -> None:
        """End the threads, as closing a generator does."""
        self.results.close()

    def __len__(self) -> int:
        return self.length


class ImagePipeline(ABC, Generic[Result]):
    """A model, what prepares its pictures, and the options of calls that give none of their own.

    options: those of the task, with batch_size, num_workers and timeout. replicas: copies of the model on other
    devices, which take batches beside it.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]  # of the model that a name stands for, as `architecture_for` takes it
    options: ClassVar[dict[str, Any]]  # of the task, with their defaults

    def __init__(
        self, model: Any, image_processor: ViTImageProcessor, *, replicas: Sequence[Any] = (), **options: Any
    ) -> None:
        self.model, self.replicas = model, tuple(replicas)
        self.backend = backend_of(model)
        self.image_processor = image_processor
        self.defaults: dict[str, Any] = {**self.options, "batch_size": 1, "num_workers": None, "timeout": None}
        self.defaults = self._checked(options)
        if self.backend == "torch":
            for each in (model, *replicas):
                each.eval()

    @abstractmethod
    def answers(self, model: Any, pixels: Array, **options: Any) -> Sequence[Result]:
        """What a model gives for each of the images of pixels (B, C, H, W), with the options of the task."""

    @abstractmethod
    def check(self, **options: Any) -> None:
        """Raise ValueError for options of the task that can't be."""

    @overload
    def __call__(self, inputs: Encoded, **options: Any) -> Result: ...

    @overload
    def __call__(self, inputs: list[Any] | tuple[Any, ...], **options: Any) -> list[Result]: ...

    @overload
    def __call__(self, inputs: Iterator[Any], **options: Any) -> Iterator[Result]: ...

    @overload
    def __call__(self, inputs: Any, **options: Any) -> Any: ...

    def __call__(self, inputs: Any = None, *, images: Any = None, **options: Any) -> Any:
        """The result for one image, or a list of results for a list of images or an array (B, C, H, W).

        For a generator, or a dataset of numbered images or one to go through, an iterator over them, which has a length
        where the dataset has one.
        An image is a path, an http(s) address, a data URL or base64, bytes, a binary file object, a PIL image, which is
        turned as its EXIF orientation says, or an array or tensor. `images` is an older name of `inputs`.
        options: those of the task; batch_size, how many images the model sees at once; num_workers, how many threads
        prepare images, one a core if None or 0; timeout, seconds that an address may be silent, 30 if None. Raises
        OSError or ValueError for an image that can't be read, ValueError for an option that can't be.
        """
        if (inputs is None) is (images is None):
            raise TypeError("A call takes one image or several, as its first argument, inputs, or as images.")
        inputs = images if inputs is None else inputs
        if _is_dataset(inputs):
            numbered = not hasattr(inputs, "__iter__")
            results = self._raised((inputs[i] for i in range(len(inputs))) if numbered else inputs, **options)
            return Results(results, len(inputs)) if hasattr(inputs, "__len__") else results
        several = isinstance(inputs, list | tuple) or getattr(inputs, "ndim", 0) == 4
        found = list(self._raised(inputs if several else [inputs], **options))
        return found if several else found[0]

    @property
    def config(self) -> ViTConfig:
        """The model's configuration."""
        config: ViTConfig = bare(self.model).config
        return config

    @property
    def framework(self) -> str:
        """The backend by transformers' name, "pt" for PyTorch."""
        return "pt" if self.backend == "torch" else self.backend

    @property
    def device(self) -> Any:
        """Where the model is: a torch.device; None in other frameworks, whose models don't say."""
        return getattr(bare(self.model), "device", None)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write the image processor, and the model with the options of its own `save_pretrained`, into a folder.

        With `push_to_hub=True` each is uploaded as a commit of its own.
        """
        uploading = {"push_to_hub", "repo_id", "use_auth_token", *hub.UPLOAD_OPTIONS}
        own = {name: value for name, value in options.items() if name in uploading}
        self.image_processor.save_pretrained(save_directory, **own)
        (self.model if hasattr(self.model, "save_pretrained") else bare(self.model)).save_pretrained(
            save_directory, **options
        )

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload model and image processor to a hub repository, as one commit; returns its address."""
        return hub.push(self.save_pretrained, repo_id, weights_patterns(), **options)

    def __repr__(self) -> str:
        models = [bare(model) for model in (self.model, *self.replicas)]
        devices = ", ".join(str(model.device) for model in models if hasattr(model, "device"))  # PyTorch's alone say it
        where = f"backend={self.backend!r}, " + f"device={devices!r}, " * bool(devices)
        return (
            f"{type(self).__name__}(task={self.task!r}, model={type(self.model).__name__}, {where}"
            f"batch_size={self.defaults['batch_size']})"
        )

    def _raised(self, images: Iterable[Any], **options: Any) -> Generator[Result]:
        """What `stream` gives, errors raised."""
        for result in self.stream(images, **options):
            if isinstance(result, Exception):
                raise result
            yield result

    def stream(self, images: Iterable[Any], **options: Any) -> Iterator[Result | OSError | ValueError]:
        """For each image, in order and as soon as its batch is done, its result, or why it can't be read.

        Takes what a call takes, but images one by one from any iterable, and prepares them in threads while the model
        is at work. Of images taken whose results are not given, there are two batches at most for each model: one for
        it to work at, and the next. Closing the iterator ends its threads.
        """
        used = self._checked(options)
        size, workers = used.pop("batch_size"), used.pop("num_workers") or os.cpu_count() or 1
        preparing = {name: used.pop(name) for name in _PREPARING if name in used}
        preparing = {name: value for name, value in preparing.items() if value is not None}
        rest, models = iter(images), (self.model, *self.replicas)
        free: SimpleQueue[Any] = SimpleQueue()
        for model in models:
            free.put(model)
        waiting: deque[Callable[[], list[Any]]] = deque()
        with _threads(len(models)) as runners, _threads(workers) as decoders:
            while True:
                while len(waiting) < 2 * len(models) and (taken := list(islice(rest, size))):
                    batch = [decoders.submit(self.prepared, image, **preparing) for image in taken]
                    task = partial(self._results, batch, free, used)
                    # One model runs in the caller's thread, where contexts such as autocast hold that were set there.
                    waiting.append(task if len(models) == 1 else runners.submit(task).result)
                if not waiting:
                    return
                yield from waiting.popleft()()

    def _results(
        self, batch: list[Future[Array | OSError | ValueError]], free: SimpleQueue[Any], used: dict[str, Any]
    ) -> list[Any]:
        """What a model that is free gives for a batch of images, once they are prepared; those of a size at once."""
        prepared = [each.result() for each in batch]
        pixels = [each for each in prepared if not isinstance(each, Exception)]
        model = free.get()
        try:
            found = iter([answer for stack in stacks(pixels) for answer in self.answers(model, stack, **used)])
        finally:
            free.put(model)
        return [each if isinstance(each, Exception) else next(found) for each in prepared]

    def preprocess(
        self, image: Any, timeout: float | None = None, image_processor_kwargs: Mapping[str, Any] | None = None
    ) -> Array:
        """One image as pixels (C, H, W) that fit the model. Raises OSError or ValueError."""
        layout = None
        naming: AbstractContextManager[None] = nullcontext()
        if isinstance(image, _ENCODED) or hasattr(image, "read"):
            naming = blaming(name_of(image))
            image, layout = in_channels(read_image(image, timeout), self.config.num_channels), LAST
        asked = {"input_data_format": layout, **(image_processor_kwargs or {}), "return_tensors": "np"}
        with naming:
            pixels = self.image_processor(image, **asked)["pixel_values"]
            calls.check_pixel_values(pixels.shape, self.config, interpolate=calls.interpolates(self.config, None))
        if len(pixels) != 1:
            raise ValueError(f"Expected one image, got {len(pixels)}: pass several as one list, not as lists in it.")
        only: Array = pixels[0]
        return only

    def prepared(self, image: Any, **options: Any) -> Array | OSError | ValueError:
        """What `preprocess` gives, or why it gives nothing."""
        try:
            return self.preprocess(image, **options)
        except (OSError, ValueError) as error:
            return error
        except (MemoryError, OverflowError) as error:
            return ValueError(f"{name_of(image)} takes more memory than there is ({error}): shrink it.")

    def seen(self, picture: Image.Image, grid: tuple[int, int]) -> Image.Image:
        """The part of a picture that the patches (rows, columns) cover: all but for a centre crop and cut patches."""

        def size_after(**options: Any) -> tuple[int, int]:
            pixels = self.image_processor(picture, do_normalize=False, return_tensors="np", **options)["pixel_values"]
            return pixels.shape[3], pixels.shape[2]

        whole, cropped = size_after(do_center_crop=False), size_after()
        (rows, columns), (ph, pw) = grid, pair(self.config.patch_size)
        box: list[int] = []
        for corner in ((0, 0), (columns * pw, rows * ph)):
            for full, cut, at, edge in zip(whole, cropped, corner, picture.size, strict=True):
                box.append(round(((full - cut) // 2 + at) * edge / full))
        return picture.crop((box[0], box[1], box[2], box[3]))

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a call, those that it does not give filled in. Raises TypeError or ValueError."""
        unknown = sorted(options.keys() - self.defaults.keys())
        if unknown:
            raise TypeError(f"{unknown} are no options of a call, which are {', '.join(self.defaults)}.")
        used = {**self.defaults, **options}
        timeout = used["timeout"]
        if timeout is not None and not (isinstance(timeout, Real) and float(timeout) > 0):
            raise ValueError(f"timeout must be a number of seconds above 0, or None, got {timeout!r}.")
        check_count("batch_size", used["batch_size"])
        if used["num_workers"]:
            check_count("num_workers", used["num_workers"])
        self.check(**{name: used[name] for name in self.options})
        return used


def stacks(pixels: Iterable[Array]) -> Iterator[Array]:
    """Pixels (C, H, W) in order, those of one size that follow each other in one array (B, C, H, W)."""
    return (np.stack([*group]) for _, group in groupby(pixels, np.shape))


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless an option is a whole number from 1."""
    if not (isinstance(value, Integral) and int(value) >= 1):
        raise ValueError(f"{name} must be a whole number from 1, got {value!r}.")


def check_finite(name: str, values: Array) -> None:
    """Raise ValueError for numbers of a model that are none."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"The model's {name} are not finite: its weights are damaged, or too large for its dtype (where that is "
            "float16, load it in float32, as the commands do)."
        )


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, which are gone at the end, and the work with them that has not begun."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _is_dataset(inputs: Any) -> bool:
    """Whether something holds images, by numbers or to go through, and is no image, array, list or mapping itself."""
    if isinstance(inputs, (*_ENCODED, list, tuple, Mapping)) or hasattr(inputs, "__array__") or hasattr(inputs, "read"):
        return False
    return hasattr(inputs, "__iter__") or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))

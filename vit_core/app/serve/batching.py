"""Pictures of many requests, in batches through a model.

While the model is at work, pictures that arrive are prepared in threads and wait; as soon as it is free, it takes all
that wait, up to a batch. No picture waits for others to come.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from vit_core import calls
from vit_core.app.backends import compiles_each_shape, run
from vit_core.app.base import Array, stacks
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.config import pair

Given = bytes | Array  # an encoded picture, or pixels (C, H, W) as the image processor gives them


class Full(Exception):
    """There is no place for more pictures now."""


class Batcher:
    """The way to a classifier: all but preparing and computing happens in the event loop, so nothing needs a lock.

    runners: threads, one for each copy of the model. batch_size: pictures that the model sees at once. places: pictures
    that may be under way. observe: is told the size of each batch.
    """

    def __init__(
        self,
        classifier: ImageClassificationPipeline,
        runners: ThreadPoolExecutor,
        batch_size: int,
        places: int,
        observe: Callable[[int], None],
    ) -> None:
        self.classifier, self.runners, self.observe = classifier, runners, observe
        self.batch_size, self.places = batch_size, places
        self.models = (classifier.model, *classifier.replicas)
        self.taken = 0  # of the places
        self.waiting: asyncio.Queue[tuple[Array, asyncio.Future[Array]]] = asyncio.Queue()
        self.preparers = ThreadPoolExecutor(os.cpu_count() or 1, "preparing")

    def warm_up(self) -> None:
        """Compute once in every size of batch that is compiled, so that no request waits for it."""
        config = self.classifier.model.config
        shape = config.num_channels, *pair(config.image_size)
        for model in self.models:
            for size in sorted({self._padded(number) for number in range(1, self.batch_size + 1)}):
                self.runners.submit(self.compute, model, [np.zeros(shape, np.float32)] * size).result()

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """What takes so many places more, which are free again after the block. It raises Full."""
        mine = 0

        def take(number: int) -> None:
            nonlocal mine
            if self.taken + number > self.places:
                raise Full
            self.taken, mine = self.taken + number, mine + number

        try:
            yield take
        finally:
            self.taken -= mine

    async def logits(self, given: Sequence[Given]) -> list[Array | OSError | ValueError]:
        """The logits (K,) of each picture, or why it can't be read. Whoever is cancelled here is computed no more."""
        return await asyncio.gather(*map(self._one, given))

    async def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives that has a model for itself."""
        return await asyncio.get_running_loop().run_in_executor(self.runners, function, *arguments)

    async def _one(self, given: Given) -> Array | OSError | ValueError:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self.preparers, self._prepared, given)
        if isinstance(pixels, Exception):
            return pixels
        answer: asyncio.Future[Array] = loop.create_future()
        self.waiting.put_nowait((pixels, answer))
        return await answer

    def _prepared(self, given: Given) -> Array | OSError | ValueError:
        if isinstance(given, bytes):
            return self.classifier.prepared(given)
        config = self.classifier.model.config
        try:
            calls.check_pixel_values((1, *given.shape), config, interpolate=calls.interpolates(config, None))
        except ValueError as error:
            return error
        if math.prod(given.shape[1:]) > math.prod(pair(config.image_size)):
            return ValueError(f"pixel_values must have no more pixels than {config.image_size}, got {given.shape}.")
        return given

    async def work(self, model: Any) -> None:
        """Compute what waits, until cancelled: the task of a model."""
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.batch_size and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(pixels, answer) for pixels, answer in batch if not answer.done()]
            if not batch:
                continue
            self.observe(len(batch))
            try:
                found = await self.alone(self.compute, model, [pixels for pixels, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), logits in zip(batch, found, strict=True):
                    if not answer.done():
                        answer.set_result(logits)

    def compute(self, model: Any, pixels: Sequence[Array]) -> list[Array]:
        """The logits (K,) of each of some pixels (C, H, W)."""
        found: list[Array] = []
        for stack in stacks(pixels):
            missing = self._padded(len(stack)) - len(stack)
            whole = np.concatenate([stack, np.zeros((missing, *stack.shape[1:]), stack.dtype)]) if missing else stack
            found += [*run(model, whole)["logits"][: len(stack)]]
        return found

    def _padded(self, size: int) -> int:
        """The size in which so many pictures are computed: few different ones where each takes long at first."""
        if not compiles_each_shape(self.classifier.model):
            return size
        return int(min(1 << (size - 1).bit_length(), self.batch_size))

    def close(self) -> None:
        """Let the threads go; what they are at goes on."""
        for pool in (self.preparers, self.runners):
            pool.shutdown(wait=False, cancel_futures=True)

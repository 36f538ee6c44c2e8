"""Models on the same pictures, and how far their outputs are apart: what `vit verify` and `vit diff` share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import combinations, groupby, islice
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_core.app.backends import import_backend, run
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.cli.common import Picture, complain, one_line
from vit_core.app.differences import Difference
from vit_core.app.opening import find_processor
from vit_core.calls import gives_classes
from vit_core.config import ViTConfig, pair
from vit_core.files.names import CONFIG_NAME
from vit_core.formats.huggingface import Checkpoint

Array = NDArray[Any]

_BATCH = 8  # pictures whose hidden states, of every model, are in memory at once


@dataclass
class Comparison:
    """What models gave: differences by pair, hidden states first, and each picture's label by model."""

    differences: list[Difference] = field(default_factory=list)
    labels: list[dict[str, str]] = field(default_factory=list)  # empty where there is no classifier

    @property
    def ok(self) -> bool | None:
        """Whether all agree; None where nothing was compared."""
        return all(each.ok for each in self.differences) if self.differences else None


def architecture_of(checkpoint: Checkpoint) -> tuple[str, dict[str, bool], bool]:
    """The model class that config.json names, else the one of the stored parts; its arguments; whether masks fit it.

    Raises FileNotFoundError for a checkpoint without a configuration.
    """
    family, config = checkpoint.family, checkpoint.config
    if config is None:
        raise FileNotFoundError(f"No {CONFIG_NAME} beside {checkpoint.path}: put the one of its model there.")
    parts = family.parts_in(checkpoint.tensors)
    named = (name for name in config.architectures or () if name in family.models)
    architecture = next(named, None) or family.architecture_of(parts)
    if "mask_token" not in parts:
        return architecture, family.arguments(architecture, parts), False
    masked = architecture == family.bare or pair(config.patch_size) == pair(config.encoder_stride)  # as the loss asks
    return architecture, family.arguments(architecture, parts), masked


def load(backend: str, architecture: str, model: str, **options: Any) -> Any:
    """The model in a backend. Raises ValueError for a checkpoint that lacks parameters, warns of what is not used."""
    if options["dtype"] == "float64" and backend == "flax":
        import_module("jax").config.update("jax_enable_x64", True)  # without it JAX computes in float32
    cls = getattr(import_backend(backend), architecture)
    loaded, report = cls.from_pretrained(model, output_loading_info=True, **options)
    if report.missing_keys:
        raise ValueError(report.warning(architecture))
    if message := report.warning(architecture):
        warnings.warn(message, stacklevel=2)  # once: it is the same for every backend
    return loaded


@contextmanager
def without_tf32(backends: list[str]) -> Iterator[None]:
    """Products of float32 numbers in float32 on cards too, where JAX and TensorFlow round them to TF32 first."""
    with ExitStack() as stack:
        if "flax" in backends:
            stack.enter_context(import_module("jax").default_matmul_precision("highest"))
        if "tf" in backends:
            execution = import_module("tensorflow").config.experimental
            stack.callback(execution.enable_tensor_float_32_execution, execution.tensor_float_32_execution_enabled())
            execution.enable_tensor_float_32_execution(False)
        yield


def pixels_of(found: list[Picture], loaded: Any, model: str, revision: str | None) -> Iterator[Array]:
    """The pictures one by one, (C, H, W), as the model's preprocessor makes them in the model's size.

    Without any there are two of seeded noise. Raises OSError or ValueError for one that can't be read.
    """
    config: ViTConfig = loaded.config
    height, width = pair(config.image_size)
    if not found:
        return iter(np.random.default_rng(0).standard_normal((2, config.num_channels, height, width)))
    processor = find_processor(model, config, revision=revision)
    preprocess = ImageClassificationPipeline(loaded, processor).preprocess
    return (preprocess(picture.source) for picture in found)


def compare(models: dict[str, Any], pixels: Iterator[Array], dtype: str, tolerance: float, masked: bool) -> Comparison:
    """Every output of every model, each with each; some of the patches are masked if `masked`."""
    result, rng = Comparison(), np.random.default_rng(0)
    config: ViTConfig = next(iter(models.values())).config
    found: dict[tuple[str, str, str], Difference] = {}
    while batch := list(islice(pixels, _BATCH)):
        images = np.stack(batch).astype(dtype)
        mask = rng.random((len(batch), config.num_patches)) < 0.5 if masked else None
        outputs = {name: _outputs(model, images, mask) for name, model in models.items()}
        for first, second in combinations(models, 2):
            for output, ours in outputs[first].items():
                each = found.setdefault((first, second, output), Difference((first, second), output, tolerance))
                each.add(ours, outputs[second][output])
        if config.num_labels and gives_classes(next(iter(outputs.values()))):
            best = {name: output["logits"].argmax(-1) for name, output in outputs.items()}
            names = {name: model.config.id2label for name, model in models.items()}
            result.labels += [{n: names[n][int(i[row])] for n, i in best.items()} for row in range(len(batch))]
    result.differences = list(found.values())
    return result


def _outputs(model: Any, pixels: Array, mask: Array | None) -> dict[str, Array]:
    """What a model gives for pixels (B, C, H, W) and a mask (B, N), by name, its hidden states first and numbered."""
    options: dict[str, Any] = {"output_hidden_states": True}
    if mask is not None:
        options["bool_masked_pos"] = mask
    output = run(model, pixels, **options)
    hidden = {f"hidden_states[{i}]": state for i, state in enumerate(output.pop("hidden_states"))}
    return hidden | output


# ---- what is shown -------------------------------------------------------------------------------------------------


def documents_of(result: Comparison, shown: list[str]) -> dict[str, Any]:
    """Whether all agree, and what was seen in each of the pictures shown, ready for JSON."""
    labels = [{"labels": each} for each in result.labels] or [{}] * len(shown)
    return {
        "agree": result.ok,
        "pictures": [{"file": name, **more} for name, more in zip(shown, labels, strict=True)],
    }


def table_of(differences: list[Difference], compared: str = "Backends") -> Table:
    """A line for each pair and output; for the hidden states, the layer where the pair is furthest apart."""
    table = Table(compared, "Output", "Difference", "Relative", "Allowed", "", box=SIMPLE)
    for column in table.columns[2:5]:
        column.justify = "right"
    for (backends, output), group in groupby(differences, lambda d: (d.backends, d.output.partition("[")[0])):
        states = list(group)
        each = max(states, key=lambda d: (not isfinite(d.relative), d.relative))
        name = f"{each.output}, the worst of {len(states)}" if output == "hidden_states" else output
        verdict = "ok" if each.ok else Text("differs", style="red")
        table.add_row(", ".join(backends), Text(one_line(name)), *each.figures, verdict)
    return table


def complain_of(differences: list[Difference]) -> None:
    """For each pair that disagrees, the first output that differs."""
    for backends, group in groupby(differences, lambda d: d.backends):
        if first := next((each.output for each in group if not each.ok), None):
            complain(f"{' and '.join(backends)} do not agree, {first} is the first output that differs.")

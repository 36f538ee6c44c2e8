"""`vit verify`: one checkpoint in every backend on the same pictures, and how far their outputs are apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import combinations, groupby, islice
from math import isfinite
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_core.app.backends import BACKENDS, first_installed, import_backend, is_installed, run
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.cli.common import (
    AsJson,
    Picture,
    Revision,
    complain,
    console,
    import_quietly,
    is_digits,
    one_line,
    pictures,
    print_json,
    telling,
    tolerance_option,
)
from vit_core.app.differences import Difference
from vit_core.app.opening import find_processor
from vit_core.assets import DIGITS
from vit_core.config import ViTConfig, pair
from vit_core.files.names import CONFIG_NAME
from vit_core.formats.huggingface import Checkpoint
from vit_core.formats.reading import read

Array = NDArray[Any]

# What rounding may make of one function, relative to the largest value of an output.
_TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
_BATCH = 8  # pictures whose hidden states, of every backend, are in memory at once


@dataclass
class _Comparison:
    """What the backends gave: differences by pair, hidden states first, and each picture's label by backend."""

    differences: list[Difference] = field(default_factory=list)
    labels: list[dict[str, str]] = field(default_factory=list)  # empty where there is no classifier

    @property
    def ok(self) -> bool | None:
        """Whether all agree; None where nothing was compared."""
        return all(each.ok for each in self.differences) if self.differences else None


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, weights file or hub id.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE",
            help="Files, folders, patterns, http(s) addresses, or - for stdin.",
            show_default="two of noise",
        ),
    ] = None,
    backends: Annotated[
        str | None, typer.Option(metavar=",".join(BACKENDS), help="Frameworks.", show_default="all that are installed")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="|".join(_TOLERANCES), help="What is computed in; float64 shows the same function.")
    ] = "float32",
    tolerance: Annotated[float | None, tolerance_option(_TOLERANCES)] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Compare what a checkpoint gives in every framework, output by output."""
    names, skipped = _chosen(backends)
    if dtype not in _TOLERANCES:
        raise ValueError(f"--dtype must be one of {', '.join(_TOLERANCES)}, got {dtype!r}.")
    allowed = _TOLERANCES[dtype] if tolerance is None else tolerance
    checkpoint: Checkpoint = read(model, revision=revision)
    if checkpoint.config is None:
        raise FileNotFoundError(f"No {CONFIG_NAME} beside {checkpoint.path}: put the one of its model there.")
    architecture, arguments, masked = _class(checkpoint, checkpoint.config)
    found = pictures(images or ([str(DIGITS / "pictures")] if is_digits(model) else []))
    with telling() as tell:
        for name in names:
            tell(f"Importing {name}")
            import_quietly(name)
        models: dict[str, Any] = {}
        for name in names:
            tell(f"Loading {name}")
            models[name] = _loaded(name, architecture, model, dtype=dtype, revision=revision, **arguments)
        pixels = _pixels(found, models[names[0]], model, revision)
        tell("Comparing")
        with _without_tf32(names):
            result = _compare(models, pixels, dtype, allowed, masked)
    shown = [picture.name for picture in found] or ["noise 1", "noise 2"]
    if as_json:
        facts = {"model": model, "architecture": architecture, "dtype": dtype, "tolerance": allowed}
        print_json(facts | {"backends": names, "skipped": skipped} | _document(result, shown))
    else:
        on = f"{len(shown)} picture{'s' * (len(shown) > 1)}{'' if found else ' of noise'}"
        _show(result, names, skipped, f"{architecture} in {dtype} on {on}")
    if result.ok is False:
        _complain_of(result.differences)
        raise typer.Exit(1)


# ---- what is compared ----------------------------------------------------------------------------------------------


def _chosen(wanted: str | None) -> tuple[list[str], list[str]]:
    """The backends to run, and those left out because they are not installed.

    Raises ImportError for one that was asked for, and when there is none.
    """
    names = list(dict.fromkeys(wanted.split(","))) if wanted is not None else []
    if any(name not in BACKENDS for name in names):
        raise ValueError(f"--backends must be some of {','.join(BACKENDS)}, with commas between, got {wanted!r}.")
    if names:
        return names, []
    first_installed()
    names = [name for name in BACKENDS if is_installed(name)]
    return names, [name for name in BACKENDS if name not in names]


def _class(checkpoint: Checkpoint, config: ViTConfig) -> tuple[str, dict[str, bool], bool]:
    """The model class that config.json names, else the one of the stored parts; its arguments; whether masks fit it."""
    family = checkpoint.family
    parts = family.parts_in(checkpoint.tensors)
    named = (name for name in config.architectures or () if name in family.models)
    architecture = next(named, None) or family.architecture_of(parts)
    if "mask_token" not in parts:
        return architecture, family.arguments(architecture, parts), False
    masked = architecture == family.bare or pair(config.patch_size) == pair(config.encoder_stride)  # as the loss asks
    return architecture, family.arguments(architecture, parts), masked


def _loaded(backend: str, architecture: str, model: str, **options: Any) -> Any:
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
def _without_tf32(backends: list[str]) -> Iterator[None]:
    """Products of float32 numbers in float32 on cards too, where JAX and TensorFlow round them to TF32 first."""
    with ExitStack() as stack:
        if "flax" in backends:
            stack.enter_context(import_module("jax").default_matmul_precision("highest"))
        if "tf" in backends:
            execution = import_module("tensorflow").config.experimental
            stack.callback(execution.enable_tensor_float_32_execution, execution.tensor_float_32_execution_enabled())
            execution.enable_tensor_float_32_execution(False)
        yield


def _pixels(found: list[Picture], loaded: Any, model: str, revision: str | None) -> Iterator[Array]:
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


def _compare(
    models: dict[str, Any], pixels: Iterator[Array], dtype: str, tolerance: float, masked: bool
) -> _Comparison:
    """Every output of every model, each with each; some of the patches are masked if `masked`."""
    result, rng = _Comparison(), np.random.default_rng(0)
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
        if config.num_labels and next(iter(outputs.values())).get("logits", images).ndim == 2:  # of classes
            best = {name: output["logits"].argmax(-1) for name, output in outputs.items()}
            result.labels += [{n: config.id2label[int(i[row])] for n, i in best.items()} for row in range(len(batch))]
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


def _document(result: _Comparison, shown: list[str]) -> dict[str, Any]:
    labels = [{"labels": each} for each in result.labels] or [{}] * len(shown)
    return {
        "agree": result.ok,
        "pictures": [{"file": name, **more} for name, more in zip(shown, labels, strict=True)],
        "differences": [each.to_dict() for each in result.differences],
    }


def _show(result: _Comparison, names: list[str], skipped: list[str], what: str) -> None:
    out = console()
    if result.differences:
        out.print(_table(result.differences))
    missing = f"; not installed: {', '.join(skipped)}" if skipped else ""
    if result.ok is None:
        out.print(Text(f"nothing to compare: {names[0]} is the only backend{missing}", style="bold"), soft_wrap=True)
        return
    same = sum(len(set(each.values())) == 1 for each in result.labels)
    labels = f", top-1 labels the same on {same}" if result.labels else ""
    verdict = "agreed" if result.ok else "DISAGREE"
    out.print(Text(f"{verdict}: {', '.join(names)}, {what}{labels}{missing}", style="bold"), soft_wrap=True)


def _table(differences: list[Difference]) -> Table:
    """A line for each pair and output; for the hidden states, the layer where the pair is furthest apart."""
    table = Table("Backends", "Output", "Difference", "Relative", "Allowed", "", box=SIMPLE)
    for column in table.columns[2:5]:
        column.justify = "right"
    for (backends, output), group in groupby(differences, lambda d: (d.backends, d.output.partition("[")[0])):
        states = list(group)
        each = max(states, key=lambda d: (not isfinite(d.relative), d.relative))
        name = f"{each.output}, the worst of {len(states)}" if output == "hidden_states" else output
        verdict = "ok" if each.ok else Text("differs", style="red")
        table.add_row(", ".join(backends), Text(one_line(name)), *each.figures, verdict)
    return table


def _complain_of(differences: list[Difference]) -> None:
    """For each pair that disagrees, the first output that differs."""
    for backends, group in groupby(differences, lambda d: d.backends):
        if first := next((each.output for each in group if not each.ok), None):
            complain(f"{' and '.join(backends)} do not agree, {first} is the first output that differs.")

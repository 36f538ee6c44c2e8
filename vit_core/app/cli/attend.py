"""`vit attend`: a picture of where a model looks, and of what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from vit_core import calls
from vit_core.app.attention_drawing import MOST_ROWS, Map, View, cut_out, draw, percent, sheet
from vit_core.app.attention_maps import (
    TOKENS,
    Array,
    Grid,
    foreground,
    grad_cam,
    heaviest,
    principal_components,
    relevance,
    rollout,
    rows_of,
    to_patches,
)
from vit_core.app.backends import array, call, class_gradients, run
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.cli.common import (
    DEFAULT_MODEL,
    DEMO,
    AsJson,
    Backend,
    Model,
    Picture,
    Processor,
    Revision,
    complain,
    drawing_format,
    import_for,
    one_line,
    pictures,
    print_json,
)
from vit_core.app.opening import find_processor, load
from vit_core.app.sources import read_image
from vit_core.config import ViTConfig
from vit_core.files.disk import atomic_file
from vit_core.pictures.images import as_rgb

METHODS = ("rollout", "gradient", "chefer", "pca")
_OF_A_CLASS = ("gradient", "chefer")
_MASS = 0.6  # of attention that a cut keeps (Caron et al. 2021, section 4.2.2)


@dataclass
class Looking:
    """A model, and what of it is asked for."""

    classifier: ImageClassificationPipeline
    has_classifier: bool
    method: str
    label: str | None
    tokens: str | None
    layer: int
    threshold: float | None

    @property
    def config(self) -> ViTConfig:
        """The model's."""
        found: ViTConfig = self.classifier.model.config
        return found


def attend(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="File, folder, pattern, http(s) address, or - for stdin.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PICTURE.png", help="Where to write the drawing.")],
    model: Model = None,
    backend: Backend = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="|".join(METHODS),
            help="Where attention flows; what speaks for a class, by gradients (Grad-CAM) or by gradients and "
            "attention of all layers (Chefer et al.); or the principal components of the patches, as colours.",
        ),
    ] = "rollout",
    label: Annotated[
        str | None,
        typer.Option("--class", metavar="LABEL", help="Of gradient and chefer.", show_default="the predicted one"),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(TOKENS),
            help="Whose attention is shown: of the CLS token, of the patches on average, or of each register.",
            show_default="cls where the model has that token",
        ),
    ] = None,
    layer: Annotated[
        int, typer.Option(metavar="N", help="Layer whose heads are drawn, from 0; -1, the last, counts from the end.")
    ] = -1,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Show the fewest patches that hold this share of a map, such as 0.6."),
    ] = None,
    segment: Annotated[
        bool, typer.Option("--segment", help="Cut out what the CLS token attends to; the rest is transparent.")
    ] = False,
    image_processor: Processor = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Draw where a model looks and what it sees, over a picture or over each of a folder."""
    _check(method, label, tokens, threshold, segment)
    found = pictures([image])
    kind = drawing_format(out, "attention.png", [each.name for each in found])
    _check_number(image, found, segment, kind, out)
    named = model or DEFAULT_MODEL
    classifier, has_classifier = _load(named, backend, image_processor, revision)
    layer = _checked_layer(layer, classifier.model.config.num_hidden_layers)
    looking = Looking(classifier, has_classifier, method, label, tokens, layer, threshold)
    document = {"out": str(out), "model": named, "backend": classifier.backend, "layer": layer}
    failures: list[str] = []
    if segment:
        _segment(looking, found[0], out, kind, document, as_json)
    else:
        _check_model(looking)
        views, failures = _views(looking, found)
        subtitle = f"{Path(named).name}, {classifier.backend}"
        if len(found) == 1:
            drawing = draw(
                views[0], title=_title(views[0]), subtitle=f"{views[0].name}, {subtitle}", heading=_heading(looking)
            )
        else:
            drawing = sheet(views, title=Path(image).name, subtitle=f"{_heading(looking)}; {subtitle}")
        _save(drawing, out, kind)
        _report(looking, found, views, document, as_json)
    if model is None and not as_json:
        complain(DEMO)
    for error in failures:
        complain(error)
    if failures:
        raise typer.Exit(1)


# ---- what can be asked for ---------------------------------------------------------------------------------------


def _check(method: str, label: str | None, tokens: str | None, threshold: float | None, segment: bool) -> None:
    """Raise ValueError for options that can't be, or not together."""
    if method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {method!r}.")
    if tokens not in (None, *TOKENS):
        raise ValueError(f"--tokens must be one of {', '.join(TOKENS)}, got {tokens!r}.")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"--threshold must be a share above 0 and up to 1, got {threshold}.")
    given = {"--class": label, "--tokens": tokens, "--threshold": threshold}
    taken = {"--class": method in _OF_A_CLASS, "--tokens": method != "pca", "--threshold": method != "pca"}
    if segment:
        given["--method"] = None if method == "rollout" else method
        taken = {"--threshold": True}
    unused = [name for name, value in given.items() if value is not None and not taken.get(name, False)]
    if unused:
        what = "--segment" if segment else f"--method {method}"
        raise ValueError(f"{what} has no use for {', '.join(unused)}: leave it out.")


def _check_number(image: str, found: Sequence[Picture], segment: bool, kind: str, out: Path) -> None:
    """Raise ValueError for more pictures than a drawing has place for."""
    if segment and len(found) != 1:
        raise ValueError(f"--segment cuts one picture, but {image} stands for {len(found)}: pass one of them.")
    if segment and kind == "JPEG":
        raise ValueError(f"--out {out} can't be transparent: name it {out.with_suffix('.png').name}.")
    if len(found) > MOST_ROWS:
        raise ValueError(
            f"A sheet has place for {MOST_ROWS} pictures, but {image} stands for {len(found)}: pass fewer."
        )


def _check_model(looking: Looking) -> None:
    """Raise ValueError for what the model has not."""
    rows_of(looking.config, looking.tokens)
    if looking.method in _OF_A_CLASS:
        if not looking.has_classifier:
            raise ValueError(f"--method {looking.method} explains a class, but the model has no trained classifier.")
        if looking.label is not None:
            _class_of(looking.config, looking.label)


def _checked_layer(layer: int, layers: int) -> int:
    if not -layers <= layer < layers:
        raise ValueError(f"--layer must be from 0 to {layers - 1}, or from -{layers} to -1, got {layer}.")
    return layer % layers


def _class_of(config: ViTConfig, label: str) -> int:
    """The number of a label. Raises ValueError for one that the model has not."""
    if label not in config.label2id:
        known = [*config.label2id]
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} others" if len(known) > 10 else "")
        raise ValueError(f"--class must be one of the model's labels, {shown}: got {label!r}.")
    return int(config.label2id[label])


def _load(
    model: str, backend: str | None, image_processor: str | None, revision: str | None
) -> tuple[ImageClassificationPipeline, bool]:
    """The model, and whether it has a trained classifier; a trunk alone, which has none, attends all the same."""
    import_for(backend, model, image_processor, revision)
    loaded, report = load(model, backend, revision=revision)
    fresh = [*report.missing_keys, *(name for name, _, _ in report.mismatched_keys)]
    if any(not name.startswith("classifier.") and ".pooler." not in name for name in fresh):
        raise ValueError(report.warning(type(loaded).__name__))
    processor = find_processor(model, loaded.config, image_processor, revision=revision)
    return ImageClassificationPipeline(loaded, processor), not fresh


# ---- looking -----------------------------------------------------------------------------------------------------


def _views(looking: Looking, found: Sequence[Picture]) -> tuple[list[View], list[str]]:
    """What is drawn of each picture, and why others can't be read. Raises that of a picture that is alone."""
    views, failures, tokens = [], [], []
    for each in found:
        try:
            picture = read_image(each.source)
            pixels = looking.classifier.preprocess(picture)
        except (OSError, ValueError) as error:
            if len(found) == 1:
                raise
            failures.append(str(error))
            views.append(View(Path(each.name).name))
            continue
        grid = calls.grid(pixels.shape[1:], looking.config)
        view = View(Path(each.name).name, looking.classifier.seen(as_rgb(picture, convert=True), grid))
        tokens += _look(looking, view, pixels, grid)
        views.append(view)
    if len(failures) == len(found):
        raise ValueError(f"None of the {len(found)} pictures can be read: {failures[0]}")
    if looking.method == "pca":
        _colour([view for view in views if view.picture is not None], tokens)
    return views, failures


def _look(looking: Looking, view: View, pixels: Array, grid: Grid) -> list[tuple[Array, Grid]]:
    """Fill in what one picture's view shows; of pca return the patches (N, D), which are to be seen with all others."""
    model, config = looking.classifier.model, looking.config
    output = run(model, pixels[None], output_attentions=True)
    if looking.has_classifier:
        best = looking.classifier.postprocess(output["logits"][0], 5, None)
        view.predictions = [(each["label"], each["score"]) for each in best]
    if looking.method == "pca":
        patches = call(model, model.features, pixels[None], layers=looking.layer + 1, pool="patches")
        return [(array(patches)[0], grid)]
    attentions = [each[0] for each in output["attentions"]]
    heads, rows = attentions[looking.layer], rows_of(config, looking.tokens)
    if looking.tokens == "registers":
        parts = [(f"register {i}", to_patches(heads.mean(0), each, grid)) for i, each in enumerate(rows)]
    else:
        parts = [(f"head {i}", each) for i, each in enumerate(to_patches(heads, rows[0], grid))]
    view.parts = [_part(caption, values, looking.threshold) for caption, values in parts]
    if looking.method == "rollout":
        shown = rows_of(config)[0] if looking.tokens == "registers" else rows[0]
        view.map = Map(to_patches(rollout(attentions), shown, grid), "Attention rollout")
    else:
        name = looking.label or config.id2label[int(output["logits"][0].argmax())]
        view.map = Map(_of_class(looking, pixels, grid, _class_of(config, name)), _WORDS[looking.method], f"for {name}")
    return []


_WORDS = {"gradient": "Grad-CAM", "chefer": "Relevance"}


def _of_class(looking: Looking, pixels: Array, grid: Grid, label: int) -> Array:
    """What speaks for a class: shares (rows, columns), which sum to one where anything does."""
    found = class_gradients(looking.classifier.model, pixels[None], label)
    if looking.method == "gradient":
        raw = grad_cam(found.states[looking.layer][0], found.by_states[looking.layer][0], grid)
    else:
        matters = relevance([each[0] for each in found.attentions], [each[0] for each in found.by_attentions])
        raw = to_patches(matters, rows_of(looking.config, looking.config.pool)[0], grid)  # what the classifier reads
    return raw / max(float(raw.sum()), np.finfo(np.float64).tiny)


def _part(caption: str, weights: Array, threshold: float | None) -> Map:
    if threshold is None:
        return Map(weights, caption, percent(weights.max()))
    kept = heaviest(weights, threshold)
    return Map(kept, caption, f"{int(kept.sum())} of {kept.size}")


def _colour(views: Sequence[View], tokens: Sequence[tuple[Array, Grid]]) -> None:
    """Fill in the colours of the components that are common to all pictures, and each component by itself."""
    found, variances = principal_components([patches for patches, _ in tokens])
    for view, unit, (_, grid) in zip(views, found, tokens, strict=True):
        values = unit.reshape(*grid, 3)
        view.map = Map(values, "Components")
        view.parts = [Map(values[..., i], f"PC {i + 1}", percent(variances[i])) for i in range(3)]


def _title(view: View) -> str:
    return f"Predicted: {view.title}" if view.title else "Attention"


def _heading(looking: Looking) -> str:
    """What the parts are."""
    if looking.method == "pca":
        return f"Principal components of the patches after layer {looking.layer}, with their share of the variance"
    kept = f", the patches that hold {percent(looking.threshold, 0)}" if looking.threshold else ""
    if looking.tokens == "registers":
        return f"Registers in layer {looking.layer}: what each attends to, the mean of the heads{kept}"
    whose = "the CLS token" if rows_of(looking.config, looking.tokens) == [slice(0, 1)] else "the mean patch"
    return f"Heads of layer {looking.layer}: what {whose} attends to{kept or ', each up to the share shown'}"


# ---- cutting and telling -----------------------------------------------------------------------------------------


def _segment(looking: Looking, found: Picture, out: Path, kind: str, document: dict[str, Any], as_json: bool) -> None:
    """Write the part of a picture that holds most of the CLS token's attention, the mean of a layer's heads.

    Raises ValueError for a model without a CLS token.
    """
    if not looking.config.tokens:
        name = type(looking.config).__name__
        raise ValueError(
            f"--segment cuts out what the CLS token attends to, but a {name} has none: pass another model."
        )
    picture = read_image(found.source)
    pixels = looking.classifier.preprocess(picture)
    grid = calls.grid(pixels.shape[1:], looking.config)
    seen = looking.classifier.seen(as_rgb(picture, convert=True), grid)
    heads = run(looking.classifier.model, pixels[None], output_attentions=True)["attentions"][looking.layer][0]
    mask = foreground(to_patches(heads.mean(0), slice(0, 1), grid), looking.threshold or _MASS, seen.size)
    _save(cut_out(seen, mask), out, kind)
    if as_json:
        print_json({"file": found.name, **document, "kept": float(mask.mean())})
    else:
        print(f"{percent(float(mask.mean()))} of the picture: {one_line(out)}")


def _save(drawing: Image.Image, out: Path, kind: str) -> None:
    with atomic_file(out) as file:
        drawing.save(file, kind, quality=92)


def _report(
    looking: Looking, found: Sequence[Picture], views: Sequence[View], document: dict[str, Any], as_json: bool
) -> None:
    """Print what was drawn; as JSON the maps, of a picture that is alone at the top of the document."""
    images = []
    for each, view in zip(found, views, strict=True):
        image: dict[str, Any] = {"file": each.name}
        if view.map is not None:
            image["predictions"] = [{"label": label, "score": score} for label, score in view.predictions]
            image[looking.method] = view.map.values.tolist()
            image["maps"] = {part.caption: part.values.tolist() for part in view.parts}
        images.append(image)
    if as_json:
        print_json(document | {"method": looking.method} | (images[0] if len(images) == 1 else {"images": images}))
    else:
        title = _title(views[0]) if len(found) == 1 else f"{sum(view.map is not None for view in views)} pictures"
        print(f"{one_line(title)}: {one_line(document['out'])}")

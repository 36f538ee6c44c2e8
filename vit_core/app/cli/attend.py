"""`vit attend`: a picture of where a model looks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from vit_core import calls
from vit_core.app.attention_maps import cls_to_patches, draw, rollout
from vit_core.app.backends import run
from vit_core.app.classification import ImageClassificationPipeline, Predictions
from vit_core.app.cli.common import (
    DEFAULT_MODEL,
    AsJson,
    Backend,
    Model,
    Processor,
    Revision,
    drawing_format,
    import_quietly,
    one_line,
    one_picture,
    print_json,
)
from vit_core.app.opening import find_processor, load
from vit_core.app.sources import read_image
from vit_core.config import pair
from vit_core.files.disk import atomic_file
from vit_core.pictures.images import as_rgb


def attend(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="File, http(s) address, or - for stdin.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PICTURE.png", help="Where to write the drawing.")],
    model: Model = DEFAULT_MODEL,
    backend: Backend = None,
    layer: Annotated[
        int, typer.Option(metavar="N", help="Layer whose heads are drawn, from 0; -1, the last, counts from the end.")
    ] = -1,
    image_processor: Processor = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Draw where a model looks: attention rollout, and the heads of a layer, over a picture."""
    source = one_picture(image, "attend draws one picture")
    kind = drawing_format(out, "attention.png", [source.name])
    picture = read_image(source.source)
    classifier, has_classifier = _load(model, backend, image_processor, revision)
    config, pixels = classifier.model.config, classifier.preprocess(picture)
    layer = _checked_layer(layer, config.num_hidden_layers)

    output = run(classifier.model, pixels[None], output_attentions=True)
    grid = calls.grid(pixels.shape[1:], config)
    attentions = [attention[0] for attention in output["attentions"]]
    flow, heads = cls_to_patches(rollout(attentions), grid), cls_to_patches(attentions[layer], grid)
    predictions = classifier.postprocess(output["logits"][0], 5, None) if has_classifier else []
    drawing = draw(
        _seen(as_rgb(picture, convert=True), classifier),
        flow,
        heads,
        layer=layer,
        title=_title(predictions),
        subtitle=f"{Path(source.name).name}, {Path(model).name}, {classifier.backend}",
        predictions=[(each["label"], each["score"]) for each in predictions],
    )
    with atomic_file(out) as file:
        drawing.save(file, kind, quality=92)
    document = {"file": source.name, "out": str(out), "model": model, "backend": classifier.backend}
    if as_json:
        print_json(document | {"layer": layer, "predictions": predictions, "rollout": flow.tolist()})
    else:
        print(f"{one_line(_title(predictions))}: {one_line(out)}")


def _load(
    model: str, backend: str | None, image_processor: str | None, revision: str | None
) -> tuple[ImageClassificationPipeline, bool]:
    """The model, and whether it has a trained classifier; a trunk alone, which has none, attends all the same."""
    import_quietly(backend)
    loaded, report = load(model, backend, revision=revision)
    fresh = [*report.missing_keys, *(name for name, _, _ in report.mismatched_keys)]
    if any(not name.startswith("classifier.") for name in fresh):
        raise ValueError(report.warning(type(loaded).__name__))
    processor = find_processor(model, loaded.config, image_processor, revision=revision)
    return ImageClassificationPipeline(loaded, processor), not fresh


def _checked_layer(layer: int, layers: int) -> int:
    if not -layers <= layer < layers:
        raise ValueError(f"--layer must be from 0 to {layers - 1}, or from -{layers} to -1, got {layer}.")
    return layer % layers


def _seen(picture: Image.Image, classifier: ImageClassificationPipeline) -> Image.Image:
    """The part of a picture that the model's patches cover: all of it, but for a centre crop and cut patches."""
    processor, config = classifier.image_processor, classifier.model.config

    def size_after(**options: Any) -> tuple[int, int]:
        pixels = processor(picture, do_normalize=False, return_tensors="np", **options)["pixel_values"]
        return pixels.shape[3], pixels.shape[2]

    whole, cropped = size_after(do_center_crop=False), size_after()
    (rows, columns), (ph, pw) = config.grid, pair(config.patch_size)
    box: list[int] = []
    for corner in ((0, 0), (columns * pw, rows * ph)):
        for full, cut, at, edge in zip(whole, cropped, corner, picture.size, strict=True):
            box.append(round(((full - cut) // 2 + at) * edge / full))
    return picture.crop((box[0], box[1], box[2], box[3]))


def _title(predictions: Predictions) -> str:
    if not predictions:
        return "Attention"
    return f"Predicted: {predictions[0]['label']} ({100 * predictions[0]['score']:.1f} %)"

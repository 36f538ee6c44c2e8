"""Where the model looks, over a picture."""

from __future__ import annotations

from io import BytesIO

from vit_core import calls
from vit_core.app.attention_drawing import overlay
from vit_core.app.attention_maps import rollout, rows_of, to_patches
from vit_core.app.backends import run
from vit_core.app.canvas import fit
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.sources import read_image
from vit_core.pictures.images import as_rgb

_EDGE = 640  # pixels of the longer side


def attention_over(classifier: ImageClassificationPipeline, encoded: bytes) -> bytes:
    """The attention rollout over what the model sees of a picture, as `vit attend` draws it, in PNG.

    Raises OSError or ValueError for what is no picture.
    """
    picture = read_image(encoded)
    pixels = classifier.preprocess(picture)
    config = classifier.model.config
    grid = calls.grid(pixels.shape[1:], config)
    attentions = [each[0] for each in run(classifier.model, pixels[None], output_attentions=True)["attentions"]]
    weights = to_patches(rollout(attentions), rows_of(config)[0], grid)
    seen = classifier.seen(as_rgb(picture, convert=True), grid)
    file = BytesIO()
    overlay(seen, weights, fit(seen.size, _EDGE)).save(file, "PNG")
    return file.getvalue()

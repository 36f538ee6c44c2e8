"""Image classification: labels and scores, as Hugging Face's `pipeline("image-classification")` gives them."""

from __future__ import annotations

from typing import Any, ClassVar, TypedDict

import numpy as np

from vit_core.app.backends import run
from vit_core.app.base import Array, ImagePipeline, check_count, check_finite
from vit_core.calls import gives_classes, score_function
from vit_core.pictures.processing import ViTImageProcessor


class Prediction(TypedDict):
    """A label and its score."""

    label: str
    score: float


Predictions = list[Prediction]  # the highest score first

FUNCTIONS = ("softmax", "sigmoid", "none")


class ImageClassificationPipeline(ImagePipeline[Predictions]):
    """Classifies one image or several: `classifier("cat.png")`.

    Options: top_k, all classes if None; function_to_apply, "softmax", "sigmoid" or "none", which if None follows the
    kind of problem.
    """

    task = "image-classification"
    architecture = "ForImageClassification"
    options: ClassVar[dict[str, Any]] = {"top_k": 5, "function_to_apply": None}

    def __init__(self, model: Any, image_processor: ViTImageProcessor, **options: Any) -> None:
        super().__init__(model, image_processor, **options)
        if not self.config.num_labels:
            raise ValueError("The model has num_labels=0 and so no classes: pass one that was saved with its labels.")

    def answers(self, model: Any, pixels: Array, **options: Any) -> list[Predictions]:
        output = run(model, pixels)
        if not gives_classes(output):
            given = ", ".join(output)
            raise ValueError(
                f"{type(model).__name__} is no classifier: it gives {given}, and no logits of classes. Pass one."
            )
        return [self.postprocess(each, **options) for each in output["logits"]]

    def postprocess(self, logits: Array, top_k: int | None, function_to_apply: str | None) -> Predictions:
        """The best `top_k` labels of logits (K,), with their scores."""
        check_finite("logits", logits)
        scores = scores_of(logits, function_to_apply or score_function(self.config))
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": self.config.id2label[int(i)], "score": float(scores[i])} for i in best]

    def check(self, top_k: int | None, function_to_apply: str | None) -> None:  # type: ignore[override]
        if top_k is not None:
            check_count("top_k", top_k)
        if function_to_apply not in (None, *FUNCTIONS):
            raise ValueError(
                f"function_to_apply must be one of {', '.join(FUNCTIONS)}, or None, got {function_to_apply!r}."
            )


def scores_of(logits: Array, function: str) -> Array:
    """The scores of logits (K,)."""
    if function == "sigmoid":
        return np.exp(-np.logaddexp(0, -logits))
    if function == "none":
        return logits
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())

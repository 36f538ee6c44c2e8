"""What the bodies of requests ask for, and the documents that answer them, in the words of each protocol.

A reader takes a body and gives what is `Asked`, or raises ValueError with what to tell the client.
"""

from __future__ import annotations

import binascii
import math
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_core.app.base import Array, check_count
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.serve.batching import Given
from vit_core.config import pair
from vit_core.files.documents import Document, parse_json_object

VERSION = "1"  # of every model: a server has one
SIGNATURE = "serving_default"
PICTURE, PIXELS = "image_bytes", "pixel_values"  # the inputs, of which a request has one
LABELS, SCORES, LOGITS = "labels", "scores", "logits"  # the outputs
_REQUEST = "The request"
_LARGEST = 1e5  # of pixels that any processor gives; a model's numbers are finite long beyond it


@dataclass(frozen=True)
class Served:
    """A classifier under its name, and how many labels it tells of a picture if the request does not say.

    runners: the threads in which it was loaded, and computes, one for each copy of the model. OpenMP has workers for
    each thread that computes, and those of two are in each other's way.
    """

    classifier: ImageClassificationPipeline
    runners: ThreadPoolExecutor
    name: str
    top_k: int

    def best(self, logits: Array, top_k: int | None = None) -> tuple[list[str], list[float]]:
        """The best labels of logits (K,), and their scores. Raises ValueError for a number of labels that can't be."""
        found = self.classifier.postprocess(logits, top_k or self.top_k, None)
        return [each["label"] for each in found], [each["score"] for each in found]

    @property
    def shape(self) -> list[int]:
        """Of the pixels of a batch, -1 for any number."""
        config = self.classifier.model.config
        return [-1, config.num_channels, *pair(config.image_size)]

    @property
    def labels(self) -> int:
        """How many the model has."""
        return int(self.classifier.model.config.num_labels)


@dataclass(frozen=True)
class Asked:
    """Pictures, and what makes the answer of their logits (K,)."""

    given: Sequence[Given]
    answer: Callable[[Sequence[Array]], dict[str, Any]]


def checked_top_k(value: Any) -> int | None:
    """A number of labels, or None. Raises ValueError for anything else."""
    if value is not None:
        check_count("top_k", value)
    found: int | None = value
    return found


# ---- TensorFlow Serving and Vertex AI --------------------------------------------------------------------------------
# https://www.tensorflow.org/tfx/serving/api_rest, https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements


def tensorflow(body: bytes, served: Served) -> Asked:
    """TensorFlow Serving's `:predict`: "instances", answered by "predictions", or "inputs", answered by "outputs"."""
    document = parse_json_object(body, _REQUEST)
    _refuse_others(document, "instances", "inputs", "signature_name")
    if (signature := document.text("signature_name", SIGNATURE)) != SIGNATURE:
        raise ValueError(f"Serving signature key {_short(signature)} not found: there is {SIGNATURE!r}.")
    if ("instances" in document) == ("inputs" in document):
        raise ValueError("The request must have one of instances and inputs.")
    if "instances" in document:
        return _rows(document["instances"], served, None)

    def answer(logits: Sequence[Array]) -> dict[str, Any]:
        labels, scores = zip(*(served.best(each) for each in logits), strict=True)
        return {"outputs": {LABELS: [*labels], SCORES: [*scores]}}

    return Asked(_column(document["inputs"]), answer)


def vertex(body: bytes, served: Served) -> Asked:
    """Vertex AI's prediction: "instances" as TensorFlow Serving has them, and "parameters" with a "top_k"."""
    document = parse_json_object(body, _REQUEST)
    _refuse_others(document, "instances", "parameters")
    parameters = document.object("parameters")
    _refuse_others(parameters, "top_k")
    return _rows(document.get("instances"), served, checked_top_k(parameters.get("top_k")))


def model_status() -> dict[str, Any]:
    """TensorFlow Serving's word for a model that is there."""
    status = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": VERSION, "state": "AVAILABLE", "status": status}]}


def signature(served: Served) -> dict[str, Any]:
    """TensorFlow Serving's metadata of a model."""

    def tensor(name: str, dtype: str, *sizes: int) -> dict[str, Any]:
        shape = {"dim": [{"size": str(size), "name": ""} for size in sizes], "unknown_rank": False}
        return {"dtype": dtype, "tensor_shape": shape, "name": name}

    top = min(served.top_k, served.labels)
    inputs = {PICTURE: tensor(PICTURE, "DT_STRING", -1), PIXELS: tensor(PIXELS, "DT_FLOAT", *served.shape)}
    outputs = {LABELS: tensor(LABELS, "DT_STRING", -1, top), SCORES: tensor(SCORES, "DT_FLOAT", -1, top)}
    method = {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
    return {
        "model_spec": {"name": served.name, "signature_name": "", "version": VERSION},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: method}}},
    }


def _rows(instances: Any, served: Served, top_k: int | None) -> Asked:
    """Instances, each an input by itself, and a prediction for each."""

    def answer(logits: Sequence[Array]) -> dict[str, Any]:
        found = [served.best(each, top_k) for each in logits]
        return {"predictions": [{LABELS: labels, SCORES: scores} for labels, scores in found]}

    return Asked([_instance(each) for each in _listed(instances, "instances")], answer)


def _instance(value: Any) -> Given:
    """A picture as {"b64": ...} or pixels as nested lists; either may stand under its input's name."""
    if isinstance(value, dict) and len(value) == 1:
        ((name, inner),) = value.items()
        if name == "b64":
            return _decoded(inner)
        if name == PICTURE:
            return _decoded(inner.get("b64") if isinstance(inner, dict) else inner)
        value = inner if name == PIXELS else value
    if isinstance(value, list):
        return _pixels(value, 3)
    raise ValueError(
        f'An instance must be {{"b64": ...}}, {{"{PICTURE}": {{"b64": ...}}}} or {{"{PIXELS}": [...]}}, '
        f"got {_short(value)}."
    )


def _column(inputs: Any) -> list[Given]:
    """The pictures of "inputs": a list of them, or an object with that list under the input's name."""
    if isinstance(inputs, dict):
        if len(inputs) != 1 or not inputs.keys() <= {PICTURE, PIXELS}:
            raise ValueError(f"inputs must have one of {PICTURE} and {PIXELS}, got {_short([*inputs])}.")
        ((name, values),) = inputs.items()
        return [_instance({name: each}) for each in _listed(values, f"inputs.{name}")]
    return [_instance(each) for each in _listed(inputs, "inputs")]


# ---- the Open Inference Protocol -------------------------------------------------------------------------------------
# https://github.com/kserve/open-inference-protocol, version 2


def open_inference(body: bytes, served: Served) -> Asked:
    """The Open Inference Protocol's `infer`, in JSON: one input tensor, and the outputs that are asked for."""
    document = parse_json_object(body, _REQUEST)
    _refuse_others(document, "id", "parameters", "inputs", "outputs")
    number = document.text("id", "")
    top_k = checked_top_k(document.object("parameters").get("top_k"))
    tensors = _listed(document.get("inputs"), "inputs")
    if len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise ValueError(f"inputs must be one tensor, {PICTURE} or {PIXELS}, got {_short(tensors)}.")
    given = _tensor(Document(tensors[0], _REQUEST, "inputs[0]."))
    asked = document["outputs"] if document.get("outputs") is not None else [{"name": LABELS}, {"name": SCORES}]
    names = [str(each.get("name")) if isinstance(each, dict) else "" for each in _listed(asked, "outputs")]
    if not {*names} <= {LABELS, SCORES, LOGITS}:
        raise ValueError(f"outputs must be tensors named {LABELS}, {SCORES} or {LOGITS}, got {_short(asked)}.")

    def answer(logits: Sequence[Array]) -> dict[str, Any]:
        labels, scores = zip(*(served.best(each, top_k) for each in logits), strict=True)
        values: dict[str, tuple[str, Sequence[list[Any]]]] = {
            LABELS: ("BYTES", labels),
            SCORES: ("FP32", scores),
            LOGITS: ("FP32", [each.tolist() for each in logits]),
        }
        outputs = []
        for name in names:
            datatype, rows = values[name]
            flat = [value for row in rows for value in row]
            outputs.append({"name": name, "datatype": datatype, "shape": [len(rows), len(rows[0])], "data": flat})
        identity = {"id": number} if number else {}
        return {"model_name": served.name, "model_version": VERSION, **identity, "outputs": outputs}

    return Asked(given, answer)


def open_inference_metadata(served: Served) -> dict[str, Any]:
    """The Open Inference Protocol's metadata of a model. Of the two inputs a request has one."""
    top = min(served.top_k, served.labels)
    return {
        "name": served.name,
        "versions": [VERSION],
        "platform": f"vit-trio_{served.classifier.backend}",
        "inputs": [
            {"name": PICTURE, "datatype": "BYTES", "shape": [-1]},
            {"name": PIXELS, "datatype": "FP32", "shape": served.shape},
        ],
        "outputs": [
            {"name": LABELS, "datatype": "BYTES", "shape": [-1, top]},
            {"name": SCORES, "datatype": "FP32", "shape": [-1, top]},
            {"name": LOGITS, "datatype": "FP32", "shape": [-1, served.labels]},
        ],
    }


def _tensor(tensor: Document) -> list[Given]:
    """The pictures of an input tensor."""
    name, datatype = tensor.text("name", ""), tensor.text("datatype", "")
    if (name, datatype) not in ((PICTURE, "BYTES"), (PIXELS, "FP32")):
        raise ValueError(f"The input must be {PICTURE} in BYTES or {PIXELS} in FP32, got {_short((name, datatype))}.")
    if "data" not in tensor:
        raise ValueError("The input has no data: the extension of binary tensor data is not spoken here, pass JSON.")
    shape = tensor.get("shape")
    if not (isinstance(shape, list) and shape and all(type(size) is int and size > 0 for size in shape)):
        raise ValueError(f"The shape of the input must be whole numbers above 0, got {_short(shape)}.")
    data = _listed(tensor["data"], "data")
    if name == PICTURE:
        if math.prod(shape) != shape[0] or len(data) != shape[0]:
            raise ValueError(f"{PICTURE} has {len(data)} texts, which is no tensor of shape {shape}.")
        return [_decoded(each) for each in data]
    values = _array(data)
    if len(shape) != 4 or values.size != math.prod(shape):
        raise ValueError(f"{PIXELS} has {values.size} numbers, which is no tensor (B, C, H, W) of shape {shape}.")
    return [*values.reshape(shape)]


# ---- values ------------------------------------------------------------------------------------------------------


def _decoded(text: Any) -> bytes:
    """A picture in base64."""
    if not isinstance(text, str):
        raise ValueError(f"A picture must be a text in base64, got {_short(text)}.")
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"A picture must be base64, which {_short(text)} is not ({error}).") from error


def _pixels(values: list[Any], axes: int) -> Array:
    found = _array(values)
    if found.ndim != axes:
        raise ValueError(f"{PIXELS} of a picture must be (C, H, W), got the shape {found.shape}.")
    return found


def _array(values: list[Any]) -> Array:
    """Nested lists of numbers as float32."""
    try:
        found = np.array(values)
    except ValueError:
        found = np.array(None)
    if found.dtype.kind not in "iuf":
        raise ValueError(f"{PIXELS} must be numbers, in lists of one length, got {_short(values)}.")
    with np.errstate(over="ignore"):
        pixels = found.astype(np.float32)
    if not (np.abs(pixels) <= _LARGEST).all():
        raise ValueError(
            f"{PIXELS} must be as the image processor gives them, at most {_LARGEST:g}, got {np.abs(pixels).max():g}."
        )
    return pixels


def _listed(value: Any, name: str) -> list[Any]:
    if not (isinstance(value, list) and value):
        raise ValueError(f"{name} must be a list that is not empty, got {_short(value)}.")
    return value


def _refuse_others(document: Document, *known: str) -> None:
    if others := sorted(document.keys() - {*known}):
        raise ValueError(f"{_short(others)} is nothing that is known here: there is {', '.join(known)}.")


def _short(value: Any) -> str:
    """A value in a message, a few letters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

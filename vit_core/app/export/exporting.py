"""`export`: write a checkpoint for a runtime, run what was written, and keep it if it is right."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vit_core.app.backends import backend_of, bare, import_exporter
from vit_core.app.differences import Difference
from vit_core.app.export.asking import (
    AGREEMENT,
    INT8_TOLERANCE,
    TARGETS,
    TOLERANCES,
    Target,
    calibrating_pictures,
    check_beside,
    check_installed,
    checked_out,
    wanted_of,
    weights_beside,
)
from vit_core.app.export.checking import calls_of, compare
from vit_core.app.export.triton import CONFIG, VERSION, config_of
from vit_core.app.opening import beside, find_processor, load
from vit_core.calls import check_pixel_values, interpolates, score_function, unseen
from vit_core.config import ViTConfig
from vit_core.exports import CLASSES, Exported
from vit_core.family import CLASSIFIERS, PARTS, ViTMAEConfig
from vit_core.files.names import PREPROCESSOR_NAME
from vit_core.pictures.graph import Preparation
from vit_core.pictures.processing import ViTImageProcessor
from vit_core.pictures.steps import Steps

LABELS_NAME = "labels.txt"  # a line for each class


@dataclass(frozen=True)
class Int8:
    """What of a model computes in 8-bit integers."""

    calibrated_on: int  # pictures; 0 where each call measures its own activations
    quantised: int  # linear layers, of those in the file
    linear_layers: int


@dataclass
class ExportReport:
    """What was written, and how far it is from the model on the pictures that both saw."""

    path: Path
    target: str
    backend: str
    input: str  # what it takes
    files: list[str]  # all that was written, by name
    size: int  # of them, in bytes
    differences: list[Difference] = field(default_factory=list)
    pictures: int = 0
    same_label: int | None = None  # pictures with the same best class; None where there are no classes
    int8: Int8 | None = None
    agreement_needed: float = 0.0

    @property
    def agreement(self) -> float | None:
        """The part of the pictures with the same best class; None where there are no classes."""
        return None if self.same_label is None else self.same_label / self.pictures

    @property
    def ok(self) -> bool:
        """Whether every output is within its tolerance, and as many pictures keep their class as have to."""
        same = self.agreement is None or self.agreement >= self.agreement_needed
        return same and all(each.ok for each in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        facts = {"path": str(self.path), "target": self.target, "backend": self.backend, "ok": self.ok}
        facts["input"] = self.input
        sizes = {"files": self.files, "bytes": self.size, "pictures": self.pictures, "same_label": self.same_label}
        quantised = {"agreement": self.agreement, "int8": None if self.int8 is None else asdict(self.int8)}
        return facts | sizes | quantised | {"differences": [each.to_dict() for each in self.differences]}


def export(
    model: str | os.PathLike[str] | Any,
    out: str | os.PathLike[str],
    to: str,
    *,
    input: str = "pixels",
    outputs: str = "logits",
    dynamic: Collection[str] = ("batch",),
    dtype: str = "float32",
    int8: str | Sequence[Any] | None = None,
    aoti: bool = False,
    opset: int | None = None,
    triton: bool = False,
    pictures: Sequence[Any] = (),
    tolerance: float | None = None,
    image_processor: ViTImageProcessor | str | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> ExportReport:
    """Write a checkpoint for a runtime, run it there, and keep what agrees with the model.

    model: a folder, a file or a hub id of any format, or a model of the backend that writes the target.
    to: "onnx" and "pt2", written by PyTorch, "saved-model", a folder, and "litert", by TensorFlow, "stablehlo", by JAX.
    input: "pixels" as the processor gives them; "image", of any size in 8 bits, or "bytes" of a JPEG or PNG, which the
    file prepares as the processor does.
    outputs: "logits", "probabilities", "labels" (the best class and its score), "features" or "states".
    dynamic: "batch" for any number of pictures, "size" for any height and width of whole patches.
    dtype: what is computed in, float32 or float16, of which "litert" has the weights alone; what goes in and comes out
        is float32.
    int8: for "onnx" and "litert", linear layers in 8-bit integers: pictures that say how far activations reach, of
        which 512 are taken, or "dynamic", with which every call measures that itself.
    aoti: for "pt2", a program compiled for this machine by AOTInductor, which needs a C++ compiler.
    opset: of "onnx", from 18; what PyTorch takes if None.
    triton: for "onnx", `out` is a folder of Triton's model repository, with its configuration.
    pictures: what to compare on, paths or what the processor takes, for a file that prepares them paths, bytes or PIL
    images; without any, those of `int8`, or two of noise.
    tolerance: the allowed difference, relative to an output's largest value; of rounding if None, and in int8 what is
        usual, while 99 % of the pictures keep their class.
    options: those of `from_pretrained`.

    The file is run in a process of its own with the format's runtime, which gets nothing of this package. Labels and
    preprocessor are written beside it, and into it where the format has a place. Raises ValueError, and writes
    nothing, where the two differ by more than the tolerance, and for what a target or its runtime refuses;
    FileExistsError for a path that is taken, unless `overwrite`, those of the files beside it included, where what is
    there is other than what would be; OSError for a full disk; ImportError that says what to install.
    """
    out, target = checked_out(Path(out), to, triton, overwrite), TARGETS[to]
    wanted = wanted_of(input, outputs, dynamic, dtype, to, aoti, opset)
    calibrating = calibrating_pictures(int8, input, dtype, to)
    check_installed(to, target)
    tell("Loading the model")
    of_dtype = "float32" if wanted.half else dtype
    loaded, reference, processor = _opened(model, target, wanted, of_dtype, image_processor, options)
    config: ViTConfig = loaded.config
    documents = _documents(config, processor, wanted)
    in_folder = triton or not target.suffix
    texts = {} if in_folder else {f"{out.stem}.{name}": text for name, text in documents.items()}
    check_beside(out, texts, overwrite)
    function = score_function(config) if config.num_labels else "none"
    wanted = _prepared(replace(wanted, documents=documents, function=function), config, processor)
    wanted = replace(wanted, int8=int8 is not None)
    if calibrating:
        tell(f"Reading {len(calibrating)} pictures")
        alone, _ = calls_of(calibrating, processor, reference, wanted)
        wanted = replace(wanted, calibration=np.concatenate([each.given for each in alone]))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        stage = Path(folder)
        file = stage / out.name / VERSION / "model.onnx" if triton else stage / out.name
        file.parent.mkdir(parents=True, exist_ok=True)
        tell(f"Writing {to}")
        try:
            layers = import_exporter(target.backend).export(loaded, file, to, wanted)
        except Exception as error:
            if os.strerror(errno.ENOSPC) in str(error):  # each library has another class for it
                raise OSError(
                    f"The disk is full, and {to} not written. It takes room in {out.parent}, and in what libraries use "
                    f"meanwhile, {tempfile.gettempdir()}: where there is more of it, set TMPDIR."
                ) from error
            raise ValueError(f"{to} can't hold {type(loaded).__name__} with {outputs}: {error}") from error
        if triton:
            labels = LABELS_NAME if LABELS_NAME in documents else None
            for name, text in {**documents, CONFIG: config_of(file, labels)}.items():
                (stage / out.name / name).write_bytes(text.encode())
        for name, text in texts.items():
            (stage / name).write_bytes(text.encode())
        files = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
        size = sum((stage / name).stat().st_size for name in files)
        report = ExportReport(out, to, target.backend, input, files, size)
        if wanted.int8:
            report.int8 = Int8(0 if wanted.calibration is None else len(wanted.calibration), *layers)
            report.agreement_needed = AGREEMENT if tolerance is None else 0.0
        tell(f"Comparing with {to}")
        alone, others = calls_of(pictures or calibrating, processor, reference, wanted)
        usual = INT8_TOLERANCE if wanted.int8 else TOLERANCES[dtype]
        allowed = usual if tolerance is None else tolerance
        names = (target.backend, to)
        report.pictures = len(alone)
        found = compare(file, names, reference, wanted, alone, others, allowed)
        report.differences, report.same_label = found
        if not report.ok:
            worst = max(report.differences, key=lambda each: (not each.ok, each.relative))
            counted = wanted.int8 or outputs == "labels"
            same = f"{report.same_label} of {report.pictures} pictures keep their class, and " if counted else ""
            raise ExportError(
                f"{to} does not agree with the model: {same}{worst.output} differs by {worst.relative:.2g} of its "
                f"largest value, allowed is {worst.tolerance:.2g}. Nothing was written; pass a larger tolerance to "
                "keep it.",
                report,
            )
        _move(stage, out)
    return report


class ExportError(ValueError):
    """What was written does not agree with the model; `report` says by how much."""

    def __init__(self, message: str, report: ExportReport) -> None:
        super().__init__(message)
        self.report = report


def _opened(
    model: Any, target: Target, wanted: Exported, dtype: str, image_processor: Any, options: dict[str, Any]
) -> tuple[Any, Any, ViTImageProcessor]:
    """The model to write, the one to compare with, in float32, and the processor of their pictures."""
    if isinstance(model, str | os.PathLike):
        task = "ForImageClassification" if wanted.outputs in CLASSES else "Model"

        def opened(dtype: str) -> Any:
            device = "cpu" if target.backend == "torch" else None
            loaded, report = load(model, target.backend, device, task=task, dtype=dtype, **options)
            if wanted.outputs in CLASSES and (report.missing_keys or report.mismatched_keys):
                raise ValueError(report.warning(type(loaded).__name__))
            return loaded

        reference = opened("float32")
        found = reference if dtype == "float32" else opened(dtype)
    else:
        if (backend := backend_of(model)) != target.backend:
            raise ValueError(
                f"model is of the backend {backend}, and {target.backend} writes this target: save it, and pass its "
                "folder."
            )
        if options or dtype != "float32":
            given = ", ".join(options) or "dtype"
            raise ValueError(f"{given} can't be set for a model that is loaded: pass its folder.")
        reference = found = bare(model)
    _check_model(found, target, wanted)
    name = model if isinstance(model, str | os.PathLike) else None
    values = beside(reference) if image_processor is None else image_processor
    return found, reference, find_processor(name, reference.config, values, **options)


def _check_model(model: Any, target: Target, wanted: Exported) -> None:
    config: ViTConfig = model.config
    parts = PARTS.get(model.architecture)  # None of a class of the user's own, whose outputs are its own
    if wanted.outputs in CLASSES and parts is not None and CLASSIFIERS.isdisjoint(parts):
        raise ValueError(
            f"{type(model).__name__} is no classifier, and has no {wanted.outputs}: ask for features"
            f"{'' if isinstance(config, ViTMAEConfig) else ' or states'}."
        )
    if wanted.outputs in CLASSES and not config.num_labels:
        raise ValueError(f"The model has num_labels=0 and so no {wanted.outputs}: ask for features or states.")
    if wanted.outputs in ("probabilities", "labels") and score_function(config) == "none":
        raise ValueError(f"A regression has no {wanted.outputs}: ask for logits, which are its answer.")
    if wanted.outputs == "states" and isinstance(config, ViTMAEConfig):
        raise ValueError("An MAE draws the patches that it keeps, and has other states each time: ask for features.")
    if (attention := config.attn_implementation) not in (None, "sdpa", "eager"):
        raise ValueError(
            f'attn_implementation="{attention}" is not exported: load with "sdpa", which computes the same.'
        )
    if getattr(getattr(model, "module", None), "scan_layers", False):
        raise ValueError("A model with scan_layers=True is not exported: load it without, its weights are the same.")
    if wanted.any_size and config.position_kernel == "hf-4.44":
        raise ValueError(
            "position_kernel='hf-4.44' leaves positions alone at the model's own size, which a file for any size can't "
            "tell: leave size out of dynamic."
        )
    if wanted.any_size and target.whole_patches and (words := unseen(config)):
        raise ValueError(f"{words} A file for any size takes whole patches alone: leave size out of dynamic.")
    if config.dtype == "bfloat16":
        raise ValueError("Exported files hold no bfloat16: load the model in float32.")


def _prepared(wanted: Exported, config: ViTConfig, processor: ViTImageProcessor) -> Exported:
    """With what prepares its pictures, or their size. Raises ValueError for those that do not fit the model."""
    if wanted.input == "pixels":
        size = Steps.checked(vars(processor)).made
        if wanted.any_size or size is None:
            return wanted
        check_pixel_values((1, config.num_channels, *size), config, interpolates(config, None))
        return replace(wanted, size=size)
    if wanted.input == "bytes" and config.num_channels != 3:
        raise ValueError(f"Bytes are decoded to 3 channels, and the model takes {config.num_channels}: ask for image.")
    preparation = Preparation.of(processor, config.num_channels)
    check_pixel_values((1, config.num_channels, *preparation.size), config, interpolates(config, None))
    return replace(wanted, preparation=preparation, size=preparation.size)


def _documents(config: ViTConfig, processor: ViTImageProcessor, wanted: Exported) -> dict[str, str]:
    found = {PREPROCESSOR_NAME: processor.to_json_string()}
    if wanted.outputs in CLASSES:
        lines = (" ".join(str(config.id2label[i]).split()) for i in range(config.num_labels))
        found[LABELS_NAME] = "\n".join(lines) + "\n"
    return found


# ---- what is left -------------------------------------------------------------------------------------------------


def _move(stage: Path, out: Path) -> None:
    """Put what was written in its place, what users name as the last; a folder that can't be leaves the old."""
    written = sorted(stage.iterdir(), key=lambda path: path.name == out.name)
    for path in written:
        place, before = out.parent / path.name, stage / f".{path.name}"  # which goes with the stage
        if not path.is_dir():
            os.replace(path, place)
            continue
        try:
            if place.exists():
                os.rename(place, before)
            os.rename(path, place)
        except BaseException:
            if before.exists() and not place.exists():
                os.rename(before, place)
            raise
    data = weights_beside(out)
    if out.is_file() and out.suffix.lower() == TARGETS["onnx"].suffix and stage / data.name not in written:
        data.unlink(missing_ok=True)  # of the file that was overwritten

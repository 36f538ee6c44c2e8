"""What every member of the family can because it is the same block: saved, frozen, recomputed, exported, shown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from adapters import with_noise
from closeness import assert_close
from command import Command
from conftest import CHECKPOINTS
from members import BACKBONES, BARE, CLASSIFIERS, MODELS, PRETRAINED, config_for, field_of

from vit_core.app.backends import BACKENDS, is_installed
from vit_core.app.cli import main
from vit_core.config import AutoConfig
from vit_core.family import ARCHITECTURES, VIT
from vit_core.pictures.processing import DeiTImageProcessor

OTHERS = tuple(name for name in MODELS if ARCHITECTURES[name] is not VIT)
TEACHER = "DeiTForImageClassificationWithTeacher"
TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "image_size": 16,
    "patch_size": 4, "encoder_stride": 4, "num_labels": 3, "initializer_range": 0.3,
}  # fmt: skip
PIXELS = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
SAME = tolerances.SAME_FUNCTION_FLOAT64


FILES = ({}, {"save_format": "tf"}, {"save_format": "flax"}, {"safe_serialization": False})
# What a backend has no part in is the file: each has every class and every file.
SAVED = [(name, cls, FILES[(i + j) % len(FILES)]) for j, name in enumerate(BACKENDS) for i, cls in enumerate(OTHERS)]


@pytest.mark.parametrize(("backend", "cls", "saved"), SAVED, indirect=["backend"])
def test_what_is_saved_comes_back(backend: Any, cls: str, saved: dict[str, Any], tmp_path: Path) -> None:
    model = backend.build(cls, config_for(cls, **{**TINY, "num_hidden_layers": 1}), seed=0)
    model.save_pretrained(tmp_path, **saved)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (type(config), config.architectures) == (model.config_class, [cls])
    again, report = getattr(backend.package, backend.prefix + cls).from_pretrained(tmp_path, output_loading_info=True)
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    for name, array in backend.parameters(model).items():
        np.testing.assert_array_equal(backend.parameters(again)[name], array, err_msg=name)


@pytest.mark.parametrize("cls", OTHERS)
def test_it_starts_as_its_table_says(backend: Any, cls: str) -> None:
    """As transformers starts it, with a seed and without: tokens of zeros, scales of one value, the rest drawn."""
    zeros = {"distillation_token", "mask_token", "register_tokens"}
    zeros |= {"cls_token", "position_embeddings"} if cls.startswith(("DeiT", "ViTMSN", "Beit")) else set()
    zeros |= {"relative_position_bias_table"}
    zeros = zeros if cls not in PRETRAINED else set()
    config = config_for(cls, **{**TINY, "num_hidden_layers": 1}, layer_scale=0.5)
    for seed in ({}, {"seed": 3}):
        for name, array in backend.parameters(backend.build(cls, config, **seed)).items():
            assert (not array.any()) == (name.endswith("bias") or name.rpartition(".")[2] in zeros), name
            assert not name.endswith("scale") or (array == 0.5).all()


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_the_head_alone_is_trained(backend: Any, cls: str) -> None:
    model = backend.build(cls, config_for(cls, **TINY))
    heads = {name for group in model.parameter_groups(freeze=True) for name in group.names}
    whole = [name for group in model.parameter_groups(layer_decay=0.5) for name in group.names]
    assert all("classifier" in name for name in heads)
    assert len(heads) == (4 if cls == TEACHER else 2)
    assert sorted(whole) == sorted(model.specs())


def test_logits_are_the_mean_of_both_heads(backend: Any) -> None:
    model = backend.build(TEACHER, config_for(TEACHER, **TINY), dtype="float64", seed=0)
    output = backend.call(model, pixel_values=PIXELS.astype(np.float64))
    assert list(output) == ["logits", "cls_logits", "distillation_logits"]
    assert_close(output.logits, (output.cls_logits + output.distillation_logits) / 2, SAME)


LABELS, LOGITS = np.array([0, 2]), np.array([[0.2, 1.0, -0.5], [0.1, -2.0, 1.5]])


@pytest.mark.parametrize(
    ("kind", "weight", "temperature"), [("hard", 0.5, 1.0), ("soft", 0.1, 3.0), ("soft", 1.0, 1.0), ("hard", 0.0, 1.0)]
)
def test_the_losses_of_distillation(backend: Any, kind: str, weight: float, temperature: float) -> None:
    """Equations 2 and 3 of the paper."""
    given = {"distillation": kind, "distillation_weight": weight, "distillation_temperature": temperature}
    model = backend.build(TEACHER, config_for(TEACHER, **TINY, **given), dtype="float64", seed=0)
    call = {"pixel_values": PIXELS.astype(np.float64), "labels": LABELS}
    output = backend.call(model, **call, teacher_logits=LOGITS)

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    rows = np.arange(2)
    ours, theirs = (log_softmax(output[f"{name}_logits"]) for name in ("cls", "distillation"))
    if kind == "hard":
        term = -theirs[rows, LOGITS.argmax(1)].mean()
    else:
        student, teacher = (log_softmax(x / temperature) for x in (output.distillation_logits, LOGITS))
        term = temperature**2 * (np.exp(teacher) * (teacher - student)).sum(1).mean()
    assert_close(float(output.loss), (1 - weight) * -ours[rows, LABELS].mean() + weight * term, SAME)
    alone = backend.call(model, **call).loss
    assert_close(float(alone), -log_softmax(output.logits)[rows, LABELS].mean(), SAME)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"teacher_logits": LOGITS}, "beside labels of classes, (batch,): got no labels."),
        ({"teacher_logits": LOGITS[:, :2], "labels": LABELS}, "(num_labels=3): got (2, 2)."),
        ({"teacher_logits": LOGITS, "labels": LOGITS}, "got labels of problem_type 'multi_label_classification'."),
    ],
)
def test_a_teacher_that_does_not_fit(backend: Any, call: dict[str, Any], words: str) -> None:
    model = backend.build(TEACHER, config_for(TEACHER, **TINY))
    call = {name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in call.items()}
    with pytest.raises(ValueError, match=re.escape(words)):
        backend.call(model, pixel_values=PIXELS, **call)


def test_how_a_teacher_is_learned_from_is_checked() -> None:
    for given, words in (
        ({"distillation": "both"}, "distillation must be hard or soft, got 'both'."),
        ({"distillation_weight": 1.5}, "distillation_weight must be a number from 0 to 1, got 1.5."),
        ({"distillation_temperature": 0}, "distillation_temperature must be above 0, got 0."),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            config_for(TEACHER, **given)


# Every trunk, and every head that is more than a linear layer.
COMPILED = (
    "DeiTModel", TEACHER, "BeitModel", "BeitForMaskedImageModeling", "ViTMAEForPreTraining", "Dinov2Backbone",
    "Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification", "IJepaModel",
)  # fmt: skip


@pytest.mark.parametrize("cls", COMPILED)
def test_torch_compiles_exports_and_recomputes(cls: str) -> None:
    torch = pytest.importorskip("torch")
    import vit_torch

    # Two layers, the second of which may drop its branches, only where that is looked at: all else costs by the layer.
    one, two = (getattr(vit_torch, cls)(config_for(cls, **TINY).copy(num_hidden_layers=n), seed=0) for n in (1, 2))
    model = one.eval()
    inputs = with_noise(model, {"pixel_values": PIXELS})
    first, inputs = ({name: torch.from_numpy(array[:n]) for name, array in inputs.items()} for n in (1, 2))

    def answer(model: Any, inputs: dict[str, Any]) -> Any:
        found = model(**inputs)[field_of(cls)]
        return found[0] if cls in BACKBONES else found

    expected = answer(model, inputs)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}).module()
    assert torch.equal(answer(program, first), answer(model, first))
    torch._dynamo.reset()
    whole = cls in (*BARE, *PRETRAINED)  # with the trunk's gradients, which are the same under a head
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if whole else "eager")
    assert_close(answer(compiled, inputs), expected, tolerances.both_rounded(model.config))
    gradients, model = [], two
    for recompute in (False, True):
        torch.manual_seed(0)  # of drop path
        model.train().zero_grad()
        if recompute:
            model.gradient_checkpointing_enable()
        answer(model, inputs).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


# ---- the commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command("vit", main, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier with two heads and the processor of its member."""
    folder = Path(shutil.copytree(CHECKPOINTS / "deit_teacher" / "pt_safetensors", tmp_path / "deit"))
    DeiTImageProcessor(size=36, crop_size=32, do_convert_rgb=True).save_pretrained(folder)
    return folder


def test_inspect(run: Command, folder: Path) -> None:
    document = run.json("inspect", folder)
    assert document["architecture"] == TEACHER
    assert not (document["missing"] or document["unexpected"] or document["mismatched"])
    assert [each["name"] for each in document["parameters"]][:2] == [
        "embeddings.cls_token", "embeddings.distillation_token",
    ]  # fmt: skip
    assert "distillation_classifier" in run("inspect", folder).out


def test_classify_and_attend(backend: Any, run: Command, folder: Path, tmp_path: Path) -> None:
    from vit_core.assets import DIGITS

    picture = next(iter(sorted((DIGITS / "pictures").glob("*.png"))))
    document = run.json("classify", picture, "--model", folder, "--backend", backend.name)
    pixels = DeiTImageProcessor.from_pretrained(folder)(picture, return_tensors="np").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    logits = backend.call(backend.load(TEACHER, folder), pixel_values=pixels).logits[0]
    assert document["images"][0]["predictions"][0]["label"] == f"LABEL_{int(logits.argmax())}"
    run("attend", picture, "--model", folder, "--backend", backend.name, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size


@pytest.mark.parametrize("name", ["deit", "deit_cls", "deit_mask_token", "deit_mim", "mae", "mae_pretraining", "msn"])
def test_verify(run: Command, name: str) -> None:
    if sum(map(is_installed, BACKENDS)) < 2:
        pytest.skip("one framework by itself agrees with none")
    document = run.json("verify", CHECKPOINTS / name / "pt_safetensors", "--dtype", "float64")
    assert document["agree"]
    fields = {each["output"].partition("[")[0] for each in document["differences"]}
    assert fields >= {
        {"deit_cls": "logits", "deit_mim": "reconstruction", "mae_pretraining": "loss"}.get(name, "last_hidden_state")
    }

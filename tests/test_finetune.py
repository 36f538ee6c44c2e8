"""The fine-tuning and pre-training scripts of examples/ in every framework: their files, agreement, and resumption."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trainings
from adapters import BACKENDS
from closeness import assert_close
from command import interruptible
from compilation import leave_graphs
from PIL import Image
from safetensors.numpy import load_file
from tolerances import SAME_FUNCTION_FLOAT64, SAME_LOSS, UNIT_ROUNDOFF, rounding
from trainings import losses, need, run, run_here, table, write_deit, write_digits

import conversion
from vit_core.app.backends import run as outputs_of
from vit_core.assets import DIGITS
from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import Dinov2Config, ViTMAEConfig
from vit_core.parameter_groups import parameter_groups
from vit_core.params import specs
from vit_core.pictures.processing import AutoImageProcessor, DeiTImageProcessor, ViTImageProcessor
from vit_core.training import Settings, ahead

FLAGS = ("--epochs", 2, "--batch-size", 16, "--accumulate", 2, "--ema", 0.9, "--mixup", 0.2, "--gradient-checkpointing")
SMALL = ViTConfig.from_pretrained(
    DIGITS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
SAME_RATE = 1e-6  # relative to the highest


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), per_class=8)


@pytest.fixture(scope="module", params=list(trainings.FRAMEWORKS))
def framework(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


class Runs:
    """Whole runs of `vit finetune` with `FLAGS`, each made when it is first asked for."""

    def __init__(self, pictures: Path, model: Path, folder: Path) -> None:
        self.pictures, self.model, self.folder, self.output = pictures, model, folder, dict[str, str]()

    def __call__(self, framework: str) -> Path:
        out = self.folder / framework
        if framework not in self.output:
            arguments = ("--backend", trainings.BACKENDS[framework], "--model", self.model, "--out", out, *FLAGS)
            self.output[framework] = run_here("finetune", self.pictures, *arguments)
        return out


@pytest.fixture(scope="module")
def runs(pictures: Path, shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(pictures, shallow, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the digits drawn at random, of two layers: paths of the last one can be dropped."""
    need("torch")
    folder = tmp_path_factory.mktemp("small")
    config = SMALL.copy(num_hidden_layers=2)
    import_module("vit_torch").ViTForImageClassification(config, seed=1).save_pretrained(folder)
    ViTImageProcessor.from_pretrained(DIGITS).save_pretrained(folder)
    return folder


# ---- fine-tuning -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_run_leaves(framework: str, runs: Runs) -> None:
    out = runs(framework)
    assert (
        "64 pictures to train on, 16 to validate on, in 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        in runs.output[framework]
    )
    epochs, steps = table(out / "metrics.csv"), table(out / "steps.csv")
    assert [list(rows[0]) for rows in (epochs, steps)] == [
        ["epoch", "loss", "val_loss", "val_accuracy"],
        ["step", "epoch", "loss", "learning_rate"],
    ]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert epochs[1]["val_loss"] < 0.95 * epochs[0]["val_loss"]
    logged = events(out)
    assert [event.value for event in logged["loss"]] == pytest.approx(losses(out))
    assert [event.step for event in logged["val_accuracy"]] == [4, 8]
    with Image.open(out / "curves.png") as curves:
        assert curves.size == (1350, 350)
        assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= set(curves.convert("RGB").get_flattened_data())
    with Image.open(out / "confusion.png") as confusion:
        assert confusion.size == (381, 381)
    best = max(epochs, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    for said in (
        f"Model: {runs.model}, ViTForImageClassification, 39,818 parameters, 24x24 pixels\n",
        f"Best epoch: {best['epoch']:.0f} of 2, val_accuracy {best['val_accuracy']:.4f}",
        f"Confusion matrix of the held-out pictures: {out / 'confusion.png'}\n",
        f"Next: vit classify PICTURES --model {out}\n",
    ):
        assert said in runs.output[framework]
    config = ViTConfig.from_pretrained(out)
    assert config.id2label == {i: str(i) for i in range(10)}
    assert ViTImageProcessor.from_pretrained(out).size == {"height": 24, "width": 24}


def events(out: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(out)
    )
    accumulator.Reload()
    return {name: accumulator.Scalars(name) for name in accumulator.Tags()["scalars"]}


@pytest.mark.slow
def test_every_backend_loads_it(framework: str, runs: Runs, pictures: Path) -> None:
    out = runs(framework)
    image = Image.open(pictures / "3" / sorted(p.name for p in (pictures / "3").iterdir())[0])
    pixels = ViTImageProcessor.from_pretrained(out)(image, return_tensors="np").pixel_values
    found = []
    for make in BACKENDS.values():
        try:
            backend = make()
        except ImportError:
            continue
        model = backend.load("ViTForImageClassification", out, dtype="float64")
        found.append(np.asarray(backend.call(model, pixel_values=pixels).logits))
    assert len(found) > 1
    for logits in found[1:]:
        assert_close(logits, found[0], SAME_FUNCTION_FLOAT64)


@pytest.mark.slow
def test_the_same_losses_as_in_pytorch(framework: str, runs: Runs) -> None:
    need("torch")
    ours, torch = (table(runs(name) / "steps.csv") for name in (framework, "torch"))
    for name, tolerance in (("learning_rate", SAME_RATE), ("loss", SAME_LOSS)):
        found, expected = ([row[name] for row in rows] for rows in (ours, torch))
        assert_close(found, expected, tolerance, name)
    for row, expected in zip(*(table(runs(name) / "metrics.csv") for name in (framework, "torch")), strict=True):
        assert_close(row, expected, SAME_LOSS, each=True)


@contextmanager
def as_users_have(framework: str) -> Iterator[None]:
    """A framework as it is in a process of its own, without what this suite has changed of it."""
    if framework == "keras":
        import_module("tensorflow").config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    with import_module("vit_flax.exporting").enable_x64(False) if framework == "jax" else nullcontext():
        yield


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(framework: str, pictures: Path, small: Path, tmp_path: Path) -> None:
    """With all that is drawn: the order of pictures, what is mixed, paths that are dropped; by the script and `vit`."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = (*FLAGS[:-1], "--drop-path", 0.3, "--model", small)  # all but what is computed twice
    backend = ("--backend", trainings.BACKENDS[framework])
    run(f"finetune_{framework}.py", pictures, "--out", killed, *flags, dies=True, code=-signal.SIGKILL)
    assert not (killed / "model.safetensors").exists()
    with as_users_have(framework):
        for out in (whole, killed):
            output = run_here("finetune", pictures, *backend, "--out", out, *flags)
    assert "Resumed after epoch 1" in output
    assert table(killed / "steps.csv") == table(whole / "steps.csv")
    assert ViTConfig.from_pretrained(killed).drop_path_rate == 0.3
    expected, actual = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.slow
def test_a_frozen_trunk_at_a_higher_resolution(framework: str, pictures: Path, tmp_path: Path) -> None:
    need("torch")
    config = ViTConfig(
        image_size=56, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    vit_torch = import_module("vit_torch")
    vit_torch.ViTForImageClassification(config, seed=1).save_pretrained(tmp_path / "small")
    ViTImageProcessor(size=56).save_pretrained(tmp_path / "small")
    settings = settings_of(
        framework, "finetune", pictures, tmp_path / "large", model=str(tmp_path / "small"), image_size=96, freeze=True,
        epochs=1, batch_size=64, precision="bfloat16",
    )  # fmt: skip
    before, after = weights(tmp_path / "small"), weights(tmp_path / "large")
    name = "embeddings.position_embeddings"
    assert before.pop(name).shape == (1, 7 * 7 + 1, 16) and after[name].shape == (1, 12 * 12 + 1, 16)
    resized = vit_torch.ViTForImageClassification.from_pretrained(tmp_path / "small", image_size=96)
    np.testing.assert_array_equal(after[name], resized.state_dict()[f"vit.{name}"].numpy())
    for name, array in before.items():
        if not name.startswith("classifier"):
            np.testing.assert_array_equal(after[name], array, err_msg=name)
    assert np.abs(after["classifier.bias"]).min() > settings.rate / 100
    assert ViTImageProcessor.from_pretrained(tmp_path / "large").size == {"height": 96, "width": 96}


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The parameters in a folder by canonical name."""
    return {name: tensor.read() for name, tensor in conversion.read(folder).tensors.items()}


def settings_of(framework: str, kind: str, pictures: Path, out: Path, **flags: Any) -> Any:
    """Run a script in this process; returns its settings."""
    script = import_module(f"{kind}_{framework}")
    settings = {"finetune": "FineTuning", "pretrain": "PreTraining"}[kind]
    made = getattr(script, settings)(pictures=pictures, out=out, **flags)
    script.main(made)
    return made


# ---- float16 -----------------------------------------------------------------------------------------------------

STEPS = 4  # of an epoch, each in two parts


@contextmanager
def beginning(
    engine: Any, model_class: Any, folder: Path, precision: str = "float32", config: ViTConfig = SMALL
) -> Iterator[Callable[[], Any]]:
    """What begins a training of a small classifier."""
    flags = {"epochs": 2, "batch_size": 16, "accumulate": 2, "ema": 0.9, "rate": 5e-3, "precision": precision}
    settings = Settings(pictures=folder, out=folder, **flags)
    with engine.processes(settings) as place:
        yield lambda: engine.Trainer(model_class(config, seed=0), engine.class_loss, settings, place, folder, STEPS)


def epoch_of(trainer: Any, largest: float = 1.0) -> list[list[float]]:
    """The losses and learning rates of an epoch of the same eight pictures, of numbers as large as that."""
    pixels = np.random.default_rng(0).standard_normal((8, 3, 24, 24), np.float32) * np.float32(largest)
    parts = [(pixels, np.eye(8, 10, dtype=np.float32))] * (2 * STEPS)
    return [[*map(float, each)] for each in trainer.epoch(parts, lambda: None)]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "keras"], indirect=True)
def test_float16_skips_what_overflows(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a step moves nothing but the loss scale, which a checkpoint holds; where all are such, the run ends.

    Clipped before the loss scale is taken out, gradients would give losses 0.03 away.
    """
    package = {"torch": "vit_torch", "keras": "vit_tf"}[framework]
    engine, model_class = import_module(f"{package}.engine"), import_module(package).ViTForImageClassification
    with beginning(engine, model_class, tmp_path / "float32", "float32") as begin:
        exact, _ = epoch_of(begin())
    monkeypatch.setattr(engine, "LOSS_SCALE", 2.0**20)
    with beginning(engine, model_class, tmp_path / "float16", "float16") as begin:
        whole = begin()
        first, rates = epoch_of(whole)
        assert first[0] == first[1] and rates[0] == rates[1]  # the first step was not taken
        whole.save(1)
        resumed = begin()
        assert resumed.resume() == 1
        expected, actual = epoch_of(whole), epoch_of(resumed)
        assert actual == expected
        taken = list(dict.fromkeys(first + expected[0]))[:STEPS]
        assert taken != exact and taken[-1] < 0.9 * taken[0]
        assert_close(taken, exact, rounding(SMALL, "float16"), each=True)
        for name, each in {"whole": whole, "resumed": resumed}.items():
            each.export(tmp_path / name)
        with pytest.raises(ValueError, match=r"not finite, even with a loss scale of 0\.\d+, .* pass --precision bf"):
            [epoch_of(resumed, largest=1e6) for _ in range(10)]
    found, wanted = (weights(tmp_path / name) for name in ("resumed", "whole"))
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# ---- other members, and teachers ---------------------------------------------------------------------------------


def test_a_token_that_no_classifier_reads(framework: str, tmp_path: Path) -> None:
    """It does not learn, and there is no gradient, or state of an optimizer, that something would wait for."""
    package = f"vit_{trainings.BACKENDS[framework]}"
    engine, model_class = import_module(f"{package}.engine"), import_module(package).Dinov2ForImageClassification
    sizes = {"image_size": 24, "patch_size": 12, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Dinov2Config(**sizes, mlp_ratio=1, num_labels=10)
    with beginning(engine, model_class, tmp_path, config=config) as begin:
        whole = begin()
        epoch_of(whole)
        whole.save(1)
        resumed = begin()
        assert resumed.resume() == 1
        assert epoch_of(resumed) == epoch_of(whole)
        if framework == "torch":  # DistributedDataParallel waits for the gradients of what learns
            assert not whole.model.dinov2.embeddings.mask_token.requires_grad


@pytest.mark.slow
def test_a_deit_is_pretrained_then_its_head_trained(framework: str, pictures: Path, tmp_path: Path) -> None:
    need("torch")
    cropping = DeiTImageProcessor(size=27, crop_size=24)
    first = write_deit(tmp_path / "first", "DeiTForMaskedImageModeling", cropping)
    second, third = tmp_path / "second", tmp_path / "third"
    settings_of(framework, "pretrain", pictures, second, model=str(first), epochs=1, batch_size=32, mask_unit=8)
    flags = {"image_size": 32, "freeze": True, "epochs": 1, "batch_size": 32}
    settings_of(framework, "finetune", pictures, third, model=str(second), **flags)
    kinds = [AutoConfig.from_pretrained(folder).architectures for folder in (second, third)]
    assert kinds == [["DeiTForMaskedImageModeling"], ["DeiTForImageClassification"]]
    before, after = weights(second), weights(third)
    assert after["embeddings.position_embeddings"].shape == (1, 2 + 8 * 8, 32)
    token = "embeddings.distillation_token"
    assert (before[token] != weights(first)[token]).any()
    for name in (token, "encoder.layer.0.output.dense.weight"):
        np.testing.assert_array_equal(after[name], before[name])
    processor = AutoImageProcessor.from_pretrained(third)
    assert (processor.size["height"], processor.crop_size) == (36, {"height": 32, "width": 32})


@pytest.mark.slow
def test_learning_from_a_teacher(framework: str, pictures: Path, tmp_path: Path) -> None:
    """The loss of a step is that of both heads; what is measured and saved is their mean."""
    need("torch")
    student, out = tmp_path / "student", tmp_path / "out"
    write_deit(student, "DeiTForImageClassificationWithTeacher", distillation_weight=0.3)
    flags = {"model": str(student), "teacher": str(DIGITS), "distillation": "soft", "batch_size": 32, "mixup": 0.2}
    settings = settings_of(framework, "finetune", pictures, out, epochs=1, **flags)
    prepare = import_module("vit_core.app.training.finetuning").prepare
    prepared = prepare(settings, partial(getattr, import_module("vit_torch")))
    model, teacher, loader, training, held_out = prepared
    pixels, targets = next(loader.mixed(training, 0, settings.mixup, settings.label_smoothing))
    found, theirs = outputs_of(model, pixels), log_softmax(outputs_of(teacher, pixels)["logits"])
    ours = -(targets * log_softmax(found["cls_logits"])).sum(1).mean()
    distance = (np.exp(theirs) * (theirs - log_softmax(found["distillation_logits"]))).sum(1).mean()
    assert_close(losses(out)[0], 0.7 * ours + 0.3 * distance, SAME_LOSS)
    trained = import_module("vit_torch").AutoModelForImageClassification.from_pretrained(out)
    assert type(trained) is type(model)
    assert (trained.config.distillation, trained.config.distillation_weight) == ("soft", 0.3)
    scores = import_module("vit_core.app.training.batches").evaluate(
        lambda pixels: outputs_of(trained, pixels)["logits"], loader.validation(held_out)
    )
    assert_close(table(out / "metrics.csv")[-1]["val_loss"], scores["val_loss"], SAME_LOSS)
    if framework != "keras":
        import_module("gather").main(out / "checkpoints", tmp_path / "gathered", None)
        for name, array in weights(out).items():
            np.testing.assert_array_equal(weights(tmp_path / "gathered")[name], array, err_msg=name)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def test_teachers_that_do_not_fit(pictures: Path, tmp_path: Path) -> None:
    need("torch")
    finetuning, vit_torch = import_module("vit_core.app.training.finetuning"), import_module("vit_torch")
    deit = write_deit(tmp_path / "deit", "DeiTForImageClassification")
    headless = write_deit(tmp_path / "headless", "DeiTModel")
    fewer = tmp_path / "fewer"
    shutil.copytree(pictures, fewer, ignore=shutil.ignore_patterns("9"))
    darker = write_deit(tmp_path / "darker", "DeiTForImageClassification", ViTImageProcessor(image_mean=[0.4] * 3))

    def prepared(**flags: Any) -> Any:
        flags = {"pictures": pictures, "out": tmp_path / "out", "model": str(deit), "teacher": str(DIGITS)} | flags
        return finetuning.prepare(finetuning.FineTuning(**flags), partial(getattr, vit_torch))

    model, teacher, *_ = prepared()
    assert (type(model).__name__, type(teacher).__name__) == (
        "DeiTForImageClassificationWithTeacher", "ViTForImageClassification",
    )  # fmt: skip
    assert not teacher.training and model.config.distillation == "hard"
    for flags, words in (
        ({"teacher": None, "distillation": "soft"}, "--distillation soft says how to learn from a teacher, and there"),
        ({"distillation": "firm"}, "--distillation must be hard or soft, got firm"),
        ({"model": str(DIGITS)}, "is a ViT, without one: pass a DeiT as --model"),
        ({"image_size": 48}, r"takes pixels of height and width \(24, 24\), and the model, .* of \(48, 48\)"),
        ({"teacher": str(darker)}, r"takes pixels of mean \(0.4, 0.4, 0.4\), and the model, .* of \(0.5, 0.5, 0.5\)"),
        ({"teacher": str(headless)}, "headless lacks classifier.weight, classifier.bias: pass a classifier"),
        ({"teacher": str(tmp_path / "none")}, "--teacher .*none.* does not exist"),
        ({"pictures": fewer}, "has 10 classes, the pictures 9, and the first that differs is 9, not none"),
        ({"classes": "1,0,2,3,4,5,6,7,8,9"}, "the first that differs is 0, not 1: pass a teacher of these classes"),
    ):
        with pytest.raises(ValueError, match=words):
            prepared(**flags)


# ---- pre-training ------------------------------------------------------------------------------------------------


class PreTrained:
    """Short pre-trainings, each made when it is first asked for."""

    def __init__(self, pictures: Path, model: Path, folder: Path) -> None:
        self.pictures, self.model, self.folder = pictures, str(model), folder

    def __call__(self, framework: str, method: str = "simmim") -> Path:
        out = self.folder / f"{framework}-{method}"
        if not out.exists():
            self.train(framework, method, out)
        return out

    def train(self, framework: str, method: str, out: Path) -> None:
        leave_graphs()  # also in the test that has imported TensorFlow: another graph rounds otherwise
        flags = {"epochs": 2, "batch_size": 16, "method": method, "scratch": True, "rate": 1e-2}
        settings_of(framework, "pretrain", self.pictures, out, model=self.model, **flags, **OF_METHOD[method])


OF_METHOD: dict[str, dict[str, Any]] = {
    "simmim": {"mask_unit": 8},
    "mae": {"decoder_layers": 1, "decoder_width": 32},
    "beit": {"tokenizer": "kmeans", "vocabulary": 64},
}
MADE = {
    "simmim": "ViTForMaskedImageModeling",
    "mae": "ViTMAEForPreTraining",
    "beit": "BeitForMaskedImageModeling",
}


@pytest.fixture(scope="module")
def pretrained(pictures: Path, shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrained:
    return PreTrained(pictures, shallow, tmp_path_factory.mktemp("pretrained"))


@pytest.mark.slow
@pytest.mark.parametrize("method", OF_METHOD)
def test_pretraining(framework: str, method: str, pretrained: PreTrained) -> None:
    out = pretrained(framework, method)
    found = losses(out)
    assert found[-1] < (0.96 if method == "beit" else 0.9) * found[0]  # a token of 64 is harder to tell than a grey
    assert AutoConfig.from_pretrained(out).architectures == [MADE[method]]
    assert [list(row) for row in table(out / "metrics.csv")] == [["epoch", "loss", "val_loss"]] * 2
    with Image.open(out / "reconstructions.png") as picture:
        assert picture.size == (600, 1200)
        assert len(set(picture.convert("L").get_flattened_data())) > 100
    need("torch")
    assert_close(found, losses(pretrained("torch", method)), SAME_LOSS, each=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", OF_METHOD)
@pytest.mark.filterwarnings("ignore:transformers' ViT has no place for a head on the mean")
def test_fine_tuning_what_was_pretrained(method: str, pretrained: PreTrained, pictures: Path, tmp_path: Path) -> None:
    need("torch")
    first = str(pretrained("torch", method))
    flags = {"pool": "mean"} if method == "mae" else {}
    settings_of("torch", "finetune", pictures, tmp_path, model=first, epochs=1, batch_size=32, freeze=True, **flags)
    before, after = weights(Path(first)), weights(tmp_path)
    name = "encoder.layer.0.output.dense.weight"
    np.testing.assert_array_equal(after[name], before[name])
    layers = ["classifier"] + {"simmim": [], "mae": ["fc_norm"], "beit": ["pooler.layernorm"]}[method]
    assert set(after) - set(before) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    member = "Beit" if method == "beit" else "ViT"
    assert AutoConfig.from_pretrained(tmp_path).architectures == [f"{member}ForImageClassification"]


@pytest.mark.slow
def test_a_killed_pretraining_ends_as_one_that_was_not(pictures: Path, small: Path, tmp_path: Path) -> None:
    """Of BEiT, whose visual tokens are fitted once, by `vit` and the script; `test_scale_jax` has MAE."""
    flags = [f"--{name}={value}" for name, value in {"method": "beit", **OF_METHOD["beit"]}.items()]
    common = ("--epochs", 2, "--batch-size", 24, "--scratch", "--model", small, *flags)
    output = run_here("pretrain", pictures, "--backend", "torch", "--out", tmp_path / "whole", *common)
    assert "Fitting 64 visual tokens to the patches of 72 pictures." in output
    assert f"Next: vit finetune FOLDER --model {tmp_path / 'whole'}\n" in output
    killed = tmp_path / "killed"
    run("pretrain_torch.py", pictures, "--out", killed, *common, dies=True, code=-signal.SIGKILL)
    fitted = (killed / "codebook.npz").read_bytes()
    output = run_here("pretrain", pictures, "--backend", "torch", "--out", killed, *common)
    assert "Resumed after epoch 1" in output and "Fitting" not in output
    assert (killed / "codebook.npz").read_bytes() == fitted
    assert table(killed / "metrics.csv") == table(tmp_path / "whole" / "metrics.csv")
    expected, actual = (weights(tmp_path / name) for name in ("whole", "killed"))
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.slow
def test_a_pretraining_in_keras_goes_on_from_its_checkpoint(
    pretrained: PreTrained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an MAE, whose noise is drawn, from what a kill in the second epoch leaves; it ends in the same bits."""
    need("keras")
    whole, folder = pretrained("keras", "mae"), tmp_path / "keras-mae"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("epoch-2.*", "*.safetensors"))
    (folder / "checkpoints" / "checkpoint").write_text('model_checkpoint_path: "epoch-1"\n')
    pretrained.train("keras", "mae", folder)
    assert "Resumed after epoch 1" in capsys.readouterr().out
    assert table(folder / "steps.csv") == table(whole / "steps.csv")
    expected, actual = (load_file(each / "model.safetensors") for each in (whole, folder))
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_masks(tmp_path: Path) -> None:
    need("torch")
    pretraining = import_module("vit_core.app.training.pretraining")
    config = ViTConfig(image_size=(64, 96), patch_size=16)
    settings = pretraining.PreTraining(pictures=tmp_path, out=tmp_path, mask_ratio=0.5)
    masks = pretraining.method_of(settings, config)
    (found,) = masks(np.arange(20), epoch=0)
    assert found.shape == (20, 4 * 6) and found.dtype == bool
    assert (found.sum(1) == 12).all()  # half of 2 x 3 squares of 2 x 2 patches
    squares = found.reshape(20, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4).reshape(20, 6, 4)
    assert (squares.all(2) | ~squares.any(2)).all()
    assert len(np.unique(found, axis=0)) > 5
    np.testing.assert_array_equal(found, *masks(np.arange(20), epoch=0))
    assert (found != masks(np.arange(20), epoch=1)[0]).any()
    wrong = pretraining.PreTraining(pictures=tmp_path, out=tmp_path, mask_unit=24)
    with pytest.raises(ValueError, match="--mask-unit 24 must be a multiple of the patches, 16x16"):
        pretraining.method_of(wrong, config)


SMALL_MAE = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "image_size": (16, 24), "patch_size": 4, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24,
}  # fmt: skip


def test_what_an_mae_hides_and_predicts(tmp_path: Path) -> None:
    """The script's own error and picture are those of the model."""
    need("torch")
    import torch

    import vit_torch

    masking, config = import_module("vit_core.app.training.masking"), ViTMAEConfig(**SMALL_MAE, norm_pix_loss=True)
    method, model = masking.MAE(config, seed=0), vit_torch.ViTMAEForPreTraining(config, seed=0).eval().double()
    pixels, (noise,) = np.random.default_rng(0).random((3, 3, 16, 24)), method(np.arange(3), epoch=0)
    assert (noise.shape, noise.dtype) == ((3, 24), np.float32)
    np.testing.assert_array_equal(noise, *method(np.arange(3), epoch=0))
    with torch.no_grad():
        output = model(torch.from_numpy(pixels).to(model.device), noise=torch.from_numpy(noise).to(model.device))
    hidden, predicted = method.hidden(noise), output.logits.cpu().numpy()
    np.testing.assert_array_equal(hidden, output.mask.cpu().numpy() == 1)
    assert_close(float(method.errors(predicted, pixels)[hidden].mean()), float(output.loss), SAME_FUNCTION_FLOAT64)
    patches = masking.patches_of(pixels, config)
    np.testing.assert_array_equal(patches, model.patchify(torch.from_numpy(pixels)).numpy())
    scaled = (patches - patches.mean(2, keepdims=True)) / np.sqrt(patches.var(2, ddof=1, keepdims=True) + 1e-6)
    assert_close(method.picture(scaled, pixels), pixels, SAME_FUNCTION_FLOAT64)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_of_so_many_channels(channels: int, mode: str) -> None:
    need("torch")
    batches, pretraining = (import_module(f"vit_core.app.training.{name}") for name in ("batches", "pretraining"))
    config = SMALL.copy(num_channels=channels)
    processor = ViTImageProcessor(size=24, image_mean=[0.4] * channels, image_std=[0.3] * channels)
    loader, path = batches.Loader(processor, config, 1, 0, augment=True), DIGITS / "pictures" / "2-1466.png"
    with Image.open(path) as picture:
        array = np.atleast_3d(np.asarray(picture.convert(mode)))
    pixels = loader.read(path, 0)
    expected = processor(array, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(pixels, expected)
    turned = loader.read(path, 0, epoch=1)
    assert turned.shape == pixels.shape and (turned != pixels).any()
    shown = (0.3 * pixels[:3] + 0.4).transpose(1, 2, 0)
    np.testing.assert_allclose(pretraining._picture(pixels, loader), np.broadcast_to(shown, (24, 24, 3)), atol=1e-6)


@pytest.mark.parametrize("method", ["simmim", "mae", "beit"])
def test_edges_that_no_patch_covers_are_left_out(method: str) -> None:
    """Of pictures that are no whole number of patches, as of those that are: errors, tokens and what is drawn."""
    need("torch")
    masking, pretraining = (import_module(f"vit_core.app.training.{name}") for name in ("masking", "pretraining"))
    visual_tokens, random = import_module("vit_core.app.training.visual_tokens"), np.random.default_rng(0)

    def found(image_size: tuple[int, int], pixels: np.ndarray) -> tuple[float, dict[str, Any]]:
        config = ViTMAEConfig(**{**SMALL_MAE, "image_size": image_size}, norm_pix_loss=True)
        made = {
            "simmim": masking.SimMIM(config, 0, 0.5, (1, 1)),
            "mae": masking.MAE(config, 0),
            "beit": masking.BEiT(config, 0, 0.4, visual_tokens.KMeans(config, centres)),
        }[method]
        drawn = made(np.arange(3), 0, pixels, [])
        batch = (pixels, drawn, made.hidden(*drawn))
        loader = SimpleNamespace(config=config, processor=ViTImageProcessor())
        columns = pretraining.reconstructions(lambda *_: predictions[method], batch, loader, made)
        return pretraining.evaluate(lambda *_: predictions[method], iter([batch]), made)["val_loss"], columns

    centres = random.random((5, 48), np.float32)
    predictions = {
        name: random.random(shape, np.float32)
        for name, shape in (("simmim", (3, 3, 16, 24)), ("mae", (3, 24, 48)), ("beit", (3, 24, 5)))
    }
    pixels = random.random((3, 3, 18, 27), np.float32)
    (error, columns), (expected, those) = found((18, 27), pixels), found((16, 24), pixels[:, :, :16, :24])
    assert error == expected
    for name, images in columns.items():
        np.testing.assert_array_equal(images, those[name])
    config = ViTMAEConfig(**{**SMALL_MAE, "image_size": (18, 27)})
    dalle = visual_tokens.DallE(lambda colours, grid: (colours.shape, grid), config, ViTImageProcessor())
    assert dalle(pixels, []) == ((3, 3, 16, 24), (4, 6))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"method": "dino"}, "--method must be simmim or mae or beit, got dino."),
        ({"method": "mae", "mask_unit": 8}, "--mask-unit is not for --method mae: leave it out."),
        ({"tokenizer": "kmeans"}, "--tokenizer is not for --method simmim: leave it out."),
        ({"method": "beit"}, "pass either --tokens FILE or --tokenizer, kmeans or a folder."),
        ({"method": "beit", "tokenizer": "kmeans", "tokens": Path("a")}, "pass either --tokens FILE or --tokenizer"),
        ({"method": "beit", "tokenizer": "a", "vocabulary": 8}, "--vocabulary is for --tokenizer kmeans: leave it out"),
        (
            {"method": "beit", "tokens": Path("a"), "augment": True, "flip": True},
            "--augment and --flip: --tokens are of the pictures as they are, which stay. Leave it out.",
        ),
        ({"decoder_width": 8, "norm_pix_loss": False}, "--decoder-width, --norm-pix-loss is not for --method simmim"),
    ],
)
def test_flags_of_another_method(flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    need("torch")
    with pytest.raises(ValueError, match=words):
        import_module("vit_core.app.training.pretraining").PreTraining(pictures=tmp_path, out=tmp_path, **flags)


def test_what_a_pretraining_begins_with(pictures: Path, tmp_path: Path) -> None:
    need("torch")
    with pytest.raises(ValueError, match=r"is no MAE's, whose .* trains: pass --model with an MAE's, or --scratch"):
        settings_of("torch", "pretrain", pictures, tmp_path, method="mae")
    with pytest.raises(ValueError, match=r"labels\.csv is a file, expected a folder of pictures\.$"):
        settings_of("torch", "pretrain", pictures / "labels.csv", tmp_path)
    vit_torch, model = import_module("vit_torch"), tmp_path / "model"
    config = SMALL.copy(patch_size=(4, 6), encoder_stride=16)  # as files say of patches of any size
    vit_torch.ViTForImageClassification(config, seed=0).save_pretrained(model)
    ViTImageProcessor.from_pretrained(DIGITS).save_pretrained(model)
    settings_of("torch", "pretrain", pictures, tmp_path / "out", model=str(model), epochs=1, batch_size=64)
    assert vit_torch.AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "out").config.encoder_stride == (4, 6)


# ---- data --------------------------------------------------------------------------------------------------------


def test_bad_pictures_are_named_before_the_first_step(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need("torch")
    read_pictures = import_module("vit_core.app.training.dataset").read_pictures
    bad = tmp_path / "bad"
    for name in ("cat", "dog", "empty"):
        (bad / name).mkdir(parents=True)
    for name in ("cat", "dog"):
        Image.new("L", (8, 8)).save(bad / name / "fine.png")
    (bad / "dog" / "torn.png").write_bytes((pictures / "labels.csv").read_bytes())
    with pytest.raises(ValueError, match=f"{bad / 'empty'} holds no picture") as error:
        read_pictures(bad)
    assert str(bad / "dog" / "torn.png") in str(error.value)
    assert "fine.png" not in str(error.value)
    monkeypatch.setattr(sys, "argv", ["finetune_torch.py", str(bad), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(trainings.EXAMPLES / "finetune_torch.py"), run_name="__main__")
    assert ended.value.code == 2 and "holds no picture" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "classes", "expected"),
    [
        (
            "file,label\na.png,cat\nb.png,cow\n",
            "cat,dog",
            "b.png has the label cow, expected one of cat, dog, or 0 to 1",
        ),
        ("file,label\na.png,0\nb.png,2\n", "cat,dog", "b.png has the label 2, expected one of cat, dog, or 0 to 1"),
        ("file,label\na.png,-1\nb.png,1\n", "cat,dog", "a.png has the label -1"),
        ("file,label\na.png,0\nb.png,0\n", "cat,dog", "class dog has no picture"),
        ("file,label\na.png,\nb.png,1\n", None, "a.png has no label"),
        ("file,label\na.png,1\nb.png,1\n", None, "has the class 1 alone, expected two or more"),
        ("file,label\na.png,1\nmissing.png,2\n", None, "missing.png"),
        ("file,class\na.png,1\n", None, "has the columns file, class, but no label"),
        (",".join(map(str, range(12))), None, "has the columns 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more, but no file"),
    ],
)
def test_a_bad_csv(content: str, classes: str | None, expected: str, tmp_path: Path) -> None:
    need("torch")
    for name in "ab":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=expected):
        import_module("vit_core.app.training.dataset").read_pictures(tmp_path / "labels.csv", classes)


def test_a_csv_gives_the_pictures_of_its_folder(pictures: Path) -> None:
    need("torch")
    read_pictures = import_module("vit_core.app.training.dataset").read_pictures
    by_folder, by_table = read_pictures(pictures), read_pictures(pictures / "labels.csv")
    assert by_folder.classes == by_table.classes == [str(i) for i in range(10)]
    assert set(zip(by_folder.paths, by_folder.labels, strict=True)) == set(
        zip(by_table.paths, by_table.labels, strict=True)
    )


def split_folder(root: Path, train: str, held_out: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A folder of two pictures of each class to train on, and one of each to validate on."""
    for part, count in ((train, 2), (held_out, 1)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8)).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "dev", "eval", "test", "Testing"])
def test_folders_of_a_split_are_no_classes(tmp_path: Path, train: str, held_out: str) -> None:
    need("torch")
    root = split_folder(tmp_path / "data", train, held_out)
    training, validation = import_module("vit_core.app.training.dataset").read_split(root, None, 0.5, 0)
    assert (training.classes, validation.classes) == (["cat", "dog"], ["cat", "dog"])
    assert {path.parts[-3] for path in training.paths} == {train} and len(training.paths) == 4
    assert {path.parts[-3] for path in validation.paths} == {held_out} and len(validation.paths) == 2


def test_a_folder_of_none_of_the_classes(tmp_path: Path) -> None:
    need("torch")
    root, read_pictures = tmp_path / "data", import_module("vit_core.app.training.dataset").read_pictures
    split_folder(root, "cat", "dog", ("a", "b"))
    assert read_pictures(root, "dog,cat").classes == ["dog", "cat"]
    with pytest.raises(ValueError, match=r"data/cat is the folder of none of the classes dog, cow; class cow has no"):
        read_pictures(root, "dog,cow")


def test_a_third_folder_is_left_aside_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("torch")
    root = split_folder(tmp_path / "data", "train", "val")
    split_folder(root.parent / "other", "train", "test")
    (root.parent / "other" / "test").rename(root / "test")
    (root / "annotations").mkdir()
    _, validation = import_module("vit_core.app.training.dataset").read_split(root, None, 0.5, 0)
    assert {path.parts[-3] for path in validation.paths} == {"val"}
    assert f"Left aside: {root / 'annotations'}, {root / 'test'}." in capsys.readouterr().out


def test_folders_that_are_no_split(tmp_path: Path) -> None:
    need("torch")
    read_split = import_module("vit_core.app.training.dataset").read_split
    vehicles = split_folder(tmp_path / "vehicles", "train", "car")  # a train beside a car is a class
    assert read_split(vehicles, None, 0.5, 0)[0].classes == ["car", "train"]
    held_out = split_folder(tmp_path / "held-out", "val", "test")
    with pytest.raises(ValueError, match="holds test, val, parts of a split, but none to train on"):
        read_split(held_out, None, 0.5, 0)
    uneven = split_folder(tmp_path / "uneven", "train", "val")
    shutil.copytree(uneven / "train" / "cat", uneven / "train" / "cow")
    with pytest.raises(ValueError, match="must have the same class folders, one alone has cow"):
        read_split(uneven, None, 0.5, 0)
    shutil.rmtree(uneven / "val")
    training, validation = read_split(uneven, None, 0.5, 0)  # train alone: a share of it is held out
    assert training.classes == ["cat", "cow", "dog"] and len(training.paths) == len(validation.paths) == 3


def test_hidden_folders_are_passed_over_at_every_level(tmp_path: Path) -> None:
    need("torch")
    root = split_folder(tmp_path / "data", "cat", "dog", ("a", "b"))
    for hidden in (root / ".hidden", root / "cat" / ".ipynb_checkpoints", root / "cat" / "a" / ".cache" / "b"):
        shutil.copytree(root / "dog" / "a", hidden)
    found = import_module("vit_core.app.training.dataset").read_pictures(root)
    assert len(found.paths) == 6 and found.classes == ["cat", "dog"]


@pytest.mark.filterwarnings("ignore:.*has no preprocessor_config.json")
def test_a_training_file_to_start_from(framework: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What flags hand down to `from_pretrained`, and what an error says of an argument that has no flag."""
    finetuning, golden = import_module("vit_core.app.training.finetuning"), Path(__file__).parent / "golden"
    package = {"torch": "vit_torch", "keras": "vit_tf", "jax": "vit_flax"}[framework]
    class_of = partial(getattr, import_module(package))

    def prepared(**flags: Any) -> Any:
        settings = finetuning.FineTuning(pictures=pictures, out=Path("out"), batch_size=8, **flags)
        return finetuning.prepare(settings, class_of)

    model, _, batches, _, held_out = prepared()
    demo = "the digits demo (choose another with --model PATH_OR_ID), ViTForImageClassification, 173,706 parameters"
    assert f"Model: {demo}, 24x24 pixels\n" in capsys.readouterr().out
    scores = import_module("vit_core.app.training.batches").evaluate(
        lambda pixels: outputs_of(model, pixels)["logits"], batches.validation(held_out)
    )
    assert scores["val_accuracy"] > 0.8
    with pytest.raises(ValueError, match=r"pass num_attention_heads=\. Convert it with vit-convert first"):
        prepared(model=str(golden / "lightning" / "last.ckpt"))
    base = str(golden / "ckpt" / "base" / "pt_safetensors")
    for pooler in ("keep", "drop"):
        assert prepared(model=base, pooler=pooler)[0].config.num_labels == 10
        assert "Drawn anew: classifier.weight, classifier.bias." in capsys.readouterr().out
    prepared(image_size=30)
    assert "Of pictures of 30x30 pixels only 28x28 are seen" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--pooler must be keep or drop, got none"):
        prepared(model=base, pooler="none")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separators_of_a_csv_and_lines_without_a_file(tmp_path: Path, separator: str) -> None:
    need("torch")
    rows = ["label,file", *(f"{label},{label}{i}.png" for label in "ab" for i in range(2))]
    for row in rows[1:]:
        Image.new("L", (8, 8)).save(tmp_path / row.partition(",")[2])
    table, read_pictures = tmp_path / "labels.csv", import_module("vit_core.app.training.dataset").read_pictures
    for written in (separator, f"{separator} ", f" {separator}"):
        table.write_text("\n".join(rows).replace(",", written))
        assert read_pictures(table).classes == ["a", "b"]
    for short in ("b", "b,"):
        table.write_text("\n".join([*rows, short]).replace(",", separator))
        with pytest.raises(ValueError, match=r"line 6 of .*labels\.csv has no file"):
            read_pictures(table)


def test_a_file_that_a_csv_lists_twice_and_columns_that_are_not_read(tmp_path: Path, capsys: Any) -> None:
    need("torch")
    for name in "abcd":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    table, read_pictures = tmp_path / "labels.csv", import_module("vit_core.app.training.dataset").read_pictures
    rows = ["file,label,split", "a.png,x,train", "b.png,y,train", "c.png,x,val", "d.png,y"]
    table.write_text("\n".join([*rows, "a.png,x", "a.png,x"]))
    assert len(read_pictures(table).paths) == 6  # as who wants to see some more often does
    printed = capsys.readouterr().out
    assert "labels.csv: 2 lines repeat a file, which may be trained on and held out at once." in printed
    assert "labels.csv: left out the columns split." in printed
    table.write_text("\n".join([*rows, "a.png,y"]))
    with pytest.raises(ValueError, match=r"a\.png has the labels x and y\.$"):
        read_pictures(table)
    table.write_text("\n".join([*rows, "a.png,"]))
    with pytest.raises(ValueError, match=r"a\.png has no label\.$"):
        read_pictures(table)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_the_encodings_of_a_csv(tmp_path: Path, encoding: str) -> None:
    need("torch")
    for name in "ab":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,Kätzchen\nb.png,Hund\n", encoding=encoding)
    read_pictures = import_module("vit_core.app.training.dataset").read_pictures
    if encoding == "latin-1":
        with pytest.raises(ValueError, match=r"is no text in UTF-8 \(byte 18\), it may be Latin-1: save it as"):
            read_pictures(tmp_path / "labels.csv")
    elif encoding == "utf-16-le":  # without a mark, no text as little as a picture, an archive or a .parquet is
        for path in (tmp_path / "labels.csv", tmp_path / "a.png"):
            with pytest.raises(ValueError, match=r"is no text: expected a folder with .*, or in UTF-16 with its mark"):
                read_pictures(path)
    else:
        assert read_pictures(tmp_path / "labels.csv").classes == ["Hund", "Kätzchen"]


def test_bad_pictures_are_skipped_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("torch")
    root = split_folder(tmp_path / "data", "train", "val")
    (root / "train" / "cat" / "torn.png").write_bytes(b"torn")
    read_split = import_module("vit_core.app.training.dataset").read_split
    with pytest.raises(ValueError, match=r"torn\.png"):
        read_split(root, None, 0.5, 0)
    training, _ = read_split(root, None, 0.5, 0, skip_bad=True)
    assert [path.name for path in training.paths] == ["0.png", "1.png"] * 2
    assert "Left out 1 pictures that can't be read" in capsys.readouterr().out


def test_of_many_bad_pictures_the_first_are_listed(tmp_path: Path) -> None:
    need("torch")
    root = split_folder(tmp_path / "data", "train", "val")
    for i in range(12):
        (root / "train" / "cat" / f"torn{i:02}.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"torn09\.png .*; and 2 more\.$") as raised:
        import_module("vit_core.app.training.dataset").read_split(root, None, 0.5, 0)
    assert "torn10" not in str(raised.value)


def test_what_is_no_picture_of_a_class_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("torch")
    dataset, root = import_module("vit_core.app.training.dataset"), tmp_path / "data"
    split_folder(root, "cat", "dog", ("a",))
    for name in ("IMG_1.XYZ", "cat/a/notes.txt", "dog/list.txt"):
        (root / name).write_text("x")
    Image.new("L", (8, 8)).save(root / "loose.png")
    assert len(dataset.read_pictures(root).paths) == 3
    assert f"{root}: left out 1 pictures in no class folder, 2 .txt, 1 .xyz." in capsys.readouterr().out
    assert len(dataset.find_pictures(root).paths) == 4
    assert f"{root}: left out 2 .txt, 1 .xyz." in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"a has no class, expected two or more, each a folder with its pictures"):
        dataset.read_pictures(root / "cat" / "a")


@pytest.mark.parametrize(
    ("labels", "share", "words"),
    [
        ([0, 0, 0, 1, 2], 0.2, "class dog has one picture, expected two or more; class cow has one picture, expected"),
        (
            [0, 1, 2] * 4,
            0.1,
            r"0\.1 holds out 2 of 12 pictures, and each of 3 classes .* expected 0\.17 to 0\.75",
        ),
        ([0, 1, 2] * 4, 0.9, r"0\.9 holds out 11 of 12 pictures, .* expected 0\.17 to 0\.75"),
        ([*range(45)] * 2 + [0] * 10, 0.55, r"0\.55 holds out 56 of 100 pictures, .* expected 0\.45 to 0\.54"),
        ([0, 0], 0.9, r"0\.9 holds out 2 of 2 pictures, and there must be one to train on .* expected 0\.01 to 0\.5"),
        ([0], 0.1, "the folder has one picture, expected two or more: --validation holds some of them out"),
    ],
)
def test_too_few_pictures_to_hold_some_out(labels: list[int], share: float, words: str) -> None:
    pytest.importorskip("sklearn")
    dataset = import_module("vit_core.app.training.dataset")
    classes = ["cat", "dog", "cow", *map(str, range(3, max(labels) + 1))] if any(labels) else []
    pictures = dataset.Pictures([Path(f"{i}.png") for i in range(len(labels))], np.array(labels), classes)
    with pytest.raises(ValueError, match=words):
        pictures.split(share, 0)


@pytest.mark.parametrize("steps", [1, 7])
def test_ctrl_c_ends_a_run_after_its_step_and_says_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    need("torch")
    settings = Settings(pictures=tmp_path, out=tmp_path, epochs=3)

    def stopped(signals: int) -> None:
        with import_module("vit_core.app.training.run").Run(settings, 5) as run:
            for _ in range(steps - 1):
                run.advance()
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
            assert signals == 1 and run.interrupted  # nothing was raised in the middle of a step
            run.advance()

    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            stopped(1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    said = {
        1: "in epoch 1 of 3. Checkpoints are of whole epochs: the same command starts from the beginning.",
        7: "in epoch 2 of 3. The same command goes on from the checkpoint of the last whole epoch.",
    }
    assert f"Stopped after step {steps} of 15, {said[steps]}" in capsys.readouterr().out
    with interruptible(), pytest.raises(KeyboardInterrupt):
        stopped(2)  # the second one ends it at once


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_what_is_ahead(count: int) -> None:
    taken: list[int] = []
    found = ahead((taken.append(i) or i for i in range(5)), count)
    assert (next(found), len(taken)) == (0, min(count + 1, 5))
    assert [0, *found] == taken == [0, 1, 2, 3, 4]


def test_a_picture_that_can_not_be_prepared_is_named(tmp_path: Path) -> None:
    batches = import_module("vit_core.app.training.batches")
    processor = ViTImageProcessor(size={"shortest_edge": 24}, crop_size=24, do_center_crop=True)
    Image.new("1", (1_000_000, 1)).save(tmp_path / "long.png")
    loader = batches.Loader(processor, ViTConfig.from_pretrained(DIGITS), 16, 0)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/long\.png: A picture of 1000000 x 1 pixels"):
        loader.read(tmp_path / "long.png", 0)


def test_batches_do_not_depend_on_how_they_are_shared_out(pictures: Path) -> None:
    need("torch")
    module = import_module("vit_core.app.training.batches")
    processor, config = ViTImageProcessor.from_pretrained(DIGITS), ViTConfig.from_pretrained(DIGITS)
    found = import_module("vit_core.app.training.dataset").read_pictures(pictures)

    def loader(**options: Any) -> Any:
        return module.Loader(processor, config, 16, 0, augment=True, **options)

    whole = list(loader().mixed(found, 1, mixup=0.5, label_smoothing=0.1))
    assert len(whole) == 5 and whole[0][0].shape == (16, 3, 24, 24)
    assert_close(whole[0][1].sum(1).tolist(), [1.0] * 16, 10 * UNIT_ROUNDOFF["float32"])
    for options in ({"prefetch": 0}, {"prefetch": 9}, {"workers": 0}):
        again = loader(**options).mixed(found, 1, mixup=0.5, label_smoothing=0.1)
        assert all(np.array_equal(*pair) for pair in zip(chain(*again), chain(*whole), strict=True))
    parts = [
        list(loader(accumulate=2, shards=2, shard=s).mixed(found, 1, mixup=0.5, label_smoothing=0.1)) for s in (0, 1)
    ]
    for kind in (0, 1):
        joined = [
            np.concatenate([parts[s][i][kind] for i in (2 * step, 2 * step + 1) for s in (0, 1)]) for step in range(5)
        ]
        for step in range(5):
            np.testing.assert_array_equal(joined[step], whole[step][kind])
    with pytest.raises(ValueError, match="--batch-size 16 can't be cut into 6 equal parts"):
        loader(accumulate=3, shards=2)
    shares = [list(loader(shards=2, shard=s).validation(found)) for s in (0, 1)]
    labels = np.concatenate([b[1] for share in shares for b in share])
    assert sorted(labels[labels != module.PADDING]) == sorted(found.labels)


def test_a_run_with_other_flags_is_not_resumed(runs: Runs, pictures: Path) -> None:
    need("torch")
    module = import_module("vit_core.app.training.finetuning")
    settings = module.FineTuning(pictures=pictures, model=str(runs.model), out=runs("torch"), epochs=9)
    with pytest.raises(ValueError, match="holds a run with epochs: 2, not 9"):
        import_module("vit_core.app.training.run").begin(settings, None, None, "torch")


def test_a_run_is_not_resumed_in_another_framework(runs: Runs, pictures: Path) -> None:
    """Whose checkpoints it would not find, or not read."""
    need("torch")
    begun = import_module("vit_core.app.training.run").begun
    stated = json.loads((runs("torch") / "settings.json").read_text())
    given = {name: stated[name] for name in stated if name not in ("pictures", "out", "backend")}
    settings = import_module("vit_core.app.training.finetuning").FineTuning(
        pictures=pictures, out=runs("torch"), **given
    )
    assert begun(settings, backend="torch")
    with pytest.raises(ValueError, match="holds a run with backend: 'torch', not 'tf': pass the same to resume it"):
        begun(settings, backend="tf")


def test_a_run_that_is_older_than_a_flag_had_its_default(runs: Runs, pictures: Path, tmp_path: Path) -> None:
    need("torch")
    module = import_module("vit_core.app.training.finetuning")
    begun = import_module("vit_core.app.training.run").begun
    stated = json.loads((runs("torch") / "settings.json").read_text())
    del stated["keep"], stated["backend"]
    (tmp_path / "settings.json").write_text(json.dumps(stated))
    given = {name: stated[name] for name in stated if name not in ("pictures", "out")}
    assert begun(module.FineTuning(pictures=pictures, out=tmp_path, **given), backend="tf")
    with pytest.raises(ValueError, match="holds a run with keep: 'last', not 'best'"):
        begun(module.FineTuning(pictures=pictures, out=tmp_path, **given, keep="best"))


# ---- parameter groups --------------------------------------------------------------------------------------------


def test_parameter_groups_of_every_backend(backend: Any) -> None:
    config = ViTConfig.from_pretrained(DIGITS)
    model = backend.load("ViTForImageClassification", DIGITS)
    groups = model.parameter_groups(layer_decay=0.5)
    names = [name for group in groups for name in group.names]
    assert len(names) == len(set(names)) and set(names) == set(model.specs())
    canonical = {model.specs()[name].name: group for group in groups for name in group.names}
    for name, scale, decay in [
        ("embeddings.cls_token", 0.5**6, False),
        ("embeddings.patch_embeddings.projection.weight", 0.5**6, True),
        ("encoder.layer.0.attention.attention.query.weight", 0.5**5, True),
        ("encoder.layer.4.output.dense.bias", 0.5, False),
        ("encoder.layer.4.layernorm_after.weight", 0.5, False),
        ("layernorm.weight", 1, False),
        ("classifier.weight", 1, True),
    ]:
        assert (canonical[name].scale, canonical[name].decay) == (scale, decay), name
    head = [model.specs()[name].name for group in model.parameter_groups(freeze=True) for name in group.names]
    assert sorted(head) == ["classifier.bias", "classifier.weight"]
    assert canonical.keys() == specs(config, model.parts).keys()


def test_wrong_layer_decay() -> None:
    for value in (0, 1.5):
        with pytest.raises(ValueError, match="layer_decay must be above 0 and at most 1"):
            parameter_groups({}, 1, value)

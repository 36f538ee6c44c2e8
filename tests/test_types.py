"""What a user's own mypy sees of the packages, and what their names say of themselves: types, reprs, docstrings."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit_core
from vit_core.app.backends import is_installed
from vit_core.assets import DIGITS
from vit_core.family import FAMILIES
from vit_core.outputs import BaseModelOutput, ImageClassifierOutput
from vit_core.pictures.processing import BatchFeature

ROOT = Path(__file__).parent.parent
PACKAGES = ("vit_core", "vit_torch", "vit_tf", "vit_flax", "conversion")
MODELS = tuple(name for family in FAMILIES.values() for name in family.models)
TRUNKS = {name: family.trunk for family in FAMILIES.values() for name in family.models if "For" in name}

SCRIPT = """\
from pathlib import Path

{imports}
from {package} import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

pictures = sorted(str(path) for path in Path("digits/pictures").glob("*.png"))[:2]
processor = ViTImageProcessor.from_pretrained("digits")
model = ViTForImageClassification.from_pretrained("digits")
again, report = ViTForImageClassification.from_pretrained("digits", output_loading_info=True)
inputs = processor(pictures, return_tensors="{kind}")
pixels: {tensor} = inputs["pixel_values"]
output = model(**inputs)
logits = output.logits
states = model(pixels, output_hidden_states=True).hidden_states
vector = model.features(pixels, pool="mean")
vectors = model.features(pixels, layers=(-2, -1))
model.save_pretrained("copy")
saved = processor.save_pretrained("copy")
found = AutoModelForImageClassification.from_pretrained("copy")
config = ViTConfig.from_pretrained("copy")
config, unused = ViTConfig.from_pretrained("copy", return_unused_kwargs=True)
classifier = pipeline("image-classification", model="copy")
best = classifier(pictures[0])[0]
label, score = best["label"], best["score"]
several = classifier(pictures)[1][0]["label"]
"""
DIALECTS: dict[str, dict[str, str]] = {
    "torch": {"imports": "import torch", "kind": "pt", "tensor": "torch.Tensor"},
    "tf": {"imports": "import tensorflow as tf  # type: ignore[import-untyped]", "kind": "tf", "tensor": "tf.Tensor"},
    "flax": {"imports": "import jax", "kind": "jax", "tensor": "jax.Array"},
}
# Of the script's variables; {T} is the tensor, {P} what names of models begin with.
TYPES = {
    "pictures": "list[str]", "processor": "ViTImageProcessor", "model": "{P}ViTForImageClassification",
    "again": "{P}ViTForImageClassification", "report": "LoadReport", "inputs": "BatchFeature", "pixels": "{T}",
    "output": "ImageClassifierOutput[{T}]", "logits": "{T}", "states": "tuple[{T}, ...] | None",
    "vector": "{T}", "vectors": "tuple[{T}, ...]", "saved": "list[str]",
    "found": "{P}ViTForImageClassification", "config": "ViTConfig", "unused": "dict[str, Any]",
    "classifier": "ImageClassificationPipeline", "label": "str", "score": "float", "several": "str",
}  # fmt: skip


# What no type here is from, and would take mypy longer than all that it reads.
UNREAD = (
    *(f"torch.{part}" for part in (
        "_dynamo", "_export", "_functorch", "_higher_order_ops", "_inductor", "ao", "distributed", "distributions",
        "export", "fx", "onnx", "testing",
    )),
    "jax.scipy", "jaxlib.mlir", "onnx", "onnxscript", "onnx_ir", "huggingface_hub", "matplotlib", "rich", "fastapi",
    "httpx", "typer",
)  # fmt: skip


def mypy(folder: Path, *files: str) -> str:
    """What `mypy --strict` says of files in a folder that sees the packages as if they were installed."""
    unread = ",".join(f"{name}.*" for name in UNREAD)
    (folder / "mypy.ini").write_text(f"[mypy]\nfollow_imports = silent\n[mypy-{unread}]\nfollow_imports = skip\n")
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), *files]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says of the script of each framework that is there, and of every model, in one process."""
    folder = tmp_path_factory.mktemp("types")
    for backend in filter(is_installed, DIALECTS):
        package = f"vit_{backend}"
        reveals = "".join(f"reveal_type({name})\n" for name in TYPES)
        (folder / f"script_{backend}.py").write_text(SCRIPT.format(package=package, **DIALECTS[backend]) + reveals)
        loaded = [f'{package}.{name}.from_pretrained("folder")' for name in MODELS]
        models = "".join(f"reveal_type({model})\nreveal_type({model}(1))\n" for model in loaded)
        models += f'{package}.ViTModel.from_pretrained("").features(1, layer=1)  # type: ignore[call-overload]\n'
        if backend == "torch":  # as docs/torch.md freezes layers
            heads = [f'{package}.{name}.from_pretrained("folder").{trunk}' for name, trunk in TRUNKS.items()]
            models += "".join(f"{head}.encoder.layer[:3].requires_grad_(False)\n" for head in heads)
        if backend == "flax":
            module = f'{package}.ViTModel.from_pretrained("folder").module'
            models += f"import typing\nimport flax\ntyping.assert_type({module}, flax.linen.Module)\n"
        (folder / f"models_{backend}.py").write_text(f"import {package}\n\n{models}")
    return mypy(folder, *sorted(path.name for path in folder.glob("*.py")))


def revealed(said: str, file: str) -> list[str]:
    """The types that mypy reveals in a file, in order, without the modules they are from."""
    assert not re.findall(rf"^{file}\.py:\d+: error: .*", said, re.MULTILINE)
    found = re.findall(rf'^{file}\.py:\d+: note: Revealed type is "(.*)"', said, re.MULTILINE)
    return [re.sub(r"(?:\w+\.)+(?=\w)", "", each) for each in found]


def test_a_users_script_has_types(said: str, backend: Any) -> None:
    tensor = "Any" if backend.name == "tf" else DIALECTS[backend.name]["tensor"].split(".")[-1]  # TensorFlow has none
    expected = [each.format(T=tensor, P=backend.prefix) for each in TYPES.values()]
    assert revealed(said, f"script_{backend.name}") == expected


def test_a_users_script_has_those_types(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DIGITS, tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(SCRIPT.format(package=backend.package.__name__, **DIALECTS[backend.name]), names)
    for name, type_name in TYPES.items():
        if "{T}" not in type_name and "[" not in type_name:
            assert type(names[name]).__name__ == type_name.format(P=backend.prefix), name
    assert type(names["logits"]) is type(names["output"]["logits"])


def test_help_shows_the_arguments_of_features_and_both_of_its_results(backend: Any) -> None:
    """Of models with a head as of those without."""
    shown = {str(inspect.signature(getattr(backend.package, name).features)) for name in MODELS}
    tensor = DIALECTS[backend.name]["tensor"].split(".")[-1]
    assert len(shown) == 1
    assert "layers: 'int | Sequence[int]' = -1" in (said := shown.pop())
    assert said.endswith(f"-> '{tensor} | tuple[{tensor}, ...]'")


def test_every_model_has_types(said: str, backend: Any) -> None:
    found = iter(revealed(said, f"models_{backend.name}"))
    for name in MODELS:
        cls = getattr(backend.package, name)
        output = getattr(cls, "module_class", cls).output_class.__name__
        assert (next(found), next(found).split("[")[0]) == (cls.__name__, output)
    assert next(found, None) is None


def test_packages_say_that_they_have_types() -> None:
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)


def test_help_and_version(backend: Any) -> None:
    for package in (backend.package, vit_core, importlib.import_module("conversion")):
        assert package.__version__ == vit_core.__version__
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) or callable(value):
                own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
                assert own and own.strip() and not own.startswith(f"{name}("), f"{package.__name__}.{name}"


# ---- reprs -----------------------------------------------------------------------------------------------------------


def test_outputs_show_shapes() -> None:
    logits = np.zeros((1, 10), np.float32)
    assert repr(ImageClassifierOutput(logits=logits)) == "ImageClassifierOutput(logits=float32 (1, 10))"
    states = BaseModelOutput(logits, hidden_states=(logits, logits))
    assert str(states) == "BaseModelOutput(last_hidden_state=float32 (1, 10), hidden_states=2 of float32 (1, 10))"
    assert repr(BaseModelOutput(3)) == "BaseModelOutput(last_hidden_state=3)"
    assert repr(BatchFeature(pixel_values=logits)) == "BatchFeature(pixel_values=float32 (1, 10))"
    several = "BatchFeature(pixel_values=3 of float32 (1, 10) and float32 (2, 10))"
    assert repr(BatchFeature(pixel_values=[logits, np.zeros((2, 10), np.float32), logits])) == several


def test_models_and_pipelines_say_what_they_are(backend: Any) -> None:
    model = backend.load("ViTForImageClassification", DIGITS)
    cls = type(model).__name__
    if backend.name != "torch":  # whose modules show their layers
        assert repr(model) == (
            f"{cls}(5 layers of 64, 4 heads, images of 24x24, patches of 4x4, {model.num_parameters():,} parameters)"
        )
    pixels = np.zeros((2, 3, 24, 24), np.float32)
    pixels = backend.torch.from_numpy(pixels) if backend.name == "torch" else pixels
    assert repr(model(pixels)) == "ImageClassifierOutput(logits=float32 (2, 10))"
    device = f", device={str(model.device)!r}" if backend.name == "torch" else ""
    pipe = backend.package.pipeline(model=str(DIGITS), batch_size=4)
    assert repr(pipe) == (
        f"ImageClassificationPipeline(task='image-classification', model={cls}, backend={backend.name!r}{device}, "
        "batch_size=4)"
    )

"""The three packages are one text in three dialects: files, names, classes, signatures, and what they read of a config.

Read from their source, so that none of the frameworks has to be installed.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vit_core.config import ARCHITECTURE_FIELDS, ViTConfig

ROOT = Path(__file__).parent.parent
PREFIXES = {"torch": "", "tf": "TF", "flax": "Flax"}
OTHERS = ("tf", "flax")
CALLS = {"torch": "forward", "tf": "call", "flax": "__call__"}

# What a package has that PyTorch's has not, with the reason.
OWN_FILES = {
    "tf": {"layers.py": "Keras's layers in a faster form", "remat.py": "gradient checkpointing, which torch brings",
           "training.py": "what fit, predict and export ask of a model"},
    "flax": {"layers.py": "Linen's layers in a faster form", "sharding.py": "partition specs of the parameters"},
}  # fmt: skip
OWN_CLASSES = {
    "tf": {"ViTModule": "base of the layers", "ViTDecoder": "a sequence of two, which in torch is an nn.Sequential"},
    "flax": {"ViTModule": "base of the modules", "ViTPatchProjection": "a convolution by a product of matrices",
             "ViTLayers": "layers by their numbers", "ViTDecoder": "a sequence, which in torch is an nn.Sequential"},
}  # fmt: skip
OWN_ARGUMENTS = {"tf": {"training"}, "flax": {"train"}}  # dropout, which torch switches by model.train()
OWN_FIELDS = {"tf": {"image_size"}, "flax": set()}  # shapes of inputs, which Keras asks for


def tree(backend: str, file: str) -> ast.Module:
    return ast.parse((ROOT / f"vit_{backend}" / file).read_text())


def plain(backend: str, name: str) -> str:
    """A name as PyTorch's package has it."""
    return name.removeprefix(PREFIXES[backend])


def exported(backend: str) -> set[str]:
    for node in tree(backend, "__init__.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {plain(backend, name) for name in ast.literal_eval(node.value)}
    raise AssertionError(f"vit_{backend} has no __all__")


def classes(backend: str) -> dict[str, ast.ClassDef]:
    """The classes of modeling.py in their order, by PyTorch's names; of Flax's models the modules that compute."""
    found = [node for node in tree(backend, "modeling.py").body if isinstance(node, ast.ClassDef)]
    if backend == "flax":  # FlaxViTModule computes, FlaxViTModel wraps it
        found = [node for node in found if not node.name.startswith("Flax") or node.name.endswith("Module")]
        return {
            plain(backend, n.name).removesuffix("Module") if n.name.startswith("Flax") else n.name: n for n in found
        }
    return {plain(backend, node.name): node for node in found}


def arguments(backend: str, node: ast.ClassDef) -> list[tuple[str, str]]:
    """(name, default) of everything a class is called with."""
    (call,) = (f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == CALLS[backend])
    names = [a.arg for a in (*call.args.args[1:], *call.args.kwonlyargs)]
    positional = [None] * (len(call.args.args) - len(call.args.defaults)) + list(call.args.defaults)
    defaults = [d and ast.unparse(d) for d in (*positional[1:], *call.args.kw_defaults)]
    return [(n, d or "") for n, d in zip(names, defaults, strict=True) if n not in OWN_ARGUMENTS.get(backend, ())]


def fields(backend: str) -> set[str]:
    """The fields of a configuration that a package reads."""
    known = {*ARCHITECTURE_FIELDS, *(name for name in vars(ViTConfig) if isinstance(vars(ViTConfig)[name], property))}
    read: set[str] = set()
    for file in (ROOT / f"vit_{backend}").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "config":
                read.add(node.attr)
    return read & known


@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_files(backend: str) -> None:
    theirs, ours = ({f.name for f in (ROOT / f"vit_{name}").glob("*.py")} for name in (backend, "torch"))
    assert theirs == ours | OWN_FILES[backend].keys()


@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_names(backend: str) -> None:
    modules = {name for name in exported(backend) if name.endswith("Module")} if backend == "flax" else set()
    assert exported(backend) - modules == exported("torch")


@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_classes_in_the_same_order(backend: str) -> None:
    names = [name for name in classes(backend) if name not in OWN_CLASSES[backend]]
    if backend == "flax":
        names = ["ViTModel" if name == "ViT" else name for name in names]
    assert names == list(classes("torch"))
    assert OWN_CLASSES[backend].keys() <= {node.name for node in classes(backend).values()}


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"])
def test_the_same_signatures(backend: str, name: str) -> None:
    theirs = classes(backend)["ViT" if (backend, name) == ("flax", "ViTModel") else name]
    assert arguments(backend, theirs) == arguments("torch", classes("torch")[name])


@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_fields_of_the_configuration(backend: str) -> None:
    assert fields(backend) - OWN_FIELDS[backend] == fields("torch")


def test_every_field_is_read_by_someone() -> None:
    """Those that are not are read through another: sizes as pairs, the pooler's as pooler_size."""
    through = {"image_size": "grid", "pooler_output_size": "pooler_size"}
    read = fields("torch")
    assert {through.get(name, name) for name in ARCHITECTURE_FIELDS} <= read

"""The three packages are one text in three dialects: files, names, classes, signatures, and what they read of a config.

Read from their source, so that none of the frameworks has to be installed.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from vit_core.config import ViTConfig
from vit_core.family import FAMILIES, VIT

ROOT = Path(__file__).parent.parent
PREFIXES = {"torch": "", "tf": "TF", "flax": "Flax"}
OTHERS = ("tf", "flax")
SHARED = ("embeddings.py", "encoder.py", "modeling.py", "backbone.py")  # of all members
# The file of a member has the name of that in vit_core/family.
MEMBERS = tuple(dict.fromkeys(f"{f.config.__module__.split('.')[-1]}.py" for f in FAMILIES.values() if f is not VIT))
FIELDS = ViTConfig.fields()
CALLS = {"torch": "forward", "tf": "call", "flax": "__call__"}

# What a package has that PyTorch's has not, with the reason.
OWN_FILES = {
    "tf": {
        "functional.py": "a Functional model of Keras around one",
        "module.py": "what every layer is built with",
        "litert_int8.py": "TensorFlow's quantiser of LiteRT files",
        "remat.py": "gradient checkpointing, which torch brings",
        "training.py": "what fit and predict ask of a model",
        "serving.py": "what export and functional ask of a model",
    },
    "flax": {
        "module.py": "what every module knows",
        "sharding.py": "partition specs of the parameters",
    },
}  # fmt: skip
TORCH_FILES = {
    "dalle.py": "DALL-E's encoder, computed in PyTorch whatever the framework",
    "devices.py": "PyTorch alone places models where it is told",
    "onnx_int8.py": "ONNX Runtime's quantiser of the files that PyTorch writes",
    "saving.py": "modules of PyTorch can be replaced, wrapped and quantised in many ways that no file can hold",
}
OWN_CLASSES = {
    "tf": {"ViTDecoder": "a sequence of two, which in torch is an nn.Sequential"},
    "flax": {"ViTPatchProjection": "a convolution by a product of matrices",
             "ViTLayers": "layers by their numbers", "ViTDecoder": "a sequence, which in torch is an nn.Sequential"},
}  # fmt: skip
# Dropout, which torch switches by model.train(), and the rate of drop path, which is scanned over with the layers.
OWN_ARGUMENTS = {"tf": {"training"}, "flax": {"train", "drop_path"}}
# What stands in the place of __init__.
BUILT_IN = ("setup", "build", "build_parts", "add_pooling_layer", "use_mask_token", "table")
# The parts of a trunk, which in torch follow from the architecture.
OWN_HOOKS = {"tf": set(), "flax": {"trunk_parts"}}
TORCH_FIELDS = {"num_patches"}  # a shape, which the others take from the table
OWN_FIELDS = {"flax": {"num_hidden_layers"}}  # whose rates of drop path torch's are made of


@cache
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


def classes(backend: str, *files: str) -> dict[str, ast.ClassDef]:
    """The classes of files in their order, by PyTorch's names; of Flax's models the modules that compute."""
    found = [node for file in files for node in tree(backend, file).body if isinstance(node, ast.ClassDef)]
    if backend != "flax":
        return {plain(backend, node.name): node for node in found}
    wrappers = [node for node in found if node.name.startswith("Flax") and not node.name.endswith("Module")]
    named = {plain(backend, node.name).removesuffix("Module"): node for node in found if node not in wrappers}
    bare = {name: f"{name}Model" if f"Flax{name}Model" in {node.name for node in wrappers} else name for name in named}
    own = {node.name.removeprefix("Flax") for node in wrappers} - set(bare.values())
    assert all(name.endswith("PreTrainedModel") for name in own)
    return {bare[name]: node for name, node in named.items()}


def hooks(node: ast.ClassDef) -> list[str]:
    """The names that a class of a member sets or defines."""
    found = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
    for item in node.body:
        if isinstance(item, ast.Assign | ast.AnnAssign):
            found.append(ast.unparse(item.targets[0] if isinstance(item, ast.Assign) else item.target))
    called = {"forward": "call", "__call__": "call", **dict.fromkeys(BUILT_IN, "__init__")}
    return sorted({called.get(name, name) for name in found})


def arguments(backend: str, node: ast.ClassDef) -> list[tuple[str, str]]:
    """(name, default) of everything a class is called with."""
    (call,) = (f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == CALLS[backend])
    names = [a.arg for a in (*call.args.args[1:], *call.args.kwonlyargs)]
    positional = [None] * (len(call.args.args) - len(call.args.defaults)) + list(call.args.defaults)
    defaults = [d and ast.unparse(d) for d in (*positional[1:], *call.args.kw_defaults)]
    return [(n, d or "") for n, d in zip(names, defaults, strict=True) if n not in OWN_ARGUMENTS.get(backend, ())]


def fields(backend: str) -> set[str]:
    """The fields of a configuration that a package reads."""
    known = {*FIELDS, *(name for name in vars(ViTConfig) if isinstance(vars(ViTConfig)[name], property))}
    read: set[str] = set()
    for file in (ROOT / f"vit_{backend}").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "config":
                read.add(node.attr)
    return read & known


@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_files(backend: str) -> None:
    theirs, ours = ({f.name for f in (ROOT / f"vit_{name}").glob("*.py")} for name in (backend, "torch"))
    assert theirs == (ours - TORCH_FILES.keys()) | OWN_FILES[backend].keys()
    assert theirs >= {*SHARED, *MEMBERS}


@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_names(backend: str) -> None:
    modules = {name for name in exported(backend) if name.endswith("Module")} if backend == "flax" else set()
    assert exported(backend) - modules == exported("torch")


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("file", [*SHARED, *MEMBERS])
def test_the_same_classes_in_the_same_order(backend: str, file: str) -> None:
    names = [name for name in classes(backend, file) if name not in OWN_CLASSES[backend]]
    expected = list(classes("torch", file))
    if backend == "flax":  # whose modules have no base of a member's own
        expected = [name for name in expected if not name.endswith("PreTrainedModel")]
    assert names == expected


@pytest.mark.parametrize("backend", OTHERS)
def test_no_class_is_excused_that_is_not_there(backend: str) -> None:
    assert OWN_CLASSES[backend].keys() <= classes(backend, *SHARED).keys()


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", classes("torch", "modeling.py", *MEMBERS))
def test_the_same_signatures(backend: str, name: str) -> None:
    theirs, ours = (classes(each, "modeling.py", *MEMBERS) for each in (backend, "torch"))
    if name in theirs and any(isinstance(f, ast.FunctionDef) and f.name == CALLS["torch"] for f in ours[name].body):
        assert arguments(backend, theirs[name]) == arguments("torch", ours[name])


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", classes("torch", *MEMBERS))
def test_members_override_the_same_hooks(backend: str, name: str) -> None:
    """Those of what computes; `architecture` and the like stand on Flax's wrappers."""
    theirs, ours = classes(backend, *MEMBERS), classes("torch", *MEMBERS)
    if backend == "flax" and name.endswith("PreTrainedModel"):
        return
    wrapper = {"architecture", "set_attn_implementation"} if backend == "flax" else set()
    own = {"output_class"} - set(hooks(ours[name])) if backend == "tf" else set()  # what predict returns
    assert [h for h in hooks(theirs[name]) if h not in own | OWN_HOOKS[backend]] == [
        h for h in hooks(ours[name]) if h not in wrapper
    ]


@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_fields_of_the_configuration(backend: str) -> None:
    assert fields(backend) - OWN_FIELDS.get(backend, set()) == fields("torch") - TORCH_FIELDS


def test_every_field_is_read_by_someone() -> None:
    """Those that are not are read through another: sizes as pairs, the pooler's as pooler_size, layers as rates."""
    through = {"image_size": "grid", "pooler_output_size": "pooler_size", "num_hidden_layers": "drop_path_rates"}
    read = fields("torch")
    assert {through.get(name, name) for name in FIELDS} <= read

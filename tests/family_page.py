"""Writes docs/family.md, of what the package itself says of its members: `python tests/family_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from adapters import BACKENDS

from vit_core.family import FAMILIES, Family
from vit_core.formats import FORMATS

PAGE = Path(__file__).parent.parent / "docs" / "family.md"
FRAMEWORKS = {"torch": "PyTorch", "tf": "TensorFlow", "flax": "JAX"}
TASKS = {
    "pre-train": ("ForMaskedImageModeling", "ForPreTraining"),
    "classify": ("ForImageClassification",),
    "maps": ("Backbone",),
}
# A model of each, and a checkpoint that its authors or those of transformers published.
PUBLISHED = {
    "vit": ("ViTForImageClassification", "google/vit-base-patch16-224"),
    "deit": ("DeiTForImageClassificationWithTeacher", "facebook/deit-base-distilled-patch16-224"),
    "beit": ("BeitForImageClassification", "microsoft/beit-base-patch16-224"),
    "vit_mae": ("ViTMAEForPreTraining", "facebook/vit-mae-base"),
    "dinov2": ("Dinov2Model", "facebook/dinov2-base"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "facebook/dinov2-with-registers-base"),
    "ijepa": ("IJepaModel", "facebook/ijepa_vith14_1k"),
    "vit_msn": ("ViTMSNModel", "facebook/vit-msn-base"),
}
HEAD = """# The family

What each member is and can, by the package itself: `python tests/family_page.py` writes this page, and the suite
compares. Every class is there in each framework by its PyTorch name; in `vit_tf` also with the prefix `TF`, in
`vit_flax` with `Flax`.

"""
BETWEEN = """
Every model gives features of any layer, pooled or as maps ([features.md](features.md)), in each framework. It is
exported as any model of its framework is: `torch.export` and `torch.compile`, Keras's `export`, `jax.jit` and
`jax.export`.

## Files

Each file is read in every framework, and written by [`vit-convert`](convert.md) where nothing else is said. The first
three are transformers', whole or in shards.

"""
LAST = """
## A line for each

The same lines run with `vit_tf` and `vit_flax` in the place of `vit_torch`, and with a folder or a file in that of the
name.

"""


def table(head: list[str], rows: Iterator[list[str]]) -> str:
    """Rows in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def classes(family: Family, backend: str) -> str:
    """How many of a member's classes a framework has: all of them, or the page is wrong."""
    package, prefix = import_module(f"vit_{backend}"), BACKENDS[backend].prefix
    found = [name for name in family.models if {name, prefix + name} <= set(package.__all__)]
    assert found == list(family.models), (family.title, backend)
    return str(len(found))


def able() -> Iterator[list[str]]:
    """What each member has and can."""
    for family in FAMILIES.values():
        yield [
            family.title,
            f"`{family.model_type}`",
            *(classes(family, backend) for backend in FRAMEWORKS),
            *(", ".join(f"`{m}`" for m in family.models if any(end in m for end in ends)) for ends in TASKS.values()),
        ]


def files() -> Iterator[list[str]]:
    """Which files hold each member."""
    for family in FAMILIES.values():
        own = (("yes" if each.written else "read") * (family in each.families) for each in FORMATS.values())
        yield [family.title, *["yes"] * 3, *own]


def examples() -> Iterator[str]:
    """A line of Python for each member."""
    for member in FAMILIES:
        name, source = PUBLISHED[member]
        yield f'    from vit_torch import {name}; model = {name}.from_pretrained("{source}")\n'


def page() -> str:
    """The whole page."""
    able_of = table(["member", "`model_type`", *(f"classes in {name}" for name in FRAMEWORKS.values()), *TASKS], able())
    hub = ["PyTorch", "TensorFlow", "Flax"]
    files_of = table(["member", *hub, *(f"`{name}`" for name in FORMATS)], files())
    return HEAD + able_of + BETWEEN + files_of + LAST + "".join(examples())


if __name__ == "__main__":
    PAGE.write_text(page())

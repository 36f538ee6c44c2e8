"""Writes docs/family.md, of what the package itself says of its members: `python tests/family_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from adapters import BACKENDS

from vit_core.calls import pooling
from vit_core.config import ViTConfig
from vit_core.exports import CLASSES, OUTPUTS
from vit_core.family import FAMILIES, VIT, Family, ViTMAEConfig
from vit_core.formats import FORMATS
from vit_core.formats.format import Format

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
`vit_flax` with `Flax`. Data2VecVision's checkpoints are BEiTs, and read as such.

"""
BETWEEN = f"""
Every model gives features of any layer ([features.md](features.md)), in each framework, pooled in the ways of this
table, the first by default; patches are maps, too. `vit export` ([deploy.md](deploy.md)) writes these outputs of a
member's checkpoints; all are {", ".join(f"`{name}`" for name in OUTPUTS)}. A pre-trained MAE, which has
no classifier and draws what it hides, needs `--outputs features`; fine-tuned it is a ViT.

{{}}
A model is also exported as any of its framework is: `torch.export` and `torch.compile`, Keras's `export`, `jax.jit` and
`jax.export`.

## Files

Each file is read in every framework, and written by [`vit-convert`](convert.md) where nothing else is said. The first
three are transformers', whole or in shards. An encoder is what `vit-convert --head drop` leaves of a model, and writes
as a ViT. An MSN is read as a ViT, by ViT's classes, where no config.json with its `model_type` stands beside the
weights, as in keras-hub's presets.

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


def classifies(family: Family) -> bool:
    return any("ForImageClassification" in name for name in family.models)


def out() -> Iterator[list[str]]:
    """What comes out of each member: how its features are pooled, and what is exported."""
    for family in FAMILIES.values():
        first = pooling(family.config(), None)
        pools = (first, *(pool for pool in ("mean", "patches") if pool != first))
        outputs = [name for name in OUTPUTS if classifies(family) or name not in CLASSES]
        if issubclass(family.config, ViTMAEConfig):
            outputs.remove("states")
        shown = "all" if outputs == list(OUTPUTS) else ", ".join(f"`{name}`" for name in outputs)
        yield [family.title, ", ".join(f"`{pool}`" for pool in pools), shown]


def held(family: Family, each: Format) -> str:
    """What a format holds of a member."""
    if family in each.families:
        return "yes" if each.written else "read"
    if VIT in each.families and family.model_type in ViTConfig.reads:
        return "yes" if classifies(family) else "encoder"
    return ""


def files() -> Iterator[list[str]]:
    """Which files hold each member."""
    for family in FAMILIES.values():
        yield [family.title, *["yes"] * 3, *(held(family, each) for each in FORMATS.values())]


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
    out_of = table(["member", "features", "`vit export --outputs`"], out())
    return HEAD + able_of + BETWEEN.format(out_of) + files_of + LAST + "".join(examples())


if __name__ == "__main__":
    PAGE.write_text(page())

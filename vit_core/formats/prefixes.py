"""What training code puts before and into the names of a model's tensors, and how the model is found behind it.

One rule: of the prefixes that some of a table's names stand under, the one under which most of the table is found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from vit_core.family import FAMILIES
from vit_core.files.tensor import Tensor

# The words for several copies of a model in one file, the one to take first: averages before what was trained.
COPIES = (
    "teacher", "model_ema", "state_dict_ema", "ema", "ema_model", "ema_params", "momentum_encoder", "target_encoder",
    "model", "state_dict", "encoder", "student",
)  # fmt: skip
_WRAPPERS = "_orig_mod|module|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_WITHIN = re.compile(rf"(?<=[./])(?:{_WRAPPERS})\.")  # before all of a name they are a prefix as any other
_TRUNK = re.compile(rf"(^|[./])({'|'.join(trunk for family in FAMILIES.values() for trunk in family.trunks)})[./]$")
_MOST = 4  # prefixes that are tried


@dataclass(frozen=True)
class Under:
    """The tensors under a prefix, by names without it, those outside, and how many of the former are a model's.

    `rivals` are the other prefixes under which there is as much of a model, and no word says which to take.
    """

    prefix: str
    inside: dict[str, Tensor]
    outside: dict[str, Tensor]
    score: int
    rivals: tuple[str, ...] = ()


def copy_rank(key: str) -> int:
    """The place of a copy of the model among others, by the first part of its name that says so."""
    return next((COPIES.index(part) for part in re.split("[./]", key) if part in COPIES), len(COPIES))


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without what wrappers of modules put into them, where that is no other's name."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = unwrapped_name(name)
        taken = inner != name and (inner in tensors or inner in found)
        found[name if taken else inner] = tensor
    return found


def unwrapped_name(name: str) -> str:
    """A name, or the beginning of names, without what wrappers of modules put into it."""
    return _WITHIN.sub("", name)


def find_prefix(
    tensors: Mapping[str, Tensor],
    endings: Collection[str],
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    score: Callable[[Mapping[str, Tensor]], int],
    given: str | None = None,
) -> Under:
    """The tensors of a table among others. `endings` are names of it that stand once in a model; `prepare` brings names
    without a prefix to the table's spelling, of which `score` counts what is known. `given` is a prefix by hand.
    """

    def under(prefix: str) -> Under:
        inside = prepare({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
        outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        return Under(prefix, dict(inside), outside, score(inside))

    first = under(given or "")
    if given is not None or first.score == len(tensors):
        return first
    found = [first, *map(under, _candidates(tensors, endings))]
    places = {each.prefix: (-each.score, copy_rank(each.prefix)) for each in found}
    best = min(found, key=lambda each: (*places[each.prefix], len(each.prefix)))
    equal = [prefix for prefix, place in places.items() if place == places[best.prefix]]
    rivals = tuple(p for p in equal if not p.startswith(best.prefix) and not best.prefix.startswith(p))
    return replace(best, rivals=rivals)


def _candidates(names: Collection[str], endings: Collection[str]) -> list[str]:
    ends, found = tuple(endings), Counter[str]()
    for name in names:
        if name.endswith(ends):
            prefixes = {name.removesuffix(end) for end in ends if name.endswith(end)}
            found.update(prefix for prefix in prefixes if prefix.endswith((".", "/")))
    likely = [prefix for prefix, _ in found.most_common(_MOST)]
    return list(dict.fromkeys(p for prefix in likely for p in (prefix, _TRUNK.sub(r"\1", prefix)) if p))


def seen(names: Collection[str]) -> str:
    """The first parts of names, and how many names begin with each, in words."""
    counts = Counter(re.split("(?<=[./])", name, maxsplit=1)[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.most_common(8))

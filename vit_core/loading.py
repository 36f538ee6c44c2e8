"""Fitting a checkpoint's tensors to a configuration and the parts of a model, with a report of what was done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vit_core.channels import PROJECTION, with_channels
from vit_core.config import ViTConfig
from vit_core.family import POSITION_BIAS, SHARED_POSITION_BIAS, has_head
from vit_core.files.tensor import Array, Tensor, raw_bytes
from vit_core.formats.huggingface import Checkpoint, check_floats
from vit_core.params import TORCH, Spec, native_name, specs
from vit_core.position import relative_positions, resize_position_bias, resize_position_embeddings
from vit_core.validation import dtype_name

COMPUTE_DTYPES = ("float32", "float64", "bfloat16", "float16")
_MOST_FRESH = 1 << 31  # numbers that a configuration may ask for whatever its weights hold: 8 GB


@dataclass
class LoadReport(Mapping[str, Any]):
    """What loading did, as data, whose attributes are also those of a mapping.

    Names of parameters are those of the model's PyTorch state dict.
    """

    missing_keys: list[str] = field(default_factory=list)  # not in the file: freshly initialised
    unexpected_keys: list[str] = field(default_factory=list)  # in the file, by their names there, and not used
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """(name, shape in the file, shape in the model): freshly initialised."""
    resized: list[tuple[str, tuple[int, int], tuple[int, int], str]] = field(default_factory=list)
    """(name, grid in the file, grid in the model, kernel): position embeddings interpolated to another grid."""
    adapted: list[tuple[str, int, int]] = field(default_factory=list)
    """(name, channels in the file, channels in the model): the patch projection, summed or repeated and rescaled."""
    converted: dict[str, str] = field(default_factory=dict)
    """Name in the file of every tensor that was loaded under another name, by its name in the model."""
    format: str = ""  # of the file: pt, tf or flax
    path: str = ""  # the weights file, or the index of its shards
    dtypes: dict[str, int] = field(default_factory=dict)  # number of elements stored in each dtype
    notes: list[str] = field(default_factory=list)  # what else a user must know
    error_msgs: list[str] = field(default_factory=list)  # of transformers: none, since errors are raised
    _taken: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)  # by name, before any change
    _unwarned: tuple[str, ...] = field(default=(), repr=False, compare=False)  # of the notes: on what is certain

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in fields(self) if not each.name.startswith("_"))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, key: str) -> Any:
        if key not in list(self):
            raise KeyError(key)
        return getattr(self, key)

    def checksums(self) -> dict[str, str]:
        """XXH3, 128 bits, of every tensor that was loaded, by name: of its values as the file has them, in C order.

        In PyTorch's layout, little-endian: the same weights have the same checksums in whatever format. Reads the file
        again. Raises ValueError where the file has a checksum of its own, which is another.
        """
        from xxhash import xxh3_128_hexdigest

        found = {}
        for name, tensor in self._taken.items():
            tensor.verify()
            found[name] = xxh3_128_hexdigest(raw_bytes(tensor))
            tensor.release()
        return found

    def warning(self, model: str) -> str | None:
        """What a user who does not ask for the report must know, in a sentence or two; None when all fits."""
        fresh = [*self.missing_keys, *(name for name, _, _ in self.mismatched_keys)]
        parts = []
        if fresh:
            parts.append(
                f"{len(fresh)} parameters of {model} were not taken from {self.path} and are newly initialised: "
                f"{_shortened(fresh)}. Train the model before you use it for predictions."
            )
        if self.unexpected_keys:
            parts.append(
                f"{len(self.unexpected_keys)} tensors of {self.path} are not used by {model}: "
                f"{_shortened(self.unexpected_keys)}."
            )
        return " ".join([*parts, *(note for note in self.notes if note not in self._unwarned)]) or None


def _shortened(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def fit(
    checkpoint: Checkpoint,
    config: ViTConfig,
    parts: Iterable[str],
    *,
    stored_grid: tuple[int, int] | None = None,
    stored_channels: int | None = None,
    ignore_mismatched_sizes: bool = False,
    fresh_head: bool = False,
    kernel: str = "hf",
) -> tuple[dict[str, Tensor], LoadReport]:
    """The checkpoint's tensors that a model of this configuration takes, and the report.

    `stored_grid` is the grid of patches the checkpoint was made for: where the configuration's is another one, the
    position embeddings are resized with `kernel`. From `stored_channels` the patch projection is adapted to another
    number. `fresh_head` lets a head of another size be initialised anew.
    Raises ValueError that lists every tensor of a wrong shape or dtype at once, and for a checkpoint without most of a
    trunk: it is another model.
    """
    wanted = specs(config, parts)
    _check_trunk(checkpoint, wanted)
    check_floats(checkpoint.path, {name: t for name in wanted if (t := checkpoint.tensors.get(name)) is not None})
    prefixed = has_head(parts)
    report = LoadReport(
        format=checkpoint.format,
        path=str(checkpoint.path),
        dtypes=checkpoint.dtypes,
        notes=[*checkpoint.notes, *checkpoint.doubts],
        _unwarned=checkpoint.notes,
    )
    taken: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, spec in wanted.items():
        shown = native_name(spec, TORCH, prefixed)
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            report.missing_keys.append(shown)
            continue
        if "S" in spec.row.shape and tensor.shape[2:] == spec.shape[2:]:
            tensor = _resized(tensor, stored_grid, config, kernel, shown, report)
        if spec.row.name in (POSITION_BIAS, SHARED_POSITION_BIAS) and stored_grid not in (None, config.grid):
            tensor = _resized_bias(tensor, stored_grid, config, shown, report)
        if name == PROJECTION and tensor.shape[1] == stored_channels != config.num_channels:
            report.adapted.append((shown, tensor.shape[1], config.num_channels))
            tensor = with_channels(tensor, config.num_channels)
        if tensor.shape == spec.shape:
            taken[name] = tensor
            report._taken[shown] = checkpoint.tensors[name]
            if tensor.source != shown:
                report.converted[shown] = tensor.source
        elif ignore_mismatched_sizes or (fresh_head and spec.row.head):
            report.mismatched_keys.append((shown, tensor.shape, spec.shape))
        else:
            wrong.append(f"{shown}: {tensor.shape} in the file, {spec.shape} in the model")
    if wrong:
        raise ValueError(
            f"{checkpoint.path} does not fit the model:\n  " + "\n  ".join(wrong) + "\nPass the configuration it was "
            "saved with, or ignore_mismatched_sizes=True to initialise these anew."
        )
    fresh = [spec for name, spec in wanted.items() if name not in taken]
    asked = sum(spec.size for spec in fresh)
    if asked > max(_MOST_FRESH, sum(wanted[name].size for name in taken)):
        largest = max(fresh, key=lambda spec: spec.size)
        raise ValueError(
            f"The configuration asks for {asked} numbers that {checkpoint.path} does not hold, most of them in "
            f"{native_name(largest, TORCH, prefixed)} of shape {largest.shape}: mend it."
        )
    others = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in wanted}
    left = [tensor.source or name for name, tensor in others.items() if not is_absent_bias(name, tensor, config)]
    report.unexpected_keys = sorted([*left, *checkpoint.unknown, *checkpoint.dropped])
    return taken, report


def _check_trunk(checkpoint: Checkpoint, wanted: Mapping[str, Spec]) -> None:
    """Raise ValueError where more of the trunk would be initialised than is in the checkpoint."""
    trunk = {name: spec for name, spec in wanted.items() if not spec.part}
    missing = [name for name in trunk if name not in checkpoint.tensors]
    if 2 * sum(trunk[name].size for name in missing) > sum(spec.size for spec in trunk.values()):
        raise ValueError(
            f"{checkpoint.path} lacks {len(missing)} of the {len(trunk)} parameters of this ViT's trunk: "
            f"{_shortened(missing)}. What it holds beside them: {_shortened(sorted(checkpoint.unknown)) or 'nothing'}. "
            "If that is another model, load it with its own class; if it is this one, pass the configuration it was "
            "saved with."
        )


def is_absent_bias(name: str, tensor: Tensor, config: ViTConfig) -> bool:
    """Whether this is a bias of zeros, as transformers' TF ViT writes it where the configuration has qkv_bias=False."""
    if config.qkv_bias or not name.endswith(("attention.query.bias", "attention.key.bias", "attention.value.bias")):
        return False
    return not tensor.read().any()


def _resized(
    tensor: Tensor,
    stored: tuple[int, int] | None,
    config: ViTConfig,
    kernel: str,
    shown: str,
    report: LoadReport,
) -> Tensor:
    """The position embeddings on the model's grid; unchanged when the stored grid is not that of the tensor."""
    grid, first = config.grid, config.position_prefix
    patches = tensor.shape[1] - first
    if stored is None and patches == grid[0] * grid[1]:
        return tensor
    source = stored or (round(patches**0.5), round(patches**0.5))
    if source[0] * source[1] != patches or source == grid:
        return tensor
    report.resized.append((shown, source, grid, kernel))

    def resize() -> Array:
        return resize_position_embeddings(tensor.read(), source, grid, kernel, first)

    return Tensor((1, first + config.num_patches, tensor.shape[2]), tensor.dtype, resize, tensor.source)


def _resized_bias(tensor: Tensor, stored: tuple[int, int], config: ViTConfig, shown: str, report: LoadReport) -> Tensor:
    """A table of relative positions for the model's grid; unchanged when the stored grid is not that of the tensor."""
    if tensor.shape[0] != relative_positions(*stored):
        return tensor
    report.resized.append((shown, stored, config.grid, "bilinear"))
    shape = (relative_positions(*config.grid), *tensor.shape[1:])
    return Tensor(shape, tensor.dtype, lambda: resize_position_bias(tensor.read(), stored, config.grid), tensor.source)


def resolve_dtype(asked: Any, stored: Iterable[str] = ()) -> str:
    """The name of the dtype to load in: the one asked for, "auto" for what most of the file is `stored` in.

    None means float32, whatever the file holds. Raises ValueError for what no backend computes in.
    """
    name = "float32" if asked is None else dtype_name(asked)
    if name == "auto":
        name = next((d for d in stored if d in COMPUTE_DTYPES), "float32")
    if name not in COMPUTE_DTYPES:
        raise ValueError(f'dtype must be "auto" or one of {", ".join(COMPUTE_DTYPES)}, got {asked!r}.')
    return name

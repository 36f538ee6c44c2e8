"""Writing a checkpoint in another format: planned whole, then streamed, one tensor in memory at a time."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128_hexdigest

from conversion.plan import Plan, cast, plan, with_qkv_biases
from conversion.report import Entry, Report
from conversion.targets import ALL_CONTAINERS, TARGETS, Target
from vit_core.family import PARTS, has_head
from vit_core.files.disk import unsynced, write_atomically
from vit_core.files.names import CONFIG_NAME, PREPROCESSOR_NAME
from vit_core.files.saving import find, listing, replacing_files
from vit_core.files.tensor import Array, Tensor, contiguous
from vit_core.formats import FORMATS
from vit_core.formats.format import FOLD
from vit_core.formats.huggingface import Checkpoint, Container, as_native, split, write_native
from vit_core.formats.reading import StrPath, read
from vit_core.formats.rules import describe
from vit_core.formats.settle import usual_heads
from vit_core.formats.side import interpolation, json_beside, one_name

# What config.json must say alike of the weights of several formats in one folder.
_IDENTITY = ("model_type", "architecture", "class_name", "hidden_size", "num_hidden_layers", "image_size", "id2label")

Progress = Callable[[Entry, int, int], None]


def convert(
    source: StrPath,
    target: StrPath,
    *,
    to: str,
    container: str | None = None,
    dtype: Any = None,
    max_shard_size: int | str | None = None,
    image_size: int | tuple[int, int] | None = None,
    position_kernel: str | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    num_channels: int | None = None,
    head: str = "keep",
    pooler: str = "keep",
    hidden_act: str | None = None,
    layer_norm_eps: float | None = None,
    ignore_unknown: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    sync: bool = True,
    progress: Progress | None = None,
    **reading: Any,
) -> Report:
    """Write the checkpoint `source`, of any format, to `target` in the format `to`, and report on every tensor.

    `target` is a folder, which also gets the configuration and the preprocessor, or a single file with the suffix of
    the format. `to` is one of `TARGETS`, `container` one of the kinds of file it is written in. Without a `dtype` every
    tensor keeps its own. The files of a folder are split beyond `max_shard_size`, 5GB by default; a single file is not.
    `image_size` (pixels) resizes the position embeddings with `position_kernel`; `num_labels` gives the model a newly
    initialised classifier where its own has another number; `labels` name its classes, in their order; `num_channels`
    sums or repeats the patch projection for pictures of another number of channels, as timm does; `head="drop"` and
    `pooler="drop"` leave those out; `hidden_act` and `layer_norm_eps` correct the configuration; `ignore_unknown`
    leaves out tensors that no ViT has, which are an error otherwise. `reading` are options of `read`. Another model in
    the target is an error unless `overwrite`, which removes its weights; the same weights in other kinds of files stay
    beside.

    `progress` is called after each tensor with its entry, the bytes written and the bytes in all. `verify` reads the
    target again and compares every tensor, and the outputs of both models under every backend installed. Without `sync`
    the system puts the files on disk when it likes to, which is faster: a power cut may lose or damage them.

    Raises OSError for what can't be read or written, ValueError for what can't be converted; the target is then as it
    was, as it is when the process is killed.
    """
    if to not in TARGETS:
        raise ValueError(f"to must be one of {', '.join(TARGETS)}, got {to!r}.")
    checkpoint = read(source, head=head, ignore_unknown=ignore_unknown, **reading)
    _check_given(checkpoint, reading)
    planned = plan(
        checkpoint,
        image_size=image_size,
        position_kernel=position_kernel,
        num_labels=num_labels,
        labels=labels,
        num_channels=num_channels,
        head=head,
        pooler=pooler,
        hidden_act=hidden_act,
        layer_norm_eps=layer_norm_eps,
        ignore_unknown=ignore_unknown,
    )
    prepared = _prepare(planned, TARGETS[to], container, dtype)
    files = _files(prepared, Path(target), max_shard_size)
    _keep_source(checkpoint, Path(target), prepared.container)
    documents = _documents(prepared)
    if _is_file(Path(target), prepared.container):
        documents = {}
        prepared.plan.notes.extend(_unsaid(prepared))
    others = _others(Path(target), prepared, documents, checkpoint)
    if others and not overwrite:
        raise ValueError(
            f"{target} holds another model: {', '.join(sorted(others))}. Choose another target, or pass overwrite=True "
            "to replace it."
        )
    report = Report(
        source=str(checkpoint.path),
        source_format=checkpoint.format,
        target=str(target),
        target_format=to,
        files=[*files, *([prepared.container.names()[1]] if _has_index(prepared, files) else []), *documents],
        entries=[_entry(n, prepared.native[n], file) for file, names in files.items() for n in names],
        notes=prepared.plan.notes,
        config=prepared.plan.config.to_dict(),
        dry_run=dry_run,
    )
    if dry_run:
        return report
    hashes = _Watch(report.entries, prepared.native, progress)
    with nullcontext() if sync else unsynced():
        _write(replace(prepared, native=hashes.tensors), Path(target), files, documents, max_shard_size, others)
    report.entries = hashes.entries()
    if verify:
        from conversion.verification import verified

        weights = [name for name in report.files if name.endswith(".index.json")] or report.files
        report.verification = verified(planned, prepared.plan, Path(target), weights[0])
    return report


@dataclass(frozen=True)
class _Prepared:
    """The plan as the target has it: dtypes, names and layouts."""

    plan: Plan
    target: Target
    container: Container
    native: dict[str, Tensor]


def _prepare(planned: Plan, target: Target, container_name: str | None, dtype: Any) -> _Prepared:
    container = target.container(container_name)
    planned = replace(planned, tensors=cast(planned.tensors, dtype), notes=list(planned.notes))
    fmt = target.fmt
    if fmt is None:
        if planned.config.layer_scale:
            raise ValueError(f"{target.title} has no place for layer scales: {FOLD}.")
        if planned.config.unknown_to_others and has_head(PARTS[planned.architecture]):
            raise ValueError(f"{target.title} has no place for a head on the mean of the patches: pass head='drop'.")
        native = as_native(planned.tensors, planned.specs, planned.architecture, target.format, container)
    else:
        fmt.check_member(planned.config, planned.architecture)
        if fmt.has_qkv_bias:
            planned = with_qkv_biases(planned, fmt.title)
        planned.notes.extend(_differs(planned, target))
        native = fmt.to_native(planned.tensors, planned.config)
    dtypes = Counter(tensor.dtype.name for tensor in native.values())
    upcast = sorted({t.dtype.name for t in planned.tensors.values()} - set(dtypes))
    if upcast:
        planned.notes.append(f"{container.suffix} has no {', '.join(upcast)}: stored as float32, which loses nothing")
    config = planned.config.copy(dtype=dtypes.most_common(1)[0][0])
    return _Prepared(replace(planned, config=config), target, container, native)


def _differs(planned: Plan, target: Target) -> list[str]:
    """What the code that reads a format's files computes otherwise, where its files can't say so."""
    fmt, config = target.fmt, planned.config
    assert fmt is not None
    notes = []
    if config.layer_norm_eps != fmt.layer_norm_eps and not fmt.states_eps:
        notes.append(f"{fmt.title} computes with layer_norm_eps {fmt.layer_norm_eps:g}, not {config.layer_norm_eps:g}")
    if fmt.fixed_act and one_name(config.hidden_act) != fmt.hidden_act:
        notes.append(f"{fmt.title} computes with hidden_act {fmt.hidden_act!r}, not {config.hidden_act!r}")
    named = any(label != f"LABEL_{i}" for i, label in config.id2label.items())
    if named and "classifier.weight" in planned.tensors and not fmt.states_labels:
        notes.append(f"{fmt.title} has no place for the names of the {config.num_labels} labels")
    resample = (planned.processor or {}).get("resample")
    if fmt.states_resample and interpolation(resample) is None:
        notes.append(f"{fmt.title} has no name for resample={resample}, its pictures are resized by bicubic")
    if fmt.states_resample and not fmt.states_crop(planned.processor or {}):
        notes.append(f"{fmt.title} can't state how pictures are cropped, it resizes them whole")
    return notes


def _unsaid(prepared: _Prepared) -> list[str]:
    """That a single file does not say how many heads there are, where reading it would find another number."""
    fmt, config = prepared.target.fmt, prepared.plan.config
    heads = config.num_attention_heads
    if fmt is None or fmt.has_head_axis or usual_heads(config.hidden_size) == heads:
        return []
    return [f"the file does not say that it has {heads} heads: read it with num_attention_heads={heads}"]


def _files(prepared: _Prepared, target: Path, max_shard_size: int | str | None) -> dict[str, list[str]]:
    """The names of the tensors by the file they go to."""
    fmt, native = prepared.target.fmt, prepared.native
    if _is_file(target, prepared.container):
        if fmt is not None and fmt.files is not None:
            raise ValueError(f"{fmt.title} is written as a folder, got the file {target}: pass a folder.")
        if max_shard_size is not None and len(shards := split(native, target.name, max_shard_size)) > 1:
            raise ValueError(
                f"{target} is one file, max_shard_size={max_shard_size!r} would make {len(shards)}: pass a folder."
            )
        return {target.name: list(native)}
    files = split(native, prepared.container.names()[0], _shard_size(max_shard_size))
    if len(files) > 1 and fmt is not None and prepared.container.suffix not in (".safetensors", ".bin"):
        raise ValueError(f"{fmt.title} has no shards, max_shard_size={max_shard_size!r} would make {len(files)}.")
    if fmt is not None and fmt.files is not None:
        return {file: list(tensors) for file, tensors in fmt.files(native).items()}
    return files


def _shard_size(given: int | str | None) -> int | str:
    """The size of a shard, by default that of transformers."""
    return "5GB" if given is None else given


def _has_index(prepared: _Prepared, files: dict[str, list[str]]) -> bool:
    fmt = prepared.target.fmt
    return len(files) > 1 and (fmt is None or fmt.files is None)


def _is_file(target: Path, container: Container) -> bool:
    """Whether a target is a single weights file. Raises ValueError for a file of another kind."""
    if target.is_dir():
        return False
    known = (".safetensors", ".bin", ".pth", ".pt", ".h5", ".msgpack", ".npz")
    if target.name.endswith(container.suffix) or (container.suffix == ".pth" and target.suffix == ".pt"):
        return True
    if target.is_file() or target.suffix in known:
        raise ValueError(f"{target} can't be the target: expected a folder, or a file ending in {container.suffix}.")
    return False


def _keep_source(checkpoint: Checkpoint, target: Path, container: Container) -> None:
    """Refuse, with ValueError, to write over what is read."""
    if _is_file(target, container):
        written = [target]
    else:
        written = [find(target, n) for n in listing(target) if any(fnmatchcase(n, p) for p in container.patterns())]
    if {path.resolve() for path in (checkpoint.path, *checkpoint.files)} & {path.resolve() for path in written}:
        raise ValueError(f"{target} would replace the source {checkpoint.path}: choose another target.")


def _check_given(checkpoint: Checkpoint, reading: dict[str, Any]) -> None:
    """Refuse, with ValueError, what is said of a source that says otherwise itself."""
    for option, field in (("num_attention_heads", "num_attention_heads"), ("stored_image_size", "image_size")):
        given, stored = reading.get(option), getattr(checkpoint.config, field, None)
        if given is not None and stored is not None and given != stored:
            raise ValueError(
                f"{option}={given!r} was given, but {checkpoint.path} has {field}={stored!r}: leave it out."
            )


def _others(target: Path, prepared: _Prepared, documents: dict[str, Any], source: Checkpoint) -> list[str]:
    """The weights files in a folder that are another model's: by its configuration, or, where they stay, by value."""
    if not documents:
        return []  # a single file is written
    sources = {path.resolve() for path in (source.path, *source.files)}
    there = json_beside(target / CONFIG_NAME, CONFIG_NAME)
    here = json.loads(json.dumps(documents[CONFIG_NAME]))
    same = not there or all(there.get(name) == here.get(name) for name in _IDENTITY)
    found: dict[str, None] = {}
    for container in dict.fromkeys(ALL_CONTAINERS):
        held = [n for n in listing(target) if any(fnmatchcase(n, p) for p in container.patterns())]
        held = [name for name in held if find(target, name).resolve() not in sources]
        entry = next((name for name in reversed(container.names()) if name in held), None)
        replaced = container.suffix == prepared.container.suffix
        if held and not (same and (replaced or (entry and _equals(find(target, entry), prepared.plan)))):
            found |= dict.fromkeys(held)
    return list(found)


def _equals(path: Path, planned: Plan) -> bool:
    """Whether a weights file, or index, can be read and has the plan's values, as far as it has the same tensors."""
    try:
        heads, size = planned.config.num_attention_heads, planned.config.image_size
        tensors = read(path, num_attention_heads=heads, stored_image_size=size, ignore_unknown=True).tensors
        shared = tensors.keys() & planned.tensors.keys()
        return bool(shared) and all(np.array_equal(tensors[n].read(), planned.tensors[n].read()) for n in shared)
    except (OSError, ValueError):
        return False


def _entry(name: str, tensor: Tensor, file: str) -> Entry:
    return Entry(name, file, tensor.source, describe(tensor), tensor.shape, tensor.dtype.name)


class _Watch:
    """Tensors that are reported, with a checksum, when a writer reads them: in turn, for they share one buffer."""

    def __init__(self, entries: list[Entry], native: dict[str, Tensor], progress: Progress | None) -> None:
        self._entries = {entry.target: entry for entry in entries}
        self._progress = progress
        self._total = sum(tensor.nbytes for tensor in native.values())
        self._done = 0
        self._buffer = np.empty(max((tensor.nbytes for tensor in native.values()), default=0), np.uint8)
        self.tensors = {name: replace(t, read=self._reading(name, t)) for name, t in native.items()}

    def _reading(self, name: str, tensor: Tensor) -> Callable[[], Array]:
        def read() -> Array:
            tensor.verify()
            array = contiguous(tensor.read(), self._buffer)
            checksum = xxh3_128_hexdigest(array.reshape(-1).view(np.uint8).data)
            self._entries[name] = replace(self._entries[name], checksum=checksum)
            self._done += array.nbytes
            if self._progress is not None:
                self._progress(self._entries[name], self._done, self._total)
            return array

        return read

    def entries(self) -> list[Entry]:
        """The entries, in the order in which they were planned."""
        return list(self._entries.values())


def _write(
    prepared: _Prepared,
    target: Path,
    files: dict[str, list[str]],
    documents: dict[str, Any],
    max_shard_size: int | str | None,
    others: list[str],
) -> None:
    """Write everything, and remove `others`, all or nothing."""
    fmt, container, native = prepared.target.fmt, prepared.container, prepared.native
    format = prepared.target.format if fmt is None else "pt"
    if _is_file(target, container):
        target.parent.mkdir(parents=True, exist_ok=True)
        container.write(target, native, format, False)
        return
    # Where another model goes, so do the documents that only its format has.
    documented = FORMATS.values() if others else filter(None, [fmt])
    beside = [pattern for each in documented for pattern in each.beside]
    with replacing_files(target, (*container.patterns(), *beside, *map(glob.escape, others))) as stage:
        if fmt is not None and fmt.files is not None:
            for file, held in files.items():
                container.write(stage / file, {name: native[name] for name in held}, format, False)
        else:
            write_native(stage, native, prepared.plan.architecture, format, container, _shard_size(max_shard_size))
        for name, document in documents.items():
            write_atomically(stage / name, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def _documents(prepared: _Prepared) -> dict[str, Any]:
    """The JSON documents of a folder: the format's own, else the configuration, and the preprocessor."""
    planned, fmt = prepared.plan, prepared.target.fmt
    own = fmt.write_side(planned.config, planned.architecture, planned.processor) if fmt else {}
    documents: dict[str, Any] = {CONFIG_NAME: planned.config.to_diff_dict()}
    if planned.processor is not None:
        documents[PREPROCESSOR_NAME] = planned.processor
    return documents | own

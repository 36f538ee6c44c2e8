"""Where models and inputs are: on one device, on another, on two. Without a card, PyTorch's meta device is the other.

What a card alone has is skipped by name elsewhere.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from command import Command
from conftest import CHECKPOINTS
from test_models import TINY

from vit_core.app.cli import main
from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

torch = pytest.importorskip("torch")
vit_torch = pytest.importorskip("vit_torch")

CARD = torch.cuda.is_available()
OTHER = torch.device("cuda", 0) if CARD else torch.device("meta")
needs_card = pytest.mark.skipif(not CARD, reason="needs a CUDA device")
# FlexAttention wants heads of at least 16; in their width, weights of TINY's deviation multiply every rounding.
CONFIG = ViTConfig(**{**TINY, "hidden_size": 64, "initializer_range": 0.1})
MODELS = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
PICTURES = sorted((DIGITS / "pictures").iterdir())
CLS = CHECKPOINTS / "cls" / "pt_safetensors"


def build(cls: str = "ViTForImageClassification", dtype: Any = torch.float64, **changes: Any) -> Any:
    """A model on the processor."""
    with torch.device("cpu"):
        return getattr(vit_torch, cls)(CONFIG.copy(**changes), seed=0).eval().to(dtype)


def pixels(size: tuple[int, int] = (16, 16), dtype: Any = torch.float64) -> Any:
    """Two pictures on the processor."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, *size))).to(dtype)


def tensors(value: Any) -> list[Any]:
    """Every tensor in an output."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in (value.values() if isinstance(value, dict) else value) for tensor in tensors(item)]


def moved(call: dict[str, Any], device: Any) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in call.items()}


CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("ViTModel", {}, {}),
    "everything": ("ViTModel", {}, {"output_hidden_states": True, "output_attentions": True}),
    "interpolation": ("ViTModel", {}, {"pixel_values": pixels((24, 20)), "interpolate_pos_encoding": True}),
    "head mask": ("ViTModel", {}, {"head_mask": torch.ones(2, 4, device="cpu")}),
    "attention mask": ("ViTModel", {}, {"attention_mask": torch.ones(2, 17, device="cpu")}),
    "eager": ("ViTModel", {"attn_implementation": "eager"}, {"attention_mask": torch.ones(2, 17, device="cpu")}),
    "classes": ("ViTForImageClassification", {}, {"labels": torch.tensor([0, 2], device="cpu")}),
    "several labels": ("ViTForImageClassification", {}, {"labels": torch.ones(2, 3, device="cpu")}),
    "numbers": (
        "ViTForImageClassification",
        {"problem_type": "regression"},
        {"labels": torch.ones(2, 3, device="cpu")},
    ),
    "masked patches": (
        "ViTForMaskedImageModeling",
        {},
        {"bool_masked_pos": (torch.arange(32, device="cpu") % 3 == 0).reshape(2, 16)},
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("train", [False, True])
def test_a_call_stays_on_the_device_of_model_and_inputs(name: str, train: bool) -> None:
    """Nothing that a call makes by itself is on the processor: PyTorch refuses to compute with both."""
    cls, changes, call = CALLS[name]
    model, call = build(cls, **changes).train(train), {"pixel_values": pixels(), **call}
    expected = model(**call)
    there = build(cls, **changes).to(OTHER).train(train)
    if train:
        there.gradient_checkpointing_enable()
    actual = there(**moved(call, OTHER))
    assert {tensor.device for tensor in tensors(actual)} == {OTHER}
    assert [tensor.shape for tensor in tensors(actual)] == [tensor.shape for tensor in tensors(expected)]
    if CARD:
        assert_close(actual, expected, tolerances.SAME_FUNCTION_FLOAT64)
    sum(tensor.sum() for tensor in tensors(actual) if tensor.is_floating_point()).backward()
    assert {p.grad.device for p in there.parameters() if p.grad is not None} == {OTHER}


@needs_card
def test_inputs_on_another_device_are_refused() -> None:
    model = build().to(OTHER)
    with pytest.raises(RuntimeError, match=r"same device|should be the same"):
        model(pixels())
    with pytest.raises(RuntimeError, match="same device"):
        model(pixels().to(OTHER), labels=torch.tensor([0, 1], device="cpu"))


# ---- loading to a device -------------------------------------------------------------------------------------------


@needs_card
@pytest.mark.parametrize("folder", ["cls", "base"])  # the second has no head: it is drawn
@pytest.mark.parametrize("seed", [None, 0])
def test_models_are_read_to_the_default_device(folder: str, seed: int | None) -> None:
    with torch.device(OTHER):
        model, _ = vit_torch.ViTForImageClassification.from_pretrained(
            CHECKPOINTS / folder / "pt_safetensors", seed=seed, output_loading_info=True
        )
    assert {p.device for p in model.parameters()} == {OTHER}
    assert model.device == OTHER


@pytest.mark.parametrize("form", [lambda d: d, str, lambda d: {"": d}, lambda d: {"": str(d)}])
def test_device_map(form: Any) -> None:
    there = OTHER if CARD else torch.device("cpu")
    model = vit_torch.ViTForImageClassification.from_pretrained(CLS, device_map=form(there))
    assert {p.device for p in model.parameters()} == {there}
    for device_map in ("auto", "cpu", -1):
        model = vit_torch.ViTForImageClassification.from_pretrained(CLS, device_map=device_map)
        assert model.device.type == ("cuda" if CARD and device_map == "auto" else "cpu")
    if CARD:
        assert vit_torch.ViTForImageClassification.from_pretrained(CLS, device_map=0).device == OTHER


@pytest.mark.parametrize("device_map", ["cuda:77", "meta", 1.5, "nowhere"])
def test_a_device_that_is_not_there_is_refused(device_map: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"device={device_map!r} can't be used \(.*\): pass one that this machine has"
    ):
        vit_torch.ViTModel.from_pretrained(CLS, device_map=device_map)


# ---- pipelines -----------------------------------------------------------------------------------------------------

DEVICES = ["cpu", -1, torch.device("cpu"), ["cpu", "cpu"]]
CUDA_DEVICES = [0, "cuda", "cuda:0", OTHER, ["cuda:0", "cpu"], ["cuda:0", "cuda:0"]]


def check_pipeline(device: Any) -> None:
    expected = pipeline(device="cpu", dtype="float64")(PICTURES, batch_size=3)
    actual = pipeline(device=device, dtype="float64")(PICTURES, batch_size=3)
    for ours, theirs in zip(actual, expected, strict=True):
        assert [each["label"] for each in ours] == [each["label"] for each in theirs]
        scores = ([each["score"] for each in each_list] for each_list in (ours, theirs))
        assert_close(*scores, tolerances.SAME_FUNCTION_FLOAT64, each=True)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_pipelines_on_devices(device: Any) -> None:
    check_pipeline(device)


@needs_card
@pytest.mark.parametrize("device", CUDA_DEVICES, ids=str)
def test_pipelines_on_a_card(device: Any) -> None:
    check_pipeline(device)


@pytest.mark.parametrize(
    "devices", ["cpu", "cpu,cpu", *(pytest.param(each, marks=needs_card) for each in ("cuda", "cuda:0,cpu", "cuda:0"))]
)
def test_classify_on_devices(devices: str, capsys: pytest.CaptureFixture[str]) -> None:
    vit = Command("vit", main, capsys)
    found, expected = (
        vit.json("classify", DIGITS / "pictures", "--batch-size", 4, "--devices", each)["images"]
        for each in (devices, "cpu")
    )
    classifier = pipeline(device="cpu")
    logits = [each["score"] for result in classifier(PICTURES, function_to_apply="none", top_k=None) for each in result]
    bound = tolerances.probabilities(classifier.model.config, max(map(abs, logits)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["file"] == theirs["file"]
        assert ours["predictions"][0]["label"] == theirs["predictions"][0]["label"]
        assert_close(ours["predictions"][0]["score"], theirs["predictions"][0]["score"], bound)


# ---- several devices -----------------------------------------------------------------------------------------------


def test_data_parallel_on_one_device() -> None:
    """On the processor the wrapper is the module; on one card it puts inputs there."""
    model = build()
    call = {"pixel_values": pixels(), "labels": torch.tensor([0, 1], device="cpu")}
    expected = model(**call)
    parallel = torch.nn.DataParallel(model.cuda() if CARD else model)
    actual = parallel(**call)
    assert type(actual) is type(expected)
    assert_close(actual, expected, tolerances.SAME_FUNCTION_FLOAT64)
    actual.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("return_dict", [False, True])
def test_data_parallel_gathers_what_several_devices_give(monkeypatch: pytest.MonkeyPatch, return_dict: bool) -> None:
    from torch.nn.parallel import scatter_gather

    monkeypatch.setattr(scatter_gather.Gather, "apply", lambda device, dim, *parts: torch.cat(parts, dim))
    model, options = build(), {"output_hidden_states": True, "return_dict": return_dict}
    found = scatter_gather.gather([model(half, **options) for half in pixels().split(1)], 0)
    expected = model(pixels(), **options)
    assert type(found) is type(expected)
    assert_close(found, expected, tolerances.SAME_FUNCTION_FLOAT64)


def test_fsdp_on_one_device() -> None:
    """FSDP2 over a mesh of one: losses and gradients are those of the model alone."""
    from torch.distributed import HashStore, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from trainings import need

    need("torch")
    engine = import_module("vit_torch.engine")
    device = OTHER if CARD else torch.device("cpu")
    init_process_group("cpu:gloo,cuda:nccl" if CARD else "gloo", store=HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (1,))
    try:
        check_fsdp(device, mesh, fully_shard)
    finally:
        engine.leave(mesh)


def check_fsdp(device: Any, mesh: Any, fully_shard: Any) -> None:
    """In a function of its own: what is left of a sharded model keeps threads alive."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    call = moved({"pixel_values": pixels(), "labels": torch.tensor([0, 1], device="cpu")}, device)
    alone, sharded = build().to(device), build().to(device)
    for layer in sharded.vit.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    losses = [model(**call).loss for model in (alone, sharded)]
    assert_close(*losses, tolerances.SAME_FUNCTION_FLOAT64)
    for loss in losses:
        loss.backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}
    actual = {name: p.grad.full_tensor() for name, p in sharded.named_parameters()}
    assert_close(actual, expected, tolerances.SAME_FUNCTION_FLOAT64)
    with pytest.raises(ValueError, match=r"cls_token is divided over the processes, .*full_state_dict=True"):
        sharded.save_pretrained("nowhere")
    register_fsdp_forward_method(sharded, "features")
    vectors = [model.eval().features(call["pixel_values"], pool="mean") for model in (alone, sharded)]
    assert_close(*vectors, tolerances.SAME_FUNCTION_FLOAT64)


# ---- what a card alone has -----------------------------------------------------------------------------------------


@needs_card
@pytest.mark.parametrize("name", [name for name in CALLS if name != "everything"])
def test_cuda_graphs(name: str) -> None:
    """A call is captured, and replayed with other pixels: nothing in it waits for the processor."""
    cls, changes, call = CALLS[name]
    model, call = build(cls, **changes).to(OTHER), moved({"pixel_values": pixels(), **call}, OTHER)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(**call)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(**call)
        call["pixel_values"].mul_(2)
        graph.replay()
        assert_close(captured, model(**call), tolerances.SAME_FUNCTION_FLOAT64)


@needs_card
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_on_a_card(mode: str) -> None:
    torch._dynamo.reset()
    model, x = build().to(OTHER), pixels().to(OTHER)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    with torch.no_grad():
        for _ in range(3):
            assert_close(compiled(x).logits.clone(), model(x).logits, tolerances.SAME_FUNCTION_FLOAT64)


@needs_card
def test_outputs_of_cuda_graphs_that_are_kept() -> None:
    """Under reduce-overhead the next step writes its outputs where the last ones are: what is kept is a clone."""
    torch._dynamo.reset()
    model = build().to(OTHER)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    batches = [scale * pixels().to(OTHER) for scale in (1, 2, 3, 1, 2, 3)]  # of which two warm up and record
    kept = []
    with torch.no_grad():
        for x in batches:
            torch.compiler.cudagraph_mark_step_begin()
            last = compiled(x, output_hidden_states=True)
            kept.append(torch.utils._pytree.tree_map(torch.clone, last))
        torch.compiler.cudagraph_mark_step_begin()
        compiled(batches[0], output_hidden_states=True)
        with pytest.raises(RuntimeError, match="overwritten by a subsequent run"):
            last.logits.cpu()
        for x, found in zip(batches, kept, strict=True):
            expected = model(x, output_hidden_states=True)
            assert type(found) is type(expected)
            assert_close(found, expected, tolerances.SAME_FUNCTION_FLOAT64)


@needs_card
def test_training_by_cuda_graphs() -> None:
    """Steps under reduce-overhead have the losses and gradients of the model that is not compiled."""
    torch._dynamo.reset()
    model, labels = build().to(OTHER).train(), torch.tensor([0, 2], device=OTHER)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for scale in (1, 2, 3, 4):
        found = []
        for each in (model, compiled):
            torch.compiler.cudagraph_mark_step_begin()
            loss = each(scale * pixels().to(OTHER), labels=labels).loss
            loss.backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
            found.append((loss.detach().clone(), gradients))
            model.zero_grad()
        assert_close(found[1], found[0], tolerances.SAME_FUNCTION_FLOAT64)


def test_batches_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor returns is pinned tensor by tensor, and stays what it is."""
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned: list[Any] = []
    if not CARD:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self) or self)
    batch = ViTImageProcessor.from_pretrained(DIGITS)(PICTURES[:2], return_tensors="pt")
    found = pin_memory(batch)
    assert type(found) is type(batch)
    assert found is not batch
    assert_close(found.pixel_values, batch.pixel_values, 0.0)
    assert found.pixel_values.is_pinned() if CARD else pinned[0] is batch.pixel_values


@needs_card
def test_a_loader_that_pins_feeds_a_model() -> None:
    processor, model = ViTImageProcessor.from_pretrained(DIGITS), pipeline(device="cpu", dtype="float64").model
    data = [processor(picture, return_tensors="pt").pixel_values[0] for picture in PICTURES]
    loader = torch.utils.data.DataLoader(data, batch_size=4, pin_memory=True)
    with torch.no_grad(), torch.device("cpu"):
        expected = torch.cat([model(batch).logits for batch in loader])
        model.to(OTHER)
        actual = torch.cat([model(batch.to(OTHER, non_blocking=True)).logits for batch in loader])
    assert_close(actual, expected, tolerances.SAME_FUNCTION_FLOAT64)


@pytest.mark.parametrize("pinned", [False, True])
def test_batches_of_a_training(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (CARD and pinned):
        monkeypatch.setattr(torch.Tensor, "pin_memory", None)  # is not called
    device = OTHER if CARD else torch.device("cpu")
    batch = [pixels().numpy(), np.arange(2)]
    found = import_module("vit_torch.engine").Place(device, 0, 1, None).batch(batch, pinned)
    assert {each.device for each in found} == {device}
    for tensor, array in zip(found, batch, strict=True):
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


# ---- half precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex", marks=needs_card)])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_in_pytorch(dtype: str, attention: str, masked: bool) -> None:
    """Outputs and gradients on the card, or the processor, against float64 on the processor."""
    device = OTHER if CARD else torch.device("cpu")
    call = {"attention_mask": (torch.arange(17, device="cpu") % 4 != 1).expand(2, -1)} if masked else {}
    weights = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3)))
    found = []
    for place, precision, how in (("cpu", torch.float64, "eager"), (device, getattr(torch, dtype), attention)):
        model = build(dtype=precision, attn_implementation=how).to(place)
        logits = model(pixels(dtype=precision).to(place), **moved(call, place)).logits
        (logits * weights.to(logits)).sum().backward()
        gradients = {name: p.grad.double().cpu() for name, p in model.named_parameters()}
        found.append((logits.detach().double().cpu(), gradients))
    (expected, exact), (actual, gradients) = found
    assert_close(actual, expected, tolerances.rounding(CONFIG, dtype), "logits")
    assert_close(gradients, exact, tolerances.rounding(CONFIG, dtype, gradient=True), "gradients")


@needs_card
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex"])
def test_autocast_on_a_card(attention: str) -> None:
    expected = build()(pixels()).logits
    model = build(dtype=torch.float32, attn_implementation=attention).to(OTHER)
    with torch.autocast("cuda", torch.float16):
        output = model(pixels(dtype=torch.float32).to(OTHER), labels=torch.tensor([0, 1], device=OTHER))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert_close(output.logits.double(), expected, tolerances.rounding(CONFIG, "float16"))


def jax_device() -> Any:
    """JAX's first device: a card where it sees one."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("vit_flax")
    jax.config.update("jax_enable_x64", True)
    return jax.devices()[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "cudnn"])
def test_half_precision_in_jax(dtype: str, attention: str) -> None:
    """Outputs and gradients on JAX's first device against PyTorch's float64 on the processor."""
    place = jax_device()
    if attention == "cudnn" and place.platform != "gpu":
        pytest.skip("needs a CUDA device")
    jax, vit_flax = import_module("jax"), import_module("vit_flax")
    weights = np.random.default_rng(1).standard_normal((2, 3))
    model = build()
    logits = model(pixels()).logits
    (logits * torch.from_numpy(weights)).sum().backward()
    gradients = {name: model.get_parameter(native).grad.numpy() for native, name in names(model).items()}
    stored = model.to_tensors()
    config = CONFIG.copy(dtype=dtype, attn_implementation=attention)
    ours = vit_flax.FlaxViTForImageClassification.from_tensors(config, stored, None)
    ours.params = jax.device_put(ours.to_bf16(ours.params) if dtype == "bfloat16" else ours.to_fp16(ours.params), place)
    x = jax.device_put(pixels().numpy().astype(dtype), place)

    def total(params: Any) -> Any:
        output = ours.module.apply({"params": params}, x)
        return (output.logits * weights.astype(dtype)).sum(), output.logits

    program = jax.jit(jax.grad(total, has_aux=True)).lower(ours.params)
    assert ("__cudnn$fmhaSoftmaxBackward" in program.as_text()) == (attention == "cudnn")
    ours.params, found = program.compile()(ours.params)
    assert found.devices() == {place}
    assert_close(np.float64(found), logits.detach().numpy(), tolerances.rounding(CONFIG, dtype), "logits")
    actual = {name: np.float64(tensor.read()) for name, tensor in ours.to_tensors().items()}
    assert_close(actual, gradients, tolerances.rounding(CONFIG, dtype, gradient=True), "gradients")


def names(model: Any) -> dict[str, str]:
    """The canonical name of each parameter by its own."""
    return {native: spec.name for native, spec in model.specs().items()}


def test_parameters_say_where_jax_computes() -> None:
    """With its parameters on the processor a model runs there, whatever else JAX sees."""
    jax_device()
    jax, vit_flax = import_module("jax"), import_module("vit_flax")
    try:
        (place, *_) = jax.devices("cpu")
    except RuntimeError:
        pytest.skip("JAX_PLATFORMS leaves the processor out")
    model = vit_flax.FlaxViTForImageClassification.from_pretrained(CLS)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    expected = model(x).logits
    found = model(x, params=jax.device_put(model.params, place)).logits
    assert found.devices() == {place}
    assert_close(np.asarray(found), np.asarray(expected), tolerances.both_rounded(model.config))


def test_a_saved_model_is_that_of_the_processor(tmp_path: Path) -> None:
    """Weights on a card are written as they are; on the processor this is what every save does."""
    model = build().to(OTHER if CARD else "cpu")
    model.save_pretrained(tmp_path)
    again = vit_torch.ViTForImageClassification.from_pretrained(tmp_path, dtype="float64", device_map="cpu")
    for name, parameter in build().named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)

"""What PyTorch users expect of the PyTorch models, beyond what every backend does."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from conftest import CHECKPOINTS
from members import config_for
from test_models import TINY

from vit_core.config import ViTConfig
from vit_core.family import VIT
from vit_core.params import TORCH_V5, native_name, specs

torch = pytest.importorskip("torch")
vit_torch = pytest.importorskip("vit_torch")

CONFIG = ViTConfig(**TINY)
MODELS = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")


SAME = tolerances.SAME_FUNCTION_FLOAT64


def build(cls: str = "ViTForImageClassification", **changes: Any) -> Any:
    """A model in float64, in which two ways to compute the same give the same."""
    return getattr(vit_torch, cls)(CONFIG.copy(**changes), seed=0).eval().double()


def of_member(cls: str) -> Any:
    """A model of any member, as `build` makes ViT's."""
    return getattr(vit_torch, cls)(config_for(cls, **TINY), seed=0).eval().double()


def pixels(batch: int = 2, size: tuple[int, int] = (16, 16)) -> Any:
    drawn = np.random.default_rng(0).standard_normal((batch, 3, *size))
    return torch.from_numpy(drawn).to(torch.get_default_device())


def call_of(cls: str, batch: int = 2) -> dict[str, Any]:
    """A call with a loss."""
    call = {"pixel_values": pixels(batch)}
    if cls == "ViTForImageClassification":
        call["labels"] = torch.arange(batch) % 3
    if cls == "ViTForMaskedImageModeling":
        call["bool_masked_pos"] = (torch.arange(batch * 16).reshape(batch, 16) % 3) == 0
    return call


def main_output(output: Any) -> Any:
    return next(output[name] for name in ("logits", "reconstruction", "last_hidden_state") if name in output)


# ---- compile and export ------------------------------------------------------------------------------------------

COMPILE_CALLS = {
    "plain": {},
    "options": {"output_hidden_states": True, "output_attentions": True},
    "head mask": {"head_mask": torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64)},
    "attention mask": {"attention_mask": (torch.arange(17) % 4 != 1).expand(2, -1)},
    "interpolation": {"pixel_values": pixels(size=(24, 20)), "interpolate_pos_encoding": True},
    "tuple": {"return_dict": False},
}
# The trunk is the same under every head: one model takes all calls, the others those that reach their heads.
COMPILED = [("ViTModel", name) for name in COMPILE_CALLS] + [(c, n) for c in MODELS[1:] for n in ("plain", "tuple")]


@pytest.mark.parametrize(("cls", "name"), COMPILED)
def test_compiles_without_graph_breaks(cls: str, name: str) -> None:
    model = build(cls)
    call = {**call_of(cls), **COMPILE_CALLS[name]}
    torch._dynamo.reset()
    backend = "eager" if name == "tuple" else "aot_eager"  # what is in a tuple is what is in the output
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    expected, actual = model(**call), compiled(**call)
    assert type(actual) is type(expected)
    assert_close(actual, expected, SAME)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor compiles C++")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_with_the_default_backend(dynamic: bool) -> None:
    model = build(num_hidden_layers=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for batch in (2, 3):
        call = call_of("ViTForImageClassification", batch)
        actual, expected = compiled(**call), model(**call)
        assert_close(actual, expected, SAME)


def test_compiles_with_a_default_device() -> None:
    """Which PyTorch's own compiler sees as a mode in which some methods of tensors are not there."""
    model, call = build("ViTForMaskedImageModeling"), call_of("ViTForMaskedImageModeling")
    expected = model(**call)
    torch._dynamo.reset()
    with torch.device(torch.get_default_device()):
        actual = torch.compile(model, fullgraph=True, backend="eager")(**call)
    assert_close(actual, expected, SAME)


def test_errors_under_compile_have_the_same_words() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(build(), backend="eager")
    with pytest.raises(ValueError, match=r"Input image size \(24\*20\) doesn't match model \(16\*16\)\."):
        compiled(pixels(size=(24, 20)))


@pytest.mark.parametrize("cls", MODELS)
def test_exports_with_a_dynamic_batch(cls: str, tmp_path: Path) -> None:
    model = build(cls)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (pixels(2),), dynamic_shapes={"pixel_values": {0: batch}})
    torch.export.save(program, tmp_path / "vit.pt2")
    again = torch.export.load(tmp_path / "vit.pt2").module()
    for size in (1, 5):
        output = again(pixels(size))
        assert type(output) is type(model(pixels(size)))
        assert_close(main_output(output), main_output(model(pixels(size))), SAME)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # PyTorch's own, of its own
@pytest.mark.parametrize(("cls", "size"), [("ViTForImageClassification", 16), ("Dinov2Model", 16), ("Dinov2Model", 24),
                                           ("Dinov2WithRegistersModel", 24)])  # fmt: skip
def test_exports_hold_no_operation_that_core_ml_has_not(cls: str, size: int) -> None:
    """coremltools 9.0 refuses these, whatever they compute."""
    model = getattr(vit_torch, cls)(config_for(cls, **TINY), seed=0).eval()
    program = torch.export.export(model, (torch.zeros(1, 3, size, size),)).run_decompositions({})
    held = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not held & {"aten.alias.default", "aten.where.ScalarOther", "aten.__and__.Tensor"}
    assert any("arange" in name for name in held) == (size != 16)  # positions are computed for another size alone


@pytest.mark.parametrize(("cls", "strict"), [*((cls, False) for cls in MODELS), ("ViTModel", True)])
def test_exports_with_a_dynamic_image_size(cls: str, strict: bool) -> None:
    model = build(cls)
    sizes = {2: 4 * torch.export.Dim("rows", min=2, max=32), 3: 4 * torch.export.Dim("columns", min=2, max=32)}
    program = torch.export.export(
        model,
        (pixels(2, (24, 20)),),
        {"interpolate_pos_encoding": True},
        dynamic_shapes={"pixel_values": sizes, "interpolate_pos_encoding": None},
        strict=strict,
    ).module()
    for size in ((24, 20), (16, 40), (8, 12), (16, 16)):  # the last is the model's own
        x = pixels(2, size)
        expected = main_output(model(x, interpolate_pos_encoding=True))
        assert_close(main_output(program(x, interpolate_pos_encoding=True)), expected, SAME)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cls", MODELS)
def test_linear_layers_read_packed_memory(cls: str, batch: int) -> None:
    """Not a view with strides of more tokens, which exporters and quantised kernels misread: tests/oracle has both."""

    strides: list[tuple[Any, Any]] = []

    class Reads(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.nn.functional.linear, torch.nn.functional.layer_norm, torch.conv2d):
                strides.append((args[0].stride(), torch.empty(args[0].shape).stride()))
            return function(*args, **(kwargs or {}))

    model = build(cls)
    with Reads():
        model(pixels(batch), **({"tokens": 1} if cls == "ViTModel" else {}))
    assert len(strides) == 19  # two convolutions or one and a head, eight in each layer, the last norm
    assert all(found == packed for found, packed in strides), strides


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cls", MODELS)
def test_traces_to_a_dict(cls: str) -> None:
    model = build(cls)
    traced = torch.jit.trace(model, pixels(2), strict=False)
    for batch in (2, 5):
        expected = model(pixels(batch))
        actual = traced(pixels(batch))
        assert list(actual) == list(expected)
        assert_close(actual, dict(expected), SAME)


# ---- hooks -------------------------------------------------------------------------------------------------------

HOOKS = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
         "register_full_backward_pre_hook")  # fmt: skip


def tokens_at(model: Any, name: str, watch: Any) -> int:
    """How many tokens come out of a module of a classifier, with the hook that `watch` registers."""
    found = []
    module = model.get_submodule(name)
    original = type(module).forward

    def noting(self: Any, *args: Any) -> Any:
        output = original(self, *args)
        found.extend([output] if self is module else [])
        return output

    type(module).forward = noting  # for its class: one of its own would be seen
    handle = watch() if watch else None
    model(pixels()).logits.sum().backward()
    if handle is not None:
        handle.remove()
    type(module).forward = original
    return found[0].shape[1]


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # of modules that return no tensor
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ["encoder.layer.1.output", "encoder.layer.1.attention.attention.query", "layernorm",
                                  "encoder", "encoder.layer.1", ""])  # fmt: skip
def test_hooks_see_all_tokens(kind: str, name: str) -> None:
    model = build()
    seen = "vit.encoder.layer.1.output.dense"
    watched = model.vit.get_submodule(name)
    assert tokens_at(model, seen, None) == 1
    assert tokens_at(model, seen, lambda: getattr(watched, kind)(lambda *_: None)) == 17
    assert tokens_at(model, seen, None) == 1


def test_heads_can_be_cut_out() -> None:
    """As pruners do it, who read an attention's sizes, cut its layers and set the sizes: as if a mask silenced them."""
    model, kept, layer = build(), (1, 3), 0
    mask = torch.ones(2, 4, dtype=torch.float64)
    mask[layer, [0, 2]] = 0
    expected = model(pixels(), head_mask=mask).logits
    block = model.vit.encoder.layer[layer].attention
    attention, width = block.attention, block.attention.attention_head_size
    assert (attention.num_attention_heads, width, attention.all_head_size) == (4, 4, 16)
    rows = torch.cat([torch.arange(width) + width * head for head in kept])
    for each in (attention.query, attention.key, attention.value):
        each.weight, each.bias = torch.nn.Parameter(each.weight[rows]), torch.nn.Parameter(each.bias[rows])
    block.output.dense.weight = torch.nn.Parameter(block.output.dense.weight[:, rows])
    attention.num_attention_heads, attention.all_head_size = len(kept), len(rows)
    assert_close(model(pixels()).logits, expected, SAME)
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.attention\.query\.weight: \(8, 16\), \(16, 16\)"):
        model.save_pretrained("never-written")


def test_hooks_on_all_modules_and_elsewhere() -> None:
    from torch.nn.utils import prune

    model, seen = build(), "vit.encoder.layer.1.output.dense"
    anywhere = torch.nn.modules.module.register_module_forward_hook
    assert tokens_at(model, seen, lambda: anywhere(lambda *_: None)) == 17
    prune.identity(model.vit.encoder.layer[1].output.dense, "weight")  # by a hook of PyTorch's own
    assert tokens_at(model, seen, None) == 1
    for name in ("vit.embeddings", "vit.encoder.layer.0.output", "classifier"):  # where no token is left out
        assert tokens_at(model, seen, lambda name=name: model.get_submodule(name).register_forward_hook(print)) == 1


class Mixing(torch.nn.Module):
    """A layer and the mean of its tokens, as adapters compute that let them see each other."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        x = self.inner(*args)
        return x + x.mean(1, keepdim=True)


def mixed_by_a_module(layer: Any) -> None:
    layer.intermediate = Mixing(layer.intermediate)


def mixed_by_a_forward(layer: Any) -> None:
    layer.output.forward = Mixing(layer.output.forward).forward


@pytest.mark.parametrize("mix", [mixed_by_a_module, mixed_by_a_forward])
def test_modules_of_users_see_all_tokens(mix: Any) -> None:
    model, whole = build(), build(skip_unread_tokens=False)
    for each in (model, whole):
        mix(each.vit.encoder.layer[-1])
    assert_close(model(pixels()).logits, whole(pixels()).logits, SAME)
    assert_close(model.features(pixels()), whole.features(pixels()), SAME)


def test_features_leave_nothing_out_where_somebody_looks() -> None:
    shapes: list[tuple[int, ...]] = []
    model = build()
    for layer in model.vit.encoder.layer:
        layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    model.features(pixels())
    model.features(pixels(), layers=1)
    assert set(shapes) == {(2, 17, 16)}


def test_layers_with_the_signature_of_transformers() -> None:
    class Layer(torch.nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden_states: Any, head_mask: Any = None) -> Any:
            return self.layer(hidden_states, head_mask)

    model, mask = build(), torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    for layer in model.vit.encoder.layer:
        layer.attention.attention = Layer(layer.attention.attention)
        layer.attention = Layer(layer.attention)
    model.vit.encoder.layer[0] = Layer(model.vit.encoder.layer[0])
    assert_close(model(pixels(), head_mask=mask).logits, build()(pixels(), head_mask=mask).logits, SAME)


@pytest.mark.parametrize("cls", ["ViTModel", "BeitModel"])
def test_hooks_build_anew_what_layers_are_given(cls: str) -> None:
    """As libraries do that copy or detach it: a tuple of the same kind, of what was in the other."""

    def anew(value: Any) -> Any:
        return type(value)([anew(each) for each in value]) if isinstance(value, tuple) else value

    model = of_member(cls)
    expected = model(pixels()).last_hidden_state
    for module in model.modules():
        module.register_forward_pre_hook(lambda _, given: anew(given))
    assert_close(model(pixels()).last_hidden_state, expected, SAME)


@pytest.mark.parametrize("cls", ["ViTForImageClassification", "Dinov2WithRegistersBackbone", "ViTMAEForPreTraining"])
def test_modules_with_parameters_are_given_tensors(cls: str) -> None:
    """By place, for what hooks of Opacus and others take it: options go by keyword."""
    model = of_member(cls)
    for module in model.modules():
        if [*module.parameters(recurse=False)]:
            module.register_forward_pre_hook(lambda _, given: tuple(each.detach() for each in given))
    model(pixels())
    model.features(pixels())


@pytest.mark.parametrize("cls", ["ViTForMaskedImageModeling", "DeiTModel", "BeitModel", "BeitBackbone",
                                 "Dinov2WithRegistersModel", "ViTMAEForPreTraining"])  # fmt: skip
def test_parameters_come_when_they_are_used(cls: str) -> None:
    """As accelerate's offloading does it: a module's own are on the meta device but in its forward pass."""
    model = of_member(cls)
    call = {"pixel_values": pixels(size=(20, 24)), "interpolate_pos_encoding": True}
    if cls.startswith("ViTMAE"):
        call["noise"] = torch.rand(2, 30)
    expected = model(**call)[0]
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        away = {name: torch.nn.Parameter(each.to("meta")) for name, each in own.items()}
        module._parameters.update(away)
        module.register_forward_pre_hook(lambda module, _, own=own: module._parameters.update(own))
        module.register_forward_hook(lambda module, _, __, away=away: module._parameters.update(away))
    assert_close(model(**call)[0], expected, SAME)


@pytest.mark.parametrize("backend", ["aot_eager", "export"])
def test_hooks_under_a_compiler(backend: str) -> None:
    """A hook is seen when the call is traced."""
    model, shapes = build(), []
    model.vit.layernorm.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    expected = build()(pixels()).logits
    torch._dynamo.reset()
    if backend == "export":
        found = torch.export.export(model, (pixels(),)).module()(pixels())
    else:
        found = torch.compile(model, backend=backend)(pixels())
    assert_close(found.logits, expected, SAME)
    assert tuple(shapes[0]) == (2, 17, 16)


def test_layers_return_probabilities_where_they_are_asked_for() -> None:
    model, found = build(), {}
    for name in ("layer.1", "layer.1.attention"):
        model.vit.encoder.get_submodule(name).register_forward_hook(lambda _, __, o, name=name: found.update({name: o}))
    model(pixels())
    assert all(isinstance(output, torch.Tensor) for output in found.values())
    attentions = model(pixels(), output_attentions=True).attentions
    for state, probs in found.values():
        assert state.shape == (2, 17, 16)
        assert probs is attentions[1]


# ---- attention ---------------------------------------------------------------------------------------------------


NO_FLEX = shutil.which("g++") is None or torch.backends.cpu.get_cpu_capability() == "DEFAULT"
flexible = pytest.mark.skipif(NO_FLEX, reason="the inductor compiles C++, and its kernel needs AVX2")


@flexible
@pytest.mark.parametrize("name", ["plain", "head mask", "attention mask", "options"])
def test_flex_attention(name: str) -> None:
    config = {"hidden_size": 64}  # FlexAttention wants heads of at least 16
    expected = build(**config)(pixels(), **COMPILE_CALLS[name])
    with torch.no_grad():
        model = build(**config, attn_implementation="flex").float()  # on CPUs it is compiled for float32 alone
        actual = model(pixels(), **COMPILE_CALLS[name])
    assert_close(actual.logits.double(), expected.logits, tolerances.rounding(model.config))
    assert (actual.attentions is None) == (name != "options")


@flexible
def test_flex_attention_of_one_bias_after_another() -> None:
    config = config_for("BeitModel", **{**TINY, "hidden_size": 64, "num_hidden_layers": 1})
    model = vit_torch.BeitModel(config, seed=0).eval().requires_grad_(False)
    torch.nn.init.normal_(model.encoder.relative_position_bias.relative_position_bias_table)
    found = []
    for how in ("eager", "flex"):
        model.set_attn_implementation(how)
        outputs = [model(pixels().float(), **COMPILE_CALLS[name]) for name in ("plain", "attention mask")]
        found.append([output.last_hidden_state for output in outputs])
    assert_close(found[1], found[0], tolerances.both_rounded(config))


def test_flex_attention_has_no_dropout() -> None:
    model = build(attn_implementation="flex_attention", attention_probs_dropout_prob=0.1, hidden_size=64).train()
    with pytest.raises(ValueError, match="attn_implementation='flex' has no attention dropout"):
        model(pixels())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_only_in_training(attention: str) -> None:
    model = build(attn_implementation=attention, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    assert torch.equal(model(pixels()).logits, model(pixels()).logits)
    model.train()
    torch.manual_seed(0)
    first = model(pixels()).logits
    assert not torch.equal(first, model(pixels()).logits)
    torch.manual_seed(0)
    assert torch.equal(first, model(pixels()).logits)


def test_head_mask_gets_gradients() -> None:
    for attention in ("eager", "sdpa"):
        mask = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
        build(attn_implementation=attention)(pixels(), head_mask=mask).logits.square().sum().backward()
        assert mask.grad is not None
        assert (mask.grad != 0).all()


# ---- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False}])
def test_gradient_checkpointing_changes_nothing_but_memory(cls: str, kwargs: Any) -> None:
    model = build(cls, hidden_dropout_prob=0.1, num_hidden_layers=3).train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(kwargs)
    assert other.is_gradient_checkpointing
    saved: dict[int, int] = {0: 0, 1: 0}
    for i, m in enumerate((model, other)):

        def pack(tensor: Any, i: int = i) -> Any:
            saved[i] += tensor.numel()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            main_output(m(**call_of(cls))).square().mean().backward()
    gradients = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (other, model))
    assert_close(*gradients, SAME)
    assert saved[1] < saved[0] / 2
    other.gradient_checkpointing_disable()
    assert not other.is_gradient_checkpointing


def test_gradients_agree_across_attentions() -> None:
    found = []
    for attention in ("eager", "sdpa"):
        model = build(attn_implementation=attention)
        model(**call_of("ViTForImageClassification")).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    assert_close(*found, SAME)


def test_gradcheck_through_interpolation_and_masks() -> None:
    model = build("ViTForMaskedImageModeling", num_hidden_layers=1)
    x = pixels(1, (8, 12)).requires_grad_()
    mask = torch.tensor([[1, 0, 1, 0, 0, 1]])

    def loss(x: Any) -> Any:
        return model(x, bool_masked_pos=mask, interpolate_pos_encoding=True).loss

    assert torch.autograd.gradcheck(loss, (x,), eps=1e-6, atol=1e-6)


def test_autocast() -> None:
    load = vit_torch.ViTForImageClassification.from_pretrained
    model, exact = (load(CHECKPOINTS / "cls" / "pt_safetensors", dtype=dtype) for dtype in ("float32", "float64"))
    call = {"pixel_values": pixels(size=(32, 32)), "labels": torch.tensor([0, 1])}
    with torch.autocast(model.device.type, torch.bfloat16):
        output = model(**call)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert_close(output.logits.double(), exact(**call).logits, tolerances.rounding(model.config, "bfloat16"))


@pytest.mark.parametrize(
    ("cls", "targets"),
    [
        ("ViTForImageClassification", {"labels": [1, 2]}),
        ("BeitForMaskedImageModeling", {"labels": [1, 2], "bool_masked_pos": torch.ones(2, 16)}),
        ("DeiTForImageClassificationWithTeacher", {"teacher_logits": [1, 2], "labels": torch.tensor([1, 2])}),
    ],
)
def test_targets_that_are_no_tensors(cls: str, targets: dict[str, Any]) -> None:
    model, name = getattr(vit_torch, cls)(config_for(cls, **TINY)).double(), next(iter(targets))
    with pytest.raises(TypeError, match=f"{name} must be a tensor of the model's framework: got a list"):
        model(pixels(), **targets)


def test_it_learns() -> None:
    """A few steps of plain PyTorch bring the loss of a fixed batch near zero."""
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(**call_of("ViTForImageClassification", 6)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


# ---- modules, state dicts, memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MODELS)
def test_state_dict_has_the_names_of_the_table(cls: str) -> None:
    model = build(cls)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert set(model.state_dict()) == set(model.specs())
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {n: s.shape for n, s in model.specs().items()}


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("outer", ["", "backbone."])
def test_state_dicts_since_transformers_5_9_load(cls: str, outer: str) -> None:
    source, target = build(cls), getattr(vit_torch, cls)(CONFIG)
    prefixed = cls != "ViTModel"
    state = {
        outer + native_name(spec, TORCH_V5, prefixed): source.state_dict()[n] for n, spec in source.specs().items()
    }
    keys = list(state)
    module = torch.nn.ModuleDict({"backbone": target}) if outer else target
    module.load_state_dict(state)
    assert list(state) == keys
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
    module.load_state_dict({outer + n: p for n, p in source.state_dict().items()})
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})


def test_surface() -> None:
    model = build()
    assert model.get_input_embeddings() is model.vit.embeddings.patch_embeddings
    model.classifier.requires_grad_(False)
    total = model.num_parameters()
    assert total - model.num_parameters(only_trainable=True) == 16 * 3 + 3
    assert (model.dtype, model.device) == (torch.float64, torch.get_default_device())
    assert model.half().dtype == torch.float16
    assert build("ViTModel").get_input_embeddings().projection.kernel_size == (4, 4)


def test_callable_activation() -> None:
    given, named = (build(hidden_act=act)(pixels()).logits for act in (torch.nn.functional.relu, "relu"))
    assert_close(given, named, SAME)


def test_loading_initialises_nothing(monkeypatch: Any) -> None:
    """A complete checkpoint is filled in on the meta device: no parameter is drawn, none stays on it."""

    def drawn(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.is_meta, "a parameter was initialised to be thrown away"
        return self

    for name in ("uniform_", "normal_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, name, drawn)
    model = vit_torch.ViTForImageClassification.from_pretrained(CHECKPOINTS / "cls" / "pt_safetensors")
    assert not model.training
    assert all(not p.is_meta and p.requires_grad and p.is_leaf for p in model.parameters())


def test_meta_device() -> None:
    with torch.device("meta"):
        model = vit_torch.ViTModel(ViTConfig.variant("H/14"))
    assert all(p.is_meta for p in model.parameters())
    small = vit_torch.ViTModel(CONFIG)
    with torch.device("meta"):
        other = vit_torch.ViTModel(CONFIG)
    other.to_empty(device=torch.get_default_device()).init_weights(seed=0)
    small.init_weights(seed=0)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), other.parameters(), strict=True))


def test_weights_are_not_read_onto_the_meta_device() -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match=r"ViTModel\(config\) makes an empty model"):
        vit_torch.ViTModel.from_pretrained(CHECKPOINTS / "cls" / "pt_safetensors")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it is about another device")
def test_weights_are_read_onto_the_device_of_the_context() -> None:
    with torch.device("cuda"):
        model = vit_torch.ViTForImageClassification.from_pretrained(
            CHECKPOINTS / "cls" / "pt_safetensors", id2label={0: "a", 1: "b"}, seed=0
        )
    assert {p.device.type for p in model.parameters()} == {"cuda"}


def test_torch_seed_repeats_the_initialisation() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(vit_torch.ViTModel(CONFIG).state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_the_classifier_is_the_last_child() -> None:
    assert [name for name, _ in build().named_children()] == ["vit", "fc_norm", "classifier"]


def test_what_users_add_is_in_a_parameter_group() -> None:
    model = build()
    model.classifier = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(16, 3))
    model.vit.adapter = torch.nn.Linear(16, 16).requires_grad_(False)
    groups = model.parameter_groups(layer_decay=0.5)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert sorted(name for group in groups for name in group.names) == sorted(trained)
    head = [("classifier.1.bias",), ("classifier.1.weight",)]
    assert [(group.names, group.scale, group.decay) for group in groups[-2:]] == [
        (head[0], 1, False),
        (head[1], 1, True),
    ]
    model.vit.adapter.requires_grad_(True)
    assert [group.names for group in model.parameter_groups(freeze=True)] == head


@pytest.mark.parametrize("wrapper", ["compile", "checkpoint"])
def test_layers_that_pytorch_wraps_keep_their_names(wrapper: str, tmp_path: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model, plain = build().float(), build().float()
    layer = model.vit.encoder.layer[0]
    model.vit.encoder.layer[0] = torch.compile(layer) if wrapper == "compile" else checkpoint_wrapper(layer)
    assert model.parameter_groups() == plain.parameter_groups()
    model.save_pretrained(tmp_path)
    again, report = vit_torch.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report.missing_keys
    assert not report.unexpected_keys
    assert all(torch.equal(again.state_dict()[name], each) for name, each in plain.state_dict().items())


def test_the_meta_device_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"embeddings.* is on the meta device, .*get_state_dict_offloaded_model"):
        build().to("meta").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_class_whose_init_computes_is_loaded(tmp_path: Path) -> None:
    build().float().save_pretrained(tmp_path)

    class Own(vit_torch.ViTForImageClassification):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.weights = torch.ones(3)
            self.added = torch.nn.Linear(16, 3)
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.constant_(module.weight, 7)

    with pytest.warns(UserWarning, match="added"):
        model = Own.from_pretrained(tmp_path)
    assert model.rates == [0, 0.5, 1]
    assert model.weights.device == torch.get_default_device()
    assert (model.added.weight == 7).all()
    assert_close(model(pixels().float()).logits, build().float()(pixels().float()).logits, 0)


def test_what_the_trainer_of_transformers_counts() -> None:
    model = build()
    assert model.floating_point_ops(input_dict={"pixel_values": pixels()}) == 6 * 2 * 17 * model.num_parameters()


def test_a_backbone_is_called_with_what_it_knows() -> None:
    """Models of transformers give every backbone the same keywords."""
    call = build("ViTBackbone").forward_with_filtered_kwargs
    output = call(pixels(), output_hidden_states=True, head_mask=None, dilation=2)
    assert (len(output.feature_maps), len(output.hidden_states)) == (1, len(CONFIG.stage_names))


def test_a_class_of_ones_own_may_call_a_layer_features() -> None:
    class Own(vit_torch.ViTPreTrainedModel):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.features = torch.nn.Linear(config.hidden_size, 2)

    assert Own(CONFIG).features(torch.ones(3, CONFIG.hidden_size)).shape == (3, 2)


def test_a_configuration_of_transformers_can_be_set() -> None:
    """As its models of an encoder and a decoder do it, before they call their encoder."""

    class Theirs:
        def to_dict(self) -> dict[str, Any]:
            return {**self.to_diff_dict(), "num_beams": 1, "torchscript": False}

        def to_diff_dict(self) -> dict[str, Any]:
            return {**CONFIG.to_diff_dict(), "output_attentions": True, "transformers_version": "4.57.6"}

    model = build()
    model.config = Theirs()
    assert isinstance(model.config, ViTConfig)
    assert "num_beams" not in model.config.to_dict()
    assert len(model(pixels()).attentions) == 2


def test_outputs_are_pytrees() -> None:
    output = build("ViTModel")(pixels(), output_attentions=True)
    doubled = torch.utils._pytree.tree_map(lambda t: t * 2, output)
    assert type(doubled) is type(output)
    assert doubled.hidden_states is None
    assert torch.equal(doubled.attentions[1], output.attentions[1] * 2)


def test_data_parallel_gathers_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own gather, with what it calls on each tensor replaced, as that is for devices alone."""

    class OnCpu:
        @staticmethod
        def apply(device: Any, dim: int, *tensors: Any) -> Any:
            return torch.stack(tensors) if tensors[0].dim() == 0 else torch.cat(tensors, dim)

    monkeypatch.setattr(torch.nn.parallel.scatter_gather, "Gather", OnCpu)
    model, x, labels = build(), pixels(4), torch.tensor([0, 1, 2, 0])
    halves = [model(x[i : i + 2], labels=labels[i : i + 2], output_attentions=True) for i in (0, 2)]
    whole, gathered = model(x, labels=labels, output_attentions=True), torch.nn.parallel.gather(halves, "cpu")
    assert type(gathered) is type(whole)
    assert_close(gathered.loss.mean(), whole.loss, SAME)
    assert_close(gathered.logits, whole.logits, SAME)
    assert_close(gathered.attentions[1], whole.attentions[1], SAME)


def test_functional_call_and_vmap() -> None:
    """torch.func: per-sample gradients equal those computed one by one."""
    model = build()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    x, labels = pixels(3), torch.tensor([0, 1, 2])

    def loss(parameters: Any, x: Any, label: Any) -> Any:
        logits = torch.func.functional_call(model, parameters, (x[None],)).logits
        return torch.nn.functional.cross_entropy(logits, label[None])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # of vmap over a kernel without rule
        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    one = torch.func.grad(loss)(parameters, x[1], labels[1])
    assert_close({name: gradients[1] for name, gradients in per_sample.items()}, one, SAME)


def test_deepcopy_and_pickle(tmp_path: Path) -> None:
    model = build()
    torch.save(model, tmp_path / "model.pt")
    for again in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(again(pixels()).logits, model(pixels()).logits)


def test_equal_models_are_pickled_alike() -> None:
    """In any process, before a call and after one: fingerprints of datasets' `map` are of that, tensors by value."""

    class Fingerprint(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            return (bytes, (value.detach().numpy().tobytes(),)) if isinstance(value, torch.Tensor) else NotImplemented

    def pickled() -> bytes:
        Fingerprint(written := io.BytesIO()).dump(model)
        return written.getvalue()

    model = build("ViTForMaskedImageModeling")
    first = pickled()
    model(pixels())
    assert pickled() == first
    model = build("ViTForMaskedImageModeling")
    assert pickled() == first
    assert "FROZENSET" not in {operation.name for operation, _, _ in pickletools.genops(first)}  # in no order


def test_channels_last_memory_format() -> None:
    model = build().to(memory_format=torch.channels_last)
    x = pixels().contiguous(memory_format=torch.channels_last)
    assert_close(model(x).logits, build()(pixels()).logits, SAME)


def test_specs_cover_every_part() -> None:
    assert {s.part for s in specs(CONFIG, VIT.all_parts).values()} == {"", *VIT.all_parts}

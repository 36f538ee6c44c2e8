"""PyTorch's linear layer by oneDNN: the same numbers, and out of the way of what looks at a layer or replaces it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import tolerances
from closeness import assert_close

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from vit_torch import ViTConfig, ViTModel, layers  # noqa: E402
from vit_torch.activations import ViTActivation  # noqa: E402

WIDE = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 2}
CONFIG = ViTConfig(**WIDE)
SAME = tolerances.both_rounded(CONFIG)
PRODUCTS = 6  # of a layer: queries, keys, values, the output projection, two of the MLP

pytestmark = [
    pytest.mark.processor("oneDNN computes on processors"),
    pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN"),
]


class Counter:
    """How often oneDNN multiplied, on whatever processor this is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        monkeypatch.setattr(layers, "onednn_is_faster", lambda: True)
        product = layers._product

        def counted(x: Any, weight: Any, bias: Any = None, function: str = "none", algorithm: str = "") -> Any:
            self.calls.append(function + algorithm)
            return product(x, weight, bias, function, algorithm)

        monkeypatch.setattr(layers, "_product", counted)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


@pytest.fixture(scope="module")
def model() -> Any:
    return ViTModel(CONFIG, seed=0).eval()


def pixels(batch: int = 2) -> Any:
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
def test_equal_but_for_rounding(onednn: Counter, hidden_act: str) -> None:
    config = CONFIG.copy(hidden_act=hidden_act)
    model, x = ViTModel(config, seed=0).eval(), pixels()
    with torch.no_grad():
        found = model(x)
        function = {"gelu": "gelunone", "gelu_new": "gelutanh"}.get(hidden_act, "none")
        assert onednn.calls == (["none"] * 4 + [function, "none"]) * 2
        exact = model.double()(x.double())
    assert len(onednn.calls) == 2 * PRODUCTS  # none in float64
    for name, array in found.items():
        error = (array.double() - exact[name]).abs().max() / exact[name].abs().max()
        assert error < tolerances.rounding(config), name


def test_no_bias(onednn: Counter) -> None:
    x, layer = torch.randn(2, 197, 384), nn.Linear(384, 384, bias=False)
    with torch.inference_mode():
        assert_close(layers.linear(layer, x), layer(x), SAME)
    assert onednn.calls == ["none"]


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradients_are_equal_but_for_rounding(onednn: Counter, checkpointing: Any) -> None:
    found, x = {}, pixels()
    for dtype in (torch.float32, torch.float64):
        model = ViTModel(CONFIG, add_pooling_layer=False, seed=0).to(dtype)
        if checkpointing is not None:
            model.gradient_checkpointing_enable(checkpointing)
        leaves = {"pixels": x.to(dtype, copy=True).requires_grad_(), **dict(model.named_parameters())}
        model(leaves["pixels"]).last_hidden_state[:, 0, :96].sum().backward()
        found[dtype] = {name: leaf.grad for name, leaf in leaves.items()}
    forward = 1 if checkpointing is None else 2  # once more on the way back
    assert len(onednn.calls) == 2 * PRODUCTS * (forward + 2)  # none in float64
    for name, exact in found[torch.float64].items():
        if name.endswith("key.bias"):
            continue  # softmax takes it away, so that its gradient is nothing but rounding
        error = (found[torch.float32][name].double() - exact).abs().max() / exact.abs().max()
        assert error < tolerances.rounding(CONFIG, gradient=True), name


def layer_of(*, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(384, 512, bias=bias)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x, bias", "no bias"])
def test_gradients_that_nobody_wants_are_not_computed(onednn: Counter, wanted: str) -> None:
    layer = layer_of(bias=wanted != "no bias").requires_grad_(wanted == "no bias")
    leaves = {"x": torch.randn(2, 197, 384), **dict(layer.named_parameters())}
    chosen = [leaves[name].requires_grad_() for name in (wanted.split(", ") if wanted != "no bias" else ["weight"])]
    loss = layers.linear(layer, leaves["x"]).sum()  # whose gradient is one number, everywhere
    found = torch.autograd.grad(loss, chosen)
    assert len(onednn.calls) == 1 + ("x" in wanted) + (wanted in ("weight", "no bias"))
    for mine, theirs in zip(found, torch.autograd.grad(layer(leaves["x"]).sum(), chosen), strict=True):
        assert_close(mine, theirs, SAME)
        assert mine.is_contiguous()


def test_gradients_in_evaluation_are_pytorchs(onednn: Counter) -> None:
    """Which computes those of pixels alone, where a function in Python would have to compute each parameter's too."""
    layer, x = layer_of().eval(), torch.randn(2, 197, 384, requires_grad=True)
    assert_close(torch.autograd.grad(layers.linear(layer, x).sum(), x), torch.autograd.grad(layer(x).sum(), x), SAME)
    assert onednn.calls == []


def test_gradients_of_gradients_are_pytorchs(onednn: Counter) -> None:
    layer, x, along = layer_of(), torch.randn(2, 197, 384, requires_grad=True), torch.randn(2, 197, 384)

    def second(function: Callable[..., Any]) -> Any:
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad((first * along).sum(), (x, layer.weight))

    assert_close(second(partial(layers.linear, layer)), second(layer), SAME)
    assert len(onednn.calls) == 3  # the product, and its two in the way back of a way back; none that was recorded


def test_gradients_that_are_counted_or_several(onednn: Counter) -> None:
    layer, x = layer_of(), torch.randn(2, 197, 384, requires_grad=True)
    leaves, several = (x, layer.weight), torch.randn(3, 2, 197, 512)
    y, expected = layers.linear(layer, x), layer(x)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(y, leaves, several[0], retain_graph=True)
    assert counter.get_total_flops() == 2 * 2 * 2 * 197 * 384 * 512
    assert onednn.calls == ["none"]
    mine, theirs = (torch.autograd.grad(each, leaves, several, is_grads_batched=True) for each in (y, expected))
    assert_close(mine, theirs, SAME)


def test_a_tensor_that_is_saved_may_be_packed(onednn: Counter) -> None:
    layer, x = layer_of(), torch.randn(2, 197, 384, requires_grad=True)
    packed: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: packed.append(each) or each.detach().numpy(), torch.from_numpy
    ):
        loss = layers.linear(layer, x).sum()
    assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(layer(x).sum(), x), SAME)
    assert len(packed) == 2
    assert len(onednn.calls) == 3


def test_a_weight_that_changed_is_refused(onednn: Counter) -> None:
    layer, x = layer_of(), torch.randn(2, 197, 384, requires_grad=True)
    y = layers.linear(layer, x)
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_functions_of_weights_are_transformed(onednn: Counter) -> None:
    """As for the gradient of each picture by itself."""
    layer, x = layer_of(), torch.randn(2, 197, 384)

    def loss(weights: dict[str, Any], function: Callable[..., Any], x: Any) -> Any:
        own = {name: array.detach() for name, array in layer.named_parameters()} | weights
        return torch.func.functional_call(Called(layer, function), own, (x,)).square().sum()

    class Called(nn.Module):
        def __init__(self, layer: nn.Linear, function: Callable[..., Any]) -> None:
            super().__init__()
            self.weight, self.bias, self.layer, self.function = layer.weight, layer.bias, layer, function

        def forward(self, x: Any) -> Any:
            return self.function(self.layer, x)

    for name, array in layer.named_parameters():
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0))
        mine, theirs = (each({name: array.detach()}, f, x) for f in (layers.linear, lambda layer, x: layer(x)))
        assert_close(mine[name], theirs[name], SAME)
        assert theirs[name].any()
    assert onednn.calls == []


def test_a_switch_of_pytorch_turns_it_off(onednn: Counter, model: Any) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the TF32 that the switch sets back to what it was
        with torch.backends.mkldnn.flags(enabled=False):
            model(pixels())
    assert onednn.calls == []


def hooked(layer: nn.Module) -> AbstractContextManager[Any]:
    return layer.register_forward_hook(lambda module, args, output: output + 1)


def hooked_before(layer: nn.Module) -> AbstractContextManager[Any]:
    return layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def hooked_everywhere(layer: nn.Module) -> AbstractContextManager[Any]:
    return nn.modules.module.register_module_forward_hook(lambda module, args, output: output + 1)


def wrapped(layer: nn.Module) -> AbstractContextManager[Any]:
    """As accelerate does that moves weights to where they are used."""
    layer.forward = lambda x: nn.Linear.forward(layer, x) + 1  # type: ignore[method-assign]
    return nullcontext()


def replaced(layer: nn.Module) -> AbstractContextManager[Any]:
    """As LoRA does, or a quantiser."""
    layer.__class__ = type("Another", (nn.Linear,), {"forward": lambda self, x: nn.Linear.forward(self, x) + 1})
    return nullcontext()


def parametrized(layer: nn.Module) -> AbstractContextManager[Any]:
    nn.utils.parametrizations.weight_norm(layer)
    return nullcontext()


@contextmanager
def patched(where: Any, name: str) -> Iterator[None]:
    """As quantisers and counters do for all layers."""
    with pytest.MonkeyPatch.context() as patch:
        original = getattr(where, name)
        patch.setattr(where, name, lambda *args: original(*args) + 1)
        yield


class Doubling(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        return 2 * found if function is nn.functional.linear else found


@pytest.mark.parametrize(
    "watch",
    [
        hooked, hooked_before, hooked_everywhere, wrapped, replaced, parametrized,
        lambda layer: torch.autocast("cpu", torch.bfloat16),
        lambda layer: patched(nn.functional, "linear"),
        lambda layer: patched(nn.Linear, "forward"),
        lambda layer: Doubling(),
    ],
)  # fmt: skip
def test_what_is_watched_is_called(onednn: Counter, watch: Callable[[nn.Module], Any]) -> None:
    layer, x = nn.Linear(384, 384), torch.randn(2, 197, 384)
    with torch.no_grad(), watch(layer):
        found, expected = layers.linear(layer, x), layer(x)
    assert onednn.calls == []
    assert torch.equal(found, expected)


def test_a_watched_activation_is_called(onednn: Counter) -> None:
    layer, activation, x = nn.Linear(384, 384), ViTActivation("gelu"), torch.randn(2, 197, 384)
    activation.register_forward_hook(lambda module, args, output: output + 1)
    with torch.no_grad():
        found = layers.linear(layer, x, activation)
        assert_close(found, activation(layer(x)), SAME)
    assert onednn.calls == ["none"]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # PyTorch's own, for derivatives and in traces
def test_transforms_and_traces_see_the_layer(onednn: Counter) -> None:
    layer, x = nn.Linear(384, 384).requires_grad_(False), torch.randn(2, 197, 384)
    with torch.no_grad():
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(layers.linear(layer, forward_ad.make_dual(x, x))).tangent
        assert_close(tangent, x @ layer.weight.T, SAME)
        assert_close(torch.func.vmap(partial(layers.linear, layer))(x), layer(x), SAME)
        with FlopCounterMode(display=False) as counter:
            layers.linear(layer, x)
        assert counter.get_total_flops() == 2 * 2 * 197 * 384 * 384
        old = torch.jit.trace(lambda x: layers.linear(layer, x), x, check_trace=False)  # would call it untraced
        traced = make_fx(partial(layers.linear, layer))(x), old
        assert not any("mkldnn" in str(each.graph) for each in traced)
    assert onednn.calls == []


def test_exported_and_compiled(onednn: Counter, model: Any) -> None:
    with torch.no_grad():
        program = torch.export.export(model, (pixels(),))
        assert "mkldnn" not in str(program.graph)
        torch.compile(model, backend="eager", fullgraph=True)(pixels())
    assert onednn.calls == []


def test_layers_and_weights_stay_what_others_look_for(onednn: Counter, model: Any) -> None:
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    with torch.no_grad():
        model(pixels())
    assert onednn.calls
    assert all(type(array) is torch.Tensor and array.layout == torch.strided for array in model.state_dict().values())


def test_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = {"AuthenticAMD": True, "GenuineIntel": False}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for vendor, faster in processors.items():
        monkeypatch.setattr(layers, "_processor", lambda vendor=vendor: f"vendor_id\t: {vendor}")
        assert layers.onednn_is_faster.__wrapped__() is faster
    monkeypatch.setattr(layers, "_processor", lambda: "vendor_id\t: AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not layers.onednn_is_faster.__wrapped__()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(layers, "_SIGNATURE", "(another)")
    assert not layers.onednn_is_faster.__wrapped__()

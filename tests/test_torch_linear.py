"""PyTorch's linear layer by oneDNN: the same numbers, and out of the way of what looks at a layer or replaces it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import tolerances
from closeness import assert_close

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
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
        monkeypatch.setattr(layers, "_faster", lambda: True)
        product = layers._product

        def counted(x: Any, layer: Any, function: str, algorithm: str) -> Any:
            self.calls.append(function + algorithm)
            return product(x, layer, function, algorithm)

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


def test_gradients_and_training_are_pytorchs(onednn: Counter, model: Any) -> None:
    model(pixels()).pooler_output.sum().backward()
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


@pytest.mark.parametrize(
    "watch",
    [
        hooked, hooked_before, hooked_everywhere, wrapped, replaced, parametrized,
        lambda layer: torch.autocast("cpu", torch.bfloat16),
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
        assert layers._faster.__wrapped__() is faster
    monkeypatch.setattr(layers, "_processor", lambda: "vendor_id\t: AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not layers._faster.__wrapped__()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(layers, "_SIGNATURE", "(another)")
    assert not layers._faster.__wrapped__()

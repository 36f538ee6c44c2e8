"""The cases of `gpu.py` in PyTorch: this package against transformers and timm, weights equal.

Weights of training steps are float32, computed with in bfloat16 by autocast. TF32 is off but in the precision "tf32",
where matrix products and convolutions may use it.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tolerances import both_rounded
from torch import Tensor

import vit_torch
from benchmarks.gpu_cases import (
    PAGES,
    TRAINING,
    Call,
    Case,
    Machine,
    Row,
    Settings,
    Shape,
    compared,
    feeding,
    inference_shapes,
    measured,
    one_line,
    serve,
    timing,
)
from benchmarks.harness import interleaved, mae_flops, seconds_of
from conversion import convert

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
PACKAGES = ("torch", "triton", "transformers", "timm")


def use(precision: str) -> torch.dtype:
    """The dtype of a precision, with TF32 allowed or not from now on."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return DTYPES[precision]


def machine(settings: Settings) -> Machine:
    """The card, or the CPU. Raises SystemExit where there is no card."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device")
    if settings.device == "cpu":
        return Machine("CPU", lambda: None, to_array, lambda: 0, lambda: None, lambda: None, lambda: None)

    def release() -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    return Machine(
        torch.cuda.get_device_name(),
        torch.cuda.synchronize,
        to_array,
        torch.cuda.memory_allocated,
        torch.cuda.reset_peak_memory_stats,
        torch.cuda.max_memory_allocated,
        release,
    )


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor of any device on the host, in float32 or wider."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


# ---- models --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _weights(key: tuple[str, int, bool], device: str) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return vit_torch.ViTForImageClassification(Shape(*key[:2], 1, key[2]).config).eval()


def ours(shape: Shape, settings: Settings, attention: str = "sdpa") -> Any:
    """A classifier of this package on the device, in float32."""
    model = copy.deepcopy(_weights(shape.key, settings.device))
    model.config.attn_implementation = attention
    return model


@lru_cache(maxsize=1)
def _saved(key: tuple[str, int, bool], device: str) -> Any:
    folder = tempfile.TemporaryDirectory()
    _weights(key, device).save_pretrained(Path(folder.name) / "hf")
    return folder


def transformers_model(shape: Shape, settings: Settings, attention: str) -> Any:
    """Hugging Face's classifier with the same weights."""
    folder = Path(_saved(shape.key, settings.device).name) / "hf"
    library = import_module("transformers")
    library.utils.logging.disable_progress_bar()
    theirs = library.ViTForImageClassification
    return theirs.from_pretrained(folder, attn_implementation=attention).to(settings.device)


def timm_model(shape: Shape, settings: Settings) -> Any:
    """timm's classifier with the same weights."""
    folder = Path(_saved(shape.key, settings.device).name)
    if not (folder / "timm").exists():
        convert(folder / "hf", folder / "timm", to="timm")
    config = shape.config
    model = import_module("timm.models.vision_transformer").VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        num_classes=config.num_labels,
    )
    model.load_state_dict(load_file(folder / "timm" / "model.safetensors"))
    return model.eval().to(settings.device)


def models(shape: Shape, settings: Settings, attentions: tuple[str, ...]) -> dict[str, Callable[[], Any]]:
    """What builds each classifier that is installed, ours with sdpa first."""
    found: dict[str, Callable[[], Any]] = {f"vit_trio {a}": partial(ours, shape, settings, a) for a in attentions}
    if find_spec("transformers"):
        found |= {f"transformers {a}": partial(transformers_model, shape, settings, a) for a in attentions}
    if find_spec("timm"):
        found["timm"] = partial(timm_model, shape, settings)
    return found


def logits_of(output: Any) -> Tensor:
    """The logits of an output of any of them."""
    return output if isinstance(output, Tensor) else output.logits


# ---- correctness ---------------------------------------------------------------------------------------------------


def moved(shape: Shape) -> Any:
    """A classifier on the CPU in float64, whose scores of attention are spread, and biases and norms not trivial."""
    config = shape.config.copy(initializer_range=0.1 if shape.tiny else 0.04)
    torch.manual_seed(0)
    model = vit_torch.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model.double()


def computed(model: Any, pixels: Tensor) -> Row:
    """Logits and hidden states of a model, and the gradients of a sum of the logits."""
    output = model(pixels, output_hidden_states=True)
    weights = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(1), device="cpu")
    (output.logits * weights.to(output.logits)).sum().backward()
    return {
        "logits": to_array(output.logits),
        "hidden states": [to_array(state) for state in output.hidden_states],
        "gradients": {name: to_array(parameter.grad) for name, parameter in model.named_parameters()},
    }


def correctness(
    shape: Shape, settings: Settings, precisions: tuple[str, ...], attentions: tuple[str, ...]
) -> dict[str, Row]:
    """The errors of each precision and attention on the device against float64 on the CPU."""
    exact, rows = moved(shape), {}
    pixels = torch.from_numpy(shape.pixels())
    expected = computed(exact, pixels.double())
    exact.zero_grad()
    for precision in precisions:
        dtype = use(precision)
        for attention in attentions:
            name = f"{precision}, {attention}"
            model = copy.deepcopy(exact).to(settings.device, dtype)
            model.config.attn_implementation = attention
            try:
                actual = computed(model, pixels.to(settings.device, dtype))
            except Exception as error:
                rows[name] = {"error": one_line(error), "ok": False}
                continue
            rows[name] = compared(actual, expected, exact.config, precision)
    return rows


# ---- speed ---------------------------------------------------------------------------------------------------------


def inference(shape: Shape, precision: str, table: str, settings: Settings) -> dict[str, Row]:
    """A classifier's call on a batch that is on the device already."""
    dtype, here = use(precision), machine(settings)
    torch.compiler.reset()
    _weights(shape.key, settings.device)  # which are not the memory of a candidate
    x = torch.from_numpy(shape.pixels()).to(settings.device, dtype)

    def call_of(build: Callable[[], Any]) -> Call:
        model = build().to(dtype)
        return lambda: logits_of(model(x))

    builders = models(shape, settings, ("sdpa", "eager")) if table == "plain" else _compiled(shape, settings, table)
    candidates = {name: partial(call_of, build) for name, build in builders.items()}
    if settings.device == "cuda" and shape.batch <= 8:
        candidates["vit_trio sdpa, CUDA graph"] = lambda: graphed(call_of(partial(ours, shape, settings)))
    with torch.inference_mode():
        return measured(candidates, shape, here, settings, bound=both_rounded(shape.config, precision))


def _compiled(shape: Shape, settings: Settings, table: str) -> dict[str, Callable[[], Any]]:
    """Ours against ours compiled in several ways; or, in the table of peers, all of them compiled."""
    plain = models(shape, settings, ("sdpa",))
    if table == "compiled, peers":
        return {f"{name}, compiled": lambda build=build: compiled(build(), settings) for name, build in plain.items()}
    build, flex = plain["vit_trio sdpa"], partial(ours, shape, settings, "flex")
    found = {"vit_trio sdpa": build, "vit_trio sdpa, compiled": lambda: compiled(build(), settings)}
    # FlexAttention compiles itself, on CPUs to C++, which is not wanted there.
    found["vit_trio flex"] = flex if settings.device == "cuda" else lambda: compiled(flex(), settings)
    if shape.batch <= 8:
        found["vit_trio sdpa, reduce-overhead"] = lambda: compiled(build(), settings, mode="reduce-overhead")
    return found


def compiled(model: Any, settings: Settings, **options: Any) -> Any:
    """`torch.compile` of a model; with `--tiny` all of it but the generating of code."""
    return torch.compile(model, dynamic=False, **({"backend": "eager"} if settings.tiny else options))


def graphed(call: Call) -> Call:
    """A function that replays what a call does on the card."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def training(shape: Shape, settings: Settings) -> dict[str, Row]:
    """A step with AdamW: forward and backward in bfloat16 by autocast, gradients and weights in float32."""
    use("float32")
    _weights(shape.key, settings.device)
    x = torch.from_numpy(shape.pixels()).to(settings.device)
    labels = torch.arange(shape.pictures, device=settings.device) % shape.config.num_labels

    def step_of(build: Callable[[], Any], checkpointing: bool = False) -> Call:
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def step() -> Tensor:
            with torch.autocast(settings.device, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(logits_of(model(x)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    candidates: dict[str, Callable[[], Call]] = {}
    for name, build in models(shape, settings, ("sdpa",)).items():
        candidates[name] = partial(step_of, build)
        if name != "timm":
            candidates[f"{name}, checkpointing"] = partial(step_of, build, checkpointing=True)
    bound = both_rounded(shape.config, "bfloat16")
    return measured(candidates, shape, machine(settings), settings, bound=bound, training=True)


@dataclass(frozen=True)
class MAEShape(Shape):
    """A shape whose model is an MAE, with a decoder as its paper has it."""

    @property
    def mae(self) -> Any:
        fields = {name: value for name, value in vars(self.config).items() if name in vit_torch.ViTMAEConfig.fields()}
        tiny = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48}
        return vit_torch.ViTMAEConfig(**fields, **(tiny if self.tiny else {}))

    def flops(self, row: str, training: bool = False) -> int:
        return mae_flops(self.mae, self.pictures) * (3 if training else 1)


def pre_training(shape: MAEShape, settings: Settings) -> dict[str, Row]:
    """A step of an MAE of the shape, whose encoder sees a quarter of the patches, as `training` makes them."""
    use("float32")
    config = shape.mae
    with torch.device(settings.device):
        model = vit_torch.ViTMAEForPreTraining(config, seed=0)
    x = torch.from_numpy(shape.pixels()).to(settings.device)
    noise = torch.rand(len(x), config.num_patches, generator=torch.Generator().manual_seed(0)).to(x)

    def theirs() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            library = import_module("transformers")
            library.utils.logging.disable_progress_bar()
            return library.ViTMAEForPreTraining.from_pretrained(folder).to(settings.device)

    def step_of(build: Callable[[], Any]) -> Call:
        network = build().train()
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)

        def step() -> Tensor:
            with torch.autocast(settings.device, torch.bfloat16):
                loss = network(x, noise=noise).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    builders = {"vit_trio sdpa": lambda: copy.deepcopy(model)}
    if find_spec("transformers"):
        builders["transformers sdpa"] = theirs
    candidates = {name: partial(step_of, build) for name, build in builders.items()}
    bound = both_rounded(shape.config, "bfloat16")
    return measured(candidates, shape, machine(settings), settings, bound=bound, training=True)


def product(settings: Settings) -> dict[str, Row]:
    """The rate that the card reaches with one large product of bfloat16 matrices, to see the others beside."""
    size, here = (256 if settings.tiny else 8192), machine(settings)
    a, b = (torch.randn(size, size, device=settings.device, dtype=torch.bfloat16) for _ in range(2))
    call = {"torch.mm": lambda: seconds_of(lambda: (torch.mm(a, b), here.wait()))}
    seconds = interleaved(call, min_rounds=10, min_seconds=settings.seconds, measure=lambda timed: timed())
    return {name: timing(found, None, 2 * size**3, here.card) for name, found in seconds.items()}


# ---- all -----------------------------------------------------------------------------------------------------------


def cases(settings: Settings) -> Iterator[Case]:
    """Every case, most worth first."""
    plain = ("float64", "float32", "tf32", "bfloat16", "float16")
    small, base = (Shape("B/16", 224, 2, tiny) for tiny in (True, settings.tiny))
    check = partial(correctness, settings=settings, precisions=plain, attentions=("eager", "sdpa"))
    yield Case("correctness, small", partial(check, small), 15)
    yield Case("correctness, B/16 224", partial(check, base), 40)
    yield Case("product of matrices, bfloat16", partial(product, settings), 5)
    speed = [
        Case(name, partial(inference, shape, precision, table, settings), 15 if table == "plain" else 60)
        for name, shape, precision, table in inference_shapes(settings)
        if table != "compiled, peers" or find_spec("transformers") or find_spec("timm")
    ]
    steps = [
        Case(
            f"training step, {variant} {image}, bfloat16, batch {batch}",
            partial(training, Shape(variant, image, batch, settings.tiny), settings),
            20,
        )
        for variant, image, batch in TRAINING
    ]
    yield from speed[: PAGES + 1]
    yield steps[0]
    masked = partial(pre_training, MAEShape("B/16", 224, 64, settings.tiny), settings)
    yield Case("pre-training step, MAE B/16 224, bfloat16, batch 64", masked, 20)
    yield Case("pictures to labels", lambda: fed(settings), 45)
    yield from speed[PAGES + 1 : PAGES + 3]
    if settings.device == "cuda":
        flex = partial(correctness, base, settings, ("float32", "bfloat16"), ("flex",))
        yield Case("correctness, B/16 224, flex", flex, 45)
    yield from speed[PAGES + 3 : PAGES + 6]
    yield steps[1]
    yield from speed[PAGES + 6 :]
    yield steps[2]


def fed(settings: Settings) -> dict[str, Row]:
    """The image processor before ViT-B/16."""
    use("float32")
    model = ours(Shape("B/16", 224, 64, settings.tiny), settings).cpu()
    gc.collect()
    return feeding(model, "torch", settings, ("float32", "bfloat16"))


if __name__ == "__main__":
    serve(cases, machine, PACKAGES)

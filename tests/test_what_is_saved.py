"""What is saved is what the user has: given weights, additions, adapters, names; and the rest is refused by name."""

from __future__ import annotations

import json
import operator
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINTS
from safetensors.numpy import load_file

from conversion import read
from vit_core.assets import DIGITS
from vit_core.config import ViTConfig, pair
from vit_core.pictures.processing import ViTImageProcessor

CLS = CHECKPOINTS / "cls" / "pt_safetensors"
CLASSIFIER = "ViTForImageClassification"


def small(backend: Any, value: int = 0) -> Any:
    return backend.load(CLASSIFIER, CLS, seed=value)


def weights(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".json"}


# ---- keywords ----------------------------------------------------------------------------------------------------


def test_weights_that_are_given_are_saved(tmp_path: Path) -> None:
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    import vit_flax
    import vit_torch

    flax = vit_flax.FlaxViTForImageClassification.from_pretrained(CLS)
    flax.save_pretrained(tmp_path / "flax", params=jax.tree.map(lambda leaf: leaf * 0 + 7, flax.params))
    model, _ = vit_flax.FlaxViTForImageClassification.from_pretrained(CLS, _do_init=False)
    model.save_pretrained(tmp_path / "abstract", params=jax.tree.map(lambda leaf: leaf * 0 + 7, flax.params))
    module = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    averaged = {name: torch.full_like(tensor, 7) for name, tensor in module.state_dict().items()}
    module.save_pretrained(tmp_path / "torch", state_dict=averaged)
    for folder in ("flax", "abstract", "torch"):
        assert {float(n) for t in read(tmp_path / folder).tensors.values() for n in t.read().ravel()} == {7.0}


def test_given_weights_that_do_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("jax"), pytest.importorskip("torch")
    import vit_flax
    import vit_torch

    flax = vit_flax.FlaxViTForImageClassification.from_pretrained(CLS)
    with pytest.raises(
        ValueError, match=r"params must have the tree of the model:\n  extra/kernel: \(2,\), expected n"
    ):
        flax.save_pretrained(tmp_path / "no", params={**flax.params, "extra": {"kernel": np.ones(2)}})
    with pytest.raises(ValueError, match=r"classifier/bias: object, expected"):
        flax.save_pretrained(
            tmp_path / "no", params={**flax.params, "classifier": {**flax.params["classifier"], "bias": object()}}
        )
    module = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    with pytest.raises(ValueError, match=r"state_dict lacks 1 of the model's 40 tensors: classifier\.bias"):
        module.save_pretrained(
            tmp_path / "no", state_dict={n: t for n, t in module.state_dict().items() if n != "classifier.bias"}
        )
    assert not (tmp_path / "no").exists()


def test_only_the_main_process_writes(backend: Any, tmp_path: Path) -> None:
    small(backend).save_pretrained(tmp_path / "no", is_main_process=False, save_function=print)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_shard_sise": "1KB"}, r"save_pretrained\(\) got unexpected keywords: max_shard_sise"),
        ({"max_shard_sise": 1, "push_to_hub": True}, "unexpected keywords: max_shard_sise"),
        ({"saved_model": True}, r"a SavedModel is written by model.export\(folder\)"),
        ({"token": "secret"}, "token: only an upload takes that: pass push_to_hub=True"),
        ({"params": {}, "state_dict": {}}, r"is no argument of (TF|Flax)?ViTForImageClassification.save_pretrained"),
    ],
)
def test_keywords_that_would_do_nothing(backend: Any, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        small(backend).save_pretrained(tmp_path / "no", **given)
    assert not (tmp_path / "no").exists()


def test_a_push_refuses_keywords_by_its_own_name(backend: Any) -> None:
    for each in (model := small(backend)), model.config, ViTImageProcessor():
        with pytest.raises(TypeError, match=r"^push_to_hub\(\) got unexpected keywords: tags\.$"):
            each.push_to_hub("me/no", tags=["vit"])


# ---- names and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "file", "format"),
    [
        ({}, "model.safetensors", "pt"),
        ({"save_format": "torch"}, "model.safetensors", "pt"),
        ({"save_format": "tf"}, "model.safetensors", "tf"),
        ({"save_format": "flax"}, "model.safetensors", "flax"),
        ({"save_format": "tf", "safe_serialization": False}, "tf_model.h5", "tf"),
        ({"save_format": "flax", "safe_serialization": False}, "flax_model.msgpack", "flax"),
        ({"save_format": "torch", "safe_serialization": False}, "pytorch_model.bin", "pt"),
    ],
)
def test_names_and_container(backend: Any, tmp_path: Path, options: dict[str, Any], file: str, format: str) -> None:
    model = small(backend)
    model.save_pretrained(tmp_path, **options)
    found = read(tmp_path)
    assert (found.path.name, found.format, weights(tmp_path)) == (file, format, {file})
    expected = backend.parameters(model)
    assert all(np.array_equal(tensor.read(), expected[name]) for name, tensor in found.tensors.items())
    if file == "model.safetensors" and format == "pt":
        assert load_file(tmp_path / file).keys() == load_file(CLS / file).keys()


def test_an_unknown_format(backend: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_format must be one of torch, tf, flax, got 'keras'"):
        small(backend).save_pretrained(tmp_path / "no", save_format="keras")


@pytest.mark.parametrize("before", ["torch", "tf", "flax"])
def test_no_other_weights_survive(backend: Any, tmp_path: Path, before: str) -> None:
    """Of whatever container: they would be read first, or by another framework."""
    old = backend.build(CLASSIFIER, ViTConfig.from_pretrained(CLS), seed=1)
    old.save_pretrained(tmp_path, save_format=before, safe_serialization=False)
    old.save_pretrained(tmp_path, variant="fp16")
    assert len(weights(tmp_path)) == 2
    new = small(backend)
    new.save_pretrained(tmp_path)
    assert weights(tmp_path) == {"model.safetensors", "model.fp16.safetensors"}
    (tmp_path / "tf_model.h5").write_bytes(b"of another save")
    new.save_pretrained(tmp_path, safe_serialization=False)
    assert weights(tmp_path) - {"model.fp16.safetensors"} == {
        {"pt": "pytorch_model.bin", "tf": "tf_model.h5", "flax": "flax_model.msgpack"}[new.file_format]
    }


def test_a_preset_of_keras_hub_is_not_torn(backend: Any, tmp_path: Path) -> None:
    (tmp_path / "model.weights.h5").touch()
    with pytest.raises(ValueError, match=r"holds model\.weights\.h5, the weights of a keras-hub preset"):
        small(backend).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.weights.h5"]


def test_a_processor_comes_along(backend: Any, tmp_path: Path) -> None:
    """Of a model that was loaded beside one: where there is none yet, for the size of the model's pictures."""
    model = backend.load(CLASSIFIER, DIGITS)
    model.save_pretrained(tmp_path / "same")
    assert ViTImageProcessor.from_pretrained(tmp_path / "same") == ViTImageProcessor.from_pretrained(DIGITS)
    backend.load(CLASSIFIER, DIGITS, image_size=48).save_pretrained(tmp_path / "larger")
    assert ViTImageProcessor.from_pretrained(tmp_path / "larger").size == {"height": 48, "width": 48}
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "own")
    assert ViTImageProcessor.from_pretrained(tmp_path / "own").image_mean == [0.1, 0.2, 0.3]
    backend.build(CLASSIFIER, model.config).save_pretrained(tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "preprocessor_config.json").exists()


# ---- PyTorch: what users add -------------------------------------------------------------------------------------


def additions() -> dict[str, Any]:
    """Classes of users, each with more than the table's parameters."""
    torch = pytest.importorskip("torch")
    import vit_torch

    nn, config = torch.nn, ViTConfig.from_pretrained(CLS)

    class Auxiliary(vit_torch.ViTForImageClassification):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.aux = nn.Linear(config.hidden_size, 5)
            self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
            self.register_buffer("scratch", torch.ones(3), persistent=False)

    class Prompt(vit_torch.ViTModel):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config, add_pooling_layer=False)
            self.prompt = nn.Parameter(torch.zeros(1, 4, config.hidden_size))

    class Heads(vit_torch.ViTForImageClassification):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.classifier = nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, 3))

    class Normed(vit_torch.ViTForImageClassification):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.classifier = nn.utils.parametrizations.weight_norm(self.classifier)

    class Own(vit_torch.ViTPreTrainedModel):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.vit = vit_torch.ViTModel(config, add_pooling_layer=False)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
            self.post_init()

        def forward(self, pixel_values: Any) -> Any:
            return self.classifier(self.vit(pixel_values).last_hidden_state.mean(1))

    return {cls.__name__: (cls, config) for cls in (Auxiliary, Prompt, Heads, Normed, Own)}


@pytest.mark.parametrize("name", ["Auxiliary", "Prompt", "Heads", "Normed", "Own"])
@pytest.mark.parametrize("options", [{}, {"safe_serialization": False}, {"max_shard_size": 5000}])
def test_what_users_add_comes_back(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    cls, config = additions()[name]
    model = cls(config)
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.new_tensor(np.random.default_rng(0).integers(-9, 9, tensor.shape)))
    model.save_pretrained(tmp_path, **options)
    again, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert not any(tensor.is_meta for tensor in [*again.parameters(), *again.buffers()])
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "ViTModel" if name == "Prompt" else "Own" if name == "Own" else CLASSIFIER
    ]
    with pytest.raises(ValueError, match="can't be saved in this format, which holds the weights of a ViT alone"):
        model.save_pretrained(tmp_path / "no", save_format="flax")


@pytest.mark.parametrize("name", ["Auxiliary", "Prompt", "Heads", "Normed", "Own"])
def test_additions_to_a_checkpoint_that_lacks_them(name: str) -> None:
    """They keep the values that they are made with, and are reported; the rest is the checkpoint's."""
    torch = pytest.importorskip("torch")
    cls, _ = additions()[name]
    torch.manual_seed(0)
    model, report = cls.from_pretrained(CLS, output_loading_info=True, dtype="bfloat16")
    stored = {key.removeprefix("vit.") for key in load_file(CLS / "model.safetensors")}
    held = {key for key in model.state_dict() if key.removeprefix("vit.") not in stored}
    assert set(report.missing_keys) == held - {"classifier.bias", "classifier.weight"}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    with pytest.warns(UserWarning, match="newly initialised: ") if held else pytest.MonkeyPatch.context():
        cls.from_pretrained(CLS)


def test_an_addition_of_another_shape(tmp_path: Path) -> None:
    """An error, or, where that is asked for, left as it was made and reported."""
    cls, config = additions()["Prompt"]
    model = cls(config)
    model.prompt.data = model.prompt.data[:, :2]
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds prompt of shape \(1, 2, 32\), the model \(1, 4, 32\)"):
        cls.from_pretrained(tmp_path)
    again, report = cls.from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    assert report.mismatched_keys == [("prompt", (1, 2, 32), (1, 4, 32))] and not again.prompt.any()


def test_an_instance_with_additions(tmp_path: Path) -> None:
    """They are in the file, by their names, and a model without them says that it does not use them."""
    torch = pytest.importorskip("torch")
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    model.vit.prompt = torch.nn.Parameter(torch.ones(2))
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["vit.prompt"].tolist() == [1, 1]
    with pytest.warns(UserWarning, match="1 tensors of .* are not used by ViTForImageClassification: vit.prompt"):
        vit_torch.ViTForImageClassification.from_pretrained(tmp_path)


def test_what_post_init_draws() -> None:
    """As the trunk: not as torch draws a linear layer."""
    torch = pytest.importorskip("torch")
    cls, config = additions()["Own"]
    model = cls(config)
    assert model.classifier.bias.eq(0).all() and model.classifier.weight.abs().max() < 6 * config.initializer_range
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert model.parts == frozenset()
    assert model(torch.zeros(1, config.num_channels, *pair(config.image_size))).shape == (1, config.num_labels)


def test_adapters_and_quantised_layers_are_refused_by_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import vit_torch

    class Wrapped(torch.nn.Module):  # as PEFT wraps a layer
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base_layer = base

    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    query = model.vit.encoder.layer[0].attention.attention
    query.query = Wrapped(query.query)
    with pytest.raises(ValueError, match=r"query.base_layer.weight.*model = peft_model.merge_and_unload\(\)"):
        model.save_pretrained(tmp_path / "no")
    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: this kind of quantisation is to go
        quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"(query|dense|classifier)\.\S+ is \S+, of a quantised layer.*save the model"):
        quantised.save_pretrained(tmp_path / "no")
    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    model.classifier.weight = torch.nn.Parameter(model.classifier.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"1 parameters are whole numbers, as of quantised layers, .*classifier\.weight"
    ):
        model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("where", "what", "lost"),
    [
        ("classifier", lambda nn: nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 5)), "2 .*: classifier.weight, cl"),
        ("classifier", lambda nn: nn.Linear(32, 5, bias=False), "1 .*: classifier.bias"),
        ("classifier", lambda nn: nn.Identity(), r"2 .*classifier.weight.*num_labels=0"),
        ("vit.layernorm", lambda nn: nn.Identity(), "2 .*: vit.layernorm.weight"),
        ("vit.encoder.layer.1", lambda nn: nn.Identity(), "16 .*: vit.encoder.layer.1.attention"),
    ],
)
def test_what_was_replaced_is_refused_by_name(tmp_path: Path, where: str, what: Any, lost: str) -> None:
    """What a file of the configuration can't give back."""
    torch = pytest.importorskip("torch")
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    model.set_submodule(where, what(torch.nn))
    with pytest.raises(ValueError, match=f"The model lacks {lost}"):
        model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("wrap", "remove"),
    [
        ("parametrizations.weight_norm", "parametrize.remove_parametrizations"),
        ("prune.l1_unstructured", "prune.remove"),
        ("weight_norm", "remove_weight_norm"),
        ("spectral_norm", "remove_spectral_norm"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_that_are_computed_are_refused_by_name(tmp_path: Path, wrap: str, remove: str) -> None:
    """With what makes weights of them, which does."""
    pytest.importorskip("torch")
    from torch.nn import utils
    from torch.nn.utils import prune  # noqa: F401, which utils has then

    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    given = {"amount": 0.5} if "prune" in wrap else {}
    operator.attrgetter(wrap)(utils)(model.classifier, name="weight", **given)
    words = rf"^1 parameters are computed .* or a pruning: classifier\.weight\. .*[ .]{re.escape(remove)}\(layer"
    with pytest.raises(ValueError, match=words):
        model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    operator.attrgetter(remove)(utils)(model.classifier, "weight")
    model.save_pretrained(tmp_path / "yes")


def test_modules_that_compute_in_a_way_of_their_own_are_warned_of(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import vit_torch
    from vit_torch.activations import ViTActivation

    class Cosine(torch.nn.Linear):
        pass

    model = vit_torch.ViTForImageClassification.from_pretrained(CLS, hidden_act="relu")
    model.vit.adapter = torch.nn.Module()
    model.vit.adapter.activation = torch.nn.ReLU()
    model.save_pretrained(tmp_path)
    model.classifier = Cosine(32, 5)
    model.vit.layernorm = torch.nn.GroupNorm(1, 32)
    model.vit.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.Tanh()
    model.vit.encoder.layer[1].intermediate.intermediate_act_fn = ViTActivation("tanh")
    words = r"^4 modules .*act_fn \(Tanh\), .*act_fn \(ViTActivation\), .*norm \(GroupNorm\), classifier \(Cosine\)"
    with pytest.warns(UserWarning, match=words) as told:
        model.save_pretrained(tmp_path)
    assert told[0].filename == __file__


def test_a_dropout_before_the_classifier_is_no_other_classifier(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    linear = model.classifier
    model.classifier = torch.nn.Sequential(torch.nn.Dropout(0.1), linear)
    model.save_pretrained(tmp_path)
    again = vit_torch.ViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again.classifier.weight, linear.weight)
    model.classifier.append(torch.nn.Tanh())
    with pytest.warns(UserWarning, match=r"1 modules are of another kind .*classifier\.2 \(Tanh\)"):
        model.save_pretrained(tmp_path)


def test_a_model_without_its_classifier_or_pooler_is_saved(tmp_path: Path) -> None:
    """What comes back as it was."""
    torch = pytest.importorskip("torch")
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    model.classifier, model.config.num_labels = torch.nn.Identity(), 0
    model.save_pretrained(tmp_path)
    again = vit_torch.ViTForImageClassification.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    trunk = vit_torch.ViTModel(model.config)
    trunk.pooler = None
    trunk.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="holds no pooler"):
        assert vit_torch.ViTModel.from_pretrained(tmp_path).pooler is None


# ---- Keras: adapters, additions ----------------------------------------------------------------------------------


def test_lora_is_saved_merged(tmp_path: Path, inputs: dict[str, np.ndarray]) -> None:
    pytest.importorskip("tensorflow")
    import vit_tf

    model = vit_tf.TFViTForImageClassification.from_pretrained(CLS)
    layer = model.vit.encoder.layer[0].attention.attention.query
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=layer.lora_kernel_b.shape))
    for options in ({}, {"safe_serialization": False}):
        model.save_pretrained(tmp_path, **options)
        again = vit_tf.TFViTForImageClassification.from_pretrained(tmp_path)
        kernel = again.vit.encoder.layer[0].attention.attention.query.kernel
        assert np.array_equal(kernel, np.asarray(layer.kernel))
        assert np.abs(np.asarray(layer.kernel) - np.asarray(layer._kernel)).max() > 0.1


def test_variables_that_no_checkpoint_holds(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    import vit_tf

    class Auxiliary(vit_tf.TFViTForImageClassification):
        def __init__(self, config: ViTConfig, **options: Any) -> None:
            super().__init__(config, **options)

        def build(self, shape: Any = None) -> None:
            super().build(shape)
            self.aux = keras.layers.Dense(5, name="aux")
            self.aux.build((None, 32))

    model = Auxiliary(ViTConfig.from_pretrained(CLS))
    with pytest.raises(ValueError, match="2 variables of layers that were quantised or added: aux/kernel, aux/bias"):
        model.save_pretrained(tmp_path / "no")
    model = vit_tf.TFViTForImageClassification.from_pretrained(CLS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, of what Keras does
        model.classifier.quantize("int8", type_check=False)
    with pytest.raises(ValueError, match="1 variables of layers that were quantised or added: classifier/kernel_scale"):
        model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()

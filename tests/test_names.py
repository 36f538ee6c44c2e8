"""Names and keywords that users of transformers type, in every backend: what they mean, or what to do instead."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINTS
from members import config_for

from vit_core.assets import DIGITS
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16}
CLS = CHECKPOINTS / "cls" / "pt_safetensors"
MODELS = {
    "AutoModel": "ViTModel",
    "AutoModelForImageClassification": "ViTForImageClassification",
    "AutoModelForMaskedImageModeling": "ViTForMaskedImageModeling",
}


def classifier(backend: Any, **options: Any) -> Any:
    return backend.load("ViTForImageClassification", CLS, **options)


def test_automatic_classes(backend: Any) -> None:
    package = backend.package
    for name, cls in MODELS.items():
        automatic = getattr(package, name)
        assert automatic is getattr(package, backend.prefix + name)
        for member in (cls, cls.replace("ViT", "DeiT")):
            config = config_for(member, **SMALL)
            assert type(automatic.from_config(config)) is getattr(package, backend.prefix + member)
        for keyword in ("dtype", "torch_dtype"):
            model = automatic.from_config(config, **{keyword: "float64"}, attn_implementation="eager")
            assert {array.dtype.name for array in backend.parameters(model).values()} == {"float64"}, name
            assert model.config.attn_implementation == "eager" != config.attn_implementation
        with pytest.raises(TypeError, match=rf"{name} is not made itself"):
            automatic(package.ViTConfig())
    assert package.AutoFeatureExtractor is package.AutoImageProcessor
    assert set(MODELS) | {"AutoConfig", "AutoFeatureExtractor"} <= set(package.__all__)


@pytest.mark.parametrize(
    ("folder", "name", "cls"),
    [
        ("cls/pt_safetensors", "AutoModel", "ViTModel"),
        ("deit_teacher/pt_safetensors", "AutoModel", "DeiTModel"),
        ("deit_teacher/tf_h5", "AutoModelForImageClassification", "DeiTForImageClassificationWithTeacher"),
        ("deit_cls/pt_safetensors", "AutoModelForImageClassification", "DeiTForImageClassification"),
        ("deit/pt_bin", "AutoModelForImageClassification", "DeiTForImageClassification"),
        ("deit_mim/pt_safetensors", "AutoModelForMaskedImageModeling", "DeiTForMaskedImageModeling"),
    ],
)
def test_an_automatic_class_reads_what_is_there(backend: Any, folder: str, name: str, cls: str) -> None:
    model, report = getattr(backend.package, name).from_pretrained(CHECKPOINTS / folder, output_loading_info=True)
    assert type(model) is getattr(backend.package, backend.prefix + cls)
    assert all(key.startswith(("classifier", "pooler")) for key in report.missing_keys)


def test_another_members_class_refuses_a_checkpoint(backend: Any) -> None:
    for folder, cls, named in (
        ("cls", "DeiTModel", "ViTModel"),
        ("deit_cls", "ViTModel", "DeiTForImageClassification"),
    ):
        with pytest.raises(ValueError, match=rf"no {cls[:-5]}: load it with one of .*{named}"):
            backend.load(cls, CHECKPOINTS / folder / "pt_safetensors")
        with pytest.raises(ValueError, match=rf"takes a {cls[:-5]}Config, got a .*: use one of .*{named}"):
            backend.build(cls, config_for(named))


@pytest.mark.parametrize("given", [str(CLS), {"hidden_size": 32}, None])
def test_a_model_is_made_of_a_configuration(backend: Any, given: Any) -> None:
    for cls in ("ViTModel", "ViTForImageClassification"):
        words = rf"{cls} takes a ViTConfig of this package, got .*: .* is loaded by \w*{cls}.from_pretrained"
        with pytest.raises(TypeError, match=words):
            backend.build(cls, given)


def test_the_first_argument_by_its_name(backend: Any) -> None:
    package = backend.package
    model = classifier(backend)
    assert model.name_or_path == model.config.name_or_path == str(CLS)
    for cls in (package.AutoModelForImageClassification, package.ViTConfig):
        cls.from_pretrained(pretrained_model_name_or_path=CLS)
    assert package.AutoImageProcessor.from_pretrained(pretrained_model_name_or_path=DIGITS)


def test_keywords_that_change_nothing(backend: Any) -> None:
    """They are accepted by models, configurations and processors, and are kept by none."""
    given = {"low_cpu_mem_usage": True, "trust_remote_code": False, "resume_download": True, "weights_only": True}
    given |= {"proxies": None, "use_auth_token": None, "mirror": None, "quantization_config": None, "use_fast": False}
    assert not vars(classifier(backend, **given, use_safetensors=True).config).keys() & given.keys()
    assert not vars(ViTConfig.from_pretrained(CLS, **given)).keys() & given.keys()
    assert ViTImageProcessor.from_pretrained(DIGITS, **given) == ViTImageProcessor.from_pretrained(DIGITS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load_in_8bit": True}, "takes no load_in_8bit: load the model, then quantise it"),
        ({"proxies": {"https": "x"}}, "takes no proxies: set the environment variable HTTPS_PROXY"),
        ({"max_memory": {0: "1GB"}}, "takes no max_memory: a ViT is loaded whole, on one device: pass device_map"),
        ({"state_dict": {"a": 1}}, r"takes no state_dict: .*load_state_dict\(\)"),
        (
            {"nun_labels": 3},
            r"from_pretrained\(\) got unexpected keywords: nun_labels\. They are neither ",
        ),
    ],
)
def test_keywords_that_would_be_lost(backend: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        classifier(backend, **given)


def test_safetensors_can_be_demanded(backend: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"use_safetensors=False was given, but .*model\.safetensors: pass filename="):
        classifier(backend, use_safetensors=False)
    classifier(backend).save_pretrained(tmp_path, save_format="torch", safe_serialization=False)
    with pytest.raises(ValueError, match=r"use_safetensors=True was given, but .*pytorch_model\.bin"):
        backend.load("ViTForImageClassification", tmp_path, use_safetensors=True)
    shutil.copy(CLS / "model.safetensors", tmp_path)
    for asked, suffix in ((None, ".safetensors"), (True, ".safetensors"), (False, ".bin")):
        for name in ("ViTForImageClassification", "AutoModelForImageClassification"):
            cls = getattr(backend.package, name)
            _, report = cls.from_pretrained(tmp_path, use_safetensors=asked, output_loading_info=True)
            assert report.path.endswith(suffix)


def test_a_token_by_its_older_name(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = getattr(backend.package, backend.prefix + "ViTForImageClassification")
    asked: list[Any] = []
    read = cls._read
    monkeypatch.setattr(cls, "_read", staticmethod(lambda source, **o: asked.append(o["token"]) or read(source, **o)))
    for given in ({"use_auth_token": "old"}, {"token": "new"}, {"token": "new", "use_auth_token": None}, {}):
        cls.from_pretrained(CLS, **given)
    assert asked == ["old", "new", "new", None]


@pytest.mark.parametrize("device_map", ["auto", {"": "auto"}, "balanced"])
def test_a_device_map_for_the_device_that_is_there(backend: Any, device_map: Any) -> None:
    assert classifier(backend, device_map=device_map).num_labels == 5


def test_device_maps_of_pytorch() -> None:
    vit_torch = pytest.importorskip("vit_torch")
    for device_map in ("cpu", {"": "cpu"}, -1):
        model = vit_torch.AutoModel.from_pretrained(CHECKPOINTS / "base" / "pt_safetensors", device_map=device_map)
        assert model.device.type == "cpu"
    with pytest.raises(ValueError, match=r"device_map must name one device for the whole model"):
        vit_torch.AutoModel.from_pretrained(CLS, device_map={"vit": 0, "classifier": "cpu"})
    with pytest.raises(ValueError, match="'nowhere' can't be used"):
        vit_torch.ViTForImageClassification.from_pretrained(CLS, device_map="nowhere")


def test_the_implementation_of_attention_can_be_changed(backend: Any) -> None:
    """And is: eager attention is the one that gives its probabilities away without being asked."""
    model = classifier(backend, _attn_implementation="eager")
    assert (model.config.attn_implementation, model.config._attn_implementation) == ("eager", "eager")
    assert "_attn_implementation" not in model.config.to_dict()
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    called: list[str] = []
    module = __import__(f"{backend.package.__name__}.attention", fromlist=["ATTENTIONS"])
    with pytest.MonkeyPatch.context() as patch:
        for name, attention in list(module.ATTENTIONS.items()):

            def noted(*args: Any, _name: str = name, _attention: Any = attention, **kwargs: Any) -> Any:
                called.append(_name)
                return _attention(*args, **kwargs)

            patch.setitem(module.ATTENTIONS, name, noted)
        for name in ("sdpa", "eager"):
            model.set_attn_implementation(name)
            called.clear()
            backend.call(model, pixel_values=pixels)
            assert set(called) == {name}
    with pytest.raises(ValueError, match="attn_implementation must be one of"):
        model.set_attn_implementation("flash_attention_9")


def test_a_configuration_may_change_after_a_call(backend: Any) -> None:
    model, pixels = classifier(backend), np.zeros((1, 3, 32, 32), np.float32)
    assert "hidden_states" not in backend.call(model, pixel_values=pixels, labels=np.array([1]))
    model.config.output_hidden_states, model.config.problem_type = True, "multi_label_classification"
    output = backend.call(model, pixel_values=pixels, labels=np.eye(5, dtype=np.float32)[:1])
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert 0.3 < float(np.asarray(output.loss)) < 1.2  # of each label by itself, ln 2 where nothing is known
    if backend.name == "tf":
        assert "hidden_states" in model.predict(pixels, verbose=0)
        model.config.output_hidden_states = False
        assert "hidden_states" not in model.predict(pixels, verbose=0)


def test_attributes_that_programs_ask_for(backend: Any) -> None:
    model, base = classifier(backend), backend.load("ViTModel", CHECKPOINTS / "base" / "pt_safetensors")
    assert model.num_labels == 5
    assert (model.base_model_prefix, model.config_class) == ("vit", ViTConfig)
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters()
    if backend.name != "flax":
        assert model.base_model is model.vit
        assert base.base_model is base


def test_names_of_pytorch() -> None:
    torch, vit_torch = pytest.importorskip("torch"), pytest.importorskip("vit_torch")
    model = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    held = {type(module).__name__ for module in model.modules()}
    for name in ("Dinov2Model", "BeitModel", "ViTMAEForPreTraining"):
        other = getattr(vit_torch, name)(config_for(name, **SMALL))
        held |= {type(module).__name__ for module in other.modules()}
    assert set(model._no_split_modules) <= held
    assert model.get_memory_footprint() == 4 * model.num_parameters()
    assert not model.can_generate() and model.get_output_embeddings() is None
    model.requires_grad_(False)
    model.enable_input_require_grads()
    pixels = torch.zeros(1, 3, 32, 32)
    assert model(pixels).logits.requires_grad
    model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=1, offload=False)
    assert model.is_gradient_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(ValueError, match="leave out every_n_layers=2"):
        model.gradient_checkpointing_enable(every_n_layers=2)


def test_names_of_keras(tmp_path: Path) -> None:
    keras, vit_tf = pytest.importorskip("keras"), pytest.importorskip("vit_tf")
    base = vit_tf.TFViTModel.from_pretrained(CHECKPOINTS / "base" / "pt_safetensors")
    pixels = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    assert np.array_equal(base.vit(pixels)[0], base(pixels)[0])
    base.vit.encoder.trainable = False
    for model in (base, vit_tf.TFViTForImageClassification.from_pretrained(CLS)):
        held = len(model.weights)
        model.build(None)
        model.build((None, 3, 32, 32))
        assert len(model.weights) == held
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, of what Keras does
            model.save_weights(tmp_path / "model.weights.h5")  # which walks through all that a model holds
            model.load_weights(tmp_path / "model.weights.h5")
    with pytest.raises(AttributeError, match="has no attribute 'vitt'"):
        _ = base.vitt
    model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"])
    labels = np.array([0, 1, 2, 3])
    plain, named = (model.evaluate(pixels, y, verbose=0) for y in (labels, {"labels": labels}))
    assert plain == named
    model.fit(pixels, {"labels": labels}, verbose=0)
    with pytest.raises(ValueError, match=r'Targets in a dict must be those of {"labels": \.\.\.} or .*, got y'):
        model.fit(pixels, {"y": labels}, verbose=0)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_a_dataset(shuffle: bool) -> None:
    vit_tf = pytest.importorskip("vit_tf")
    model = vit_tf.TFViTForImageClassification.from_pretrained(CLS)
    rows = [{"pixel_values": np.full((3, 32, 32), i / 10).tolist(), "labels": i % 5, "name": "x"} for i in range(10)]
    batches = model.prepare_tf_dataset(rows, batch_size=4, shuffle=shuffle)
    found = [(x.numpy(), y.numpy()) for x, y in batches]
    assert [len(x) for x, _ in found] == ([4, 4] if shuffle else [4, 4, 2])
    assert all(x.shape[1:] == (3, 32, 32) and x.dtype == np.float32 for x, _ in found)
    numbers = [round(float(each[0, 0, 0]) * 10) for x, _ in found for each in x]
    assert [number % 5 for number in numbers] == [int(label) for _, y in found for label in y]
    assert (numbers == sorted(numbers)) is not shuffle
    model.compile("sgd")
    model.fit(batches, shuffle=False, verbose=0)
    alone = model.prepare_tf_dataset([{"pixel_values": row["pixel_values"]} for row in rows], drop_remainder=False)
    assert sum(len(x) for x in alone) == 10


def test_configurations_and_processors_are_pushed(tmp_path: Path) -> None:
    for cls, source in ((ViTConfig, CLS), (ViTImageProcessor, DIGITS)):
        given = cls.from_pretrained(source)
        given.save_pretrained(tmp_path, push_to_hub=False)
        with pytest.raises(TypeError, match="token: only an upload takes that"):
            given.save_pretrained(tmp_path / "no", token="x")
        with pytest.raises(TypeError, match="unexpected keywords: pusch_to_hub"):
            given.save_pretrained(tmp_path / "no", pusch_to_hub=True)
    assert not (tmp_path / "no").exists()

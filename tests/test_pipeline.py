"""The image-classification pipeline: results against the model's own, every kind of input, options, errors."""

from __future__ import annotations

import base64
import io
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from PIL import Image
from tolerances import SAME_FUNCTION_FLOAT64, UNIT_ROUNDOFF

from vit_core.app import backends
from vit_core.app.backends import backend_of, first_installed, import_backend, run
from vit_core.app.pipeline import pipeline
from vit_core.app.sources import read_image
from vit_core.assets import DIGITS
from vit_core.calls import score_function
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

CKPT = Path(__file__).parent / "golden" / "ckpt"
PICTURES = sorted((DIGITS / "pictures").iterdir())
PICTURE = PICTURES[0]
torch = pytest.importorskip("torch")

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture(scope="module")
def digits() -> Any:
    return pipeline("image-classification")


def test_held_out_digits_are_recognised(digits: Any) -> None:
    results = digits(PICTURES, top_k=1)
    right = [result[0]["label"] == path.name[0] for path, result in zip(PICTURES, results, strict=True)]
    assert sum(right) >= len(right) - 1


def test_scores_are_the_softmax_of_the_models_logits() -> None:
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS, dtype="float64")
    pixels = ViTImageProcessor.from_pretrained(DIGITS)(PICTURES[0], return_tensors="pt").to(model.device)
    with torch.no_grad():
        expected = model(**pixels).logits.softmax(-1)[0]
    classify = pipeline(model=DIGITS, dtype="float64")
    result = classify(PICTURES[0], top_k=None)
    assert [each["label"] for each in result] == [str(int(i)) for i in expected.argsort(descending=True)]
    best = expected.sort(descending=True).values.tolist()
    assert_close([each["score"] for each in result], best, SAME_FUNCTION_FLOAT64, each=True)
    assert result[:5] == classify(PICTURES[0])
    assert [set(map(type, each.values())) for each in result[:1]] == [{str, float}]


def test_every_kind_of_input_gives_the_same(digits: Any) -> None:
    path = PICTURES[0]
    expected = digits(path)
    rgb = np.asarray(Image.open(path).convert("RGB"))
    with path.open("rb") as file:
        for image in (str(path), path.read_bytes(), file, Image.open(path), rgb, torch.from_numpy(rgb.copy())):
            assert digits(image) == expected
    assert digits([path, rgb]) == [expected, expected]
    assert digits(np.stack([rgb, rgb]), batch_size=1) == [expected, expected]
    assert digits([]) == []


def test_batches_change_nothing_but_rounding() -> None:
    digits = pipeline(model=DIGITS, dtype="float64")
    one, five = digits(PICTURES, batch_size=1), digits(PICTURES, batch_size=5)
    for a, b in zip(one, five, strict=True):
        assert [x["label"] for x in a] == [x["label"] for x in b]
        assert_close([x["score"] for x in a], [x["score"] for x in b], SAME_FUNCTION_FLOAT64, each=True)


def test_stream_gives_errors_in_place_and_reads_no_further_than_the_next_batch(digits: Any) -> None:
    taken = []

    def images() -> Iterator[Any]:
        for image in (PICTURES[0], b"nothing", *PICTURES[1:5]):
            taken.append(image)
            yield image

    stream = digits.stream(images(), batch_size=2)
    assert next(stream)[0]["label"] == digits(PICTURES[0])[0]["label"]
    assert len(taken) == 4
    results = list(stream)
    assert isinstance(results[0], ValueError)
    assert [type(each) for each in results[1:]] == [list] * 4
    with pytest.raises(ValueError, match="7 bytes is no picture"):
        digits([PICTURES[0], b"nothing"])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_models_of_other_channels_get_pictures_in_their_mode(channels: int, mode: str) -> None:
    name = "tiny_1_channel" if channels == 1 else "tiny_4_channels"
    with pytest.warns(UserWarning, match=r"no preprocessor_config\.json: images are resized to 16x16"):
        classifier = pipeline(model=CKPT / name / "pt_safetensors")
    picture = Image.open(Path(__file__).parent / "golden" / "processor" / "images" / "rgba.png")
    pixels = np.asarray(picture.convert(mode).resize((16, 16), Image.Resampling.BILINEAR)).reshape(16, 16, channels)
    expected = (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    assert_close(np.float64(classifier.preprocess(picture)), expected, 4 * UNIT_ROUNDOFF["float32"])
    assert len(classifier(picture)) == 3


def test_a_model_object_and_its_processor() -> None:
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS).train()
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    classifier = pipeline(model=model, image_processor=processor)
    assert classifier(PICTURES[0]) == pipeline()(PICTURES[0])
    assert pipeline(model=model, image_processor=DIGITS).image_processor == processor
    assert not model.training
    assert pipeline(model=model).image_processor == processor  # which it was loaded beside
    with pytest.warns(UserWarning, match="The model has no preprocessor_config.json"):
        fresh = pipeline(model=vit_torch.ViTForImageClassification(model.config, seed=0))
    assert fresh.image_processor.size == {"height": 24, "width": 24}
    for options in ({"dtype": "float16"}, {"backend": "tf"}, {"revision": "main"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} can't be set for a model that is loaded"):
            pipeline(model=model, image_processor=processor, **options)
    with pytest.raises(TypeError, match="model must be a name, a path or a model of this package, got a Linear"):
        pipeline(model=torch.nn.Linear(2, 2), image_processor=processor, device=-1)


def test_models_in_what_pytorch_makes_of_them(digits: Any) -> None:
    """torch.compile, DataParallel, and PEFT, whose module has the model where this one has it."""
    peft = torch.nn.Module()
    peft.forward = digits.model.forward
    peft.base_model = torch.nn.Module()
    peft.base_model.model = digits.model
    processor, expected = digits.image_processor, digits(PICTURE)
    for model in (torch.compile(digits.model, backend="eager"), torch.nn.DataParallel(digits.model), peft):
        classifier = pipeline(model=model, image_processor=processor)
        assert classifier(PICTURE) == expected
        assert classifier.device == digits.device and "device='cpu'" in repr(classifier)
        assert len(pipeline("image-feature-extraction", model, image_processor=processor)(PICTURE, features="cls")) == 1


def test_the_processor_follows_the_options_of_loading(digits: Any) -> None:
    config = digits.model.config
    for options in ({"config": config}, {"config": str(DIGITS)}, {"model_kwargs": {"output_loading_info": True}}):
        assert pipeline(model=DIGITS, **options)(PICTURE) == digits(PICTURE)
    for options, size, channels in (({"image_size": 32}, 32, 3), ({"num_channels": 1}, 24, 1)):
        classifier = pipeline(model=DIGITS, **options)
        assert classifier.preprocess(PICTURE).shape == (channels, size, size)
        assert classifier(PICTURE)[0]["label"] == PICTURE.name[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, "float16"])
def test_dtypes(digits: Any, dtype: Any) -> None:
    classifier = pipeline(task="image-classification", model=str(DIGITS), dtype=dtype, device=-1, use_fast=True)
    assert str(classifier.model.dtype).removeprefix("torch.") in str(dtype)
    assert classifier.image_processor.is_fast
    results = classifier(PICTURES[0])
    assert results[0]["label"] == digits(PICTURES[0])[0]["label"]
    assert results[0]["score"] == pytest.approx(digits(PICTURES[0])[0]["score"], abs=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"device='cuda:0' can't be used \(.*\): pass one that this machine has"):
        pipeline(device=0)


def test_functions(digits: Any) -> None:
    logits = digits(PICTURES[0], function_to_apply="none", top_k=None)
    scores = {each["label"]: each["score"] for each in digits(PICTURES[0], function_to_apply="sigmoid", top_k=None)}
    for each in logits:
        assert scores[each["label"]] == pytest.approx(1 / (1 + np.exp(-each["score"])))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_labels": 3}, "softmax"),
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, "softmax"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, "none"),
    ],
)
def test_score_function(fields: dict[str, Any], expected: str) -> None:
    assert score_function(ViTConfig(**fields)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number from 1, got 0"),
        ({"num_workers": -1}, "num_workers must be a whole number from 1, got -1"),
        ({"batch_size": None}, "batch_size must be a whole number from 1, got None"),
        ({"function_to_apply": "tanh"}, "function_to_apply must be one of softmax, sigmoid, none, or None, got 'tanh'"),
    ],
)
def test_wrong_options(digits: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits(PICTURES[0], **options)
    with pytest.raises(ValueError, match=message):
        pipeline(**options)
    with pytest.raises(TypeError, match="are no options of a call"):
        digits(PICTURES[0], topk=1)


def test_what_no_classifier_can_be_made_of(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task must be one of image-classification, image-feature-extraction, got"):
        pipeline("object-detection")
    with pytest.raises(ValueError, match=r"newly initialised: classifier.weight, classifier.bias\. Train the model"):
        pipeline(model=CKPT / "base" / "pt_safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json"):
        pipeline(image_processor=tmp_path)
    import vit_torch

    trunk, processor = pipeline().model.base_model, ViTImageProcessor.from_pretrained(DIGITS)
    with pytest.raises(ValueError, match=r"^ViTModel is no classifier: it gives last_hidden_state, and no logits"):
        pipeline(model=trunk, image_processor=processor.to_dict())(PICTURE)
    of_tokens = vit_torch.BeitForMaskedImageModeling(
        vit_torch.BeitConfig(num_hidden_layers=1, image_size=24, patch_size=8)
    )
    with pytest.raises(ValueError, match=r"is no classifier: it gives logits, and no logits of classes\. Pass one"):
        pipeline(model=of_tokens, image_processor=processor)(PICTURE)
    with pytest.raises(
        TypeError, match=r"image_processor must be one of this package, .* got a builtins\.object: pass"
    ):
        pipeline(image_processor=object())
    headless = vit_torch.ViTForImageClassification(ViTConfig(num_labels=0, num_hidden_layers=1))
    with pytest.raises(ValueError, match="num_labels=0 and so no classes"):
        pipeline(model=headless, image_processor=ViTImageProcessor.from_pretrained(DIGITS))


def test_logits_that_are_not_finite_are_an_error(digits: Any) -> None:
    with pytest.raises(ValueError, match="logits are not finite"):
        digits.postprocess(np.array([0.0, np.nan]), 5, None)


def test_a_picture_of_the_wrong_size_is_the_models_error() -> None:
    classifier = pipeline(image_processor=ViTImageProcessor(size=32))
    with pytest.raises(ValueError, match=r"Input image size \(32\*32\) doesn't match model \(24\*24\)"):
        classifier(PICTURES[0])


def test_pictures_as_text(digits: Any) -> None:
    """Data URLs and base64, in one line or many."""
    encoded = base64.b64encode(PICTURE.read_bytes()).decode()
    expected = digits(str(PICTURE))
    wrapped = base64.encodebytes(PICTURE.read_bytes()).decode()
    for text in (encoded, wrapped, wrapped.replace("\n", "\r\n")):  # as mail wraps it
        assert digits(text) == digits(f"data:image/png;base64,{text}") == expected
    for text in ("A" * 100_000, "@" * 100_000, "http://127.0.0.1:1/" + "A" * 100_000):
        with pytest.raises((OSError, ValueError), match=r"^.{,400}$"):
            digits(text)
    with pytest.raises(ValueError, match=r"^The image 'data:image/png;base64,@@@'\.\.\. is no base64"):
        digits("data:image/png;base64,@@@")
    with pytest.raises(FileNotFoundError, match="There is no image file cat"):
        digits("cat")


def test_a_rotated_picture_is_upright_however_it_comes(digits: Any, tmp_path: Path) -> None:
    picture = Image.open(PICTURE).convert("RGB")
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = digits(picture.rotate(-90, expand=True))
    with Image.open(tmp_path / "turned.png") as opened:
        assert digits(opened) == digits(str(tmp_path / "turned.png")) == expected != digits(str(PICTURE))


def test_generators_and_datasets(digits: Any) -> None:
    class Dataset:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> str:
            if not 0 <= i < 3:
                raise IndexError
            return str(PICTURE)

    expected = digits([str(PICTURE)] * 3, batch_size=2)
    for images in (Dataset(), (str(PICTURE) for _ in range(3)), iter([str(PICTURE)] * 3)):
        found = digits(images, batch_size=2)
        assert isinstance(found, Iterator)
        assert list(found) == expected

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[str]:
            return iter([str(PICTURE)] * 3)

    assert list(digits(Stream(), num_workers=1, batch_size=2, top_k=np.int64(5))) == expected
    assert len(digits(Dataset())) == 3
    with pytest.raises(FileNotFoundError):
        list(digits(iter(["nothing.png"])))


def test_a_silent_address(digits: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
        with pytest.raises(OSError, match=r"can't be fetched \(.*timed out"):
            digits(address, timeout=0.2)
    for timeout in (0, (1, 2)):
        with pytest.raises(ValueError, match=r"timeout must be a number of seconds above 0, or None, got [(0]"):
            digits(address, timeout=timeout)


def test_keywords_of_transformers_pipeline(tmp_path: Path) -> None:
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    found = pipeline(
        "image-classification", model=str(DIGITS), framework="pt", feature_extractor=processor, device_map="cpu",
        tokenizer=None, num_workers=2, trust_remote_code=False, model_kwargs={"dtype": "float64"},
    )  # fmt: skip
    assert (found.backend, str(found.model.dtype), found.image_processor) == ("torch", "torch.float64", processor)
    assert (found.framework, found.defaults["num_workers"]) == ("pt", 2)
    assert pipeline(model=found.model, image_processor=processor, revision=None, dtype=None)(PICTURE) == found(PICTURE)
    assert found.device == torch.device("cpu")
    assert found(images=PICTURE) == found(PICTURE)
    for given in ({}, {"inputs": PICTURE, "images": PICTURE}):
        with pytest.raises(TypeError, match="takes one image or several, as its first argument, inputs, or as images"):
            found(**given)
    found.image_processor = ViTImageProcessor(size=24, resample=3)  # another than the model was loaded beside
    found.save_pretrained(tmp_path)
    assert ViTImageProcessor.from_pretrained(tmp_path) == found.image_processor
    assert pipeline(model=str(tmp_path), dtype="auto")(PICTURE) == found(PICTURE)
    for given in ({"backend": "torch", "framework": "tf"}, {"image_processor": "a", "feature_extractor": "b"}):
        with pytest.raises(ValueError, match="is the older name of"):
            pipeline(model=str(DIGITS), **given)
    with pytest.raises(TypeError, match="tokenizer"):
        pipeline(model=str(DIGITS), tokenizer="a")
    with pytest.raises(TypeError, match=r"pipeline\(\) takes no load_in_8bit"):
        pipeline(model=str(DIGITS), model_kwargs={"load_in_8bit": True})


def test_an_address(digits: Any, tmp_path: Path) -> None:
    """With letters and blanks as they are or quoted, and a login that no error shows."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            logins.append(self.headers.get("Authorization"))
            super().do_GET()

    logins: list[str | None] = []
    shutil.copy(PICTURE, tmp_path / "é 1%.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        for name in ("é 1%25.png", "%C3%A9%201%25.png?q=ü b#part"):
            assert digits(f"{root}/{name}") == digits(PICTURE)
        with pytest.raises(OSError, match="can't be fetched") as caught:
            digits(root.replace("//", "//me:a%40secret@") + "/nothing.png")
        assert "secret" not in str(caught.value)
        assert logins == [None, None, "Basic " + base64.b64encode(b"me:a@secret").decode()]
        with pytest.raises(OSError, match=r"nothing\.png can't be fetched \(.*: check the address and the network"):
            digits(f"{root}/nothing.png")
        server.shutdown()


def test_an_address_that_answers_with_anything(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no picture is named by its address; one that never ends, ends early or dawdles is given up."""

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/promised":
                self.send_header("Content-Length", str(10**13))
            if self.path == "/short":
                self.send_header("Content-Length", "11")
            self.end_headers()
            with suppress(OSError):  # the client has gone
                while self.path not in ("/text", "/short"):
                    self.wfile.write(b"." if self.path == "/slow" else bytes(1 << 16))
                    gone.wait(0.01 if self.path == "/slow" else 0)
                self.wfile.write(b"no picture")

        def log_message(self, *_: Any) -> None: ...

    gone = threading.Event()
    monkeypatch.setattr(sys.modules[read_image.__module__], "_MOST_BYTES", 1 << 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        for path in ("endless", "promised"):
            with pytest.raises(ValueError, match=f"^{root}/{path} answers with more than 1048576 bytes: save it"):
                digits(f"{root}/{path}")
        with pytest.raises(OSError, match=rf"^{root}/short can't be fetched \(IncompleteRead"):
            digits(f"{root}/short")
        monkeypatch.setattr(sys.modules[read_image.__module__], "_MOST_SECONDS", 0)
        with pytest.raises(ValueError, match=f"^{root}/slow takes more than 0 seconds to answer: save it"):
            digits(f"{root}/slow")
        monkeypatch.undo()
        with pytest.raises(ValueError, match=f"^{root}/text is no picture that Pillow can read"):
            digits(f"{root}/text")
        server.shutdown()


def test_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_installed() == "torch"
    with pytest.raises(ValueError, match="backend must be one of torch, tf, flax, got 'jax'"):
        import_backend("jax")
    for name in [name for name in sys.modules if name.partition(".")[0] == "vit_torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r'The backend torch is not installed \(.*\): pip install "vit-trio\[torch\]"'
    ):
        import_backend("torch")
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'No backend is installed: pip install "vit-trio\[torch\]"'):
        first_installed()


def test_a_backend_without_tensors_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a TensorFlow or Flax model is to `run`: something to call with NumPy, whose outputs NumPy can read."""

    def call(self: Any, pixel_values: Any, **options: Any) -> dict[str, Any]:
        assert options == {"return_dict": True, "output_attentions": True}
        return {"logits": pixel_values.mean((2, 3)), "attentions": (np.ones(2, np.float16),)}

    model = type("FlaxViT", (), {"__module__": "vit_flax.modeling", "__call__": call, "config": None})()
    assert backend_of(model) == "flax"
    output = run(model, np.ones((2, 3, 4, 4), np.float32), output_attentions=True)
    assert output["logits"].dtype == output["attentions"][0].dtype == np.float64
    with pytest.raises(ValueError, match="device=0 is for the backend torch; flax takes the first accelerator"):
        backends.place(model, 0)
    monkeypatch.setitem(backends._ACCELERATORS, "flax", lambda: seen)
    seen = False
    backends.place(model, -1)
    seen = True
    with pytest.raises(ValueError, match="device=-1 is for the backend torch"):
        backends.place(model, -1)


def test_exif_orientation_is_applied(digits: Any) -> None:
    upright = Image.open(PICTURES[0]).convert("RGB")
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    assert digits(file.getvalue()) == digits(upright)

"""`vit serve`: real servers in processes of their own, and real clients."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import pytest
from closeness import assert_close
from command import HANGS, process
from PIL import Image
from test_guides import commands
from tolerances import probabilities
from trainings import QUIET, ROOT, free_port

from vit_core import pipeline
from vit_core.app.cli import main
from vit_core.assets import DIGITS
from vit_core.config import ViTConfig

for _part in ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client"):
    pytest.importorskip(_part)
pytest.importorskip("torch")

PICTURES = sorted((DIGITS / "pictures").glob("*.png"))
PREDICT = "/v1/models/digits:predict"
INFER = "/v2/models/digits/infer"
VIT = [sys.executable, "-c", "import sys; from vit_core.cli import main; sys.exit(main())", "serve"]
GATED = [sys.executable, str(ROOT / "tests" / "gated.py")]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A server in a process; `lines` are those of its log so far."""

    def __init__(self, *command: Any, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*map(str, command), "--log", "json"],
            env={**os.environ, "PYTHONPATH": str(ROOT), **QUIET, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stderr is not None
        self.lines = [json.loads(self.process.stderr.readline())]
        self.host, self.port = self.lines[0]["url"].removeprefix("http://").rsplit(":", 1)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))  # nothing else is there

    def ask(self, path: str, body: Any = None, **headers: str) -> Answer:
        """The answer to a GET, or to a POST where there is a body."""
        with closing(HTTPConnection(self.host, int(self.port), timeout=HANGS)) as connection:
            return ask(connection, path, body, **headers)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, int(self.port)), timeout=HANGS)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def batch(self) -> int:
        """The size of the next batch that a gated model has before it."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def go(self, word: str = "go") -> None:
        """Let a gated model go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        """The exit code, after SIGTERM."""
        self.process.terminate()
        return self.end()

    def end(self) -> int:
        """The exit code; what a gated model is at goes on."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(HANGS)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError), self.process:
            self.process.kill()
            self.reader.join()


def ask(connection: HTTPConnection, path: str, body: Any = None, **headers: str) -> Answer:
    encoded = json.dumps(body).encode() if isinstance(body, dict) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if body is None else "POST", path, encoded, named)
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that will hold."""
    end = time.monotonic() + HANGS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def b64(content: bytes) -> dict[str, str]:
    return {"b64": b64encode(content).decode()}


def instances(*paths: Path) -> dict[str, Any]:
    return {"instances": [b64(path.read_bytes()) for path in paths]}


def posted(path: str, body: dict[str, Any]) -> bytes:
    """A whole request."""
    encoded = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(encoded)}\r\n\r\n".encode() + encoded


def form(*files: tuple[str, bytes], **fields: str) -> dict[str, Any]:
    """The body and the headers of a form with files, and with fields of text."""
    parts = [
        f'--xx\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    texts = fields.items()
    parts += [f'--xx\r\nContent-Disposition: form-data; name="{x}"\r\n\r\n{text}\r\n'.encode() for x, text in texts]
    return {"body": b"".join(parts) + b"--xx--\r\n", "content_type": "multipart/form-data; boundary=xx"}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[dict[str, Any]]]:
    """What the pipeline says of each picture."""
    from vit_core import pipeline

    classifier = pipeline(backend="torch", top_k=10)
    return {path.name: classifier(path) for path in PICTURES}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """That of the guide, with limits that a test can exceed."""
    first = commands("serve.md")[0]
    assert first == "vit serve vit_core/assets/digits"
    options = ["--backend", "torch", "--port", 0, "--max-body", 1, "--max-pixels", 1]
    with Server(*VIT, *first.split()[2:], *options) as started:
        yield started
        assert started.stop() == 0
    assert started.lines[-1]["message"] == "stopped, 0 requests not answered"


@pytest.fixture(scope="module")
def gated() -> Iterator[Server]:
    with Server(*GATED, DIGITS, "--backend", "torch", "--port", 0, "--max-queue", 8) as started:
        yield started
        assert started.stop() == 0


def same(labels: list[str], scores: list[float], predictions: list[dict[str, Any]]) -> None:
    """Labels and scores are the first ones of these predictions; a batch rounds otherwise than a picture alone."""
    assert labels == [each["label"] for each in predictions[: len(labels)]]
    spread = math.log(predictions[0]["score"] / predictions[-1]["score"])  # of all logits, on both sides of 0
    wanted = [each["score"] for each in predictions[: len(labels)]]
    assert_close(scores, wanted, probabilities(ViTConfig.from_pretrained(DIGITS), spread), each=True)


# ---- the protocols -----------------------------------------------------------------------------------------------


def test_tensorflow_serving(server: Server, expected: Any) -> None:
    for path in (PREDICT, "/v1/models/digits/versions/1:predict"):
        answer = server.ask(path, {**instances(*PICTURES), "signature_name": "serving_default"})
        assert answer.status == 200 and set(answer.json) == {"predictions"}
        for picture, found in zip(PICTURES, answer.json["predictions"], strict=True):
            assert len(found["labels"]) == 5
            same(found["labels"], found["scores"], expected[picture.name])
    outputs = server.ask(PREDICT, {"inputs": {"image_bytes": instances(*PICTURES)["instances"]}}).json["outputs"]
    assert outputs["labels"] == [found["labels"] for found in answer.json["predictions"]]
    assert np.shape(outputs["scores"]) == (len(PICTURES), 5)
    status = server.ask("/v1/models/digits").json["model_version_status"]
    assert status == [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]
    metadata = server.ask("/v1/models/digits/metadata").json
    assert metadata["model_spec"] == {"name": "digits", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert {*signature["inputs"]} == {"image_bytes", "pixel_values"} and {*signature["outputs"]} == {"labels", "scores"}


def test_pixels_are_taken_as_the_processor_gives_them(server: Server, expected: Any) -> None:
    from vit_core import ViTImageProcessor

    processor = ViTImageProcessor.from_pretrained(DIGITS)
    pixels = processor([str(path) for path in PICTURES[:2]], return_tensors="np").pixel_values
    rows = {"instances": [pixels[0].tolist(), {"pixel_values": pixels[1].tolist()}]}
    column = {"inputs": {"pixel_values": pixels.tolist()}}
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    outputs = server.ask(INFER, {"inputs": [tensor], "outputs": [{"name": "labels"}]}).json["outputs"]
    assert [output["name"] for output in outputs] == ["labels"]
    for labels in (
        [each["labels"] for each in server.ask(PREDICT, rows).json["predictions"]],
        server.ask(PREDICT, column).json["outputs"]["labels"],
        np.reshape(outputs[0]["data"], (2, 5)).tolist(),
    ):
        assert labels == [[each["label"] for each in expected[path.name][:5]] for path in PICTURES[:2]]


def test_vertex_ai_by_its_variables_under_load_and_faults(expected: Any) -> None:
    """Two copies of a model, by the variables of Vertex AI's containers.

    Some clients send what is broken, or go before the answer, which harms no other.
    Then the server is told to stop: whatever it took is answered, and rightly.
    """
    routes = {"AIP_HEALTH_ROUTE": "/alive", "AIP_PREDICT_ROUTE": "/v1/endpoints/7:predict"}
    path = routes["AIP_PREDICT_ROUTE"]
    answered = SimpleQueue[tuple[str, str, Answer]]()
    settings = {"AIP_HTTP_PORT": str(free_port()), "AIP_STORAGE_URI": str(DIGITS), **routes}
    queue = ("--max-queue", "4096")  # those that go fill the usual one on a slow machine, which is then rightly busy
    with Server(*VIT, "--devices", "cpu,cpu", *queue, **settings) as started:
        assert started.host == "0.0.0.0"
        assert started.ask("/alive").status == 200
        assert started.ask("/predict", instances(PICTURES[0])).status == 404

        def asks(number: int) -> None:
            """Another picture each time, on one connection after another."""
            for turn in count():
                with closing(HTTPConnection(started.host, int(started.port), timeout=HANGS)) as connection:
                    for step in range(20):
                        picture, identity = PICTURES[(number + step) % len(PICTURES)], f"asked-{number}-{turn}-{step}"
                        body = {**instances(picture), "parameters": {"top_k": 2}}
                        answer = ask(connection, path, body, x_request_id=identity)
                        answered.put((identity, picture.name, answer))

        def sends_what_is_broken(_: int) -> None:
            while True:
                assert started.ask(path, {"instances": [GOOD, b64(b"no")]}).status == 400

        def goes(number: int) -> None:
            """In the middle of its request, or before the answer."""
            whole = posted(path, instances(PICTURES[0]))
            while True:
                with started.connect() as connection:
                    connection.sendall(whole if number % 2 else whole[: len(whole) // 2])

        def until_refused(client: Callable[[int], None], number: int) -> None:
            with suppress(OSError, HTTPException):  # which is how a connection ends that the server takes no more from
                client(number)

        with ThreadPoolExecutor(16) as clients:
            kinds = [*[asks] * 12, *[sends_what_is_broken] * 2, *[goes] * 2]
            futures = [clients.submit(until_refused, kind, number) for number, kind in enumerate(kinds)]
            until(lambda: answered.qsize() >= 200)
            code = started.stop()
            for each in futures:
                each.result()
    found = [answered.get() for _ in range(answered.qsize())]
    for _, name, answer in found:
        assert answer.status == 200
        (prediction,) = answer.json["predictions"]
        assert len(prediction["labels"]) == 2
        same(prediction["labels"], prediction["scores"], expected[name])
    lines = {line["id"]: line for line in started.lines if line.get("protocol") == "vertex"}
    assert {each for each in lines if each.startswith("asked")} == {identity for identity, _, _ in found}
    assert {line["status"] for line in lines.values()} <= {200, 400, 499}
    assert started.lines[-1]["message"] == "stopped, 0 requests not answered"
    assert code == 0


def test_the_open_inference_protocol(server: Server, expected: Any) -> None:
    assert server.ask("/v2").json["name"] == "vit-trio"
    assert server.ask("/v2/health/live").json == {"live": True}
    assert server.ask("/v2/health/ready").json == {"ready": True}
    assert server.ask("/v2/models/digits/ready").json == {"name": "digits", "ready": True}
    metadata = server.ask("/v2/models/digits").json
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"][1] == {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, 24, 24]}
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [len(PICTURES)]}
    body = {"id": "seven", "inputs": [{**tensor, "data": [b64(path.read_bytes())["b64"] for path in PICTURES]}]}
    answer = server.ask(INFER, {**body, "parameters": {"top_k": 3}}).json
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "seven")
    labels, scores = answer["outputs"]
    assert labels["shape"] == scores["shape"] == [len(PICTURES), 3]
    assert (labels["datatype"], scores["datatype"]) == ("BYTES", "FP32")
    for i, path in enumerate(PICTURES):
        same(labels["data"][3 * i : 3 * i + 3], scores["data"][3 * i : 3 * i + 3], expected[path.name])
    (logits,) = server.ask("/v2/models/digits/versions/1/infer", {**body, "outputs": [{"name": "logits"}]}).json[
        "outputs"
    ]
    assert logits["shape"] == [len(PICTURES), 10]
    best = np.argmax(np.reshape(logits["data"], logits["shape"]), axis=1)
    assert [str(i) for i in best] == [expected[path.name][0]["label"] for path in PICTURES]


def test_files(server: Server, expected: Any) -> None:
    """A broken one is told of beside the others."""
    sent = form((PICTURES[0].name, PICTURES[0].read_bytes()), ("broken.png", b"no"), ("x", PICTURES[1].read_bytes()))
    answer = server.ask("/classify?top_k=2", **sent)
    assert answer.status == 200
    assert (answer.json["model"], answer.json["backend"]) == ("digits", "torch")
    assert [image["file"] for image in answer.json["images"]] == [PICTURES[0].name, "x"]
    for image, path in zip(answer.json["images"], PICTURES, strict=False):
        labels, scores = zip(*((each["label"], each["score"]) for each in image["predictions"]), strict=True)
        assert len(labels) == 2
        same([*labels], [*scores], expected[path.name])
    (failed,) = answer.json["failed"]
    assert failed["file"] == "broken.png" and "no picture that Pillow can read" in failed["error"]
    alone = server.ask("/classify", PICTURES[0].read_bytes(), content_type="image/png").json
    assert alone["images"][0]["predictions"][0]["label"] == expected[PICTURES[0].name][0]["label"]
    assert server.ask("/classify", b"no", content_type="image/png").status == 400


def test_a_form_and_an_address_have_the_fields_that_are_known(server: Server) -> None:
    picture = ("x.png", PICTURES[0].read_bytes())
    (image,) = server.ask("/classify?top_k=4", **form(picture, top_k="2")).json["images"]
    assert len(image["predictions"]) == 2
    for path, fields, words in (
        ("/classify", {"top_k": "many"}, "top_k must be a whole number from 1, got 'many'."),
        ("/classify?top_k=0", {}, "top_k must be a whole number from 1, got '0'."),
        ("/classify", {"model": "x"}, "The form has a field 'model', which is not known here: there is top_k."),
        ("/attention", {"top_k": "2"}, "The form has a field 'top_k', which is not known here: there are none."),
        ("/classify?topk=1", {}, "The address has a field 'topk', which is not known here: there is top_k."),
        ("/attention?head=1", {}, "The address has a field 'head', which is not known here: there are none."),
    ):
        answer = server.ask(path, **form(picture, **fields))
        assert (answer.status, answer.json["error"]) == (400, words)


def test_the_attention_over_a_picture(server: Server) -> None:
    answer = server.ask("/attention", **form(("x.png", PICTURES[0].read_bytes())))
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert Image.open(BytesIO(answer.body)).size == (640, 640)
    assert server.ask("/attention", b"no", content_type="image/png").status == 400


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tf", "flax"])
def test_other_backends(backend: str, expected: Any) -> None:
    pytest.importorskip({"tf": "tensorflow", "flax": "flax"}[backend])
    with Server(*VIT, DIGITS, "--backend", backend, "--port", 0, "--batch-size", 1) as started:
        answer = started.ask(PREDICT, instances(*PICTURES[:3]))
        assert started.stop() == 0
        for path, found in zip(PICTURES, answer.json["predictions"], strict=False):
            same(found["labels"], found["scores"], expected[path.name])


def test_the_commands_of_the_guide(server: Server, tmp_path: Path) -> None:
    for program in ("curl", "base64"):
        if not shutil.which(program):
            pytest.skip(f"there is no {program}")
    (tmp_path / "vit_core").symlink_to(ROOT / "vit_core")
    printed = {}
    for line in commands("serve.md")[1:]:
        here = line.replace("http://127.0.0.1:8000", server.lines[0]["url"])
        done = process("bash", "-c", here, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        printed[line] = done.stdout
    answers = [json.loads(text) for text in printed.values() if text.startswith("{")]
    files, alone, tensorflow, vertex, tensors = answers
    assert len(files["images"][0]["predictions"]) == 5 and len(alone["images"][0]["predictions"]) == 1
    assert tensorflow == vertex
    assert tensors["outputs"][0]["data"] == tensorflow["predictions"][0]["labels"]
    assert tensorflow["predictions"][0]["labels"][0] == alone["images"][0]["predictions"][0]["label"] == "2"
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert "vit_requests_total" in [*printed.values()][-1]


# ---- what is refused ---------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


GOOD = b64(PICTURES[0].read_bytes())
TENSOR = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [GOOD["b64"]]}
REFUSED = {
    "no JSON": (PREDICT, b"{", 400, "not valid JSON"),
    "no object": (PREDICT, b"[]", 400, "JSON object"),
    "not finite": (PREDICT, b'{"instances": [[[[NaN]]]]}', 400, "finite"),
    "nothing": (PREDICT, {}, 400, "one of instances and inputs"),
    "both": (PREDICT, {"instances": [GOOD], "inputs": [GOOD]}, 400, "one of instances and inputs"),
    "empty": (PREDICT, {"instances": []}, 400, "not empty"),
    "another field": (PREDICT, {"instances": [GOOD], "instance": 1}, 400, "'instance'"),
    "a signature": (PREDICT, {"instances": [GOOD], "signature_name": "x"}, 400, "'x' not found"),
    "a path": (PREDICT, {"instances": [str(PICTURES[0])]}, 400, "An instance must be"),
    "a path in base64's place": (PREDICT, {"instances": [{"b64": "/etc/passwd"}]}, 400, "base64"),
    "a number in base64's place": (PREDICT, {"instances": [{"b64": 7}]}, 400, "base64"),
    "broken": (PREDICT, {"instances": [GOOD, b64(b"no")]}, 400, "Picture 1: "),
    "large": (PREDICT, {"instances": [b64(png(1001, 1000))]}, 400, "too large"),
    "words as pixels": (PREDICT, {"instances": [[["a"]]]}, 400, "numbers"),
    "ragged pixels": (PREDICT, {"instances": [[[1], [1, 2]]]}, 400, "one length"),
    "flat pixels": (PREDICT, {"instances": [[1, 2]]}, 400, "(C, H, W)"),
    "pixels of another size": (PREDICT, {"instances": [np.zeros((3, 8, 8)).tolist()]}, 400, "image size"),
    "pixels as no processor gives": (PREDICT, {"instances": [np.full((3, 24, 24), 1e30).tolist()]}, 400, "got 1e+30"),
    "pixels beyond float32": (PREDICT, {"instances": [np.full((3, 24, 24), -1e39).tolist()]}, 400, "got inf"),
    "other inputs": (PREDICT, {"inputs": {"x": [GOOD]}}, 400, "image_bytes"),
    "too many": (PREDICT, {"instances": [GOOD] * 129}, 413, "128 pictures"),
    "too long": (PREDICT, b" " * 1_000_001, 413, "1000000 bytes"),
    "another model": ("/v1/models/x:predict", {"instances": [GOOD]}, 404, "no model 'x'"),
    "another version": ("/v1/models/digits/versions/2:predict", {"instances": [GOOD]}, 404, "Not Found"),
    "labels": ("/predict", {"instances": [GOOD], "parameters": {"top_k": 0}}, 400, "top_k"),
    "a parameter": ("/predict", {"instances": [GOOD], "parameters": {"k": 1}}, 400, "'k'"),
    "no tensor": (INFER, {"inputs": []}, 400, "inputs"),
    "two tensors": (INFER, {"inputs": [TENSOR, TENSOR]}, 400, "one tensor"),
    "another type": (INFER, {"inputs": [{**TENSOR, "datatype": "FP32"}]}, 400, "BYTES"),
    "another shape": (INFER, {"inputs": [{**TENSOR, "shape": [2]}]}, 400, "shape"),
    "binary data": (INFER, {"inputs": [{k: v for k, v in TENSOR.items() if k != "data"}]}, 400, "binary"),
    "another output": (INFER, {"inputs": [TENSOR], "outputs": [{"name": "x"}]}, 400, "outputs"),
    "no form": ("/classify", b"x", 415, "multipart/form-data"),
    "nowhere": ("/nowhere", b"x", 404, "Not Found"),
    "by another method": ("/v2", b"x", 405, "Method Not Allowed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, server: Server) -> None:
    path, body, status, words = REFUSED[case]
    answer = server.ask(path, body)
    assert answer.status == status, answer
    assert words in answer.json["error"]
    assert len(answer.json["error"]) <= 400 and "Traceback" not in answer.json["error"]


def test_too_long_without_a_stated_length(server: Server) -> None:
    parts = (b" " * 100_000 for _ in range(12))
    with closing(HTTPConnection(server.host, int(server.port), timeout=HANGS)) as connection:
        connection.request("POST", PREDICT, parts, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        assert connection.getresponse().status == 413


def test_a_request_has_a_number_that_its_line_has(server: Server) -> None:
    answer = server.ask(PREDICT, instances(PICTURES[0]), x_request_id="mine-7")
    assert answer.headers["x-request-id"] == "mine-7"
    own = server.ask("/v2", x_request_id="two words").headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", own)
    until(lambda: any(line.get("id") == own for line in server.lines))
    (line,) = (line for line in server.lines if line.get("id") == "mine-7")
    assert {
        "protocol": "tensorflow",
        "status": 200,
        "pictures": 1,
        "method": "POST",
        "path": PREDICT,
    }.items() <= line.items()
    assert server.metric('vit_requests_total{protocol="tensorflow",status="200"}') >= 1
    assert server.metric('vit_request_seconds_count{protocol="tensorflow"}') >= 1
    assert server.metric("vit_batch_pictures_count") >= 1
    assert server.metric("vit_in_flight_requests") == 1  # the one that asks


# ---- batches, and a model that takes its time --------------------------------------------------------------------


def test_what_waits_is_one_batch(gated: Server, expected: Any) -> None:
    """And each is answered with what is its own; a broken one among them is refused alone."""
    with ThreadPoolExecutor(8) as clients:
        first = clients.submit(gated.ask, PREDICT, instances(PICTURES[0]))
        assert gated.batch() == 1
        others = [clients.submit(gated.ask, PREDICT, instances(path)) for path in PICTURES[1:7]]
        assert gated.ask(PREDICT, {"instances": [b64(b"no")]}).status == 400
        assert gated.ask(PREDICT, {"instances": [np.full((3, 24, 24), 1e30).tolist()]}).status == 400
        until(lambda: gated.metric("vit_queue_pictures") == 6)
        gated.go()
        assert gated.batch() == 6
        gated.go()
        for path, future in zip(PICTURES, [first, *others], strict=False):
            (found,) = future.result().json["predictions"]
            same(found["labels"], found["scores"], expected[path.name])


def test_a_server_that_is_full_says_so(gated: Server) -> None:
    with ThreadPoolExecutor(8) as clients:
        taken = [clients.submit(gated.ask, PREDICT, instances(path)) for path in PICTURES[:7]]
        until(lambda: gated.metric("vit_taken_pictures") == 7)
        refused = gated.ask(PREDICT, instances(*PICTURES[:2]))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "busy" in refused.json["error"]
        computed = 0
        while computed < 7:
            computed += gated.batch()
            gated.go()
    assert {future.result().status for future in taken} == {200}


def test_the_picture_of_a_client_that_has_gone_is_not_computed(gated: Server) -> None:
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(gated.ask, PREDICT, instances(PICTURES[0]))
        assert gated.batch() == 1
        with gated.connect() as going:
            going.sendall(posted(PREDICT, instances(PICTURES[1])))
            until(lambda: gated.metric("vit_queue_pictures") == 1)
        until(lambda: gated.metric("vit_taken_pictures") == 1)
        second = clients.submit(gated.ask, PREDICT, instances(PICTURES[2]))
        gated.go()
        assert first.result().status == 200
        assert gated.batch() == 1
        gated.go()
        assert second.result().status == 200
    assert gated.metric('vit_requests_total{protocol="tensorflow",status="499"}') == 1


def test_an_error_of_the_server_is_in_the_log_alone(gated: Server) -> None:
    with ThreadPoolExecutor(1) as clients:
        failing = clients.submit(gated.ask, PREDICT, instances(PICTURES[0]))
        gated.batch()
        gated.go("fail")
        answer = failing.result()
    number = answer.headers["x-request-id"]
    assert answer.status == 500 and number in answer.json["error"]
    assert "secret" not in answer.json["error"]
    until(lambda: sum(line.get("id") == number for line in gated.lines) == 2)
    assert any(
        number == line.get("id") and "a secret of the model" in line.get("traceback", "") for line in gated.lines
    )


def test_what_takes_too_long() -> None:
    """The headers, the body, the answer."""
    with Server(*GATED, DIGITS, "--port", 0, "--timeout", 1, HEADERS_WITHIN="1") as impatient:
        with impatient.connect() as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
            with suppress(ConnectionResetError):
                assert slow.recv(100) == b""
        with impatient.connect() as slow:
            slow.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{" % PREDICT.encode())
            answer = b"".join(iter(lambda: slow.recv(1000), b""))
            assert answer.startswith(b"HTTP/1.1 408") and b"1 seconds to arrive" in answer
        late = impatient.ask(PREDICT, instances(PICTURES[0]))
        assert (late.status, late.json["error"]) == (504, "There was no answer within 1 seconds.")
        assert impatient.batch() == 1
        assert impatient.stop() == 0


def test_a_stop_takes_what_is_on_its_way() -> None:
    """A connection that is made may bring its request yet, and is told that the server is no longer ready."""
    with Server(*GATED, DIGITS, "--port", 0) as stopping:

        def listens() -> bool:
            with suppress(ConnectionRefusedError), stopping.connect():
                return True
            return False

        with stopping.connect() as quiet, stopping.connect() as asking:
            assert stopping.ask("/v2/health/ready").status == 200  # so those two are accepted
            stopping.process.terminate()
            until(lambda: not listens())
            asking.sendall(posted(PREDICT, instances(PICTURES[0])))
            assert stopping.batch() == 1
            quiet.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b"".join(iter(lambda: quiet.recv(1000), b""))
            assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer
            stopping.go()
            assert b"".join(iter(lambda: asking.recv(1000), b"")).startswith(b"HTTP/1.1 200")
        assert stopping.end() == 0


def test_a_stop_does_not_wait_for_ever() -> None:
    with Server(*GATED, DIGITS, "--backend", "torch", "--port", 0, "--grace", 1) as stuck:
        with stuck.connect() as waiting:
            waiting.sendall(posted(PREDICT, instances(PICTURES[0])))
            assert stuck.batch() == 1
            stuck.process.terminate()
            until(lambda: stuck.lines[-1]["message"] == "stopped, 1 requests not answered")
        assert stuck.end() == 1


# ---- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_in_a_browser(server: Server, expected: Any, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("there is no chromium with its chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as page:

        def shown(script: str) -> Any:
            return page.execute_script(f"return {script}")

        page.get(server.lines[0]["url"])
        assert page.title == "digits"
        chosen = page.find_element("id", "file")
        assert chosen.accessible_name.startswith("Drop a picture here")
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no")
        chosen.send_keys(str(broken))
        until(lambda: "no picture that Pillow can read" in page.find_element("id", "said").text)
        chosen.send_keys(str(PICTURES[0]))
        best = expected[PICTURES[0].name][0]
        until(lambda: page.find_element("id", "said").text == f"{best['label']}, {100 * best['score']:.1f} %")
        lines = [each.text.split("\n")[0] for each in page.find_elements("css selector", "#classes li")]
        assert lines == [each["label"] for each in expected[PICTURES[0].name][:5]]
        until(lambda: shown("document.getElementById('attention').naturalWidth") == 640)
        dropped = "drop = new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true, cancelable: true})"
        content = b64(PICTURES[1].read_bytes())["b64"]
        page.execute_script(
            f"const bytes = Uint8Array.from(atob('{content}'), c => c.charCodeAt(0)), {dropped};"
            "drop.dataTransfer.items.add(new File([bytes], 'dropped.png')); document.body.dispatchEvent(drop)"
        )
        best = expected[PICTURES[1].name][0]
        until(lambda: page.find_element("id", "said").text == f"{best['label']}, {100 * best['score']:.1f} %")
        complaints = [entry["message"] for entry in page.get_log("browser")]
        assert all("400" in message for message in complaints), complaints  # of the broken one


def test_the_page_is_one_file(server: Server) -> None:
    answer = server.ask("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(rb"https?://|<link|@import|src=", answer.body)


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gs://bucket/model"], "mount or copy it"),
        ([DIGITS, "--name", "a/b"], "--name must be of letters"),
        ([DIGITS, "--log", "xml"], "--log must be one of text, json"),
    ],
)
def test_arguments_that_cannot_be(arguments: list[Any], words: str, capsys: Any) -> None:
    assert main(["serve", *map(str, arguments)]) == 2
    assert words in capsys.readouterr().err


def test_what_is_not_installed_is_named(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.delitem(sys.modules, "vit_core.app.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(DIGITS)]) == 2
    assert 'pip install "vit-trio[serve]"' in capsys.readouterr().err


def test_a_model_is_loaded_where_it_computes(monkeypatch: Any) -> None:
    """OpenMP has workers for each thread that computes; with those of two, a ViT-Ti takes up to twice the time."""
    from vit_core.app.serve import server
    from vit_core.app.serve.batching import Batcher

    threads: list[threading.Thread] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return function(*given, **options)

        return noting

    monkeypatch.setattr("vit_core.app.cli.serve.pipeline", noted(pipeline))
    monkeypatch.setattr(Batcher, "compute", noted(Batcher.compute))
    monkeypatch.setattr(server._Server, "run", lambda self, sockets: sockets[0].close())
    monkeypatch.setattr(server, "log_to_stderr", lambda kind: None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    assert main(["serve", str(DIGITS), "--backend", "torch", "--port", "0", "--batch-size", "1"]) == 0
    assert len(threads) == 2
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


def test_a_port_that_is_taken(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("vit_core.app.cli.serve.import_for", lambda *_: pytest.fail("It loads a model."))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(DIGITS), "--backend", "torch", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port} can't be listened at" in error and error.endswith("choose another --port.\n")

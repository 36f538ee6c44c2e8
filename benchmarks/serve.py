"""`vit serve` under load: against itself with one picture at a time, and against LitServe with the same model.

Clients are coroutines in a process of their own, each with a connection that it keeps and one request under way: a JPEG
of 640 x 480 in base64, which goes to a ViT-Ti/16, and a digit to the package's model, where all but the model counts.
The three servers stand beside each other, stopped but for the one that is asked, as two of LitServe's processes take
half a core each while they wait; it has batches of the same size and the same functions, which prepare pictures and
tell labels. A ratio is of the time that an answered request takes, ours by the other's. Then 10,000 requests of 8
clients, and the server's memory in between.

python benchmarks/serve.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`; S for each load
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import numpy as np
from harness import arguments, interleaved, ratio, report
from PIL import Image

from vit_core.assets import DIGITS

OURS, ALONE, LITSERVE = "vit serve", "one picture at a time", "LitServe"
CLIENTS = (1, 8, 64)
BATCH, PLACES = 16, 256
REQUESTS = 10_000

MAKE = """
import sys
from vit_torch import ViTConfig, ViTForImageClassification, ViTImageProcessor
ViTForImageClassification(ViTConfig.variant("Ti/16", num_labels=1000), seed=0).save_pretrained(sys.argv[1])
ViTImageProcessor(do_convert_rgb=True).save_pretrained(sys.argv[1])
"""
OURS_PROGRAM = "import sys; from vit_core.cli import main; sys.exit(main())"
LITSERVE_PROGRAM = """
import sys
from base64 import b64decode
import litserve
import numpy as np
from vit_core import pipeline
from vit_core.app.backends import run

class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.classifier = pipeline(model=sys.argv[1], backend="torch")

    def decode_request(self, request):
        return self.classifier.preprocess(b64decode(request["instances"][0]["b64"]))

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, pixels):
        return run(self.classifier.model, pixels)["logits"]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, logits):
        best = self.classifier.postprocess(logits, 5, None)
        labels, scores = [each["label"] for each in best], [each["score"] for each in best]
        return {"predictions": [{"labels": labels, "scores": scores}]}

if __name__ == "__main__":
    server = litserve.LitServer(Classifier(max_batch_size=int(sys.argv[3])), accelerator="cpu", devices=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
"""
PORTS = {OURS: 18431, ALONE: 18432, LITSERVE: 18433}


def command(name: str, folder: Path, program: Path) -> list[str]:
    """What starts a server."""
    port = str(PORTS[name])
    if name == LITSERVE:
        return [sys.executable, str(program), str(folder), port, str(BATCH)]
    size = str(1 if name == ALONE else BATCH)
    options = ["--backend", "torch", "--port", port, "--batch-size", size, "--max-queue", str(PLACES)]
    return [sys.executable, "-c", OURS_PROGRAM, "serve", str(folder), *options]


@contextmanager
def serving(name: str, folder: Path, program: Path) -> Iterator[int]:
    """A server that answers; gives the number of its process."""
    process = subprocess.Popen(
        command(name, folder, program), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while process.poll() is None:
            try:
                with urlopen(f"http://127.0.0.1:{PORTS[name]}/health") as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"The server {name} ended with {process.returncode}.")
        yield process.pid
    finally:
        for number in (signal.SIGCONT, signal.SIGTERM):
            os.killpg(process.pid, number)  # LitServe's workers are processes of their own
        process.wait(60)


# ---- clients -----------------------------------------------------------------------------------------------------


async def _client(port: int, request: bytes, left: Iterator[Any], took: list[float]) -> None:
    """One request after another, on one connection, as long as there are any left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in left:
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise RuntimeError(f"A request was not answered: {head!r}")
        await reader.readexactly(int(length[1]))
        took.append(time.perf_counter() - start)
    writer.close()


def _until(end: float) -> Iterator[None]:
    while time.perf_counter() < end:
        yield


async def _load(port: int, request: bytes, clients: int, amount: float, requests: bool) -> tuple[float, list[float]]:
    took: list[float] = []
    start = time.perf_counter()
    left: Iterator[Any] = iter(range(int(amount))) if requests else _until(start + amount)
    await asyncio.gather(*(_client(port, request, left, took) for _ in range(clients)))
    return time.perf_counter() - start, took


def load(port: int, request: bytes, clients: int, amount: float, requests: bool = False) -> np.ndarray:
    """Seconds a request, as the server gets them done, and the median and 99th percentile that a client waits.

    amount: seconds, or a number of requests.
    """
    with get_context("fork").Pool(1) as pool:
        seconds, took = pool.apply(_run, (port, request, clients, amount, requests))
    return np.array([seconds / len(took), *np.percentile(took, [50, 99])])


def load_alone(number: int, *given: Any) -> np.ndarray:
    """`load` of the server in the group of processes of this number, which is stopped before and after."""
    os.killpg(number, signal.SIGCONT)
    try:
        return load(*given)
    finally:
        os.killpg(number, signal.SIGSTOP)


def _run(*given: Any) -> tuple[float, list[float]]:
    return asyncio.run(_load(*given))


def request_of(picture: bytes) -> bytes:
    """A request with a picture, which all servers take."""
    body = json.dumps({"instances": [{"b64": b64encode(picture).decode()}]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# ---- what is measured --------------------------------------------------------------------------------------------


def figures(measured: np.ndarray) -> dict[str, float]:
    """The medians of rounds (rounds, 3), as people have them."""
    seconds, middle, late = np.median(measured, axis=0)
    return {"a_second": round(1 / seconds, 1), "p50_ms": round(1e3 * middle, 1), "p99_ms": round(1e3 * late, 1)}


def compare(title: str, folder: Path, picture: bytes, program: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """The rows of a model."""
    request, rows = request_of(picture), {}
    with ExitStack() as stack:
        groups = {name: stack.enter_context(serving(name, folder, program)) for name in PORTS}
        for group in groups.values():
            os.killpg(group, signal.SIGSTOP)
        for clients in CLIENTS:
            loads = {
                name: partial(load_alone, groups[name], port, request, clients, seconds) for name, port in PORTS.items()
            }
            measured = interleaved(loads, min_rounds=rounds, min_seconds=0, warm_up=1, measure=lambda call: call())
            for name in (ALONE, LITSERVE):
                case = f"serve, {title}, {clients} clients, against {name}"
                facts = {"ours": figures(measured[OURS]), "theirs": figures(measured[name])}
                rows[case] = {**ratio(measured[OURS][:, 0], measured[name][:, 0]), **facts}
    return rows


def memory(folder: Path, picture: bytes, program: Path) -> dict[str, Any]:
    """How large the server is after 10,000 requests, by how large it was after the first 1,000."""
    request = request_of(picture)
    with serving(OURS, folder, program) as number:
        sizes = []
        for _ in range(11):
            load(PORTS[OURS], request, 8, REQUESTS / 10, requests=True)
            status = Path(f"/proc/{number}/status").read_text()
            sizes.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    grown = round(sizes[-1] / sizes[0], 3)
    mib = [round(size, 1) for size in sizes]
    return {"serve, memory after 10,000 requests": {"ratio": grown, "p10": grown, "p90": grown, "mib": mib}}


def main() -> None:
    given = arguments(__doc__, rounds=3, seconds=8.0)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(photo, "JPEG", quality=90)
    digit = next((DIGITS / "pictures").glob("*.png")).read_bytes()
    with TemporaryDirectory() as name:
        tiny, program = Path(name) / "tiny", Path(name) / "litserve_program.py"
        program.write_text(LITSERVE_PROGRAM)
        subprocess.run([sys.executable, "-c", MAKE, str(tiny)], check=True)
        results = compare("ViT-Ti/16", tiny, photo.getvalue(), program, given.rounds, given.seconds)
        results |= compare("digits", DIGITS, digit, program, given.rounds, given.seconds)
        results |= memory(DIGITS, digit, program)
    report("vit serve", results, given.json)


if __name__ == "__main__":
    main()

"""The examples for Ray, on one of its own with two CPUs: a folder by Ray Data, pictures over HTTP by Ray Serve.

Each with a broken picture.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from sys import executable
from typing import Any

import pytest
from closeness import assert_close
from command import process
from tolerances import probabilities
from trainings import EXAMPLES, free_port

from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS
from vit_core.config import ViTConfig

for name in ("ray.data", "ray.serve", "pandas", "pyarrow", "torch"):
    pytest.importorskip(name)

PICTURES = sorted((DIGITS / "pictures").iterdir())
# The script for Ray Data starts the Ray on which the application of Ray Serve runs as well.
PROGRAM = """
import json, runpy, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

answers, port, pictures, *sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    if ended.code:
        raise

import ray
from ray import serve
from ray_serve import app

serve.start(http_options={"port": int(port)})
serve.run(app({"batch": "4"}))

def ask(body):
    try:
        with urlopen(f"http://127.0.0.1:{port}/", body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)

bodies = [Path(picture).read_bytes() for picture in json.loads(pictures)]
with ThreadPoolExecutor(8) as pool:
    Path(answers).write_text(json.dumps(list(pool.map(ask, [*bodies, bodies[0][:60]]))))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the one, and the answers of the other."""
    found = tmp_path_factory.mktemp("ray")
    (folder := found / "pictures").mkdir()
    for path in PICTURES:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.PNG").write_bytes(PICTURES[0].read_bytes()[:60])
    (folder / "notes.txt").touch()
    flags = ("--format", "json", "--cpus", 2, "--batch", 4)
    script = (EXAMPLES / "ray_batch.py", folder, "--out", found / "results", *flags)
    pictures = json.dumps([str(path) for path in PICTURES])
    with tempfile.TemporaryDirectory(prefix="ray") as scratch:  # a short path: Ray's sockets stand in it
        settings = {"RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        small = {"RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.01", "PYTHONPATH": str(EXAMPLES)}
        env = {**os.environ, **settings, **small}
        result = process(executable, "-c", PROGRAM, found / "answers.json", free_port(), pictures, *script, env=env)
    assert result.returncode == 0, result.stderr
    return found


def assert_same_best(found: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    """The best label and its score, of another batch's rounding, where all labels and scores are expected."""
    best, *_, worst = expected
    spread = math.log(best["score"] / worst["score"])  # of all logits
    assert found["label"] == best["label"]
    assert_close(found["score"], best["score"], probabilities(ViTConfig.from_pretrained(DIGITS), spread))


@pytest.mark.slow
def test_a_folder_by_ray_data(ran: Path) -> None:
    found = {}
    for file in (ran / "results").iterdir():
        found.update({Path(row.pop("file")).name: row for row in map(json.loads, file.read_text().splitlines())})
    error = found.pop("broken.PNG")
    assert (error["label"], error["score"]) == (None, None)
    assert "60 bytes is no picture that Pillow can read" in error["error"]
    assert sorted(found) == [path.name for path in PICTURES]
    for path, expected in zip(PICTURES, pipeline(top_k=None)(PICTURES, batch_size=4), strict=True):
        assert found[path.name].keys() == {"label", "score", "error"} and found[path.name]["error"] is None
        assert_same_best(found[path.name], expected)


@pytest.mark.slow
def test_pictures_over_http_by_ray_serve(ran: Path) -> None:
    *answers, (status, broken) = json.loads((ran / "answers.json").read_text())
    assert status == 400 and "60 bytes is no picture that Pillow can read" in broken["error"]
    for (code, found), expected in zip(answers, pipeline(backend="torch", top_k=None)(PICTURES), strict=True):
        assert code == 200 and [each["label"] for each in found] == [each["label"] for each in expected[: len(found)]]
        assert_same_best(found[0], expected)

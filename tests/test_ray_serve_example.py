"""The example for Ray Serve, on a Ray of its own: pictures by HTTP, many at once, a broken one among them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from sys import executable

import pytest
from command import process
from trainings import free_port

from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS

for name in ("ray.serve", "torch"):
    pytest.importorskip(name)

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = sorted((DIGITS / "pictures").iterdir())
CLIENT = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import ray
from ray import serve
from ray_serve import app

out, port, *pictures = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": int(port)})
serve.run(app({"batch": "4"}))

def ask(body):
    try:
        with urlopen(f"http://127.0.0.1:{port}/", body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)

bodies = [Path(picture).read_bytes() for picture in pictures]
with ThreadPoolExecutor(8) as pool:
    Path(out).write_text(json.dumps(list(pool.map(ask, [*bodies, bodies[0][:60]]))))
ray.shutdown()
"""


@pytest.mark.slow
def test_pictures_over_http(tmp_path: Path) -> None:
    out = tmp_path / "answers.json"
    with tempfile.TemporaryDirectory(prefix="ray") as scratch:  # a short path: Ray's sockets stand in it
        settings = {"RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        small = {"RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.01", "PYTHONPATH": str(EXAMPLES)}
        env = {**os.environ, **settings, **small}
        result = process(executable, "-c", CLIENT, out, free_port(), *PICTURES, env=env)
    assert result.returncode == 0, result.stderr
    *answers, (status, broken) = json.loads(out.read_text())
    assert status == 400 and "60 bytes is no picture that Pillow can read" in broken["error"]
    for (code, found), expected in zip(answers, pipeline(backend="torch")(PICTURES), strict=True):
        assert code == 200 and [each["label"] for each in found] == [each["label"] for each in expected]
        assert found[0]["score"] == pytest.approx(expected[0]["score"], rel=1e-5)

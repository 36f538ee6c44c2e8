"""The example for Ray Data, on a Ray of its own with two CPUs: every picture's row, the broken one's included."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from sys import executable

import pytest
from command import process

from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS

for name in ("ray", "pandas", "pyarrow", "torch"):
    pytest.importorskip(name)

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_batch.py"
PICTURES = sorted((DIGITS / "pictures").iterdir())


@pytest.mark.slow
def test_a_folder_on_ray(tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "results"
    folder.mkdir()
    for path in PICTURES:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.PNG").write_bytes(PICTURES[0].read_bytes()[:60])
    (folder / "notes.txt").touch()
    arguments = (folder, "--out", out, "--format", "json", "--cpus", 2, "--batch", 4)
    with tempfile.TemporaryDirectory(prefix="ray") as scratch:  # a short path: Ray's sockets stand in it
        settings = {"RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        small = {"RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.01"}
        result = process(executable, EXAMPLE, *arguments, env={**os.environ, **settings, **small})
    assert result.returncode == 0, result.stderr
    found = {}
    for file in out.iterdir():
        found.update({Path(row.pop("file")).name: row for row in map(json.loads, file.read_text().splitlines())})

    error = found.pop("broken.PNG")
    assert (error["label"], error["score"]) == (None, None)
    assert "60 bytes is no picture that Pillow can read" in error["error"]
    assert sorted(found) == [path.name for path in PICTURES]
    for path, (best,) in zip(PICTURES, pipeline(top_k=1)(PICTURES, batch_size=4), strict=True):
        assert found[path.name] == {"label": best["label"], "score": pytest.approx(best["score"]), "error": None}

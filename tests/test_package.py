"""The package as others meet it: the wheel, imports that load no framework, the exported names, the documents."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from command import process
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trainings import need, write_digits

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "flax")
PUBLIC = {
    "AutoImageProcessor", "BaseModelOutput", "BaseModelOutputWithPooling", "ImageClassifierOutput",
    "ImageClassificationPipeline", "ImageFeatureExtractionPipeline", "MaskedImageModelingOutput",
    "ViTConfig", "ViTFeatureExtractor", "ViTForImageClassification", "ViTForMaskedImageModeling", "ViTImageProcessor",
    "ViTImageProcessorFast", "ViTModel", "ViTPreTrainedModel", "pipeline",
}  # fmt: skip


def loaded_after(*statements: str) -> list[set[str]]:
    """Top-level modules that a fresh interpreter has loaded after each statement."""
    shown = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = "\n".join(["import sys", *(f"{statement}\n{shown}" for statement in statements)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("package", ["vit_core", "conversion"])
def test_the_core_loads_no_framework(package: str) -> None:
    files = sorted((ROOT / package).rglob("[a-z]*.py"))
    modules = [package, *(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)]
    (loaded,) = loaded_after(f"import {', '.join(modules)}")
    assert not loaded & {*FRAMEWORKS, "requests", "httpx", "sklearn", "scipy"}


def test_a_backend_loads_only_its_own_framework(backend: Any) -> None:
    own = {"torch": "torch", "tf": "tensorflow, keras", "flax": "jax, flax"}[backend.name]  # TensorFlow imports JAX
    before, after = loaded_after(f"import {own}", f"import {backend.package.__name__}")
    others = set(FRAMEWORKS) - before
    assert others and not after & others


def test_exported_names(backend: Any) -> None:
    assert set(backend.package.__all__) >= PUBLIC
    assert all(hasattr(backend.package, name) for name in backend.package.__all__)
    assert backend.package.ViTConfig is importlib.import_module("vit_core").ViTConfig


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    return next(folder.glob("vit_trio-*.whl"))


def test_the_wheel_has_the_packages_and_the_assets_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert packages == {"vit_core", "vit_torch", "vit_tf", "vit_flax", "conversion"}
    for asset in ("config.json", "model.safetensors", "preprocessor_config.json", "README.md"):
        assert f"vit_core/assets/digits/{asset}" in names
    assert sum(name.endswith(".png") for name in names) >= 12
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {f"{package}/py.typed" for package in packages} <= {*names}


def test_the_wheel_trains(wheel: Path, tmp_path: Path) -> None:
    """In a process that sees neither the clone nor its examples."""
    need("torch")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    write_digits(tmp_path / "digits", per_class=2)
    flags = ("--backend", "torch", "--epochs", "1", "--batch-size", "10", "--validation", "0.5", "--json")
    command = [sys.executable, "-P", "-m", "vit_core.cli", "finetune", "digits", "--out", "out", *flags]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = process(*command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["model"] == str(tmp_path / "site" / "vit_core" / "assets" / "digits")
    assert [row["epoch"] for row in document["epochs"]] == [1]
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_wheel_works_without_any_framework(wheel: Path, tmp_path: Path) -> None:
    """In an empty environment, with only what the wheel itself asks for."""
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    code = f"import vit_core, importlib.util as u; print(vit_core.__file__, [u.find_spec(n) for n in {FRAMEWORKS}])"
    done = run(str(python), "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout
    assert done.stdout.count("None") == len(FRAMEWORKS)
    vit = str(tmp_path / "env" / "bin" / "vit")
    assert run(vit, "--help").returncode == 0
    digits = next((tmp_path / "env").glob("lib/python*/site-packages/vit_core/assets/digits"))
    assert run(vit, "inspect", str(digits)).returncode == 0
    done = run(vit, "classify", str(next(digits.glob("pictures/*.png"))))
    assert done.returncode == 2
    assert 'pip install "vit-trio[torch]"' in done.stderr


def test_lower_bounds_do_not_exceed_what_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {name.lower().replace("-", "_"): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    for requirement in (
        *project["dependencies"],
        *extras["torch"],
        *extras["flax"],
        *extras["train"],
        *extras["dev"],
        *extras["dev-torch"],
        *extras["dev-flax"],
    ):
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)(,<\d+)?", requirement)
        assert match, requirement
        pinned = pins[match[1].lower().replace("-", "_")]
        assert [int(n) for n in re.findall(r"\d+", pinned)] >= [int(n) for n in match[2].split(".")]


def test_what_the_tests_need_brings_no_framework() -> None:
    """So that `make test EXTRAS=torch` installs PyTorch alone, and tests that it needs no other."""
    extras, seen = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"], set()

    def follow(requirement: Requirement) -> None:
        name = canonicalize_name(requirement.name)
        if name in seen:
            return
        seen.add(name)
        for each in map(Requirement, metadata.distribution(name).requires or ()):
            if each.marker is None or any(each.marker.evaluate({"extra": it}) for it in ("", *requirement.extras)):
                follow(each)

    for requirement in map(Requirement, extras["dev"]):
        follow(requirement)
    assert seen.isdisjoint(FRAMEWORKS) and len(seen) > len(extras["dev"])


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_no_script_hides_a_package(folder: str) -> None:
    """Python looks in a script's own folder first, so a `conversion.py` there would be the scripts' `conversion`."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert "conversion" in packages
    assert not packages & {path.stem for path in (ROOT / folder).glob("*.py")}


def test_the_changelog_and_the_citation_know_the_version() -> None:
    version = importlib.import_module("vit_core").__version__
    dated = re.search(rf"^## {re.escape(version)} \((\d{{4}}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert dated is not None
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert {f"version: {version}", f"date-released: {dated[1]}"} <= {*lines}

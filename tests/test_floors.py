"""The house stands on its floors: every import points down, lazy ones included, and `conversion` is imported by nobody.

Read from the source, so that none of the frameworks has to be installed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vit_core.app.backends import is_installed

ROOT = Path(__file__).parent.parent
PACKAGES = ("vit_core", "vit_torch", "vit_tf", "vit_flax", "conversion")
BACKENDS = PACKAGES[1:4]

# From the ground up. A room of a floor imports those of its own floor and of the floors below.
FLOORS = (
    "vit_core.files",
    "vit_core.config vit_core.pretrained_config vit_core.validation vit_core.keywords vit_core.position "
    "vit_core.assets",
    "vit_core.pictures",
    "vit_core.family vit_core.params vit_core.initialization vit_core.parameter_groups "
    "vit_core.channels vit_core.calls vit_core.outputs vit_core.exports vit_core.backbone vit_core.training",
    "vit_core.formats",
    "vit_core.loading vit_core.pretrained",
    "vit_torch vit_tf vit_flax",
    "vit_core.app",
    "vit_core vit_core.cli",  # the front doors: those of the backends as well (`floor`)
    "conversion",
)
# Modules that are imported by a name that is computed: the only way up, and the libraries that not everybody has.
BY_NAME = {
    "conversion": {"_ROOMS[name]"},
    "vit_core": {"_ROOMS[name]"},
    "vit_core.app.backends": {"f'{BACKENDS[name][0]}{room}'"},
    "vit_core.app.training.libraries": {"name"},
    "vit_core.files.elsewhere": {"module"},
    "vit_core.pictures.batch": {"module"},
}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def floor(module: str) -> int:
    """The floor of the longest part of a module's name that has one; a backend's own name is its front door."""
    if module in BACKENDS:
        module = "vit_core"
    for length in range(module.count(".") + 1, 0, -1):
        room = ".".join(module.split(".")[:length])
        for number, rooms in enumerate(FLOORS):
            if room in rooms.split() and (room != "vit_core" or module == room):
                return number
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def imports(module: str) -> tuple[set[str], set[str]]:
    """The modules of this project that one imports, wherever in it; and what it imports by a computed name."""
    found, computed = set(), set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module} imports by dots"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            named = node.args[0]
            if isinstance(named, ast.Constant):
                found.add(named.value)
            else:
                computed.add(ast.unparse(named))
    return {name for name in found if name.split(".")[0] in PACKAGES}, computed


@pytest.mark.parametrize("module", MODULES)
def test_every_import_points_down(module: str) -> None:
    found, computed = imports(module)
    assert not {name: floor(name) for name in found if floor(name) > floor(module)}
    assert computed == BY_NAME.get(module, set())
    other_backends = {name for name in found if name.split(".")[0] in BACKENDS} if module.startswith("vit_") else set()
    other_backends -= {name for name in found if name.split(".")[0] == module.split(".")[0]}
    assert not other_backends or module == "vit_core.app.backends"


def test_no_import_goes_round() -> None:
    waiting = {module: imports(module)[0] - {module} for module in MODULES}
    while free := {module for module, found in waiting.items() if not found & waiting.keys()}:
        waiting = {module: found for module, found in waiting.items() if module not in free}
    assert not waiting


@pytest.mark.parametrize("package", ["vit_torch", "vit_tf", "vit_flax", "vit_core"])
def test_a_user_may_have_modules_of_our_names(package: str, tmp_path: Path) -> None:
    if package in BACKENDS and not is_installed(package.removeprefix("vit_")):
        pytest.skip(f"the framework of {package} is not installed")
    for name in ("conversion", "tests", "examples", "benchmarks"):
        (tmp_path / f"{name}.py").write_text(f"raise AssertionError('{name} is the user\\'s own')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.append({str(ROOT)!r}); import {package}; "
        f"folder = __import__('vit_core.assets').assets.DIGITS; "
        f"print(getattr({package}, 'ViTForImageClassification', {package}.ViTConfig).from_pretrained(folder))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

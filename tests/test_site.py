"""The documentation site builds without a warning, has every page in its navigation, and every public name."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vit_core.outputs import OUTPUTS

ROOT = Path(__file__).parent.parent
FRONT_DOORS = ("vit_core", "vit_torch", "vit_tf", "vit_flax", "conversion")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it. Links that lead nowhere and pages without a place in nav end that."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_page_for_every_guide(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    guides = {path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")}
    assert guides and guides <= pages
    assert (site / "index.html").is_file()


def test_nothing_is_fetched_by_a_page(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(https?:[^"]+\.(?:js|css|woff2?))"', page)


def test_comments_are_the_descriptions_of_fields_but_for_those_of_tools(site: Path) -> None:
    pages = [page.read_text() for page in (site / "docs" / "api").glob("*.html")]
    assert any("L + 1 of (B, S, D), before the final LayerNorm" in page for page in pages)
    assert not [page for page in pages if re.search("<p>(fmt|noqa|type): ", page)]


def test_what_calls_return_and_no_tool_of_it_is_in_the_reference(site: Path) -> None:
    shown = re.findall(r'id="vit_core\.outputs\.(\w+)"', (site / "docs" / "api" / "models.html").read_text())
    assert shown
    assert set(shown) <= {"ModelOutput", "ClassGradients", *(output.__name__ for output in OUTPUTS)}


@pytest.mark.parametrize("package", FRONT_DOORS)
def test_every_public_name_is_in_the_reference(package: str, site: Path) -> None:
    """Under its own package, or, where all frameworks share it, under that of the core."""
    source = ast.parse((ROOT / package / "__init__.py").read_text())
    (public,) = (ast.literal_eval(each.value) for each in source.body if ast.unparse(each).startswith("__all__"))
    pages = [page.read_text() for page in (site / "docs" / "api").glob("*.html")]
    anchors = {anchor for page in pages for anchor in re.findall('id="([^"]+)"', page)}
    shared = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("vit_core.")}
    assert public
    assert not [name for name in public if f"{package}.{name}" not in anchors and name not in shared]

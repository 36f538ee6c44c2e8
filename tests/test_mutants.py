"""Every mutant can be made: what it changes stands once in its file, and its tests are there."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_it_changes_is_there(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert (ROOT / mutant.tests[0]).is_file()


@pytest.mark.processor("fewer tests are collected")
def test_the_tests_of_each_are_there(request: pytest.FixtureRequest) -> None:
    """Of the files that this run has collected."""
    if request.config.getoption("keyword") or request.config.getoption("markexpr"):
        pytest.skip("fewer tests are collected with -k or -m")
    names: dict[str, list[str]] = {}
    for item in request.session.items:
        names.setdefault(str(item.path.relative_to(ROOT)), []).append(item.name)
    for file, keyword in (mutant.tests for mutant in MUTANTS):
        found = names.get(file, [])
        assert not found or any(all(part in name for part in keyword.split(" and ")) for name in found), keyword

"""What makes the site of the repository: which files are its pages, and how fields are described."""

import re
from pathlib import Path
from typing import Any

from griffe import Class, Docstring, Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SHOWN = (
    "*.md", "CITATION.cff", "LICENSE", "docs/**/*.md", "docs/images/*", "examples/*.py", "deploy/**/*",
    "benchmarks/*.md", "tests/golden/README.md",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the theme, and those of the repository under their names in it, so that links hold in both."""
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = (path for pattern in SHOWN for path in sorted(ROOT.glob(pattern)) if path.is_file())
    names = (path.relative_to(ROOT).as_posix() for path in paths)
    return Files([*of_theme, *(File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names)])


class Fields(Extension):
    """The comment behind a field is its description; an attribute of a class that has neither is not shown."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        for name, field in list(cls.attributes.items()):
            comment = re.search(r"  # (?!fmt:|noqa|type:)(.+)", field.source)
            if comment and not field.docstring:
                field.docstring = Docstring(comment[1], parent=field)
            if not field.docstring:
                cls.del_member(name)

"""Every `python` block of the README and the documentation is a test (collected by Sybil)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

pytest_plugins = ["trio_ckpt_pytest"]  # also where the package is used without being installed


@pytest.fixture(scope="module")
def document_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run the blocks of one document in one fresh folder: a later block may resume an earlier."""
    folder = tmp_path_factory.mktemp("document")
    with contextlib.chdir(folder):
        yield folder


def _run_as_main(namespace: dict[str, Any]) -> None:
    # Without it, the body of `if __name__ == "__main__":` would silently not run.
    namespace["__name__"] = "__main__"


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    excludes=["docs/_build/**"],
    fixtures=["document_folder"],
    setup=_run_as_main,
).pytest()

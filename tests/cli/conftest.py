from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.tools import Terminal, make_gh


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "gh.ckpt"


@pytest.fixture
def gh(store: Path) -> Path:
    make_gh(store)
    return store

"""Folders of outputs that leave no open file behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_ckpt.outputs import OutputDir


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def outdir(root: Path) -> Iterator[OutputDir]:
    outdir = OutputDir.open(root)
    yield outdir
    outdir.close()


@pytest.fixture(autouse=True)
def no_descriptor_leaks(tmp_path: Path) -> Iterator[None]:
    """After each test no file below its folder is open any more."""
    yield
    if sys.platform == "linux":
        opened = [
            os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
        ]
        assert [path for path in opened if path.startswith(str(tmp_path))] == []

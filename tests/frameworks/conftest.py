"""Tests that need torch, jax, TensorFlow, datasets or pyarrow: larger than what all others install.

They are left out unless this folder is named, as ``nox -s frameworks`` does; so the other
sessions need neither, and skip nothing.  Here a library that is missing is an error, no skip.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave out this folder's files, unless it or one of them is named on the command line."""
    named = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    return None if any(path == HERE or HERE in path.parents for path in named) else True

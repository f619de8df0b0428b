"""Fixtures of the tests of the store in a bucket: buckets in memory, a folder, an S3 server."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()

if importlib.util.find_spec("obstore") is None:
    here = Path(__file__).parent
    collect_ignore = sorted({path.name for path in here.glob("test_*.py")} - {"test_extra.py"})


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server in this process."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is not installed: pip install 'moto[server]'")
    from tests.stores.objects.s3 import running_s3

    with running_s3() as url:
        yield url


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store of the test's own in that server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    return f"s3://ckpt-tests/test-{next(_numbers)}?endpoint={s3_server}&region=us-east-1"


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """The URL of a store in a folder."""
    return f"file://{tmp_path}/bucket"

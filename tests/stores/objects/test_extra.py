"""What the tests of the store in a bucket need."""

from __future__ import annotations

import importlib.util

import pytest


def test_the_library_for_buckets_can_be_used() -> None:
    """Where it is not installed, the other tests of this folder are not collected."""
    if importlib.util.find_spec("obstore") is None:
        pytest.skip("obstore is not installed: pip install 'trio-ckpt[objects]'")
    from trio_ckpt._buckets.bucket import memory_bucket

    memory_bucket().create("key", b"data")

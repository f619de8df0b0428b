"""Outputs in a bucket in memory, for tests; needs obstore."""

from __future__ import annotations

from tests.stores.objects.buckets import ClockedBucket, HandClock
from trio_ckpt._buckets.bucket import Bucket
from trio_ckpt._buckets.requests import Requests
from trio_ckpt.outputs._objects import OutputBucket

URL = "s3://bucket/out"


def in_memory(bucket: Bucket | None = None, url: str = URL) -> OutputBucket:
    """Outputs in a bucket, by default one of their own; requests are repeated without a pause."""
    asked = ClockedBucket(HandClock()) if bucket is None else bucket
    return OutputBucket.open(url, requests=Requests(asked, pause=lambda _: None))

"""The fixtures of buckets; where their library is not installed, nothing is collected."""

from __future__ import annotations

import importlib.util

from tests.stores.objects.conftest import s3_server as s3_server, s3_url as s3_url

if importlib.util.find_spec("obstore") is None:
    collect_ignore_glob = ["test_*.py"]

"""What a batch asks of its stream is there."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from trio_ckpt._commit.batch_host import BatchGate, BatchHost, BatchIntents
from trio_ckpt._commit.gate import Gate
from trio_ckpt._commit.intents import Intents
from trio_ckpt._commit.open_stream import OpenStream


@pytest.mark.parametrize(
    ("contract", "kept_by"), [(BatchHost, OpenStream), (BatchGate, Gate), (BatchIntents, Intents)]
)
def test_each_contract_of_a_batch_is_kept(contract: Any, kept_by: Any) -> None:
    asked = {name for name in vars(contract) if not name.startswith("_")}
    has = set(dir(kept_by)) | {field.name for field in attrs.fields(kept_by)}
    assert asked
    assert asked <= has

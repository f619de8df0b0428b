"""Hosts that only this machine can reach."""

from __future__ import annotations

import pytest

from trio_ckpt._util.hosts import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_alone_reaches_a_loopback_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "box"])
def test_any_other_host_may_be_reached_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)

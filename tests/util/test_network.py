"""What servers check before they listen."""

from __future__ import annotations

import pytest

from trio_ckpt._util.network import is_address, is_loopback, is_unspecified, url_host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_alone_reaches_a_loopback_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "box"])
def test_any_other_host_may_be_reached_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("10.0.0.1", "10.0.0.1"),
        ("box.example", "box.example"),
    ],
)
def test_a_url_names_a_host_that_can_be_reached(host: str, shown: str) -> None:
    assert url_host(host) == shown
    assert is_unspecified(host) is (host in ("0.0.0.0", "::"))
    assert is_address(host) is (host != "box.example")

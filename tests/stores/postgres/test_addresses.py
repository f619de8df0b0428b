"""What a URL may say, what it is refused for, and that no password is shown."""

from __future__ import annotations

import pytest

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")

from trio_ckpt._util.errors import StoreError  # noqa: E402
from trio_ckpt.stores import folder_of, is_server, open_store  # noqa: E402
from trio_ckpt.stores._postgres.address import parse_address  # noqa: E402

SECRET = "s3cr3t"


def conninfo_of(url: str) -> dict[str, object]:
    return dict(psycopg.conninfo.conninfo_to_dict(parse_address(url).conninfo))


def test_the_options_of_the_store_are_taken_out() -> None:
    address = parse_address(
        "postgresql://me@h:5433/db?schema=jobs&lease_s=2.5&sslmode=require&pooler=transaction"
    )
    assert (address.schema, address.lease_s, address.is_pooled) == ("jobs", 2.5, True)
    given = conninfo_of(address.url)
    assert (given["user"], given["host"], given["port"], given["dbname"]) == (
        *("me", "h"),
        *("5433", "db"),
    )
    assert given["sslmode"] == "require"
    assert "schema" not in given


def test_what_is_not_said_has_defaults() -> None:
    address = parse_address("postgresql://h/db")
    assert (address.schema, address.lease_s, address.is_pooled) == ("trio_ckpt", 30.0, False)
    given = conninfo_of("postgresql://h/db?connect_timeout=3")
    assert given["connect_timeout"] == "3"
    assert given["tcp_user_timeout"] == "15000"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///db?host=/var/run/postgresql",
        "postgresql://a,b:5433/db?target_session_attrs=read-write",
        "postgresql://?service=ckpt",
        "postgresql://me:p%40ss%3Fword@h/db",
        "postgres://h",
    ],
)
def test_what_libpq_takes_is_taken(url: str) -> None:
    assert parse_address(url).schema == "trio_ckpt"


def test_a_question_mark_in_a_password_begins_no_options() -> None:
    address = parse_address("postgresql://me:a?lease_s=9@h/db?lease_s=3")
    assert address.lease_s == 3
    assert conninfo_of(address.url)["password"] == "a?lease_s=9"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("shema=x", "no option 'shema'; did you mean 'schema'"),
        ("lease=3", "did you mean 'lease_s'"),
        ("slmode=require", "did you mean 'sslmode'"),
        ("schema=a&schema=b", "'schema' is given twice"),
        ("schema=Big", "not the name of a schema"),
        ("schema=a%22b", "not the name of a schema"),
        ("schema=" + "x" * 64, "not the name of a schema"),
        ("schema=pg_x", "not the name of a schema"),
        ("schema=", "not the name of a schema"),
        ("lease_s=soon", "not a number of seconds"),
        ("lease_s=0", "not a number of seconds"),
        ("lease_s=-1", "not a number of seconds"),
        ("lease_s=nan", "not a number of seconds"),
        ("lease_s=inf", "not a number of seconds"),
        ("pooler=session", "pooler='session' is unknown"),
    ],
)
async def test_a_typo_in_the_options_is_named(options: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as raised:
        await open_store(f"postgresql://me:{SECRET}@127.0.0.1/db?{options}")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}%zz@127.0.0.1/db",
        f"postgresql://me:{SECRET}@[::1/db",
        f"postgresql://me:{SECRET}@127.0.0.1:port/db",
        f"postgresql://me:12/{SECRET}@127.0.0.1/db",
        f"postgresql://me:pa/{SECRET}@127.0.0.1/db",
        f"postgresql://me:{SECRET}/ss@127.0.0.1/db",
        f"postgresql://me:p@{SECRET}@127.0.0.1/db",
        f"postgresql://me:pa/ss?{SECRET}@127.0.0.1/db",
        f"postgresql://127.0.0.1:1/db?user=me&p%61ssword={SECRET}",
        f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db",
    ],
)
async def test_no_error_shows_the_password(url: str) -> None:
    with pytest.raises(StoreError) as raised:
        await open_store(url)
    assert SECRET not in str(raised.value)
    assert SECRET not in repr((raised.value.__cause__, raised.value.__context__))


@pytest.mark.parametrize("url", ["postgresql:db", "postgres:folder"])
async def test_a_name_without_a_server_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="names no server; write 'postgres"):
        await open_store(url)


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("x.ckpt", "x.ckpt"),
        ("sqlite:/a/b", "/a/b"),
        ("json:b", "b"),
        ("C:\\x", "C:\\x"),
        ("./a:b", "./a:b"),
        ("memory:", ""),
        ("remote:task", ""),
        ("postgresql://h/db", ""),
        ("postgres://h/db?schema=x", ""),
    ],
)
def test_the_folder_of_an_address(address: str, folder: str) -> None:
    assert folder_of(address) == folder
    assert is_server(address) is address.startswith("postgres")

"""The URL of a store in a bucket: what it says, and clear words for what it must not."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence

import pytest

from trio_ckpt._buckets.address import parse_address
from trio_ckpt._util.errors import StoreError
from trio_ckpt._util.extras import MissingExtraError
from trio_ckpt.outputs import open_outputs
from trio_ckpt.stores import folder_of, is_bucket, is_server, open_store


def test_a_url_says_all_of_it() -> None:
    address = parse_address(
        "s3://my-bucket/a/b/?lease_s=2.5&endpoint=http://127.0.0.1:9000&region=eu-central-1"
    )
    assert (address.scheme, address.bucket, address.prefix) == ("s3", "my-bucket", "a/b")
    assert (address.endpoint, address.region) == ("http://127.0.0.1:9000", "eu-central-1")
    assert address.lease_s == 2.5


def test_the_rest_has_defaults() -> None:
    address = parse_address("gs://my-bucket")
    assert (address.prefix, address.lease_s, address.endpoint) == ("", 60.0, None)
    assert parse_address("az://box/x?account=mine").account == "mine"
    assert parse_address("file:///tmp/a%20b").bucket == "/tmp/a b"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3:bucket", "names no bucket; write 's3://BUCKET/PREFIX'"),
        ("file:folder", "names no bucket; write 'file:///FOLDER'"),
        ("file://folder/x", "names no folder; write file:///FOLDER with three slashes"),
        ("file:///", "names no folder"),
        ("s3://", "'' is not the name of a bucket"),
        ("s3:///prefix", "'' is not the name of a bucket"),
        ("s3://Big_Bucket!/x", "is not the name of a bucket"),
        ("s3://bucket/a//b", "is not a prefix"),
        ("s3://bucket/../x", "is not a prefix"),
        ("s3://bucket/" + "x" * 401, "at most 400 characters"),
        ("s3://bucket/x?lease=3", "no option 'lease'; did you mean 'lease_s'"),
        ("gs://bucket/x?endpoint=http://h", "no option 'endpoint'"),
        ("s3://bucket/x?lease_s=3&lease_s=4", "'lease_s' is given twice"),
        ("s3://bucket/x?lease_s=0", "lease_s='0' is not a number of seconds"),
        ("s3://bucket/x?lease_s=nan", "is not a number of seconds"),
        ("s3://bucket/x?endpoint=minio:9000", "is not a URL such as"),
        ("s3://bucket/x?region=eu central", "is not a name such as"),
        ("S3://bucket/x", "there are no stores of kind 'S3:'"),
        ("s3s://bucket/x", "there are no stores of kind 's3s:'; known are .*s3://BUCKET"),
    ],
)
async def test_a_typo_is_named(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        await open_store(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://AKIA:sesame@bucket/x", "credentials do not belong in it"),
        ("s3://bucket/x?endpoint=http://me:sesame@minio:9000", "endpoint is not a URL such as"),
        ("az://bucket/x?endpoint=https://azure/?sv=1%26sig=sesame", "endpoint is not a URL such"),
        ("az://bucket/x?sv=2021&sig=sesame", "there is no option 'sv'"),
        ("s3://bucket/x?X-Amz-Signature=sesame", "there is no option 'X-Amz-Signature'"),
    ],
)
async def test_a_secret_in_the_url_is_not_shown(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        await open_store(url)
    assert "sesame" not in str(caught.value)


def test_the_kind_of_a_url_is_told() -> None:
    for url in ("s3://b/x", "gs://b", "az://b", "file:///x"):
        assert (is_bucket(url), is_server(url), folder_of(url)) == (True, False, "")
    assert not is_bucket("sqlite:s3")
    assert not is_bucket("memory:")


async def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_buckets.bucket", "stores._objects.store", "outputs._objects"):
        monkeypatch.delitem(sys.modules, f"trio_ckpt.{name}", raising=False)
    real = builtins.__import__

    def without_obstore(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> object:
        if name.partition(".")[0] == "obstore":
            raise ModuleNotFoundError("No module named 'obstore'", name="obstore")
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without_obstore)
    with pytest.raises(MissingExtraError, match=r"a store in a bucket needs obstore: .*objects"):
        await open_store("s3://bucket")
    with pytest.raises(MissingExtraError, match=r"outputs in a bucket needs? obstore: .*objects"):
        open_outputs("s3://bucket/out")

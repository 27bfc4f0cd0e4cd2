"""Blobs: put and read by digest, in a folder; uploads and ranges over HTTP."""

import hashlib
import os
from pathlib import Path

import pytest
from fastapi import FastAPI
from http_calls import Api, as_scope

from sprat_server.access.tokens import Scope
from sprat_server.app import create_app
from sprat_server.db.blobs import BlobDamaged, Blobs, BlobTooLarge, BlobUnknown, blob_path
from sprat_server.settings import Settings
from sprat_shared.errors import InvalidInput

DATA = bytes(range(256)) * 40  # 10,240 bytes
HEX = hashlib.sha256(DATA).hexdigest()
DIGEST = f"sha256:{HEX}"


@pytest.fixture
def folder(tmp_path: Path) -> Blobs:
    return Blobs.open(str(tmp_path / "blobs"))


def test_what_is_put_comes_back_by_its_digest(folder: Blobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    assert folder.put_bytes(DATA) == folder.put_stream([DATA[:7], DATA[7:]]) == folder.put_file(tmp_path / "file")
    assert folder.length(DIGEST) == len(DATA)
    assert folder.read(DIGEST, max_bytes=len(DATA)) == DATA
    assert b"".join(folder.stream(DIGEST)) == DATA
    assert b"".join(folder.stream(DIGEST, 100, 205)) == DATA[100:205]
    folder.fetch(DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    with folder.local(DIGEST) as path:
        assert path.read_bytes() == DATA


def test_the_empty_blob_is_a_blob(folder: Blobs) -> None:
    empty = folder.put_bytes(b"")
    assert (empty.length, folder.read(empty.digest, max_bytes=0), list(folder.stream(empty.digest))) == (0, b"", [])


def test_an_unknown_digest_is_named(folder: Blobs, tmp_path: Path) -> None:
    assert not folder.exists(DIGEST)
    for read in (
        lambda: folder.length(DIGEST),
        lambda: folder.read(DIGEST, max_bytes=1),
        lambda: list(folder.stream(DIGEST)),
        lambda: folder.fetch(DIGEST, tmp_path / "x"),
        lambda: folder.local(DIGEST).__enter__(),
    ):
        with pytest.raises(BlobUnknown, match=HEX):
            read()
    with pytest.raises(InvalidInput, match="not a digest"):
        folder.length("sha256:../../etc/passwd")


def test_an_upload_above_its_cap_leaves_nothing_behind(folder: Blobs, tmp_path: Path) -> None:
    with pytest.raises(BlobTooLarge, match="100 bytes"):
        folder.put_stream([DATA[:60], DATA[60:120]], max_bytes=100)
    left = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert left == []


def test_a_stored_blob_that_was_changed_is_never_given_out_as_the_whole(folder: Blobs, tmp_path: Path) -> None:
    folder.put_bytes(DATA)
    path = tmp_path / "blobs" / blob_path(DIGEST)
    path.chmod(0o600)
    path.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(BlobDamaged):
        folder.read(DIGEST, max_bytes=len(DATA))
    with pytest.raises(BlobDamaged):
        folder.fetch(DIGEST, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(BlobDamaged), folder.local(DIGEST):
        pass


@pytest.mark.parametrize("url", ["ftp://host/x", "gs://bucket", "https://host/x"])
def test_a_blob_url_of_another_kind_is_refused_with_the_ways_to_write_one(url: str) -> None:
    with pytest.raises(InvalidInput, match="s3://bucket/prefix"):
        Blobs.open(url)


@pytest.fixture
def stored(operator: Api) -> Api:
    answer = operator.post("/api/v1/blobs", content=DATA)
    assert (answer.status_code, answer.json()) == (201, {"digest": DIGEST, "length": len(DATA)})
    return operator


def test_an_upload_is_stored_and_recorded_and_the_same_again_changes_nothing(stored: Api) -> None:
    assert stored.post("/api/v1/blobs", content=DATA).json()["digest"] == DIGEST
    newest = stored.get("/api/v1/audit").json()["items"][0]
    assert (newest["action"], newest["subject"], newest["after"]) == (
        "blob.upload",
        f"blob:{DIGEST}",
        {"length": len(DATA)},
    )


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=10000-", 10000, 10240),
        ("bytes=10000-99999", 10000, 10240),
        ("bytes=-240", 10000, 10240),
        ("bytes=-99999", 0, 10240),
    ],
)
def test_a_range_gives_those_bytes(stored: Api, asked: str, start: int, end: int) -> None:
    answer = stored.get(f"/blobs/sha256/{HEX}", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == DATA[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=1-2,5-6", "lines=1-2", "bytes=-", "nonsense"])
def test_a_range_of_another_form_gives_the_whole(stored: Api, asked: str) -> None:
    answer = stored.get(f"/blobs/sha256/{HEX}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, DATA)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=20000-20001", "bytes=7-3", "bytes=-0"])
def test_a_range_outside_the_blob_is_416_with_its_length(stored: Api, asked: str) -> None:
    answer = stored.get(f"/blobs/sha256/{HEX}", headers={"Range": asked})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(DATA)}")


def test_if_range_gives_the_rest_of_the_same_blob_and_the_whole_of_another(stored: Api) -> None:
    headers = {"Range": "bytes=5-", "If-Range": f'"{HEX}"'}
    assert stored.get(f"/blobs/sha256/{HEX}", headers=headers).status_code == 206
    headers["If-Range"] = '"other"'
    assert stored.get(f"/blobs/sha256/{HEX}", headers=headers).status_code == 200


def test_a_blob_is_cacheable_for_ever_and_known_by_its_etag(stored: Api) -> None:
    answer = stored.request("HEAD", f"/blobs/sha256/{HEX}")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", str(len(DATA)))
    assert answer.headers["etag"] == f'"{HEX}"'
    assert "immutable" in answer.headers["cache-control"]
    assert stored.get(f"/blobs/sha256/{HEX}", headers={"If-None-Match": f'"{HEX}"'}).status_code == 304


def test_an_upload_above_the_cap_of_the_server_is_413_with_and_without_a_declared_length(settings: Settings) -> None:
    app: FastAPI = create_app(settings.model_copy(update={"max_blob_bytes": 1000}))
    api = as_scope(app, Scope.OPERATOR)

    async def pieces():
        for _ in range(20):
            yield os.urandom(100)

    for body in (b"x" * 1001, pieces()):
        answer = api.post("/api/v1/blobs", content=body)
        assert (answer.status_code, answer.json()["code"]) == (413, "blob.too-large")
    assert api.post("/api/v1/blobs", content=b"x" * 1000).status_code == 201
    app.state.database.close()

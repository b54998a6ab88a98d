"""Remote shards: downloaded once over HTTP, verified, cached; only supported URLs are opened. Also cache modes."""

from __future__ import annotations

import base64
import errno
import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from pfcluster.config import DataConfig
from pfcluster.data import storage
from pfcluster.data.dataset import cache_train_split, open_dataset
from pfcluster.data.manifest import MANIFEST, ShardError, load_manifest
from pfcluster.data.shards import ShardSplit
from pfcluster.data.storage import StoreError, open_store
from pfcluster.data.types import DataError
from pfcluster.system.atomic_files import sha256
from pfcluster.system.os_errors import is_transient

CPU = torch.device("cpu")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder and records the requested files."""

    requests: list[str]
    failures = 0
    """Number of requests that are still to fail."""


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests.append(self.path.lstrip("/"))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class StreamingHandler(Handler):
    """Serves files as proxies and dynamic servers may: without Content-Length, in small pieces, closing at the end."""

    fail_first = 0
    """Number of GET requests of each file whose connection is closed after half of the announced body."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        path, name = Path(self.directory, self.path.lstrip("/")), self.path.lstrip("/")
        self.server.requests.append(name)
        data = path.read_bytes() if path.is_file() else b""
        cut_off = self.server.requests.count(name) <= self.fail_first
        if self._answer(len(data) if cut_off else None):
            data = data[: len(data) // 2] if cut_off else data
            for start in range(0, len(data), 1000):
                self.wfile.write(data[start : start + 1000])
                self.wfile.flush()
        self.close_connection = True

    def _answer(self, length: int | None = None) -> bool:
        exists = Path(self.directory, self.path.lstrip("/")).is_file()
        self.send_response(200 if exists else 404)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        return exists


class CutHandler(StreamingHandler):
    fail_first = 1


class LoginHandler(Handler):
    """Asks for the user `reader` with the password `s3cret/pw`."""

    def do_HEAD(self) -> None:
        if self._allowed():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._allowed():
            super().do_GET()

    def _allowed(self) -> bool:
        login = base64.b64encode(b"reader:s3cret/pw").decode()
        if self.headers.get("Authorization") == f"Basic {login}":
            return True
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False


class UnavailableHandler(Handler):
    """Answers 503 while its server is overloaded."""

    def do_HEAD(self) -> None:
        if self._available():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._available():
            super().do_GET()

    def _available(self) -> bool:
        assert isinstance(self.server, Server)
        if self.server.failures == 0:
            return True
        self.server.failures -= 1
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False


@pytest.fixture
def server(damaged: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of a copy of the shards; `indirect` gives another handler."""
    handler = getattr(request, "param", Handler)
    server = Server(("127.0.0.1", 0), functools.partial(handler, directory=str(damaged)))
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_remote_split_equals_local_split_and_downloads_files_once(server: Server, built: Path, tmp_path: Path) -> None:
    remote, local = ShardSplit(url(server), "train", cache=tmp_path / "cache"), ShardSplit(built, "train")
    assert not [name for name in server.requests if name.endswith(".tar")]  # downloaded when first read
    assert torch.equal(remote.images([3]), local.images([3]))
    assert len([name for name in server.requests if name.endswith(".tar")]) == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remote.image, range(len(remote))))
    assert torch.equal(remote.images(range(27)), local.images(range(27)))
    assert torch.equal(remote.labels(), local.labels())
    server.requests.clear()
    again = ShardSplit(url(server), "train", cache=tmp_path / "cache")
    assert torch.equal(again.images(range(27)), local.images(range(27)))
    assert server.requests == [MANIFEST, MANIFEST][: len(server.requests)]


@pytest.mark.parametrize("server", [StreamingHandler, CutHandler], indirect=True)
def test_bodies_without_a_length_are_read_whole_and_cut_ones_again(
    server: Server, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY", 0.0)
    assert (built / MANIFEST).stat().st_size > 1000  # more than one piece
    remote, local = ShardSplit(url(server), "train", cache=tmp_path / "cache"), ShardSplit(built, "train")
    assert torch.equal(remote.images(range(27)), local.images(range(27)))
    assert remote.key(26) == local.key(26)


def _damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[: len(data) // 2], "empty": b"", "flipped": data[:-1] + b"\1", "grown": data + b"x"}[how]
    )


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "grown", "old"])
def test_a_damaged_cache_entry_is_fetched_again(server: Server, built: Path, tmp_path: Path, how: str) -> None:
    cache = tmp_path / "cache"
    local = ShardSplit(built, "train")
    assert torch.equal(ShardSplit(url(server), "train", cache=cache).images(range(27)), local.images(range(27)))
    entries = [path for path in cache.glob("*/*") if path.suffix == ""]
    assert len(entries) >= 2 * len(local._files)
    for entry in entries:
        if how == "old":  # of a version that recorded no state
            entry.with_suffix(".verified").unlink()
        else:
            _damage(entry, how)
    server.requests.clear()
    again = ShardSplit(url(server), "train", cache=cache)
    assert torch.equal(again.images(range(27)), local.images(range(27)))
    fetched = [name for name in server.requests if name != MANIFEST]
    assert len(set(fetched)) == (0 if how == "old" else len(entries))
    for entry in entries:
        assert sha256(entry) == entry.name


def test_an_index_that_is_damaged_without_a_trace_is_fetched_again(server: Server, built: Path, tmp_path: Path) -> None:
    cache, local = tmp_path / "cache", ShardSplit(built, "train")
    ShardSplit(url(server), "train", cache=cache)
    for shard in local._files:
        entry = cache / shard.index_sha256[:2] / shard.index_sha256
        before = entry.stat()
        entry.write_bytes(entry.read_bytes()[:-1] + b"x")
        os.utime(entry, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ShardSplit(url(server), "train", cache=cache).key(5) == local.key(5)


def test_a_corrupt_download_is_not_cached(
    server: Server, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY", 0.0)
    tar = damaged / "train-00000.tar"
    original = tar.read_bytes()
    tar.write_bytes(original[:-1] + b"\1")
    split = ShardSplit(url(server), "train", cache=tmp_path / "cache")
    sample = next(i for i in range(27) if "train-00000" in split._describe(i))
    with pytest.raises(ShardError, match=r"train-00000\.tar cannot be .*the download has the SHA-256"):
        split.image(sample)
    assert len([name for name in server.requests if name == tar.name]) == storage.ATTEMPTS
    tar.write_bytes(original)
    assert split.image(sample).shape == (24, 24, 3)


def test_a_missing_remote_folder_or_file_is_reported(server: Server, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere holds no manifest\.json"):
        load_manifest(open_store(f"{url(server)}/nowhere", tmp_path))
    (damaged / "train-00001.index.json").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.index\.json"):
        ShardSplit(url(server), "train", cache=tmp_path / "cache")


@pytest.mark.parametrize("server", [UnavailableHandler], indirect=True)
def test_a_server_that_is_down_is_asked_again_and_is_no_missing_file(
    server: Server, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY", 0.0)
    server.failures = 4
    split = ShardSplit(url(server), "train", cache=tmp_path / "cache")
    assert torch.equal(split.images([3]), ShardSplit(built, "train").images([3]))
    config = DataConfig(shards=url(server), size=24, cache_mode="host", cache=str(tmp_path / "other"))
    dataset = open_dataset(config, 0)
    server.failures = 10**6
    with pytest.raises(OSError, match="cannot be downloaded: ClientResponseError: 503") as raised:
        split.images(range(27))
    assert raised.value.errno == errno.EREMOTEIO
    server.server_close()
    decode = partial(cache_train_split, dataset, config, CPU)
    for read in (lambda: split.images(range(27)), lambda: load_manifest(url(server)), decode):
        with pytest.raises(OSError, match="cannot be downloaded") as raised:
            read()
        assert raised.value.errno == errno.EREMOTEIO
        assert not isinstance(raised.value, ValueError)
        assert is_transient(raised.value)
        assert "missing" not in str(raised.value)


@pytest.mark.parametrize("place", ["pipe:cat x", "pipe://x", "ssh://host/x", "file:///etc", "s3:x", "ftp://x/y"])
def test_unsupported_urls_are_rejected(place: str) -> None:
    with pytest.raises(StoreError, match="neither a folder nor a supported URL"):
        open_store(place)
    with pytest.raises(DataError, match="neither a folder nor a supported URL"):
        open_dataset(DataConfig(shards=place), 0)


def test_a_path_instead_of_a_checksum_is_rejected(server: Server, damaged: Path, tmp_path: Path) -> None:
    values = json.loads((damaged / MANIFEST).read_text())
    values["splits"]["train"]["shards"][0]["index_sha256"] = "../../outside"
    (damaged / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ShardError, match=r"not a SHA-256"):
        ShardSplit(url(server), "train", cache=tmp_path / "cache")


@pytest.mark.parametrize("limit", [None, 11])
def test_cache_modes_give_the_same_batches(server: Server, built: Path, tmp_path: Path, limit: int | None) -> None:
    batches = []
    indices = torch.tensor([3, 0, 7, 3])
    for place in (str(built), url(server)):
        for mode in ("stream", "host", "device"):
            config = DataConfig(shards=place, size=24, cache_mode=mode, limit=limit, cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
            dataset = cache_train_split(open_dataset(config, 0), config, CPU)
            batches.append((dataset.train.batch(indices), dataset.train.keys(indices), len(dataset.train)))
    first = batches[0]
    for batch, keys, size in batches[1:]:
        assert torch.equal(batch.images, first[0].images)
        assert torch.equal(batch.labels, first[0].labels)
        assert (keys, size) == first[1:]


def test_decoded_split_is_reused_and_a_truncated_file_is_decoded_again(built: Path, tmp_path: Path) -> None:
    config = DataConfig(shards=str(built), size=24, cache_mode="host", cache=str(tmp_path))
    cache_train_split(open_dataset(config, 0), config, CPU)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")}
    cache_train_split(open_dataset(config, 0), config, CPU)
    assert files == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")}
    assert len(files) == 1
    (tmp_path / "decoded" / next(iter(files))).write_bytes(b"short")
    dataset = cache_train_split(open_dataset(config, 0), config, CPU)
    streamed = open_dataset(DataConfig(shards=str(built), size=24), 0)
    assert torch.equal(dataset.train.batch(torch.arange(5)).images, streamed.train.batch(torch.arange(5)).images)


@pytest.mark.parametrize("server", [LoginHandler], indirect=True)
def test_credentials_come_from_the_environment(
    server: Server, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY", 0.0)
    place = f"http://${{SHARDS_LOGIN}}@127.0.0.1:{server.server_address[1]}"
    with pytest.raises(ShardError, match="needs the environment variable SHARDS_LOGIN, which is not set"):
        load_manifest(place)
    monkeypatch.setenv("SHARDS_LOGIN", "reader:s3cret%2Fpw")
    remote, local = ShardSplit(place, "train", cache=tmp_path), ShardSplit(built, "train")
    assert torch.equal(remote.images([3]), local.images([3]))
    monkeypatch.setenv("SHARDS_LOGIN", "reader:wr0ng")
    with pytest.raises(ShardError) as raised:
        load_manifest(place)
    assert "SHARDS_LOGIN" in str(raised.value)
    assert "wr0ng" not in str(raised.value)
    server.server_close()
    with pytest.raises(OSError, match="cannot be downloaded") as failed:
        load_manifest(place)
    assert "wr0ng" not in str(failed.value)

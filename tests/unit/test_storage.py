"""Remote shards: downloaded once over HTTP, verified, cached; only supported URLs are opened. Also cache modes."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

CPU = torch.device("cpu")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder and records the requested files."""

    requests: list[str]


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests.append(self.path.lstrip("/"))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(damaged: Path) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(damaged)))
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

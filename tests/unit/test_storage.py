"""Shards that lie elsewhere: fetched once over real HTTP, checked, kept; and nothing but files is ever opened."""

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
    """Serves a folder and remembers what was asked for."""

    asked: list[str]


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path.lstrip("/"))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(damaged: Path) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(damaged)))
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_url_gives_what_the_folder_gives_and_is_asked_once(server: Server, built: Path, tmp_path: Path) -> None:
    far, near = ShardSplit(url(server), "train", cache=tmp_path / "cache"), ShardSplit(built, "train")
    assert not [name for name in server.asked if name.endswith(".tar")]  # tars wait until they are wanted
    assert torch.equal(far.images([3]), near.images([3]))
    assert len([name for name in server.asked if name.endswith(".tar")]) == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(far.image, range(len(far))))
    assert torch.equal(far.images(range(27)), near.images(range(27)))
    assert torch.equal(far.labels(), near.labels())
    server.asked.clear()
    again = ShardSplit(url(server), "train", cache=tmp_path / "cache")
    assert torch.equal(again.images(range(27)), near.images(range(27)))
    assert server.asked == [MANIFEST, MANIFEST][: len(server.asked)]


def test_a_file_that_arrives_changed_is_not_kept(
    server: Server, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.0)
    tar = damaged / "train-00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1] + b"\1")
    split = ShardSplit(url(server), "train", cache=tmp_path / "cache")
    place = next(i for i in range(27) if "train-00000" in split._place(i))
    with pytest.raises(ShardError, match=r"train-00000\.tar cannot be .*what arrived has the SHA-256"):
        split.image(place)
    assert len([name for name in server.asked if name == tar.name]) == storage.ATTEMPTS
    tar.write_bytes(whole)
    assert split.image(place).shape == (24, 24, 3)


def test_a_missing_folder_or_file_is_said_at_once(server: Server, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere holds no manifest\.json"):
        load_manifest(open_store(f"{url(server)}/nowhere", tmp_path))
    (damaged / "train-00001.index.json").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.index\.json"):
        ShardSplit(url(server), "train", cache=tmp_path / "cache")


@pytest.mark.parametrize("place", ["pipe:cat x", "pipe://x", "ssh://host/x", "file:///etc", "s3:x", "ftp://x/y"])
def test_nothing_but_known_urls_is_opened(place: str) -> None:
    with pytest.raises(StoreError, match="neither a folder nor a URL"):
        open_store(place)
    with pytest.raises(DataError, match="neither a folder nor a URL"):
        open_dataset(DataConfig(shards=place), 0)


def test_a_checksum_that_is_none_names_no_file_of_the_cache(server: Server, damaged: Path, tmp_path: Path) -> None:
    values = json.loads((damaged / MANIFEST).read_text())
    values["splits"]["train"]["shards"][0]["index_sha256"] = "../../outside"
    (damaged / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ShardError, match=r"no SHA-256"):
        ShardSplit(url(server), "train", cache=tmp_path / "cache")


@pytest.mark.parametrize("limit", [None, 11])
def test_every_mode_gives_the_same_batches(server: Server, built: Path, tmp_path: Path, limit: int | None) -> None:
    batches = []
    wanted = torch.tensor([3, 0, 7, 3])
    for place in (str(built), url(server)):
        for mode in ("stream", "host", "device"):
            config = DataConfig(shards=place, size=24, cache_mode=mode, limit=limit, cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
            dataset = cache_train_split(open_dataset(config, 0), config, CPU)
            batches.append((dataset.train.batch(wanted), dataset.train.keys(wanted), len(dataset.train)))
    first = batches[0]
    for batch, keys, size in batches[1:]:
        assert torch.equal(batch.images, first[0].images)
        assert torch.equal(batch.labels, first[0].labels)
        assert (keys, size) == first[1:]


def test_what_was_decoded_is_found_again(built: Path, tmp_path: Path) -> None:
    config = DataConfig(shards=str(built), size=24, cache_mode="host", cache=str(tmp_path))
    cache_train_split(open_dataset(config, 0), config, CPU)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")}
    cache_train_split(open_dataset(config, 0), config, CPU)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")}
    assert len(before) == 1
    (tmp_path / "decoded" / next(iter(before))).write_bytes(b"short")  # cut off: decoded anew
    dataset = cache_train_split(open_dataset(config, 0), config, CPU)
    plain = open_dataset(DataConfig(shards=str(built), size=24), 0)
    assert torch.equal(dataset.train.batch(torch.arange(5)).images, plain.train.batch(torch.arange(5)).images)

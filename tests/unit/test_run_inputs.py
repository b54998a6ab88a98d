"""A run belongs to its data and weights by content: the same at another path is accepted, others are refused."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config import ConfigError, DataConfig, RunConfig
from pfcluster.data.build.pipeline import build
from pfcluster.data.fingerprints import changed_starts, check_inputs, data_record, run_inputs, weights_fingerprint
from pfcluster.runs.folder import INPUTS_FILE, write_config
from pfcluster.runs.run_inputs import read_inputs, write_inputs
from tests.photos import make_folder, options
from tests.tiny import config as tiny_config
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two datasets with equal names and counts, and the first one at another size."""
    root = tmp_path_factory.mktemp("shards")
    first = make_folder(root / "first")
    second = make_folder(root / "second", labels=("happy", "sad", "fear"))
    for name, raw, changes in (("a", first, {}), ("b", second, {}), ("large", first, {"size": 32})):
        build(options(raw, root / name, name="faces", **changes))
    return {name: root / name for name in ("a", "b", "large")}


def started(folder: Path, config: RunConfig) -> RunConfig:
    """Record a run as a training process does when it claims the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    write_inputs(folder, run_inputs(config))
    return config


def on(shards: Path, **changes: object) -> RunConfig:
    return tiny_config("finetune", data=DataConfig(shards=str(shards), size=24), **changes)


def test_records_survive_their_file(tmp_path: Path, shards: dict[str, Path]) -> None:
    config = started(tmp_path, on(shards["a"]))
    inputs = read_inputs(tmp_path)
    assert inputs is not None
    assert inputs.data == data_record(config.data)
    assert inputs.data.classes == ("neutral", "happiness", "sadness")


@pytest.mark.parametrize("order", ["auto", "blocks"])
def test_shards_that_move_to_a_url_keep_the_order_of_their_samples(
    tmp_path: Path, shards: dict[str, Path], order: str
) -> None:
    """A folder is shuffled as a whole and a URL in blocks, unless the config says which."""
    config = on(shards["a"])
    config = started(tmp_path / "run", replace(config, data=replace(config.data, order=order)))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shards["a"]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        moved = replace(config, data=replace(config.data, shards=url, cache=str(tmp_path / "cache")))
        if order == "auto":
            with pytest.raises(ConfigError, match=r"data\.order auto reads .* in another order"):
                check_inputs(tmp_path / "run", moved)
        else:
            assert check_inputs(tmp_path / "run", moved)["data.shards"] == (str(shards["a"]), url)
        server.shutdown()


def test_the_same_data_at_another_path_is_accepted(tmp_path: Path, shards: dict[str, Path]) -> None:
    config = started(tmp_path / "run", on(shards["a"]))
    assert check_inputs(tmp_path / "run", config) == {}
    shutil.copytree(shards["a"], tmp_path / "moved")
    moved = on(tmp_path / "moved")
    assert check_inputs(tmp_path / "run", moved) == {"data.shards": (str(shards["a"]), str(tmp_path / "moved"))}


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_in_the_same_or_another_place_is_refused(
    tmp_path: Path, shards: dict[str, Path], finished: bool
) -> None:
    shutil.copytree(shards["a"], tmp_path / "data")
    config = started(tmp_path / "run", on(tmp_path / "data"))
    for other in ("b", "large"):
        with pytest.raises(ConfigError, match=r"data\.shards: .*was trained on faces .* holds other data now"):
            check_inputs(tmp_path / "run", on(shards[other]), finished=finished)
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(shards["b"], tmp_path / "data")
    with pytest.raises(ConfigError, match="fear"):
        check_inputs(tmp_path / "run", config, finished=finished)


def test_a_finished_run_needs_its_data_no_more(tmp_path: Path, shards: dict[str, Path]) -> None:
    shutil.copytree(shards["a"], tmp_path / "data")
    config = started(tmp_path / "run", on(tmp_path / "data"))
    shutil.rmtree(tmp_path / "data")
    assert check_inputs(tmp_path / "run", config, finished=True) == {}
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        check_inputs(tmp_path / "run", config)


def test_builds_of_the_same_plan_have_the_same_samples(shards: dict[str, Path]) -> None:
    a, b, large = (data_record(DataConfig(shards=str(shards[name]))) for name in ("a", "b", "large"))
    assert a.same_samples(large, "test" if "test" in a.splits else "validation")
    assert not a.same_samples(b, "validation")
    assert a.splits["train"] != large.splits["train"]


def weights(folder: Path, value: float) -> Path:
    write_checkpoint(folder / "checkpoints", 1, {"model": {"a": torch.full((2,), value)}}, {})
    return folder


def test_weights_at_another_path_are_compared_by_content(tmp_path: Path) -> None:
    first, copy, other = weights(tmp_path / "mae", 1.0), tmp_path / "copy", weights(tmp_path / "other", 2.0)
    shutil.copytree(first, copy)
    base = tiny_config("finetune")
    config = started(tmp_path / "run", replace(base, model=replace(base.model, init=str(first))))
    for same in (copy, tmp_path / "run" / ".." / "mae"):
        moved = replace(config, model=replace(config.model, init=str(same)))
        assert list(check_inputs(tmp_path / "run", moved)) == ["model.init"]
    with pytest.raises(ConfigError, match=r"belongs to another config: model\.init"):
        check_inputs(tmp_path / "run", replace(config, model=replace(config.model, init=str(other))))
    assert changed_starts(tmp_path / "run", config) == []
    shutil.rmtree(first)
    assert check_inputs(tmp_path / "run", config) == {}
    assert changed_starts(tmp_path / "run", config) == []
    weights(first, 3.0)
    with pytest.raises(ConfigError, match=r"model\.init: .*mae holds other weights now than when"):
        check_inputs(tmp_path / "run", config)
    assert check_inputs(tmp_path / "run", config, finished=True) == {}
    (sentence,) = changed_starts(tmp_path / "run", config)
    assert f"was trained from another checkpoint than model.init {first} has now" in sentence


def test_files_and_names_have_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"1")
    (tmp_path / "b.pth").write_bytes(b"1")
    assert weights_fingerprint(str(tmp_path / "a.pth")) == weights_fingerprint(str(tmp_path / "b.pth"))
    assert weights_fingerprint("timm:vit_tiny_patch16_224") == "timm:vit_tiny_patch16_224"
    assert weights_fingerprint(str(tmp_path / "absent")) is None


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    config = started(tmp_path, tiny_config("finetune"))
    (tmp_path / INPUTS_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"inputs\.json is not JSON"):
        check_inputs(tmp_path, config)

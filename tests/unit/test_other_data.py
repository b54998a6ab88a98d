"""A run meets other data: classes by name, another build of its dataset is refused by evaluate, judge and start."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.cli import evaluate
from pfcluster.config import ConfigError, DataConfig, EvaluateConfig, RunConfig
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import open_dataset
from pfcluster.data.fingerprints import require_fitting_start, run_inputs
from pfcluster.data.shards import ShardSplit
from pfcluster.distributed.process_group import world
from pfcluster.evaluate.evaluate_run import evaluate_run, judge_run
from pfcluster.evaluate.evaluators import load_judge
from pfcluster.evaluate.run_comparison import open_runs
from pfcluster.runs.folder import RESULT_FILE, read_config, write_config
from pfcluster.runs.run_inputs import write_inputs
from pfcluster.training import run
from tests.photos import make_folder, options
from tests.tiny import config

pytestmark = pytest.mark.slow
FIRST, SECOND = ("happy", "sad", "neutral"), ("happy", "fear", "neutral")
OTHER_PHOTOS = ("neutral", "happy", "sad")
"""Of the classes of FIRST: each class has the numbers of another one there."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds of two datasets of one name, of one of another, and a classifier of the first in `run`."""
    root = tmp_path_factory.mktemp("other")
    sources = (("a", FIRST), ("b", SECOND), ("new", OTHER_PHOTOS))
    raw = {name: make_folder(root / f"raw-{name}", labels=labels) for name, labels in sources}
    for name, source, changes in (
        ("a", "a", {}),
        ("b", "b", {"name": "others"}),
        ("seed", "a", {"seed": 1}),
        ("large", "a", {"size": 32}),
        ("new", "new", {}),
    ):
        settings = {"name": "faces", "val_share": 0.25, "test_share": 0.25, **changes}
        build(options(raw[source], root / name, **settings))
    run(on(root / "a"), root / "run")
    return root


def on(shards: Path, objective: str = "finetune", **changes: object) -> RunConfig:
    return config(objective, data=DataConfig(shards=str(shards), size=24), epochs=1, **changes)


def test_evaluation_on_other_data_meets_classes_by_name(root: Path) -> None:
    own = evaluate_run(root / "run")
    assert own["missing_classes"] == []
    other = evaluate_run(root / "run", data=str(root / "b"))
    assert set(other["per_class"]) == {"neutral", "happiness"}
    assert list(other["dropped"]) == ["fear"]
    assert other["missing_classes"] == ["sadness"]


def test_crops_of_another_kind_are_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's photos are not aligned; this manifest says that its own are."""
    shutil.copytree(root / "b", tmp_path / "aligned")
    manifest = tmp_path / "aligned" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["options"]["align"] == "none"
    content["options"]["align"] = "mtcnn"
    manifest.write_text(json.dumps(content))
    for shards, warned in ((root / "b", False), (tmp_path / "aligned", True)):
        assert evaluate.main([str(root / "run"), "--shards", str(shards)]) == 0
        assert (
            "trained on faces cropped with --align none, and these are of --align mtcnn" in capsys.readouterr().out
        ) is warned


def test_another_build_whose_photos_the_run_may_have_seen_is_refused(root: Path, tmp_path: Path) -> None:
    """Equal photos in equal splits, and photos that its indexes tell apart, are accepted."""
    own = evaluate_run(root / "run")
    shutil.copytree(root / "a", tmp_path / "moved")
    assert evaluate_run(root / "run", data=str(tmp_path / "moved")) == own
    assert evaluate_run(root / "run", data=str(root / "large"))["n"] == own["n"]
    assert evaluate_run(root / "run", data=str(root / "new"))["n"] > 0
    trained = set(ShardSplit(root / "a", "train").identities())
    for split in ("train", "test"):
        assert trained & set(ShardSplit(root / "seed", split).identities())
        with pytest.raises(ConfigError, match=r"--shards: .* on another build of faces .* their own --name"):
            evaluate_run(root / "run", split, data=str(root / "seed"))
    away = replace(read_config(root / "run"), data=DataConfig(shards=str(tmp_path / "gone"), size=24))
    shutil.copytree(root / "run", tmp_path / "run")
    write_config(tmp_path / "run", away)
    assert evaluate_run(tmp_path / "run", data=str(root / "a")) == own
    with pytest.raises(ConfigError, match="another build of faces"):  # nothing to compare with
        evaluate_run(tmp_path / "run", data=str(root / "new"))


def test_other_data_in_the_place_of_its_own_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    shutil.copytree(root / "a", tmp_path / "shards")
    text = (
        (tmp_path / "run/config.json")
        .read_text()
        .replace(json.dumps(str(root / "a")), json.dumps(str(tmp_path / "shards")))
    )
    (tmp_path / "run/config.json").write_text(text)
    assert evaluate_run(tmp_path / "run")["accuracy"] == evaluate_run(root / "run")["accuracy"]
    shutil.rmtree(tmp_path / "shards")
    shutil.copytree(root / "seed", tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"holds other data now.*--shards FOLDER"):
        evaluate_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds other data now"):
        open_runs([root / "run", tmp_path / "run"], "test")
    with pytest.raises(ConfigError, match="holds other data now"):
        run(on(tmp_path / "shards"), tmp_path / "run")


def judge_of(shards: Path, judge: Path) -> object:
    settings = on(shards, "pf_mag", evaluate=EvaluateConfig(judge=str(judge)))
    with world("cpu") as group:
        return load_judge(settings, open_dataset(settings.data, 0), group)


def test_a_judge_has_the_same_classes_and_has_not_seen_the_test_faces(root: Path) -> None:
    assert judge_of(root / "a", root / "run") is not None
    assert judge_of(root / "large", root / "run") is not None  # the same photos in the same splits
    with pytest.raises(
        ConfigError, match=r"has the classes neutral, happiness, sadness, others has neutral, happiness, fear"
    ):
        judge_of(root / "b", root / "run")
    with pytest.raises(ConfigError, match="trained on another build of faces"):
        judge_of(root / "seed", root / "run")


def test_pf_vit_starts_from_a_classifier_of_its_classes_and_splits(root: Path) -> None:
    def start(shards: str) -> RunConfig:
        settings = on(root / shards, "pf_mag")
        return replace(settings, model=replace(settings.model, init=str(root / "run")))

    require_fitting_start(start("a"))
    require_fitting_start(start("large"))
    with pytest.raises(ConfigError, match=r"model\.init: .* classifies neutral, happiness, sadness, and the data has"):
        require_fitting_start(start("b"))
    with pytest.raises(ConfigError, match=r"model\.init: .*another build of faces"):
        require_fitting_start(start("seed"))


def test_a_classifier_starts_from_no_run_that_learned_labels_of_another_build(root: Path, tmp_path: Path) -> None:
    """Pre-training has seen none."""

    def start(shards: str, source: Path) -> RunConfig:
        settings = on(root / shards)
        return replace(settings, model=replace(settings.model, init=str(source)))

    for source in ("finetune", "pf_mag", "mae"):
        folder = tmp_path / source
        folder.mkdir()
        write_config(folder, on(root / "a", source))
        write_inputs(folder, run_inputs(on(root / "a", source)))
    for source in (root / "run", tmp_path / "finetune", tmp_path / "pf_mag"):
        for same in ("a", "large", "b"):  # b: another dataset
            require_fitting_start(start(same, source))
        with pytest.raises(ConfigError, match=r"model\.init: .*another build of faces"):
            require_fitting_start(start("seed", source))
    require_fitting_start(start("seed", tmp_path / "mae"))
    with pytest.raises(ConfigError, match=r"model\.init: .*another build of faces"):
        run(start("seed", root / "run"), tmp_path / "started")


def test_the_result_records_what_was_read(root: Path) -> None:
    result = json.loads((root / "run" / RESULT_FILE).read_text())
    assert set(result["inputs"]) == {"data.shards"}
    assert result["inputs"]["data.shards"]["train"]["samples"] == result["dataset"]["train"]


def test_poker_faces_are_classified_by_a_judge_given_later(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = EvaluateConfig(judge=str(root / "run"), n_poker_faces=1000)
    with_judge = run(on(root / "a", "pf_mag", evaluate=judged), tmp_path / "with-judge")
    run(on(root / "a", "pf_mag"), tmp_path / "later")
    figures = judge_run(tmp_path / "later", root / "run")
    rows = {name: {k: v for k, v in row.items() if v is not None} for name, row in figures["rows"].items()}
    expected = with_judge["poker"]["rows"]
    assert rows == {name: {k: v for k, v in row.items() if v is not None} for name, row in expected.items()}
    file = tmp_path / "figures" / "later.json"
    assert evaluate.main([str(tmp_path / "later"), "--judge", str(root / "run"), "--output", str(file)]) == 0
    shown, written = capsys.readouterr().out, json.loads(file.read_text())
    assert written["poker"] == figures
    assert written["accuracy"] == evaluate_run(tmp_path / "later")["accuracy"]
    assert f"{100 * rows['poker face']['neutralised_rate']:.1f} %" in shown
    with pytest.raises(ConfigError, match=r"a run of finetune, which makes no poker faces; leave --judge out"):
        judge_run(root / "run", root / "run")
    with pytest.raises(ConfigError, match=r"--shards: .* was trained on another build of faces"):
        judge_run(tmp_path / "later", root / "run", data=str(root / "seed"))
    with pytest.raises(ConfigError, match=r"--judge: .* was trained on another build of faces"):
        judge_run(tmp_path / "later", of_another_build(root / "run", root / "seed", tmp_path / "judge"))


def of_another_build(folder: Path, shards: Path, copy: Path) -> Path:
    """A copy of a run that says that it was trained on other shards."""
    shutil.copytree(folder, copy)
    settings = read_config(folder)
    settings = replace(settings, data=replace(settings.data, shards=str(shards)))
    write_config(copy, settings)
    write_inputs(copy, run_inputs(settings))
    return copy

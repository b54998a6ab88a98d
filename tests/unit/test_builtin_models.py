"""The models that come with the package, and the command that makes and checks them."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pfcluster
from benchmarks import release_models
from benchmarks.release_figures import Measured
from benchmarks.release_models import (
    MAX_BYTES,
    RELEASES,
    check,
    command_of,
    judge_again,
    markdown,
    plan,
    read_records,
    write,
)
from pfcluster.cli.main import main
from pfcluster.config import ConfigError
from pfcluster.inference import builtin_models
from pfcluster.inference.builtin_models import builtin_folder, builtin_names
from pfcluster.inference.model_card import model_card
from pfcluster.inference.model_folder import with_precision, write_model
from pfcluster.inference.model_info import CARD_FILE, WEIGHTS_FILE
from pfcluster.runs.folder import read_result
from pfcluster.training import run
from tests import inference_models as models
from tests import tiny


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_models_are_small_and_have_figures_and_a_command(name: str) -> None:
    folder, record = builtin_folder() / name, read_records()[name]
    model = pfcluster.load(f"builtin:{name}", device="cpu")
    figures = model.info.figures
    assert figures is not None
    assert (figures.split, figures.n, set(figures.per_class)) == ("test", record["n"], set(model.classes))
    assert figures.accuracy == record["figures"]["accuracy"] == record["correct"] / record["n"]
    card = (folder / CARD_FILE).read_text()
    assert card == model_card(model.info)
    assert f"    {record['command']}\n" in card
    assert {value.dtype for value in load_file(folder / WEIGHTS_FILE).values()} == {torch.float16}
    assert {value.dtype for value in model.predictor.net.state_dict().values()} == {torch.float32}
    assert sum(path.stat().st_size for path in builtin_folder().rglob("*") if path.is_file()) <= MAX_BYTES


def test_the_table_of_builtin_models_shows_their_record() -> None:
    records = read_records()
    assert set(records) == set(builtin_names())
    assert (release_models.RESULTS / f"{release_models.NAME}.md").read_text() == markdown(records)


def test_predict_without_a_model_takes_the_one_for_photos_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [str(path) for path in models.face_pictures(tmp_path, 2, side=48)]
    words = ["predict", *photos, "--no-detect", "--output", str(tmp_path / "out.csv"), "--device", "cpu"]
    monkeypatch.setattr(builtin_models, "builtin_folder", lambda: tmp_path / "weights")
    models.write(tmp_path / "weights" / "synthetic")
    assert main(words) == 2
    expected = "no model is named, and this installation has builtin:synthetic; name one with --model"
    assert expected in capsys.readouterr().err
    models.write(tmp_path / "weights" / "fer2013")
    assert main(words) == 0
    assert "no --model: builtin:fer2013 is used" in capsys.readouterr().err
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == photos
    assert main([*words, "--engine", "onnx"]) == 2
    assert "--engine onnx needs --model, a folder of `pfcluster export --format onnx`" in capsys.readouterr().err


def test_releases_train_only_what_their_model_starts_from(tmp_path: Path) -> None:
    synthetic = {stage.name: stage for stage in plan("synthetic", RELEASES["synthetic"], tmp_path, None).stages}
    assert set(synthetic) == {"mae", "judge", "mae-vit", "pf-vit"}
    configs = {name: stage.tasks[0].config for name, stage in synthetic.items()}  # type: ignore[union-attr]
    seeds = {"mae": 0, "judge": 0, "mae-vit": 1, "pf-vit": 1}
    assert {name: config.seed for name, config in configs.items()} == seeds
    assert {config.data.synthetic.seed for config in configs.values()} == {1}, "faces of benchmarks/poker_faces.py"
    folders = {name: str(tmp_path / "synthetic" / name / f"seed-{seed}") for name, seed in seeds.items()}
    assert configs["mae-vit"].model.init == configs["pf-vit"].pf_mag.decoder_init == folders["mae"]
    assert (configs["pf-vit"].model.init, configs["pf-vit"].evaluate.judge) == (folders["mae-vit"], folders["judge"])
    classifier = replace(RELEASES["fer2013"], role="mae-vit")
    fer2013 = plan("fer2013", classifier, tmp_path, tmp_path / "shards").stages
    assert [stage.name for stage in fer2013] == ["mae", "mae-vit"]
    assert {stage.tasks[0].config.data.shards for stage in fer2013} == {str(tmp_path / "shards")}  # type: ignore[union-attr]
    command = command_of("fer2013", classifier)
    assert command.startswith("pfcluster build --input fer2013/train.tar --test-input fer2013/public_test.tar")
    assert command.endswith("--only fer2013 --data SHARDS --role mae-vit")


@pytest.mark.parametrize(("device", "moved", "accepted"), [("cuda", 2, True), ("cuda", 3, False), ("cpu", 1, False)])
def test_only_a_gpu_may_have_given_a_few_images_other_labels(
    tmp_path: Path, device: str, moved: int, accepted: bool
) -> None:
    own = {"device": device, "test": {"accuracy": 0.9, "n": 2000, "confusion": [[900, 100], [100, 900]]}}
    (tmp_path / "result.json").write_text(json.dumps({"format": 1, **own}))
    confusion = [[900 - moved, 100 + moved], [100, 900]]
    measured = Measured(test={"accuracy": 0.9, "confusion": confusion}, poker=None, predicted=torch.zeros(0))
    with nullcontext() if accepted else pytest.raises(ConfigError, match="--data is not what it was trained on"):
        release_models._require_own_figures(tmp_path, measured)


@pytest.mark.slow
def test_the_committed_models_give_the_committed_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["release_models", "--check", "--only", "synthetic"])
    assert release_models.main() == 0
    assert "the committed models give the committed figures" in capsys.readouterr().out
    folder = shutil.copytree(builtin_folder(), tmp_path / "weights") / "synthetic"
    model = pfcluster.load(folder, device="cpu")
    weights = model.predictor.net.state_dict()
    weights["classifier.bias"][0] += 30  # every face is of the first class
    write_model(folder, *with_precision(model.info, weights, "float16"))
    record = read_records()["synthetic"]
    record["data"]["synthetic"]["test"] = 64
    problems = check("synthetic", record, folder, None)
    assert problems[:2] == ["the weights are not those of benchmarks/results", "1000 images committed, 64 measured"]
    assert any(problem.startswith("recall_happiness: ") for problem in problems)
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["classifier.bias"][0] += 1
    save_file(tensors, folder / WEIGHTS_FILE)
    words = ["release_models", "--check", "--only", "synthetic", "--output", str(folder.parent)]
    monkeypatch.setattr("sys.argv", words)
    assert release_models.main() == 1
    assert "is damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_becomes_a_model_with_the_figures_of_its_stored_weights_and_is_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(release_models, "RESULTS", tmp_path / "results")
    judge, trained = tmp_path / "judge" / "seed-0", tmp_path / "pf-vit" / "seed-0"
    run(tiny.config("finetune", name="judge"), judge)
    run(tiny.config("pf_mag"), trained)
    record = write("synthetic", RELEASES["synthetic"], trained, judge, None, tmp_path / "weights", "Only a test.")
    result = read_result(trained)
    assert result is not None
    assert record["correct_float32"] == round(result["test"]["accuracy"] * result["test"]["n"])
    assert abs(record["correct"] - record["correct_float32"]) <= record["n"] - record["same_label"]
    card = (tmp_path / "weights" / "synthetic" / CARD_FILE).read_text()
    assert "Only a test." in card
    assert "python -m benchmarks.release_models --only synthetic" in card
    record = json.loads(json.dumps(record))
    folder = tmp_path / "weights" / "synthetic"
    assert check("synthetic", record, folder, None) == []
    record["figures"]["accuracy"] += 0.1
    assert [problem.partition(":")[0] for problem in check("synthetic", record, folder, None)] == [
        "the card's accuracy is not that of benchmarks/results",
        "accuracy",
    ]
    other = tmp_path / "other" / "seed-0"
    run(tiny.config("finetune", name="judge", seed=1), other)
    again = judge_again("synthetic", record, other, None, tmp_path / "weights", "Judged again.")
    assert check("synthetic", json.loads(json.dumps(again)), folder, None) == []
    assert again["weights_sha256"] == record["weights_sha256"]
    assert again["figures"]["accuracy"] == again["correct"] / again["n"]
    assert again["figures"] != record["figures"]
    card = (folder / CARD_FILE).read_text()
    assert "Judged again." in card
    assert "Only a test." not in card

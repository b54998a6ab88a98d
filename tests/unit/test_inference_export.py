"""`pfcluster export`: a run's evaluated weights, figures and preprocessing, and runs that are no models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pfcluster
from pfcluster.cli.main import main
from pfcluster.config.io import with_values
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import open_dataset
from pfcluster.data.fingerprints import run_inputs
from pfcluster.evaluate import predictions
from pfcluster.inference.export import read_run
from pfcluster.inference.model_card import model_card
from pfcluster.inference.model_info import parse_info, read_info, to_json
from pfcluster.models import factory
from pfcluster.runs.folder import CHECKPOINTS_DIR, read_config, read_result, write_config, write_result
from pfcluster.runs.run_inputs import write_inputs
from pfcluster.training import run
from tests import inference_models as models
from tests import tiny
from tests.photos import make_folder, options


@pytest.fixture(scope="module")
def pf_vit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps a moving average of its weights."""
    config = tiny.config("pf_mag")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema=0.5))
    folder = tmp_path_factory.mktemp("runs") / "seed-0"
    run(config, folder)
    return folder


@pytest.mark.slow
def test_an_exported_run_predicts_its_test_split_as_it_was_evaluated(
    pf_vit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(pf_vit_run), "--output", str(tmp_path / "model"), "--discriminator"]) == 0
    assert "pf_vit, 32 px, neutral, happiness" in capsys.readouterr().out
    model = pfcluster.load(tmp_path / "model", device="cpu")
    result = read_result(pf_vit_run)
    assert result is not None
    config = tiny.config("pf_mag")
    test = open_dataset(config.data, 0).test
    assert test is not None
    crops = test.batch(torch.arange(len(test))).images.permute(0, 2, 3, 1).numpy()
    recorded = predictions.read(pf_vit_run)
    faces = model.predict(crops, detect=False)
    assert [face.label for face in faces] == [recorded.classes[index] for index in recorded.logits.argmax(1)]
    np.testing.assert_allclose(model.predictor.logits(crops), recorded.logits, atol=1e-5)
    figures = model.info.figures
    assert figures is not None
    assert (figures.accuracy, figures.n) == (result["test"]["accuracy"], len(test))
    card = (tmp_path / "model" / "README.md").read_text()
    for part in ("EU AI Act", "Poker faces are synthetic", "How to cite", *figures.per_class):
        assert part in card
    assert not any("discriminator" in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    assert load_file(tmp_path / "model" / "discriminator.safetensors")
    assert model.poker_face(crops[:3], detect=False).shape == (3, 32, 32, 3)
    assert main(["export", str(pf_vit_run), "--output", str(tmp_path / "new.safetensors")]) == 0
    assert pfcluster.load(tmp_path / "new.safetensors").info == model.info  # the earlier option left no trace


def fake_run(folder: Path, objective: str, **data: object) -> Path:
    """A run folder with a checkpoint of random weights."""
    config = tiny.config(objective)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))  # type: ignore[arg-type]
    weights = factory.build(config, 3, load_init=False)["model"].state_dict()
    tiny.write_checkpoint(folder / CHECKPOINTS_DIR, 5, {"model": weights}, {})
    write_config(folder, config)
    return folder


@pytest.mark.parametrize(
    ("objective", "data", "reason"),
    [
        ("mae", {}, "is a run of MAE pre-training: it has no classes"),
        ("finetune", {"target": "identity"}, "recognises the identities"),
        ("finetune", {}, "does not record its classes"),
        ("finetune", {"shards": "gone"}, "name their folder with --shards"),
    ],
)
def test_runs_that_are_no_models_say_why(
    objective: str, data: dict[str, object], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_run(tmp_path / "run", objective, **data)
    if "shards" in data:
        write_result(folder, {"dataset": {"name": "mine", "classes": ["neutral", "happiness", "fear"]}})
    assert main(["export", str(folder), "--output", str(tmp_path / "model")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def finished_run(folder: Path, shards: Path, seed: int, accuracy: float, **values: object) -> Path:
    """A run with a result; `values`: of its config, by dotted name."""
    config = tiny.config("finetune")
    config = with_values(config, {"data.shards": str(shards), "seed": seed, **values})
    write_config(fake_run(folder, "finetune"), config)
    scores = {"n": 40, "mean_class_accuracy": 0.5, "macro_f1": 0.5, "per_class": {"neutral": 0.5}}
    result = {"name": config.name, "status": "finished", "seed": seed, "steps": 5, "selection_split": "validation"}
    dataset = {"name": "mine", "classes": ["neutral", "happiness", "fear"]}
    write_result(folder, {**result, "dataset": dataset, "test": {**scores, "accuracy": accuracy}})
    return folder


def test_figures_are_also_those_over_the_seeds_of_the_study(built: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        finished_run(tmp_path / f"seed-{seed}", built, seed, 0.5 + 0.2 * seed)
    info = read_run(tmp_path / "seed-0").info
    assert info.figures is not None
    assert info.over_seeds is not None
    assert (info.figures.accuracy, info.over_seeds.seeds) == (0.5, (0, 1))
    assert info.over_seeds.accuracy_mean == pytest.approx(0.6)
    assert info.over_seeds.accuracy_std == pytest.approx(0.2 / 2**0.5)
    assert pfcluster.load(tmp_path / "seed-0", device="cpu").info == info  # the run itself is a model


def test_only_runs_that_differ_in_their_seed_are_averaged(built: Path, tmp_path: Path) -> None:
    """Others may have the name, too: of another objective, config, data or selection; and the run itself counts where
    another one has its seed.
    """
    run = finished_run(tmp_path / "b", built, 0, 0.5)
    finished_run(tmp_path / "a", built, 0, 0.1)
    finished_run(tmp_path / "c", built, 1, 0.1, **{"optim.lr": 0.5})
    finished_run(tmp_path / "d", built, 2, 0.1, objective="pf_mag")
    other_data, other_selection = (finished_run(tmp_path / name, built, 3, 0.1) for name in ("e", "f"))
    mae = finished_run(tmp_path / "g", built, 4, 0.1)
    (finished_run(tmp_path / "h", built, 5, 0.1) / "config.json").write_text("{")
    result = read_result(run)
    assert result is not None
    write_result(other_data, result | {"inputs": {"data.shards": {"train": 1}}})
    write_result(other_selection, result | {"selection_split": "test"})
    write_result(mae, result | {"test": {"n": 40, "loss": 0.5}})
    write_result(run, result | {"inputs": {"data.shards": {"train": 2}}})
    assert read_run(run).info.over_seeds is None
    finished_run(tmp_path / "i", built, 6, 0.7)
    over_seeds = read_run(run).info.over_seeds
    assert over_seeds is not None
    assert (over_seeds.seeds, over_seeds.accuracy_mean) == ((0, 6), pytest.approx(0.6))


@pytest.mark.parametrize("best", [5, None])
def test_the_card_has_the_figures_of_its_own_checkpoint_only(built: Path, tmp_path: Path, best: int | None) -> None:
    """result.json has those of the best checkpoint, or of the last if none was selected."""
    folder = fake_run(tmp_path / "seed-0", "finetune", shards=str(built))
    weights = factory.build(read_config(folder), 3, load_init=False)["model"].state_dict()
    for step in (5, 8):
        state = {"best": None if best is None else {"step": best, "score": 0.5}}
        tiny.write_checkpoint(folder / CHECKPOINTS_DIR, step, {"model": weights}, state)
    scores = {"n": 40, "accuracy": 0.5, "mean_class_accuracy": 0.5, "macro_f1": 0.5, "per_class": {"neutral": 0.5}}
    result = {"status": "finished", "steps": 8, "test": scores, "poker": {"rows": {"poker face": {"n": 9}}}}
    result |= {"dataset": {"name": "mine", "classes": ["neutral", "happiness", "fear"]}}
    write_result(folder, result | {"best": None if best is None else {"step": best, "value": 0.5}})
    evaluated = best or 8
    for source, step in (("", evaluated), ("checkpoints/step-00000005", 5), ("checkpoints/step-00000008", 8)):
        info = read_run(folder / source).info
        assert info.training.step == step
        assert (info.figures is not None) == (info.poker_faces is not None) == (step == evaluated)
        assert (f"these weights are the checkpoint of step {step}, and" in model_card(info)) == (step != evaluated)
        assert ("accuracy 50.00 %" in model_card(info)) == (step == evaluated)
        assert parse_info(to_json(info), "config.json") == info
    for file in (folder / f"checkpoints/step-{evaluated:08d}").glob("*.safetensors"):
        file.write_bytes(b"damaged")
    info = read_run(folder).info
    assert (info.figures, info.training.step) == (None, 13 - evaluated)
    assert f"checkpoint of step {evaluated}. `pfcluster evaluate" in model_card(info)


def test_shards_that_have_moved_are_named(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their manifest says how photos were cropped; the config of the model tells it."""
    folder = fake_run(tmp_path / "run", "finetune", shards="gone")
    write_result(folder, {"dataset": {"name": "mine", "classes": ["neutral", "happiness", "sadness"]}})
    (folder / "README.md").write_text("notes")  # which makes it no model
    words = ["export", str(folder), "--output", str(tmp_path / "model"), "--shards", str(built)]
    assert main([*words, "--license", "cc-by-4.0", "--precision", "float16"]) == 0
    info = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (info["preprocessing"]["crop_size"], info["preprocessing"]["jpeg_quality"]) == (24, 95)
    assert info["license"] == "cc-by-4.0"
    assert pfcluster.load(tmp_path / "model", device="cpu").classes == ("neutral", "happiness", "sadness")
    assert main([*words, "--discriminator"]) == 2
    assert "has none, because it is not a run of pf-mag" in capsys.readouterr().err


def test_shards_of_another_build_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `evaluate` refuses them: their photos may be cropped in another way than those that the run saw."""
    raw = make_folder(tmp_path / "raw", per_class=4)
    for name, quality in (("data", 95), ("other", 60)):
        build(options(raw, tmp_path / name, name="mine", quality=quality))
    place, moved = tmp_path / "data", tmp_path / "moved"
    folder = fake_run(tmp_path / "run", "finetune", shards=str(place))
    write_inputs(folder, run_inputs(read_config(folder)))
    predict = ["predict", str(next(raw.rglob("*.png"))), "--model", str(folder), "--no-detect"]
    export = ["export", str(folder), "--output", str(tmp_path / "model")]
    place.rename(moved)
    assert main([*export, "--shards", str(moved)]) == 0
    assert read_info(tmp_path / "model").preprocessing.jpeg_quality == 95
    shutil.rmtree(tmp_path / "model")
    capsys.readouterr()
    shutil.copytree(tmp_path / "other", place)
    for words in (export, [*export, "--shards", str(tmp_path / "other")], [*export, "--format", "timm"], predict):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"{folder} was trained on mine" in error
        assert "holds other data now: as many, but other, photos or labels" in error
        assert "export RUN --shards FOLDER" in error
        assert not (tmp_path / "model").exists()
    assert main(["evaluate", str(folder)]) == 2
    assert "holds other data now: as many, but other, photos or labels" in capsys.readouterr().err


@pytest.mark.slow
def test_models_of_synthetic_faces_align_to_where_these_lie(pf_vit_run: Path) -> None:
    """Detected in the rendered faces: between the eyes and the mouth lies a third of the side."""
    preprocessing = read_run(pf_vit_run).info.preprocessing
    assert preprocessing.template_faces is not None
    points = np.array(preprocessing.template)
    assert points[0, 0] == pytest.approx(1 - points[1, 0], abs=1e-3)
    assert 0.3 < points[3:, 1].mean() - points[:2, 1].mean() < 0.4


def test_models_are_exported_as_runs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To other forms and runtimes, without their data."""
    info, net = models.write(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--output"]
    assert main([*words, str(tmp_path / "half.safetensors"), "--precision", "float16", "--license", "mit"]) == 0
    half = pfcluster.load(tmp_path / "half.safetensors", device="cpu")
    assert (half.info.license, half.info.training) == ("mit", info.training)
    assert torch.equal(half.predictor.net.state_dict()["head.weight"], net.state_dict()["head.weight"].half().float())
    assert main([*words, str(tmp_path / "timm"), "--format", "timm"]) == 0
    assert read_info(tmp_path / "timm").runtime.checked_on == "32 random images"  # type: ignore[union-attr]
    for more, reason in (
        (["--shards", "gone"], "--shards is for runs; the model"),
        (["--discriminator"], "has none, because it is not a run of pf-mag"),
    ):
        assert main([*words, str(tmp_path / "x"), *more]) == 2
        assert reason in capsys.readouterr().err
    assert main(["export", "runs/none/seed-0", "--output", str(tmp_path / "x")]) == 2
    assert "no model runs/none/seed-0: pass a folder or file of `pfcluster export`, a run" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()

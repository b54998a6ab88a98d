"""`pfcluster export --format onnx|torch-export|timm`, `predict --engine onnx`: other runtimes give what torch gives."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pfcluster
from pfcluster.cli.main import main
from pfcluster.config import EvaluateConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.inference import export_runtimes
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.evaluation_images import evaluation_images
from pfcluster.inference.model import Model
from pfcluster.inference.model_info import read_info
from pfcluster.inference.onnx_predictor import OnnxPredictor
from pfcluster.inference.timm_weights import timm_info
from pfcluster.models import factory
from pfcluster.runs.folder import CHECKPOINTS_DIR, write_config, write_result
from tests import inference_models as models
from tests import tiny

WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from pfcluster.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""Not `sys.modules["torch"] = None`: tyro imports torch where that name is in `sys.modules`."""


def make_run(folder: Path, objective: str, shards: Path) -> Path:
    """A run folder with a checkpoint of random weights that differ enough for logits to differ."""
    config = tiny.config(objective)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(shards), limit=None))
    classes = open_dataset(config.data, 0).classes
    net = factory.build(config, len(classes), load_init=False)["model"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    tiny.write_checkpoint(folder / CHECKPOINTS_DIR, 5, {"model": net.state_dict()}, {})
    write_config(folder, config)
    write_result(folder, {"dataset": {"name": "mine", "classes": list(classes)}})
    return folder


@pytest.fixture(scope="module")
def pf_vit_run(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("pf-vit") / "seed-0", "pf_mag", built)


@pytest.fixture(scope="module")
def vit_run(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("vit") / "seed-0", "finetune", built)


@pytest.fixture(scope="module")
def onnx_folder(pf_vit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "model"
    assert main(["export", str(pf_vit_run), "--output", str(folder), "--format", "onnx", "--int8"]) == 0
    return folder


def crops_of(model: Model, count: int) -> np.ndarray:
    side = model.info.preprocessing.crop_size
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_onnx_predicts_without_torch_what_torch_predicts(pf_vit_run: Path, onnx_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    models.face_pictures(tmp_path / "photos", 5, side=40)
    words = ["predict", str(tmp_path / "photos"), "--no-detect", "--batch-size", "3"]
    torchs = [*words, "--model", str(pf_vit_run), "--output", str(tmp_path / "torch.csv"), "--device", "cpu"]
    assert main([*torchs, "--poker-face", str(tmp_path / "torch")]) == 0
    for engine in ("onnx", "onnx-int8"):
        output = ["--output", str(tmp_path / f"{engine}.csv"), "--poker-face", str(tmp_path / engine)]
        arguments = [*words, "--model", str(onnx_folder), "--engine", engine, *output]
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    expected = rows(tmp_path / "torch.csv")
    names = [name for name in expected[0] if name.startswith("p_")]

    def probabilities(name: str) -> np.ndarray:
        return np.array([[float(row[one]) for one in names] for row in rows(tmp_path / name)])

    assert len(expected) == 5
    assert [row["label"] for row in rows(tmp_path / "onnx.csv")] == [row["label"] for row in expected]
    np.testing.assert_allclose(probabilities("onnx.csv"), probabilities("torch.csv"), atol=1e-4)
    int8 = np.abs(probabilities("onnx-int8.csv") - probabilities("torch.csv")).max()
    assert 1e-5 < int8 < 0.3  # another graph, of about the same function
    for picture in (tmp_path / "torch").iterdir():
        first, second = (np.asarray(Image.open(tmp_path / one / picture.name), int) for one in ("torch", "onnx"))
        assert np.abs(first - second).max() <= 1


def test_a_run_that_leaves_the_test_split_alone_is_checked_with_the_validation_split(tmp_path) -> None:
    for final_split, count in (("test", 40), ("validation", 32)):
        config = tiny.config("finetune", evaluate=EvaluateConfig(final_split=final_split))
        (tmp_path / final_split).mkdir()
        write_config(tmp_path / final_split, config)
        info = dataclasses.replace(models.info(), classes=open_dataset(config.data, 0).classes)
        images = evaluation_images(tmp_path / final_split, info)
        assert (images.name, len(images.split)) == (final_split, count)


@pytest.mark.slow
def test_the_accuracy_of_int8_is_that_of_the_runs_own_split(pf_vit_run: Path, onnx_folder: Path, built: Path) -> None:
    info = read_info(onnx_folder)
    assert info.runtime is not None
    assert info.runtime.int8 is not None
    assert (info.runtime.opset, set(info.runtime.largest_difference)) == (18, {"classifier.onnx", "poker_face.onnx"})
    figures = info.runtime.int8.figures
    assert figures is not None
    dataset = open_dataset(dataclasses.replace(tiny.config("finetune").data, shards=str(built), limit=None), 0)
    split = dataset.validation if dataset.test is None else dataset.test
    images = split.batch(torch.arange(len(split))).images.permute(0, 2, 3, 1).numpy()
    labels = split.labels().numpy()
    model = pfcluster.load(pf_vit_run, device="cpu")
    answers = [OnnxPredictor(onnx_folder, int8=int8).logits(images).argmax(1) for int8 in (False, True)]
    assert figures.n == len(split)
    assert figures.accuracy_float32 == (model.predictor.logits(images).argmax(1) == labels).mean()
    assert figures.accuracy_int8 == (answers[1] == labels).mean()
    assert figures.agreement == (answers[0] == answers[1]).mean()
    predictor = OnnxPredictor(onnx_folder)
    np.testing.assert_allclose(predictor.features(images), model.predictor.features(images), atol=1e-4)
    card = (onnx_folder / "README.md").read_text()
    for part in (
        "opset 18",
        "batch x 24 x 24 x 3",
        f"loss {100 * (figures.accuracy_float32 - figures.accuracy_int8):.2f}",
    ):
        assert part in card


@pytest.mark.slow
def test_damaged_and_other_folders_are_refused(
    onnx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InferenceError, match=r"another runtime \(onnx\); `pfcluster predict --engine onnx` reads it"):
        pfcluster.load(onnx_folder)
    damaged = shutil.copytree(onnx_folder, tmp_path / "damaged")
    content = bytearray((damaged / "classifier.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "classifier.onnx").write_bytes(content)
    (damaged / "poker_face.onnx").unlink()
    with pytest.raises(InferenceError, match=r"classifier\.onnx is damaged"):
        OnnxPredictor(damaged)
    with pytest.raises(InferenceError, match=r"has no poker_face\.onnx, which its config\.json names"):
        OnnxPredictor(damaged, int8=True).poker_faces(np.zeros((1, 24, 24, 3), np.uint8))
    values = json.loads((damaged / "config.json").read_text())
    values["runtime"]["files"].pop("classifier_int8.onnx")
    (damaged / "config.json").write_text(json.dumps(values))
    with pytest.raises(InferenceError, match="export the run again with --format onnx --int8"):
        OnnxPredictor(damaged, int8=True)
    models.face_pictures(tmp_path, 1)
    words = ["predict", str(tmp_path / "face0.png"), "--model", str(onnx_folder), "--engine", "onnx"]
    assert main(words) == 2
    assert "works without torch, which the face detector (MTCNN) needs" in capsys.readouterr().err
    assert main([*words, "--no-detect", "--device", "cuda"]) == 2
    assert "--device cuda needs --engine torch" in capsys.readouterr().err


@pytest.mark.slow
def test_torch_export_loads_without_pfcluster(pf_vit_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert main(["export", str(pf_vit_run), "--output", str(folder), "--format", "torch-export"]) == 0
    model = pfcluster.load(pf_vit_run, device="cpu")
    crops = crops_of(model, 3)
    np.save(tmp_path / "crops.npy", crops)
    code = """
import sys
sys.modules["pfcluster"] = None
import numpy, torch
folder, images, outputs = sys.argv[1:]
crops = torch.from_numpy(numpy.load(images))
classifier, generator = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("classifier", "poker_face"))
with torch.no_grad():
    logits, features = classifier(crops)
    numpy.savez(outputs, logits=logits, features=features, faces=generator(crops), one=classifier(crops[:1])[0])
"""
    words = [str(folder), str(tmp_path / "crops.npy"), str(tmp_path / "outputs.npz")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npz")
    np.testing.assert_allclose(outputs["logits"], model.predictor.logits(crops), atol=1e-5)
    np.testing.assert_allclose(outputs["one"], model.predictor.logits(crops[:1]), atol=1e-5)
    np.testing.assert_allclose(outputs["features"], model.predictor.features(crops), atol=1e-5)
    images = ((outputs["faces"].transpose(0, 2, 3, 1) + 1) * 127.5).round().clip(0, 255)
    assert np.abs(images - model.predictor.poker_faces(crops)).max() <= 1
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.pt2")}
    assert sizes["classifier.pt2"] < sizes["poker_face.pt2"]  # it holds no weights of the generator


def from_timm(folder: Path) -> nn.Module:
    """By the call of the model card."""
    import timm

    call = next(line for line in (folder / "README.md").read_text().splitlines() if "timm.create_model" in line)
    names: dict[str, nn.Module] = {"timm": timm}  # type: ignore[dict-item]
    exec(call.strip().replace("THIS_FOLDER", str(folder)), names)
    return names["model"].eval()


@torch.no_grad()
def test_timm_loads_the_encoder_and_the_head_of_a_vit(vit_run: Path, pf_vit_run: Path, tmp_path: Path) -> None:
    for run in (vit_run, pf_vit_run):
        folder = tmp_path / run.parent.name
        assert main(["export", str(run), "--output", str(folder), "--format", "timm"]) == 0
        model, timms = pfcluster.load(run, device="cpu"), from_timm(folder)
        images = model.predictor.network_input(crops_of(model, 3))
        tokens = timms.forward_features(images)  # type: ignore[operator]
        torch.testing.assert_close(tokens, model.predictor.net.encoder(images), atol=1e-5, rtol=1e-5)  # type: ignore[operator]
        if run == vit_run:
            torch.testing.assert_close(timms(images), model.predictor.net(images), atol=1e-5, rtol=1e-5)
        else:
            assert isinstance(timms.head, nn.Identity)


def test_nets_that_timm_does_not_have_say_why() -> None:
    with pytest.raises(InferenceError, match="is the small convolutional net"):
        timm_info(models.info("cnn"))
    vit = models.info("vit")
    assert vit.network.encoder is not None
    stem = dataclasses.replace(vit.network.encoder, stem_channels=(8, 16, 32))
    with pytest.raises(InferenceError, match="has a convolutional stem"):
        timm_info(dataclasses.replace(vit, network=dataclasses.replace(vit.network, encoder=stem)))


@pytest.mark.slow
def test_every_kind_of_net_is_exported(tmp_path: Path) -> None:
    """The batch stays dynamic, and onnxruntime computes what torch does, also of the variants of PF-ViT."""
    from pfcluster.inference.graphs import graphs
    from pfcluster.inference.torch_predictor import build_net

    stem, plain = models.info("vit"), models.info("pf_vit")
    assert stem.network.encoder is not None
    assert plain.network.generator is not None
    encoder = dataclasses.replace(stem.network.encoder, stem_channels=(8, 16, 32))
    stem = dataclasses.replace(stem, network=dataclasses.replace(stem.network, encoder=encoder))
    fusion = dataclasses.replace(plain.network.generator, fusion="self", fusion_bias=None)
    fused = dataclasses.replace(plain, network=dataclasses.replace(plain.network, generator=fusion))
    crops = models.rendered(3, 48)
    for info in (stem, fused, models.info("cnn")):
        net = build_net(info).requires_grad_(False)
        for graph in graphs(info, net):
            if graph is None:
                continue
            run = export_runtimes.onnx_runner(export_runtimes.to_onnx(graph, info))
            for batch in (crops, crops[:1]):
                outputs = graph(torch.from_numpy(batch))
                for expected, actual in zip(
                    outputs if isinstance(outputs, tuple) else [outputs], run(batch), strict=True
                ):
                    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--int8"], "--int8 needs --format onnx"),
        (["--format", "timm", "--precision", "float16"], "--precision float16 is an option of --format safetensors"),
        (["--format", "torch-export", "--discriminator"], "--discriminator is an option of --format safetensors"),
    ],
)
def test_options_of_other_formats_are_refused(
    words: list[str], reason: str, vit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(vit_run), "--output", str(tmp_path / "model"), *words]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_files_that_differ_from_torch_are_not_written(
    vit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_runtimes, "TOLERANCE", -1.0)
    assert main(["export", str(vit_run), "--output", str(tmp_path / "model"), "--format", "timm"]) == 2
    assert "timm.safetensors gives other values than torch" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_engines_that_cannot_read_a_model_say_why(
    vit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models.write(tmp_path / "model", "vit")
    models.face_pictures(tmp_path, 1)
    words = ["predict", str(tmp_path), "--no-detect", "--engine", "onnx", "--model"]
    assert main([*words, str(tmp_path / "model")]) == 2
    assert "holds the model as safetensors, not as ONNX; write it with `pfcluster export" in capsys.readouterr().err
    assert main([*words, "user/name"]) == 2
    assert "not user/name; --engine torch takes the other forms" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(vit_run), "--format", "onnx", "--output", str(tmp_path / "onnx")]) == 2
    assert "pip install -e '.[onnx]'" in capsys.readouterr().err

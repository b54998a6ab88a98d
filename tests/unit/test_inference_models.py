"""Models as folders and files: loading back, refusals, the Hugging Face hub's client."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

import pfcluster
from pfcluster.cli.main import main
from pfcluster.config import DataConfig, ModelConfig, PfMagConfig, RunConfig
from pfcluster.inference import builtin_models
from pfcluster.inference.errors import InferenceError, NoGeneratorError
from pfcluster.inference.faces import NOT_FINITE
from pfcluster.inference.hub import HubModel
from pfcluster.inference.model_card import model_card
from pfcluster.inference.model_folder import with_precision, write_model
from pfcluster.inference.model_info import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    EncoderInfo,
    GeneratorInfo,
    Kind,
    NetworkInfo,
    read_info,
)
from pfcluster.inference.space import space_card
from pfcluster.inference.torch_predictor import build_net, network_info, weights_sha256
from tests import inference_models as models

CROPS = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; tests that change it work on copies."""
    path = tmp_path_factory.mktemp("model") / "vit"
    models.write(path)
    return path


@pytest.mark.parametrize("kind", ["cnn", "vit", "pf_vit"])
@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_models_load_back_equal_to_the_bit(tmp_path: Path, kind: Kind, name: str) -> None:
    info, net = models.write(tmp_path / name, kind)
    model = pfcluster.load(tmp_path / name, device="cpu")
    assert model.info == info
    loaded = model.predictor.net.state_dict()
    assert set(loaded) == set(net.state_dict())
    assert all(torch.equal(value, loaded[key]) for key, value in net.state_dict().items())
    images = model.predictor.network_input(CROPS)
    expected = net.classify(images) if kind == "pf_vit" else net(images)  # type: ignore[operator]
    assert np.array_equal(model.predictor.logits(CROPS), expected.detach().numpy())
    assert len(model.features(CROPS, detect=False)) == len(CROPS)
    if kind == "pf_vit":
        poker = net(images).poker.detach()
        pixels = ((poker + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).byte().numpy()
        generated = model.poker_face(CROPS, detect=False).astype(int)  # in another batch, which may round otherwise
        assert np.abs(generated - pixels).max() <= 1
    else:
        with pytest.raises(NoGeneratorError, match="no generator of poker faces"):
            model.poker_face(CROPS, detect=False)


@pytest.mark.parametrize(
    "text", ["apache-2.0", "my own: ask", "no", "1.0", "# none", '"quoted" \\ by\nlines', "eig\u00e9n"]
)
def test_the_hubs_client_reads_every_licence(text: str) -> None:
    """From the YAML headers of the cards of models and of Spaces."""
    info = dataclasses.replace(models.info(), license=text)
    for card in (model_card(info), space_card(info)):
        assert huggingface_hub.ModelCard(card).data.license == text
    assert (f"license: {text}\n" in model_card(info)) == (text == "apache-2.0")


def test_half_precision_halves_the_file(folder: Path, tmp_path: Path) -> None:
    model = pfcluster.load(folder, device="cpu")
    write_model(tmp_path / "half", *with_precision(model.info, model.predictor.net.state_dict(), "float16"))
    sizes = [(place / WEIGHTS_FILE).stat().st_size for place in (folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half = pfcluster.load(tmp_path / "half", device="cpu")
    assert np.abs(half.predictor.logits(CROPS) - model.predictor.logits(CROPS)).max() < 0.1
    half.save(tmp_path / "again")
    assert np.array_equal(
        pfcluster.load(tmp_path / "again", device="cpu").predictor.logits(CROPS), half.predictor.logits(CROPS)
    )


def _edit(folder: Path, **changes: object) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(values | changes))


def _truncate(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])


def _flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(data)


def _pickle(folder: Path) -> None:
    torch.save({"head.weight": torch.zeros(3)}, folder / WEIGHTS_FILE)


DAMAGE = {
    "is damaged": _truncate,
    "checksum of its weights": _flip,
    "no safetensors file": _pickle,
    "has no model.safetensors": lambda folder: (folder / WEIGHTS_FILE).unlink(),
    "has no config.json": lambda folder: (folder / CONFIG_FILE).unlink(),
    "is not JSON": lambda folder: (folder / CONFIG_FILE).write_text("{"),
    "has format 0, this version reads format 1": lambda folder: _edit(folder, format=0),
    "does not describe a pfcluster model": lambda folder: _edit(folder, library="transformers"),
    "unknown field colour": lambda folder: _edit(folder, colour=1),
    "must be distinct names": lambda folder: _edit(folder, classes=["a", "a", "b"]),
    "are not those of its config": lambda folder: _edit(folder, classes=["a", "b"]),
    "mean and std must be": lambda folder: _edit(folder, mean=0.0),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_old_and_damaged_models_are_refused(folder: Path, tmp_path: Path, reason: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    DAMAGE[reason](copy)
    with pytest.raises(InferenceError, match=reason):
        pfcluster.load(copy, device="cpu")


def test_places_without_a_model_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(InferenceError, match="without a model's config"):
        pfcluster.load(tmp_path / "plain.safetensors")
    with pytest.raises(InferenceError, match="no model no-such-folder"):
        pfcluster.load("no-such-folder")
    with pytest.raises(InferenceError, match="no model builtin:none"):
        pfcluster.load("builtin:none")
    monkeypatch.setattr(builtin_models, "builtin_folder", lambda: folder.parent)
    assert pfcluster.load(f"builtin:{folder.name}", device="cpu").classes == models.CLASSES
    with pytest.raises(InferenceError, match=f"no model builtin:none: this installation has builtin:{folder.name}"):
        pfcluster.load("builtin:none")
    with pytest.raises(InferenceError, match="torch sees 0 CUDA devices" if not torch.cuda.is_available() else "torch"):
        pfcluster.load(folder, device="cuda:99")


def test_a_missing_run_in_an_existing_folder_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mae-vit", "pf-vit"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    refused = "no model runs/pfvit: the folder runs has mae-vit, pf-vit; a model .* hub is runs/pfvit@main"
    with pytest.raises(InferenceError, match=refused):
        pfcluster.load("runs/pfvit")
    for missing in ("runs/pf-vit/seed-0", Path("runs/pf-vit/seed-0")):
        with pytest.raises(InferenceError, match=r"no model runs/pf-vit/seed-0: the folder runs/pf-vit has nothing$"):
            pfcluster.load(missing)
    for missing in ("./runs/pfvit", "runs/pfvit/", tmp_path / "runs/pfvit/seed-0"):
        with pytest.raises(InferenceError, match=r"runs has mae-vit, pf-vit$"):
            pfcluster.load(missing)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("runs/pfvit@main", "user/pfvit"):
        with pytest.raises(InferenceError, match="is not in the hub's cache, and the hub cannot be reached"):
            pfcluster.load(name)


def test_a_folder_with_other_files_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model = pfcluster.load(folder, device="cpu")
    with pytest.raises(InferenceError, match="holds other files"):
        model.save(tmp_path)
    model.save(tmp_path / "new")
    model.save(tmp_path / "new")  # replaces a model


def test_a_file_that_is_no_model_is_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.safetensors"
    words = ["export", str(folder), "--output", str(output)]
    for content in (b"notes", b"", save({"head": torch.ones(2)}, {"format": "pt"})):
        output.write_bytes(content)
        assert main(words) == 2
        assert f"--output {output} exists and is not a model of `pfcluster export`" in capsys.readouterr().err
        with pytest.raises(InferenceError, match="is not a model of `pfcluster export`, so it is not replaced"):
            pfcluster.load(folder, device="cpu").save(output)
        assert output.read_bytes() == content
    output.unlink()
    for _ in range(2):  # the second time it is a model
        assert main(words) == 0
    assert pfcluster.load(output, device="cpu").info == read_info(folder)


def test_the_hubs_client_reads_and_writes_model_folders(folder: Path, tmp_path: Path) -> None:
    """huggingface_hub's own functions on a local folder, both ways."""
    client_model = HubModel.from_pretrained(folder)
    model = pfcluster.load(folder, device="cpu")
    assert set(client_model.state_dict()) == set(load_file(folder / WEIGHTS_FILE))
    with torch.inference_mode():
        logits = client_model(model.predictor.network_input(CROPS)).numpy()
    assert np.array_equal(logits, model.predictor.logits(CROPS))
    client_model.save_pretrained(tmp_path / "saved")
    assert pfcluster.load(tmp_path / "saved", device="cpu").info == model.info
    card = huggingface_hub.ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.library_name == "pfcluster"
    _flip(tmp_path / "saved")
    with pytest.raises(InferenceError, match="checksum of its weights"):
        HubModel.from_pretrained(tmp_path / "saved")


def test_hub_ids_load_from_the_clients_cache_without_a_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model = pfcluster.load("someone/tiny", device="cpu")
    assert np.array_equal(model.predictor.logits(CROPS), pfcluster.load(folder, device="cpu").predictor.logits(CROPS))
    with pytest.raises(InferenceError, match="someone/other is not in the hub's cache"):
        pfcluster.load("someone/other")
    with pytest.raises(InferenceError, match="someone/tiny cannot be written on the hub"):
        model.push_to_hub("someone/tiny")


@pytest.mark.slow  # the client tries several times
def test_a_hub_that_refuses_connections_is_named(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, as the client reads its endpoint when it is imported."""
    code = (
        "import sys, pfcluster\n"
        "for use in (lambda: pfcluster.load(sys.argv[1]).push_to_hub('user/name', token='hf_abc'),\n"
        "            lambda: pfcluster.load('user/name@main')):\n"
        "    try:\n"
        "        use()\n"
        "    except pfcluster.inference.errors.InferenceError as error:\n"
        "        print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert "user/name cannot be written on the hub, because the hub cannot be reached: " in lines[0]
    assert "user/name is not in the hub's cache, and the hub cannot be reached: " in lines[1]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    info, net = models.write(tmp_path / "model", "vit")
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    weights["head.bias"][0] = 1e6
    with pytest.raises(InferenceError, match=r"--precision float16: values of head\.bias exceed its range"):
        with_precision(info, weights, "float16")
    weights["head.bias"][0] = float("nan")
    with pytest.raises(InferenceError, match=r"head\.bias hold values that are not finite numbers"):
        with_precision(info, weights, "float32")
    write_model(tmp_path / "nan", dataclasses.replace(info, weights_sha256=weights_sha256(weights)), weights)
    with pytest.raises(InferenceError, match=r"1 of its \d+ tensors hold values that are not finite.* head\.bias"):
        pfcluster.load(tmp_path / "nan")


def test_a_face_whose_logits_are_not_finite_has_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pfcluster.load(folder, device="cpu")
    logits = np.zeros((3, len(model.classes)), np.float32)
    logits[:2, 1] = (np.nan, np.inf)
    monkeypatch.setattr(model.predictor, "logits", lambda crops: logits)
    faces = model.predict(models.rendered(3, 48), detect=False)
    assert [face.label for face in faces] == [None, None, model.classes[0]]
    assert [face.reason for face in faces] == [NOT_FINITE, NOT_FINITE, None]


def test_a_missing_hub_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "pfcluster.inference.hub")
    with pytest.raises(InferenceError, match=r"pip install -e '\.\[hub\]'"):
        pfcluster.load("someone/tiny")


def test_configs_of_models_describe_every_size_of_a_net() -> None:
    """A new field of a config belongs into EncoderInfo, GeneratorInfo or NetworkInfo, or is named here as one that
    does not change the net at inference.
    """
    encoder = {field.name for field in dataclasses.fields(EncoderInfo)}
    generator = {field.name for field in dataclasses.fields(GeneratorInfo)}
    decoder = {f"decoder_{name}" for name in ("width", "depth", "heads")}
    training = {"architecture", "patch_gain", "drop_path", "init", "init_normalisation"}
    cnn = {field.name for field in dataclasses.fields(NetworkInfo)} - {"kind", "size", "encoder", "generator"}
    assert {field.name for field in dataclasses.fields(ModelConfig)} == encoder | decoder | training | cnn
    own = {"width", "depth", "heads", "erasure"}
    assert generator - own <= {field.name for field in dataclasses.fields(PfMagConfig)}
    net = _pf_vit(PfMagConfig())
    assert _pf_vit(PfMagConfig(erasure_start=0)) != net  # `erasure` says whether there is a start
    for field in dataclasses.fields(PfMagConfig):
        if field.name in generator | {"erasure_start"}:
            continue
        for value in _others(getattr(PfMagConfig(), field.name)):
            try:
                changed = _pf_vit(dataclasses.replace(PfMagConfig(), **{field.name: value}))
            except ValueError:  # not valid by itself
                continue
            assert changed == net, field.name


def test_sizes_of_a_convolutional_net_are_kept() -> None:
    model = ModelConfig(architecture="cnn", cnn_widths=(4, 8), cnn_convolutions=2)
    info = network_info(RunConfig(data=DataConfig(size=32), model=model))
    assert (info.kind, info.cnn_widths, info.cnn_convolutions) == ("cnn", (4, 8), 2)
    net = build_net(dataclasses.replace(models.info("cnn"), network=info))
    convolutions = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(3, 4), (4, 4), (4, 8), (8, 8)]


def _others(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    return [value + 1, value + 0.5] if isinstance(value, int | float) else []


def _pf_vit(options: PfMagConfig) -> dict[str, torch.Size]:
    from pfcluster.models import factory
    from tests import tiny

    net: nn.Module = factory.build(tiny.config("pf_mag", pf_mag=options), 3, load_init=False)["model"]
    return {name: value.shape for name, value in net.state_dict().items()}


def test_reading_and_writing_need_no_torch(folder: Path, tmp_path: Path) -> None:
    """`predict --no-detect` with a runtime of its own, in a process in which torch cannot be imported."""
    models.face_pictures(tmp_path, 2)
    code = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
import pfcluster
from pfcluster.cli import predict
from pfcluster.inference.crops import WholePhotos
from pfcluster.inference.model_info import read_info
from pfcluster.inference.prediction import PredictionOptions, check_options, run_prediction
from pfcluster.inference.sources import list_inputs

class Brightness:
    info = read_info(Path({str(folder)!r}))
    def logits(self, crops):
        return np.stack([crops.mean((1, 2, 3)), -crops.mean((1, 2, 3)), 0 * crops[:, 0, 0, 0]], 1).astype(np.float32)

options = PredictionOptions(output=Path({str(tmp_path / "out.csv")!r}))
inputs = list_inputs([{str(tmp_path)!r}])
check_options(options, inputs, Brightness.info)
counts = run_prediction(inputs.sources, Brightness(), WholePhotos(Brightness.info.preprocessing), options,
    show=print, advance=lambda counts: None)
print(counts.faces)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2"], done.stderr
    assert (tmp_path / "out.csv").read_text().count(",neutral,") == 2

"""Options for PF-MAG's ablations: what each changes, and that each trains."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pfcluster.config import ConfigError, EvaluateConfig, LossWeights, PfMagConfig
from pfcluster.config.io import from_json, to_json
from pfcluster.data.batch import patch_order
from pfcluster.distributed.process_group import World
from pfcluster.models import factory
from pfcluster.models.from_runs import load_identity_net
from pfcluster.models.generator import SelfFusion
from pfcluster.models.identity_net import FaceNet, IdentityNetError, facenet, find_weights, load_weights, resnet
from pfcluster.models.losses import adversarial, discriminator
from pfcluster.models.pf_vit import PFViT
from pfcluster.training import run
from tests.tiny import config

HERE = World(0, 1, torch.device("cpu"))


def pf_mag(**changes):
    base = config("pf_mag")
    return replace(base, pf_mag=replace(base.pf_mag, **changes))


def built(**changes) -> PFViT:
    model = factory.build(pf_mag(**changes), 8)["model"]
    assert isinstance(model, PFViT)
    return model


def faces(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_without_separator_no_poker_face_and_classifier_on_encoder():
    model = built(separator_ratio=0.0)
    views = model(faces())
    assert views.poker is views.emotion is views.identity_tokens is None
    tokens = model.encoder(faces())
    assert torch.equal(model.classify(faces()), model.classifier(tokens[:, 0]))
    assert torch.allclose(views.reconstruction, model.generator(tokens))


def test_self_fusion_does_not_depend_on_order_of_visible_patches():
    model = built(fusion="self")
    assert isinstance(model.generator.fusion, SelfFusion)
    order = patch_order(pf_mag(), slice(0, 3), "mask", 0)
    torch.testing.assert_close(model(faces(), order).reconstruction, model(faces()).reconstruction, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(faces(), order).logits, model(faces()).logits, atol=1e-5, rtol=0)


def test_multi_task_mae_generates_hidden_patches():
    model = built(fusion="self", mask_ratio=0.75)
    order = patch_order(pf_mag(), slice(0, 3), "mask", 0)
    shown = faces()
    changed = shown.clone()
    blank = changed.unfold(2, 8, 8).unfold(3, 8, 8)  # views of the patches: b 3 4 4 8 8
    for row, hidden in enumerate(order[:, model.kept :].tolist()):
        for patch in hidden:
            blank[row, :, patch // 4, patch % 4] = 0.0
    assert model.kept == 4
    assert not torch.equal(changed, shown)
    assert torch.equal(model(changed, order).poker, model(shown, order).poker)
    assert model(shown, order).poker.shape == shown.shape
    seen = changed.clone()
    first = order[0, 0].item()
    seen[0, :, first // 4 * 8 :, first % 4 * 8 :] += 0.5
    assert not torch.equal(model(seen, order).poker, model(shown, order).poker)


def test_hides_patches_only_with_mask_ratio():
    assert pf_mag(fusion="self", mask_ratio=0.5).hides_patches
    assert not pf_mag(fusion="self").hides_patches


def test_discriminator_without_emotions_depends_on_real_output_only():
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    other = torch.tensor([[9.0, -5.0, 1.0]])
    label = torch.tensor([0])
    without_emotions = {"emotions": False}
    first = discriminator(logits, logits, label, fake_class_targets="zero", **without_emotions)
    assert first == discriminator(other, other, label, fake_class_targets="zero", **without_emotions)
    assert first != discriminator(logits, logits, label, fake_class_targets="zero")
    assert adversarial(logits, logits, label, 1, **without_emotions) == adversarial(
        other, other, label, 1, **without_emotions
    )
    assert adversarial(logits, None, label, 1) < adversarial(logits, logits, label, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"separator_ratio": 0.0},
        {"separator_ratio": 0.0, "discriminator_emotions": False},
        {"fusion": "self", "mask_ratio": 0.5},
        {"weights": LossWeights(adv=0.0)},
        {"weights": LossWeights(ort=0.0), "fake_class_targets": "zero"},
    ],
)
def test_every_ablation_trains_and_is_evaluated(tmp_path, changes):
    ratios = (0.0, 0.75) if "fusion" in changes else ()
    evaluate = EvaluateConfig(n_poker_faces=16, n_probe_images=32, mask_ratios=ratios)
    result = run(replace(pf_mag(**changes), evaluate=evaluate), tmp_path)
    rows = result["poker"]["rows"]
    assert ("poker face" in rows) == ("separator_ratio" not in changes)
    tokens, images = ({"f", "f_e", "f_p"}, {"poker face"}) if "poker face" in rows else ({"f"}, set())
    assert set(result["probes"]["rows"]) == tokens | images | {"input", "reconstruction"}
    assert [entry["mask_ratio"] for entry in result["by_mask_ratio"]] == list(ratios)
    if ratios:
        assert result["by_mask_ratio"][0]["accuracy"] == result["test"]["accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "train"][-1]
    assert ("ort" in last) == ("poker face" in rows)


def test_identity_net_can_be_a_run(tmp_path):
    base = config("finetune")
    identity_run = replace(base, data=replace(base.data, target="identity"), augment=replace(base.augment, flip=0.0))
    result = run(identity_run, tmp_path / "identities")
    assert len(result["dataset"]["classes"]) == 12
    assert "test" not in result
    folder = str(tmp_path / "identities")
    values = pf_mag(identity_net="run", identity_net_weights=folder)
    phi = load_identity_net(values, HERE)
    assert phi is not None
    assert phi(faces()).shape == (3, 17 * 32)
    assert not any(parameter.requires_grad for parameter in phi.parameters())
    evaluated = replace(values, evaluate=EvaluateConfig(n_poker_faces=40, identity_net=folder, fid=folder))
    rows = run(evaluated, tmp_path / "run")["poker"]["rows"]
    assert rows["input"]["identity_cosine"] == pytest.approx(1.0)
    assert -1 <= rows["poker face"]["identity_cosine"] < 1
    assert rows["input"]["fid"] == pytest.approx(0.0, abs=1e-3)  # an identical copy scores best
    assert rows["poker face"]["fid"] > rows["input"]["fid"]
    assert rows["truth"]["fid_neutral"] is not None


def test_identity_metric_needs_an_identity_classifier(tmp_path):
    run(config("finetune"), tmp_path / "emotions")
    values = replace(config("pf_mag"), evaluate=EvaluateConfig(identity_net=str(tmp_path / "emotions")))
    with pytest.raises(ConfigError, match=r"evaluate\.identity_net: .*classifies emotions, not identities"):
        run(values, tmp_path / "run")


@pytest.mark.slow
def test_library_nets_load_their_weight_files(tmp_path):
    for kind, make in (("facenet", facenet), ("resnet", resnet)):
        net = make("feature_map")
        file = tmp_path / f"{kind}.pt"
        torch.save({name: value + 0.01 for name, value in net.net.state_dict().items()}, file)
        before = next(net.parameters()).clone()
        load_weights(net, find_weights(kind, str(file)))
        torch.testing.assert_close(next(net.parameters()), before + 0.01)
    shown = faces(1)
    assert isinstance(net, torch.nn.Module)
    assert net(shown).shape == (1, 2048 * 7 * 7)
    assert resnet("embedding")(shown).shape == (1, 2048)
    with pytest.raises(IdentityNetError, match="holds no weights of InceptionResnetV1"):
        load_weights(facenet("embedding"), tmp_path / "resnet.pt")
    with pytest.raises(IdentityNetError, match=r"no file .*nowhere\.pt"):
        find_weights("resnet", str(tmp_path / "nowhere.pt"))
    assert isinstance(facenet("embedding"), FaceNet)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mask_ratio": 0.5}, r'pf_mag\.fusion must be "self" with pf_mag\.mask_ratio'),
        ({"separator_ratio": 0.0, "identity_net": "facenet"}, r"without a separator there is no L_ort"),
        ({"identity_net": "run"}, r'not be "run" without pf_mag\.identity_net_weights'),
        ({"identity_net_weights": "x.pt"}, r"where pf_mag\.identity_net_weights is given"),
    ],
)
def test_contradicting_options_are_rejected(changes, why):
    with pytest.raises(ConfigError, match=why):
        PfMagConfig(**changes)


def test_mask_ratios_at_test_time_need_self_fusion():
    with pytest.raises(ConfigError, match=r'evaluate\.mask_ratios must be of a run with pf_mag\.fusion "self"'):
        replace(config("pf_mag"), evaluate=EvaluateConfig(mask_ratios=(0.5,)))
    several = replace(pf_mag(fusion="self"), evaluate=EvaluateConfig(mask_ratios=(0.0, 0.3, 0.5)))
    assert from_json(to_json(several)) == several

"""Diagnostics of adversarial training: the values are right, and measuring does not change training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config import AugmentConfig, EngineConfig, LossWeights, OptimConfig, RunConfig
from pfcluster.data.batch import Batch, make_micro_batches
from pfcluster.data.dataset import open_dataset
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World
from pfcluster.engine.ddp import DdpEngine
from pfcluster.evaluate.tracked_faces import TrackedFaces
from pfcluster.models import factory, losses
from pfcluster.training import run
from pfcluster.training.gan_diagnostics import discriminator_accuracies, mask_statistics
from pfcluster.training.pf_mag import PfMagObjective
from pfcluster.training.pf_mag_terms import loss_settings
from tests.tiny import config, final_weights

SINGLE = World(0, 1, torch.device("cpu"))


def test_discriminator_accuracies():
    labels = torch.tensor([1, 0])
    real = torch.tensor([[-1.0, 2.0, 3.0], [0.0, 1.0, 0.5]])  # both classified as real, the second emotion is wrong
    rec = torch.tensor([[1.0, 2.0, -3.0], [5.0, 1.0, -0.5]])  # both classified as generated, both emotions right
    poker = torch.tensor([[1.0, 2.0, 1.0], [5.0, 1.0, -0.5]])  # one classified as generated, one as neutral (class 0)
    rates = discriminator_accuracies(torch.cat([real, rec, poker]), labels, 0, emotions=True)
    assert {name: value.item() for name, value in rates.items()} == {
        "disc_real": 1.0,
        "disc_fake_rec": 1.0,
        "disc_fake_poker": 0.5,
        "disc_emotion_real": 0.5,
        "disc_emotion_rec": 1.0,
        "disc_neutral_poker": 0.5,
    }
    without = discriminator_accuracies(torch.cat([real, rec]), labels, 0, emotions=False)
    assert sorted(without) == ["disc_fake_rec", "disc_real"]


def test_mask_statistics():
    mask = torch.tensor([[[0.0, 1.0], [0.5, 0.7], [0.5, 0.96]]])
    statistics = {name: value.item() for name, value in mask_statistics(mask).items()}
    assert statistics == pytest.approx({
        "mask_class_mean": 0.5, "mask_class_std": 0.5, "mask_class_saturated": 1.0,
        "mask_patch_mean": 0.665, "mask_patch_std": (0.1 + 0.23) / 2, "mask_patch_saturated": 0.25,
    })  # fmt: skip


def objective(values: RunConfig) -> PfMagObjective:
    modules = factory.build(values, 4)
    engines = {
        name: DdpEngine(modules[name], OptimConfig(), EngineConfig(), SINGLE) for name in ("model", "discriminator")
    }
    settings = loss_settings(values.pf_mag, 0, None, 0.0, None)
    return PfMagObjective(engines["model"], engines["discriminator"], settings, values.pf_mag, SINGLE)


def test_gradient_norms_equal_those_of_separate_terms():
    base = config("pf_mag")
    weights = LossWeights(cls=1.0, adv=0.3, rec=2.0, ort=0.5)
    pf_mag = replace(base.pf_mag, weights=weights, loss_balancing="fixed", warmup_steps=0, grad_norms_every=1)
    trained = objective(replace(base, pf_mag=pf_mag))
    images, labels = torch.rand(8, 3, 32, 32) * 2 - 1, torch.tensor([0, 1, 2, 3] * 2)
    model, discriminator = trained.engines["model"].module, trained.engines["discriminator"].module
    metrics = trained.step([Batch(images, labels)], 0)
    engines = trained.engines.values()
    assert all(parameter.requires_grad for engine in engines for parameter in engine.module.parameters())
    assert all(parameter.grad is None for engine in engines for parameter in engine.module.parameters())

    twin, delta = factory.build(base, 4)["model"], factory.build(base, 4)["discriminator"]
    twin.load_state_dict(model.state_dict())
    delta.load_state_dict(discriminator.state_dict())
    emotion, face, _ = (each.detach().requires_grad_() for each in twin.separator(twin.encoder(images)))
    rec, poker = twin.generator((emotion + face).detach()).detach().requires_grad_(), twin.generator(face)
    terms = {
        "cls": losses.classification(twin.classifier(emotion[:, 0]), labels, None),
        "adv": losses.adversarial(delta(rec), delta(poker), labels, 0),
        "rec": losses.reconstruction(images, rec, poker, labels, 0),
        "ort": losses.orthogonality(emotion, face),
    }
    for place, tensor in (("emotion", emotion), ("identity", face), ("rec", rec), ("poker", poker)):
        for name, term in terms.items():
            (gradient,) = torch.autograd.grad(term, tensor, retain_graph=True, allow_unused=True)
            if f"grad_{place}_{name}" in metrics:
                norm = getattr(weights, name) * len(labels) * gradient.flatten(1).norm(dim=1).mean()
                assert metrics[f"grad_{place}_{name}"].item() == pytest.approx(norm.item(), rel=1e-4), (place, name)
            else:
                assert gradient is None, (place, name)


def test_gradient_norms_are_those_of_the_augmented_images_that_the_discriminator_sees():
    base = config("pf_mag")
    pf_mag = replace(base.pf_mag, loss_balancing="fixed", warmup_steps=0, grad_norms_every=1, generate_every=2)
    values = replace(base, pf_mag=pf_mag, batch_size=8, discriminator_augment=AugmentConfig(erasing=1.0))
    trained = objective(values)
    raw = RawBatch(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 3] * 2))
    (batch,) = make_micro_batches(raw, values, 0, SINGLE)
    metrics = trained.step([batch], 0)
    twins = factory.build(values, 4)
    for name, engine in trained.engines.items():
        twins[name].load_state_dict(engine.module.state_dict())
    delta, generated = twins["discriminator"], batch.every(2)
    rec = twins["model"](generated.images, emotion_view=False).reconstruction.detach().requires_grad_()
    logits = delta(generated.augment_for_discriminator(rec, -1))
    term = losses.adversarial(logits, logits.detach(), generated.labels, 0)
    (gradient,) = torch.autograd.grad(term, rec)
    norm = pf_mag.weights.adv * len(rec) * gradient.flatten(1).norm(dim=1).mean()
    assert metrics["grad_rec_adv"].item() == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("changes", [{"separator_ratio": 0.0}, {"fusion": "self", "mask_ratio": 0.5}])
def test_gradient_norms_of_ablations(changes):
    base = config("pf_mag")
    values = replace(base, pf_mag=replace(base.pf_mag, warmup_steps=1, grad_norms_every=1, **changes))
    trained = objective(values)
    order = torch.stack([torch.randperm(16) for _ in range(6)]) if values.hides_patches else None
    batch = Batch(torch.rand(6, 3, 32, 32), torch.arange(6) % 4, order)
    warmup, adversarial = trained.step([batch], 0), trained.step([batch], 1)
    assert warmup["grad_rec_rec"] > 0
    assert "grad_rec_adv" not in warmup
    assert adversarial["grad_rec_adv"] > 0
    assert (
        ("mask_class_mean" in adversarial) == ("grad_poker_adv" in adversarial) == (values.pf_mag.separator_ratio > 0)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run without diagnostics and with diagnostics at every second step."""
    root, base = tmp_path_factory.mktemp("diagnostics"), config("pf_mag")
    for every in (0, 2):
        evaluate = replace(base.evaluate, grid_every=every / 2)
        run(replace(base, pf_mag=replace(base.pf_mag, grad_norms_every=every), evaluate=evaluate), root / str(every))
    return {every: root / str(every) for every in (0, 2)}


def test_diagnostics_do_not_change_weights(runs):
    without, measured = (final_weights(folder) for folder in runs.values())
    assert without.keys() == measured.keys()
    assert all(torch.equal(value, measured[name]) for name, value in without.items())


def test_diagnostics_are_in_the_run_folder(runs):
    lines = [json.loads(line) for line in (runs[2] / "metrics.jsonl").read_text().splitlines()]
    train = {line["step"]: line for line in lines if line["split"] == "train"}
    assert [step for step, line in train.items() if "grad_rec_rec" in line] == [2, 4, 6, 8, 10, 12]
    assert all(0 <= line[name] <= 1 for line in train.values() for name in ("disc_real", "mask_patch_saturated"))
    validation = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validation] == [6, 12]
    assert all(line["copy_mse_inside"] > line["rec_mse_outside"] > 0 for line in validation)
    assert [file.name for file in sorted((runs[2] / "pictures/steps").iterdir())] == ["00000006.jpg", "00000012.jpg"]
    assert not (runs[0] / "pictures/steps").exists()


class Copy(torch.nn.Module):
    """Returns its input as reconstruction and as poker face."""

    def forward(self, images, emotion_view=True):
        return type("Output", (), {"reconstruction": images, "poker": images})()


def test_region_mse_of_a_copy():
    values = config("pf_mag")
    mse = TrackedFaces(values, open_dataset(values.data, 0).validation, SINGLE).region_mse(Copy())
    assert mse["rec_mse_inside"] == mse["rec_mse_outside"] == 0
    assert mse["poker_mse_inside"] == mse["copy_mse_inside"] > 0.0625
    assert mse["poker_mse_inside"] > 10 * mse["poker_mse_outside"]

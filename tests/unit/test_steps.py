"""Training steps have the gradients of plain implementations, and reject non-finite gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pfcluster.config import EngineConfig, LossWeights, ModelConfig, OptimConfig, RunConfig, presets
from pfcluster.data.batch import Batch
from pfcluster.engine.base import EngineError, NonFiniteError
from pfcluster.engine.ddp import DdpEngine
from pfcluster.engine.factory import build_engine
from pfcluster.models import factory, losses
from pfcluster.training.finetune import finetune_step
from pfcluster.training.loss_balancing import LossBalancer
from pfcluster.training.pf_mag import _generate, _update_discriminator, pf_mag_step
from pfcluster.training.pf_mag_terms import LossSettings
from tests.reference.plain_steps import plain_pf_mag_step
from tests.stabilised import CLASSES, SINGLE, engines

TINY = ModelConfig(patch=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2)
MOVING = OptimConfig(algorithm="adam", lr=1e-2, weight_decay=0.0, schedule="constant")
STILL = OptimConfig(algorithm="adam", lr=1e-12, weight_decay=0.0, schedule="constant")
"""A rate at which weights do not change, so that both updates have the gradients of the initial weights."""


def config(**changes: object) -> RunConfig:
    base = presets.recipe("mini")["pf-vit"]
    return replace(base, model=TINY, data=replace(base.data, size=32), **changes)  # type: ignore[arg-type]


def batch(images: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        torch.rand(images, 3, 32, 32, generator=generator) * 2 - 1,
        torch.randint(0, CLASSES, (images,), generator=generator),
    )


def gradients(engine: DdpEngine) -> dict[str, torch.Tensor]:
    """The first step's gradients, from Adam's first moment."""
    scale = 1 - STILL.betas[0]
    state = engine.tensor_shards("net")
    return {
        name.removeprefix("net_optimizer/").removesuffix("/exp_avg"): shard.values.view(shard.shape) / scale
        for name, shard in state.items()
        if name.endswith("/exp_avg")
    }


class FixedFeatures(torch.nn.Module):
    """In place of φ: features of the image without parameters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, ::4, ::4].flatten(1).tanh()


@pytest.mark.parametrize("identity_net", [None, FixedFeatures()])
def test_shared_forward_has_gradients_of_plain_gan_loop(identity_net):
    settings = LossSettings(0, None, 0.0, "ignore", identity_net)
    weights = LossWeights(cls=1.0, adv=0.3, rec=2.0, ort=0.5)
    model, discriminator = engines(config(), STILL)
    images = batch()
    pf_mag_step(
        [images], model, discriminator, settings, LossBalancer(weights, False, 1, 1.0, 1.0, SINGLE), warmup=False
    )
    actual = gradients(model), gradients(discriminator)

    modules = factory.build(config(), CLASSES)
    pf_vit, delta = modules["model"], modules["discriminator"]
    of_discriminator: dict[str, torch.Tensor] = {}

    def update_discriminator() -> None:
        of_discriminator.update({name: value.grad.clone() for name, value in delta.named_parameters()})
        delta.zero_grad()

    plain_pf_mag_step(pf_vit, delta, images, settings, weights, update_discriminator)
    of_model = {name: value.grad for name, value in pf_vit.named_parameters() if value.grad is not None}
    for computed, plain in zip(actual, (of_model, of_discriminator), strict=True):
        assert computed.keys() == plain.keys()
        for name, value in plain.items():
            assert torch.allclose(computed[name], value, rtol=1e-3, atol=1e-7), name


def test_pf_vit_update_does_not_change_discriminator():
    """After a step the discriminator has the weights of its own update alone."""
    settings = LossSettings(0, None, 0.0, "ignore", None)
    model, discriminator = engines(config(), MOVING)
    outputs = [_generate(model, batch(), settings, warmup=False)]
    _update_discriminator([batch()], outputs, discriminator, settings, with_r1=False)
    expected = discriminator.module.state_dict()

    model, discriminator = engines(config(), MOVING)
    initial = {name: value.clone() for name, value in discriminator.module.state_dict().items()}
    balancer = LossBalancer(LossWeights(), False, 1, 1.0, 1.0, SINGLE)
    pf_mag_step([batch()], model, discriminator, settings, balancer, warmup=False)
    assert discriminator.updates == model.updates == 1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator.module.parameters())
    weights = discriminator.module.state_dict()
    assert any(not torch.equal(value, initial[name]) for name, value in weights.items())
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("automatic", [False, True])
def test_accumulation_equals_whole_batch(automatic):
    settings = LossSettings(0, None, 0.0, "ignore", None)
    results = []
    for parts in (1, 2):
        model, discriminator = engines(config(), STILL)
        whole = batch(8)
        micro_batches = [
            Batch(*pair) for pair in zip(whole.images.chunk(parts), whole.labels.chunk(parts), strict=True)
        ]
        balancer = LossBalancer(LossWeights(), automatic, 1, 1.0, 1.0, SINGLE)
        metrics = pf_mag_step(micro_batches, model, discriminator, settings, balancer, warmup=False).metrics
        results.append((gradients(model), gradients(discriminator), metrics))
    for first, second in zip(results[0][:2], results[1][:2], strict=True):
        for name, value in first.items():
            assert torch.allclose(second[name], value, rtol=1e-3, atol=1e-6), name
    for name in ("loss", "disc_loss", "rec", "adv", "cls", "ort", "grad_norm"):
        assert results[1][2][name].item() == pytest.approx(results[0][2][name].item(), rel=1e-4), name


def test_warmup_has_no_adversarial_terms():
    model, discriminator = engines(config(), STILL)
    settings = LossSettings(0, None, 0.0, "ignore", None)
    balancer = LossBalancer(LossWeights(), True, 5, 10.0, 0.3, SINGLE)
    metrics = pf_mag_step([batch()], model, discriminator, settings, balancer, warmup=True).metrics
    assert "adv" not in metrics
    assert "ort" not in metrics
    assert metrics["loss"].item() == pytest.approx(10 * metrics["rec"].item() + 0.3 * metrics["cls"].item(), rel=1e-5)
    assert balancer.steps_measured == 0
    assert metrics["disc_loss"].item() > 0


def test_automatic_balancing_equalises_terms_then_stays_constant():
    balancer = LossBalancer(LossWeights(cls=1, adv=1, rec=1, ort=1), True, 2, 1.0, 1.0, SINGLE)
    terms = {name: torch.tensor(value) for name, value in {"cls": 2.0, "adv": 0.5, "rec": 8.0, "ort": 0.1}.items()}
    balancer.observe(terms)
    assert balancer.total(terms, warmup=False).item() == pytest.approx(4.0)
    doubled = {name: 2 * value for name, value in terms.items()}
    balancer.observe(doubled)
    assert not balancer.measuring
    assert balancer.total(doubled, warmup=False).item() == pytest.approx(4 * 2 / 1.5)
    settled = balancer.weight("rec")
    assert balancer.total({name: 100 * value for name, value in terms.items()}, warmup=False).item() > 100
    assert balancer.weight("rec") == settled == pytest.approx(1 / 12.0)


def test_fixed_weights_are_not_balanced():
    balancer = LossBalancer(LossWeights(cls=1, adv=2, rec=3, ort=4), False, 2, 1.0, 1.0, SINGLE)
    terms = {name: torch.tensor(1.0) for name in ("cls", "adv", "rec", "ort")}
    assert balancer.total(terms, warmup=False).item() == 10
    assert balancer.steps_measured == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_does_not_change_weights(value):
    run = replace(config(), objective="finetune")
    engine = DdpEngine(factory.build(run, CLASSES)["model"], OptimConfig(lr=0.1), EngineConfig(), SINGLE)
    before = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    images = batch()
    engine.backward(engine(images.images, sync=False).sum())
    engine.backward(torch.tensor(value) + 0 * engine(images.images).sum())
    with pytest.raises(NonFiniteError, match="norm is nan"):
        engine.step()
    assert engine.updates == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.module.state_dict().items())
    assert all(parameter.grad is None for parameter in engine.module.parameters())


def test_clipping_bounds_gradients_and_reports_the_unclipped_norm():
    run = replace(config(), objective="finetune")
    norms, moments = [], []
    for clip in (0.0, 0.01):
        optim = replace(STILL, clip_norm=clip)
        engine = DdpEngine(factory.build(run, CLASSES)["model"], optim, EngineConfig(), SINGLE)
        norms.append(finetune_step([batch()], engine, class_weights=None, label_smoothing=0.0)["grad_norm"].item())
        moments.append(torch.stack([value.norm() for value in gradients(engine).values()]).norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert moments[0] == pytest.approx(norms[0], rel=1e-4)
    assert moments[1] == pytest.approx(0.01, rel=1e-3)


def test_bf16_autocast_keeps_fp32_weights_and_is_close_to_fp32():
    settings = LossSettings(0, None, 0.0, "ignore", FixedFeatures())
    metrics = []
    for precision in ("fp32", "bf16"):
        modules = factory.build(config(), CLASSES)
        options = EngineConfig(precision=precision)  # type: ignore[arg-type]
        model, discriminator = (
            DdpEngine(modules[name], OptimConfig(), options, SINGLE) for name in ("model", "discriminator")
        )
        balancer = LossBalancer(LossWeights(), True, 1, 1.0, 1.0, SINGLE)
        metrics.append(pf_mag_step([batch()], model, discriminator, settings, balancer, warmup=False).metrics)
        assert all(parameter.dtype == torch.float32 for module in modules.values() for parameter in module.parameters())
    fp32, bf16 = metrics
    for name in ("disc_loss", "cls", "adv", "rec"):
        assert fp32[name] != bf16[name]
        assert bf16[name].item() == pytest.approx(fp32[name].item(), rel=0.03), name  # bf16 has 8 bits of precision


def test_r1_adds_the_gradient_penalty_to_the_discriminator_loss():
    """Loss and gradients equal those computed on plain modules."""
    weight = 0.7
    run = replace(config(), pf_mag=replace(config().pf_mag, r1=weight))
    modules = factory.build(run, CLASSES)
    model = build_engine("ddp", modules["model"], STILL, EngineConfig(), SINGLE)
    discriminator = build_engine("ddp", modules["discriminator"], STILL, EngineConfig(), SINGLE, double_backward=True)
    settings = LossSettings(0, None, 0.0, "ignore", None, r1=weight)
    balancer = LossBalancer(LossWeights(), False, 1, 1.0, 1.0, SINGLE)
    metrics = pf_mag_step([batch()], model, discriminator, settings, balancer, warmup=False).metrics

    plain = factory.build(run, CLASSES)
    images = batch().images.requires_grad_(True)
    with torch.no_grad():
        output = plain["model"](images, emotion_view=False)
    with sdpa_kernel(SDPBackend.MATH):
        logits = plain["discriminator"](torch.cat([images, output.reconstruction, output.poker]))
    real, fake = logits[:6], logits[6:]
    (gradient,) = torch.autograd.grad(real[:, -1].sum(), images, create_graph=True)
    loss = losses.discriminator(real, fake, batch().labels) + weight / 2 * gradient.square().flatten(1).sum(1).mean()
    loss.backward()
    assert metrics["disc_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in plain["discriminator"].named_parameters():
        assert torch.allclose(
            gradients(discriminator)[name], parameter.grad.flatten().view_as(parameter), rtol=1e-3, atol=1e-7
        )


def test_input_gradient_needs_double_backward():
    modules = factory.build(config(), CLASSES)
    discriminator = build_engine("ddp", modules["discriminator"], STILL, EngineConfig(), SINGLE)
    images = batch().images.requires_grad_(True)
    with pytest.raises(EngineError, match="needs double_backward=True"):
        discriminator.input_gradient(discriminator(images).sum(), images)


def test_ema_follows_the_weights():
    run = replace(config(), objective="finetune")
    engine = DdpEngine(factory.build(run, CLASSES)["model"], OptimConfig(lr=0.1, ema=0.5), EngineConfig(), SINGLE)
    average = None
    for _ in range(3):
        finetune_step([batch()], engine, class_weights=None, label_smoothing=0.0)
        now = engine.module.head.weight.detach().clone()
        average = now if average is None else 0.5 * average + 0.5 * now
    assert torch.allclose(engine.model_state(averaged=True)["head.weight"], average)
    assert torch.equal(engine.model_state()["head.weight"], now)
    assert not torch.allclose(average, now)

"""The steps take the plain step's gradients, and refuse what is not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pfcluster.config import EngineConfig, LossWeights, ModelConfig, OptimConfig, RunConfig, presets
from pfcluster.data.batch import Batch
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import EngineError, NonFiniteError
from pfcluster.engine.ddp import DdpEngine
from pfcluster.engine.factory import build_engine
from pfcluster.models import factory, losses
from pfcluster.training.finetune import finetune_step
from pfcluster.training.loss_balancing import LossBalancer
from pfcluster.training.pf_mag import LossSettings, pf_mag_step
from tests.reference.plain_steps import plain_pf_mag_step

ALONE = World(0, 1, torch.device("cpu"))
CLASSES = 4
TINY = ModelConfig(patch=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2)
STILL = OptimConfig(algorithm="adam", lr=1e-12, weight_decay=0.0, schedule="constant")
"""A rate at which weights do not move, so that gradients of both turns are those of the start."""


def config(**changes: object) -> RunConfig:
    base = presets.recipe("mini")["pf-vit"]
    return replace(base, model=TINY, data=replace(base.data, size=32), **changes)  # type: ignore[arg-type]


def engines(run: RunConfig, optim: OptimConfig) -> tuple[DdpEngine, DdpEngine]:
    modules = factory.build(run, CLASSES)
    model, discriminator = (
        DdpEngine(modules[name], optim, EngineConfig(), ALONE) for name in ("model", "discriminator")
    )
    return model, discriminator


def batch(images: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        torch.rand(images, 3, 32, 32, generator=generator) * 2 - 1,
        torch.randint(0, CLASSES, (images,), generator=generator),
    )


def gradients(engine: DdpEngine) -> dict[str, torch.Tensor]:
    """The first step's gradients, from Adam's first moment."""
    scale = 1 - STILL.betas[0]
    state = engine.tensor_shards("own")
    return {
        name.removeprefix("own_optimizer/").removesuffix("/exp_avg"): piece.values.view(piece.shape) / scale
        for name, piece in state.items()
        if name.endswith("/exp_avg")
    }


class FrozenColours(torch.nn.Module):
    """Stands where φ stands: features that depend on the image and train nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, ::4, ::4].flatten(1).tanh()


@pytest.mark.parametrize("identity_net", [None, FrozenColours()])
def test_the_shared_forward_takes_the_gradients_of_the_plain_gan_loop(identity_net):
    settings = LossSettings(0, None, 0.0, "ignore", identity_net)
    weights = LossWeights(cls=1.0, adv=0.3, rec=2.0, ort=0.5)
    model, discriminator = engines(config(), STILL)
    images = batch()
    pf_mag_step([images], model, discriminator, settings, LossBalancer(weights, False, 1, 1.0, 1.0, ALONE), warmup=False)
    ours = gradients(model), gradients(discriminator)

    modules = factory.build(config(), CLASSES)
    pf_vit, delta = modules["model"], modules["discriminator"]
    of_discriminator: dict[str, torch.Tensor] = {}

    def discriminator_turn() -> None:
        of_discriminator.update({name: value.grad.clone() for name, value in delta.named_parameters()})
        delta.zero_grad()

    plain_pf_mag_step(pf_vit, delta, images, settings, weights, discriminator_turn)
    of_model = {name: value.grad for name, value in pf_vit.named_parameters() if value.grad is not None}
    for mine, plain in zip(ours, (of_model, of_discriminator), strict=True):
        assert mine.keys() == plain.keys()
        for name, value in plain.items():
            assert torch.allclose(mine[name], value, rtol=1e-3, atol=1e-7), name


def test_the_discriminator_is_untouched_by_pf_vits_turn():
    model, discriminator = engines(config(), STILL)
    weights = {name: value.clone() for name, value in discriminator.module.state_dict().items()}
    settings = LossSettings(0, None, 0.0, "ignore", None)
    pf_mag_step(
        [batch()], model, discriminator, settings, LossBalancer(LossWeights(), False, 1, 1.0, 1.0, ALONE), warmup=False
    )
    assert discriminator.updates == model.updates == 1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator.module.parameters())
    for name, value in discriminator.module.state_dict().items():
        assert torch.allclose(value, weights[name], atol=1e-9), name


@pytest.mark.parametrize("automatic", [False, True])
def test_accumulation_takes_the_step_of_the_whole_batch(automatic):
    settings = LossSettings(0, None, 0.0, "ignore", None)
    found = []
    for parts in (1, 2):
        model, discriminator = engines(config(), STILL)
        whole = batch(8)
        tensor_shards = [
            Batch(*pair) for pair in zip(whole.images.chunk(parts), whole.labels.chunk(parts), strict=True)
        ]
        balance = LossBalancer(LossWeights(), automatic, 1, 1.0, 1.0, ALONE)
        metrics = pf_mag_step(tensor_shards, model, discriminator, settings, balance, warmup=False)
        found.append((gradients(model), gradients(discriminator), metrics))
    for first, second in zip(found[0][:2], found[1][:2], strict=True):
        for name, value in first.items():
            assert torch.allclose(second[name], value, rtol=1e-3, atol=1e-6), name
    for name in ("loss", "discriminator", "rec", "adv", "cls", "ort", "grad_norm"):
        assert found[1][2][name].item() == pytest.approx(found[0][2][name].item(), rel=1e-4), name


def test_the_warm_up_trains_no_adversary_into_pf_vit():
    model, discriminator = engines(config(), STILL)
    settings = LossSettings(0, None, 0.0, "ignore", None)
    balance = LossBalancer(LossWeights(), True, 5, 10.0, 0.3, ALONE)
    metrics = pf_mag_step([batch()], model, discriminator, settings, balance, warmup=True)
    assert "adv" not in metrics
    assert "ort" not in metrics
    assert metrics["loss"].item() == pytest.approx(10 * metrics["rec"].item() + 0.3 * metrics["cls"].item(), rel=1e-5)
    assert balance.steps_measured == 0
    assert metrics["discriminator"].item() > 0


def test_the_automatic_balance_makes_terms_equal_then_stands_still():
    balance = LossBalancer(LossWeights(cls=1, adv=1, rec=1, ort=1), True, 2, 1.0, 1.0, ALONE)
    terms = {name: torch.tensor(value) for name, value in {"cls": 2.0, "adv": 0.5, "rec": 8.0, "ort": 0.1}.items()}
    balance.observe(terms)
    assert balance.total(terms, warmup=False).item() == pytest.approx(4.0)
    doubled = {name: 2 * value for name, value in terms.items()}
    balance.observe(doubled)
    assert not balance.measuring
    assert balance.total(doubled, warmup=False).item() == pytest.approx(4 * 2 / 1.5)
    settled = balance.weight("rec")
    assert balance.total({name: 100 * value for name, value in terms.items()}, warmup=False).item() > 100
    assert balance.weight("rec") == settled == pytest.approx(1 / 12.0)


def test_fixed_weights_are_taken_as_they_are():
    balance = LossBalancer(LossWeights(cls=1, adv=2, rec=3, ort=4), False, 2, 1.0, 1.0, ALONE)
    terms = {name: torch.tensor(1.0) for name in ("cls", "adv", "rec", "ort")}
    assert balance.total(terms, warmup=False).item() == 10
    assert balance.steps_measured == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(value):
    run = replace(config(), objective="finetune")
    engine = DdpEngine(factory.build(run, CLASSES)["model"], OptimConfig(lr=0.1), EngineConfig(), ALONE)
    before = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    images = batch()
    engine.backward(engine(images.images, sync=False).sum())
    engine.backward(torch.tensor(value) + 0 * engine(images.images).sum())
    with pytest.raises(NonFiniteError, match="norm is nan"):
        engine.step()
    assert engine.updates == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.module.state_dict().items())
    assert all(parameter.grad is None for parameter in engine.module.parameters())


def test_clipping_bounds_the_step_and_reports_the_norm_before_it():
    run = replace(config(), objective="finetune")
    norms, moments = [], []
    for clip in (0.0, 0.01):
        optim = replace(STILL, clip_norm=clip)
        engine = DdpEngine(factory.build(run, CLASSES)["model"], optim, EngineConfig(), ALONE)
        norms.append(finetune_step([batch()], engine, class_weights=None, label_smoothing=0.0)["grad_norm"].item())
        moments.append(torch.stack([value.norm() for value in gradients(engine).values()]).norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert moments[0] == pytest.approx(norms[0], rel=1e-4)
    assert moments[1] == pytest.approx(0.01, rel=1e-3)


def test_bf16_autocast_keeps_weights_in_fp32_and_comes_near_fp32():
    settings = LossSettings(0, None, 0.0, "ignore", FrozenColours())
    found = []
    for precision in ("fp32", "bf16"):
        modules = factory.build(config(), CLASSES)
        options = EngineConfig(precision=precision)  # type: ignore[arg-type]
        model, discriminator = (
            DdpEngine(modules[name], OptimConfig(), options, ALONE) for name in ("model", "discriminator")
        )
        balance = LossBalancer(LossWeights(), True, 1, 1.0, 1.0, ALONE)
        found.append(pf_mag_step([batch()], model, discriminator, settings, balance, warmup=False))
        assert all(parameter.dtype == torch.float32 for module in modules.values() for parameter in module.parameters())
    for name in ("discriminator", "cls", "adv", "rec"):
        assert found[0][name] != found[1][name]
        assert found[1][name].item() == pytest.approx(found[0][name].item(), rel=0.03), name


def test_r1_adds_the_slope_of_the_real_output_to_the_critics_loss():
    """Against the same computed by hand on plain modules, with its gradients."""
    weight = 0.7
    run = replace(config(), pf_mag=replace(config().pf_mag, r1=weight))
    modules = factory.build(run, CLASSES)
    model = build_engine("ddp", modules["model"], STILL, EngineConfig(), ALONE)
    discriminator = build_engine("ddp", modules["discriminator"], STILL, EngineConfig(), ALONE, double_backward=True)
    settings = LossSettings(0, None, 0.0, "ignore", None, weight)
    balance = LossBalancer(LossWeights(), False, 1, 1.0, 1.0, ALONE)
    found = pf_mag_step([batch()], model, discriminator, settings, balance, warmup=False)

    plain = factory.build(run, CLASSES)
    images = batch().images.requires_grad_(True)
    with torch.no_grad():
        views = plain["model"](images, emotion_view=False)
    with sdpa_kernel(SDPBackend.MATH):
        logits = plain["discriminator"](torch.cat([images, views.reconstruction, views.poker]))
    real, fake = logits[:6], logits[6:]
    (slope,) = torch.autograd.grad(real[:, -1].sum(), images, create_graph=True)
    loss = losses.discriminator(real, fake, batch().labels) + weight / 2 * slope.square().flatten(1).sum(1).mean()
    loss.backward()
    assert found["discriminator"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in plain["discriminator"].named_parameters():
        assert torch.allclose(
            gradients(discriminator)[name], parameter.grad.flatten().view_as(parameter), rtol=1e-3, atol=1e-7
        )


def test_an_engine_that_was_not_built_for_it_has_no_second_derivative():
    modules = factory.build(config(), CLASSES)
    discriminator = build_engine("ddp", modules["discriminator"], STILL, EngineConfig(), ALONE)
    images = batch().images.requires_grad_(True)
    with pytest.raises(EngineError, match="needs double_backward=True"):
        discriminator.input_gradient(discriminator(images).sum(), images)


def test_the_average_of_the_weights_follows_them():
    run = replace(config(), objective="finetune")
    engine = DdpEngine(factory.build(run, CLASSES)["model"], OptimConfig(lr=0.1, ema=0.5), EngineConfig(), ALONE)
    average = None
    for _ in range(3):
        finetune_step([batch()], engine, class_weights=None, label_smoothing=0.0)
        now = engine.module.head.weight.detach().clone()
        average = now if average is None else 0.5 * average + 0.5 * now
    assert torch.allclose(engine.model_state(averaged=True)["head.weight"], average)
    assert torch.equal(engine.model_state()["head.weight"], now)
    assert not torch.allclose(average, now)

"""Options that stabilise PF-MAG (docs/guides/pf-mag.md): what each does, and that it does nothing when off."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pfcluster.checkpoint import store
from pfcluster.config import (
    AugmentConfig,
    ConfigError,
    EngineConfig,
    LossWeights,
    OptimConfig,
    PfMagConfig,
    RunConfig,
)
from pfcluster.data.batch import make_micro_batches
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World
from pfcluster.engine.ddp import DdpEngine
from pfcluster.engine.optimizer import Plateau, set_learning_rates
from pfcluster.models import factory, losses
from pfcluster.models.discriminator import EmotionAdversary
from pfcluster.models.pf_vit import RelativePositionBias
from pfcluster.models.pretrained import WeightsError
from pfcluster.training import parity, run
from pfcluster.training.factory import build_engines, build_objective
from pfcluster.training.loss_balancing import LossBalancer, adv_ramp
from pfcluster.training.pf_mag import LossSettings, discriminator_terms, loss_settings, pf_mag_step, pf_vit_terms
from tests import tiny

SINGLE = World(0, 1, torch.device("cpu"))
CLASSES, LOG2 = 4, math.log(2)
MOVING = OptimConfig(algorithm="adam", lr=1e-3, betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")
FIXED = PfMagConfig(warmup_steps=2, loss_balancing="fixed", weights=LossWeights(cls=1.0, adv=0.5, rec=2.0, ort=0.1))


def config(**changes: object) -> RunConfig:
    base = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), batch_size=8)
    return replace(base, pf_mag=replace(FIXED, **changes))  # type: ignore[arg-type]


def engines(run: RunConfig, optim: OptimConfig = MOVING) -> tuple[DdpEngine, DdpEngine]:
    modules = factory.build(run, CLASSES)
    model, discriminator = (
        DdpEngine(modules[name], optim, EngineConfig(), SINGLE) for name in ("model", "discriminator")
    )
    return model, discriminator


def raw(images: int = 8) -> RawBatch:
    chance = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=chance)
    return RawBatch(pictures, torch.randint(0, CLASSES, (images,), generator=chance))


def settings(run: RunConfig) -> LossSettings:
    return loss_settings(run.pf_mag, 0, None, 0.0, None)


def balancer(run: RunConfig) -> LossBalancer:
    return LossBalancer(run.pf_mag.weights, False, 1, 1.0, 1.0, SINGLE)


def weights_of(engine: DdpEngine) -> torch.Tensor:
    return torch.cat([value.flatten() for value in engine.model_state().values()])


@pytest.mark.parametrize("kind", ["fixed", "auto"])
def test_adversarial_weight_ramps_up_after_warmup(kind):
    values = config(adv_ramp_steps=4, loss_balancing=kind, loss_balancing_steps=1)
    built = build_engines(values, "ddp", factory.build(values, CLASSES), SINGLE)
    objective = build_objective(values, built, parity.CLASS_NAMES, SINGLE)
    ramps = []
    for step in range(2 + 6):
        terms = objective.step(make_micro_batches(raw(), values, step, SINGLE), step)
        if step >= 2:
            rest = sum(objective.balancer.weight(name) * terms[name] for name in ("cls", "rec", "ort"))
            ramps.append(((terms["loss"] - rest) / (objective.balancer.weight("adv") * terms["adv"])).item())
    assert ramps == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1], abs=2e-5)  # differences of fp32 losses
    assert adv_ramp(0, 0) == 1


def test_emotion_weight_of_real_images():
    real, fake, labels = torch.zeros(3, CLASSES + 1), torch.full((3, CLASSES + 1), -100.0), torch.arange(3)
    real[:, CLASSES] = 100.0  # real outputs are right: only the emotions, log 2 each, contribute
    assert losses.discriminator(real, fake, labels).item() == pytest.approx(4 / 5 * LOG2)
    assert losses.discriminator(real, fake, labels, emotion_weight=3).item() == pytest.approx(12 / 5 * LOG2)
    real[:, CLASSES] = 0.0
    assert losses.discriminator(real, fake, labels, emotion_weight=3).item() == pytest.approx(13 / 5 * LOG2)
    without_emotions = losses.discriminator(real, fake, labels, emotion_weight=3, emotions=False)
    assert without_emotions.item() == pytest.approx(LOG2)


def test_fake_class_targets_can_be_those_of_the_source():
    real, labels = torch.full((3, CLASSES + 1), -100.0), torch.arange(3)
    real[torch.arange(3), labels] = real[:, CLASSES] = 100.0  # correct for every real image
    fake = real.repeat(2, 1)  # fakes have the emotion of their source
    fake[:, CLASSES] = -100.0  # and are classified as generated
    assert losses.discriminator(real, fake, labels, fake_class_targets="source").item() == pytest.approx(0, abs=1e-6)
    no_emotion = torch.full((6, CLASSES + 1), -100.0)
    assert losses.discriminator(real, no_emotion, labels, fake_class_targets="zero").item() == pytest.approx(
        0, abs=1e-6
    )
    source = losses.discriminator(real, no_emotion, labels, fake_class_targets="source").item()
    assert source == pytest.approx(100 / 5)
    weighted = losses.discriminator(real, no_emotion, labels, fake_class_targets="source", emotion_weight=3).item()
    assert weighted == pytest.approx(300 / 5)


def test_adversary_depends_on_positions_of_tokens():
    adversary, tokens = (
        EmotionAdversary(5, 8, CLASSES),
        torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),
    )
    assert adversary(tokens).shape == (2, CLASSES)
    assert not torch.allclose(adversary(tokens), adversary(tokens[:, [0, 2, 1, 3, 4]]))
    changed = tokens.clone()
    changed[:, 1] += torch.tensor(
        [1.0, -1.0] * 4
    )  # one patch more, another less: the mean over patches does not change
    changed[:, 2] -= torch.tensor([1.0, -1.0] * 4)
    assert not torch.allclose(adversary(tokens), adversary(changed), atol=1e-4)


def test_real_label_smoothing_changes_only_the_real_target():
    logits = torch.full((2, CLASSES + 1), -100.0)
    logits[:, CLASSES] = math.log(0.9 / 0.1)  # probability 0.9
    fake, labels = torch.full((4, CLASSES + 1), -100.0), torch.tensor([0, 1])
    value = {
        s: losses.discriminator(logits, fake, labels, real_label_smoothing=s, emotions=False).item() for s in (0.0, 0.1)
    }
    assert value[0.0] == pytest.approx(-math.log(0.9), rel=1e-5)
    assert value[0.1] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), rel=1e-5)
    at_target = logits.clone().requires_grad_()
    losses.discriminator(at_target, fake, labels, real_label_smoothing=0.1).backward()
    assert at_target.grad is not None
    assert at_target.grad[:, CLASSES].abs().max() < 1e-7  # the target is 0.9
    assert at_target.grad[0, 0] < -0.05  # the emotion's target is 1


def test_discriminator_updates_are_separate_steps_on_the_same_fakes():
    values = config(discriminator_updates=3)
    values = replace(values, discriminator_augment=AugmentConfig())
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    model, discriminator = engines(values)
    by_hand = engines(values)
    with torch.no_grad():
        output = by_hand[0](batch.images, None, emotion_view=False)
    disc_losses = []
    for update in range(3):
        terms = discriminator_terms(
            by_hand[1], output, batch, settings(values), update=update, with_r1=False, sync=True
        )
        by_hand[1].backward(terms["disc_loss"])
        by_hand[1].step()
        disc_losses.append(terms["disc_loss"].detach())
    metrics = pf_mag_step([batch], model, discriminator, settings(values), balancer(values), warmup=False)
    assert (discriminator.updates, model.updates) == (3, 1)
    assert torch.equal(weights_of(discriminator), weights_of(by_hand[1]))
    assert metrics["disc_loss"] == disc_losses[0]


def test_step_with_several_updates_keeps_its_start_time():
    values = config(discriminator_updates=2)
    _, discriminator = engines(values)
    times = []
    for more_follow in (True, False, False):
        discriminator.backward(discriminator(torch.zeros(2, 3, 32, 32)).sum())
        discriminator.step(more_updates_follow=more_follow)
        times.append((discriminator.forward_began, discriminator.backward_began))
    assert times[0] == times[1] != times[2]


@pytest.mark.parametrize(
    "options", [{"grad_accumulation_steps": 2}, {"grad_accumulation_steps": 4, "activation_checkpointing": True}]
)
def test_all_options_with_accumulation_equal_whole_batch(options):
    difference = parity.compare("ddp", "pf_mag", SINGLE, engine=EngineConfig(device="cpu", **options), stabilised=True)
    assert 0 < difference.weights < 1e-6
    assert difference.metrics < 1e-6


def test_disabled_options_do_not_change_initialisation():
    plain = factory.build(config(), CLASSES)
    more = factory.build(config(fusion_bias=4.0, weights=LossWeights(confusion=1.0)), CLASSES)
    for name, module in plain.items():
        state, other = module.state_dict(), more[name].state_dict()
        added = {key for key in other if key not in state}
        assert all(key.startswith(("generator.fusion.position_bias.", "adversary.")) for key in added)
        assert added
        assert all(torch.equal(value, other[key]) for key, value in state.items()), name


def test_overlapping_head_starts_as_the_plain_one_and_crosses_patch_borders():
    torch.manual_seed(0)
    tokens = torch.randn(1, 17, 32)
    plain, wide = (factory.build(config(patch_overlap=n), CLASSES)["model"].generator for n in (0, 3))
    assert torch.allclose(wide(tokens), plain(tokens), atol=1e-6)
    torch.nn.init.ones_(wide.head.weight)
    one_patch = torch.zeros(1, 16, 16)
    one_patch[0, 5] = 1.0  # row 1, column 1 of four patches of 8 pixels
    changed = (wide._assemble(wide.head(one_patch)) != wide._assemble(wide.head(torch.zeros_like(one_patch))))[0, 0]
    assert changed.nonzero().tolist() == [[row, column] for row in range(5, 19) for column in range(5, 19)]


def test_refinement_starts_as_identity_and_crosses_patch_borders():
    torch.manual_seed(0)
    generator = factory.build(config(refine_channels=4), CLASSES)["model"].generator
    tokens = torch.randn(1, 17, 32)
    plain = generator(tokens)
    smooth, generator.smooth = generator.smooth, None
    assert torch.equal(generator(tokens), plain)
    torch.nn.init.normal_(smooth.second.weight)
    image = torch.zeros(1, 3, 32, 32)
    image[0, :, 7, 7] = 1.0  # the corner of the first patch
    changed = (smooth(image) - smooth(torch.zeros_like(image))).abs().sum((0, 1)) > 1e-6
    assert changed[8, 8]
    assert changed.nonzero().tolist() == [[row, column] for row in range(5, 10) for column in range(5, 10)]


def test_position_bias_is_relative_and_starts_at_the_own_place():
    bias = RelativePositionBias(4, 2, 4.0)
    values = bias()
    assert values.shape == (2, 16, 17)
    assert torch.equal(values[0, :, 1:], 4.0 * torch.eye(16))
    assert (values[:, :, 0] == 0).all()
    with torch.no_grad():
        bias.table[0] = torch.arange(49.0)
        bias.class_token[0] = 7.0
    values = bias()[0]
    assert (values[:, 0] == 7).all()
    assert values[0, 1 + 1] == values[14, 1 + 15] != values[1, 1]  # one to the right; one to the left
    assert values[0, 1 + 4] == values[11, 1 + 15] != values[0, 1 + 1]  # one below
    assert (values[:, 1:].unique().numel(), values[1].numel()) == (49, 17)


def test_position_bias_routes_each_mask_token_to_its_own_patch():
    generator = factory.build(config(fusion_bias=50.0), CLASSES)["model"].generator
    queries, tokens = generator.mask_token + generator.positions, torch.randn(2, 17, 16)
    fused = generator.fusion(queries, tokens)
    _, value = generator.fusion.key_value(generator.fusion.norm_tokens(tokens)).chunk(2, dim=2)
    assert torch.allclose(fused, queries + generator.fusion.proj(value[:, 1:]), atol=1e-4)


def test_anchor_pulls_the_poker_face_alone():
    poker, rec = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    loss = losses.anchor(poker, rec)
    loss.backward()
    assert loss.item() == 0.5
    assert torch.allclose(poker.grad, torch.full_like(poker, -1 / poker.numel()))
    assert rec.grad is None


def encoder_gradient(values: RunConfig, *terms: str) -> torch.Tensor:
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    modules = factory.build(values, CLASSES)
    every = values.pf_mag.generate_every
    output = modules["model"](batch.images, emotion_view=False, generate_every=every)
    losses_by_name = pf_vit_terms(output, batch, modules["discriminator"], settings(values))
    sum(losses_by_name[name] for name in terms).backward()
    return modules["model"].encoder.blocks[0].mlp.fc1.weight.grad


def test_encoder_grad_share_scales_all_but_the_classification_loss():
    full, quarter = config(), config(encoder_grad_share=0.25)
    for terms, share in ((("adv", "rec", "ort"), 0.25), (("cls",), 1.0)):
        expected = share * encoder_gradient(full, *terms)
        assert torch.allclose(encoder_gradient(quarter, *terms), expected, rtol=1e-4, atol=1e-8)


def test_images_are_generated_from_every_nth_sample_and_all_are_classified():
    values = config(generate_every=4)
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    model = factory.build(values, CLASSES)["model"]
    whole, some = model(batch.images), model(batch.images, generate_every=4)
    assert torch.allclose(some.logits, whole.logits, atol=1e-6)
    assert torch.allclose(some.poker, whole.poker[::4], atol=1e-6)
    terms = pf_vit_terms(some, batch, None, settings(values))
    assert terms["cls"].item() == pytest.approx(losses.classification(whole.logits, batch.labels, None).item())
    chosen = batch.every(4)
    expected = losses.reconstruction(chosen.images, whole.reconstruction[::4], whole.poker[::4], chosen.labels, 0)
    assert terms["rec"].item() == pytest.approx(expected.item())


def test_r1_at_every_nth_step_has_n_times_the_weight():
    each, lazy = config(r1=1.0), config(r1=1.0, r1_every=4)
    assert settings(lazy).r1 == 4 * settings(each).r1
    values = {}
    for name, options in (("each", each), ("lazy", lazy)):
        built = build_engines(options, "ddp", factory.build(options, CLASSES), SINGLE)
        objective = build_objective(options, built, parity.CLASS_NAMES, SINGLE)
        values[name] = []
        for step in range(4, 6):
            # the same weights in every step
            built["discriminator"].set_lr(0.0)
            built["model"].set_lr(0.0)
            values[name].append(objective.step(make_micro_batches(raw(), options, 4, SINGLE), step)["disc_loss"].item())
    without = config()
    built = build_engines(without, "ddp", factory.build(without, CLASSES), SINGLE)
    objective = build_objective(without, built, parity.CLASS_NAMES, SINGLE)
    plain = objective.step(make_micro_batches(raw(), without, 4, SINGLE), 4)["disc_loss"].item()
    penalty = values["each"][0] - plain
    assert penalty > 0
    assert values["lazy"][0] - plain == pytest.approx(4 * penalty, rel=1e-2)
    assert values["lazy"][1] == pytest.approx(plain, rel=1e-6)


def test_discriminator_waits_for_the_end_of_the_warmup():
    values = config(warmup_discriminator=False)
    built = build_engines(values, "ddp", factory.build(values, CLASSES), SINGLE)
    objective = build_objective(values, built, parity.CLASS_NAMES, SINGLE)
    updates = []
    for step in range(4):
        metrics = objective.step(make_micro_batches(raw(), values, step, SINGLE), step)
        updates.append((built["discriminator"].updates, built["model"].updates, "disc_loss" in metrics))
    assert updates == [(0, 1, False), (0, 2, False), (1, 3, True), (2, 4, True)]


def test_warmup_has_a_rate_of_its_own_and_the_schedule_begins_after_it():
    optim = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=2, encoder_lr_factor=0.5)
    values = replace(config(warmup_lr=4e-3), optim=optim)
    values = replace(values, pf_mag=replace(values.pf_mag, warmup_steps=4))
    built = build_engines(values, "ddp", factory.build(values, CLASSES), SINGLE)
    rates = []
    for step in range(8):
        set_learning_rates(built, values, step, 8, Plateau())
        groups = built["model"].optimizer.param_groups
        rates.append(tuple(sorted({round(group["lr"], 9) for group in groups})))
    assert rates[:4] == [(1e-3, 2e-3), (2e-3, 4e-3), (2e-3, 4e-3), (2e-3, 4e-3)]
    assert rates[4] == (5e-4, 1e-3)
    assert rates[6] == pytest.approx((2.5e-4, 5e-4))


def test_discriminator_starts_as_the_fine_tuned_classifier(tmp_path):
    finetuned = tiny.config("finetune", epochs=1)
    run(finetuned, tmp_path / "classifier")
    run(tiny.config("mae", epochs=1), tmp_path / "mae")
    classifier, mae = store.load(tmp_path / "classifier").weights(), store.load(tmp_path / "mae").weights()
    options = PfMagConfig(
        discriminator_init="classifier", decoder_init=str(tmp_path / "mae"), weights=LossWeights(confusion=0.1)
    )
    values = tiny.config("pf_mag", pf_mag=options, model=replace(tiny.MODEL, init=str(tmp_path / "classifier")))
    modules = factory.build(values, 8)
    pf_vit, discriminator = modules["model"], modules["discriminator"]
    for name, weight in classifier.items():
        assert torch.equal(discriminator.state_dict()[name], weight)
    assert torch.equal(pf_vit.classifier.weight, classifier["head.weight"])
    assert torch.equal(pf_vit.encoder.state_dict()["norm.weight"], classifier["encoder.norm.weight"])
    assert torch.equal(pf_vit.generator.mask_token, mae["decoder.mask_token"])
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    net = factory.build(finetuned, 8, load_init=False)["model"]
    net.load_state_dict(classifier)
    assert torch.allclose(discriminator(images)[:, :8], net(images), atol=1e-5)
    assert run(values, tmp_path / "pf-vit")["status"] == "finished"

    with pytest.raises(WeightsError, match=r"needs a fine-tuned classifier of 4 classes, but .* a head for 8 classes"):
        factory.build(values, 4)
    from_mae = replace(values, model=replace(values.model, init=str(tmp_path / "mae")))
    with pytest.raises(WeightsError, match="no classification head; give a run of mae-vit"):
        factory.build(from_mae, 8)
    without_decoder = replace(values, pf_mag=replace(options, decoder_init=str(tmp_path / "classifier")))
    with pytest.raises(WeightsError, match=r"pf_mag\.decoder_init: .* lacks decoder\."):
        factory.build(without_decoder, 8)


def test_class_mask_bias_sets_the_initial_class_mask():
    def masks(**changes) -> torch.Tensor:
        separator = factory.build(config(**changes), CLASSES)["model"].separator
        tokens = torch.ones(2, 17, 32)
        return separator(tokens)[0].mean((0, 2))

    assert masks().mean().item() == pytest.approx(0.5, abs=0.05)
    biased = masks(class_mask_bias=3.0)
    assert torch.equal(biased[1:], masks()[1:])
    assert biased[0].item() == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=0.02)
    names = dict(factory.build(config(class_mask_bias=0.0), CLASSES)["model"].named_parameters())
    assert names["separator.class_bias"].shape == (32,)


def test_confusion_is_smallest_for_uniform_output():
    uniform, other = torch.full((2, 5), 3.0), torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0]])
    assert losses.confusion(uniform).item() == pytest.approx(math.log(5))
    by_hand = -sum(math.log(math.exp(value) / (math.exp(2) + 4)) for value in other[0].tolist()) / 5
    assert losses.confusion(other).item() == pytest.approx(by_hand)


def test_adversary_trains_with_discriminator_and_pf_vit_against_it():
    values = config(weights=LossWeights(cls=0.0, adv=0.0, rec=0.0, ort=0.0, confusion=1.0))
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    model, discriminator = engines(values)
    before = discriminator.module.adversary.head.weight.detach().clone()
    output = model(batch.images, None, emotion_view=False)
    terms = discriminator_terms(discriminator, output, batch, settings(values), update=0, with_r1=False, sync=True)
    discriminator.backward(terms["disc_loss"] + terms["adversary_loss"])
    assert all(parameter.grad is None for parameter in model.module.parameters())
    model.backward(output.logits.sum() * 0)
    for engine in (model, discriminator):
        engine.step()
    assert not torch.equal(discriminator.module.adversary.head.weight, before)

    model, discriminator = engines(values)
    for _ in range(3):
        metrics = pf_mag_step([batch], model, discriminator, settings(values), balancer(values), warmup=False)
        assert metrics["loss"] == metrics["confusion"] >= math.log(CLASSES)
    moved = {
        name for name, value in model.module.named_parameters() if (model.optimizer.state[value]["exp_avg"] != 0).any()
    }
    assert {"separator.excite.weight", "encoder.cls_token"} <= moved
    assert not any(name.startswith(("classifier.", "generator.")) for name in moved)


def test_confusion_raises_the_adversarys_loss():
    """With the confusion loss the adversary's loss stays higher than without, where it memorises the batch."""
    adversary_loss = {}
    for weight in (1e-9, 5.0):  # the smaller gradient is below Adam's epsilon
        values = config(
            weights=LossWeights(cls=0.0, adv=0.0, rec=0.0, ort=0.0, confusion=weight), discriminator_updates=2
        )
        (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
        model, discriminator = engines(values, replace(MOVING, lr=3e-3))
        for _ in range(25):
            metrics = pf_mag_step([batch], model, discriminator, settings(values), balancer(values), warmup=False)
        adversary_loss[weight] = metrics["adversary_loss"].item()
    assert adversary_loss[1e-9] < 0.5 * adversary_loss[5.0]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"adv_ramp_steps": -1}, r"pf_mag\.adv_ramp_steps must be at least 0, got -1"),
        ({"discriminator_updates": 0}, r"pf_mag\.discriminator_updates must be at least 1"),
        ({"real_label_smoothing": 1.0}, r"pf_mag\.real_label_smoothing must lie in \[0, 1\)"),
        ({"discriminator_emotion_weight": 0.0}, r"pf_mag\.discriminator_emotion_weight must be positive"),
        (
            {"discriminator_emotions": False, "discriminator_emotion_weight": 2.0},
            r"must be 1 with pf_mag\.discriminator_emotions off",
        ),
        ({"warmup_lr": 0.0}, r"pf_mag\.warmup_lr must be positive"),
        ({"generate_every": 0}, r"pf_mag\.generate_every must be at least 1"),
        ({"encoder_grad_share": 1.5}, r"pf_mag\.encoder_grad_share must lie in \[0, 1\]"),
        ({"fusion": "self", "fusion_bias": 4.0}, r"pf_mag\.fusion_bias must be None with pf_mag\.fusion"),
        (
            {"discriminator_init": "classifier", "discriminator_patch_gain": 4.0},
            r"discriminator_patch_gain must be 1 with pf_mag\.discriminator_init",
        ),
        ({"separator_ratio": 0.0, "weights": LossWeights(anchor=1.0)}, r"weights\.anchor must be 0 with"),
        ({"separator_ratio": 0.0, "class_mask_bias": 1.0}, r"class_mask_bias must be None with"),
        ({"separator_ratio": 0.0, "weights": LossWeights(confusion=1.0)}, r"weights\.confusion must be 0 with"),
        ({"patch_overlap": -1}, r"pf_mag\.patch_overlap must be at least 0"),
    ],
)
def test_invalid_options_are_rejected(changes, why):
    with pytest.raises(ConfigError, match=why):
        replace(FIXED, **changes)


def test_discriminator_patch_gain_scales_only_the_patch_embedding():
    runs = (config(discriminator_patch_gain=gain) for gain in (1.0, 4.0))
    plain, scaled = (factory.build(run, CLASSES)["discriminator"].state_dict() for run in runs)
    assert [name for name in plain if not torch.equal(plain[name], scaled[name])] == ["patch_embed.weight"]
    assert torch.equal(scaled["patch_embed.weight"], 4 * plain["patch_embed.weight"])

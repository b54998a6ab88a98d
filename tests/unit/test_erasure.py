"""The erasure of the emotion from f_p: what it guarantees, when it is fitted, and what is saved with a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, EngineConfig, PfMagConfig
from pfcluster.data.batch import make_micro_batches
from pfcluster.data.dataset import open_dataset
from pfcluster.evaluate.classification import load_images
from pfcluster.evaluate.linear_probe import probe_accuracy
from pfcluster.inference.export import read_run
from pfcluster.inference.graphs import graphs, traced
from pfcluster.inference.torch_predictor import build_net, load_weights
from pfcluster.models import factory
from pfcluster.models.erasure import (
    ClassStatistics,
    EmotionErasure,
    OffsetRemoval,
    class_means,
    class_statistics,
    graded_emotions,
)
from pfcluster.models.pf_vit import PFViT
from pfcluster.profiling.training_cost import step_flops
from pfcluster.training import parity, run
from pfcluster.training.factory import build_engines, build_objective
from pfcluster.training.step_checks import NonFiniteStep, StepChecks
from tests import inference_models, tiny
from tests.stabilised import CLASSES, SINGLE, config, raw

K, T, D = 4, 3, 12
PARTS = ("offsets", "expected", "class_token", "fitted")


def images(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens whose means depend on the class, the logits of a classifier that is right in four cases of five, and
    labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % K
    means, mixing = torch.randn(K, T, D, generator=random), torch.randn(D, D, generator=random)
    tokens = torch.randn(count, T, D, generator=random) @ mixing + 3 * means[labels]
    named = torch.where(torch.arange(count) // K % 5 == 0, (labels + 1) % K, labels)
    logits = 5 * torch.nn.functional.one_hot(named, K) + torch.randn(count, K, generator=random)
    return tokens, logits, labels


def statistics(tokens: Tensor, logits: Tensor, labels: Tensor) -> ClassStatistics:
    return class_statistics(tokens, graded_emotions(logits), labels, lambda values: values)


def fitted(tokens: Tensor, logits: Tensor, labels: Tensor) -> EmotionErasure:
    erasure = EmotionErasure(T, D, K).train()
    erasure.observe(statistics(tokens, logits, labels), fit=True)
    return erasure


def means_differ(tokens: Tensor, labels: Tensor, classes: int = K) -> float:
    """Largest distance of a class mean from the mean of class means, over the tokens' standard deviation."""
    of_class = torch.nn.functional.one_hot(labels, classes).float()
    means = class_means(of_class.sum(0), torch.einsum("bk,btd->ktd", of_class, tokens))
    return float((means - means.mean(0)).abs().max() / tokens.std())


def test_a_class_that_does_not_occur_for_thousands_of_steps_keeps_its_mean() -> None:
    tokens, logits, labels = images(40)
    erasure = fitted(tokens, logits, labels)
    rare = class_means(erasure.counts, erasure.tokens)[0]
    others = statistics(tokens[labels > 0], logits[labels > 0], labels[labels > 0])
    for _ in range(6000):
        erasure.observe(others, fit=False)
    assert erasure.counts[0] > 0
    assert torch.allclose(class_means(erasure.counts, erasure.tokens)[0], rare, rtol=1e-3)


def test_no_linear_classifier_beats_chance_after_the_erasure() -> None:
    tokens, logits, labels = images(800)
    erasure = EmotionErasure(T, D, K).train()
    assert torch.equal(erasure(tokens, logits), tokens)  # not fitted yet
    erasure.observe(statistics(tokens, logits, labels), fit=False)
    assert torch.equal(erasure(tokens, logits), tokens)
    assert not erasure.erases
    erasure.observe(statistics(tokens, logits, labels), fit=True)
    assert erasure.erases
    erased = erasure(tokens, logits)
    assert means_differ(tokens, labels) > 0.5
    assert means_differ(erased, labels) < 2e-3
    flat, silent = tokens.flatten(1), erased.flatten(1)
    assert probe_accuracy(flat, labels, flat, labels) == 1
    assert probe_accuracy(silent, labels, silent, labels) < 1 / K + 0.1
    assert torch.equal(erasure.eval()(tokens, logits), tokens)  # evaluation applies what was calibrated


def test_the_fit_without_a_ridge_makes_the_means_of_all_classes_that_were_seen_equal(monkeypatch) -> None:
    monkeypatch.setattr("pfcluster.models.erasure.RIDGE", 1e-12)
    tokens, logits, labels = images(800)
    assert means_differ(fitted(tokens, logits, labels)(tokens, logits), labels) < 1e-4
    seen = labels != 2
    erased = fitted(tokens[seen], logits[seen], labels[seen])(tokens[seen], logits[seen])
    present = torch.stack([erased[labels[seen] == label].mean(0) for label in (0, 1, 3)])
    assert (present - present.mean(0)).abs().max() < 1e-4


def test_patches_lose_one_number_less_than_there_are_classes_and_the_class_token_all() -> None:
    tokens, logits, labels = images(800)
    removed = (tokens - fitted(tokens, logits, labels)(tokens, logits))[:, 1:].flatten(1)
    assert int(torch.linalg.matrix_rank(removed - removed.mean(0), rtol=1e-3)) == K - 1  # of all patches together
    class_tokens = fitted(tokens, logits, labels)(tokens, logits)[:, 0]
    assert torch.allclose(class_tokens, tokens[:, 0].mean(0).expand_as(class_tokens), atol=1e-3)


def test_emotions_are_graded_precisely_where_they_are_nearly_equal() -> None:
    for scale in (1e-5, 1.0, 300.0):
        logits = scale * torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
        exact = (logits.double() / 3).softmax(1) - 1 / 7
        assert torch.allclose(graded_emotions(logits).double(), exact, rtol=1e-5, atol=2e-7 * float(exact.abs().max()))


def test_an_image_without_an_emotion_of_its_own_keeps_its_patches() -> None:
    tokens, logits, labels = images(800)
    erasure = fitted(tokens, logits, labels)
    expected = 3 * (erasure.running.expected + 1 / K).log().expand(5, K)  # logits of the mean probabilities
    assert torch.allclose(erasure(tokens[:5], expected)[:, 1:], tokens[:5, 1:], atol=1e-4)


def test_a_classifier_that_knows_nothing_erases_next_to_nothing() -> None:
    tokens, logits, labels = images(800)
    unsure = 1e-4 * logits
    removed = tokens - fitted(tokens, unsure, labels)(tokens, unsure)
    assert removed[:, 1:].abs().max() < 0.01 * tokens.std()


def test_no_gradient_reaches_the_classifier_through_the_erasure() -> None:
    tokens, logits, labels = images(80)
    erasure, logits = fitted(tokens, logits, labels), logits.requires_grad_()
    erased = erasure(tokens.requires_grad_(), logits)
    erased.square().sum().backward()
    assert logits.grad is None
    assert tokens.grad is not None
    assert not tokens.grad[:, 0].any()


def test_statistics_of_ranks_add_up_to_those_of_the_whole_batch() -> None:
    tokens, logits, labels = images(40)
    whole = statistics(tokens, logits, labels)
    halves = [statistics(tokens[rank::2], logits[rank::2], labels[rank::2]) for rank in range(2)]
    for ours, first, second in zip(whole, *halves, strict=True):
        assert torch.allclose(ours, first + second, rtol=1e-12)


def test_a_large_common_mean_costs_no_precision() -> None:
    tokens, logits, labels = images(400)
    plain = fitted(tokens, logits, labels)(tokens, logits)
    shifted = fitted(tokens + 100, logits, labels)(tokens + 100, logits)
    assert torch.allclose(plain, shifted - 100, atol=2e-3)


def test_statistics_that_are_not_finite_change_nothing() -> None:
    tokens, logits, labels = images(100)
    erasure = fitted(tokens, logits, labels)
    before = {name: value.clone() for name, value in erasure.state_dict().items()}
    for part in range(2):
        broken = [tokens.clone(), logits.clone()]
        broken[part][3, 1] = torch.nan
        erasure.observe(statistics(*broken, labels), fit=True)
        for name, value in erasure.state_dict().items():
            assert torch.equal(value, before[name]), name
        first = fitted(*broken, labels)
        assert all(value.isfinite().all() for value in first.state_dict().values())
        assert not first.erases


def engines_and_objective(erasure_start: int):
    values = config(erasure_start=erasure_start, warmup_steps=2)
    engines = build_engines(values, "ddp", factory.build(values, CLASSES), SINGLE)
    return values, engines, build_objective(values, engines, parity.CLASS_NAMES, SINGLE)


def test_the_erasure_begins_after_the_steps_of_the_option() -> None:
    values, engines, objective = engines_and_objective(2)
    erasure = engines["model"].module.erasure
    for step in range(3):
        objective.step(make_micro_batches(raw(), values, step, SINGLE), step)
        assert erasure.erases == (step >= 1)
    assert not erasure.calibrated.fitted


def test_the_erasure_may_begin_at_once() -> None:
    values, engines, objective = engines_and_objective(0)
    objective.step(make_micro_batches(raw(), values, 0, SINGLE), 0)
    assert engines["model"].module.erasure.erases


def test_a_step_that_is_not_finite_leaves_the_erasure_as_it_was() -> None:
    values, engines, objective = engines_and_objective(0)
    checks = StepChecks(engines, objective, SINGLE.device)

    def train(step: int, factor: float) -> None:
        batches = [
            replace(batch, images=batch.images * factor) for batch in make_micro_batches(raw(), values, step, SINGLE)
        ]
        checks.run(step, lambda: objective.step(batches, step))

    train(0, 1.0)
    checks.require_finite()
    before = {name: value.clone() for name, value in engines["model"].module.state_dict().items()}
    train(1, torch.inf)
    with pytest.raises(NonFiniteStep):
        checks.require_finite()
    assert all(torch.equal(value, before[name]) for name, value in engines["model"].module.state_dict().items())


def test_saved_models_have_an_erasure_fitted_to_their_averaged_weights(tmp_path: Path) -> None:
    base = tiny.config("pf_mag")
    values = replace(
        base, pf_mag=replace(base.pf_mag, erasure_start=2), optim=replace(base.optim, ema=0.5, lr=2e-3), seed=3
    )
    result = run(values, tmp_path)
    dataset = open_dataset(values.data, values.seed)
    model = factory.build(values, len(dataset.classes), load_init=False)["model"].eval()
    assert isinstance(model, PFViT)
    assert model.erasure is not None
    model.load_state_dict(store.load(tmp_path).weights())
    photos, labels = load_images(dataset.train, torch.arange(len(dataset.train)), 32, SINGLE.device)
    with torch.inference_mode():
        erased, calibrated = model.separate(photos)[2], model.erasure
        model.erasure = None
        plain = model.separate(photos)[2]
        model.erasure = calibrated
        views = model(photos[:4], emotion_view=True)
        assert torch.equal(views.poker, model.generator(model.separate(photos[:4])[2]))
        emotions = graded_emotions(model.classify(photos))
    expected = OffsetRemoval(plain.shape[1], plain.shape[2], 8)
    expected.fit(class_statistics(plain, emotions, labels, lambda values: values))
    assert expected.offsets.any()
    assert torch.allclose(erased, expected(plain, emotions), atol=1e-5)
    assert torch.allclose(erased[:, 0], erased[:1, 0].expand(len(erased), -1), atol=1e-6)
    assert means_differ(erased, labels, 8) < means_differ(plain, labels, 8)
    assert result["poker"]["rows"]["poker face"]["mse_inside"] > 0

    exported = read_run(tmp_path)
    in_erasure = {name for name in exported.weights if name.startswith("erasure.")}
    assert in_erasure == {f"erasure.calibrated.{part}" for part in PARTS}
    net = build_net(exported.info)
    load_weights(net, exported.weights, exported.info, "the run")
    with torch.inference_mode():
        assert torch.equal(net.generator(net.separate(photos[:4])[2]), views.poker)


def test_f_e_takes_up_what_is_erased_from_f_p_and_the_classifier_reads_what_it_read() -> None:
    values = config(erasure_start=0)
    model = factory.build(values, CLASSES)["model"].eval()
    photos = torch.rand(3, 3, 32, 32)
    before, plain = model(photos), model.separate(photos)
    assert torch.equal(model.classify(photos), before.logits)
    model.erasure.calibrated.offsets.normal_()
    model.erasure.calibrated.fitted.fill_(1)
    after, (tokens, emotion, face) = model(photos), model.separate(photos)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(model.classify(photos), before.logits)
    assert torch.equal(after.reconstruction, before.reconstruction)
    assert not torch.allclose(face, plain[2])
    assert torch.allclose(emotion + face, tokens, atol=1e-6)
    assert torch.equal(after.emotion_tokens, emotion)
    assert torch.equal(after.identity_tokens, face)
    assert torch.allclose(model.transfer(photos, photos), after.reconstruction, atol=1e-5)


def test_gradient_norms_show_what_reaches_f_e_and_f_p_after_the_erasure() -> None:
    values, engines, objective = engines_and_objective(0)
    values = replace(values, pf_mag=replace(values.pf_mag, grad_norms_every=1))
    objective.config = values.pf_mag
    for step in range(4):
        metrics = objective.step(make_micro_batches(raw(), values, step, SINGLE), step)
    assert engines["model"].module.erasure.erases
    for name in ("grad_emotion_cls", "grad_emotion_ort", "grad_identity_ort", "grad_identity_adv"):
        assert metrics[name] > 0, name


def test_the_graph_of_poker_faces_keeps_the_classifier_that_the_erasure_reads() -> None:
    described = inference_models.info("pf_vit")
    net = build_net(described).eval()
    net.erasure.calibrated.offsets.normal_()
    net.erasure.calibrated.fitted.fill_(1)
    graph = graphs(described, net)[1]
    assert graph is not None
    crops = torch.randint(0, 256, (3, described.preprocessing.crop_size, described.preprocessing.crop_size, 3))
    program = traced(graph, described).module()
    with torch.no_grad():
        assert torch.allclose(program(crops.byte()), graph(crops.byte()), atol=1e-5)


def test_flops_of_an_erasure_are_counted() -> None:
    values = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), stabilised=True)
    plain = replace(values, pf_mag=replace(values.pf_mag, erasure_start=None))
    assert step_flops(values, parity.CLASSES, warmup=False) > step_flops(plain, parity.CLASSES, warmup=False) > 0


def test_a_checkpoint_that_was_not_evaluated_has_the_erasure_of_its_training(tmp_path: Path) -> None:
    base = tiny.config("pf_mag")
    values = replace(
        base,
        pf_mag=replace(base.pf_mag, erasure_start=1),
        max_steps=5,
        checkpoint=replace(base.checkpoint, every_steps=2),
        evaluate=replace(base.evaluate, every_epochs=9),
    )
    run(values, tmp_path)
    saved = store.load(tmp_path / "checkpoints" / "step-00000004").weights()
    assert saved["erasure.calibrated.offsets"].any()
    for part in PARTS:
        assert torch.equal(saved[f"erasure.calibrated.{part}"], saved[f"erasure.running.{part}"])


def test_an_exported_net_still_computes_in_training_mode() -> None:
    model = factory.build(config(erasure_start=0), CLASSES)["model"]
    model.erasure.drop_training_state()
    photos = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model.train()(photos).poker, model.eval()(photos).poker)
    assert {name for name in model.state_dict() if name.startswith("erasure.")} == {
        f"erasure.calibrated.{part}" for part in PARTS
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"erasure_start": -1}, r"pf_mag\.erasure_start must be None or at least 0"),
        ({"erasure_start": 0, "separator_ratio": 0.0}, r"pf_mag\.erasure_start must be None with pf_mag\.separator"),
        ({"erasure_start": 0, "fusion": "self", "mask_ratio": 0.5}, r"pf_mag\.mask_ratio must be 0 with"),
    ],
)
def test_options_that_the_erasure_excludes(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PfMagConfig(**options)


def test_the_erasure_begins_in_the_warm_up() -> None:
    values = config(warmup_steps=5, erasure_start=5)
    with pytest.raises(ConfigError, match=r"pf_mag\.erasure_start must be at most pf_mag\.warmup_steps = 5"):
        replace(values, pf_mag=replace(values.pf_mag, erasure_start=6))
    tiny.config("finetune", pf_mag=PfMagConfig(erasure_start=50))  # an option for all runs of a study


def test_parameters_in_bf16_are_refused() -> None:
    values = config(erasure_start=0)
    with pytest.raises(ConfigError, match=r"engine\.precision must be \"fp32\" or \"bf16\" with pf_mag\.erasure_start"):
        replace(values, engine=EngineConfig(precision="bf16_params", device="cpu"))

"""Presets: complete configs for the runs of a study, by role. Options override single fields.

judge      small CNN that rates how neutral poker faces are
mae        masked-autoencoder pre-training
scratch    classifier without pre-training
mae-vit    classifier fine-tuned from the MAE weights
pf-vit     PF-MAG from the MAE weights, or from MAE-ViT of the same seed (config/starts.py)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pfcluster.config import (
    AugmentConfig,
    CheckpointConfig,
    ClassifierConfig,
    ConfigError,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    LossWeights,
    MaeConfig,
    ModelConfig,
    OptimConfig,
    PfMagConfig,
    RunConfig,
    SyntheticConfig,
)
from pfcluster.config.starts import SAME_SEED_MAE_VIT

Recipe = dict[str, RunConfig]
ROLES = ("judge", "mae", "scratch", "mae-vit", "pf-vit")

MAE_AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), rotation=0.0, jitter=0.0)
"""Random resized crop and flip suffice for MAE (He et al. 2021, section 4)."""
DISCRIMINATOR = OptimConfig(algorithm="adam", lr=1e-4, betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")

FAST_DISCRIMINATOR = replace(DISCRIMINATOR, lr=5e-4)
DISCRIMINATOR_AUGMENT = AugmentConfig(crop_scale=(0.6, 1.0))
FROM_CLASSIFIER = PfMagConfig(
    weights=LossWeights(cls=2.0, adv=2.0, rec=150.0, ort=0.1, anchor=4.0),
    loss_balancing="fixed",
    warmup_rec=150.0,
    warmup_cls=2.0,
    warmup_lr=3e-3,
    warmup_discriminator=False,
    generate_every=4,
    encoder_grad_share=0.1,
    fusion_bias=2.0,
    patch_overlap=2,
    discriminator_init="classifier",
    fake_class_targets="source",
    r1=0.1,
    r1_every=8,
)
"""PF-MAG from a fine-tuned classifier, with which small nets separate the expression (docs/results/poker_faces.md). The
number of warm-up steps and the moving average depend on the length of the run; `discriminator_augment` goes with it."""
MEASURED_BIASES: Mapping[str, Any] = {"fusion_bias": 4.0, "class_mask_bias": 3.0}
"""In the presets whose published figures are of before both were lowered (docs/results/poker_face_search.md)."""

PLAIN: Mapping[str, Any] = {
    "augment.flip": 0.0,
    "augment.crop_scale": (1.0, 1.0),
    "augment.crop_ratio": (1.0, 1.0),
    "augment.rotation": 0.0,
    "augment.jitter": 0.0,
    "augment.erasing": 0.0,
}
"""No augmentation."""
STRONG: Mapping[str, Any] = {
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.erasing": 0.25,
    "model.drop_path": 0.1,
    "optim.layer_decay": 0.65,
    "classifier.label_smoothing": 0.1,
}
"""The usual regularisation for fine-tuning ViTs (He et al. 2021, appendix A.2)."""


def demo() -> Recipe:
    """Synthetic faces at 32 px with clear expressions and moderate nuisance, for two CPU cores.

    Command: `pfcluster demo`. Results: benchmarks/results/demo.md.
    """
    return _rendered_faces(
        32,
        {"judge": 6, "mae": 30, "scratch": 8, "mae-vit": 20},
        pf_vit={"epochs": 26, "warmup_steps": 330, "ema": 0.97},
    )


def poker_face() -> Recipe:
    """The demo's faces and nets at 48 px, trained long enough for neutral poker faces.

    Command: `python -m benchmarks.poker_faces`. Results: docs/results/poker_faces.md; search for the options:
    docs/results/poker_face_search.md.
    """
    recipe = _rendered_faces(
        48,
        {"judge": 7, "mae": 40, "scratch": 10, "mae-vit": 90},
        pf_vit={"epochs": 100, "warmup_steps": 1200, "ema": 0.995},
    )
    pf_vit = recipe["pf-vit"]
    recipe["pf-vit"] = replace(
        pf_vit,
        evaluate=replace(pf_vit.evaluate, select_from=0.85),
        discriminator_optim=replace(FAST_DISCRIMINATOR, schedule="cosine"),
        pf_mag=replace(pf_vit.pf_mag, weights=replace(pf_vit.pf_mag.weights, anchor=5.5), **MEASURED_BIASES),
    )
    cached = {name: replace(config, data=replace(config.data, cache_mode="host")) for name, config in recipe.items()}
    return _with_evaluation(cached, every_epochs=4, grid_every=8)


def _rendered_faces(size: int, epochs: Mapping[str, float], *, pf_vit: Mapping[str, Any]) -> Recipe:
    """Small nets on the synthetic faces, PF-ViT from MAE-ViT. epochs: of the other roles; pf_vit: arguments of
    `_from_classifier`.
    """
    faces = SyntheticConfig(train=4000, validation=500, test=1000, identities=800, nuisance=0.4, min_intensity=0.5)
    model = ModelConfig(patch=8, width=64, decoder_width=96, patch_gain=4.0)
    weak_augment = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    data = DataConfig(size=size, synthetic=faces)
    small_epochs = {**epochs, "finetune": epochs["scratch"], "pf_mag": pf_vit["epochs"]}
    recipe = _small(data, model, weak_augment, small_epochs, batch_size=32, warmup_steps=pf_vit["warmup_steps"])
    mae_vit = recipe["mae-vit"]
    return recipe | {
        "mae-vit": replace(mae_vit, epochs=epochs["mae-vit"], batch_size=128, optim=replace(mae_vit.optim, lr=1e-3)),
        "pf-vit": _from_classifier(recipe["pf-vit"], **pf_vit),
    }


def mini() -> Recipe:
    """Synthetic faces with full expressions and no nuisance, nets smaller than the demo's, runs of a minute: for trying
    out sweeps on two CPU cores, not for results.

    Command: `pfcluster sweep` (docs/guides/sweeps.md).
    """
    faces = SyntheticConfig(train=2400, validation=400, test=800, identities=480, nuisance=0.0, min_intensity=1.0)
    model = ModelConfig(patch=8, width=64, decoder_width=64, patch_gain=4.0)
    weak_augment = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    epochs = {"judge": 5, "mae": 25, "finetune": 6, "pf_mag": 6}
    recipe = _small(DataConfig(size=48, synthetic=faces), model, weak_augment, epochs, batch_size=32, warmup_steps=150)
    recipe["pf-vit"] = replace(recipe["pf-vit"], optim=replace(recipe["pf-vit"].optim, lr=2e-3))
    return _with_evaluation(recipe, every_epochs=0.5, n_poker_faces=400)


def miniature(size: str) -> Recipe:
    """Nets of three widths at 32 px, runs of a minute on synthetic faces: a scaled-down version of the paper's
    experiments, with the recipe that separates small nets.

    Command: `pfcluster reproduce --miniature`. Results: docs/results/miniature.md.
    """
    width, heads = {"t": (32, 2), "s": (48, 3), "b": (64, 4)}[size]
    model = ModelConfig(patch=8, width=width, heads=heads, decoder_width=64, patch_gain=4.0)
    weak_augment = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    epochs = {"judge": 5, "mae": 30, "finetune": 12, "pf_mag": 11}
    recipe = _small(
        DataConfig(size=32, cache_mode="host"), model, weak_augment, epochs, batch_size=64, warmup_steps=180
    )
    judge, mae_vit = recipe["judge"], replace(recipe["mae-vit"], optim=recipe["scratch"].optim)
    pf_vit = replace(_from_classifier(recipe["pf-vit"], epochs=11, warmup_steps=180, ema=0.95), batch_size=64)
    recipe |= {"judge": replace(judge, batch_size=32), "mae-vit": mae_vit, "pf-vit": pf_vit}
    return _with_evaluation(recipe, every_epochs=3, n_poker_faces=400)


def small() -> Recipe:
    """A small ViT at 48 px for real photos without a GPU: minutes per run on one core for 30,000 faces.

    Command: `pfcluster study --preset small --data.shards DIR`. Results on FER2013: docs/results.
    """
    model = ModelConfig(patch=8, width=96, decoder_width=96, patch_gain=4.0)
    epochs = {"judge": 8, "mae": 12, "finetune": 6, "pf_mag": 8}
    return _small(DataConfig(size=48), model, AugmentConfig(), epochs, batch_size=64, warmup_steps=1500)


def fer2013() -> Recipe:
    """A ViT of 0.7 M parameters with a convolutional stem at 48 px, for FER2013 and photos like it: hours per run on
    one core, PF-MAG from MAE-ViT with a weak anchor, because a discriminator knows little of real emotions.

    Command: `pfcluster study --preset fer2013 --data.shards DIR`. Results: docs/results/fer2013.md.
    """
    model = ModelConfig(
        patch=8, stem_channels=(32, 64, 96), width=96, depth=3, heads=3, decoder_width=96, patch_gain=1.0
    )
    epochs = {"judge": 24, "mae": 6, "finetune": 30, "pf_mag": 12}
    return _real_faces(
        model,
        AugmentConfig(erasing=0.25),
        epochs,
        judge_widths=(32, 64, 128, 256),
        batch_size=128,
        lr=1.5e-3,
        warmup_steps=900,
    )


def fer2013_s() -> Recipe:
    """A ViT of 5 M parameters with a convolutional stem and 144 tokens at 48 px, for FER2013 on a GPU.

    Command: `pfcluster study --preset fer2013-s --data.shards DIR`. Results: docs/results/fer2013.md.
    """
    model = ModelConfig(
        patch=4,
        stem_channels=(64, 128),
        width=256,
        depth=6,
        heads=4,
        decoder_width=192,
        decoder_depth=2,
        patch_gain=1.0,
    )
    augment = AugmentConfig(crop_scale=(0.6, 1.0), rotation=10.0, erasing=0.25, mixup=0.2)
    epochs = {"judge": 40, "mae": 30, "finetune": 50, "pf_mag": 12}
    recipe = _real_faces(
        model, augment, epochs, judge_widths=(64, 128, 256, 512), batch_size=256, lr=7e-4, warmup_steps=400
    )
    judge = recipe["judge"]
    recipe["judge"] = replace(judge, model=replace(judge.model, cnn_convolutions=2))
    for role in ("scratch", "mae-vit"):
        recipe[role] = replace(recipe[role], model=replace(model, drop_path=0.1))
    return {role: replace(config, engine=EngineConfig(precision="bf16")) for role, config in recipe.items()}


def _real_faces(
    model: ModelConfig,
    augment: AugmentConfig,
    epochs: Mapping[str, float],
    *,
    judge_widths: tuple[int, ...],
    batch_size: int,
    lr: float,
    warmup_steps: int,
) -> Recipe:
    """Classifiers with label smoothing and weight averaging, PF-ViT from MAE-ViT with a weak anchor, at 48 px."""
    data = DataConfig(size=48, cache_mode="host")
    plain = replace(augment, mixup=0.0)
    recipe = _small(data, model, plain, epochs, batch_size=batch_size, warmup_steps=warmup_steps)
    smoothed = ClassifierConfig(label_smoothing=0.1)
    optim = replace(recipe["scratch"].optim, lr=lr, warmup_steps=300, ema=0.998)
    scratch = replace(recipe["scratch"], augment=augment, classifier=smoothed, optim=optim)
    mae = replace(recipe["mae"], batch_size=batch_size, mae=MaeConfig(mask_ratio=0.6))
    pf_vit = _from_classifier(recipe["pf-vit"], epochs=epochs["pf_mag"], warmup_steps=warmup_steps, ema=0.99)
    weights = replace(FROM_CLASSIFIER.weights, adv=5.0, anchor=0.3)
    return recipe | {
        "judge": replace(
            recipe["judge"],
            augment=plain,
            classifier=smoothed,
            model=replace(recipe["judge"].model, cnn_widths=judge_widths),
            optim=replace(recipe["judge"].optim, ema=0.998),
        ),
        "mae": mae,
        "scratch": scratch,
        "mae-vit": replace(scratch, name="mae-vit", optim=replace(optim, lr=lr * 2 / 3)),
        "pf-vit": replace(
            pf_vit,
            batch_size=batch_size,
            classifier=smoothed,
            optim=replace(pf_vit.optim, lr=lr, encoder_lr_factor=0.6),
            pf_mag=replace(pf_vit.pf_mag, weights=weights, **MEASURED_BIASES),
        ),
    }


def vit_t() -> Recipe:
    """ViT-T/16 at 224 px with the paper's hyperparameters. Not verified here; the paper's MAE-ViT-T reaches 88.72 % on
    RAF-DB."""
    return _paper(ModelConfig(patch=16, width=192, depth=12, heads=3, decoder_width=192, decoder_depth=4))


def vit_s() -> Recipe:
    """ViT-S/16 at 224 px with the paper's hyperparameters. Not verified here; the paper's MAE-ViT-S reaches 90.03 % on
    RAF-DB."""
    return _paper(ModelConfig(patch=16, width=384, depth=12, heads=6, decoder_width=256, decoder_depth=4))


def vit_b() -> Recipe:
    """ViT-B/16 at 224 px with the paper's hyperparameters. Not verified here; the paper's PF-ViT reaches 92.07 % on
    RAF-DB.

    Command: `pfcluster study --preset vit-b --data.shards DIR --processes 8 --engine.precision bf16`.
    """
    sizes = ModelConfig(patch=16, width=768, depth=12, heads=12, decoder_width=512, decoder_depth=8, decoder_heads=16)
    return _paper(sizes)


PRESETS: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "poker-face": poker_face,
    "mini": mini,
    "miniature-t": partial(miniature, "t"),
    "miniature-s": partial(miniature, "s"),
    "miniature-b": partial(miniature, "b"),
    "small": small,
    "fer2013": fer2013,
    "fer2013-s": fer2013_s,
    "vit-t": vit_t,
    "vit-s": vit_s,
    "vit-b": vit_b,
}


def recipe(name: str) -> Recipe:
    """A preset by name. Raises ConfigError that lists the names if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()


def _with_evaluation(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with these evaluation options in all runs but MAE's."""
    return {
        role: config if role == "mae" else replace(config, evaluate=replace(config.evaluate, **options))
        for role, config in recipe.items()
    }


def _small(
    data: DataConfig,
    model: ModelConfig,
    augment: AugmentConfig,
    epochs: Mapping[str, float],
    *,
    batch_size: int,
    warmup_steps: int,
) -> Recipe:
    """Small nets at small sizes: higher learning rates than the paper's, few epochs; half the rate after MAE."""
    finetune = RunConfig(
        name="scratch",
        objective="finetune",
        epochs=epochs["finetune"],
        batch_size=batch_size,
        data=data,
        augment=augment,
        model=model,
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.99), warmup_steps=40),
    )
    pf_mag = replace(
        finetune,
        name="pf-vit",
        objective="pf_mag",
        epochs=epochs["pf_mag"],
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.99), warmup_steps=40, clip_norm=5.0),
        discriminator_optim=replace(DISCRIMINATOR, lr=2e-4),
        pf_mag=PfMagConfig(warmup_steps=warmup_steps),
    )
    return {
        "judge": replace(
            finetune,
            name="judge",
            epochs=epochs["judge"],
            model=ModelConfig(architecture="cnn"),
            optim=OptimConfig(lr=2e-3, warmup_steps=40),
        ),
        "mae": replace(
            finetune,
            name="mae",
            objective="mae",
            epochs=epochs["mae"],
            batch_size=64,
            augment=MAE_AUGMENT,
            optim=OptimConfig(lr=1.5e-3, warmup_steps=100),
            evaluate=EvaluateConfig(every_epochs=5),
        ),
        "scratch": finetune,
        "mae-vit": replace(finetune, name="mae-vit", optim=replace(finetune.optim, lr=5e-4)),
        "pf-vit": pf_mag,
    }


def _from_classifier(pf_vit: RunConfig, *, epochs: float, warmup_steps: int, ema: float) -> RunConfig:
    """PF-ViT by the recipe FROM_CLASSIFIER, which starts from MAE-ViT of the same seed. The moving average must be
    short against the adversarial steps: what it evaluates lags behind by 1 / (1 - ema) steps.
    """
    return replace(
        pf_vit,
        epochs=epochs,
        batch_size=128,
        model=replace(pf_vit.model, init=SAME_SEED_MAE_VIT),
        evaluate=replace(pf_vit.evaluate, select_from=0.67),
        pf_mag=replace(FROM_CLASSIFIER, warmup_steps=warmup_steps),
        optim=replace(pf_vit.optim, lr=2e-3, encoder_lr_factor=0.45, ema=ema),
        discriminator_optim=FAST_DISCRIMINATOR,
        discriminator_augment=DISCRIMINATOR_AUGMENT,
    )


def _paper(model: ModelConfig) -> Recipe:
    """The paper's hyperparameters (docs/concepts/method.md): 300 epochs of MAE at batch size 4096 with learning rate
    1.5e-4 * batch size / 256; then 100 epochs at batch size 32 with Adam and the plateau schedule.
    """
    data = DataConfig(size=224)
    plateau = OptimConfig(algorithm="adam", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, schedule="plateau")
    finetune = RunConfig(
        name="scratch",
        objective="finetune",
        epochs=100,
        batch_size=32,
        data=data,
        model=model,
        optim=plateau,
        checkpoint=CheckpointConfig(every_steps=2000),
    )
    steps_per_epoch = 269_316 / 4096
    mae_optim = OptimConfig(lr=1.5e-4 * 4096 / 256, betas=(0.9, 0.95), warmup_steps=round(40 * steps_per_epoch))
    return {
        "judge": replace(
            finetune, name="judge", model=ModelConfig(architecture="cnn"), optim=replace(plateau, lr=1e-3), epochs=30
        ),
        "mae": replace(
            finetune,
            name="mae",
            objective="mae",
            epochs=300,
            batch_size=4096,
            augment=replace(MAE_AUGMENT, crop_scale=(0.2, 1.0), crop_ratio=(0.75, 1.3333)),
            optim=mae_optim,
            evaluate=EvaluateConfig(every_epochs=10),
        ),
        "scratch": finetune,
        "mae-vit": replace(finetune, name="mae-vit"),
        "pf-vit": replace(
            finetune,
            name="pf-vit",
            objective="pf_mag",
            optim=replace(plateau, lr=2e-5),
            discriminator_optim=replace(DISCRIMINATOR, schedule="plateau"),
            classifier=ClassifierConfig(),
            pf_mag=PfMagConfig(
                weights=LossWeights(cls=1, adv=1, rec=1, ort=1), identity_net="facenet", warmup_steps=2000
            ),
        ),
    }

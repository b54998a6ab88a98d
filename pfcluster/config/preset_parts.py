"""Parts of the presets (presets.py): the recipe of PF-MAG for small nets, and recipes for kinds of faces and nets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pfcluster.config import (
    AugmentConfig,
    CheckpointConfig,
    ClassifierConfig,
    DataConfig,
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
"""Configs by role (presets.ROLES)."""

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
"""Biases of the presets whose published figures were measured before both were lowered
(docs/results/poker_face_search.md)."""


def rendered_faces(size: int, epochs: Mapping[str, float], *, pf_vit: Mapping[str, Any]) -> Recipe:
    """Small nets on the synthetic faces, PF-ViT from MAE-ViT. epochs: of the other roles; pf_vit: arguments of
    `from_classifier`.
    """
    faces = SyntheticConfig(train=4000, validation=500, test=1000, identities=800, nuisance=0.4, min_intensity=0.5)
    model = ModelConfig(patch=8, width=64, decoder_width=96, patch_gain=4.0)
    weak_augment = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    data = DataConfig(size=size, synthetic=faces)
    small_epochs = {**epochs, "finetune": epochs["scratch"], "pf_mag": pf_vit["epochs"]}
    recipe = small_nets(data, model, weak_augment, small_epochs, batch_size=32, warmup_steps=pf_vit["warmup_steps"])
    mae_vit = recipe["mae-vit"]
    return recipe | {
        "mae-vit": replace(mae_vit, epochs=epochs["mae-vit"], batch_size=128, optim=replace(mae_vit.optim, lr=1e-3)),
        "pf-vit": from_classifier(recipe["pf-vit"], **pf_vit),
    }


def small_nets(
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


def from_classifier(pf_vit: RunConfig, *, epochs: float, warmup_steps: int, ema: float) -> RunConfig:
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


def with_erasure(pf_vit: RunConfig, *, start: int, adv: float, anchor: float) -> RunConfig:
    """PF-ViT of `from_classifier` with the erasure from step `start` on, the swap cycle, patch masks that start nearly
    closed and a discriminator that learns during the warm-up; in batches of 64 with 0.7 times the rates.
    """
    return replace(
        pf_vit,
        batch_size=64,
        optim=replace(pf_vit.optim, lr=1.4e-3),
        discriminator_optim=replace(FAST_DISCRIMINATOR, schedule="cosine"),
        pf_mag=replace(
            pf_vit.pf_mag,
            weights=replace(pf_vit.pf_mag.weights, adv=adv, anchor=anchor, swap=250.0),
            warmup_lr=2.1e-3,
            warmup_discriminator=True,
            erasure_start=start,
            patch_mask_bias=-2.0,
        ),
    )


def real_faces(
    model: ModelConfig,
    augment: AugmentConfig,
    epochs: Mapping[str, float],
    *,
    batch_size: int,
    lr: float,
    warmup_steps: int,
) -> Recipe:
    """Classifiers with label smoothing and weight averaging, PF-ViT from MAE-ViT with a weak anchor, at 48 px.

    Nets of every size have the same judge.
    """
    data = DataConfig(size=48, cache_mode="host")
    plain = replace(augment, mixup=0.0)
    recipe = small_nets(data, model, plain, epochs, batch_size=batch_size, warmup_steps=warmup_steps)
    smoothed = ClassifierConfig(label_smoothing=0.1)
    optim = replace(recipe["scratch"].optim, lr=lr, warmup_steps=300, ema=0.998)
    scratch = replace(recipe["scratch"], augment=augment, classifier=smoothed, optim=optim)
    mae = replace(recipe["mae"], batch_size=batch_size, mae=MaeConfig(mask_ratio=0.6))
    pf_vit = from_classifier(recipe["pf-vit"], epochs=epochs["pf_mag"], warmup_steps=warmup_steps, ema=0.99)
    weights = replace(FROM_CLASSIFIER.weights, adv=5.0, anchor=0.3)
    return recipe | {
        "judge": replace(
            recipe["judge"],
            batch_size=128,
            augment=AugmentConfig(erasing=0.25, mixup=0.2),
            classifier=smoothed,
            model=replace(recipe["judge"].model, cnn_widths=(32, 64, 128, 256), cnn_convolutions=2),
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


def paper_nets(model: ModelConfig) -> Recipe:
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


def with_evaluation(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with these evaluation options in all runs but MAE's."""
    return {
        role: config if role == "mae" else replace(config, evaluate=replace(config.evaluate, **options))
        for role, config in recipe.items()
    }

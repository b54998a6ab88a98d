"""Whole configs to start from. A recipe names the runs of one study; each is a `RunConfig` and can be changed by
option.

    judge      a small CNN that will say how neutral the poker faces look
    mae        masked-autoencoder pre-training
    scratch    the classifier without pre-training
    mae-vit    the classifier from MAE's weights
    pf-vit     PF-MAG from MAE's weights
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
    EvaluateConfig,
    LossWeights,
    ModelConfig,
    OptimConfig,
    PfMagConfig,
    RunConfig,
    SyntheticConfig,
)

Recipe = dict[str, RunConfig]
ROLES = ("judge", "mae", "scratch", "mae-vit", "pf-vit")

MAE_AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), rotation=0.0, jitter=0.0)
"""MAE needs little: random resized crop and flip (He et al. 2021, section 4)."""
CRITIC = OptimConfig(algorithm="adam", lr=1e-4, betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")

FAST_DISCRIMINATOR = replace(CRITIC, lr=1e-3)
STABILISED_RECIPE = PfMagConfig(
    weights=LossWeights(cls=1.0, adv=1.0, rec=3.0, ort=0.1),
    fake_class_targets="source",
    discriminator_patch_gain=4.0,
    r1=0.1,
    refine_channels=32,
)
"""PF-MAG that separates, as far as small nets on synthetic faces do (docs/results/poker_face_search.md). Without its
warm-up's steps, which go with the length of a run."""

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
"""The recipe with which ViTs are fine-tuned elsewhere (He et al. 2021, appendix A.2)."""


def demo() -> Recipe:
    """The embedded synthetic faces at 48 px, on two CPU cores: clear expressions, calm photos.

    Command: `python jobs/launch.py demo`; time and figures: README, Results.
    """
    faces = SyntheticConfig(train=4000, validation=500, test=1000, identities=800, nuisance=0.4, min_intensity=0.5)
    model = ModelConfig(patch=8, width=64, decoder_width=96, patch_gain=4.0)
    gentle = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    epochs = {"judge": 7, "mae": 40, "finetune": 10, "pf_mag": 7}
    recipe = _small(DataConfig(size=48, synthetic=faces), model, gentle, epochs, batch_size=32, warmup_steps=400)
    short = replace(
        STABILISED_RECIPE, r1=0.0, warmup_steps=400, discriminator_pretrain_steps=400
    )  # R1 is a fourth of a step's FLOPs
    optim = replace(recipe["pf-vit"].optim, ema=0.99)
    return recipe | {
        "pf-vit": replace(recipe["pf-vit"], pf_mag=short, optim=optim, discriminator_optim=FAST_DISCRIMINATOR)
    }


def poker_face() -> Recipe:
    """The demo's faces and nets, trained long enough for a poker face that is one.

    Command: `python -m benchmarks.poker_faces`; figures: docs/results/poker_faces.md; how it was found:
    docs/results/poker_face_search.md.
    """
    recipe = demo()
    long = replace(
        recipe["pf-vit"],
        epochs=24,
        pf_mag=replace(STABILISED_RECIPE, warmup_steps=1000, discriminator_pretrain_steps=1000),
    )
    recipe["pf-vit"] = replace(long, optim=replace(long.optim, ema=0.998), discriminator_optim=FAST_DISCRIMINATOR)
    often = EvaluateConfig(every_epochs=4, grid_every=8)
    whole = {name: replace(config, data=replace(config.data, cache_mode="host")) for name, config in recipe.items()}
    return {name: config if name == "mae" else replace(config, evaluate=often) for name, config in whole.items()}


def mini() -> Recipe:
    """Synthetic faces with full expressions in a studio, nets smaller than the demo's, runs of a minute: for a search
    on two CPU cores, not for results.

    Command: `python tune/sweep.py`; time and figures: README, Sweeps.
    """
    faces = SyntheticConfig(train=2400, validation=400, test=800, identities=480, nuisance=0.0, min_intensity=1.0)
    model = ModelConfig(patch=8, width=64, decoder_width=64, patch_gain=4.0)
    gentle = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    epochs = {"judge": 5, "mae": 25, "finetune": 6, "pf_mag": 6}
    recipe = _small(DataConfig(size=48, synthetic=faces), model, gentle, epochs, batch_size=32, warmup_steps=150)
    often = EvaluateConfig(every_epochs=0.5, n_poker_faces=400)
    recipe["pf-vit"] = replace(recipe["pf-vit"], optim=replace(recipe["pf-vit"].optim, lr=2e-3))
    return {name: config if name == "mae" else replace(config, evaluate=often) for name, config in recipe.items()}


def miniature(size: str) -> Recipe:
    """Nets of three widths at 40 px, runs of a minute on synthetic faces: the paper's experiments in miniature.

    Command: `python jobs/launch.py reproduce --miniature`; time and figures: docs/results/miniature.md.
    """
    width, heads = {"t": (32, 2), "s": (48, 3), "b": (64, 4)}[size]
    model = ModelConfig(patch=8, width=width, heads=heads, decoder_width=64, patch_gain=4.0)
    gentle = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    epochs = {"judge": 5, "mae": 40, "finetune": 5, "pf_mag": 5}
    data = DataConfig(size=40, cache_mode="host")
    recipe = _small(data, model, gentle, epochs, batch_size=16, warmup_steps=150)
    weights = LossWeights(adv=0.014, rec=0.54, ort=0.017)  # the default sweep's, found on validation of other faces
    recipe["pf-vit"] = replace(recipe["pf-vit"], pf_mag=replace(recipe["pf-vit"].pf_mag, weights=weights))
    recipe["mae-vit"] = replace(recipe["mae-vit"], optim=recipe["scratch"].optim)
    often = EvaluateConfig(n_poker_faces=400)
    return {name: config if name == "mae" else replace(config, evaluate=often) for name, config in recipe.items()}


def small() -> Recipe:
    """A small ViT at 48 px for real photos where no GPU is at hand: for 30,000 faces minutes of one core a run.

    Command: `python jobs/launch.py study --preset small --data.shards DIR`; measured on FER2013: README, Results.
    """
    model = ModelConfig(patch=8, width=96, decoder_width=96, patch_gain=4.0)
    epochs = {"judge": 8, "mae": 12, "finetune": 6, "pf_mag": 8}
    return _small(DataConfig(size=48), model, AugmentConfig(), epochs, batch_size=64, warmup_steps=1500)


def vit_t() -> Recipe:
    """The paper's recipe with ViT-T/16 at 224 px. Not run here; the paper's MAE-ViT-T has 88.72 on RAF-DB."""
    return _paper(ModelConfig(patch=16, width=192, depth=12, heads=3, decoder_width=192, decoder_depth=4))


def vit_s() -> Recipe:
    """The paper's recipe with ViT-S/16 at 224 px. Not run here; the paper's MAE-ViT-S has 90.03 on RAF-DB."""
    return _paper(ModelConfig(patch=16, width=384, depth=12, heads=6, decoder_width=256, decoder_depth=4))


def vit_b() -> Recipe:
    """The paper's recipe with ViT-B/16 at 224 px. Not run here; the paper's PF-ViT has 92.07 on RAF-DB.

    Command: `python jobs/launch.py study --preset vit-b --data.shards DIR --processes 8 --engine.precision bf16`.
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
    "vit-t": vit_t,
    "vit-s": vit_s,
    "vit-b": vit_b,
}


def recipe(name: str) -> Recipe:
    """A preset by name. Raises ConfigError that lists the names."""
    if name not in PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()


def _small(
    data: DataConfig,
    model: ModelConfig,
    augment: AugmentConfig,
    epochs: Mapping[str, float],
    *,
    batch_size: int,
    warmup_steps: int,
) -> Recipe:
    """Small nets at small sizes: higher rates than the paper's, few epochs. From MAE's weights half the rate does."""
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
        discriminator_optim=replace(CRITIC, lr=2e-4),
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


def _paper(model: ModelConfig) -> Recipe:
    """docs/concepts/method.md: 300 epochs of MAE at batch 4096 (base rate 1.5e-4 for 256), then batch 32, Adam,
    plateau, 100 epochs.
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
            discriminator_optim=replace(CRITIC, schedule="plateau"),
            classifier=ClassifierConfig(),
            pf_mag=PfMagConfig(
                weights=LossWeights(cls=1, adv=1, rec=1, ort=1), identity_net="facenet", warmup_steps=2000
            ),
        ),
    }

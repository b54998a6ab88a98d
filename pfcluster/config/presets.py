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
    ConfigError,
    DataConfig,
    EngineConfig,
    ModelConfig,
    SyntheticConfig,
)
from pfcluster.config.preset_parts import (
    Recipe,
    from_classifier,
    paper_nets,
    real_faces,
    rendered_faces,
    small_nets,
    with_erasure,
    with_evaluation,
)

ROLES = ("judge", "mae", "scratch", "mae-vit", "pf-vit")

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
    recipe = rendered_faces(
        32,
        {"judge": 6, "mae": 30, "scratch": 8, "mae-vit": 20},
        pf_vit={"epochs": 26, "warmup_steps": 660, "ema": 0.985},
    )
    return recipe | {"pf-vit": with_erasure(recipe["pf-vit"], start=50, adv=2.0, anchor=2.0)}


def poker_face() -> Recipe:
    """The demo's faces and nets at 48 px, trained long enough for neutral poker faces.

    Command: `python -m benchmarks.poker_faces`. Results: docs/results/poker_faces.md; search for the options:
    docs/results/poker_face_search.md.
    """
    recipe = rendered_faces(
        48,
        {"judge": 7, "mae": 40, "scratch": 10, "mae-vit": 90},
        pf_vit={"epochs": 100, "warmup_steps": 2400, "ema": 0.9975},
    )
    pf_vit = with_erasure(recipe["pf-vit"], start=100, adv=1.75, anchor=4.0)
    recipe["pf-vit"] = replace(pf_vit, evaluate=replace(pf_vit.evaluate, select_from=0.85))
    cached = {name: replace(config, data=replace(config.data, cache_mode="host")) for name, config in recipe.items()}
    return with_evaluation(cached, every_epochs=4, grid_every=8)


def mini() -> Recipe:
    """Synthetic faces with full expressions and no nuisance, nets smaller than the demo's, runs of a minute: for trying
    out sweeps on two CPU cores, not for results.

    Command: `pfcluster sweep` (docs/guides/sweeps.md).
    """
    faces = SyntheticConfig(train=2400, validation=400, test=800, identities=480, nuisance=0.0, min_intensity=1.0)
    model = ModelConfig(patch=8, width=64, decoder_width=64, patch_gain=4.0)
    weak_augment = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    epochs = {"judge": 5, "mae": 25, "finetune": 6, "pf_mag": 6}
    recipe = small_nets(
        DataConfig(size=48, synthetic=faces), model, weak_augment, epochs, batch_size=32, warmup_steps=150
    )
    recipe["pf-vit"] = replace(recipe["pf-vit"], optim=replace(recipe["pf-vit"].optim, lr=2e-3))
    return with_evaluation(recipe, every_epochs=0.5, n_poker_faces=400)


def miniature(size: str) -> Recipe:
    """Nets of three widths at 32 px, runs of a minute on synthetic faces: a scaled-down version of the paper's
    experiments, with the recipe that separates small nets.

    Command: `pfcluster reproduce --miniature`. Results: docs/results/miniature.md.
    """
    width, heads = {"t": (32, 2), "s": (48, 3), "b": (64, 4)}[size]
    model = ModelConfig(patch=8, width=width, heads=heads, decoder_width=64, patch_gain=4.0)
    weak_augment = AugmentConfig(crop_scale=(0.9, 1.0), rotation=0.0, jitter=0.1)
    epochs = {"judge": 5, "mae": 30, "finetune": 12, "pf_mag": 11}
    recipe = small_nets(
        DataConfig(size=32, cache_mode="host"), model, weak_augment, epochs, batch_size=64, warmup_steps=180
    )
    judge, mae_vit = recipe["judge"], replace(recipe["mae-vit"], optim=recipe["scratch"].optim)
    pf_vit = replace(from_classifier(recipe["pf-vit"], epochs=11, warmup_steps=180, ema=0.95), batch_size=64)
    recipe |= {"judge": replace(judge, batch_size=32), "mae-vit": mae_vit, "pf-vit": pf_vit}
    return with_evaluation(recipe, every_epochs=3, n_poker_faces=400)


def small() -> Recipe:
    """A small ViT at 48 px for real photos without a GPU: minutes per run on one core for 30,000 faces.

    Command: `pfcluster study --preset small --data.shards DIR`. Results on FER2013: docs/results.
    """
    model = ModelConfig(patch=8, width=96, decoder_width=96, patch_gain=4.0)
    epochs = {"judge": 8, "mae": 12, "finetune": 6, "pf_mag": 8}
    return small_nets(DataConfig(size=48), model, AugmentConfig(), epochs, batch_size=64, warmup_steps=1500)


def fer2013() -> Recipe:
    """A ViT of 0.7 M parameters with a convolutional stem at 48 px, for FER2013 and photos like it: hours per run on
    one core, PF-MAG from MAE-ViT with a weak anchor, because a discriminator learns little about real emotions.

    Command: `pfcluster study --preset fer2013 --data.shards DIR`. Results: docs/results/fer2013.md.
    """
    model = ModelConfig(
        patch=8, stem_channels=(32, 64, 96), width=96, depth=3, heads=3, decoder_width=96, patch_gain=1.0
    )
    epochs = {"judge": 45, "mae": 6, "finetune": 30, "pf_mag": 12}
    return real_faces(model, AugmentConfig(erasing=0.25), epochs, batch_size=128, lr=1.5e-3, warmup_steps=900)


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
    epochs = {"judge": 45, "mae": 30, "finetune": 50, "pf_mag": 12}
    recipe = real_faces(model, augment, epochs, batch_size=256, lr=7e-4, warmup_steps=400)
    for role in ("scratch", "mae-vit"):
        recipe[role] = replace(recipe[role], model=replace(model, drop_path=0.1))
    return {role: replace(config, engine=EngineConfig(precision="bf16")) for role, config in recipe.items()}


def vit_t() -> Recipe:
    """ViT-T/16 at 224 px with the paper's hyperparameters. Not verified here; the paper's MAE-ViT-T reaches 88.72 % on
    RAF-DB."""
    return paper_nets(ModelConfig(patch=16, width=192, depth=12, heads=3, decoder_width=192, decoder_depth=4))


def vit_s() -> Recipe:
    """ViT-S/16 at 224 px with the paper's hyperparameters. Not verified here; the paper's MAE-ViT-S reaches 90.03 % on
    RAF-DB."""
    return paper_nets(ModelConfig(patch=16, width=384, depth=12, heads=6, decoder_width=256, decoder_depth=4))


def vit_b() -> Recipe:
    """ViT-B/16 at 224 px with the paper's hyperparameters. Not verified here; the paper's PF-ViT reaches 92.07 % on
    RAF-DB.

    Command: `pfcluster study --preset vit-b --data.shards DIR --processes 8 --engine.precision bf16`.
    """
    sizes = ModelConfig(patch=16, width=768, depth=12, heads=12, decoder_width=512, decoder_depth=8, decoder_heads=16)
    return paper_nets(sizes)


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

"""What a preset's PF-ViT starts from: the MAE's weights, as in the paper, or MAE-ViT fine-tuned with the same seed.

A preset of the second kind has the placeholder SAME_SEED_MAE_VIT as `model.init` of its role `pf-vit`. Studies, sweeps
and reproductions replace it by the folder of the run with role `mae-vit` and the same seed, and put the folder of that
run's MAE into `pf_mag.decoder_init`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pfcluster.config.run import RunConfig
from pfcluster.config.validation import ConfigError

PfVitStart = Literal["mae", "mae-vit"]
MAE_VIT = "mae-vit"
EQUAL_EPOCHS, EQUAL_FLOPS = f"{MAE_VIT}-equal-epochs", f"{MAE_VIT}-equal-flops"
"""Names of MAE-ViT trained for as many epochs, or FLOPs, as PF-ViT and the MAE-ViT that it starts from."""
SAME_SEED_MAE_VIT = f"same-seed:{MAE_VIT}"


def starts_from_mae_vit(recipe: Mapping[str, RunConfig]) -> bool:
    """Whether the recipe's PF-ViT starts from the MAE-ViT with its own seed."""
    return recipe["pf-vit"].model.init == SAME_SEED_MAE_VIT


def with_start(recipe: Mapping[str, RunConfig], start: PfVitStart | None) -> dict[str, RunConfig]:
    """The recipe with another start of its PF-ViT; None keeps the recipe's own."""
    if start is None:
        return dict(recipe)
    pf_vit = recipe["pf-vit"]
    init = SAME_SEED_MAE_VIT if start == MAE_VIT else None
    return {**recipe, "pf-vit": replace(pf_vit, model=replace(pf_vit.model, init=init))}


def from_mae_vit(pf_vit: RunConfig, mae_vit_folder: str, mae_folder: str) -> RunConfig:
    """PF-ViT's config with the runs that it starts from: encoder and head of MAE-ViT, decoder of the MAE unless the
    config names another.
    """
    decoder = pf_vit.pf_mag.decoder_init or mae_folder
    return replace(
        pf_vit,
        model=replace(pf_vit.model, init=mae_vit_folder),
        pf_mag=replace(pf_vit.pf_mag, decoder_init=decoder),
    )


def require_classifier_start(pf_vit: RunConfig, option: str) -> None:
    """For a PF-ViT that starts from the MAE. Raises ConfigError if its discriminator starts from a classifier.

    `option`: the command's option that chooses the start.
    """
    if pf_vit.pf_mag.discriminator_init == "classifier":
        raise ConfigError(
            f'pf_mag.discriminator_init must be "decoder" if PF-ViT starts from the MAE, which has no classifier, got'
            f' "classifier"; or start it from MAE-ViT with {option} {MAE_VIT}'
        )

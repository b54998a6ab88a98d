"""Leave-one-out: what each part of the PF-ViT recipe contributes, at the demo's length, not on the search's faces.

python -m benchmarks.recipe_parts [--seeds 1 2 3]    train missing runs, write docs/results/recipe_parts.{json,md}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import recipe_variants
from benchmarks.poker_faces import FACES
from pfcluster.config import RunConfig, presets
from pfcluster.config.data import no_augment
from pfcluster.launch.plan import Plan

COMMAND = "python -m benchmarks.recipe_parts"
NAME = "recipe_parts"
FIGURES: recipe_variants.Columns = {
    "accuracy": ("accuracy", None, 1),
    "judged neutral": ("poker_neutralised_rate", None, 1),
    "reconstructions recognised": ("rec_emotion_agreement", None, 1),
    "error in the region": ("poker_mse_inside", "input_mse_inside", -1),
    "error outside": ("poker_mse_outside", "rec_mse_outside", -1),
}

LEGEND = (
    "Bold: differs from the whole recipe, p < 0.05 (Holm's correction over the table); (better) where leaving it out "
    "helps. Reproduce, at that commit, with"
)
FOOTNOTE = (
    "Error in the region: of the poker face, over the photo's. Error outside: of the poker face, over the "
    "reconstruction's. Both against the true poker face."
)


def parts(recipe: RunConfig) -> dict[str, dict[str, Any]]:
    """What is left out -> config values that leave it out. benchmarks/poker_faces.py leaves out the adversary."""
    every = recipe.pf_mag.generate_every
    return {
        "discriminator as a copy of MAE-ViT": {
            "pf_mag.discriminator_init": "decoder",
            "pf_mag.warmup_discriminator": True,
        },
        "augmentation of the discriminator's input": {
            f"discriminator_augment.{field}": value for field, value in asdict(no_augment()).items()
        },
        "residual emotions as targets (`source`)": {"pf_mag.fake_class_targets": "ignore"},
        "R1": {"pf_mag.r1": 0.0},
        "anchor": {"pf_mag.weights.anchor": 0.0},
        "position bias of the fusion": {"pf_mag.fusion_bias": None},
        "overlapping patches": {"pf_mag.patch_overlap": 0},
        "small gradient share into the encoder": {"pf_mag.encoder_grad_share": 1.0},
        "classification of further images": {
            "pf_mag.generate_every": 1,
            "batch_size": recipe.batch_size // every,
            "epochs": recipe.epochs / every,
        },
        "high rate in the warm-up": {"pf_mag.warmup_lr": None},
        "orthogonality": {"pf_mag.weights.ort": 0.0},
    }


def named_parts(recipe: RunConfig) -> dict[str, dict[str, Any]]:
    """`parts` by the names of their runs."""
    return {f"without-{number:02d}": values for number, values in enumerate(parts(recipe).values(), start=1)}


def plan(folder: Path, seeds: Sequence[int]) -> Plan:
    """The runs: the recipe, and the recipe without each part."""
    variants = named_parts(presets.recipe("demo")["pf-vit"])
    return recipe_variants.variants_plan(NAME, folder, seeds, variants, faces=FACES, command=COMMAND)


def results(folder: Path, seeds: Sequence[int], commit: str | None) -> dict[str, Any]:
    """Content of recipe_parts.json. `commit` is recorded where the runs do not know theirs."""
    recipe = presets.recipe("demo")["pf-vit"]
    rows = dict(zip(parts(recipe), named_parts(recipe), strict=True))
    return recipe_variants.leave_one_out(folder, seeds, FIGURES, rows, command=COMMAND, commit=commit)


def markdown(values: Mapping[str, Any]) -> str:
    """recipe_parts.md from the content of recipe_parts.json."""
    lines = [
        "# The recipe without each of its parts",
        "",
        f"{recipe_variants.measured_line(values)} {LEGEND}",
        "",
        f"    {values['command']}",
        "",
        *recipe_variants.table({"recipe": values["recipe"], "variants": values["without"]}, FIGURES, first="without"),
        "",
        FOOTNOTE,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(recipe_variants.train_and_write(__doc__, NAME, plan, results, markdown))

"""Leave-one-out of what goes with the erasure, at the demo's length and on the faces of benchmarks/recipe_parts.py.

python -m benchmarks.erasure_parts [--seeds 1 2 3]    train missing runs, write docs/results/erasure_parts.{json,md}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import recipe_parts, recipe_variants
from benchmarks.poker_faces import EVALUATION, FACES
from pfcluster.launch.plan import Plan

COMMAND = "python -m benchmarks.erasure_parts"
NAME = "erasure_parts"
FIGURES: recipe_variants.Columns = {
    **recipe_parts.FIGURES,
    "transfers recognised": ("transfer_emotion_agreement", None, 1),
    "emotion from f_p, linear": ("f_p_emotion_probe", None, -1),
}
PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "without-erasure": ("erasure", {"pf_mag.erasure_start": None}),
    "without-swap": ("swap cycle", {"pf_mag.weights.swap": 0.0}),
    "without-mask-bias": ("patch masks that start nearly closed", {"pf_mag.patch_mask_bias": None}),
    "without-updates": ("updates of the discriminator in the warm-up", {"pf_mag.warmup_discriminator": False}),
}
"""Name of the runs -> what is left out, and config values that leave it out."""


def plan(folder: Path, seeds: Sequence[int]) -> Plan:
    """The runs: the recipe, and the recipe without each part."""
    variants = {name: values for name, (_, values) in PARTS.items()}
    return recipe_variants.variants_plan(NAME, folder, seeds, variants, faces=FACES, command=COMMAND, common=EVALUATION)


def results(folder: Path, seeds: Sequence[int], commit: str | None) -> dict[str, Any]:
    """Content of erasure_parts.json. `commit` is recorded where the runs do not know theirs."""
    rows = {part: name for name, (part, _) in PARTS.items()}
    return recipe_variants.leave_one_out(folder, seeds, FIGURES, rows, command=COMMAND, commit=commit)


def markdown(values: Mapping[str, Any]) -> str:
    """erasure_parts.md from the content of erasure_parts.json."""
    cells = {"recipe": values["recipe"], "variants": values["without"]}
    lines = [
        "# What goes with the erasure",
        "",
        f"{recipe_variants.measured_line(values)} {recipe_parts.LEGEND}",
        "",
        f"    {values['command']}",
        "",
        *recipe_variants.table(cells, FIGURES, first="without"),
        "",
        f"{recipe_parts.FOOTNOTE} Transfers: faces with the emotion tokens of another one, whose emotion the judge "
        "recognises. Chance of the linear probe is 0.126.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(recipe_variants.train_and_write(__doc__, NAME, plan, results, markdown))

"""Control rows of a study: MAE-ViT trained for as long as PF-ViT and what it starts from, by epochs or by FLOPs.

They show how much of PF-ViT's gain over MAE-ViT comes from longer training alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pfcluster.config import RunConfig
from pfcluster.config.starts import EQUAL_EPOCHS, EQUAL_FLOPS

BudgetControl = Literal["epochs", "flops"]
CONTROL_NAMES: dict[BudgetControl, str] = {"epochs": EQUAL_EPOCHS, "flops": EQUAL_FLOPS}


def budget_controls(
    kinds: Sequence[BudgetControl], mae_vit: RunConfig, pf_vit: RunConfig, *, starts_from_mae_vit: bool
) -> list[RunConfig]:
    """MAE-ViT's config with the lengths that PF-ViT's training amounts to, including MAE-ViT's own where PF-ViT starts
    from it. Learning-rate schedules cover the whole length. Raises DataError.
    """
    from pfcluster.data.dataset import open_dataset
    from pfcluster.profiling.training_cost import equal_epochs, equal_flops, training_cost

    if not kinds:
        return []
    dataset = open_dataset(pf_vit.data, pf_vit.seed)
    classes, samples = len(dataset.classes), len(dataset.train)
    budget = training_cost(pf_vit, classes, samples)
    if starts_from_mae_vit:
        budget += training_cost(mae_vit, classes, samples)
    make = {
        "epochs": lambda name: equal_epochs(mae_vit, budget, name),
        "flops": lambda name: equal_flops(mae_vit, budget, classes, samples, name),
    }
    return [make[kind](CONTROL_NAMES[kind]) for kind in dict.fromkeys(kinds)]

"""Population-based training (Jaderberg et al. 2017), generation by generation: the worst quarter of the members
continues from checkpoints of the best quarter, with perturbed values. A function of the spec and the scores alone.

Trial g * members + m is member m in generation g. The first generation is drawn at random; member 0 is the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.space import Parameter
from pfcluster.sweep.spec import Spec

RESAMPLE_PROBABILITY = 0.25
"""Probability that a copied value is drawn again instead of perturbed."""
FACTORS = (0.8, 1.2)
"""Perturbation factors of a copied number."""


def generation_ends(spec: Spec, schedule: EvalSchedule, first_step: int) -> list[int]:
    """Steps at which the generations end: equal parts of the steps after `first_step`, rounded up to evaluations."""
    part = (schedule.total - first_step) / spec.generations
    ends = [schedule.at_or_after(first_step + part * (number + 1)) for number in range(spec.generations - 1)]
    return [*ends, schedule.total]


def draw(spec: Spec, baseline: Mapping[str, Any], member: int) -> dict[str, Any]:
    """A member's values in the first generation."""
    if member == 0:
        return dict(baseline)
    random = Random(f"{spec.seed}/{member}")
    return spec.valid_draw(lambda _: {one.name: one.draw(random) for one in spec.space})


def offspring(
    spec: Spec, generation: int, values: Sequence[Mapping[str, Any]], scores: Sequence[float | None]
) -> list[tuple[int, dict[str, Any]]]:
    """For each member of a generation: the member of the previous one whose checkpoints it starts from, and its values.

    Members that failed (score None) rank last.
    """
    members = len(values)
    ranks = [float("-inf") if score is None else score for score in scores]
    order = sorted(range(members), key=lambda member: (ranks[member], -member), reverse=True)
    quarter = max(1, members // 4)
    best = [member for member in order[:quarter] if scores[member] is not None]
    replaced = set(order[-quarter:]) | {member for member in range(members) if scores[member] is None}
    children: list[tuple[int, dict[str, Any]]] = []
    for member in range(members):
        random = Random(f"{spec.seed}/{generation}/{member}")
        if member in replaced and best and member not in best:
            parent = random.choice(best)
            children.append((parent, _perturbed_values(spec, values[parent], random)))
        else:
            children.append((member, dict(values[member])))
    return children


def _perturbed_values(spec: Spec, values: Mapping[str, Any], random: Random) -> dict[str, Any]:
    return spec.valid_draw(lambda _: {one.name: _perturbed(one, values[one.name], random) for one in spec.space})


def _perturbed(parameter: Parameter, value: Any, random: Random) -> Any:
    """A copied value, changed by a fifth or drawn again; a choice moves to a neighbour."""
    if random.random() < RESAMPLE_PROBABILITY or not parameter.holds(value):
        return parameter.draw(random)
    if parameter.kind == "choice":
        index = parameter.choices.index(value) + random.choice((-1, 1))
        return parameter.choices[min(max(index, 0), len(parameter.choices) - 1)]
    scaled = min(max(value * random.choice(FACTORS), parameter.low), parameter.high)
    return round(scaled) if parameter.kind == "int" else parameter.rounded(scaled)

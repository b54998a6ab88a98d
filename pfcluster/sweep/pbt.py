"""Population-based training (Jaderberg et al. 2017), generation by generation: the worst quarter of the members goes on
from checkpoints of the best quarter, with values changed a little. A function of the spec and the scores alone.

Trial g * members + m is member m in generation g. Its first generation is drawn by chance, member 0 being the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.space import Parameter
from pfcluster.sweep.spec import Spec

RESAMPLED = 0.25
"""Chance that a copied value is drawn anew instead of moved."""
FACTORS = (0.8, 1.2)
"""What a copied value is multiplied by."""


def ends(spec: Spec, course: EvalSchedule, first_step: int) -> list[int]:
    """Steps at which the generations end: equal parts of what follows `first_step`, at evaluations."""
    part = (course.total - first_step) / spec.generations
    return [course.at_least(first_step + part * (number + 1)) for number in range(spec.generations - 1)] + [
        course.total
    ]


def draw(spec: Spec, baseline: Mapping[str, Any], member: int) -> dict[str, Any]:
    """A member's first values."""
    if member == 0:
        return dict(baseline)
    random = Random(f"{spec.seed}/{member}")
    return {one.name: one.draw(random) for one in spec.space}


def offspring(
    spec: Spec, generation: int, values: Sequence[Mapping[str, Any]], scores: Sequence[float | None]
) -> list[tuple[int, dict[str, Any]]]:
    """For each member of a generation the member of the one before that it goes on from, and its values.

    Members that failed (score None) count as the worst of all.
    """
    members = len(values)
    order = sorted(range(members), key=lambda member: (_known(scores[member]), -member), reverse=True)
    quarter = max(1, members // 4)
    best = [member for member in order[:quarter] if scores[member] is not None]
    replaced = set(order[-quarter:]) | {member for member in range(members) if scores[member] is None}
    found: list[tuple[int, dict[str, Any]]] = []
    for member in range(members):
        random = Random(f"{spec.seed}/{generation}/{member}")
        if member in replaced and best and member not in best:
            parent = random.choice(best)
            found.append((parent, {one.name: _changed(one, values[parent][one.name], random) for one in spec.space}))
        else:
            found.append((member, dict(values[member])))
    return found


def _known(score: float | None) -> float:
    return float("-inf") if score is None else score


def _changed(parameter: Parameter, value: Any, random: Random) -> Any:
    """A copied value, moved by a fifth or drawn anew; a choice moves to a neighbour."""
    if random.random() < RESAMPLED or not parameter.holds(value):
        return parameter.draw(random)
    if parameter.kind == "choice":
        index = parameter.choices.index(value) + random.choice((-1, 1))
        return parameter.choices[min(max(index, 0), len(parameter.choices) - 1)]
    moved = value * random.choice(FACTORS)
    moved = min(max(moved, parameter.low), parameter.high)
    return round(moved) if parameter.kind == "int" else parameter.rounded(moved)

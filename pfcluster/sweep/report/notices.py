"""Warnings of a sweep's report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pfcluster.report.errors import Notice
from pfcluster.report.formatting import number
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.report.rows import OPEN_STATES

EDGE = 0.02
"""Values within this fraction of the range of an end count as lying at the end."""


def notices(data: SweepData) -> list[Notice]:
    """Everything that limits how far the results can be trusted."""
    return [*_unfinished(data), *_confirmation(data), *_failures(data), *_ranges(data), *_selection_bias(data)]


def _unfinished(data: SweepData) -> Iterator[Notice]:
    if data.complete:
        return
    states = Counter(row.state for row in data.rows if row.state in OPEN_STATES)
    trained = ", ".join(f"{count} of them are {state}" for state, count in states.items())
    text = f"{len(data.rows)} of {data.expected} trials have been proposed{trained and f', {trained}'}"
    if data.search_complete and not data.confirmed:
        text = "the search is complete, the confirmation has not started"
    elif data.search_complete:
        done = sum(len(one.scores) for one in data.confirmed)
        text = f"{done} of {len(data.confirmed) * len(data.spec.fresh_seeds)} runs on fresh seeds are done"
    yield Notice("not finished", f"{text}. The sweep's command continues from there, and these numbers may change.")


def _confirmation(data: SweepData) -> Iterator[Notice]:
    spec = data.spec
    if not spec.confirm:
        yield Notice("not confirmed", "--confirm 0: all scores are from the search, whose best is overestimated.")
    elif len(spec.fresh_seeds) < 3:
        yield Notice(
            "few fresh seeds",
            f"with {len(spec.fresh_seeds)} of them intervals are very wide and tests have little power.",
        )
    elif data.search_complete and len(data.confirmed) == 1:
        yield Notice("nothing confirmed", "no trial except the baseline was completed.")


def _failures(data: SweepData) -> Iterator[Notice]:
    failed = [row.trial.name for row in data.rows if row.state == "failed"]
    if failed:
        yield Notice("trials failed", f"{', '.join(failed)} have no score, and the search could not use them.")
    for one in data.confirmed:
        if one.failed is not None:
            name = one.row.trial.name if one.row.trial.number else "the baseline"
            yield Notice("a run on a fresh seed failed", f"{name}: {one.failed.error}. It is compared on fewer seeds.")
    if data.spec.uses_asha and data.schedule is not None and data.first_rung is None:
        yield Notice("no early stopping", f"{data.schedule.total} steps have too few evaluations for ASHA.")


def _ranges(data: SweepData) -> Iterator[Notice]:
    values = data.rows[0].trial.values
    outside = [one.name for one in data.spec.space if not one.holds(values[one.name])]
    if outside:
        yield Notice(
            "baseline outside the space",
            f"its {', '.join(outside)} lies outside the searched range, where the search tried nothing.",
        )
    best = data.best
    if best is None or data.spec.search in ("grid", "one-at-a-time"):
        return
    numbers = [one for one in data.spec.space if one.kind != "choice"]
    edge = [one.name for one in numbers if not EDGE < one.fraction_of(best.trial.values[one.name]) < 1 - EDGE]
    if edge:
        yield Notice(
            "value at the end of its range",
            f"{best.trial.name} has {', '.join(edge)} at an end of the range: a wider range may contain better values.",
        )


def _selection_bias(data: SweepData) -> Iterator[Notice]:
    faces = data.dataset.get("validation")
    split = f"{faces} validation faces (one face is {number(1 / faces, 4)})" if faces else "validation"
    yield Notice(
        "optimistic scores",
        f"each score is the best of a run's evaluations on {split}, and the search's best is the best of "
        f"{len(data.rows)} trials. Fresh seeds remove the second bias, the test split both.",
    )
    if len(data.confirmed) > 2:
        yield Notice(
            "selection among confirmed trials",
            f"the winner is the best of {len(data.confirmed) - 1} on the fresh seeds on which it is compared, which "
            "biases its score upwards; Holm's correction accounts for that, and the test split is unbiased.",
        )

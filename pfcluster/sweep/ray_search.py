"""The driver as Ray Tune sees it: a search algorithm whose suggestions are the runs that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, USER_ERROR, ExitStatus

if TYPE_CHECKING:
    from pfcluster.sweep.ray import RayExecutor


def queued(executor: RayExecutor) -> Any:
    """The search algorithm of an executor. Ray is imported here alone."""
    from ray.tune.search import Searcher

    class Queued(Searcher):
        """Suggests what waits; says what ended."""

        def __init__(self) -> None:
            super().__init__(metric=None, mode=None)
            self.jobs: dict[str, TrainRun] = {}
            self.results: dict[str, dict[str, Any]] = {}

        def __reduce__(self) -> Any:
            """Tune keeps a copy of what it was given; nobody needs this one's."""
            return str, ()

        def suggest(self, trial_id: str) -> Any:
            """The next run; None while there is none, FINISHED once there will be none."""
            if executor.waiting.empty():
                return Searcher.FINISHED if executor.closing.is_set() else None
            job = executor.waiting.get()
            self.jobs[trial_id] = job
            return {"folder": str(job.folder.resolve())}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """Keep what a trial said last."""
            self.results[trial_id] = result

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            """Hand the ending to the driver."""
            told = result or self.results.get(trial_id) or {}
            executor.ended.put((self.jobs.pop(trial_id), ending_of(told, error, executor.retries)))

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the sweep's folder holds all that is known."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, likewise."""

    return Queued()


def ending_of(told: dict[str, Any], error: bool, retries: int) -> ExitStatus:
    """How a run ended, from the last that its actor reported."""
    if "code" in told and (told["code"] in (FINISHED, INTERRUPTED, USER_ERROR) or told["kind"] is not None):
        return ExitStatus(told["code"], told["kind"], told["error"])
    if error:
        return ExitStatus(FAILED, "lost rank", f"its Ray worker was lost, {retries + 1} times")
    return ExitStatus(FAILED, "bug", "it ended without a word; look at its logs")

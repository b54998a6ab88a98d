"""Whether the gradients of each step were finite, read one step late or where training waits anyway."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pfcluster.engine.base import Engine, NonFiniteError
from pfcluster.engine.finite import HostCopy, UpdateGuard
from pfcluster.training.objective import Metrics, Objective


class NonFiniteStep(RuntimeError):
    """A gradient of a step was not finite. Weights, optimizers, buffers and the objective's state are those before its
    first update that failed.
    """

    def __init__(self, step: int, reason: str, *, untouched: bool) -> None:
        super().__init__(reason)
        self.step = step
        """0-based; the number of complete steps before it."""
        self.untouched = untouched
        """Whether no engine was updated in the step."""


@dataclass(frozen=True)
class _Snapshot:
    """State before a step that the step changes, besides weights and optimizers."""

    step: int
    objective: dict[str, Any]
    buffers: list[tuple[Tensor, Tensor]]
    """Running statistics of batch norms, and copies of them."""
    updates: list[int]


class StepChecks:
    """Runs training steps and reads their gradient norms when the next step has been queued.

    ZeRO reads its norms itself and raises in the step.
    """

    def __init__(self, engines: Mapping[str, Engine], objective: Objective, device: torch.device) -> None:
        self.engines, self.objective = list(engines.values()), objective
        self.guard = UpdateGuard(device)
        for engine in self.engines:
            engine.guard = self.guard
        norms = [part for engine in self.engines for part in engine.module.modules() if isinstance(part, _BatchNorm)]
        self._buffers = [buffer for part in norms for buffer in part.buffers()]
        self._unread: deque[tuple[_Snapshot, HostCopy]] = deque()

    def run(self, step: int, train: Callable[[], Metrics]) -> Metrics:
        """Train a step; then read the norms of the step before. Raises NonFiniteStep for either."""
        before = self._snapshot(step)
        try:
            metrics = train()
        except NonFiniteError as error:
            self._restore(before)
            untouched = [engine.updates for engine in self.engines] == before.updates
            raise NonFiniteStep(step, str(error), untouched=untouched) from error
        self._unread.append((before, self.guard.take_norms()))
        self._read(1)
        return metrics

    def require_finite(self) -> None:
        """Read the norms of all steps so far, before anything is evaluated, logged or saved. Raises NonFiniteStep."""
        self._read(0)

    def _read(self, unread: int) -> None:
        """Read until only the newest `unread` steps are unread."""
        while len(self._unread) > unread:
            before, copy = self._unread.popleft()
            for number, norm in enumerate(copy.read()):
                if not math.isfinite(norm):
                    self._restore(before)
                    raise NonFiniteStep(before.step, f"the gradients' norm is {norm}", untouched=number == 0)

    def _snapshot(self, step: int) -> _Snapshot:
        buffers = [(buffer, buffer.clone()) for buffer in self._buffers]
        return _Snapshot(step, self.objective.state(), buffers, [engine.updates for engine in self.engines])

    def _restore(self, before: _Snapshot) -> None:
        """Undo what the step and those queued after it changed."""
        for buffer, value in before.buffers:
            buffer.copy_(value)
        self.objective.load_state(before.objective)
        self._unread.clear()

"""Gradients that are not finite, without waiting for the device: it skips updates, and the host reads a step later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class UpdateGuard:
    """Shared by the engines of a run. From the first norm that is not finite on, all updates are skipped, so that the
    weights are still those before it when the host reads the norm.
    """

    def __init__(self, device: torch.device) -> None:
        self.skips = torch.zeros((), device=device)
        """1 if updates are skipped, else 0: an optimizer's `found_inf`."""
        self._norms: list[Tensor] = []

    def observe(self, norm: Tensor) -> Tensor:
        """Note the gradient norm of the next update; -> whether to skip it, as `skips`."""
        self.skips = torch.maximum(self.skips, (~norm.isfinite()).float())
        self._norms.append(norm)
        return self.skips

    def take_norms(self) -> HostCopy:
        """The norms since the last call, in the order of the updates."""
        norms, self._norms = self._norms, []
        return HostCopy(norms)


class HostCopy:
    """Scalars on their way to the host."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._values = torch.stack([value.detach().float() for value in values]) if values else torch.empty(0)
        if self._values.is_cuda:
            pinned = torch.empty(self._values.shape, pin_memory=True)
            self._values = pinned.copy_(self._values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """The values. Waits for the work that was queued when this was made, not for later work."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._values.tolist()
        return values

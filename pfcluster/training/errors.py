"""Errors that end a training run."""

from __future__ import annotations

import re

import torch

from pfcluster.engine.base import EngineError, NonFiniteError


class TrainingError(RuntimeError):
    """Training cannot continue. The message names the step, the samples and the remedy."""


def is_communication_error(error: Exception) -> bool:
    """Whether another rank may have caused an error: gloo and NCCL raise plain RuntimeErrors."""
    if isinstance(error, TrainingError | EngineError | NonFiniteError | torch.OutOfMemoryError):
        return False
    return re.search(r"gloo|nccl|connection|timed out|store|socket", str(error), re.IGNORECASE) is not None

"""Errors of inference."""

from __future__ import annotations


class InferenceError(ValueError):
    """A model, an input or an output cannot be used: names it, the reason and the remedy."""


class NoGeneratorError(InferenceError):
    """A poker face was asked of a model that classifies only."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"the model {model} has no generator of poker faces, it classifies only; use a model of `pfcluster pf-mag`"
            " with a separator"
        )


class NoDetectorError(InferenceError):
    """Faces were to be detected without a detector."""

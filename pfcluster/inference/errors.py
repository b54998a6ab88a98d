"""Errors of inference."""

from __future__ import annotations


class InferenceError(ValueError):
    """A model, an input or an output cannot be used: names it, the reason and the remedy."""


class NoGeneratorError(InferenceError):
    """A poker face was asked of a model that classifies only."""


class NoDetectorError(InferenceError):
    """Faces were to be detected without a detector."""

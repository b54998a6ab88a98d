"""Emotion vocabularies. Two datasets meet through the names here, never through numbers.

`CANONICAL` is AffectNet's order with neutral first. A dataset keeps its labels in its own order; that order is a tuple
of canonical names, stored in its manifest.
"""

from __future__ import annotations

from collections.abc import Sequence

CANONICAL = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
NEUTRAL = "neutral"

ALIASES = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "scared": "fear",
    "afraid": "fear",
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
    "contemptuous": "contempt",
    "normal": "neutral",
    "calm": "neutral",
}


class UnknownEmotionError(ValueError):
    """A label that is no emotion of the canonical vocabulary, nor a known other spelling of one."""


def canonical_name(label: str) -> str:
    """The canonical name of one label: `"Happy"` -> `"happiness"`. Raises UnknownEmotionError."""
    name = label.strip().lower()
    name = ALIASES.get(name, name)
    if name not in CANONICAL:
        raise UnknownEmotionError(
            f"label {label!r} is no known emotion; known are {', '.join(CANONICAL)}"
            f" and the spellings {', '.join(sorted(ALIASES))}"
        )
    return name


def ordered(names: Sequence[str]) -> tuple[str, ...]:
    """The given canonical names, without repetition, in canonical order."""
    present = set(names)
    return tuple(name for name in CANONICAL if name in present)


def neutral_index(classes: Sequence[str]) -> int | None:
    """Where `neutral` stands among `classes`; None where the dataset has no such class."""
    return list(classes).index(NEUTRAL) if NEUTRAL in classes else None


def mapping(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """For each class of `source` its index in `target`, by name; None where `target` lacks it."""
    target_index = {name: index for index, name in enumerate(target)}
    return [target_index.get(name) for name in source]

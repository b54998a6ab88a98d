"""Emotion vocabularies. Two datasets meet through the names here, never through numbers.

`CANONICAL` is AffectNet's order with neutral first. `VOCABULARIES` say what each dataset's own numbers or codes mean;
readers turn them into names at once, and a shard folder stores names only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

_FER2013 = {
    "0": "anger",
    "1": "disgust",
    "2": "fear",
    "3": "happiness",
    "4": "sadness",
    "5": "surprise",
    "6": "neutral",
}

VOCABULARIES: dict[str, Mapping[str, str]] = {
    "rafdb": {
        "1": "surprise",
        "2": "fear",
        "3": "disgust",
        "4": "happiness",
        "5": "sadness",
        "6": "anger",
        "7": "neutral",
    },
    "affectnet": {
        **{str(number): name for number, name in enumerate(CANONICAL)},
        "8": "none",
        "9": "uncertain",
        "10": "no-face",
    },
    "fer2013": _FER2013,
    "ferplus": {
        "0": "neutral",
        "1": "happiness",
        "2": "surprise",
        "3": "sadness",
        "4": "anger",
        "5": "disgust",
        "6": "fear",
        "7": "contempt",
        "8": "unknown",
        "9": "no-face",
    },
    "expw": _FER2013,
    "ckplus": {
        "0": "neutral",
        "1": "anger",
        "2": "contempt",
        "3": "disgust",
        "4": "fear",
        "5": "happiness",
        "6": "sadness",
        "7": "surprise",
    },
    "jaffe": {
        "AN": "anger",
        "DI": "disgust",
        "FE": "fear",
        "HA": "happiness",
        "NE": "neutral",
        "SA": "sadness",
        "SU": "surprise",
    },
    "folders": {
        str(number): name
        for number, name in enumerate(("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"))
    },
}
"""Dataset -> its written number or code -> name, in the dataset's own order. Names that are not canonical mark photos
that bear no emotion. "folders" is the order of alphabetical class folders, as torchvision's ImageFolder numbers
them."""


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


def name_of(dataset: str, written: str) -> str:
    """The name of a dataset's own number or code: `("rafdb", "5")` -> `"sadness"`.

    What the dataset's vocabulary does not know stays as it is written, and is later left out with that as the reason.
    """
    return VOCABULARIES[dataset].get(written.strip(), written.strip())


def classes_of(dataset: str) -> tuple[str, ...]:
    """A dataset's emotions in its own order."""
    return tuple(name for name in VOCABULARIES[dataset].values() if name in CANONICAL)


def in_canonical_order(names: Sequence[str]) -> tuple[str, ...]:
    """The given canonical names, without repetition, in canonical order."""
    present = set(names)
    return tuple(name for name in CANONICAL if name in present)


def neutral_index(classes: Sequence[str]) -> int | None:
    """Where `neutral` stands among `classes`; None where there is no such class."""
    return list(classes).index(NEUTRAL) if NEUTRAL in classes else None


def index_mapping(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """For each class of `source` its index in `target`, by name; None where `target` lacks it."""
    target_index = {name: index for index, name in enumerate(target)}
    return [target_index.get(name) for name in source]

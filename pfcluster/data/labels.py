"""Emotion names and the label codes of each dataset. Datasets are matched by class names, never by numbers.

`CANONICAL` is AffectNet's order with neutral first. `VOCABULARIES` maps each dataset's codes to names; dataset readers
convert codes to names, and a shard folder stores names only.
"""

from __future__ import annotations

import difflib
import re
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
"""Dataset -> code as written in its files -> name, in the dataset's order. Names that are not canonical mark photos
without an emotion label. "folders": alphabetical class folders, as numbered by torchvision's ImageFolder."""


class UnknownEmotionError(ValueError):
    """A label that is neither a canonical emotion name nor one of its known spellings."""


def canonical_name(label: str) -> str:
    """The canonical name of one label: `"Happy"` -> `"happiness"`. Raises UnknownEmotionError."""
    name = label.strip().lower()
    name = ALIASES.get(name, name)
    if name not in CANONICAL:
        raise UnknownEmotionError(
            f"label {label!r} is not a known emotion; use one of {', '.join(CANONICAL)}"
            f" or the spellings {', '.join(sorted(ALIASES))}"
        )
    return name


def emotion_or_none(label: str) -> str | None:
    """The canonical name of one label; None if it is not a known emotion."""
    try:
        return canonical_name(label)
    except UnknownEmotionError:
        return None


def nearest_emotion(label: str, likeness: float = 0.6) -> str | None:
    """The known name that is most like a label, e.g. for `suprise`; None if none is that much alike (0 to 1)."""
    close = difflib.get_close_matches(label.strip().lower(), [*CANONICAL, *ALIASES], n=1, cutoff=likeness)
    return close[0] if close else None


def name_of(dataset: str, written: str) -> str:
    """The name of a dataset's label code: `("rafdb", "5")` -> `"sadness"`.

    A code that is not in the dataset's vocabulary is returned unchanged (stripped); the build later leaves the photo
    out and reports the code as the reason.
    """
    code = plain_code(written)
    return VOCABULARIES[dataset].get(code, code)


def plain_code(written: str) -> str:
    """A label as written, stripped; without the decimals that spreadsheets add to whole numbers: `3.0` -> `3`."""
    match = re.fullmatch(r"(\d+)[.,]0+", written.strip())
    return match[1] if match else written.strip()


def in_canonical_order(names: Sequence[str]) -> tuple[str, ...]:
    """The given canonical names, deduplicated, in canonical order."""
    present = set(names)
    return tuple(name for name in CANONICAL if name in present)


def neutral_index(classes: Sequence[str]) -> int | None:
    """Index of `neutral` in `classes`; None if there is no such class."""
    return list(classes).index(NEUTRAL) if NEUTRAL in classes else None


def index_mapping(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """Index in `target` of each class of `source`, matched by name; None if `target` lacks the class."""
    target_index = {name: index for index, name in enumerate(target)}
    return [target_index.get(name) for name in source]

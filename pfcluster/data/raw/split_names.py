"""Names of splits: what a folder, a file name or a cell of a split column means.

A name is cut into words at every change of case, digit and punctuation: `PublicTest`, `public_test` and `Public Test`
are the same. Numbers and words that say nothing (`set`, `images`, ...) are ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pfcluster.data.raw.base import OfficialSplit, RawDataError

Meaning = Literal["train", "validation", "test", "second test"]
"""`second test`: the test split, or the validation split of a dataset that also has a test split."""
OTHER, NO_SPLIT, IGNORE = "other", "none", "ignore"
"""In --splits: photos that no name assigns; a name that is not a split; all names."""

TRAIN = frozenset(("train", "training", "trn", "trainval"))
VALIDATION = frozenset(("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"))
TEST = frozenset(("test", "testing", "tst"))
SECOND_TEST = frozenset(("eval", "evaluation", "evaluate", "evaluating", "holdout", "heldout"))
GIVEN_NAMES = frozenset(("dev", "val"))
"""Words that are first names as well."""
SHORT: dict[str, Meaning] = {"tr": "train", "te": "test", "ts": "test", "va": "validation"}
"""Abbreviations; they count only among names that all mean splits."""
TOGETHER = {
    "hold out": "holdout",
    "held out": "heldout",
    "train val": "trainval",
    "public test": "publictest",
    "private test": "test",
}
"""Two words that are one name; FER2013's private test is the test split, its public one the validation split."""
NOUNS = frozenset(
    (
        *("crop", "crops", "data", "dataset", "datasets", "dir", "face", "faces", "file", "files", "folder", "image"),
        *("images", "img", "imgs", "jpeg", "jpg", "label", "labels", "list", "part", "photo", "photos", "pic", "pics"),
        *("picture", "pictures", "png", "sample", "samples", "set", "sets", "shard", "split", "splits", "subset"),
    )
)
NOISE = NOUNS | frozenset(
    (
        *("a", "aligned", "all", "and", "cropped", "final", "full", "labelled", "new", "of", "orig", "original"),
        *("originals", "raw", "resized", "the", "usage", "v", "version", "x"),
    )
)
"""Words that do not change what a split's name means."""
_ATTACHED = "|".join(sorted(NOUNS, key=len, reverse=True))
_GLUED = re.compile(rf"(train|training|test|testing|val|valid|validation|dev|eval|evaluation)(?:{_ATTACHED})")
_ENDING = re.compile(r".+(train|training|test|testing|val|valid|validation|dev|eval)")
_NUMBER = re.compile(r"[-_.]*\d[-_.\d]*$")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")


@dataclass(frozen=True)
class SplitName:
    """What a name means, and how certainly."""

    meaning: Meaning
    certainty: Literal[1, 2, 3]
    """3: nothing but a split. 2: a split word and others (`rafdb_test`). 1: perhaps (`Dev Patel`, `contest`), so it
    counts only among names that all mean splits."""


def parse(name: str) -> SplitName | None:
    """The split that a name means; None if it means none, or several (`train_test`)."""
    text = " ".join(word.lower() for word in _WORDS.findall(name))
    for apart, together in TOGETHER.items():
        text = text.replace(apart, together)
    words = text.split()
    meanings = {word: meaning for word in words if (meaning := _meaning(word)) is not None}
    if meanings:
        if len(set(meanings.values())) > 1:
            return None
        only = next(iter(meanings.values()))
        others = [other for other in words if other not in meanings and other not in NOISE]
        given = all(_bare(word) in GIVEN_NAMES for word in meanings)
        return SplitName(only, (1 if given else 2) if others else 3)
    if len(words) == 1 and words[0] in SHORT:
        return SplitName(SHORT[words[0]], 1)
    endings = {word: match[1] for word in words if (match := _ENDING.fullmatch(word))}
    ended = {_meaning(ending) for ending in endings.values()}
    meaning = ended.pop() if len(ended) == 1 else None
    return None if meaning is None else SplitName(meaning, 1)


def _bare(word: str) -> str:
    """A word without an attached one that says nothing: `testset` -> `test`."""
    match = _GLUED.fullmatch(word)
    return match[1] if match else word


def _meaning(word: str) -> Meaning | None:
    word = _bare(word)
    if word in TRAIN:
        return "train"
    if word in VALIDATION or word == "publictest":
        return "validation"
    if word in TEST:
        return "test"
    return "second test" if word in SECOND_TEST else None


def split_from_name(name: str) -> OfficialSplit | None:
    """The split that a name means for certain, on its own; None if it means none."""
    parsed = parse(name)
    return official(parsed.meaning, ()) if parsed and parsed.certainty == 3 else None


def official(meaning: Meaning, among: Iterable[Meaning | None]) -> OfficialSplit:
    """The split of a meaning in a dataset that has these meanings."""
    if meaning != "second test":
        return meaning
    return "validation" if "test" in among else "test"


def require_used(given: Mapping[str, str], used: Iterable[str], source: object) -> None:
    """Raises RawDataError if --splits names something that does not occur."""
    unused = sorted(set(given) - set(used) - {OTHER, IGNORE})
    if unused:
        raise RawDataError(f"--splits names {', '.join(map(repr, unused))}, but {source} has no split of that name")


def column_splits(cells: Sequence[str], given: Mapping[str, str], source: object) -> list[OfficialSplit | None]:
    """The split of each row, from the cells of its split column.

    `given`: as `name_options.split_options` returns it. Raises RawDataError if some cells, or all, mean no split.
    """
    if IGNORE in given:
        return [None] * len(cells)
    counts = Counter(cell.strip() for cell in cells)
    require_used(given, counts, source)
    parsed = cell_meanings(cell for cell in counts if cell not in given)
    meanings = {cell: given.get(cell, parsed.get(cell) or given.get(OTHER)) for cell in counts}
    if set(counts) <= {""} and OTHER not in given:
        return [None] * len(cells)
    unknown = [cell for cell, meaning in meanings.items() if meaning is None]
    if unknown:
        raise RawDataError(unknown_names(source, meanings, {cell: counts[cell] for cell in unknown}, "column"))
    splits = {
        cell: None if meaning in (None, NO_SPLIT) else official(meaning, meanings.values())  # type: ignore[arg-type]
        for cell, meaning in meanings.items()
    }
    return [splits[cell.strip()] for cell in cells]


def cell_meanings(cells: Iterable[str]) -> dict[str, Meaning | None]:
    """The split that each cell means. Uncertain ones (`tr`, `te`) count only if all cells that are not empty mean
    splits, one of them the training split.
    """
    parsed = {cell: parse(cell) for cell in cells}
    alone = {name.meaning if name else None for cell, name in parsed.items() if cell}
    uncertain = None not in alone and "train" in alone
    return {
        cell: name.meaning if name is not None and (uncertain or name.certainty > 1) else None
        for cell, name in parsed.items()
    }


def unknown_names(source: object, meanings: Mapping[str, str | None], unknown: Mapping[str, int], place: str) -> str:
    """Error message for names that mean no split beside names that do. `unknown`: number of photos by name, or 0."""
    known = ", ".join(f"{name!r} ({meaning})" for name, meaning in list(meanings.items())[:8] if meaning is not None)
    shown = list(unknown.items())[:8]
    names = ", ".join(f"{name!r}" + (f": {count}" if count else "") for name, count in shown)
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    first = next((name for name in unknown if name), "")
    example = f"--splits {first}=test" if first else f"--splits {OTHER}=train"
    beside = f", unlike {known}" if known else ""
    return (
        f"{source}: {names}{more} in its split {place} are not known names of splits{beside}. Define them with"
        f" {example} (train, validation, test, or none for a name that is not a split; {OTHER}=... for all others), or"
        f" split all photos anew with --splits {IGNORE}"
    )


def named_splits(names: Sequence[str], given: Mapping[str, str], source: object) -> list[OfficialSplit | None]:
    """The split of each file by its name (`train-00000-of-00001`, `test/0000`), or None for all if no name means one.

    Raises RawDataError if some names mean a split and others do not.
    """
    if IGNORE in given:
        return [None] * len(names)
    meanings = {name: _file_meaning(name, given) for name in names}
    require_used(given, (key for key in given for name in names if _matches(name, key)), source)
    if not any(meanings.values()):
        return [None] * len(names)
    unknown = [name for name, meaning in meanings.items() if meaning is None]
    if unknown:
        known = {name: meaning for name, meaning in meanings.items() if meaning is not None}
        raise RawDataError(unknown_names(source, known, dict.fromkeys(unknown, 0), "files"))
    among = {meaning for meaning in meanings.values() if meaning in ("train", "validation", "test", "second test")}
    splits: list[OfficialSplit | None] = []
    for name in names:
        meaning = meanings[name]
        splits.append(None if meaning in (None, NO_SPLIT) else official(meaning, among))  # type: ignore[arg-type]
    return splits


def _file_meaning(name: str, given: Mapping[str, str]) -> str | None:
    told = next((value for key, value in given.items() if _matches(name, key)), None)
    if told is not None:
        return told
    parts = name.split("/")
    parsed = [meaning for part in parts if (meaning := parse(part)) is not None and meaning.certainty > 1]
    meanings = {one.meaning for one in parsed}
    return meanings.pop() if len(meanings) == 1 else given.get(OTHER)


def _matches(name: str, key: str) -> bool:
    """Whether a file is called as --splits says: its path, its name or one of its folders, also with a number."""
    numbered = re.compile(rf"{re.escape(key)}([-_.\d].*)?")
    return any(numbered.fullmatch(part) for part in (name, *name.split("/")))


def photo_splits(names: Sequence[str], given: Mapping[str, str], source: object) -> list[OfficialSplit | None] | None:
    """The splits that names of photos such as `train_00001.jpg` and `test_0001.jpg` mean. None unless most names mean
    one, some of them the training split, others not.

    `given`: the entries of --splits, matched by `names_photo`. Raises RawDataError if the other names mean no split.
    """
    told = {key: value for key, value in given.items() if key not in (OTHER, IGNORE)}
    if IGNORE in given or not (told or any("train" in name or "trn" in name for name in map(str.lower, names))):
        return None
    groups = [_group(_stem(name), told) for name in names]
    meanings = {group: told.get(group) or _certain_meaning(group) for group in groups}
    known = {group: meaning for group, meaning in meanings.items() if meaning is not None}
    among = {meaning for meaning in known.values() if meaning != NO_SPLIT}
    counts = Counter(groups)
    most = 2 * sum(counts[group] for group in known) > len(names)
    if "train" not in among or len(among) < 2 or not (most or told):
        return None
    unknown = {group: counts[group] for group in meanings if group not in known}
    if unknown and OTHER not in given:
        raise RawDataError(unknown_names(source, known, unknown, "file names"))
    splits = {
        group: None if meaning == NO_SPLIT else official(meaning, among)  # type: ignore[arg-type]
        for group, meaning in {**dict.fromkeys(unknown, given.get(OTHER, NO_SPLIT)), **known}.items()
    }
    return [splits[group] for group in groups]


def names_photo(key: str, names: Iterable[str]) -> bool:
    """Whether a name of --splits is that of photos: without their suffixes, and perhaps without numbers at the end."""
    return any(_matches(_stem(name), key) for name in names)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _group(stem: str, told: Iterable[str]) -> str:
    """The name of --splits that is this photo's, or its own name without the number at the end."""
    key = next((key for key in told if _matches(stem, key)), None)
    return key if key is not None else _NUMBER.sub("", stem) or stem


def _certain_meaning(name: str) -> Meaning | None:
    parsed = parse(name)
    return parsed.meaning if parsed is not None and parsed.certainty > 1 else None

"""What the folders of a tree mean: its splits, and the one level that names the emotions.

Trees are described by their folders: the path of each folder that holds photos, and how many. Splits are looked for at
any depth. The label is taken from one level of the whole tree, counted from the top (below the split) or from the
photo, so that an identity called Joy or a lighting condition called normal is not taken for a class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pfcluster.data.labels import emotion_or_none, nearest_emotion
from pfcluster.data.raw.base import NOT_A_LABEL, OfficialSplit, RawDataError
from pfcluster.data.raw.split_names import (
    IGNORE,
    NO_SPLIT,
    OTHER,
    SplitName,
    official,
    parse,
    require_used,
    unknown_names,
)

Folder = tuple[str, ...]
Folders = Mapping[Folder, int]
"""Number of photos directly in each folder."""
OUTSIDE = "outside the splits"
CONFLICT = "conflicting labels"
MISSPELT = 0.88
"""Likeness from which a folder counts as the misspelt name of an emotion: `suprise`, but not `fer`."""
CERTAIN_CLASSES = 3
"""A level with at least so many emotions has the labels if another complete level names only one emotion."""


@dataclass(frozen=True)
class FolderMeaning:
    """Label and split of a folder's photos."""

    label: str
    """As written; empty if there is none."""
    split: OfficialSplit | None
    left_out: tuple[str, str] | None = None
    """Reason and detail why its photos cannot be used."""


@dataclass(frozen=True)
class TreeOptions:
    """Options of a tree; see `ReadOptions`."""

    classes: Mapping[str, str]
    splits: Mapping[str, str]
    labels_ignored: bool = False

    def emotion(self, name: str) -> str | None:
        """The canonical emotion that a folder names; None if it names none."""
        name = self.classes.get(name, name)
        return None if name == NOT_A_LABEL else emotion_or_none(name)

    def likely_emotion(self, name: str) -> str | None:
        """The emotion that a folder names or, misspelt, seems to name."""
        emotion = self.emotion(name)
        if emotion is not None or name in self.classes:
            return emotion
        nearest = nearest_emotion(name, MISSPELT)
        return None if nearest is None else emotion_or_none(nearest)


def folder_meanings(folders: Folders, options: TreeOptions, source: object) -> dict[Folder, FolderMeaning]:
    """Label and split of each folder's photos. Raises RawDataError if splits or labels are ambiguous."""
    splits = find_splits(folders, options, source)
    inside = {folder: count for folder, count in folders.items() if splits[folder] is not OUTSIDE}
    places = {folder: place for folder, place in splits.items() if isinstance(place, tuple)}
    labels = find_labels(inside, {folder: index for folder, (index, _) in places.items()}, options, source)
    meanings = {}
    for folder in folders:
        if folder not in inside:
            meanings[folder] = FolderMeaning("", None, (OUTSIDE, "no folder of its path is a split"))
            continue
        label, split = labels[folder], places[folder][1] if folder in places else None
        meanings[folder] = FolderMeaning(label[0], split, None if len(label) == 1 else (CONFLICT, " and ".join(label)))
    return meanings


SplitPlace = tuple[int, OfficialSplit]
"""Index of the folder, in a path, that names the split; and the split."""


def find_splits(folders: Folders, options: TreeOptions, source: object) -> dict[Folder, SplitPlace | str | None]:
    """Where each folder's path names its split, and which; OUTSIDE for photos to set aside; None if there are none.

    Raises RawDataError if photos with a label are in no split while others are, or if a path names several splits.
    """
    none: dict[Folder, SplitPlace | str | None] = dict.fromkeys(folders)
    if IGNORE in options.splits:
        return none
    names = _split_names(folders, options.splits)
    used = [name for folder in folders for i, name in enumerate(folder) if _given(folder[: i + 1], options.splits)]
    paths = ["/".join(folder[: i + 1]) for folder in folders for i in range(len(folder))]
    require_used(options.splits, {*used, *paths}, source)
    hits = {
        folder: [(i, names[folder[: i + 1]]) for i in range(len(folder)) if folder[: i + 1] in names]
        for folder in folders
    }
    _drop_wrappers(hits)
    among = {name.meaning for places in hits.values() for _, name in places}
    if not among:
        return none
    places: dict[Folder, SplitPlace | str | None] = {}
    for folder, found in hits.items():
        splits = {official(name.meaning, among) for _, name in found}
        if len(splits) > 1:
            raise RawDataError(
                f"{source}: {'/'.join(folder)} names several splits ({', '.join(sorted(splits))}); say which names are"
                f" not splits with --splits NAME={NO_SPLIT}, or split all photos anew with --splits {IGNORE}"
            )
        places[folder] = (found[0][0], splits.pop()) if found else None
    _settle_others(folders, places, options, source)
    return places


def _given(path: Folder, given: Mapping[str, str]) -> str | None:
    """The value of --splits for a folder, by its name or path."""
    return given.get("/".join(path), given.get(path[-1]))


def _split_names(folders: Folders, given: Mapping[str, str]) -> dict[Folder, SplitName]:
    """All folders that name a split, by path. Uncertain names count only where all folders beside them name splits."""
    paths = {folder[: i + 1] for folder in folders for i in range(len(folder))}
    parsed: dict[Folder, SplitName] = {}
    for path in paths:
        told = _given(path, given)
        name = parse(path[-1]) if told is None else None
        if told is not None and told != NO_SPLIT:
            name = SplitName(told, 3)  # type: ignore[arg-type]
        if name is not None:
            parsed[path] = name
    siblings: dict[Folder, list[Folder]] = {}
    for path in paths:
        siblings.setdefault(path[:-1], []).append(path)
    kept = {}
    for path, name in parsed.items():
        beside = siblings[path[:-1]]
        all_split = all(other in parsed for other in beside)
        if name.certainty > 1 or (all_split and any(parsed[other].meaning == "train" for other in beside)):
            kept[path] = name
    return kept


def _drop_wrappers(hits: dict[Folder, list[tuple[int, SplitName]]]) -> None:
    """Ignore a folder such as `test_data` that contains all splits."""
    named = [folder for folder, places in hits.items() if places]
    if not named:
        return
    shared = 0
    while all(len(folder) > shared for folder in named) and len({folder[shared] for folder in named}) == 1:
        shared += 1
    if all(hits[folder][-1][0] >= shared for folder in named):
        for folder in named:
            hits[folder] = [place for place in hits[folder] if place[0] >= shared]


def _settle_others(
    folders: Folders, places: dict[Folder, SplitPlace | str | None], options: TreeOptions, source: object
) -> None:
    """Set folders without a split aside, or assign them that of `--splits other=...`. Raises RawDataError."""
    parents = {folder[: place[0]] for folder, place in places.items() if isinstance(place, tuple)}
    unknown: Counter[str] = Counter()
    for folder, place in places.items():
        if place is not None:
            continue
        parent = max((parent for parent in parents if folder[: len(parent)] == parent), key=len, default=())
        told = options.splits.get(OTHER)
        if told is not None and folder:
            places[folder] = (len(parent) - 1, told) if told != NO_SPLIT else OUTSIDE  # type: ignore[assignment]
        elif (folder and options.labels_ignored) or any(options.emotion(name) for name in folder):
            unknown["/".join(folder[: len(parent) + 1])] += folders[folder]
        else:
            places[folder] = OUTSIDE
    if unknown:
        known = {
            "/".join(folder[: place[0] + 1]): place[1] for folder, place in places.items() if isinstance(place, tuple)
        }
        raise RawDataError(unknown_names(source, dict(sorted(known.items())), dict(sorted(unknown.items())), "folders"))


@dataclass(frozen=True)
class _Level:
    """Folders at one distance from the top or from the photo."""

    from_photo: bool
    place: int
    photos: int
    """With a folder at this level that names an emotion, perhaps misspelt."""
    emotions: frozenset[str]
    names: frozenset[str]
    told: bool
    """Whether --classes names one of its folders."""


Label = tuple[str, ...]
"""A single label as written, or several that conflict."""


def find_labels(
    folders: Folders, split_places: Mapping[Folder, int], options: TreeOptions, source: object
) -> dict[Folder, Label]:
    """The label of each folder, from one level of the tree. Raises RawDataError if no level is clearly the one."""
    places = {folder: _places(folder, split_places.get(folder)) for folder in folders}
    innermost: dict[Folder, Label] = {
        folder: (folder[where[-1][0]] if where else "",) for folder, where in places.items()
    }
    if options.labels_ignored:
        return innermost
    levels = _levels(folders, places, options)
    named = [level for level in levels if level.emotions or level.told]
    if not named:
        return innermost
    total = sum(count for folder, count in folders.items() if places[folder])
    best = max(named, key=lambda level: (level.told, level.photos, len(level.emotions), not level.from_photo))
    rivals = [level for level in named if level is not best and level.from_photo == best.from_photo]
    known = {name: options.emotion(name) for name in {name for folder in folders for name in folder}}
    hits = {folder: [index for index, _, _ in places[folder] if known[folder[index]]] for folder in folders}
    if rivals and not best.told and best.photos == total:
        return {folder: _of_complete_levels(folder, places[folder], best, rivals, total, options) for folder in folders}
    certain = best.told or _is_certain(best, rivals, levels, total)
    alone = all(len(found) == 1 for folder, found in hits.items() if places[folder])
    if not certain and alone and len({known[folder[found[0]]] for folder, found in hits.items() if found}) > 1:
        return {folder: (folder[found[0]],) if found else ("",) for folder, found in hits.items()}  # at varying depth
    if not certain:
        raise RawDataError(_ambiguous_levels(source, best, rivals, levels))
    return {folder: (_at(folder, places[folder], best),) for folder in folders}


Place = tuple[int, int, int]
"""Index in a path; distance from the top, or from the split; distance from the photo."""


def _places(folder: Folder, split: int | None) -> list[Place]:
    """All folders of a path except for its split."""
    kept = [index for index in range(len(folder)) if index != split]
    below = [] if split is None else [index for index in kept if index > split]
    above = len(kept) - len(below)
    return [
        (index, number - above if split is not None and split >= 0 else number, len(kept) - number)
        for number, index in enumerate(kept)
    ]


def _levels(folders: Folders, places: Mapping[Folder, Sequence[Place]], options: TreeOptions) -> list[_Level]:
    photos: Counter[tuple[bool, int]] = Counter()
    emotions: dict[tuple[bool, int], set[str]] = {}
    names: dict[tuple[bool, int], set[str]] = {}
    likely = {name: options.likely_emotion(name) for name in {name for folder in folders for name in folder}}
    for folder, count in folders.items():
        for index, top, bottom in places[folder]:
            name = folder[index]
            emotion = likely[name]
            for key in ((False, top), (True, bottom)):
                names.setdefault(key, set()).add(name)
                if emotion is not None:
                    emotions.setdefault(key, set()).add(emotion)
                    photos[key] += count
    told = {name for name, value in options.classes.items() if value != NOT_A_LABEL}
    return [
        _Level(*key, photos[key], frozenset(emotions.get(key, ())), frozenset(found), bool(told & found))
        for key, found in sorted(names.items())
    ]


def _at(folder: Folder, places: Iterable[Place], level: _Level) -> str:
    """The folder of a path at a level; "" if the path does not reach it."""
    return next((folder[index] for index, top, bottom in places if level.place == (top, bottom)[level.from_photo]), "")


def _of_complete_levels(
    folder: Folder, places: Sequence[Place], best: _Level, rivals: Sequence[_Level], total: int, options: TreeOptions
) -> Label:
    """The label where every photo has one at `best`; conflicting ones if other levels are as good."""
    complete = [level for level in rivals if level.photos == total]
    if len(best.emotions) >= CERTAIN_CLASSES:
        complete = [level for level in complete if len(level.emotions) > 1]
    label = _at(folder, places, best)
    labels = {options.emotion(name): name for level in complete if (name := _at(folder, places, level))}
    labels.pop(None, None)  # misspelt
    if not labels or set(labels) == {options.emotion(label)}:
        return (label,)
    return tuple(sorted({*labels.values(), label}))


def _is_certain(best: _Level, rivals: Sequence[_Level], levels: Sequence[_Level], total: int) -> bool:
    """Whether a level is clearly the one that names the emotions."""
    second = max((level.photos for level in rivals), default=0)
    if rivals:
        return 2 * best.photos >= total and 2 * second <= best.photos and len(best.emotions) > 1
    others = any(level.from_photo == best.from_photo and level is not best and len(level.names) > 1 for level in levels)
    return not others or (2 * best.photos > total and len(best.emotions) > 1)


def _ambiguous_levels(source: object, best: _Level, rivals: Sequence[_Level], levels: Sequence[_Level]) -> str:
    def names(level: _Level) -> str:
        shown = sorted(level.names)[:6]
        return ", ".join(shown) + (", ..." if len(level.names) > len(shown) else "")

    others = rivals or [
        level for level in levels if level.from_photo == best.from_photo and level is not best and len(level.names) > 1
    ]
    return (
        f"{source}: which folders name the emotions? One level has {names(best)}; another has {names(others[0])}. Name"
        " the classes, e.g. --classes joy=happiness angst=fear, and exclude other names with --classes"
        f" NAME={NOT_A_LABEL}"
    )

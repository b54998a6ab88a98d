"""What a build leaves out, for the screen: names with their counts, and the nearest name that is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from pfcluster.data.build.candidates import LeftOut
from pfcluster.data.labels import CANONICAL, VOCABULARIES, nearest_emotion
from pfcluster.data.raw.base import RawDataset
from pfcluster.data.raw.tree import CONFLICT, OUTSIDE

SHOWN = 10
"""Names of a reason on the screen; the others are counted."""
RECORDED = 30
"""Names of skipped files in a manifest."""
WITHOUT_EMOTION = {name for codes in VOCABULARIES.values() for name in codes.values()} - set(CANONICAL)
"""Labels of datasets that are known to be no emotion."""


def left_out_notes(datasets: Mapping[str, RawDataset], left_out: Iterable[LeftOut]) -> tuple[str, ...]:
    """Sentences on unknown labels, folders outside the splits, conflicting levels and missing files."""
    labels: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    conflicts: Counter[str] = Counter()
    missing: list[str] = []
    for one in left_out:
        photo = datasets[one.role].photos[one.number]
        folder = str(PurePosixPath(photo.source).parent)
        if one.reason == "unknown label":
            labels[photo.label] += 1
        elif one.reason == OUTSIDE:
            folders[folder] += 1
        elif one.reason == CONFLICT and photo.left_out is not None:
            conflicts[f"{folder} ({one.detail})"] += 1
        elif one.reason == "missing file":
            missing.append(photo.path)
    notes = [*_label_notes(labels)]
    notes += _counted("left out, in no folder that names a split", folders)
    notes += _counted("left out, two levels of folders name an emotion (--classes NAME=none settles it)", conflicts)
    if missing:
        notes.append(f"{len(missing)} missing; the first was expected at {missing[0]}")
    return tuple(notes)


def _label_notes(labels: Counter[str]) -> Iterator[str]:
    for label, count in labels.most_common(SHOWN):
        yield f"{count} left out: {unknown_label(label)}"
    if len(labels) > SHOWN:
        rest = sum(labels.values()) - sum(count for _, count in labels.most_common(SHOWN))
        yield f"{rest} left out with {len(labels) - SHOWN} other unknown labels (left_out.csv lists them)"


def unknown_label(label: str) -> str:
    """Why a label is not used, and the remedy."""
    if not label:
        return "they have no label"
    if label in WITHOUT_EMOTION:
        return f"label {label!r} is not an emotion"
    if label.isdecimal():
        return f"label {label!r} is a number without a known meaning; name it with --classes {label}=EMOTION"
    nearest = nearest_emotion(label)
    if nearest is None:
        return f"label {label!r} is not a known emotion; name it with --classes {label}=EMOTION"
    return (
        f"label {label!r} is not a known emotion, the nearest is {nearest!r}: rename it, or --classes {label}={nearest}"
    )


def _counted(what: str, names: Counter[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(f"{name}: {count}" for name, count in names.most_common(SHOWN))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{sum(names.values())} {what}: {shown}{more}"]


def skipped_files(dataset: RawDataset) -> dict[str, int]:
    """Files that the listing skips, most frequent first, for the manifest; names that are not UTF-8 are escaped."""
    return _most_frequent(dataset.skipped)


def _most_frequent(skipped: Mapping[str, int]) -> dict[str, int]:
    most = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    kept = {name.encode("utf-8", "backslashreplace").decode(): count for name, count in most[:RECORDED]}
    rest = sum(count for _, count in most[RECORDED:])
    return kept | ({"others": rest} if rest else {})


def skipped_note(dataset: RawDataset) -> str:
    """A sentence on the files that the listing skips; "" if there are none."""
    return skipped_names(dataset.skipped, "images")


def skipped_names(skipped: Mapping[str, int], kind: str) -> str:
    """A sentence on skipped files, counted as `skipped_as` names them, that are not of a kind; "" if there are none."""
    most = list(_most_frequent(skipped).items())
    if not most:
        return ""
    shown = ", ".join(f"{count} {name}" for name, count in most[:SHOWN])
    more = f" and {sum(count for _, count in most[SHOWN:])} others" if len(most) > SHOWN else ""
    return f"{sum(skipped.values())} skipped, not {kind} by their names: {shown}{more}"

"""Checks that a prediction's files neither replace its inputs nor become inputs of the next prediction. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pfcluster.inference.errors import InferenceError
from pfcluster.inference.pictures import file_stem
from pfcluster.inference.sources import Inputs, is_listed, split_pattern


@dataclass(frozen=True)
class Target:
    """A file, or a folder of pictures, that a prediction writes."""

    option: str
    path: Path
    suffixes: tuple[str, ...] = ()
    """Suffixes of the pictures in a folder; empty for a file."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of pictures."""
        return bool(self.suffixes)

    def examples(self, inputs: Inputs) -> list[Path]:
        """The file, or a picture of the first input for each suffix."""
        stem = file_stem(0, inputs.sources[0])
        return [self.path / f"{stem}{suffix}" for suffix in self.suffixes] if self.is_folder else [self.path]


def require_apart(inputs: Inputs, targets: Sequence[Target]) -> None:
    """Raises InferenceError for a target that is an input, a folder of pictures that holds one, and a target that would
    be listed with the inputs the next time.
    """
    for target in targets:
        for example in target.examples(inputs):
            searched = _lister(inputs, example)
            if searched is not None:
                raise InferenceError(
                    f"{target.option} {target.path} lies in {searched}, which is searched for inputs, so the next"
                    " prediction would read what is written there; use a folder outside"
                )
    _require_no_input(inputs, targets)


def _lister(inputs: Inputs, file: Path) -> str | None:
    """The folder or pattern of the inputs that would list a file; None if none would."""
    if not is_listed(file.name):
        return None
    for folder in inputs.folders:
        below = _below(folder, file)
        if below is not None and not any(_is_hidden(name) for name in below):
            return f"the folder {folder}"
    for pattern in inputs.patterns:
        folder, parts = split_pattern(pattern)
        below = _below(folder, file)
        if below is not None and _matches(parts, below):
            return f"the pattern {pattern}"
    return None


def _below(folder: Path, file: Path) -> tuple[str, ...] | None:
    """The names from a folder down to a file; None if the file is not below it."""
    place = file.parent.resolve() / file.name
    folder = folder.resolve()
    return place.relative_to(folder).parts if place.is_relative_to(folder) else None


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _matches(parts: Sequence[str], names: Sequence[str]) -> bool:
    """Whether glob finds a path by the parts of a pattern."""
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _matches(parts[1:], names) or (not _is_hidden(names[0]) and _matches(parts, names[1:]))
    fits = fnmatchcase(names[0], parts[0]) and (_is_hidden(parts[0]) or not _is_hidden(names[0]))
    return fits and _matches(parts[1:], names[1:])


def _require_no_input(inputs: Inputs, targets: Sequence[Target]) -> None:
    places = [(target, os.path.realpath(target.path)) for target in targets]
    folders: dict[str, str] = {}
    for source in inputs.sources:
        if source.kind == "webcam":
            continue
        folder, name = os.path.split(source.name)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        file = os.path.realpath(source.name) if os.path.islink(source.name) else os.path.join(folders[folder], name)
        for target, place in places:
            if not target.is_folder and place == file:
                raise InferenceError(
                    f"{target.option} {target.path} is the input {source.name}, which would be replaced; use another"
                    " name"
                )
            if target.is_folder and place in (os.path.dirname(file), folders[folder]):
                raise InferenceError(
                    f"{target.option} {target.path} is the folder of the input {source.name}, so pictures could replace"
                    " inputs or be taken for them; use another folder"
                )

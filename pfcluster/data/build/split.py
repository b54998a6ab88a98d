"""Which photos go where: groups that must stay together, and a validation split cut by them, stratified by label.

Pure functions of their arguments: the same photos and seed give the same split on every machine.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def rank(seed: int, name: str) -> str:
    """A number drawn for `name`, as hexadecimal text: sorting by it shuffles, the same everywhere."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def connected_groups(links: Iterable[Sequence[Hashable]]) -> list[int]:
    """For each photo, given as the things that tie it to others (its person, its content), the number of its group.

    Photos that share a thing share a group, also through others: if a photo hangs twice under two names, both people
    are one group. Groups are numbered in the order of their first photo.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(thing: Hashable) -> Hashable:
        parent.setdefault(thing, thing)
        while parent[thing] != thing:
            parent[thing] = parent[parent[thing]]
            thing = parent[thing]
        return thing

    firsts = []
    for things in links:
        for thing in things[1:]:
            parent[root(thing)] = root(things[0])
        firsts.append(things[0])
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(root(first), len(numbers)) for first in firsts]


def choose_groups(members: dict[int, Counter[str]], share: float, seed: int) -> set[int]:
    """The groups to hold out: about `share` of each label's photos.

    members: group -> photos of each label. Rare labels choose first; a group is taken while no label gets more than its
    share (rounded up). A label that stands in two groups or more gets at least one, if need be a group that is too
    large. No label loses its last group.
    """
    totals = sum(members.values(), Counter[str]())
    targets = {label: share * count for label, count in totals.items()}
    remaining = Counter(label for labels in members.values() for label in labels)
    taken: set[int] = set()
    held: Counter[str] = Counter()
    if share <= 0:
        return taken

    def take(group: int) -> None:
        taken.add(group)
        held.update(members[group])
        remaining.subtract(members[group].keys())

    def spares(group: int) -> bool:
        return group not in taken and all(remaining[label] > 1 for label in members[group])

    def fits(group: int) -> bool:
        return all(held[label] + count <= -(-targets[label] // 1) for label, count in members[group].items())

    for label in sorted(totals, key=lambda name: (totals[name], name)):
        groups = sorted(
            (group for group in members if label in members[group]), key=lambda group: rank(seed, str(group))
        )
        wanted = max(1, round(targets[label]))
        for group in groups:
            if held[label] >= wanted:
                break
            if spares(group) and fits(group):
                take(group)
        if not held[label]:
            possible = [group for group in groups if spares(group)]
            if possible:
                take(min(possible, key=lambda group: sum(members[group].values())))
    return taken

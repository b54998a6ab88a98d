"""Splits of photos: groups that must stay together, and held-out groups stratified by label.

Pure functions: the same photos and seed give the same split on every machine.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def rank(seed: int, name: str) -> str:
    """A pseudo-random hexadecimal number for `name`; sorting by it shuffles reproducibly."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def connected_groups(links: Iterable[Sequence[Hashable]]) -> list[int]:
    """Group number of each photo; photos are connected by shared items (identity, content), transitively (union-find).

    E.g. if the same photo occurs with two identities, all photos of both form one group. Groups are numbered in the
    order of their first photo.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(item: Hashable) -> Hashable:
        parent.setdefault(item, item)
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    firsts = []
    for items in links:
        for item in items[1:]:
            parent[root(item)] = root(items[0])
        firsts.append(items[0])
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(root(first), len(numbers)) for first in firsts]


def choose_groups(members: dict[int, Counter[str]], share: float, seed: int) -> set[int]:
    """Groups to hold out: about the fraction `share` of the photos of each label.

    `members`: number of photos of each label, by group. Rare labels are processed first; a group is held out if no
    label then exceeds its share (rounded up). A label with at least two groups gets at least one, even if that group is
    too large. No label loses its last group.
    """
    totals = sum(members.values(), Counter[str]())
    targets = {label: share * count for label, count in totals.items()}
    remaining = Counter(label for labels in members.values() for label in labels)
    chosen: set[int] = set()
    counts: Counter[str] = Counter()
    """Photos held out, by label."""
    if share <= 0:
        return chosen

    def take(group: int) -> None:
        chosen.add(group)
        counts.update(members[group])
        remaining.subtract(members[group].keys())

    def is_available(group: int) -> bool:
        return group not in chosen and all(remaining[label] > 1 for label in members[group])

    def fits(group: int) -> bool:
        return all(counts[label] + count <= -(-targets[label] // 1) for label, count in members[group].items())

    for label in sorted(totals, key=lambda name: (totals[name], name)):
        groups = sorted(
            (group for group in members if label in members[group]), key=lambda group: rank(seed, str(group))
        )
        target = max(1, round(targets[label]))
        for group in groups:
            if counts[label] >= target:
                break
            if is_available(group) and fits(group):
                take(group)
        if not counts[label]:
            possible = [group for group in groups if is_available(group)]
            if possible:
                take(min(possible, key=lambda group: sum(members[group].values())))
    return chosen

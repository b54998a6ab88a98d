"""Removal of exact copies: photos with the same file content."""

from __future__ import annotations

from collections.abc import Iterable

from pfcluster.data.build.candidates import Candidate, LeftOut
from pfcluster.data.labels import in_canonical_order


def remove_copies(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """Keep one photo of each face. Copies in the official test split take precedence, then those in the validation
    split; faces with conflicting labels are left out altogether.
    """
    by_face: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_face.setdefault(candidate.face, []).append(candidate)
    kept: list[Candidate] = []
    left_out: list[LeftOut] = []
    for copies in by_face.values():
        copies.sort(key=lambda copy: copy.photo.split != "validation")  # stable
        in_test = [copy for copy in copies if copy.is_test]
        for copy in copies:
            if in_test and not copy.is_test:
                detail = f"same photo as {in_test[0].photo.source}"
                left_out.append(LeftOut(copy.role, copy.index, "also in the test split", detail))
        remaining = in_test or copies
        labels = in_canonical_order([copy.label for copy in remaining])
        if len(labels) > 1:
            detail = " and ".join(labels)
            left_out += [LeftOut(copy.role, copy.index, "conflicting labels", detail) for copy in remaining]
            continue
        first = remaining[0]
        kept.append(first)
        for copy in remaining[1:]:
            reason = "duplicate row" if copy.photo.source == first.photo.source else "duplicate photo"
            left_out.append(LeftOut(copy.role, copy.index, reason, f"same photo as {first.photo.source}"))
    return kept, left_out

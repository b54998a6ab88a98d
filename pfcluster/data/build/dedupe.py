"""Removal of exact copies: photos with the same file content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pfcluster.data.build.candidates import Candidate, LeftOut
from pfcluster.data.labels import in_canonical_order


def remove_copies(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """Keep one photo of each face, and the photos of a file in one official split only, whatever their boxes. Copies in
    the official test split take precedence, then those in the validation split; faces with conflicting labels are left
    out altogether.
    """
    by_content: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_content.setdefault(candidate.sha256, []).append(candidate)
    kept: list[Candidate] = []
    left_out: list[LeftOut] = []
    for copies in by_content.values():
        copies.sort(key=lambda copy: copy.photo.split != "validation")  # stable
        in_test = [copy for copy in copies if copy.is_test]
        if in_test:
            left_out += _left_to(in_test[0], "test", [copy for copy in copies if not copy.is_test])
        faces, others = _one_of_each_face(in_test or copies)
        left_out += others
        in_validation = [face for face in faces if face.photo.split == "validation" and not face.is_test]
        if in_validation:
            left_out += _left_to(in_validation[0], "validation", faces[len(in_validation) :])
        kept += in_validation or faces
    return kept, left_out


def _left_to(official: Candidate, split: str, copies: Iterable[Candidate]) -> list[LeftOut]:
    """The copies that are left out because an official split has the photo."""
    detail = f"same photo as {official.photo.source}"
    return [LeftOut(copy.role, copy.index, f"also in the {split} split", detail) for copy in copies]


def _one_of_each_face(copies: Sequence[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """The first copy of each face, in order; and the others, with all of those whose labels conflict."""
    by_face: dict[str, list[Candidate]] = {}
    for copy in copies:
        by_face.setdefault(copy.face, []).append(copy)
    kept: list[Candidate] = []
    left_out: list[LeftOut] = []
    for same in by_face.values():
        labels = in_canonical_order([copy.label for copy in same])
        if len(labels) > 1:
            detail = " and ".join(labels)
            left_out += [LeftOut(copy.role, copy.index, "conflicting labels", detail) for copy in same]
            continue
        first = same[0]
        kept.append(first)
        for copy in same[1:]:
            reason = "duplicate row" if copy.photo.source == first.photo.source else "duplicate photo"
            left_out.append(LeftOut(copy.role, copy.index, reason, f"same photo as {first.photo.source}"))
    return kept, left_out

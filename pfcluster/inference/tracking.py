"""Follow faces from frame to frame by the overlap of their boxes (the IoU tracker of Bochinski et al. 2017).

A face continues the track whose last box it overlaps most, by an optimal assignment; tracks survive a few frames
without a detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pfcluster.data.build.align import Box, overlap

MIN_OVERLAP = 0.3
"""Intersection over union with the track's last box."""
MAX_GAP = 5
"""Processed frames that a track may miss."""


@dataclass
class _Track:
    number: int
    box: Box
    missed: int = 0


@dataclass
class FaceTracker:
    """Track numbers of the faces of one video."""

    _tracks: list[_Track] = field(default_factory=list)
    _next: int = 0

    def update(self, boxes: Sequence[Box]) -> list[int]:
        """Track numbers of the faces of the next frame."""
        assigned = self._assign(boxes)
        for track in self._tracks:
            track.missed += 1
        numbers = []
        for index, box in enumerate(boxes):
            track = assigned.get(index) or self._begin(box)
            track.box, track.missed = box, 0
            numbers.append(track.number)
        self._tracks = [track for track in self._tracks if track.missed <= MAX_GAP]
        return numbers

    def _begin(self, box: Box) -> _Track:
        track = _Track(self._next, box)
        self._next += 1
        self._tracks.append(track)
        return track

    def _assign(self, boxes: Sequence[Box]) -> dict[int, _Track]:
        """Index of a box -> the track that it continues."""
        from scipy.optimize import linear_sum_assignment

        if not boxes or not self._tracks:
            return {}
        overlaps = np.array([[overlap(box, track.box) for track in self._tracks] for box in boxes])
        rows, columns = linear_sum_assignment(-overlaps)
        return {
            int(row): self._tracks[column]
            for row, column in zip(rows, columns, strict=True)
            if overlaps[row, column] >= MIN_OVERLAP
        }

    def state(self) -> dict[str, Any]:
        """What `restored` needs, as JSON."""
        return {"next": self._next, "tracks": [[track.number, list(track.box), track.missed] for track in self._tracks]}

    @staticmethod
    def restored(state: dict[str, Any]) -> FaceTracker:
        """The tracker of a `state`."""
        tracks = [_Track(number, (box[0], box[1], box[2], box[3]), missed) for number, box, missed in state["tracks"]]
        return FaceTracker(tracks, state["next"])

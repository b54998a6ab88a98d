"""Where faces are: MTCNN over photos of any sizes, in batches, as far down in size as the wanted face needs.

Legend: `h` rows, `w` columns, as in align.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfcluster.data.build.align import (
    NO_HINT,
    AlignedFace,
    Face,
    FaceRule,
    Hint,
    Rejected,
    choose,
    crop,
    overlap,
    shorter_side,
    weight,
)

DETECTION_SIDE = 800
"""Photos whose longer side is larger are reduced to it for detection, in pixels; the crop comes from the full photo."""
BATCH = 8
"""Photos of equal size that MTCNN sees at once; larger batches are slower on a CPU."""
SMALLEST_FACE = 20
"""Smallest face that MTCNN is asked for, in pixels; twice that on photos of 200 px and more."""
COARSENESSES = (16, 8, 4, 2)
"""Sizes of faces that are looked for one after another, in SMALLEST_FACEs."""
ENOUGH_PIXELS = 64
"""Photos in which only larger faces are looked for are reduced until those have this side: MTCNN's last net sees 48."""
MIN_PROBABILITY = 0.9
"""Detections below it are no faces."""
SMALLEST_OVERLAP = 0.2
"""Intersection over union of a detection and a given box, below which they are not the same face."""


class FaceAligner:
    """Detects and aligns; holds MTCNN. Of several faces it takes one by a rule (`choose`)."""

    def __init__(
        self, size: int, *, device: str = "cpu", rule: FaceRule = "largest-central", several: bool = True
    ) -> None:
        """`size`: side of the crop in pixels. `several`: whether photos of several faces are taken at all.

        Sets no number of threads: that is the process's to choose.
        """
        self.size = size
        self.rule = rule
        self.several = several
        self._detector = _load_mtcnn(device)

    def align(self, images: Sequence[np.ndarray], hints: Sequence[Hint] | None = None) -> list[AlignedFace | Rejected]:
        """See `Aligner`. A hint's box says which face is meant."""
        hints = hints or [NO_HINT] * len(images)
        found = self.detect(images) if not self.several else self.find(images, hints)
        return [self._crop(*each) for each in zip(images, found, hints, strict=True)]

    def find(self, images: Sequence[np.ndarray], hints: Sequence[Hint]) -> list[list[Face]]:
        """Faces of each photo, at least the one that the rule takes.

        Large faces are looked for first, which costs little: a photo is done once no smaller face could be taken
        instead. Those that are left, and photos whose face is meant by a box, are looked at in full.
        """
        found: list[list[Face]] = [[] for _ in images]
        if self.rule != "most-central":
            by_size = [i for i, hint in enumerate(hints) if hint.box is None]
            for coarseness in COARSENESSES:
                tried = [i for i in by_size if not found[i] and _fits(images[i], coarseness)]
                looked = self._look([images[i] for i in tried], [coarseness] * len(tried), border=True)
                for index, faces in zip(tried, looked, strict=True):
                    if self._settled(faces, images[index], coarseness):
                        found[index] = faces
        rest = [i for i in range(len(images)) if not found[i]]
        for index, faces in zip(rest, self.detect([images[i] for i in rest]), strict=True):
            found[index] = faces
        return found

    def _settled(self, faces: Sequence[Face], image: np.ndarray, coarseness: int) -> bool:
        """Whether no face smaller than was looked for could be taken in place of these."""
        height, width = image.shape[:2]
        smallest = SMALLEST_FACE * coarseness / _reduction(image)
        weights = [weight(face, width, height, self.rule) for face in faces]
        return max(weights, default=0.0) >= smallest**2

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """All faces of each photo (uint8 h w 3, RGB). Photos of equal size are seen together.

        facenet-pytorch cuts a candidate off at the photo's edge and then places its points as if it had not: on photos
        filled by a face they can be off by a tenth of it. So a photo is looked at again, with a grey border around
        it, where a face reaches the edge, and where none was found (now for smaller ones too).
        """
        first = [1 if min(image.shape[:2]) < 200 else 2 for image in images]
        found = self._look(images, first, border=False)
        again = [i for i, faces in enumerate(found) if not faces or _any_cut(faces, images[i].shape)]
        second = [_coarseness(found[i], max(images[i].shape[:2])) for i in again]
        for index, faces in zip(again, self._look([images[i] for i in again], second, border=True), strict=True):
            found[index] = faces or found[index]
        return found

    def _look(self, images: Sequence[np.ndarray], coarseness: Sequence[int], *, border: bool) -> list[list[Face]]:
        """Faces of each photo that are at least `coarseness` times SMALLEST_FACE wide.

        A batch takes photos of one size and one coarseness, so that what is found in a photo does not hang on the
        others: a photo alone gives the crop that it gave among the training data.
        """
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            alike.setdefault((*image.shape, coarseness[index]), []).append(index)
        found: list[list[Face]] = [[] for _ in images]
        for key, indices in alike.items():
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                prepared = [_prepare(images[index], key[-1], border=border) for index in batch]
                for index, faces in zip(batch, self._detect_batch(prepared), strict=True):
                    found[index] = faces
        return found

    def _detect_batch(self, batch: Sequence[_Prepared]) -> list[list[Face]]:
        """Faces of photos of one size. A batch that facenet-pytorch cannot take is seen photo by photo."""
        scale, shift = batch[0].scale, batch[0].shift
        self._detector.min_face_size = batch[0].smallest
        try:
            pixels = np.stack([prepared.pixels for prepared in batch])
            boxes, probabilities, points = self._detector.detect(pixels, landmarks=True)
        except (RuntimeError, ValueError, IndexError) as error:  # no candidate in any photo of the batch, or no scale
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            if len(batch) == 1:
                return [[]]
            return [self._detect_batch([prepared])[0] for prepared in batch]
        return [
            list(_faces(boxes[i], probabilities[i], points[i], scale, shift)) if boxes[i] is not None else []
            for i in range(len(batch))
        ]

    def _crop(self, image: np.ndarray, faces: Sequence[Face], hint: Hint) -> AlignedFace | Rejected:
        height, width = image.shape[:2]
        if not faces:
            return Rejected("no face found", f"photo of {width}x{height} px")
        if hint.box is not None:
            face = max(faces, key=lambda one: overlap(one.box, hint.box or one.box))
            if overlap(face.box, hint.box) < SMALLEST_OVERLAP:
                return Rejected("no face at the given place", f"{len(faces)} elsewhere in the photo")
        elif len(faces) > 1 and not self.several:
            return Rejected("several faces", f"{len(faces)} found")
        else:
            face = choose(faces, width, height, self.rule)
        return crop(image, face, len(faces), self.size)


def _load_mtcnn(device: str) -> Any:
    """MTCNN with the weights that lie in the package; nothing is downloaded."""
    import torch
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, device=torch.device(device)).eval()


@dataclass(frozen=True)
class _Prepared:
    """A photo as the detector sees it."""

    pixels: np.ndarray
    """uint8 h w 3."""
    scale: float
    """Detector pixels in one of the photo."""
    shift: int
    """Width of the border in detector pixels."""
    smallest: float
    """Smallest face that is looked for, in detector pixels."""


def _prepare(image: np.ndarray, coarseness: int, *, border: bool) -> _Prepared:
    smallest = SMALLEST_FACE * coarseness
    enough = min(1.0, ENOUGH_PIXELS / smallest)
    scale = _reduction(image) * enough
    if scale < 1:
        import cv2

        width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    shift = max(image.shape[:2]) // 4 if border else 0
    if shift:
        image = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), constant_values=128)
    return _Prepared(image, scale, shift, smallest * enough)


def _reduction(image: np.ndarray) -> float:
    """What a photo's sides are multiplied by so that none is longer than DETECTION_SIDE."""
    return min(1.0, DETECTION_SIDE / max(image.shape[:2]))


def _fits(image: np.ndarray, coarseness: int) -> bool:
    """Whether such a face may fill half of the photo or more."""
    return min(image.shape[:2]) * _reduction(image) >= 2 * SMALLEST_FACE * coarseness


def _coarseness(faces: Iterable[Face], photo_side: int) -> int:
    """Half the smallest face, in SMALLEST_FACEs, rounded down to a power of two; 1 where there is no face."""
    smallest = min(map(shorter_side, faces), default=0) * min(1.0, DETECTION_SIDE / photo_side)
    return 2 ** int(np.log2(max(1.0, smallest / 2 / SMALLEST_FACE)))


def _any_cut(faces: Iterable[Face], shape: Sequence[int]) -> bool:
    """Whether the square around a face, which MTCNN looks at, leaves the photo (h w ...)."""
    for face in faces:
        left, top, right, bottom = face.box
        half = max(right - left, bottom - top) / 2
        column, row = (left + right) / 2, (top + bottom) / 2
        if min(column, row) < half or column + half > shape[1] or row + half > shape[0]:
            return True
    return False


def _faces(boxes: Any, probabilities: Any, points: Any, scale: float, shift: int) -> Iterable[Face]:
    """Detections of one photo in its own pixels, the uncertain ones dropped."""
    for box, probability, landmarks in zip(boxes, probabilities, points, strict=True):
        if probability >= MIN_PROBABILITY:
            left, top, right, bottom = ((np.asarray(box, dtype=np.float64) - shift) / scale).tolist()
            own = (np.asarray(landmarks, dtype=np.float64) - shift) / scale
            yield Face((left, top, right, bottom), own, float(probability))

"""Face detection with MTCNN on photos of any size, in batches, from large faces to small ones.

Legend: h rows, w columns, as in align.py.
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
    choose_face,
    crop_face,
    face_weight,
    overlap,
    shorter_side,
)

DETECTION_SIDE = 800
"""Photos with a longer side above this are reduced to it for detection, in pixels; crops come from the full photo."""
BATCH = 8
"""Photos of equal size per MTCNN batch; larger batches are slower on a CPU."""
MIN_FACE = 20
"""MTCNN's minimum face size, in pixels; twice that on photos of 200 px and more."""
FACE_SCALES = (16, 8, 4, 2)
"""Minimum face sizes of the successive detection passes, in multiples of MIN_FACE."""
REDUCED_FACE = 64
"""When searching for larger faces only, photos are reduced until those have this side; MTCNN's last net needs 48."""
MIN_PROBABILITY = 0.9
"""Detections with a lower probability are dropped."""
MIN_OVERLAP = 0.2
"""Intersection over union with a given box below which a detection is another face."""
LANDMARK_STEPS = 16
"""Landmarks are rounded to this fraction of a pixel. Depending on the batch, the number of threads and the processor
they differ by 1e-4 px, which would change single pixels of a quarter of all crops."""
SAME_FACE = 0.5
"""Intersection over union from which detections of two searches are the same face."""


class FaceAligner:
    """Detects faces with MTCNN and aligns one per photo."""

    def __init__(
        self, size: int, *, device: str = "cpu", rule: FaceRule = "largest-central", skip_multiple: bool = False
    ) -> None:
        """`size`: side of the crops in pixels. `rule` selects one of several faces (`choose_face`), unless
        `skip_multiple` rejects such photos. Does not set the number of threads.
        """
        self.size = size
        self.rule = rule
        self.skip_multiple = skip_multiple
        self._detector = _load_mtcnn(device)

    def align(self, images: Sequence[np.ndarray], hints: Sequence[Hint] | None = None) -> list[AlignedFace | Rejected]:
        """See `Aligner`. If a hint has a box, the face at that box is cropped."""
        hints = hints or [NO_HINT] * len(images)
        detected = self.detect(images) if self.skip_multiple else self.detect_selected(images, hints)
        return [self._crop(*each) for each in zip(images, detected, hints, strict=True)]

    def detect_selected(self, images: Sequence[np.ndarray], hints: Sequence[Hint]) -> list[list[Face]]:
        """Faces of each photo, including the one that the rule selects.

        Searches for large faces first, which is fast; a photo is done once no smaller face could be selected instead.
        The remaining photos, and those whose hint has a box, go through `detect`.
        """
        detected: list[list[Face]] = [[] for _ in images]
        if self.rule != "most-central":
            without_box = [i for i, hint in enumerate(hints) if hint.box is None]
            for scale in FACE_SCALES:
                searched = [i for i in without_box if not detected[i] and _fits(images[i], scale)]
                results = self._search([images[i] for i in searched], [scale] * len(searched), border=True)
                for index, faces in zip(searched, results, strict=True):
                    if self._is_decided(faces, images[index], scale):
                        detected[index] = faces
        rest = [i for i in range(len(images)) if not detected[i]]
        for index, faces in zip(rest, self.detect([images[i] for i in rest]), strict=True):
            detected[index] = faces
        return detected

    def _is_decided(self, faces: Sequence[Face], image: np.ndarray, scale: int) -> bool:
        """Whether the rule cannot prefer any face that is smaller than those searched for to one of these."""
        height, width = image.shape[:2]
        min_side = MIN_FACE * scale / _reduction(image)
        weights = [face_weight(face, width, height, self.rule) for face in faces]
        return max(weights, default=0.0) >= min_side**2

    def detect(self, images: Sequence[np.ndarray], known: Sequence[Face | None] | None = None) -> list[list[Face]]:
        """All faces of each photo (uint8 h w 3, RGB).

        facenet-pytorch clips candidates at the photo's edge, and then places their landmarks as if it had not: if a
        face fills the photo, they can be off by a tenth of its size. A second pass with a grey border therefore repeats
        the search on photos where a face reaches the edge or none was found; in the latter case for smaller faces, too.
        It is left out where the `known` face alone reaches the edge.
        """
        known = known or [None] * len(images)
        scales = [1 if min(image.shape[:2]) < 200 else 2 for image in images]
        detected = self._search(images, scales, border=False)
        again = [
            i
            for i, faces in enumerate(detected)
            if not faces or _reaches_edge(_without(faces, known[i]), images[i].shape)
        ]
        scales = [_scale_of(detected[i], max(images[i].shape[:2])) for i in again]
        for index, faces in zip(again, self._search([images[i] for i in again], scales, border=True), strict=True):
            detected[index] = faces or detected[index]
        return detected

    def detect_all(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """All faces of each photo, the one that `align` selects first, with the landmarks that `align` uses; the others
        by area, largest first.
        """
        selected = [
            choose_face(faces, image.shape[1], image.shape[0], self.rule) if faces else None
            for image, faces in zip(images, self.detect_selected(images, [NO_HINT] * len(images)), strict=True)
        ]
        with_faces = [i for i, face in enumerate(selected) if face is not None]
        every = self.detect([images[i] for i in with_faces], [selected[i] for i in with_faces])
        results: list[list[Face]] = [[] for _ in images]
        for index, faces in zip(with_faces, every, strict=True):
            chosen = selected[index]
            assert chosen is not None
            results[index] = [chosen, *sorted(_without(faces, chosen), key=lambda face: -_area(face))]
        return results

    def _search(self, images: Sequence[np.ndarray], scales: Sequence[int], *, border: bool) -> list[list[Face]]:
        """Faces of each photo that are at least `scale` times MIN_FACE wide.

        A batch contains photos of one size and one scale, so that the result for a photo does not depend on the others:
        at inference a photo gives the same crop as in the training data.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault((*image.shape, scales[index]), []).append(index)
        detected: list[list[Face]] = [[] for _ in images]
        for key, indices in groups.items():
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                prepared = [_prepare(images[index], key[-1], border=border) for index in batch]
                for index, faces in zip(batch, self._detect_batch(prepared), strict=True):
                    detected[index] = faces
        return detected

    def _detect_batch(self, batch: Sequence[_Prepared]) -> list[list[Face]]:
        """Faces of photos of one size. If facenet-pytorch fails on candidates of a batch, its photos are processed one
        by one. Raises every error that is not due to a photo, such as those of a GPU.
        """
        scale, shift = batch[0].scale, batch[0].shift
        self._detector.min_face_size = batch[0].min_face
        try:
            pixels = np.stack([prepared.pixels for prepared in batch])
            boxes, probabilities, points = self._detector.detect(pixels, landmarks=True)
        except (RuntimeError, ValueError, IndexError) as error:
            if not _is_due_to_photo(error):
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
            if overlap(face.box, hint.box) < MIN_OVERLAP:
                return Rejected("no face at the given box", f"{len(faces)} elsewhere in the photo")
        elif len(faces) > 1 and self.skip_multiple:
            return Rejected("multiple faces", f"{len(faces)} found")
        else:
            face = choose_face(faces, width, height, self.rule)
        return crop_face(image, face, len(faces), self.size)


def _is_due_to_photo(error: Exception) -> bool:
    """Whether facenet-pytorch 2.5.3 fails so on a photo without usable candidates: it joins an empty list if the photo
    is smaller than the smallest face or if all candidates lie outside it, and its mask does not fit if some do.
    """
    if isinstance(error, IndexError):
        return "shape of the mask" in str(error)
    return "non-empty list of Tensors" in str(error)  # a RuntimeError, of newer versions of torch a ValueError


def _load_mtcnn(device: str) -> Any:
    """MTCNN with the weights in the facenet-pytorch package; nothing is downloaded."""
    import torch
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, device=torch.device(device)).eval()


@dataclass(frozen=True)
class _Prepared:
    """A photo prepared for the detector."""

    pixels: np.ndarray
    """uint8 h w 3."""
    scale: float
    """Detector pixels per pixel of the photo."""
    shift: int
    """Width of the border in detector pixels."""
    min_face: float
    """Minimum face size, in detector pixels."""


def _prepare(image: np.ndarray, face_scale: int, *, border: bool) -> _Prepared:
    """Reduce a photo (uint8 h w 3) as far as faces of `face_scale` times MIN_FACE allow, and add a grey border."""
    min_face = MIN_FACE * face_scale
    reduction = min(1.0, REDUCED_FACE / min_face)
    scale = _reduction(image) * reduction
    if scale < 1:
        import cv2

        width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    shift = max(image.shape[:2]) // 4 if border else 0
    if shift:
        image = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), constant_values=128)
    return _Prepared(image, scale, shift, min_face * reduction)


def _reduction(image: np.ndarray) -> float:
    """Factor that reduces the longer side of a photo to DETECTION_SIDE; at most 1."""
    return min(1.0, DETECTION_SIDE / max(image.shape[:2]))


def _fits(image: np.ndarray, face_scale: int) -> bool:
    """Whether the shorter side of a photo is at least twice the minimum face size."""
    return min(image.shape[:2]) * _reduction(image) >= 2 * MIN_FACE * face_scale


def _scale_of(faces: Iterable[Face], photo_side: int) -> int:
    """Half the smallest face in multiples of MIN_FACE, rounded down to a power of two; 1 if there is no face."""
    smallest = min(map(shorter_side, faces), default=0) * min(1.0, DETECTION_SIDE / photo_side)
    return 2 ** int(np.log2(max(1.0, smallest / 2 / MIN_FACE)))


def _without(faces: Iterable[Face], known: Face | None) -> list[Face]:
    """The faces that are not the known one."""
    return [face for face in faces if known is None or overlap(face.box, known.box) < SAME_FACE]


def _reaches_edge(faces: Iterable[Face], shape: Sequence[int]) -> bool:
    """Whether the square around any face, which is MTCNN's input, exceeds the photo (h w ...)."""
    for face in faces:
        left, top, right, bottom = face.box
        half = max(right - left, bottom - top) / 2
        column, row = (left + right) / 2, (top + bottom) / 2
        if min(column, row) < half or column + half > shape[1] or row + half > shape[0]:
            return True
    return False


def _faces(boxes: Any, probabilities: Any, points: Any, scale: float, shift: int) -> Iterable[Face]:
    """Detections of one photo in pixels of the photo, without those below MIN_PROBABILITY."""
    for box, probability, landmarks in zip(boxes, probabilities, points, strict=True):
        if probability >= MIN_PROBABILITY:
            left, top, right, bottom = ((np.asarray(box, dtype=np.float64) - shift) / scale).tolist()
            in_photo = (np.asarray(landmarks, dtype=np.float64) - shift) / scale
            in_photo = np.round(in_photo * LANDMARK_STEPS) / LANDMARK_STEPS
            yield Face((left, top, right, bottom), in_photo, float(probability))


def _area(face: Face) -> float:
    """Area of a face's box, in square pixels."""
    return (face.box[2] - face.box[0]) * (face.box[3] - face.box[1])

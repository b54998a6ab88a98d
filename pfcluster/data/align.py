"""Faces out of photos: MTCNN's five landmarks, then the similarity that lays them on one template.

The same code prepares the training data and the photo of a prediction. Legend: `h` rows, `w` columns, `s` side of the
square crop, `p` points. Points are (x, y) in pixels, pixel centres at whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TEMPLATE_112 = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Left eye, right eye, nose, left and right corner of the mouth (as the viewer sees them) in a crop of 112 px."""

DETECTION_SIDE = 800
"""Photos whose longer side is larger are reduced to it for detection, in pixels; the crop comes from the full photo."""
BATCH = 8
"""Photos of equal size that MTCNN sees at once; larger batches are slower on a CPU."""
SMALLEST_FACE = 20
"""Smallest face that MTCNN is asked for, in pixels; twice that on photos of 200 px and more."""
MIN_PROBABILITY = 0.9
"""Detections below it are no faces."""
MAX_ENLARGEMENT = 4.0
"""A face that had to be enlarged more is too small."""


@dataclass(frozen=True)
class Face:
    """One detected face."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom in the photo's pixels."""
    landmarks: np.ndarray
    """p 2: both eyes, nose, corners of the mouth, in the photo's pixels."""
    probability: float


@dataclass(frozen=True)
class AlignedFace:
    """A crop and where it comes from."""

    image: np.ndarray
    """uint8 s s 3, RGB."""
    face: Face
    found: int
    """Faces found in the photo."""


@dataclass(frozen=True)
class Rejected:
    """A photo that gives no crop."""

    reason: str
    detail: str


class FaceAligner:
    """Detects and aligns; holds MTCNN. Of several faces it takes the largest and most central (`choose`)."""

    def __init__(self, size: int, *, device: str = "cpu") -> None:
        """`size`: side of the crop in pixels. Sets no number of threads: that is the process's to choose."""
        self.size = size
        self._detector = _load_mtcnn(device)

    def align(self, images: Sequence[np.ndarray]) -> list[AlignedFace | Rejected]:
        """For each photo (uint8 h w 3, RGB; sizes may differ) its crop, or why there is none."""
        return [self._crop(image, faces) for image, faces in zip(images, self.detect(images), strict=True)]

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
                prepared = [_prepare(images[index], border=border) for index in batch]
                for index, faces in zip(batch, self._detect_batch(prepared, SMALLEST_FACE * key[-1]), strict=True):
                    found[index] = faces
        return found

    def _detect_batch(self, batch: Sequence[_Prepared], smallest: int) -> list[list[Face]]:
        """Faces of photos of one size. A batch that facenet-pytorch cannot take is seen photo by photo."""
        scale, shift = batch[0].scale, batch[0].shift
        self._detector.min_face_size = smallest
        try:
            pixels = np.stack([prepared.pixels for prepared in batch])
            boxes, probabilities, points = self._detector.detect(pixels, landmarks=True)
        except (RuntimeError, ValueError, IndexError) as error:  # no candidate in any photo of the batch, or no scale
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            if len(batch) == 1:
                return [[]]
            return [self._detect_batch([prepared], smallest)[0] for prepared in batch]
        return [
            list(_faces(boxes[i], probabilities[i], points[i], scale, shift)) if boxes[i] is not None else []
            for i in range(len(batch))
        ]

    def _crop(self, image: np.ndarray, faces: Sequence[Face]) -> AlignedFace | Rejected:
        if not faces:
            return Rejected("no face found", f"photo of {image.shape[1]}x{image.shape[0]} px")
        face = choose(faces, image.shape[1], image.shape[0])
        side = _side(face)
        if side * MAX_ENLARGEMENT < self.size:
            return Rejected("face too small", f"{side:.0f} px for a crop of {self.size} px")
        matrix = similarity(face.landmarks, template(self.size))
        return AlignedFace(warp(image, matrix, self.size), face, len(faces))


def template(size: int) -> np.ndarray:
    """The five points in a crop of `size` pixels: p 2."""
    return TEMPLATE_112 * (size / 112)


def choose(faces: Sequence[Face], width: int, height: int) -> Face:
    """The largest and most central face: area times one minus its distance from the centre in half diagonals."""

    def weight(face: Face) -> float:
        left, top, right, bottom = face.box
        distance = np.hypot((left + right - width) / 2, (top + bottom - height) / 2) / (np.hypot(width, height) / 2)
        return float((right - left) * (bottom - top) * (1 - min(1.0, distance)))

    return max(faces, key=weight)


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The 2 3 matrix of the rotation, scale and shift that bring `points` (p 2) nearest to `targets` (p 2).

    Least squares without reflection (Umeyama 1991, equations 40 to 42).
    """
    mean, target_mean = points.mean(axis=0), targets.mean(axis=0)
    centred = points - mean
    covariance = (targets - target_mean).T @ centred / len(points)
    left, singular, right = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left @ np.diag(signs) @ right
    scale = (singular * signs).sum() / (centred**2).sum(axis=1).mean()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ mean])


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The square crop of `size` pixels that `matrix` (2 3, photo to crop) cuts: uint8 h w 3 -> uint8 s s 3.

    Photos much larger than the crop are averaged down first, against aliasing. Outside the photo the crop is black.
    """
    import cv2

    reduction = int(1 / np.hypot(matrix[0, 0], matrix[1, 0]))
    if reduction >= 2:
        height, width = (max(1, side // reduction) for side in image.shape[:2])
        factors = np.array([image.shape[1] / width, image.shape[0] / height])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        # a point x of the small photo stands at factor * (x + 1/2) - 1/2 of the full one
        shift = matrix[:, :2] @ ((factors - 1) / 2) + matrix[:, 2]
        matrix = np.column_stack([matrix[:, :2] * factors, shift])
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """The photo as it is, at `size` x `size`; a photo that is not square loses its longer ends. uint8 h w 3 -> s s
    3.
    """
    import cv2

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


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


def _prepare(image: np.ndarray, *, border: bool) -> _Prepared:
    scale = min(1.0, DETECTION_SIDE / max(image.shape[:2]))
    if scale < 1:
        import cv2

        width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    shift = max(image.shape[:2]) // 4 if border else 0
    if shift:
        image = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), constant_values=128)
    return _Prepared(image, scale, shift)


def _side(face: Face) -> float:
    """The shorter side of the face's box in pixels."""
    return min(face.box[2] - face.box[0], face.box[3] - face.box[1])


def _coarseness(faces: Iterable[Face], photo_side: int) -> int:
    """Half the smallest face, in SMALLEST_FACEs, rounded down to a power of two; 1 where there is no face."""
    smallest = min(map(_side, faces), default=0) * min(1.0, DETECTION_SIDE / photo_side)
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

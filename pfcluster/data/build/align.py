"""Face alignment: crops in which five landmarks are mapped to a template by a similarity transform.

Training data and images for inference are prepared by the same code; detect.py finds the landmarks. Legend: h rows,
w columns, s side of the square crop, p points. Points are (x, y) in pixels; pixel centres have integer coordinates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

TEMPLATE_112 = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Left eye, right eye, nose, left and right mouth corner (from the viewer's side) in a crop of 112 px."""

MAX_ENLARGEMENT = 4.0
"""Faces that would have to be enlarged more than this are rejected as too small."""

MAX_OUTSIDE = 1
"""Listed landmarks of a face that may lie outside its photo, as those of a face at the edge."""

FaceRule = Literal["largest-central", "largest", "most-central"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Face:
    """One detected face."""

    box: Box
    """Left, top, right, bottom in pixels of the photo."""
    landmarks: np.ndarray
    """p 2: both eyes, nose, both mouth corners, in pixels of the photo; empty if only the box is known."""
    probability: float


@dataclass(frozen=True)
class Hint:
    """Box and landmarks of the labelled face from the dataset's listing, in pixels of the photo."""

    box: Box | None = None
    landmarks: tuple[tuple[float, float], ...] = ()
    """p points in the order of `Face.landmarks`; empty if none are given."""


NO_HINT = Hint()


@dataclass(frozen=True)
class AlignedFace:
    """A crop and the face that it was cut from."""

    image: np.ndarray
    """uint8 s s 3, RGB."""
    face: Face
    faces_in_photo: int
    """Number of faces detected in the photo."""


@dataclass(frozen=True)
class Rejected:
    """A photo without a usable face, and the reason."""

    reason: str
    detail: str


class Aligner(Protocol):
    """Crops one face from each photo."""

    def align(self, images: Sequence[np.ndarray], hints: Sequence[Hint] | None = None) -> list[AlignedFace | Rejected]:
        """The crop of each photo (uint8 h w 3, RGB; sizes may differ), or the reason why there is none."""


@dataclass(frozen=True)
class LandmarkAligner:
    """Crops faces by the landmarks in their hints, without detection."""

    size: int
    """Side of the crops in pixels."""

    def align(self, images: Sequence[np.ndarray], hints: Sequence[Hint] | None = None) -> list[AlignedFace | Rejected]:
        """See `Aligner`."""
        return [self._one(image, hint) for image, hint in zip(images, hints or [NO_HINT] * len(images), strict=True)]

    def _one(self, image: np.ndarray, hint: Hint) -> AlignedFace | Rejected:
        points = np.asarray(hint.landmarks, dtype=np.float64)
        if not len(points):
            return Rejected("no landmarks", "the listing has none for this photo")
        if not np.isfinite(points).all() or np.ptp(points, axis=0).max() < 1:
            return Rejected("invalid landmarks", "not finite, or all at the same point")
        height, width = image.shape[:2]
        outside = int(((points < -0.5) | (points > np.array([width, height]) - 0.5)).any(axis=1).sum())
        if outside > MAX_OUTSIDE:
            detail = f"{outside} of {len(points)} landmarks, in a photo of {width} x {height} px"
            return Rejected("landmarks outside the photo", detail)
        box = hint.box or crop_box(similarity(points, template(self.size)), self.size)
        return crop_face(image, Face(box, points, 1.0), 1, self.size)


def crop_face(
    image: np.ndarray, face: Face, faces_in_photo: int, size: int, targets: np.ndarray | None = None
) -> AlignedFace | Rejected:
    """The crop of one face; rejected if it would have to be enlarged by more than `MAX_ENLARGEMENT`. `targets`: where
    the landmarks come to lie in the crop, p 2; by default `template`.
    """
    side = shorter_side(face)
    if side * MAX_ENLARGEMENT < size:
        return Rejected("face too small", f"{side:.0f} px for a crop of {size} px")
    matrix = similarity(face.landmarks, template(size) if targets is None else targets)
    return AlignedFace(warp(image, matrix, size), face, faces_in_photo)


def crop_listed_box(image: np.ndarray, box: Box, size: int) -> AlignedFace | Rejected:
    """The upright square with the centre and the longer side of a box that a dataset lists; without landmarks. Rejected
    as by `crop_face`, or if the box's centre is outside the photo.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    if not (0 <= x <= width and 0 <= y <= height):
        return Rejected("face box outside the photo", f"{box} in a photo of {width} x {height} px")
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]) / 2
    # the edges of a box lie between pixels, whose centres have integer coordinates
    square = np.array([x, y]) - 0.5 + corners * max(right - left, bottom - top)
    cropped = crop_face(image, Face(box, square, 1.0), 1, size, (size - 1) / 2 + corners * size)
    if isinstance(cropped, Rejected):
        return cropped
    return dataclasses.replace(cropped, face=dataclasses.replace(cropped.face, landmarks=np.empty((0, 2))))


def crop_box(matrix: np.ndarray, size: int) -> Box:
    """The upright square in the photo with the side and the centre of the crop that `matrix` (2 3) defines."""
    half = size / 2 / float(np.hypot(matrix[0, 0], matrix[1, 0]))
    x, y = np.linalg.solve(matrix[:, :2], np.full(2, (size - 1) / 2) - matrix[:, 2]).tolist()
    return x - half, y - half, x + half, y + half


def template(size: int) -> np.ndarray:
    """The five landmarks in a crop of `size` pixels: p 2."""
    return TEMPLATE_112 * (size / 112)


def choose_face(faces: Sequence[Face], width: int, height: int, rule: FaceRule = "largest-central") -> Face:
    """The face that a rule selects in a photo of this width and height."""
    return max(faces, key=lambda face: face_weight(face, width, height, rule))


def face_weight(face: Face, width: int, height: int, rule: FaceRule) -> float:
    """The criterion that a rule maximises; never more than the area of the face's box.

    largest: area. largest-central: area * (1 - d), with d the distance of the box from the photo's centre in half
    diagonals. most-central: -d.
    """
    left, top, right, bottom = face.box
    area = (right - left) * (bottom - top)
    distance = np.hypot((left + right - width) / 2, (top + bottom - height) / 2) / (np.hypot(width, height) / 2)
    if rule == "most-central":
        return float(-distance)
    return float(area if rule == "largest" else area * (1 - min(1.0, distance)))


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    intersection = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return intersection / (areas - intersection) if areas > intersection else 0.0


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The 2 3 matrix of rotation, scale and translation that maps `points` (p 2) to `targets` (p 2) in least squares,
    without reflection (Umeyama 1991, equations 40 to 42).
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
    """The square crop of `size` pixels under `matrix` (2 3, photo to crop): uint8 h w 3 -> uint8 s s 3.

    Photos at twice the scale of the crop or more are reduced by area averaging first, against aliasing. Pixels outside
    the photo are black.
    """
    import cv2

    reduction = int(1 / np.hypot(matrix[0, 0], matrix[1, 0]))
    if reduction >= 2:
        height, width = (max(1, side // reduction) for side in image.shape[:2])
        factors = np.array([image.shape[1] / width, image.shape[0] / height])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        # coordinate x of the reduced photo is factor * (x + 1/2) - 1/2 in the full one
        shift = matrix[:, :2] @ ((factors - 1) / 2) + matrix[:, 2]
        matrix = np.column_stack([matrix[:, :2] * factors, shift])
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Centre-crop a photo to a square and resize it: uint8 h w 3 -> uint8 s s 3."""
    import cv2

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def shorter_side(face: Face) -> float:
    """Shorter side of the face's box, in pixels."""
    return min(face.box[2] - face.box[0], face.box[3] - face.box[1])

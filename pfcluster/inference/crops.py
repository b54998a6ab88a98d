"""From photos to the stored images that a network is given, by the code of `pfcluster build`. torch only in MTCNN.

Legend: h rows, w columns, s side of a stored image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from pfcluster.data.build import align
from pfcluster.data.build.align import NO_HINT, AlignedFace, choose_face, crop_face
from pfcluster.data.build.stored_images import DecodedPhoto, stored_crop, stored_photo
from pfcluster.data.jpeg import decode_jpeg
from pfcluster.inference.errors import NoDetectorError
from pfcluster.inference.faces import Face
from pfcluster.inference.grey import is_grey, to_grey
from pfcluster.inference.model_info import Preprocessing

WhichFaces = Literal["all", "one"]
NO_FACE = "no face found"


class Cropper(Protocol):
    """Finds the faces of photos and crops them."""

    def faces(self, photos: Sequence[DecodedPhoto]) -> list[list[Face]]:
        """The faces of each photo, with their crops; a face that cannot be cropped has a reason instead."""


class WholePhotos:
    """Takes every photo as a crop: a square around its centre, at the size of the crops."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def faces(self, photos: Sequence[DecodedPhoto]) -> list[list[Face]]:
        """See `Cropper`."""
        return [[Face("", number=0, crop=self.crop(photo))] for photo in photos]

    def crop(self, photo: DecodedPhoto) -> np.ndarray:
        """The stored image of a photo: uint8 s s 3."""
        size, quality = self._preprocessing.crop_size, self._preprocessing.jpeg_quality
        if self._preprocessing.grey and not is_grey(photo.image):
            photo = DecodedPhoto(b"", to_grey(photo.image), plain=False)
        if quality is None:
            return align.resize(photo.image, size)
        return decode_jpeg(stored_photo(photo, size, quality))


class DetectedFaces:
    """Detects faces with MTCNN and aligns them by their landmarks."""

    def __init__(self, preprocessing: Preprocessing, device: str, which: WhichFaces = "all") -> None:
        """`which`: all faces of a photo, or only the one that training would use, which is faster to find.

        Raises NoDetectorError without torch or facenet-pytorch.
        """
        try:
            from pfcluster.data.build.detect import FaceAligner

            self._aligner = FaceAligner(preprocessing.crop_size, device=device, rule=preprocessing.face)
        except ImportError as error:
            raise NoDetectorError(
                f"faces are detected with facenet-pytorch and torch, which cannot be imported ({error}); install them,"
                " or use crops of faces with --no-detect"
            ) from error
        self._preprocessing, self._which = preprocessing, which

    def faces(self, photos: Sequence[DecodedPhoto]) -> list[list[Face]]:
        """See `Cropper`."""
        images = [photo.image for photo in photos]
        return [self._crops(image, faces) for image, faces in zip(images, self._detect(images), strict=True)]

    def _detect(self, images: Sequence[np.ndarray]) -> list[list[align.Face]]:
        if self._which == "all":
            return self._aligner.detect_all(images)
        detected = self._aligner.detect_selected(images, [NO_HINT] * len(images))
        return [
            [choose_face(faces, image.shape[1], image.shape[0], self._aligner.rule)] if faces else []
            for image, faces in zip(images, detected, strict=True)
        ]

    def _crops(self, image: np.ndarray, detected: Sequence[align.Face]) -> list[Face]:
        return [self._crop(image, face, number) for number, face in enumerate(detected)]

    def _crop(self, image: np.ndarray, detected: align.Face, number: int) -> Face:
        size = self._preprocessing.crop_size
        face = Face("", number=number, box=detected.box, landmarks=detected.landmarks, confidence=detected.probability)
        aligned = crop_face(image, detected, 1, size, self._preprocessing.targets())
        if isinstance(aligned, AlignedFace):
            face.crop = self._stored(aligned.image)
        else:
            face.reason = f"{aligned.reason}: {aligned.detail}"
        return face

    def _stored(self, crop: np.ndarray) -> np.ndarray:
        """A crop as training read it back from a shard."""
        quality = self._preprocessing.jpeg_quality
        if self._preprocessing.grey:
            crop = to_grey(crop)
        return crop if quality is None else decode_jpeg(stored_crop(crop, quality))

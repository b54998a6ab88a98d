"""What a shard stores of a photo: the JPEG of a face's crop, or of the whole photo at the size of the crops.

Builds write these bytes, and inference decodes the same bytes, so that a network sees a photo as it does in training.
Legend: h rows, w columns, s side of the stored image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfcluster.data.build.align import resize
from pfcluster.data.jpeg import decode_jpeg, decode_photo, encode_jpeg


@dataclass(frozen=True, eq=False)
class DecodedPhoto:
    """A photo file and its pixels."""

    data: bytes
    """The file's bytes; empty for an image that comes from no file."""
    image: np.ndarray
    """uint8 h w 3, RGB, upright."""
    plain: bool
    """Whether the bytes can be stored unchanged (`decode_photo`)."""


def decode(data: bytes) -> DecodedPhoto:
    """Decode a photo of any supported format. Raises UnreadablePhotoError."""
    image, plain = decode_photo(data)
    return DecodedPhoto(data, image, plain)


def stored_crop(crop: np.ndarray, quality: int) -> bytes:
    """The JPEG of an aligned crop, uint8 s s 3."""
    return encode_jpeg(crop, quality)


def stored_photo(photo: DecodedPhoto, size: int, quality: int) -> bytes:
    """The JPEG of a whole photo at `size` pixels; a JPEG that already has that size is copied unchanged."""
    if photo.plain and photo.image.shape[:2] == (size, size):
        try:
            decode_jpeg(photo.data)
        except ValueError:  # pillow tolerates more than the training decoder: re-encode
            pass
        else:
            return photo.data
    return encode_jpeg(resize(photo.image, size), quality)

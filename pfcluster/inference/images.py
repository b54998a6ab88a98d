"""Images in memory as photos: paths, pillow images, NumPy arrays and torch tensors. No torch of its own.

Legend: b images, h rows, w columns.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from pfcluster.data.build.stored_images import DecodedPhoto
from pfcluster.data.jpeg import UNDECODABLE, UnreadablePhotoError, pixels_of
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.sources import read_photo
from pfcluster.inference.video import VIDEO_SUFFIXES

Images: TypeAlias = Any
"""One image or any number of them: a path; a pillow image; a NumPy array, uint8 h w 3 or h w, or b h w 3; a torch
tensor, uint8 3 h w or b 3 h w. Colours are RGB."""


def photos_of(images: Images) -> Iterator[tuple[str, DecodedPhoto]]:
    """Name and pixels of each image. Raises InferenceError for one that cannot be read or is of another form."""
    for number, image in enumerate(_single_images(images)):
        name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
        yield str(name), _photo(image, str(name))


def _single_images(images: Images) -> Iterator[Any]:
    if isinstance(images, str | os.PathLike | Image.Image):
        yield images
    elif _is_array(images):
        yield from images if images.ndim == 4 else [images]
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise _unknown(images)


def _is_array(image: Any) -> bool:
    """Whether it is a NumPy array or a torch tensor."""
    return isinstance(image, np.ndarray) or _is_tensor(image)


def _is_tensor(image: Any) -> bool:
    return type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "permute")


def _photo(image: Any, name: str) -> DecodedPhoto:
    try:
        if isinstance(image, str | os.PathLike):
            if Path(name).suffix.lower() in VIDEO_SUFFIXES:
                raise InferenceError(f"{name} is a video; use `pfcluster predict {name}`, or pass its frames as arrays")
            return read_photo(name)
        if isinstance(image, Image.Image):
            return DecodedPhoto(b"", _pillow(image), plain=False)
    except UnreadablePhotoError as error:
        raise InferenceError(f"{name} cannot be read: {error}") from error
    if not _is_array(image):
        raise _unknown(image)
    pixels = image.detach().cpu().permute(1, 2, 0).numpy() if _is_tensor(image) and image.ndim == 3 else image
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise InferenceError(f"{name} must be uint8 (0..255, RGB), got {image.dtype}")
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        form = "3 h w" if _is_tensor(image) else "h w 3"
        raise InferenceError(f"{name} must have the shape {form}, got {tuple(image.shape)}")
    return DecodedPhoto(b"", np.ascontiguousarray(pixels), plain=False)


def _pillow(image: Image.Image) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow warns about large images and malformed metadata
            image.load()
            return pixels_of(image)
    except UNDECODABLE as error:
        raise UnreadablePhotoError(str(error) or type(error).__name__) from error


def _unknown(image: Any) -> InferenceError:
    return InferenceError(
        f"an image must be a path, a pillow image, a NumPy array or a torch tensor, got {type(image).__name__}"
    )

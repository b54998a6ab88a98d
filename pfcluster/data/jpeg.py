"""Encode and decode JPEG files, and decode photos of any supported format. Legend: h w pixels."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error, Image.DecompressionBombError)
"""Exceptions that pillow raises on damaged files and on files that are not images."""
MAX_PIXELS = 100_000_000
"""Larger photos are rejected before decoding."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened, by content, in pillow's names. EPS is excluded: pillow would start Ghostscript."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> transposition that turns the image upright."""


class UnreadablePhotoError(ValueError):
    """The bytes are not an image, or a damaged or too large one."""


def decode_jpeg(data: bytes | memoryview) -> np.ndarray:
    """Decode a JPEG file: -> uint8 h w 3, RGB; greyscale gives three equal channels. Raises ValueError if damaged."""
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def decode_jpeg_into(data: bytes | memoryview, pixels: np.ndarray) -> None:
    """`decode_jpeg` into `pixels`, contiguous uint8 h w 3. Raises ValueError if damaged or of another size."""
    height, width = pixels.shape[:2]
    jpeg_height, jpeg_width = simplejpeg.decode_jpeg_header(data)[:2]
    if (jpeg_height, jpeg_width) != (height, width):
        raise ValueError(f"it is {jpeg_width}x{jpeg_height} px, not {width}x{height}")
    simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=pixels)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode uint8 h w 3 as baseline JPEG without chroma subsampling; as greyscale if the channels are equal."""
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
    encoded = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    buffer = io.BytesIO()
    encoded.save(buffer, format="JPEG", quality=quality, **({} if grey else {"subsampling": 0}))
    return buffer.getvalue()


def decode_photo(data: bytes) -> tuple[np.ndarray, bool]:
    """Decode a photo of one of FORMATS: -> uint8 h w 3, RGB, and whether its bytes can be stored unchanged.

    Rotated according to EXIF; the first of several frames; transparency over white. The bytes can be stored unchanged
    if they are a greyscale or RGB JPEG that needs no rotation. Raises UnreadablePhotoError, also above MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow warns about large images and malformed metadata
            return _decode_photo(data)
    except Image.DecompressionBombError as error:
        raise UnreadablePhotoError(f"more than {MAX_PIXELS} px") from error
    except UNDECODABLE as error:
        raise UnreadablePhotoError(str(error).split("<_io")[0].strip() or type(error).__name__) from error


def _decode_photo(data: bytes) -> tuple[np.ndarray, bool]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as photo:
        width, height = photo.size
        if width * height > MAX_PIXELS:
            raise UnreadablePhotoError(f"{width} x {height} px, more than {MAX_PIXELS} px")
        plain = photo.format == "JPEG" and photo.mode in ("L", "RGB")
        photo.load()  # before reading EXIF: some formats store it at the end; also rotates TIFFs
        orientation = photo.getexif().get(ExifTags.Base.Orientation, 1)
        turn = TURNS.get(orientation)
        upright = photo if turn is None else photo.transpose(turn)
        return np.array(_to_rgb(upright)), plain and orientation == 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any pillow mode to RGB; 16-bit and float images are scaled to 0..255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
        top = 255.0 if values.max(initial=0.0) <= 255 else 65535.0
        return Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")

"""JPEG in and out, and the decoding of raw photos of any format. Knows numpy and pillow, and simplejpeg where it is
there.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import ExifTags, Image

try:
    import simplejpeg
except ImportError:  # pillow decodes the same pixels, half as fast
    simplejpeg = None

UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error, Image.DecompressionBombError)
"""What pillow raises on files that are no pictures, or damaged ones."""
MAX_PIXELS = 100_000_000
"""Of a photo; larger ones are refused before they are decoded."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is opened, whatever a file's ending says. For EPS pillow would start another program."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the picture upright."""


class UnreadablePhotoError(ValueError):
    """Bytes that are no picture, or a damaged one."""


def decode_jpeg(data: bytes | memoryview) -> np.ndarray:
    """Pixels of one JPEG: uint8 h w 3, RGB; grey becomes three equal channels. Raises ValueError on damage."""
    if simplejpeg is not None:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except UNDECODABLE as error:
        raise ValueError(str(error)) from error


def decode_jpeg_into(data: bytes | memoryview, pixels: np.ndarray) -> None:
    """`decode_jpeg` into `pixels`, contiguous uint8 h w 3. Raises ValueError on damage, and where sizes differ."""
    height, width = pixels.shape[:2]
    if simplejpeg is None:
        found = decode_jpeg(data)
        if found.shape != pixels.shape:
            raise ValueError(_other_size(found.shape[1], found.shape[0], width, height))
        pixels[:] = found
        return
    found_height, found_width = simplejpeg.decode_jpeg_header(data)[:2]
    if (found_height, found_width) != (height, width):
        raise ValueError(_other_size(found_width, found_height, width, height))
    simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=pixels)


def _other_size(found_width: int, found_height: int, width: int, height: int) -> str:
    return f"it is {found_width}x{found_height} px, not {width}x{height}"


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Baseline JPEG of uint8 h w 3, without chroma subsampling; one channel where all three are equal."""
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, **({} if grey else {"subsampling": 0}))
    return buffer.getvalue()


def decode_photo(data: bytes) -> tuple[np.ndarray, bool]:
    """Pixels of a photo of any of FORMATS, of several frames the first: uint8 h w 3, RGB, upright as its EXIF says.

    Also whether the file is a plain JPEG of exactly these pixels (grey or RGB, not turned), fit to be kept as it is.
    Transparent pixels are laid on white. Raises UnreadablePhotoError, also for more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow warns of large pictures and odd metadata
            return _decode_photo(data)
    except Image.DecompressionBombError as error:
        raise UnreadablePhotoError(f"more than {MAX_PIXELS} px") from error
    except UNDECODABLE as error:
        raise UnreadablePhotoError(str(error).split("<_io")[0].strip() or type(error).__name__) from error


def _decode_photo(data: bytes) -> tuple[np.ndarray, bool]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise UnreadablePhotoError(f"{width} x {height} px, more than {MAX_PIXELS} px")
        plain = picture.format == "JPEG" and picture.mode in ("L", "RGB")
        picture.load()  # some formats tell the orientation only at their end; TIFFs are turned by this
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        turn = TURNS.get(orientation)
        upright = picture if turn is None else picture.transpose(turn)
        return np.array(_to_rgb(upright)), plain and orientation == 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), nan=0.0)
        top = 255.0 if values.max(initial=0.0) <= 255 else 65535.0
        return Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")

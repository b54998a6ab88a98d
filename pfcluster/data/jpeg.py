"""Encode and decode JPEG files, and decode photos of any supported format. Legend: h w pixels."""

from __future__ import annotations

import functools
import io
import struct
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error, Image.DecompressionBombError)
"""Exceptions that pillow raises on damaged files and on files that are not images."""
MAX_PIXELS = 100_000_000
"""Larger photos are rejected before decoding."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened, by content, in pillow's names. EPS is excluded: pillow would start Ghostscript."""
RANGES = (255.0, 1023.0, 4095.0, 16383.0, 32767.0, 65535.0)
"""Largest values of 8, 10, 12, 14, 15 and 16 bits: cameras store fewer bits than the file's format has."""
DARK = 128
"""Of 16-bit images that use 15 bits or fewer, the upper bytes lie below or, rounded, at this."""
DEEP_FORMATS = ("PNG", "PPM", "TIFF")
"""Formats with up to 16 bits a channel."""
MAX_16_BIT = 65535
NOISE = 0.05
"""By so much floats of 0..1 may overshoot."""
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
    if not _has_simplejpeg():
        return _torchvision_decoder()(data)
    import simplejpeg

    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def decode_jpeg_into(data: bytes | memoryview, pixels: np.ndarray) -> None:
    """`decode_jpeg` into `pixels`, contiguous uint8 h w 3. Raises ValueError if damaged or of another size."""
    if not _has_simplejpeg():
        decoded = _torchvision_decoder()(data)
        require_shape(decoded.shape[:2], pixels.shape[:2])
        pixels[...] = decoded
        return
    import simplejpeg

    require_shape(simplejpeg.decode_jpeg_header(data)[:2], pixels.shape[:2])
    simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=pixels)


def require_shape(shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raises ValueError if heights or widths differ."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"it is {shape[1]}x{shape[0]} px, not {expected[1]}x{expected[0]}")


@functools.cache
def _has_simplejpeg() -> bool:
    """Whether simplejpeg is installed. Without it torchvision decodes, which is slower and gives the same pixels."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return False
    return True


def _torchvision_decoder() -> Callable[[bytes | memoryview], np.ndarray]:
    from pfcluster.data.torch_jpeg import decode_with_torchvision  # this module is used without torch, too

    return decode_with_torchvision


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
    try:
        photo = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadablePhotoError(f"it is not an image of a known format ({', '.join(FORMATS)})") from error
    with photo:
        width, height = photo.size
        if width * height > MAX_PIXELS:
            raise UnreadablePhotoError(f"{width} x {height} px, more than {MAX_PIXELS} px")
        plain = photo.format == "JPEG" and photo.mode in ("L", "RGB")
        deep = photo.format in DEEP_FORMATS and _has_16_bits(photo)
        photo.load()  # before reading EXIF: some formats store it at the end; also rotates TIFFs
        orientation = photo.getexif().get(ExifTags.Base.Orientation, 1)
        if deep and photo.mode in ("RGB", "RGBA") and np.asarray(photo)[..., :3].max(initial=0) <= DARK:
            return _deep_colours(data, orientation), False
        return pixels_of(photo), plain and orientation == 1


def _has_16_bits(photo: ImageFile.ImageFile) -> bool:
    """Whether pillow decodes from a raw mode of 16 bits, such as "RGB;16L", or from a PPM up to 65535. The arguments of
    its TIFF decoder hold a byte offset, too.
    """
    for tile in photo.tile:
        values = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(value, str) and ";16" in value for value in values):
            return True
        if photo.format == "PPM" and MAX_16_BIT in values:
            return True
    return False


def pixels_of(photo: Image.Image) -> np.ndarray:
    """A loaded pillow image as uint8 h w 3, RGB: rotated according to EXIF, transparency over white."""
    orientation = photo.getexif().get(ExifTags.Base.Orientation, 1)
    return np.array(_to_rgb(photo if orientation not in TURNS else photo.transpose(TURNS[orientation])))


def _deep_colours(data: bytes, orientation: int) -> np.ndarray:
    """Decode a colour image of 16 bits a channel that uses fewer: pillow keeps the upper 8 only, which are dark."""
    import cv2

    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.dtype != np.uint16 or values.shape[2] not in (3, 4):
        raise UnreadablePhotoError("nearly black: it uses few of its 16 bits a channel; save it with 8 bits")
    colours = _scaled(values[..., 2::-1].astype(np.float64), whole=True)
    image = Image.fromarray(np.ascontiguousarray(colours))
    return np.array(image if orientation not in TURNS else image.transpose(TURNS[orientation]))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any pillow mode to RGB; images of more than 8 bits are scaled to 0..255."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(_scaled(values, whole=image.mode != "F")).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _scaled(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """Scale numbers to uint8 by the smallest range of RANGES that holds them, else by their own.

    8-bit values that were multiplied by 257 are recognised, also if they are dark. Float images of -1..1 and 0..1 are
    scaled from there.
    """
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    if whole and low >= 0 and not (values % 257).any() and high <= 65535:
        low, high = 0.0, 65535.0
    elif low < -NOISE:
        low, high = (-1.0, 1.0) if low >= -1 and high <= 1 and not whole else (low, high)
    elif high <= 1 + NOISE and not whole:
        low, high = 0.0, 1.0
    else:
        low, high = 0.0, next((top for top in RANGES if high <= top), high)
    return ((values - low) * (255 / max(high - low, np.finfo(np.float64).tiny)) + 1e-9).clip(0, 255).astype(np.uint8)

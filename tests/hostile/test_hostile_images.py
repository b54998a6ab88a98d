"""Damaged, malicious or unusual images: refused with an error message, or decoded correctly."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from pfcluster.data.jpeg import MAX_PIXELS, TURNS, UnreadablePhotoError, decode_jpeg, decode_jpeg_into, decode_photo
from tests.hostile.conftest import TIMES
from tests.hostile.damage import Damage, assert_explains, damages

SHAPE = (13, 9)
"""Height and width of the test images."""
EXACT: dict[str, dict[str, object]] = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
}
"""Lossless (or best) save options."""
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("L", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16", "I"),
}
TRIED = tuple((name, mode) for name, modes in MODES.items() for mode in modes)
MANY = settings(max_examples=150 * TIMES)


def decoded(data: bytes) -> np.ndarray | None:
    """The pixels; None if the image is refused. Fails on warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels, plain = decode_photo(data)
        except UnreadablePhotoError as error:
            assert_explains(error)
            return None
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.size <= 3 * MAX_PIXELS
    assert not plain or data[:2] == b"\xff\xd8"
    return pixels


def drawing(mode: str = "RGB") -> Image.Image:
    """An image without symmetry."""
    height, width = SHAPE
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 18, columns * 28, (rows * columns) % 256], axis=-1).astype(np.uint8)
    return converted(Image.fromarray(pixels), mode)


def converted(picture: Image.Image, mode: str) -> Image.Image:
    """The image in a mode; modes with more than 8 bits use their full range."""
    if mode in ("I;16", "I"):
        values = np.asarray(picture.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32) * 257
        return Image.fromarray(values)
    return picture.quantize(64).convert(mode) if mode in ("P", "PA") else picture.convert(mode)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@settings(max_examples=500 * TIMES)
@given(what=st.sampled_from(TRIED), damage=damages())
def test_damaged_photos(what: tuple[str, str], damage: Damage) -> None:
    decoded(damage(saved(drawing(what[1]), what[0])))


@settings(max_examples=200 * TIMES)
@given(
    packing=st.sampled_from(("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")),
    orientation=st.integers(1, 8),
    damage=damages(),
)
def test_damaged_tiffs(packing: str, orientation: int, damage: Damage) -> None:
    picture = drawing("1" if packing == "group4" else "RGB")
    decoded(damage(saved(picture, "TIFF", compression=packing, tiffinfo={274: orientation})))


@MANY
@given(data=st.binary(max_size=300), start=st.sampled_from((b"", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"P5 ")))
@example(data=b"", start=b"")
@example(data=b"Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", start=b"%!PS-")
def test_bytes_that_are_not_an_image(data: bytes, start: bytes) -> None:
    decoded(start + data)


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[ExifTags.Base.Orientation] = orientation
    values[ExifTags.Base.Software] = "a camera"
    return values


@settings(max_examples=200 * TIMES)
@given(kind=st.sampled_from(("JPEG", "PNG", "WEBP")), orientation=st.integers(1, 8), damage=damages())
def test_damaged_exif(kind: str, orientation: int, damage: Damage) -> None:
    """The image is decoded in some orientation, or refused."""
    content = damage(exif(orientation).tobytes())
    assume(len(content) < 60_000)
    pixels = decoded(saved(drawing(), kind, exif=content))
    assert pixels is None or pixels.shape in ((*SHAPE, 3), (*SHAPE[::-1], 3))


@given(kind=st.sampled_from(("PNG", "WEBP", "TIFF", "JPEG")), orientation=st.integers(0, 9))
def test_every_orientation_is_rotated_upright(kind: str, orientation: int) -> None:
    upright = drawing()
    back = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(TURNS[back]) if back in TURNS else upright
    pixels = decoded(saved(stored, kind, exif=exif(orientation), **EXACT[kind]))
    assert pixels is not None
    assert np.abs(pixels.astype(int) - np.asarray(upright).astype(int)).max() <= (8 if kind == "JPEG" else 0)


@settings(max_examples=100 * TIMES)
@given(what=st.sampled_from(TRIED), colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_every_mode_keeps_the_colour(what: tuple[str, str], colour: tuple[int, int, int]) -> None:
    kind, mode = what
    picture = converted(Image.new("RGB", SHAPE[::-1], colour), mode)
    if mode in ("1", "L", "LA", "I;16", "I", "F"):
        grey = int(np.asarray(Image.new("RGB", (1, 1), colour).convert("L"))[0, 0])
        colour = (255 * (grey >= 128),) * 3 if mode == "1" else (grey,) * 3
    pixels = decoded(saved(picture, kind))
    assert pixels is not None
    assert pixels.shape == (*SHAPE, 3)
    if mode == "1" and pixels.std() > 0:
        return  # dithered
    if mode == "F" and max(colour) == 1:
        return  # white, in the range 0..1
    tolerance = 5 if kind in ("JPEG", "WEBP") else 1
    assert np.abs(pixels.astype(int) - np.array(colour)).max() <= tolerance


@given(value=st.integers(0, 65535), kind=st.sampled_from(("PNG", "TIFF")))
def test_sixteen_bit_images_are_scaled_by_their_range(value: int, kind: str) -> None:
    pixels = decoded(saved(Image.fromarray(np.full(SHAPE, value, np.uint16)), kind))
    assert pixels is not None
    if value > 32767 or value % 257 == 0:
        assert (pixels == value // 257).all()
    else:  # the smallest of 8, 10, 12, 14 and 15 bits
        assert value // 257 <= pixels.min() == pixels.max() <= value
        assert value < 64 or pixels.min() >= 63


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize(("mode", "suffix"), [("L", ".png"), ("L", ".tiff"), ("RGB", ".png"), ("RGB", ".tiff")])
def test_any_number_of_bits_gives_the_same_image(bits: int, mode: str, suffix: str) -> None:
    import cv2

    values = np.asarray(drawing(mode)).astype(np.float64)
    values[0, 0] = 255
    stored = np.round(values * ((2**bits - 1) / 255)).astype(np.uint16)
    for alpha in (False, True) if mode == "RGB" else (False,):
        full = np.dstack([stored[..., ::-1], np.full(SHAPE, stored.max())]) if alpha else stored[..., ::-1]
        pixels = decoded(cv2.imencode(suffix, np.ascontiguousarray(full if mode == "RGB" else stored))[1].tobytes())
        assert pixels is not None
        expected = values if mode == "RGB" else values[..., None]
        assert np.abs(pixels.astype(float) - expected).max() <= 1


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 257.0, 1e4])
@pytest.mark.parametrize("centred", [False, True])
def test_floats_of_any_range_give_the_same_image(scale: float, centred: bool) -> None:
    values = np.asarray(drawing("L")).astype(np.float32)
    values[0, :2] = 0, 255
    stored = (values * 2 - 255 if centred else values) * np.float32(scale)
    pixels = decoded(saved(Image.fromarray(stored), "TIFF"))
    assert pixels is not None
    assert np.abs(pixels.astype(float) - values[..., None]).max() <= 1


@given(values=st.lists(st.floats(width=32), min_size=6, max_size=6))
def test_float_images_with_nan_and_infinity(values: list[float]) -> None:
    assert decoded(saved(Image.fromarray(np.array(values, np.float32).reshape(2, 3)), "TIFF")) is not None


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims this size."""
    small = saved(drawing("L"), kind)
    if kind == "PNG":
        return small[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + small[33:]
    if kind == "JPEG":
        place = small.index(b"\xff\xc0") + 5
        return small[:place] + struct.pack(">HH", height & 0xFFFF, width & 0xFFFF) + small[place + 4 :]
    if kind == "BMP":
        return small[:18] + struct.pack("<ii", width, height) + small[26:]
    if kind == "GIF":
        return small[:6] + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF) + small[10:]
    if kind == "PPM":
        return b"P5 %d %d 255\n" % (width, height) + small[-99:]
    return claiming_tiff(small, width, height)


def claiming_tiff(small: bytes, width: int, height: int) -> bytes:
    """Set width and height, tags 256 and 257 of the directory."""
    data, start = bytearray(small), struct.unpack("<I", small[4:8])[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack("<H", small[start : start + 2])[0], 12):
        tag = struct.unpack("<H", small[entry : entry + 2])[0]
        if tag in (256, 257):
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    return bytes(data)


SIDES = st.sampled_from((0, 1, 9, 10_000, 10_001, 13_000, 65_500, 100_000, 2**31 - 1))


@MANY
@given(kind=st.sampled_from(("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF")), width=SIDES, height=SIDES)
@example(kind="PNG", width=100_000, height=100_000)
@example(kind="JPEG", width=65_500, height=65_500)
@example(kind="TIFF", width=100_000, height=100_000)
def test_headers_that_claim_any_size(kind: str, width: int, height: int) -> None:
    data = claiming(kind, width, height)
    if kind in ("JPEG", "GIF"):
        width, height = width & 0xFFFF, height & 0xFFFF
    if width * height > MAX_PIXELS and kind != "BMP":
        with pytest.raises(UnreadablePhotoError):
            decode_photo(data)
    assert decoded(data) is None or width * height <= MAX_PIXELS


def test_too_large_images_are_refused_before_decoding() -> None:
    with pytest.raises(UnreadablePhotoError, match="10001 x 10000 px, more than 100000000"):
        decode_photo(claiming("PNG", 10_001, 10_000))
    with pytest.raises(UnreadablePhotoError, match="more than 100000000 px"):
        decode_photo(claiming("PNG", 100_000, 100_000))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_first_of_several_frames_is_used(kind: str) -> None:
    first, others = Image.new("RGB", (8, 8), "red"), [Image.new("RGB", (8, 8), "blue")] * 2
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decoded(saved(first, kind, save_all=True, append_images=others, **options))
    assert pixels is not None
    assert (pixels == (255, 0, 0)).all()


@MANY
@given(damage=damages())
def test_damaged_jpegs_in_shards(damage: Damage) -> None:
    data = damage(saved(drawing(), "JPEG"))
    try:
        assert decode_jpeg(data).shape[2] == 3
        pixels = np.empty((*SHAPE, 3), np.uint8)
        decode_jpeg_into(data, pixels)
    except ValueError as error:
        assert_explains(error)


def test_dark_compressed_tiffs_of_8_bits_are_not_taken_for_16():
    """The arguments of pillow's decoder hold a byte offset, which contains 16 for some of these."""
    with_16 = 0
    for rows in range(20, 120):
        pixels = np.random.default_rng(rows).integers(0, 60, (rows, 73, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw")
        with Image.open(io.BytesIO(file.getvalue())) as photo:
            with_16 += any("16" in str(tile.args) for tile in photo.tile)
        assert np.array_equal(decode_photo(file.getvalue())[0], pixels)
    assert with_16

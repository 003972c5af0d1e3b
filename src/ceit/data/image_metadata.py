"""What an image file says beside its pixels: the orientation is heeded, whatever else is damaged does not matter."""

import io
import struct
import zlib

from PIL import ExifTags, Image

from ceit.data import tiff

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image upright, by its EXIF orientation; 1 and what is no orientation leave it as it lies."""

LYING = frozenset({5, 6, 7, 8})  # width and height change places
_DAMAGE = (SyntaxError, struct.error, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where none is declared, or none that can be read.

    Pillow would also take one that XMP or a text chunk alone declares, which browsers do not heed.
    """
    try:
        if not hasattr(image, "tag_v2"):  # whose tags are EXIF
            if image.format == "PNG" and "exif" not in image.info:
                image.load()  # it may lie behind the pixels
            carrier = Image.new("1", (1, 1))
            carrier.info["exif"] = image.info.get("exif", b"")
            image = carrier
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:  # of the metadata alone
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def without_metadata(data: bytes) -> bytes:
    """The same pixels without what else a JPEG, PNG or TIFF holds, but for an orientation; other bytes as they are."""
    if data.startswith(b"\xff\xd8\xff"):
        return _bare_jpeg(data)
    return _bare_png(data) if data.startswith(_PNG) else tiff.without_metadata(data)


def _bare_jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in {b"\xda", b""}:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        segment = data[at:end]
        if segment.startswith(b"Exif\0\0", 4):
            exif, carrier = Image.Exif(), Image.new("1", (1, 1))
            carrier.info["exif"] = segment[4:]
            exif[ExifTags.Base.Orientation] = orientation(carrier)
            content = exif.tobytes()
            segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content
        elif _is_metadata(marker, segment[4:]):
            segment = b""
        kept.append(segment)
        at = end
    return b"".join([*kept, data[at:]])


def _is_metadata(marker: int, content: bytes) -> bool:
    """Whether it is no part of the pixels: of the segments APP0 to APP15 only two tell how colours are stored."""
    if marker == 0xE0 and content.startswith(b"JFIF\0"):
        return len(content) < 14
    if marker == 0xEE and content.startswith(b"Adobe"):
        return len(content) < 12
    return 0xE0 <= marker <= 0xEF or marker == 0xFE  # or a comment


def _bare_png(data: bytes) -> bytes:
    kept, file = [_PNG], io.BytesIO(data[len(_PNG) :])
    while len(head := file.read(8)) == 8:
        body = file.read(int.from_bytes(head[:4]) + 4)
        kind, intact = head[4:], zlib.crc32(head[4:] + body[:-4]).to_bytes(4) == body[-4:]
        if kind in _PNG_PIXELS or (kind == b"eXIf" and intact):
            kept.append(head + body)
    return b"".join(kept)

"""The kind of an image file by its first bytes, of the kinds that people have."""

SNIFFED_BYTES = 32

_STARTS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
}
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})  # bytes of the second header, by version
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"
)


def kind_of(start: bytes) -> str:
    """The kind of image whose file starts with these bytes, ``SNIFFED_BYTES`` of them; empty for what is none."""
    if start[:4] == b"RIFF":
        return "WebP" if start[8:12] == b"WEBP" else ""
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "")
    if start[:2] == b"BM":  # any text may start with these letters
        is_bmp = start[6:10] == bytes(4) and int.from_bytes(start[14:18], "little") in _BMP_HEADERS
        return "BMP" if is_bmp else ""
    return next((kind for kind, starts in _STARTS.items() if start.startswith(starts)), "")

"""Pixels of any mode, depth and layout against plain arithmetic, in files that are written here byte by byte."""

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ceit.data.image import BrokenImageError, read_image
from ceit.data.pixels import looks_dark_for_its_depth

RGB = 2  # as a photometric interpretation
Order = Literal["<", ">"]
ORDERS: tuple[Order, ...] = ("<", ">")


def tiff(pixels_hwc: np.ndarray, order: Order = "<", packed: bool = False, **tags: int) -> bytes:
    """A TIFF of one strip, of the array's own depth; ``tags`` by the names below."""
    height, width, channels = pixels_hwc.shape
    content = pixels_hwc.astype(pixels_hwc.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content) if packed else content
    numbers = {"photometric": 262, "orientation": 274, "highest": 281, "planes": 284, "extra": 338, "format": 339}
    entries: dict[int, list[int]] = {256: [width], 257: [height], 258: [8 * pixels_hwc.dtype.itemsize] * channels}
    entries |= {259: [8 if packed else 1], 262: [1], 273: [0], 277: [channels], 278: [height]}
    entries |= {numbers[name]: [value] * (channels if name == "format" else 1) for name, value in tags.items()}
    body = 8 + 2 + 12 * (len(entries) + 1) + 4
    lists = {tag: struct.pack(f"{order}{len(values)}H", *values) for tag, values in entries.items() if len(values) > 2}
    entries[273] = [body + sum(map(len, lists.values()))]
    directory = struct.pack(order + "H", len(entries) + 1)
    for tag, values in sorted((entries | {279: [len(content)]}).items()):
        if tag in {273, 279}:
            directory += struct.pack(order + "HHII", tag, 4, 1, *values)
        elif tag in lists:
            directory += struct.pack(order + "HHII", tag, 3, len(values), body)
            body += len(lists[tag])
        else:
            directory += struct.pack(order + "HHIHH", tag, 3, len(values), *values, *[0] * (2 - len(values)))
    lists_in_order = b"".join(lists[tag] for tag in sorted(lists))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + directory + bytes(4) + lists_in_order + content


def png(rows: list[bytes], size: tuple[int, int], bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of rows of packed pixels, with further chunks before these."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def levels(image: bytes, in_chans: int = 1) -> list[Any]:
    return np.asarray(read_image(image, in_chans)).tolist()


def scaled(values: np.ndarray, white: int) -> np.ndarray:
    """To 0..255, rounded."""
    return (values.astype(object) * 255 + white // 2) // white


def grey(*values: int, dtype: Any = np.uint16) -> np.ndarray:
    return np.array(values, dtype).reshape(1, -1, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_p11_unsigned_32_bits_have_their_whole_range(packed: bool) -> None:
    pixels = grey(0, 2**24, 2**31, 2**32 - 1, dtype=np.uint32)
    assert levels(tiff(pixels, packed=packed)) == [[0, 1, 128, 255]]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("order", ORDERS)
def test_p11_signed_pixels_are_refused_as_floats_are(dtype: Any, order: Order) -> None:
    with pytest.raises(BrokenImageError, match="signed pixels have no fixed black; save the image with 8 or 16 bits"):
        read_image(tiff(grey(0, 127, dtype=dtype), order, format=2), 1)


def test_p11_integers_that_no_file_declares_must_fit_16_bits() -> None:
    with pytest.raises(ValueError, match="greys from -1 to 70000; save the image with 8 or 16 bits, unsigned"):
        read_image(Image.fromarray(np.array([[-1, 70000]], np.int32)), 1)
    assert np.asarray(read_image(Image.fromarray(np.array([[0, 65535]], np.int32)), 1)).tolist() == [[0, 255]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_p12_white_is_zero_reads_as_the_8_bit_one(dtype: Any, order: Order, packed: bool) -> None:
    pixels = (np.array([[[0], [64], [200], [255]]]) * (int(np.iinfo(dtype).max) // 255)).astype(dtype)
    image = tiff(pixels, order, packed, photometric=0)
    if dtype == np.uint32 and order == ">":  # with black as zero as well
        with pytest.raises(BrokenImageError, match="TIFF, but damaged or of a kind that Pillow does not decode"):
            read_image(image, 1)
    else:
        assert levels(image) == [[255, 191, 55, 0]]


@pytest.mark.parametrize("order", ORDERS)
def test_p12_white_is_zero_in_a_single_plane(order: Order) -> None:
    assert levels(tiff(grey(0, 200, 255, dtype=np.uint8), order, photometric=0, planes=2)) == [[255, 55, 0]]
    assert levels(tiff(grey(0, 65535), order, photometric=0, planes=2)) == [[255, 0]]


@pytest.mark.parametrize("packed", [False, True])
def test_channels_that_follow_each_other_are_read_or_refused(packed: bool) -> None:
    rgb = np.array([[[1, 2, 3]]], np.uint8)
    refused = "channels that follow each other; save the image with interleaved ones"
    with pytest.raises(BrokenImageError, match=refused):
        read_image(tiff(rgb.astype(np.uint16), packed=packed, photometric=RGB, planes=2), 3)
    with pytest.raises(BrokenImageError, match=refused):  # Pillow takes the alpha for grey
        read_image(tiff(rgb[:, :, :2], packed=packed, extra=2, planes=2), 3)


def test_p15_a_declared_depth_of_12_bits_is_heeded() -> None:
    assert levels(tiff(grey(0, 2048, 4095), highest=4095)) == [[0, 128, 255]]
    assert levels(tiff(grey(0, 2048, 4095), highest=4095, photometric=0)) == [[255, 127, 0]]
    assert levels(tiff(grey(0, 3000), highest=3000)) == [[0, 12]], "the largest value of one image is no depth"
    assert levels(tiff(grey(0, 65535), highest=4095)) == [[0, 255]], "nor is one that is not kept"


@pytest.mark.parametrize("in_chans", [1, 3])
def test_p15_twelve_bits_in_16_are_told(in_chans: int) -> None:
    def is_told(image: bytes) -> bool:
        return looks_dark_for_its_depth(read_image(image, in_chans))

    assert is_told(tiff(grey(0, 4095)))
    assert is_told(tiff(grey(0, 65535, dtype=np.uint32)))
    assert is_told(png([struct.pack(">6H", 0, 0, 0, 4095, 4095, 4095)], (2, 1), 16, 2))
    assert not is_told(tiff(grey(0, 4096 * 4)))
    assert not is_told(tiff(grey(0, 4095), highest=4095))
    assert not is_told(tiff(grey(0, 0)))
    assert not is_told(tiff(grey(0, 3, dtype=np.uint8)))
    assert not is_told(png([struct.pack(">6H", 0, 0, 0, 65535, 0, 0)], (2, 1), 16, 2))


@pytest.mark.parametrize(("bits", "packed"), [(1, 0b01), (2, 0b0001_1011), (4, 0x0F)])
def test_greys_of_few_bits_fill_the_range(bits: int, packed: int) -> None:
    count = 8 // bits if bits > 1 else 2
    white = 2**bits - 1
    row = packed << 6 if bits == 1 else packed
    values = [(row >> (8 - bits * (place + 1))) & white for place in range(count)]
    image = png([bytes([row])], (count, 1), bits, 0)
    assert levels(image) == [[value * 255 // white for value in values]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (png([bytes([0b0001_1011])], (4, 1), 2, 0, (b"tRNS", b"\0\1")), [0, 255, 170, 255]),
        (png([b"\x0f\x70"], (4, 1), 4, 0, (b"tRNS", b"\0\7")), [0, 255, 255, 0]),
        (png([b"\x07\x08"], (2, 1), 8, 0, (b"tRNS", b"\0\7")), [255, 8]),
        (png([struct.pack(">3H", 0, 257, 258)], (3, 1), 16, 0, (b"tRNS", struct.pack(">H", 257))), [0, 255, 1]),
        (png([bytes([0b0100_0000])], (2, 1), 1, 0, (b"tRNS", b"\0\0")), [255, 255]),
    ],
)
def test_the_transparent_grey_is_white_in_every_depth(image: bytes, expected: list[int]) -> None:
    assert levels(image) == [expected]


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_is_white_in_every_depth(bits: int) -> None:
    form = {8: ">3B", 16: ">3H"}[bits]
    one, other = (struct.pack(form, *(value << (bits - 8) for value in colour)) for colour in ((1, 2, 3), (4, 5, 6)))
    transparent = struct.pack(">3H", *(value << (bits - 8) for value in (1, 2, 3)))
    assert levels(png([one + other], (2, 1), bits, 2, (b"tRNS", transparent)), 3) == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize(
    ("head", "values", "expected"),
    [
        (b"P5 3 1 1\n", bytes([0, 1, 1]), [0, 255, 255]),
        (b"P5 3 1 100\n", bytes([0, 50, 100]), [0, 128, 255]),
        (b"P5 3 1 4095\n", struct.pack(">3H", 0, 2048, 4095), [0, 128, 255]),
        (b"P5 3 1 65535\n", struct.pack(">3H", 0, 32768, 65535), [0, 128, 255]),
        (b"P2 3 1 4095\n", b"0 2048 4095", [0, 128, 255]),
        (b"P4 3 1\n", bytes([0b1010_0000]), [0, 255, 0]),
    ],
)
def test_pgm_has_the_range_that_it_declares(head: bytes, values: bytes, expected: list[int]) -> None:
    assert levels(head + values) == [expected]


def test_ppm_of_16_bits() -> None:
    assert levels(b"P6 1 1 4095\n" + struct.pack(">3H", 0, 2048, 4095), 3) == [[[0, 128, 255]]]


@pytest.mark.parametrize("mode", ["La", "LA", "PA", "RGBa", "RGBA", "RGBX", "HSV", "LAB", "CMYK", "YCbCr", "1", "P"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_every_mode_of_pillow_is_read(mode: str, in_chans: int) -> None:
    middle = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode, mode)
    image = Image.new("RGB", (2, 2), "white").convert(middle).convert(mode)
    assert np.asarray(read_image(image, in_chans)).min() >= 254  # LAB is not exact


@st.composite
def layouts(draw: st.DrawFn) -> tuple[bytes, np.ndarray, int]:
    """A TIFF, its pixels by plain arithmetic, and how far rounding may be off."""
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    white = int(np.iinfo(dtype).max)
    channels = draw(st.sampled_from([1, 3, 4]))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**32 - 1))
    pixels = np.random.default_rng(seed).integers(0, white, (height, width, channels), dtype, endpoint=True)
    tags = {"photometric": RGB if channels > 1 else draw(st.sampled_from([0, 1]))}
    if channels == 4:
        tags["extra"] = draw(st.sampled_from([0, 2]))
    if draw(st.booleans()):
        tags["orientation"] = draw(st.integers(0, 9))
    image = tiff(pixels, draw(st.sampled_from(ORDERS)), draw(st.booleans()), **tags)

    values = pixels.astype(object)
    seen = scaled(values if tags["photometric"] else white - values, white)
    if channels > 1:  # Pillow keeps the upper byte of colours
        seen = values >> (8 if dtype == np.uint16 else 0)
    if channels == 4:
        colours, alpha = seen[:, :, :3], seen[:, :, 3:] if tags["extra"] else 255
        seen = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    upright = turned(seen.repeat(3, 2) if channels == 1 else seen, tags.get("orientation", 1))
    return image, upright.astype(int), int(channels == 4)


def turned(pixels_hwc: np.ndarray, orientation: int) -> np.ndarray:
    """As EXIF tells where the first row and column of the file are: 6 is ``right, top``."""
    if orientation in {5, 6, 7, 8}:
        pixels_hwc = pixels_hwc.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels_hwc = pixels_hwc[::-1]
    return pixels_hwc[:, ::-1] if orientation in {2, 3, 6, 7} else pixels_hwc


@settings(max_examples=150)
@given(layouts())
def test_any_layout_is_what_arithmetic_says(layout: tuple[bytes, np.ndarray, int]) -> None:
    image, expected, rounding = layout
    got = np.asarray(read_image(image, 3)).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= rounding


@settings(max_examples=100)
@given(
    bits=st.sampled_from([8, 16]),
    colour=st.sampled_from([0, 2, 4, 6]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 2**32 - 1),
    orientation=st.integers(0, 9),
)
def test_any_png_is_what_arithmetic_says(
    bits: int, colour: int, size: tuple[int, int], seed: int, orientation: int
) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    dtype = {8: np.uint8, 16: np.uint16}[bits]
    pixels = np.random.default_rng(seed).integers(0, 2**bits, (size[1], size[0], channels)).astype(dtype)
    exif = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 274, 3, 1, orientation, 0) + bytes(4)
    image = png([row.astype(f">u{bits // 8}").tobytes() for row in pixels], size, bits, colour, (b"eXIf", exif))
    values = pixels.astype(object)
    seen = scaled(values, 65535) if (bits, colour) == (16, 0) else values >> (bits - 8)
    if channels in {2, 4}:
        alpha = seen[:, :, -1:]
        seen = (seen[:, :, :-1] * alpha + 255 * (255 - alpha) + 127) // 255
    expected = turned(seen.repeat(3, 2) if channels < 3 else seen, orientation).astype(int)
    assert np.abs(np.asarray(read_image(image, 3)).astype(int) - expected).max() <= int(channels in {2, 4})


@pytest.mark.parametrize("cover", [(10, 20), (30, 60), (200, 400), (4, 8)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_decoded_at_a_fraction_that_still_covers(cover: tuple[int, int], orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    size = (331, 165) if orientation == 1 else (165, 331)
    Image.linear_gradient("L").resize(size).convert(mode).save(file, "JPEG", exif=exif)
    whole, reduced = read_image(file.getvalue(), 3), read_image(file.getvalue(), 3, cover)
    assert whole.size == (331, 165)
    assert reduced.size == whole.size or (reduced.width >= cover[1] and reduced.height >= cover[0])
    assert reduced.width <= 331 // 8 + 1 if max(cover) <= 20 else reduced.width > 331 // 8 + 1
    again = read_image(file.getvalue(), 3, cover)
    assert np.array_equal(np.asarray(reduced), np.asarray(again))
    near = np.asarray(whole.resize(reduced.size, Image.Resampling.BOX)).astype(int) - np.asarray(reduced)
    assert np.abs(near).mean() < 6

"""Every kind of file becomes the 8-bit image that a person sees; damaged ones are named."""

import copy
import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

from ceit.data import pillow
from ceit.data.image import (
    BrokenImageError,
    MissingDecoderError,
    RefusedImageError,
    TooLargeError,
    image_suffixes,
    is_image_name,
    or_reason,
    read_header,
    read_image,
    sniff,
)


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def encoded(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.linear_gradient("L").resize((9, 6)).convert("RGB")).save(file, form, **options)
    return file.getvalue()


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    pixels = np.asarray(read_image(save(image, tmp_path / "a.png"), 3))
    assert pixels.tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 1)
    path = save(image, tmp_path / "a.png", transparency=0)
    assert np.asarray(read_image(path, 3)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_grey_with_alpha(tmp_path: Path) -> None:
    path = save(Image.new("LA", (2, 2), (0, 128)), tmp_path / "a.png")
    assert np.asarray(read_image(path, 1)).tolist() == [[127, 127], [127, 127]]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    path = save(Image.fromarray(values), tmp_path / "a.png")
    assert np.asarray(read_image(path, 1)).tolist() == [[0, 1, 128, 255]]
    assert read_image(path, 3).mode == "RGB"


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a.jpg")
    red, green, blue = np.asarray(read_image(path, 3)).reshape(-1, 3).mean(0)
    assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_other_modes_keep_white_white(mode: str, in_chans: int) -> None:
    image = read_image(Image.new("RGB", (3, 2), "white").convert(mode), in_chans)
    assert image.mode == {1: "L", 3: "RGB"}[in_chans]
    assert np.asarray(image).min() == 255


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = save(Image.new("RGB", (6, 2)), tmp_path / "a.jpg", exif=exif)
    assert read_image(path, 3).size == (2, 6)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_in_xmp_alone_is_none(suffix: str, tmp_path: Path) -> None:
    """Browsers do not heed it."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    path = save(
        Image.new("RGB", (6, 2)), tmp_path / f"a.{suffix}", **({"pnginfo": info} if suffix == "png" else {"xmp": xmp})
    )
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert read_image(path, 3).size == (6, 2)


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(path, 1)).max() == 10


def test_a_text_is_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("no image at all")
    with pytest.raises(BrokenImageError) as raised:
        read_image(path, 3)
    assert str(raised.value) == f"{path} cannot be read as an image (not an image)"
    with pytest.raises(BrokenImageError):
        read_header(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(BrokenImageError, match=rf"a\.{suffix} cannot be read as an image \((?i:.*truncated)"):
        read_image(path, 3)


def test_a_truncated_file_is_refused_whatever_others_have_set_for_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    cut = save(Image.fromarray(noise), tmp_path / "a.jpg").read_bytes()[:-4000]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for _ in range(2):
        with pytest.raises(BrokenImageError, match="truncated"):
            read_image(cut, 3)
        with Image.open(io.BytesIO(cut)) as image:
            image.load()  # as they want it
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = save(Image.new("F", (2, 2)), tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="floating-point pixels have no fixed range"):
        read_image(path, 3)


def test_a_missing_file_is_not_called_broken(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nothing.png", 3)


def test_only_grey_and_rgb() -> None:
    with pytest.raises(ValueError, match=r"with 4 channels: use 1 \(grey\) or 3 \(RGB\)"):
        read_image(Image.new("RGB", (2, 2)), 4)


@pytest.mark.parametrize(
    "name",
    [
        *("a.jpg", "a.JPG", "a.Jpeg", "a.jpe", "a.jfif", "a.mpo", "a.avif", "a.jp2", "a.j2k", "a.apng", "a.tga"),
        *("a.b.png", "a.gif", "a.bmp", "a.dib", "a.tif", "a.TIFF", "a.webp", "a.ico", "a.dds", "a.pcx", "a.pnm"),
        *("a.heic", "a.HEIF", "a.hif", "a.psd", "a.qoi"),
    ],
)
def test_p3_what_pillow_decodes_is_an_image(name: str) -> None:
    assert is_image_name(name)
    assert Path(name).suffix.lower() in image_suffixes()


@pytest.mark.parametrize(
    "name",
    [
        *("a", "jpg", ".jpg", "a.txt", "a.json", "a.csv", "Thumbs.db", "a.mp4", "a.mpg", "a.mpeg", "a.svg", "a.nef"),
        *("a.eps", "a.ps", "a.pdf", "a.wmf", "a.emf", "a.h5", "a.hdf", "a.grib", "a.bufr", "a.fits", "a.jpg.txt"),
        *("a.pcd", "a.gbr", "a.PFM"),  # point clouds, circuit boards, depth maps
    ],
)
def test_p3_what_it_only_names_or_gives_to_others_is_none(name: str) -> None:
    assert not is_image_name(name)


def test_p3_postscript_is_not_run_under_an_image_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(BrokenImageError, match="not an image"):
        read_image(path, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "MPO"])
@pytest.mark.parametrize("name", ["photo", "IMG_1.jpg!d", "x.jpg_large", "x.tif_large"])
def test_p3_images_without_a_suffix_are_known_by_their_first_bytes(tmp_path: Path, form: str, name: str) -> None:
    assert "HEIF" in pillow.formats()
    path = tmp_path / name
    path.write_bytes(encoded(form))
    assert sniff(path) is (form != "TIFF" or not name.startswith(("IMG", "x.jpg")))
    assert read_image(path, 3).size == (9, 6)
    assert read_header(path)[0] == (9, 6)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"BM is how this text begins, which is as long as a header of a bitmap",
        b'{"label": 3}',
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),  # Thumbs.db
        b"\0\0\0\x20ftypisom\0\0\2\0" + bytes(500),  # a video
        b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(500),  # a camera's raw file
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(500),
        b"%PDF-1.7\n",
    ],
)
def test_p3_other_files_are_not_taken_for_images(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not sniff(path)


def test_p3_the_raw_file_of_a_camera_is_not_read_as_its_small_preview(tmp_path: Path) -> None:
    path = tmp_path / "DSC_1.NEF"
    path.write_bytes(encoded("TIFF"))
    assert not sniff(path)


def test_p3_without_pillow_heif_a_heic_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded("HEIF")
    assert read_image(image, 3).size == (9, 6)
    monkeypatch.setattr(pillow, "formats", lambda: ("JPEG", "PNG", "AVIF"))
    with pytest.raises(MissingDecoderError, match=r'needs the package pillow-heif: pip install "ceit-vision\[heif\]"'):
        read_image(image, 3, name="a.heic")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_bytes_and_files_are_read_alike(tmp_path: Path, form: str) -> None:
    data = encoded(form)
    path = tmp_path / "a"
    path.write_bytes(data)
    assert np.array_equal(np.asarray(read_image(data, 3)), np.asarray(read_image(path, 3)))
    assert read_header(data) == read_header(path)


def test_errors_about_bytes_take_the_name_that_is_given() -> None:
    with pytest.raises(BrokenImageError, match=r"row 3 cannot be read as an image \(not an image\)"):
        read_image(b"no image", 3, name="row 3")
    with pytest.raises(BrokenImageError, match="an image of 8 bytes cannot be read"):
        read_header(b"no image")


def test_the_header_of_a_file_with_much_before_it(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((9, 6))
    path = save(image, tmp_path / "a.jpg", exif=b"Exif\0\0" + bytes(60000), icc_profile=bytes(200_000))
    assert read_header(path) == ((9, 6), "L")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("read", [lambda path: read_image(path, 3), read_header])
def test_p14_the_machines_failures_are_no_verdict_on_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, read: Any
) -> None:
    path = save(Image.new("RGB", (2, 2)), tmp_path / "a.tiff")

    def failing(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(io, "open", failing)  # of pathlib
    monkeypatch.setattr("builtins.open", failing)
    with pytest.raises(OSError, match=r"a\.tiff") as raised:
        read(path)
    assert raised.value.errno == code


def test_p14_a_lack_of_memory_is_no_verdict_on_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("PNG")

    def failing(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", failing)
    with pytest.raises(MemoryError):
        read_image(data, 3)


class Starved:
    """A decoder of Pillow that gets no memory."""

    pulls_fd = False

    def setimage(self, *_: object) -> None: ...

    def decode(self, _: bytes) -> tuple[int, int]:
        return -1, -9

    def cleanup(self) -> None: ...


def test_p14_a_decoder_that_gets_no_memory_is_no_verdict_on_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("PNG")
    monkeypatch.setattr(Image, "_getdecoder", lambda *_: Starved())
    with pytest.raises(RefusedImageError, match=r"^a\.png cannot be read \(out of memory.* when reading image file\)$"):
        read_image(data, 3, name="a.png")


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    data = encoded("JPEG")
    inserted = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return data[:20] + inserted + data[20:]


BROKEN_EXIF = {
    "no TIFF": b"Exif\0\0garbage",
    "nothing": b"Exif\0\0",
    "cut off": b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\3",
    "far away": b"Exif\0\0MM\0*\xff\xff\xff\xf0",
    "orientation 0": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\0\0\0\0\0\0\0",
    "orientation 9": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x09\0\0\0\0\0\0",
    "a text": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4six\0\0\0\0\0",
}


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_p15_broken_exif_leaves_the_pixels_as_they_are(exif: bytes) -> None:
    expected = np.asarray(read_image(encoded("JPEG"), 3))
    assert np.array_equal(np.asarray(read_image(jpeg_with((0xE1, exif)), 3)), expected)
    image = Image.linear_gradient("L").resize((9, 6)).convert("RGB")
    for form in ("PNG", "WEBP"):
        data = encoded(form, image, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
        assert np.array_equal(np.asarray(read_image(data, 3)), np.asarray(image))


def test_p15_a_rational_without_denominator_keeps_the_orientation() -> None:
    exif = Image.Exif()
    exif[0x011A], exif[0x0112] = IFDRational(0, 0), 6
    assert read_image(encoded("JPEG", exif=exif), 3).size == (6, 9)


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE0, b"JFIF\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1\1not a profile"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\3\0"),
        (0xE2, b"FPXR\0"),
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\2\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken tiff:Orientation="),
        (0xEE, b"Adobe"),
        (0xFE, b"\xff\xfe\0"),
    ],
)
def test_p15_other_broken_segments_leave_the_pixels_and_the_orientation(marker: int, body: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    got = read_image(jpeg_with((0xE1, exif.tobytes()), (marker, body)), 3)
    assert np.array_equal(np.asarray(got), np.rot90(np.asarray(read_image(encoded("JPEG"), 3)), -1))


@pytest.mark.parametrize("intact", [True, False], ids=["intact", "wrong checksum"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"tEXt", b"no separator"),
        (b"zTXt", b"a\0\0" + zlib.compress(bytes(4_000_000))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1"),
        (b"iCCP", b"profile\0\0garbage"),
        (b"iCCP", b"profile\0\7"),
        (b"pHYs", b"\1"),
        (b"cHRM", b"\1\2"),
        (b"gAMA", b""),
        (b"sRGB", b""),
    ],
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_p15_broken_chunks_of_a_png_leave_the_pixels(kind: bytes, body: bytes, intact: bool, after: bool) -> None:
    data = encoded("PNG")
    checksum = zlib.crc32(kind + body) ^ (not intact)
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    place = len(data) - 12 if after else 33
    got = read_image(data[:place] + chunk + data[place:], 3)
    assert np.array_equal(np.asarray(got), np.asarray(read_image(data, 3)))


def test_p15_broken_pixels_are_refused_though_metadata_are_broken_too() -> None:
    with pytest.raises(BrokenImageError, match=r"(?i)truncated"):
        read_image(jpeg_with((0xED, b"Photoshop 3.0\x008BIM"))[:-200], 3)


def test_p15_pillows_warnings_do_not_come_without_the_files_name() -> None:
    warning = jpeg_with((0xE1, BROKEN_EXIF["cut off"]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read_image(warning, 3)
        read_image(encoded("PNG", Image.new("P", (2, 2)), transparency=b"\0\1"), 3)
        warnings.warn("mine", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in told] == ["mine"]
    with pytest.warns(UserWarning, match="Corrupt EXIF data"), Image.open(io.BytesIO(warning)) as image:
        image.getexif()


def test_p15_the_filters_of_warnings_can_still_be_copied_and_sent() -> None:
    """As scikit-learn does for each of its workers."""
    read_image(encoded("PNG"), 3)
    for copied in (pickle.loads(pickle.dumps(warnings.filters)), copy.deepcopy(warnings.filters)):
        with warnings.catch_warnings(record=True) as told:
            cast(Any, warnings).filters[:] = [
                entry for entry in copied if entry[0] == "ignore" and entry[1] is not None
            ]
            warnings.simplefilter("always", append=True)
            warnings.warn("mine", UserWarning, stacklevel=1)
        assert [str(warning.message) for warning in told] == ["mine"]
    assert all(entry[1] is None or isinstance(entry[1].pattern, str) for entry in warnings.filters)


def test_p15_other_threads_keep_their_warnings() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pillow.reading():
            thread = threading.Thread(target=lambda: warnings.warn("from another thread", UserWarning, stacklevel=1))
            thread.start()
            thread.join()
            warnings.warn("from this one", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in told] == ["from another thread"]


def grey_png(width: int, height: int) -> bytes:
    """Of any size in few bytes."""
    rows = zlib.compressobj(1)
    content = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def test_p15_images_above_the_limit_name_it_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CEIT_MAX_MEGAPIXELS", raising=False)
    sentence = (
        r"^a.png is too large \(20000 x 10000 pixels, above the limit of 179 megapixels; "
        r"CEIT_MAX_MEGAPIXELS=200 in the environment allows them\)$"
    )
    for read in (lambda data: read_image(data, 1, name="a.png"), lambda data: read_header(data, name="a.png")):
        with pytest.raises(TooLargeError, match=sentence):
            read(grey_png(20000, 10000))
    assert not issubclass(TooLargeError, BrokenImageError), "it is no verdict that may be kept"


def test_p15_the_limit_can_be_raised_and_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # as if these few pixels were many
    data, tiff = encoded("PNG"), encoded("TIFF", Image.new("L", (20, 10)))
    monkeypatch.delenv("CEIT_MAX_MEGAPIXELS", raising=False)
    assert read_image(data, 3).size == (9, 6), "between what Pillow warns of and what it refuses"
    with pytest.raises(TooLargeError, match=r"20 x 10 pixels, above the limit of 0\.0001 megapixels"):
        read_image(tiff, 1)
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "0.0002")
    assert read_image(tiff, 1).size == read_header(tiff)[0] == (20, 10)
    assert Image.MAX_IMAGE_PIXELS == 50, "as it was"
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "0.00005")
    with pytest.raises(TooLargeError, match="9 x 6 pixels, above the limit of 5e-05 megapixels"):
        read_image(data, 1)
    for wrong in ("many", "0", "-3", "nan"):
        monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", wrong)
        with pytest.raises(ValueError, match=f"CEIT_MAX_MEGAPIXELS must be a number above 0, got '{wrong}'"):
            read_image(data, 3)
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "")  # as if it were not set
    assert read_image(data, 3).size == (9, 6)
    assert before == int(1024**3 / 12)


def test_p15_worker_processes_inherit_the_limit() -> None:
    code = "from ceit.data.pillow import limit_megapixels; print(limit_megapixels())"
    environment = os.environ | {"CEIT_MAX_MEGAPIXELS": "1000"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "1000.0"


@pytest.mark.parametrize("wrong", ["500MP", "0", "-3", "nan"])
@pytest.mark.parametrize("read", [lambda path: read_image(path, 3), read_header])
def test_p14_a_wrong_limit_is_no_verdict_and_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, read: Any
) -> None:
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", wrong)
    with pytest.raises(ValueError, match=f"^CEIT_MAX_MEGAPIXELS must be a number above 0, got '{wrong}'$") as raised:
        read(tmp_path / "nothing.png")
    assert raised.type is ValueError


def test_p14_the_limit_stands_for_others_while_a_large_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CEIT_MAX_MEGAPIXELS", raising=False)
    usual = pillow.limit_megapixels()
    with pillow.limit_lifted():
        assert pillow.limit_megapixels() == usual < 200
        assert pillow.above_limit((20_000, 10_000))
        assert Image.MAX_IMAGE_PIXELS is not None, "Pillow compares with it in other threads"


def test_an_image_without_memory_is_one_that_cannot_be_read() -> None:
    def fails(item: int) -> int:
        raise MemoryError

    assert or_reason(fails, 1) == "too little memory to decode it"

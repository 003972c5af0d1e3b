"""How much a file that a stranger made may ask for, in one place; SECURITY.md has the table.

Every limit is held before memory is taken. What something below us holds already is no limit of ours: the table in
SECURITY.md names it.
"""

import os
import stat
import zipfile
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import NamedTuple

MB = 10**6


class TooMuchError(ValueError):
    """More than a limit allows; the sentence names the value, the limit and the fix."""


class Limit(NamedTuple):
    """The most of something: ``value`` times ``unit``, why so many, and the variable that sets another number."""

    what: str
    value: int
    unit: str
    reason: str
    variable: str = ""

    @property
    def most(self) -> float:
        """In the unit. Raises: ValueError for a variable that is no number above 0; an empty one counts as unset."""
        text = os.environ.get(self.variable, "").strip() if self.variable else ""
        if not text:
            return self.value
        with suppress(ValueError):
            if (number := float(text)) > 0:
                return number
        raise ValueError(f"{self.variable} must be a number above 0, got {text!r}")

    def require(self, found: float, name: object) -> None:
        """Raises: TooMuchError if ``name`` has more: ``found`` is in bytes where the unit is MB."""
        number = found / MB if self.unit == "MB" else found
        if number <= self.most:
            return
        shown = f"{ceil(10 * number) / 10:,.1f}" if number < 100 and number != int(number) else f"{ceil(number):,}"
        fix = "make it smaller, as no option allows more"
        if self.variable:
            fix = f"{self.variable}={ceil(number)} in the environment allows it"
        raise TooMuchError(
            f"{name} has {shown} {self.unit} of {self.what}, above the limit of {self.most:,.10g}: {fix}"
        )


IMAGE = Limit(
    "image file", 1_100, "MB", "16-bit RGB of the most megapixels takes 1,074 MB uncompressed", "CEIT_MAX_IMAGE_MB"
)
CLASSES = Limit(
    "a data set",
    100_000,
    "classes",
    "ImageNet-21k has 21,841; a number alone would make names up to it",
    "CEIT_MAX_CLASSES",
)
TABLE = Limit("table of labels", 1_000, "MB", "14 million images with paths of 70 letters", "CEIT_MAX_TABLE_MB")
ROWS = Limit(
    "table of labels", 50_000_000, "rows", "Parquet stores a billion equal rows in a kilobyte", "CEIT_MAX_TABLE_ROWS"
)
MEMBERS = Limit(
    "shard", 1_000_000, "members", "three a sample, of 4 KB images in a shard of a gigabyte", "CEIT_MAX_MEMBERS"
)
LABEL = Limit("label file in a shard", 1, "MB", "a class, and what JSON says of an image")
JSON = Limit("JSON", 100, "MB", "the side file of 100,000 classes takes 40 MB", "CEIT_MAX_JSON_MB")
JSON_DEPTH = Limit("JSON", 100, "levels", "what is written here has 10; a reader that recurses has 1,000")
YAML = Limit("YAML", 1, "MB", "the longest recipe of the package takes 3 KB, and PyYAML reads 100 KB in a second")
YAML_DEPTH = Limit("YAML", 20, "levels", "a recipe has two, a study six")
YAML_ALIASES = Limit("YAML", 20, "aliases", "at most 3^7 times the text; a hundred would write out a billion values")
PICKLE = Limit("pickle", 50, "MB", "names and shapes of a million tensors; their numbers lie beside it")
PICKLE_VALUES = Limit(
    "pickle", 10_000_000, "values", "tuples in tuples, which Python compares and prints as if each stood there in full"
)
ARCHIVE = Limit("unpacked archive", 1_000, "MB", "the largest set known by name takes 185 MB")
ARCHIVE_MEMBERS = Limit("archive", 10_000, "members", "the archives of the known sets have less than 100")
DOWNLOAD = Limit("download", 2_000, "MB", "the largest that is fetched here takes 800 MB", "CEIT_MAX_DOWNLOAD_MB")
EXPORTED_SIDE = Limit(
    "image size of an exported file", 8_192, "pixels a side", "images are made as large before it runs"
)
REQUEST = Limit("request to ceit web", 20_000_000, "bytes", "a photograph of a good camera")
QUESTION = Limit("question of the page of ceit web", 65_536, "bytes", "it names one uploaded picture")
REQUESTS_AT_ONCE = Limit("ceit web", 8, "requests at once", "each may take the memory of an image and a network")
REQUESTS_A_MINUTE = Limit("a client of ceit web", 120, "requests a minute", "more than anyone drops by hand")
WRONG_WORDS = Limit(
    "a client of ceit web", 20, "wrong words a minute", "a word of eight letters takes ten thousand years"
)
REQUEST_SECONDS = Limit("request to ceit web", 60, "seconds", "20 MB at 350 KB/s; an answer is taken as fast")
CONNECTIONS = Limit("ceit web", 200, "open connections", "a process may have 1,024 open files, on a Mac 256")
CONNECTIONS_A_CLIENT = Limit("a client of ceit web", 40, "open connections", "a browser opens six")
IDLE_SECONDS = Limit("connection to ceit web", 15, "seconds without a request", "a browser asks at once")

ALL = [limit for limit in dict(globals()).values() if isinstance(limit, Limit)]
"""Every limit, in the order of this file."""


def read_file(path: Path, limit: Limit) -> bytes:
    """The content of a regular file. Raises: TooMuchError, a ValueError for a pipe or device, and OSError."""
    if not path.is_file() and path.exists():
        raise ValueError(f"{path} is no regular file: name one")
    limit.require(path.stat().st_size, path)
    return path.read_bytes()


def require_stored(archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Raises: ValueError for a zip file that unpacks to more than its own bytes, or out of it: torch writes none."""
    seen: set[str] = set()
    for member in archive.infolist():
        name = member.filename
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"its member {name!r} leads out of it")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"its member {name!r} is a link")
        if name in seen:
            raise ValueError(f"it has {name!r} twice")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its member {name!r} is compressed, which torch does not do")
        seen.add(name)
    if (unpacked := sum(member.file_size for member in archive.infolist())) > file_bytes:
        raise ValueError(f"its members have {unpacked:,} bytes, the file itself {file_bytes:,}")

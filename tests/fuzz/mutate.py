"""Small valid files made wrong: bytes, fields, lengths, values and members, by what kind of file it is.

Every mutation is a function of the generator alone, so the seed and the number of an input give its bytes again.
"""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import yaml

Mutator = Callable[[Random, bytes], bytes]

NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64)
TEXTS = (
    *("", " ", "\0", "\n", "a\nb", "\r\n", "é", "é", "\ud800", "\u202e", "x" * 300, "x" * 70_000, "../../up", "/", "."),
    *("/etc/passwd", "~", "~nobody/x", "CON", "%s%n", "{}", "nan", "inf", "1e999", "-0", "0x10", "True", "null", "1_0"),
    *(
        "<script>",
        "os.system",
        "!!python/object/apply:os.system [true]",
        "train",
        "ceit",
        "9" * 5000,
        "=1+1",
        "a,b;c\td",
    ),
)
_DEEP = (3, 100, 1000, 20_000, 200_000)
_PLACED = "@placed@"
_MARKERS = (
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" * 5000, "1e-400", "0.1e1", "-0", "01", "+1", "'x'"),
    *("tru", "{", "}", "[", "]", '"\\ud800"', '"\\u0000"', "[[]]", '{"":{}}', "1" * 310, "[1,2", "/**/1", "\ufeff1"),
)
_YAML = (
    *("!!python/object/apply:os.system [x]", "!!binary ====", "2001-99-99", "2001-01-01", "0b12", "1:99:99", "*nobody"),
    *("&a [*a]", "!!set {a}", "!!omap [a]", "!!int x", "!!float x", "!!timestamp x", "!!bool x", "? [a]\n: b", "<<: 3"),
    *(
        ".inf",
        "-.nan",
        "1e3",
        "1e-3",
        "~",
        "yes",
        "007",
        "|\n  a",
        "'",
        '"',
        "%",
        "\t",
        "!!null x",
        "!x y",
        "{a: b, a: c}",
    ),
    *("0o7", "1_000", "!!str", "[" * 2000, "{? a: ", "!!merge x", "- - - a", "!!pairs [a: b]", "2001-01-01T99:99:99Z"),
)


def bytes_of(random: Random, data: bytes) -> bytes:
    """One to a few changes of bytes: bits, numbers of 1 to 8 bytes, and what is put in, left out, doubled or cut."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 12))):
        at, length = random.randrange(len(made) + 1), random.choice((1, 1, 2, 4, 8, 16, 64, 300))
        kind = random.randrange(9)
        if kind == 0 and made:
            made[min(at, len(made) - 1)] ^= 1 << random.randrange(8)
        elif kind == 1 and made:
            made[min(at, len(made) - 1)] = random.randrange(256)
        elif kind in (2, 3):
            size, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
            number = random.choice((*NUMBERS, len(made), len(made) + 1, len(made) - at)) % (1 << 8 * size)
            made[at : at + size] = number.to_bytes(size, order)
        elif kind == 4:
            made[at:at] = random.randbytes(length)
        elif kind == 5:
            del made[at : at + length]
        elif kind == 6:
            made[at:at] = made[at : at + length]
        elif kind == 7 and random.random() < 0.3:
            del made[at:]
        elif kind == 8:
            digits = [place for place, byte in enumerate(made[:4096]) if 48 <= byte <= 57]
            if digits:
                place = random.choice(digits)
                made[place : place + 1] = str(random.choice(NUMBERS)).encode()
    return bytes(made)


def header_of(random: Random, data: bytes) -> bytes:
    """As ``bytes_of``, in the first hundred bytes alone, where most formats say sizes and kinds."""
    cut = random.choice((12, 32, 64, 128))
    return bytes_of(random, data[:cut]) + data[cut:]


def tree_of(random: Random, tree: Any) -> Any:
    """A tree of JSON with one to three of its values, keys or branches changed."""
    root = [tree]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = [*_places(root)]
        holder, key = random.choice(places)
        _change(random, holder, key)
    return root[0]


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in [*items][:200]:
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _change(random: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    kind = random.randrange(11)
    if kind == 0:
        holder[key] = random.choice((*NUMBERS, 10**30, 0.5, -0.5, 1e308, 5e-324, float("nan"), float("inf")))
    elif kind == 1:
        holder[key] = random.choice(TEXTS)
    elif kind == 2:
        holder[key] = random.choice((None, True, False, [], {}, [[]], {"": 0}, [None], ["a"], [0] * 300))
    elif kind == 3:
        holder[key] = _PLACED
    elif kind == 4 and isinstance(holder, dict):
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[random.choice((*TEXTS[:12], f"{key}s", str(key)[:-1]))] = holder.pop(key)
    elif kind == 6 and isinstance(value, list):
        holder[key] = value * random.choice((0, 2, 50)) if random.random() < 0.5 else value[1:]
    elif kind == 7:
        holder[key] = [value] if random.random() < 0.5 else {"a": value}
    elif kind == 8:
        holder[key] = str(value)
    elif isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int | float):
        changed = (value + 1, value - 1, -value, value * 2, value + 0.5, float(value), value * 10**6, str(value), 2**40)
        holder[key] = random.choice(changed)
    elif isinstance(value, str):
        place = random.randrange(len(value) + 1)
        holder[key] = value[:place] + random.choice(TEXTS) + value[place + random.randrange(3) :]
    elif isinstance(value, list) and value:
        random.shuffle(value)
    else:
        holder[key] = random.choice(NUMBERS)


def _placed(random: Random, text: str, special: Sequence[str]) -> str:
    """The text with what no tree can hold in the places left for it, and now and then a key twice."""
    deep = random.choice(_DEEP)
    nested = random.choice(("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep))
    for quoted in (f'"{_PLACED}"', f"'{_PLACED}'", _PLACED):
        text = text.replace(quoted, nested if random.random() < 0.15 else random.choice(special))
    if random.random() < 0.08 and "{" in text:
        key = random.choice(("format", "config", "path", "label", "epoch", "sha256", "a"))
        text = text.replace("{", f'{{"{key}": {random.choice(_MARKERS[:6])}, ', 1)
    return text


def json_of(random: Random, data: bytes) -> bytes:
    """A JSON document with other values; now and then other bytes."""
    if random.random() < 0.1:
        return bytes_of(random, data)
    text = json.dumps(tree_of(random, json.loads(data)), ensure_ascii=random.random() < 0.5)
    return _placed(random, text, _MARKERS).encode(errors="surrogatepass")


def lines_of_json(random: Random, data: bytes) -> bytes:
    """As ``json_of`` of one line, or lines in another order, twice, missing or cut."""
    lines = data.splitlines(keepends=True)
    kind, number = random.randrange(6), random.randrange(len(lines))
    if kind < 4:
        lines[number] = json_of(random, lines[number]) + b"\n"
    elif kind == 4:
        lines[number] = random.choice((b"", b"\n", lines[number] * 2, lines[number][:-4], b"null\n", b"[]\n", b"3\n"))
    else:
        random.shuffle(lines)
    return b"".join(lines)


def yaml_of(random: Random, data: bytes) -> bytes:
    """A YAML document with other values, special ones among them; now and then other bytes."""
    if random.random() < 0.15:
        return bytes_of(random, data)
    text = yaml.safe_dump(tree_of(random, yaml.safe_load(data)), sort_keys=False, allow_unicode=True)
    return _placed(random, text, _YAML).encode(errors="surrogatepass")


def cells_of(random: Random, data: bytes) -> bytes:
    """A table as text with other cells, rows, separators or line ends; now and then other bytes."""
    kind = random.randrange(8)
    if kind == 0:
        return bytes_of(random, data)
    lines = [line.split(b",") for line in data.splitlines()]
    row = random.randrange(len(lines))
    column = random.randrange(len(lines[row]))
    if kind in (1, 2, 3):
        lines[row][column] = random.choice(TEXTS).encode(errors="surrogatepass")
    elif kind == 4:
        lines[row] += [b"more"] * random.choice((1, 2, 500))
    elif kind == 5:
        lines[row][column] = random.choice(
            (b'"', b'""', b'"a', b'a"b', b"-1", b"1.0", b"1e400", b"nan", b"\xff", b"\r")
        )
    elif kind == 6:
        lines.insert(row, random.choice(lines))
    else:
        del lines[row][column]
    separator, end = random.choice((b",",) * 6 + (b";", b"\t", b"|")), random.choice((b"\n",) * 4 + (b"\r\n", b"\r"))
    text = end.join(map(separator.join, lines)) + end
    mark = random.choice((b"",) * 12 + (b"\xff\xfe", b"\xef\xbb\xbf", b"sep=;\n"))
    return text if mark != b"\xff\xfe" else text.decode(errors="replace").encode("utf-16")


def png_of(random: Random, data: bytes) -> bytes:
    """A PNG with changed chunks whose checks are right again, so that it is decoded and not refused at once."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = random.randrange(len(chunks))
    kind, body = chunks[number]
    choice = random.randrange(6)
    if choice < 3:
        if kind == b"IDAT" and random.random() < 0.7:
            body = zlib.compress(bytes_of(random, zlib.decompress(body)))
        chunks[number] = kind, bytes_of(random, body)
    elif choice == 3:
        chunks.insert(number, (random.choice((b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"acTL", b"tRNS")), body))
    elif choice == 4:
        del chunks[number]
    else:
        random.shuffle(chunks)
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def image_of(random: Random, data: bytes) -> bytes:
    """An image file of any kind."""
    if data.startswith(b"\x89PNG") and random.random() < 0.6:
        return png_of(random, data)
    return header_of(random, data) if random.random() < 0.35 else bytes_of(random, data)


def safetensors_of(random: Random, data: bytes) -> bytes:
    """A safetensors file with another header, of right length, other tensors, or other bytes."""
    if (kind := random.randrange(8)) == 0:
        return header_of(random, data)
    (length,) = struct.unpack_from("<Q", data)
    head, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    if kind == 1:
        tensors = bytes_of(random, tensors)
    elif kind == 2:
        head = tree_of(random, head)
    elif kind in (3, 4, 5) and (meta := head.get("__metadata__")):
        key = random.choice([*meta])
        meta[key] = json_of(random, meta[key].encode()).decode(errors="replace")
    else:
        name = random.choice([name for name in head if name != "__metadata__"])
        tensor = head[name]
        choice = random.randrange(5)
        if choice == 0:
            tensor["shape"] = random.choice((tensor["shape"][::-1], [*tensor["shape"], 1], [0], [], [2**40, 2**40]))
        elif choice == 1:
            tensor["dtype"] = random.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X"))
        elif choice == 2:
            head[random.choice((name + "x", "module." + name, name[1:], "blocks.99999999." + name))] = head.pop(name)
        elif choice == 3:
            del head[name]
        else:  # of another type and shape in as many bytes
            tensor["dtype"], tensor["shape"] = "U8", [tensor["data_offsets"][1] - tensor["data_offsets"][0]]
    text = _placed(random, json.dumps(head), _MARKERS).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text) + random.choice((0,) * 30 + (1, -1))) + text + tensors


def zip_of(random: Random, data: bytes) -> bytes:
    """A zip archive with a member changed, renamed, left out, doubled, compressed, or with other bytes."""
    if random.random() < 0.15:
        return bytes_of(random, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    small = [number for number, (_, content) in enumerate(members) if len(content) < 100_000]
    number = random.choice(small)
    name, content = members[number]
    kind, packing = random.randrange(9), zipfile.ZIP_STORED
    if kind < 5:
        is_json = name.endswith(".json") and content[:1] in b"{["
        members[number] = name, (json_of if is_json else bytes_of)(random, content)
    elif kind == 5:
        members[number] = random.choice(("../" + name, "/" + name, name + "x", name.upper(), "x/" + name)), content
    elif kind == 6:
        del members[number]
    elif kind == 7:
        members.insert(number, ("../evil" if random.random() < 0.5 else name + ".more", bytes_of(random, content)))
    else:
        packing = zipfile.ZIP_DEFLATED
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(random: Random, data: bytes) -> bytes:
    """A tar archive with a member changed, renamed, of another type or size, left out or doubled, or other bytes."""
    if random.random() < 0.1:
        return bytes_of(random, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(entry, _read(archive, entry)) for entry in archive]
    number = random.randrange(len(members))
    entry, content = members[number]
    kind, told = random.randrange(8), None
    if kind < 3:
        by_kind = {".json": json_of, ".png": png_of}
        content = by_kind.get(entry.name[-5:], by_kind.get(entry.name[-4:], bytes_of))(random, content)
    elif kind == 3:
        entry.name = random.choice(("../" + entry.name, "/" + entry.name, *TEXTS[1:12], entry.name.replace("0", "1")))
    elif kind == 4:
        types = (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.FIFOTYPE,
            tarfile.DIRTYPE,
            tarfile.GNUTYPE_SPARSE,
        )
        entry.type, entry.linkname = random.choice(types), random.choice(("/etc/passwd", "..", entry.name))
    elif kind == 5:
        told = random.choice((0, 1, 511, 513, 2**31, 2**33 - 1, 10**6))
    elif kind == 6:
        members.append((entry, content))
    if kind == 7:
        del members[number]
    else:
        members[number] = entry, content
    file = io.BytesIO()
    for one, body in members:
        one.size = told if told is not None and one is entry else len(body)
        if "\0" in one.name:
            one.name = one.name.replace("\0", "") or "x"
        block = one.tobuf(tarfile.GNU_FORMAT, errors="replace")
        file.write(block + body + bytes(-len(body) % 512))
    return file.getvalue() + bytes(random.choice((1024, 1024, 1024, 1024, 512, 0)))


def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(entry)
    return b"" if file is None else file.read()


def gzip_of(inner: Mutator) -> Mutator:
    """Of a gzipped file what is inside, mostly."""
    return lambda random, data: (
        bytes_of(random, data) if random.random() < 0.15 else gzip.compress(inner(random, gzip.decompress(data)), 1)
    )

"""Predictions as lines of text, in CSV or in JSON, and files of them that a later run goes on with.

Beside a file ``x.csv`` lies ``x.csv.model.json``, which says whose answers it holds, and what computed them. The
answers alone cannot: those of two models may look alike, and those of one differ in another precision or on another
machine; and the columns stay.
"""

import csv
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path
from typing import NamedTuple, Self

from ceit.atomic import close_flushed, naming, replace_files, write_text
from ceit.data.preprocessing import Preprocessing
from ceit.inference.exported import ExportedNetwork
from ceit.inference.predictor import Prediction
from ceit.json_file import as_written, is_number, parse_json, read_json
from ceit.lock import InUseError, locked
from ceit.model import CeiT
from ceit.paths import expanded
from ceit.version import NewerFormatError, refuse_newer
from ceit.weights import Description
from ceit.weights.checkpoint import fingerprint

CSV_HEAD = "path,rank,label,probability,error\n"
JUDGED_CSV_HEAD = "path,rank,label,probability,familiarity,unknown,error\n"
"""Where it was asked which images are unknown."""

FORMAT_VERSION = 1
"""Of the side file; those that do not tell it are of the first."""

NAME_ERRORS = sys.getfilesystemencodeerrors()
"""How names of files that are not text come into a string, and out of it as the bytes that they were."""


class _Stored(NamedTuple):
    """An image in a file, from the byte ``start`` to ``end``, with an answer or with an error."""

    path: str
    is_answer: bool
    start: int
    end: int


class Origin(NamedTuple):
    """Whose answers a file holds: the checkpoint as it was named, and the SHA-256 of what the answers depend on.

    That is the same in every precision and on every machine, and for the same weights in another file or layout; an
    exported file is a model of its own. ``computed_by`` is the backend and the precision; files of earlier versions do
    not tell it. ``unknown_below`` is as of ``Predictor``.
    """

    checkpoint: str
    sha256: str
    computed_by: str | None = None
    unknown_below: float | None = None

    @classmethod
    def read(cls, side_file: Path) -> Self:
        """From the file beside the answers. Raises: ValueError for a damaged one, OSError for one that is not there."""
        with as_written(side_file, "remove it"):
            said = read_json(side_file)
            refuse_newer(side_file, said.pop("format_version", 1), FORMAT_VERSION)
            made = cls(**said)
        texts = made.checkpoint, made.sha256, made.computed_by or ""
        if not all(isinstance(text, str) for text in texts) or not (
            made.unknown_below is None or (is_number(made.unknown_below) and 0 <= made.unknown_below <= 1)
        ):
            raise ValueError(f"{side_file} does not say whose answers they are")
        return made

    @property
    def judged(self) -> bool:
        """Whether the answers say which images are unknown."""
        return self.unknown_below is not None

    @classmethod
    def of(
        cls,
        model: CeiT | ExportedNetwork,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        checkpoint: str,
        *,
        calibrated: bool = True,
        unknown_below: float | None = None,
    ) -> Self:
        """The origin of the answers of a model from this checkpoint, which have a temperature or not."""
        temperature = model.temperature if calibrated else None
        if isinstance(model, CeiT):
            said = Description(model.config, None, class_names, preprocessing.as_dict(), temperature=temperature)
            if unknown_below is not None:
                said = replace(said, familiarity=model.familiarity)
            return cls(checkpoint, fingerprint(model.state_dict(), said), unknown_below=unknown_below)
        content = expanded(checkpoint).read_bytes()  # of OpenVINO the .xml, which holds the digest of its .bin
        raw = b"" if temperature == model.temperature else b"raw"
        return cls(checkpoint, hashlib.sha256(content + raw).hexdigest())


def csv_lines(prediction: Prediction, judged: bool = False) -> str:
    """A line for every rank, or one with the error; where images are ``judged``, with how familiar this one is."""
    rows: list[tuple[object, ...]] = [
        (rank, score.label, f"{score.probability:.6f}") for rank, score in enumerate(prediction.predictions, 1)
    ]
    judgement = [] if not judged else ["", ""]
    if judged and prediction.error is None:
        judgement = [f"{prediction.familiarity:.6f}", "yes" if prediction.unknown else "no"]
    lines = ""
    for row in rows if prediction.error is None else [("", "", "")]:
        file = io.StringIO()
        cells = [prediction.path, *row, *judgement, prediction.error or ""]
        csv.writer(file).writerow(cells)  # ends in CR LF, and so quotes a name that holds either
        lines += file.getvalue().removesuffix("\r\n") + "\n"
    return lines


def json_line(prediction: Prediction, judged: bool = False) -> str:
    """One JSON object in one line; it says by itself whether its image was ``judged``."""
    return json.dumps(prediction.as_dict()) + "\n"


def printable(path: str) -> str:
    """The path for a table or a sentence: with a mark for every character that cannot be shown there."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in path)


FORMS = {".csv": csv_lines, ".jsonl": json_line}
"""What the endings of a file's name stand for: the lines of an image."""


_JSON_START = b'{"path": "'
"""How a line of ``json_line`` begins, by which one that was cut is known."""


def head_of(form: str, judged: bool) -> str:
    """The first line of a file with such an ending; empty if it has none."""
    return "" if form != ".csv" else JUDGED_CSV_HEAD if judged else CSV_HEAD


@contextmanager
def for_one_process(file: Path) -> Iterator[None]:
    """A file of predictions, for this process alone; not where the file system has no locks.

    Raises: InUseError if another process holds it.
    """
    place = file.resolve()
    lock = place.with_name(f".{place.name}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except InUseError as error:
            raise InUseError(
                f"{file} is being written by another ceit predict: wait for it, or name another --output"
            ) from error
        except OSError:  # no lock file can be made; a folder that takes none is named by whoever opens the file
            with suppress(OSError):
                lock.unlink()
        yield


def unanswered(
    file: Path,
    paths: Sequence[str],
    ranks: int,
    class_names: Collection[str],
    origin: Origin,
    say: Callable[[str], None],
) -> list[str]:
    """The paths without an answer in the file, which keeps its answers of ``ranks`` classes each, and nothing else.

    Its errors are taken out: why a file could not be read may have gone. Raises: ValueError, with the file as it was,
    if these are not answers of this model, or not told whose paths.
    """
    _require_same_question(file, origin)
    head = head_of(file.suffix, origin.judged).encode()
    found = _images_in(file, ranks, class_names, origin.judged)
    answered = Counter(image.path for image in found if image.is_answer)
    # CSV files once had marks in names; one that holds a name as no mark could stand for it is not of them
    marked = {printable(path) for path in paths if printable(path) != path}
    known = set(paths) if any(printable(path) != path for path in answered) else set[str]()
    if file.suffix == ".csv" and (unsure := (marked - known) & answered.keys()):
        raise ValueError(
            f"{file} has marks in place of some characters of names, as in {min(unsure)}, and does not tell which "
            "files these are: name another --output"
        )
    if answered:
        _require_same(file, origin, say)
    _keep_answers(file, found, head)
    left: list[str] = []
    for path in paths:
        if answered[path]:
            answered[path] -= 1
        else:
            left.append(path)
    return left


def computed_by(file: Path) -> str | None:
    """The backend and the precision of the answers in a file; None if nothing tells them, or there is no such file."""
    before = _origin_before(file)
    return None if before is None else before.computed_by


def require_new(file: Path) -> None:
    """Raises: ValueError if the file is there."""
    if os.path.lexists(file):
        raise _exists(file)


def _exists(file: Path) -> ValueError:
    return ValueError(f"{file} exists: --resume goes on with it, or name another --output")


def write_answers(file: Path, predictions: Iterable[Prediction], origin: Origin, *, resume: bool) -> None:
    """Write every answer as soon as it is known, to a new file or behind those of one that is gone on with.

    Raises: ValueError if the file exists and is not to be gone on with.
    """
    try:
        output = file.open("a" if resume else "x", encoding="utf-8", errors=NAME_ERRORS, newline="")
    except FileExistsError:
        raise _exists(file) from None
    with ExitStack() as stack:
        stack.callback(close_flushed, output)
        said = {"format_version": FORMAT_VERSION, **origin._asdict()}
        write_text(_side_file(file), json.dumps(said) + "\n")
        for text in as_text(predictions, file.suffix, origin.judged, with_head=not output.tell()):
            with naming(file):
                output.write(text)
                output.flush()


def as_text(
    predictions: Iterable[Prediction], form: str, judged: bool = False, *, with_head: bool = True
) -> Iterator[str]:
    """What a file of this ending holds: its first line, and the lines of each image as soon as they are known."""
    if with_head:
        yield head_of(form, judged)
    for prediction in predictions:
        yield FORMS[form](prediction, judged)


def _origin_before(file: Path) -> Origin | None:
    """Whose answers a file says that it holds; None if it does not, or there is no such file."""
    try:
        return None if not file.exists() else Origin.read(_side_file(file))
    except NewerFormatError:
        raise
    except (OSError, ValueError):  # it is refused, with its reason, where it is asked whose answers they are
        return None


def _require_same_question(file: Path, now: Origin) -> None:
    """Raises: ValueError if other images would have been unknown."""
    before = _origin_before(file)
    if before is not None and before.unknown_below != now.unknown_below:
        asked = "without --unknown-below" if not before.judged else f"with --unknown-below {before.unknown_below:g}"
        raise ValueError(f"{file} holds answers {asked}: go on so, or name another --output")


def _require_same(file: Path, now: Origin, say: Callable[[str], None]) -> None:
    """Raises: ValueError if the file holds answers of another model, or if whose they are cannot be understood."""
    side_file = _side_file(file)
    try:
        before = Origin.read(side_file)
    except FileNotFoundError:
        say(f"{file} does not say whose answers it holds: they are taken to be this model's")
        return
    except NewerFormatError:
        raise
    except ValueError as error:
        raise ValueError(f"{side_file} is damaged: remove it if the answers in {file} are of this model") from error
    if before.sha256 != now.sha256:
        raise ValueError(
            f"{file} holds answers of another model, {before.checkpoint} as it was then: go on with that, or name "
            "another --output"
        )
    if before.computed_by is None:
        say(f"{file} does not say in which precision its answers were computed: new ones may differ in the last digits")


def _images_in(file: Path, ranks: int, class_names: Collection[str], judged: bool) -> list[_Stored]:
    """The images of a file whose answers have ``ranks`` classes each, without what stands after the last whole one.

    Raises: ValueError for anything but answers of these classes and ranks.
    """
    found: list[_Stored] = []
    head = head_of(file.suffix, judged).encode()
    with file.open("rb") as content:
        lines = (line.decode(errors=NAME_ERRORS) for line in content if line.endswith(b"\n"))
        try:
            first = content.readline()
            if first and not first.endswith(b"\n"):  # perhaps what a crash has left of ours
                if not head.startswith(first) if head else not first.startswith(_JSON_START[: len(first)]):
                    raise ValueError(f"its first line is {first}")
                return []
            if head and first not in (b"", head):
                raise ValueError(f"its first line is {first}")
            end = content.seek(len(head))
            for path, is_answer in _CONTENTS[file.suffix](lines, ranks, frozenset(class_names), judged):
                start, end = end, content.tell()
                found.append(_Stored(path, is_answer, start, end))
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            was_cut_in_a_name = isinstance(error, csv.Error) and getgeneratorstate(lines) == GEN_CLOSED  # of two lines
            if not was_cut_in_a_name:
                raise ValueError(
                    f"{file} holds other things than answers of this model with --top-k {ranks}: name another --output"
                ) from error
    return found


def _keep_answers(file: Path, found: Sequence[_Stored], head: bytes) -> None:
    """Leave nothing in a file but its head and the answers found in it, all at once: images with errors go."""
    answers = [image for image in found if image.is_answer]

    def pieces() -> Iterator[bytes]:
        yield head
        with file.open("rb") as content:
            for image in answers:
                content.seek(image.start)
                yield content.read(image.end - image.start)

    if file.stat().st_size != len(head) + sum(image.end - image.start for image in answers):
        replace_files({file.resolve(): pieces()})


def _side_file(file: Path) -> Path:
    place = file.resolve()
    return place.with_name(f"{place.name}.model.json")


def _in_csv(lines: Iterator[str], ranks: int, class_names: frozenset[str], judged: bool) -> Iterator[tuple[str, bool]]:
    """The path of every image, and whether it has an answer there, not an error."""
    expected = 1
    for path, rank, label, *others, error in csv.reader(lines, strict=True):
        if len(others) != (3 if judged else 1):
            raise ValueError(f"{4 + len(others)} columns")
        if (rank, label in class_names) != (("", False) if error else (str(expected), True)):
            raise ValueError(rank)
        expected = 1 if error or expected == ranks else expected + 1
        if expected == 1:
            yield path, not error


def _in_json_lines(
    lines: Iterator[str], ranks: int, class_names: frozenset[str], judged: bool
) -> Iterator[tuple[str, bool]]:
    for line in lines:
        image = parse_json("a line", line)
        if "error" not in image:
            labels = [score["label"] for score in image["predictions"]]
            if len(labels) != ranks or not class_names.issuperset(labels) or ("unknown" in image) != judged:
                raise ValueError(line)
        if not isinstance(image["path"], str):
            raise ValueError(line)
        yield image["path"], "error" not in image


_CONTENTS = {".csv": _in_csv, ".jsonl": _in_json_lines}

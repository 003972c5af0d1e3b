"""Where the system takes no more of a file, the error names it, however little was to be written.

What is small stays in Python's buffer until it is flushed, and is tried once more by closing.
"""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ceit.atomic import write_array, write_text
from ceit.inference.prediction_file import Origin, write_answers
from ceit.inference.predictor import Prediction
from ceit.train.run_directory import RunDirectory

LIMIT_BYTES = 300
ORIGIN = Origin("m", "0" * 64)


def _text(folder: Path) -> None:
    write_text(folder / "written", "x" * 1000)


def _answers(folder: Path) -> None:
    many = (Prediction(f"{number}.png", error="cannot be read") for number in range(100))
    write_answers(folder / "written.csv", many, ORIGIN, resume=False)


def _log(folder: Path) -> None:
    RunDirectory(folder).log({"event": "x" * 1000})


def _array(folder: Path) -> None:
    write_array(folder / "written.npy", np.zeros((10, 100), np.uint8))


WRITERS = [(_text, "written"), (_answers, "written.csv"), (_log, "metrics.jsonl"), (_array, "written.npy")]


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_the_error_names_the_file(
    write: Callable[[Path], None], name: str, tmp_path: Path, file_size_limit: Callable[[int], None]
) -> None:
    file_size_limit(LIMIT_BYTES)
    with pytest.raises(OSError, match=f"{os.strerror(errno.EFBIG)}: '{re.escape(str(tmp_path / name))}'"):
        write(tmp_path)
    written = tmp_path / name
    assert not written.exists() if write is _text else written.stat().st_size == LIMIT_BYTES
    assert not [*tmp_path.glob(".*.tmp")]

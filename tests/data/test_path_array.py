"""Paths as one array: the same paths, in a fraction of the memory."""

import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceit.data.path_array import PathArray

ODD = [Path("a.jpg"), Path("ü/猫 1.png"), Path(os.fsdecode(b"/not utf8 \xff.jpg")), Path(), Path("x\n/../y")]


@given(st.lists(st.sampled_from(ODD), max_size=8), st.data())
def test_they_are_the_paths_that_were_given(paths: list[Path], data: st.DataObject) -> None:
    array = PathArray.of(paths)
    assert len(array) == len(paths)
    assert [*array] == paths
    assert [array.text(number) for number in range(len(paths))] == [*map(str, paths)]
    indices = data.draw(st.lists(st.integers(-len(paths), len(paths) - 1), max_size=9)) if paths else []
    assert [*array.take(indices)] == [paths[index] for index in indices]
    assert [*pickle.loads(pickle.dumps(array))] == paths


@pytest.mark.parametrize("index", [2, -3])
def test_there_is_none_beyond_the_ends(index: int) -> None:
    with pytest.raises(IndexError):
        PathArray.of(ODD[:2])[index]


def test_a_path_takes_its_characters_and_eight_bytes() -> None:
    count, folder = 20_000, "/photos/train/n01440764"
    tracemalloc.start()
    try:
        array = PathArray.of(f"{folder}/n01440764_{number:05}.JPEG" for number in range(count))
        assert array.text(count - 1) == f"{folder}/n01440764_19999.JPEG"
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < count * (len(array.text(0)) + 8) + 10_000

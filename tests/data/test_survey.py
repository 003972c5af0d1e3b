"""Every image is read once, ever: digests, verdicts on bytes, copies; the same pixels with and without the cache."""

import errno
import io
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ceit.data import encoded as encoded_module
from ceit.data import pillow
from ceit.data import store as store_module
from ceit.data import survey as survey_module
from ceit.data.encoded import EncodedSplit
from ceit.data.path_array import PathArray
from ceit.data.preprocessing import to_array
from ceit.data.reduced import Form, evaluation_cover, training_cover
from ceit.data.splits import FileSplit
from ceit.data.survey import form_for, survey

SMALL = Form(3, (16, 16), (8, 8))
REDUCED = Form(3, (16, 16))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of its own."""
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photo(number: int, size: tuple[int, int] = (96, 64)) -> bytes:
    """A JPEG of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, "JPEG", quality=90)
    return file.getvalue()


@dataclass
class Images(EncodedSplit):
    """Encoded images in memory that count how often each is read; ``failing`` ones cannot be had."""

    contents: list[bytes]
    states: list[str] = field(default_factory=list)
    failing: dict[int, BaseException] = field(default_factory=dict)
    reads: list[int] = field(default_factory=list)
    digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.contents)

    def state(self, index: int) -> str:
        return self.states[index] if self.states else f"place {index} {len(self.contents[index])}"

    def encoded(self, index: int) -> bytes:
        self.reads.append(index)
        if index in self.failing:
            raise self.failing[index]
        return self.contents[index]

    def name(self, index: int) -> str:
        return f"photo {index}"


def photos(count: int) -> Images:
    return Images([photo(number) for number in range(count)])


@pytest.mark.parametrize("form", [SMALL, REDUCED])
def test_m5_an_image_is_read_once_ever(form: Form) -> None:
    images = photos(9)
    first, second = survey(images, form, "reading"), survey(images, form, "reading")
    assert sorted(images.reads) == list(range(9))
    expected = [int.from_bytes(blake2b(data, digest_size=8).digest(), "big") for data in images.contents]
    for found in (first, second):
        assert found.digests.dtype == np.uint64
        assert found.digests.tolist() == expected
        assert found.broken == {}
        if form.size is None:
            assert found.pixels is None
        else:
            assert found.pixels is not None
            assert found.pixels.shape == (9, 8, 8, 3)
            wanted = [to_array(form.read(data)) for data in images.contents]
            assert (found.pixels == np.stack(wanted)).all()


def test_m5_of_a_changed_set_only_what_is_new_is_read() -> None:
    images = photos(5)
    survey(images, SMALL, "reading")
    images.reads.clear()
    images.states = [images.state(index) for index in range(5)]
    images.contents[3], images.states[3] = photo(99), "changed"
    found = survey(images, SMALL, "reading")
    assert images.reads == [3]
    assert found.pixels is not None
    assert (found.pixels[3] == to_array(SMALL.read(photo(99)))).all()


def test_m5_the_same_bytes_in_another_place_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(4)
    survey(images, SMALL, "reading")
    images.states = [f"moved {index}" for index in range(4)]
    monkeypatch.setattr(Form, "read", lambda form, source: pytest.fail("was decoded"))
    found = survey(images, SMALL, "reading")
    assert found.broken == {}
    assert found.pixels is not None
    assert found.pixels.any(axis=(1, 2, 3)).all()


def test_m5_pixels_are_the_same_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict has no cache: what it sees is what training saw, out of a copy or not."""
    images = photos(3)
    kept = survey(images, SMALL, "reading").pixels
    found = survey(images, REDUCED, "reading")
    images.digests = found.digests
    copies = [images.read(i, 3, REDUCED.cover) for i in range(3)]
    assert sorted(images.reads) == [0, 0, 1, 1, 2, 2]
    for module in (survey_module, encoded_module):
        monkeypatch.setattr(module, "open_store", lambda: store_module.Store(None))
    without = survey(images, SMALL, "reading").pixels
    assert kept is not None
    assert without is not None
    assert (kept == without).all()
    for index, copy in enumerate(copies):
        assert copy.tobytes() == images.read(index, 3, REDUCED.cover).tobytes()
        assert copy.tobytes() == REDUCED.read(images.contents[index]).tobytes()


def test_m5_only_copies_that_save_time_are_kept() -> None:
    large, small = photo(0, (96, 64)), photo(1, (20, 18))
    images = Images([large, small])
    found = survey(images, REDUCED, "reading")
    images.reads.clear()
    images.digests = found.digests
    sizes = [images.read(index, 3, REDUCED.cover).size for index in (0, 1)]
    assert sizes == [(24, 16), (17, 16)]
    assert images.reads == [1]


def test_m5_a_file_that_changed_meanwhile_is_kept_under_its_own_digest() -> None:
    images = photos(1)
    images.digests = np.array([12345], np.uint64)
    images.read(0, 3, REDUCED.cover)
    assert store_module.open_store().copy(12345, str(REDUCED)) is None


@pytest.mark.parametrize("form", [SMALL, REDUCED])
def test_m5_broken_images_are_told_each_time_and_read_once(form: Form) -> None:
    images = photos(4)
    images.contents[1], images.contents[2] = b"no image", photo(7)[:-200]
    for _ in range(2):
        found = survey(images, form, "reading")
        assert list(found.broken) == [1, 2]
        assert found.broken[1] == "not an image"
        assert "truncated" in found.broken[2]
    assert sorted(images.reads) == [0, 1, 2, 3]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOENT])
def test_p14_what_is_not_about_the_bytes_is_asked_again(number: int) -> None:
    error = OSError(number, "not now", "photo")
    images = Images([photo(0), photo(1)], failing={1: error})
    found = survey(images, SMALL, "reading")
    assert found.broken == {1: "not now"}
    assert found.digests[1] == 0
    images.failing = {}
    found = survey(images, SMALL, "reading")
    assert found.broken == {}
    assert images.reads.count(0) == 1
    images.failing = {1: error}  # it is known by now
    assert survey(images, SMALL, "reading").broken == {}


def test_p14_too_little_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    images, read = photos(1), Form.read

    def exhausted(form: Form, source: object) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Form, "read", exhausted)
    assert survey(images, SMALL, "reading").broken == {0: "too little memory to decode it"}
    monkeypatch.setattr(Form, "read", read)
    assert survey(images, SMALL, "reading").broken == {}


@pytest.mark.parametrize("form", [SMALL, REDUCED])
def test_p14_what_a_setting_refuses_is_read_when_it_allows_it(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(1)
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "0.001")
    assert "above the limit of 0.001 megapixels" in survey(images, form).broken[0]
    monkeypatch.delenv("CEIT_MAX_MEGAPIXELS")
    assert survey(images, form).broken == {}


@pytest.mark.parametrize("form", [SMALL, REDUCED])
def test_p14_a_lower_limit_refuses_what_was_read_before_and_a_higher_one_reads_nothing_anew(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = photos(1)
    assert survey(images, form).broken == {}
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "0.001")
    assert "above the limit of 0.001 megapixels" in survey(images, form).broken[0]
    images.reads.clear()
    for limit in ("", "500"):
        monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", limit)
        assert survey(images, form).broken == {}
    assert images.reads == []


def test_p14_a_wrong_setting_stops_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(3)
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "500MP")
    with pytest.raises(ValueError, match="CEIT_MAX_MEGAPIXELS must be a number above 0, got '500MP'"):
        survey(images, SMALL)
    assert images.reads == []
    monkeypatch.delenv("CEIT_MAX_MEGAPIXELS")
    assert survey(images, SMALL).broken == {}


def test_p14_a_heic_that_was_read_is_asked_again_where_pillow_heif_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    formats, file = pillow.formats(), io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "HEIF")
    images = Images([file.getvalue()])
    assert survey(images, REDUCED).broken == {}
    monkeypatch.setattr(pillow, "formats", lambda: tuple(name for name in formats if name != "HEIF"))
    monkeypatch.setattr(store_module, "reader", store_module.reader.__wrapped__)  # as a new process finds it
    assert survey(images, REDUCED).broken[0].startswith("HEIF needs the package pillow-heif")


def test_p14_files_of_the_same_size_and_time_that_swap_names_are_read_again(tmp_path: Path) -> None:
    first, second = paths = tmp_path / "a.bmp", tmp_path / "b.bmp"
    for path, value in zip(paths, (10, 200), strict=True):
        Image.new("L", (32, 32), value).save(path)
        os.utime(path, (10**9, 10**9))
    split, form = FileSplit(PathArray.of(paths), torch.zeros(2, dtype=torch.int64)), Form(1, (16, 16), (8, 8))
    before = survey(split, form)
    time.sleep(0.05)  # more than a tick of the file system's clock
    first.rename(tmp_path / "c.bmp")
    second.rename(first)
    (tmp_path / "c.bmp").rename(second)
    after = survey(split, form)
    assert before.digests.tolist() == after.digests.tolist()[::-1]
    assert after.pixels is not None
    assert after.pixels[:, 0, 0, 0].tolist() == [200, 10]


def test_an_image_whose_state_cannot_be_told_is_read_each_time() -> None:
    images = Images([photo(0)], states=[""])
    survey(images, SMALL, "reading")
    survey(images, SMALL, "reading")
    assert images.reads == [0, 0]


def test_m5_processes_share_the_work_and_all_have_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "_LOOKED_UP_TOGETHER", 4)
    images = photos(40)
    found: dict[int, survey_module.Survey] = {}

    def take_part(rank: int) -> None:
        found[rank] = survey(images, SMALL, "reading", share=(rank, 2))

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(images.reads) == set(range(40))
    assert len(images.reads) <= 60  # those at hand when the two meet
    first, second = (found[rank].pixels for rank in (0, 1))
    assert first is not None
    assert second is not None
    assert (first == second).all()
    assert (first == np.stack([to_array(SMALL.read(data)) for data in images.contents])).all()


@pytest.mark.parametrize(("count", "processes"), [(0, 1), (1, 3), (7, 3), (8, 2)])
def test_a_share_begins_with_its_own_and_has_all(count: int, processes: int) -> None:
    orders = [list(survey_module._order(count, rank, processes)) for rank in range(processes)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert survey_module._order(8, 1, 2) is not None
    if (count, processes) == (8, 2):
        assert orders == [[0, 1, 2, 3, 7, 6, 5, 4], [4, 5, 6, 7, 3, 2, 1, 0]]


def test_a_process_whose_launcher_does_not_say_of_how_many_counts_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert survey_module.local_share() == (0, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert survey_module.local_share() == (1, 2)


def test_m5_a_set_larger_than_memory_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert form_for(1000, (32, 64), 3) == Form(3, (64, 128), (32, 64))
    assert form_for(1000, (224, 224), 1) == Form(1, (512, 512))
    monkeypatch.setattr(survey_module, "memory_bytes", lambda: 4 * 1000 * 32 * 64 * 3)
    assert form_for(1000, (32, 64), 3).size == (32, 64)
    assert form_for(1001, (32, 64), 3) == Form(3, (64, 128))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each holds them
    assert form_for(1000, (32, 64), 3).size is None


def test_nothing_is_left_running_when_reading_is_stopped() -> None:
    images, before = photos(60), threading.active_count()
    images.failing = dict.fromkeys(range(5, 60), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        survey(images, SMALL, "reading")
    assert threading.active_count() == before
    assert len(images.reads) < 40


Said = Callable[[], str]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What a terminal of 100 columns would show."""
    shown = io.StringIO()

    def console(quiet: bool) -> Console:
        return Console(file=shown, force_terminal=True, width=100, quiet=quiet)

    monkeypatch.setattr(survey_module, "stderr_console", console)
    return shown.getvalue


def test_a_terminal_shows_the_control_characters_of_a_name_spelt_out(
    terminal: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = photos(3)
    images.contents[1] = b"no image"
    monkeypatch.setattr(images, "name", lambda index: f"photo {index}\x1b]0;owned\x07")
    survey(images, SMALL, "reading photos")
    assert r"photo 1\x1b]0;owned\x07 cannot be read" in terminal()


def test_m5_a_terminal_shows_the_speed_and_names_what_is_broken(terminal: Said) -> None:
    images = photos(30)
    images.contents[3] = b"no image"
    survey(images, SMALL, "reading photos")
    assert "photo 3 cannot be read (not an image)\n" in terminal()
    assert "reading photos" in terminal()
    assert "30/30" in terminal()
    assert "images/s" in terminal()


def test_m5_elsewhere_only_long_work_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey(photos(3), SMALL, "reading photos")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(survey_module, "LONG_SECONDS", -1)
    survey(photos(5), SMALL, "reading photos")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("reading photos: 3 of 5 so far, ")
    survey(photos(9), SMALL, "reading photos", share=(1, 2))
    assert capsys.readouterr().err == ""


def test_m5_a_cache_that_cannot_be_used_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "file"))
    for _ in range(2):
        assert survey(photos(3), SMALL, "reading photos").broken == {}
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("the cache is done without, so images are read anew at each start: ")


def test_m5_copies_that_do_not_fit_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEIT_CACHE_GB", "0.0000001")
    survey(photos(3), SMALL, "reading photos")
    expected = "3 small copies of images are not kept: the cache is full (1e-07 GB, CEIT_CACHE_GB says otherwise)\n"
    assert capsys.readouterr().err == expected


def test_images_are_reduced_to_twice_what_they_are_fitted_to() -> None:
    assert evaluation_cover((224, 224), 0.875) == (512, 512)
    assert evaluation_cover((64, 48)) == (128, 96)
    assert training_cover((224, 224), 0.875) == (512, 512)
    assert training_cover((224, 224), 0.875, (0.5, 1.0)) == (512, 512)


@pytest.mark.parametrize("smallest", [0.08, 0.2, 0.35])
def test_no_random_crop_is_enlarged_more_than_from_the_original(smallest: float) -> None:
    height, width = training_cover((224, 160), 0.875, (smallest, 1.0))
    for ratio in (3 / 4, 1, 4 / 3):
        assert (smallest * height * width * ratio) ** 0.5 >= 160
    side = training_cover((224, 224), 0.875, (smallest, 1.0))[0]
    assert (smallest * side * side * 3 / 4) ** 0.5 >= 224


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 300), (26, 20)), ((300, 400), (20, 26)), ((1000, 21), (952, 20)), ((900, 20), None)]
)
def test_an_image_is_reduced_in_proportion_until_it_just_covers(
    size: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    reduced = Form(3, (20, 20)).read(image)
    assert reduced.size == (expected or size)
    assert reduced.getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize(("side", "kept"), [(400, True), (340, True), (300, False), (200, False)])
def test_a_copy_is_kept_where_reducing_takes_a_quarter_of_the_pixels_or_more(side: int, kept: bool) -> None:
    data, form = photo(0, (side, side)), Form(3, (292, 292))
    assert form.is_worth_keeping(data, form.read(data)) is kept

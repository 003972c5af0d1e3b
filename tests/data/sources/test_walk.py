"""One walk over folders: which files are images, in which order, and what is counted as passed over."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from ceit.data.sources.walk import open_folder, passed_over_line


def put(*paths: Path) -> None:
    """Writes a tiny image at each path, whatever its suffix."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, "PNG")


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in open_folder(root).walk()]


def passed_over(root: Path) -> dict[str, int]:
    folder = open_folder(root)
    list(folder.walk())
    return dict(folder.passed_over)


def test_images_and_folders_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    put(*(tmp_path / name for name in ("b/2.png", "b/10.png", "a.png", "c.JPG", "b/a/x.png", "B.png")))
    assert names(tmp_path) == ["B.png", "a.png", "b/10.png", "b/2.png", "b/a/x.png", "c.JPG"]
    assert names(tmp_path) == [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.*"))]


def test_p3_a_file_without_suffix_is_an_image_if_it_holds_one(tmp_path: Path) -> None:
    images = ["a.jpg!d", "b.jpg?width=300", "photo", "scan.2"]
    put(*(tmp_path / name for name in images), tmp_path / "old.jpg~", tmp_path / "old.jpg_original")
    (tmp_path / "README").write_text("no image")
    assert names(tmp_path) == images
    assert passed_over(tmp_path) == {"without suffix": 1, ".jpg~": 1, ".jpg_original": 1}


def test_p3_a_size_that_a_site_adds_to_a_name_is_no_suffix(tmp_path: Path) -> None:
    images = ["a.jpg_large", "b.jpg-small", "c.PNG_Medium", "d.jpeg_thumb"]
    put(*(tmp_path / name for name in images), tmp_path / "old.jpg_orig")
    (tmp_path / "e.xml_large").write_text("no image")
    assert names(tmp_path) == images
    assert passed_over(tmp_path) == {"without suffix": 1, ".jpg_orig": 1}


def test_p3_what_is_rarely_an_image_is_passed_over_beside_photos(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    for name, content in (
        ("cloud.pcd", "# .PCD v0.7"),
        ("board.gbr", "G04 a drawing*"),
        ("depth.pfm", "Pf\n1 1\n-1\n"),
    ):
        (tmp_path / name).write_text(content)
    assert names(tmp_path) == ["a.png"]
    assert passed_over(tmp_path) == {".pcd": 1, ".gbr": 1, ".pfm": 1}


def test_p3_what_is_passed_over_is_counted_by_kind(tmp_path: Path) -> None:
    put(tmp_path / "a.png", tmp_path / "__MACOSX" / "a.png", tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png")
    system = (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "Icon\r")  # counted nowhere
    for name in ("1.txt", "2.TXT", "clip.mp4", ".hidden.png", "data.db", *system):
        (tmp_path / name).write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    counts = passed_over(tmp_path)
    assert counts == {
        ".txt": 2,
        ".mp4": 1,
        ".db": 1,
        "hidden": 1,
        "__MACOSX/": 1,
        ".ipynb_checkpoints/": 1,
        "pipe or device": 1,
    }
    line = passed_over_line(counts)
    assert line.startswith("passed over: 2 ")
    assert "1 .ipynb_checkpoints/" in line
    assert line.endswith("1 of other kinds")  # seven kinds, six of them named
    assert passed_over_line({}) == ""
    assert (
        passed_over_line({".heic": 3, ".txt": 4}) == "passed over: 4 .txt, 3 .heic (install pillow-heif to read them)"
    )


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "$Recycle.Bin", "lost+found", ".cache"])
def test_p4_folders_of_systems_are_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path / name / "a.png", tmp_path / "kept" / "a.png")
    assert names(tmp_path) == ["kept/a.png"]


@pytest.mark.parametrize("name", ["__background__", "_none", "__init__", "#1", "@home", "recycle", "-"])
def test_p4_no_other_folder_is_passed_over_for_its_name(tmp_path: Path, name: str) -> None:
    put(tmp_path / name / "a.png")
    assert names(tmp_path) == [f"{name}/a.png"]


def test_p5_links_are_followed_and_have_the_names_they_have_here(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "b.png", tmp_path / "set" / "a.png")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "z.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert names(tmp_path / "set") == ["a.png", "more/b.png", "z.png"]
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert names(tmp_path / "link") == ["a.png", "more/b.png", "z.png"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../inner", "/"])
def test_p5_circles_end(tmp_path: Path, target: str) -> None:
    put(tmp_path / "set" / "inner" / "a.png")
    (tmp_path / "set" / "inner" / "back").symlink_to(target, target_is_directory=True)
    assert names(tmp_path / "set") == ["inner/a.png"]
    assert passed_over(tmp_path / "set") == {"linked to a folder above": 1}


def test_p5_a_circle_over_another_folder_ends(tmp_path: Path) -> None:
    put(tmp_path / "set" / "a.png", tmp_path / "far" / "b.png")
    (tmp_path / "set" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "set").symlink_to(tmp_path / "set")
    assert names(tmp_path / "set") == ["a.png", "far/b.png"]


def test_p5_a_dangling_link_is_an_image_if_its_name_says_so(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("gone.png")
    (tmp_path / "c.png").symlink_to("c.png")  # to itself
    (tmp_path / "more").symlink_to("gone")
    assert names(tmp_path) == ["a.png", "b.png", "c.png"]
    assert passed_over(tmp_path) == {"link to nowhere (more)": 1}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png", tmp_path / "shut" / "b.png")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path.name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"folder .*/shut cannot be listed \(Permission denied\): make it readable or"):
        names(tmp_path)
    unlisted: list[str] = []
    assert list(open_folder(tmp_path).walk(unlisted)) == [tmp_path / "a.png", tmp_path / "shut"]
    assert unlisted == [f"folder {tmp_path}/shut cannot be listed (Permission denied): make it readable or remove it"]


def test_a_drive_that_fails_is_no_reason_to_remove_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> object:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(ValueError, match=r"\(Input/output error\): try again, or copy the folder to a local disk"):
        names(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder .*/gone cannot be listed \(No such file or directory\)"):
        open_folder(tmp_path / "gone")


def test_a_name_of_other_bytes_can_be_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"x.caf\xe9")).write_text("no image")
    assert passed_over_line(passed_over(tmp_path)) == r"passed over: 1 .caf\xe9"

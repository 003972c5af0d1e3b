"""``~`` is a home directory wherever a path is given; and where there is no home, one sentence, or no cache."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import ceit
import ceit_cli
from ceit.data.cache import NoCacheError, cache_dir, keep, recall
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import absolute, load_dataset
from ceit.data.store import Fact, open_store
from ceit.paths import PathError, expanded
from tests.train.conftest import SMALL

NOBODY = "~nobody-such"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a run and photographs of two classes; the working directory is another."""
    home = tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(home))
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, in_chans=1, num_classes=2, patch_size=4, **geometry))
    (home / "run").mkdir(parents=True)
    told: dict[str, Any] = {"class_names": ["cat", "dog"], "preprocessing": Preprocessing((0.3,), (0.4,))}
    ceit.save_checkpoint(home / "run" / "model.safetensors", model, **told)
    for i in range(40):
        folder = home / "photos" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user whom the system does not know, without HOME and without CEIT_DATA, in an empty working directory."""
    import pwd

    def no_user(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("CEIT_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_user)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


def test_p9_a_tilde_is_the_home_directory_and_stays_what_it_became(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~copy.png").touch()
    for path, expected in {
        "~": tmp_path,
        "~/run": tmp_path / "run",
        "run/~": Path("run/~"),
        "./~copy.png": tmp_path / "~copy.png",
        "~copy.png": tmp_path / "~copy.png",  # no user has this name, and the file is there
        "./~": tmp_path / "~",
        "./~/run": tmp_path / "~" / "run",
    }.items():
        assert expanded(path) == expected
        assert expanded(expanded(path)) == expected
    assert expanded(Path("~/run")) == tmp_path / "run"
    with pytest.raises(PathError, match=r"^a path is empty: name one, or \. for the folder that this is called in$"):
        expanded("")
    with pytest.raises(PathError, match=r"^~nobody-such/x: there is no user 'nobody-such'; a file of this"):
        expanded(f"{NOBODY}/x")


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--checkpoint=~/run", "~/photos/cat/1.png", "--json"],
        ["predict", "--checkpoint=~/run", "~/photos", "--output=~/new.csv"],
        ["evaluate", "--checkpoint=~/run", "--data=~/photos", "--json"],
        ["export", "--checkpoint=~/run", "--format=torch", "--output=~/new.pt2", "--images", "~/photos"],
        ["convert", "~/run/model.safetensors", "~/new.safetensors"],
        ["data", "check", "~/photos", "--output=~/new.json"],
        ["data", "shard", "~/photos", "~/new"],
        ["info", "~/run"],
    ],
)
def test_p9_every_verb_takes_a_tilde(command: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(command) == 0, capsys.readouterr().err
    assert any("~/new" in word for word in command) == any(path.stem == "new" for path in home.iterdir())
    assert not list(Path.cwd().iterdir())


def test_p9_training_takes_a_tilde_in_options_and_recipes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"model": "ceit_pico_patch4_32", "initial_checkpoint": "~/start/model.safetensors", "img_size": 16}
    recipe |= {"geometry": SMALL.geometry, "augmentation": {"flip": False}, "precision": "float32"}
    (home / "mine.yaml").write_text(yaml.safe_dump(recipe))
    start = ceit.create_model("ceit_pico_patch4_32", img_size=16, num_classes=2, in_chans=1, **SMALL.geometry)
    (home / "start").mkdir()
    ceit.save_checkpoint("~/start/model.safetensors", start, class_names=["cat", "dog"])
    command = ["train", "--recipe=~/mine.yaml", "--data=~/photos", "--output=~/trained", "--fast-dev-run"]
    assert ceit_cli.main(command) == 0, capsys.readouterr().err
    saved = yaml.safe_load((home / "trained/config.yaml").read_text())
    assert saved["data"] == str(home / "photos")
    assert saved["initial_checkpoint"] == str(home / "start/model.safetensors")
    (checkpoint,) = (home / "trained/checkpoints").iterdir()
    again = ["train", "--output=~/trained", f"--resume=~/trained/checkpoints/{checkpoint.name}"]
    assert ceit_cli.main(again) == 0, capsys.readouterr().err
    assert ceit_cli.main(["compare", "~/trained", "--json"]) == 0
    assert not list(Path.cwd().iterdir())


def test_p9_so_does_the_library(home: Path) -> None:
    assert ceit.load_checkpoint("~/run").class_names == ["cat", "dog"]
    predictor = ceit.Predictor.from_checkpoint("~/run", device="cpu")
    (answer,) = predictor.predict("~/photos/dog/0.png")
    assert (answer.path, answer.error) == ("~/photos/dog/0.png", None)
    assert absolute("~/photos") == str(home / "photos")
    assert load_dataset(Path("~/photos")).class_names == ("cat", "dog")


def test_p9_a_file_with_a_tilde_in_its_name_is_that_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("~root/a.png", "~copy.png", "~/b.png"):
        place = Path.cwd() / name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(home / "photos/dog/0.png", place)
    assert ceit_cli.main(["predict", "--checkpoint=~/run", ".", "~copy.png", "./~/b.png", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["path"] for answer in answers[-2:]] == [str(Path.cwd() / "~copy.png"), "./~/b.png"]
    assert all("predictions" in answer for answer in answers)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["predict", "--checkpoint=~/run", f"{NOBODY}/x"], 1),
        (["predict", f"--checkpoint={NOBODY}/x", "~/photos"], 1),
        (["evaluate", "--checkpoint=~/run", f"--data={NOBODY}/x"], 1),
        (["export", "--checkpoint=~/run", "--format=torch", f"--output={NOBODY}/x"], 2),
        (["train", "--data=digits", f"--output={NOBODY}/x"], 1),
        (["train", "--data=digits", "--output=new", f"--initial-checkpoint={NOBODY}/x"], 1),
        (["data", "check", f"{NOBODY}/x"], 1),
        (["info", f"{NOBODY}/x"], 1),
    ],
)
@pytest.mark.usefixtures("home")
def test_p9_the_home_of_nobody_is_one_sentence(
    command: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ceit_cli.main(command) == code
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"{NOBODY}/x: there is no user 'nobody-such'; a file of this name is ./{NOBODY}/x")


@pytest.mark.usefixtures("homeless")
def test_m11_without_a_home_nothing_is_kept_and_all_is_found() -> None:
    open_store().add([("state", Fact(1))], [])
    assert open_store().facts(["state"]) == {}
    keep("fastest/network", "eager")
    assert recall("fastest/network") is None
    assert not list(Path.cwd().iterdir())


def test_m11_where_data_sets_must_be_kept_the_sentence_names_ceit_data(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["data", "fetch", "cifar10"], ["train", "--data", "cifar10", "--output", "run"]):
        assert ceit_cli.main(command) == 1
        told = "error: there is no place to keep data sets in: the home directory is not known; set CEIT_DATA to a"
        assert capsys.readouterr().err.splitlines()[-1] == f"{told} folder"
    assert ceit_cli.main(["train", "--data=~/photos", "--output=run"]) == 1
    told = "error: ~/photos: the home directory is not known; set HOME, or write the whole path\n"
    assert capsys.readouterr().err == told
    monkeypatch.setenv("CEIT_DATA", "~/sets")
    with pytest.raises(NoCacheError, match="CEIT_DATA is ~/sets, and ~/sets: the home directory is not known"):
        cache_dir()
    monkeypatch.setenv("HOME", str(homeless))
    assert cache_dir() == homeless / "sets"


def test_m11_without_a_home_a_folder_and_foreign_shards_are_read(
    homeless: Path, home_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ceit_cli.main(["data", "check", str(home_photos), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert len(load_dataset(home_photos, img_size=(96, 96)).train) > 0  # not held in memory: what is broken is kept
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/train-000000.tar", "w") as archive:
        for photo in sorted(home_photos.rglob("*.png")):
            archive.add(photo, f"{photo.stem}.png")
            label = tarfile.TarInfo(f"{photo.stem}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"1" if photo.parent.name == "cat" else b"0"))
    assert len(load_dataset(tmp_path / "shards").train) > 0
    assert not list(homeless.iterdir())


@pytest.fixture
def home_photos(tmp_path: Path) -> Path:
    """Two classes of six photographs."""
    for i in range(12):
        folder = tmp_path / "photos" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"

"""README in both languages: its commands run, its trees and figures are true, its sentences are short."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ceit_cli
from ceit.cli import demo
from ceit.shipped import DEFAULT
from ceit.train.recipe import recipe_config

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
READMES = [ENGLISH, CHINESE]

BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:ceit|make|pip|python|torchrun|source|git) [^`\n]+)`")
LONGEST_SENTENCE = 29
"""Words."""


def blocks(text: str, language: str) -> list[str]:
    return [match["text"] for match in BLOCK.finditer(text) if match["language"] == language]


def commands(text: str) -> list[str]:
    """Every command of a page, of its blocks without a language and within its sentences, each once, in order.

    ``ceit VERB`` alone is the name of a verb, not a command.
    """
    lines = "".join(blocks(text, "")).replace("\\\n", " ").splitlines()
    inline = [command for command in INLINE.findall(BLOCK.sub("", text)) if not re.fullmatch(r"ceit \w+", command)]
    return list(dict.fromkeys(line for line in (*lines, *inline) if line and not line.startswith("#")))


COMMANDS = commands(ENGLISH.read_text(encoding="utf-8"))


def make_photos(folder: Path, images: int = 24) -> None:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/``, and ``runs/photos`` as README's first command for one's own photos leaves it."""
    folder = tmp_path_factory.mktemp("readme")
    make_photos(folder / "photos")
    words = ["train", "--recipe", "demo", "--data", str(folder / "photos"), "--output", str(folder / "runs" / "photos")]
    assert ceit_cli.main([*words, "--max-epochs", "1"]) == 0
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of README stands, with everything that its commands name."""
    shutil.copytree(trained / "photos", tmp_path / "photos")
    for folder in ("more_photos", "archive"):
        shutil.copytree(trained / "photos" / "cat", tmp_path / folder)
    shutil.copy(trained / "photos" / "cat" / "1.png", tmp_path / "holiday.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_ceit(words: list[str], instead: dict[str, str] | None = None, more: tuple[str, ...] = ()) -> None:
    """Run a command in this process, with some of its words replaced, and further options."""
    assert ceit_cli.main([*((instead or {}).get(word, word) for word in words[1:]), *more]) == 0


def run_make(words: list[str]) -> None:
    dry = ["make", "--dry-run", *words[1:]]
    planned = subprocess.run(dry, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    if words[1] == "demo":
        ((verb, *options),) = re.findall(r"^\.venv/bin/ceit (\w+) (.*)$", planned, re.MULTILINE)
        with pytest.MonkeyPatch.context() as patch:
            quick = {"max_epochs": 1, "log_every_steps": 1}
            patch.setattr(demo, "recipe_config", lambda name, **options: recipe_config(name, **quick, **options))
            run_ceit(["ceit", verb, *shlex.split(" ".join(options)), "--data", "digits"])
        assert {"model.safetensors", "test.json", "curves.png", "confusion.png", "predictions.png"} <= {
            path.name for path in Path("runs/demo").iterdir()
        }


def run_source(words: list[str]) -> None:
    environment, _, rest = words[1].partition("/")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=600)
    program = f"source {environment}/{rest} && command -v python"
    found = subprocess.run(["bash", "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert Path(found.stdout.strip()).is_relative_to(Path(environment).absolute())


def run_pip(words: list[str]) -> None:
    offline = ["--dry-run", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", *words, *offline], cwd=ROOT, check=True, capture_output=True, timeout=600)


def run_sweep(words: list[str]) -> None:
    (text,) = blocks(ENGLISH.read_text(encoding="utf-8"), "yaml")
    assert text.startswith(f"# {words[2]}\n")
    for written, quick in (("trials: 12", "trials: 2"), ("seeds: [0, 1]", "seeds: [0]"), ("epochs: 5", "epochs: 1")):
        assert written in text
        text = text.replace(written, quick)
    Path(words[2]).write_text(text, encoding="utf-8")
    run_ceit(words)
    assert Path("runs/sweep/best.yaml").is_file()


def run_train(words: list[str]) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    for recipe in (word for word in words if word.endswith(".yaml")):  # what a sweep leaves
        Path(recipe).parent.mkdir(parents=True)
        shutil.copy(ROOT / "src" / "ceit" / "recipes" / "demo.yaml", recipe)
    run_ceit(words, more=() if "--help" in words else ("--max-epochs", "1"))


def run_predict(words: list[str]) -> None:
    """Unknown images are told by weights that ship: the photos here are too few to choose by."""
    run_ceit(words, {"runs/photos": DEFAULT} if "--unknown-below" in words else None)


def run_convert(words: list[str]) -> None:
    shapes = json.loads((ROOT / "tests" / "golden" / "released_state_dict_shapes.json").read_text(encoding="utf-8"))
    tensors = {name: torch.zeros(shape) for name, shape in shapes["ceit_tiny_patch16_224"].items()}
    torch.save({"model": tensors}, words[2])
    run_ceit(words)


def run_torchrun(words: list[str]) -> None:
    instead = {"8": "1", "imagenet:DIR": "photos/"}
    small = ["--fast-dev-run", "--geometry.depth", "1", "--img-size", "32", "--global-batch-size", "8"]
    program = [sys.executable, "-m", "torch.distributed.run", *(instead.get(word, word) for word in words[1:]), *small]
    inherited = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(program, env=inherited, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stderr
    assert Path("runs/s300/test.json").is_file()


RUNNERS: dict[str, Callable[[list[str]], None]] = {
    "make": run_make,
    "source": run_source,
    "pip": run_pip,
    "torchrun": run_torchrun,
    "ceit --help": run_ceit,
    "ceit train": run_train,
    "ceit sweep": run_sweep,
    "ceit evaluate": run_ceit,
    "ceit predict": run_predict,
    "ceit export": run_ceit,
    "ceit explain": run_ceit,
    "ceit report": run_ceit,
    "ceit convert": run_convert,
    "ceit info": run_ceit,
    "ceit data": lambda words: run_ceit(words, {"NAME": "digits"}),
    "ceit reproduce": lambda words: run_ceit(words, {"cifar10": "digits"}, ("--dry-run",)),
}
"""How a command begins to what runs it: really, but on tiny data, for few steps, or without a network."""


def runner(command: str) -> Callable[[list[str]], None] | None:
    return next((run for start, run in RUNNERS.items() if f"{command} ".startswith(f"{start} ")), None)


def test_there_is_a_runner_for_every_command_and_a_command_for_every_runner() -> None:
    assert [command for command in COMMANDS if runner(command) is None] == []
    assert {runner(command) for command in COMMANDS} == set(RUNNERS.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command: str, place: Path, trained: Path) -> None:
    shutil.copytree(trained / "runs", place / "runs")
    run = runner(command)
    assert run is not None
    run(shlex.split(command))
    words = shlex.split(command)
    if "--output" in words:
        output = place / words[words.index("--output") + 1]
        assert output.is_file() or any((output / name).is_file() for name in ("test.json", "holiday.explained.png"))


@pytest.mark.parametrize("number", range(len(blocks(ENGLISH.read_text(encoding="utf-8"), "python"))))
def test_the_python_runs(number: int, place: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained / "runs", place / "runs")
    program = blocks(ENGLISH.read_text(encoding="utf-8"), "python")[number]
    exec(compile(program, ENGLISH.name, "exec"), {})
    assert re.search(r"label='(cat|dog)', probability=0\.\d+", capsys.readouterr().out)


def test_every_verb_that_is_named_exists() -> None:
    named = set(re.findall(r"`ceit (\w+)", ENGLISH.read_text(encoding="utf-8")))
    assert named
    assert named <= set(ceit_cli.VERBS)


def test_the_tree_of_a_run_is_what_a_run_leaves(trained: Path) -> None:
    (tree,) = (text for text in blocks(ENGLISH.read_text(encoding="utf-8"), "text") if text.startswith("runs/"))
    listed = re.findall(r"^[├└]── (\S+)", tree, re.MULTILINE)
    left = [f"{path.name}/" if path.is_dir() else path.name for path in (trained / "runs" / "photos").iterdir()]
    assert sorted(listed) == sorted(left)


def sentences(text: str) -> list[str]:
    """The sentences of a page's paragraphs: not of its blocks, tables, lists and headings, without links' addresses."""
    text = re.sub(r"<!--.*?-->", "", BLOCK.sub("", text), flags=re.DOTALL)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    lines = (line for line in text.splitlines() if not re.match(r"\s*([|#-]|\d+\.)", line))
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    return [found for paragraph in paragraphs for found in re.split(r"(?<=[.!?])\s+", paragraph.strip()) if found]


def test_no_sentence_is_long() -> None:
    found = sentences(ENGLISH.read_text(encoding="utf-8"))
    assert len(found) > 40
    assert [sentence for sentence in found if len(sentence.split()) > LONGEST_SENTENCE] == []


def test_figures_of_the_text_are_measured_ones() -> None:
    """An accuracy in README's own words stands in a computed part of it, of a page that the line links, or in files
    that the line links; what others reached names them as its source."""
    text = ENGLISH.read_text(encoding="utf-8")
    own = re.sub(r"<!-- (?:results|computed).*?<!-- end of.*?-->", "", text, flags=re.DOTALL)
    named = [line for line in own.splitlines() if not re.search(r"\| (Compact-Transformers|airbench)", line)]
    found = {line: re.findall(r"\d+\.\d+(?= %)|\d+\.\d\d(?=, \d| and \d)", line) for line in named}
    assert sum(map(len, found.values())) > 10
    for line, figures in found.items():
        if not figures:
            continue
        links = [ROOT / target for target in re.findall(r"\]\(([^)#:]+)", line)]
        known = "".join(map(measured_in, [ENGLISH, *links]))
        assert [figure for figure in figures if figure not in known] == []


def measured_in(place: Path) -> str:
    """The computed parts of a page, or the test accuracies that a folder's files hold."""
    if place.is_dir():
        reports = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("*.json")))
        return " ".join(f"{report['test']['plain']['top1_percent']:.2f}" for report in reports if "test" in report)
    parts = re.findall(r"<!-- .*? -->\n(.*?)<!-- end of", place.read_text(encoding="utf-8"), re.DOTALL)
    return "".join(parts) if place.suffix == ".md" else ""


def without_comments(text: str) -> list[str]:
    return [
        re.sub(r"(\s#|   ).*", "", line).rstrip() for block in BLOCK.finditer(text) for line in block[0].splitlines()
    ]


def test_the_chinese_page_says_the_same() -> None:
    english, chinese = (readme.read_text(encoding="utf-8") for readme in READMES)

    def levels(text: str) -> list[int]:
        return [len(marks) for marks in re.findall(r"^(#+) ", BLOCK.sub("", text), re.MULTILINE)]

    def figures(text: str) -> list[list[str]]:
        rows = [line for line in BLOCK.sub("", text).splitlines() if line.startswith("|") and "](" not in line]
        return [sorted(re.findall(r"\d[\d.,]*\d|\d", row)) for row in rows]

    def targets(text: str) -> set[str]:
        return set(re.findall(r"\]\(([^)]+)\)", text))

    assert levels(chinese) == levels(english)
    assert without_comments(chinese) == without_comments(english)
    assert figures(chinese) == figures(english)
    assert targets(chinese) == targets(english)


@pytest.mark.parametrize("gpu", [False, True])
def test_make_demo_installs_what_the_demo_needs_and_make_check_the_rest(gpu: bool, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "sh", "uname", "touch", "ls", "mkdir", "ln", "cat"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    script = "#!/bin/sh\nif [ $2 = venv ]; then mkdir -p .venv/bin && ln -sf $0 .venv/bin/python; fi\necho asked: $*\n"
    for name in ("python", *(["nvidia-smi"] if gpu else [])):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def make(stamp: str) -> str:
        words = ["make", f"PYTHON={tools / 'python'}", f".venv/{stamp}"]
        environment = {"PATH": str(tools)}
        return subprocess.run(
            words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    first = make("for-the-demo")
    hints = [line for line in first.splitlines() if line.startswith("no GPU found") and "whl/cpu" in line]
    assert len(hints) == (platform.system() == "Linux" and not gpu)
    assert "asked: -m pip install --quiet --editable .[viz]" in first.splitlines()
    assert "dev" not in first.replace("/dev/null", "")
    assert "asked: -m pip install --quiet --editable .[dev,viz]" in make("for-the-gate").splitlines()
    assert "asked" not in make("for-the-gate")  # all is there

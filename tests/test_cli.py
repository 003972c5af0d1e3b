"""The command's shell: quick answers without torch; one sentence and the promised exit code for whatever goes wrong."""

import errno
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import ceit_cli

Verb = Callable[[list[str]], None]


@pytest.fixture
def install_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Verb], None]:
    """Put a function in the place of ``ceit info``."""

    def install(main: Verb) -> None:
        module = types.ModuleType("ceit.cli.info")
        module.__dict__["main"] = main
        monkeypatch.setitem(sys.modules, "ceit.cli.info", module)

    return install


def raises(error: BaseException) -> Verb:
    def main(_arguments: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["-h"], 0), (["--version"], 0), ([], 2), (["trian"], 2), (["--verison"], 2)],
)
def test_shell_answers_without_importing_torch_or_the_package(arguments: list[str], code: int) -> None:
    program = f"""
import sys, ceit_cli
assert ceit_cli.main({arguments!r}) == {code}
heavy = {{"ceit", "torch", "timm", "numpy", "rich", "yaml"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr


def test_help_names_every_verb_with_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for verb in ceit_cli.VERBS:
        assert any(line[:1] == [verb] and len(line) > 3 for line in lines), verb


def test_every_example_in_the_help_starts_with_a_known_verb() -> None:
    assert {example.split()[1] for example in ceit_cli.EXAMPLES} <= set(ceit_cli.VERBS)


def test_every_verb_of_the_table_has_its_file_and_every_file_its_verb(repository: Path) -> None:
    files = {path.stem for path in (repository / "src/ceit/cli").glob("[!_]*.py")}
    assert files | {"list"} == set(ceit_cli.VERBS), "list answers without the package, in src/ceit_list.py"


@pytest.mark.parametrize("verb", ceit_cli.VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main([verb, "--help"]) == 0
    assert f"usage: ceit {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trian", "error: unknown verb 'trian'; did you mean 'train'?"),
        ("evalute", "error: unknown verb 'evalute'; did you mean 'evaluate'?"),
        (
            "xyzzy",
            "error: unknown verb 'xyzzy'; there are "
            "train, evaluate, predict, explain, embed, web, report, list, info, export, benchmark, sweep, reproduce, "
            "compare, convert, data, demo",
        ),
        ("--verison", "error: unknown option '--verison'; did you mean '--version'?"),
    ],
)
def test_unknown_word_names_the_nearest(word: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main([word, "more"]) == 2
    captured = capsys.readouterr()
    assert captured.err.strip() == sentence
    assert captured.out == ""


def test_arguments_reach_the_verb_without_debug(install_verb: Callable[[Verb], None]) -> None:
    seen: list[list[str]] = []
    install_verb(seen.append)
    assert ceit_cli.main(["--debug", "info", "model", "--json"]) == 0
    assert ceit_cli.main(["info", "--debug", "model"]) == 0
    assert ceit_cli.main(["info", "--", "--debug"]) == 0
    assert seen == [["model", "--json"], ["model"], ["--", "--debug"]]


def test_options_may_be_written_with_underscores(install_verb: Callable[[Verb], None]) -> None:
    seen: list[list[str]] = []
    install_verb(seen.append)
    assert ceit_cli.main(["info", "a_b", "--img_size=a_b", "--in_chans", "a_b", "--", "--a_b"]) == 0
    assert seen == [["a_b", "--img-size=a_b", "--in-chans", "a_b", "--", "--a_b"]]


@pytest.mark.parametrize("verb", ["", *ceit_cli.VERBS])
def test_help_fits_80_columns(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ceit_cli.main([*filter(None, [verb]), "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("verb", ceit_cli.VERBS)
def test_examples_of_a_verb_take_the_options_that_it_explains(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main([verb, "--help"]) == 0
    explained, _, examples = capsys.readouterr().out.partition("examples:\n")
    for example in filter(None, examples.partition("\n\n")[0].replace("\\\n", "").splitlines()):
        assert example.split()[:2] == ["ceit", verb]
        assert [word for word in example.split() if word.startswith("--") and word not in explained] == []


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("image size 225 is odd; use 224"), 1, "error: image size 225 is odd; use 224"),
        (OSError("model.json is missing"), 1, "error: model.json is missing"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"),
            1,
            "error: No such file or directory: 'gone'",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/model.json"),
            1,
            "error: no space left on the disk: 'runs/a/model.json'; free some, or choose another place for the output",
        ),
        (
            ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.pyplot"),
            1,
            'error: this needs matplotlib, which is not installed; install it with: pip install "ceit-vision[viz]"',
        ),
        (RuntimeError("shapes differ"), 1, "error: RuntimeError: shapes differ (unexpected: --debug shows where)"),
        (
            MemoryError(),
            1,
            "error: no memory is left (MemoryError): end other programs, or lower the batch size or the images' size",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"),
            1,
            "error: no memory is left (CUDA out of memory): "
            "end other programs, or lower the batch size or the images' size",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ceit_cli.Terminated(), 143, "terminated"),
    ],
)
def test_failure_is_one_sentence_and_a_code(
    error: BaseException,
    code: int,
    sentence: str,
    install_verb: Callable[[Verb], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_verb(raises(error))
    assert ceit_cli.main(["info"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"{sentence}\n"
    assert captured.out == ""


def test_a_lack_of_memory_is_told_without_compiling_an_expression(
    install_verb: Callable[[Verb], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def lack_memory(*_: object) -> None:
        raise MemoryError

    def verb(_arguments: list[str]) -> None:
        patch.setattr(re, "_compile", lack_memory)
        raise MemoryError

    install_verb(verb)
    with pytest.MonkeyPatch.context() as patch:  # no longer than this: pytest itself compiles expressions
        assert ceit_cli.main(["info"]) == 1
    assert capsys.readouterr().err.startswith("error: no memory is left")


@pytest.mark.parametrize(("ending", "code"), [(SystemExit(2), 2), (SystemExit(None), 0), (SystemExit(0), 0)])
def test_exit_of_a_verb_passes_through(ending: SystemExit, code: int, install_verb: Callable[[Verb], None]) -> None:
    install_verb(raises(ending))
    assert ceit_cli.main(["info"]) == code


def test_debug_adds_the_traceback(install_verb: Callable[[Verb], None], capsys: pytest.CaptureFixture[str]) -> None:
    install_verb(raises(ValueError("bad value")))
    assert ceit_cli.main(["info", "--debug"]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("Traceback (most recent call last):")
    assert captured.endswith("error: bad value\n")


def test_sigterm_unwinds_the_verb_and_leaves_the_handler_as_it_was(install_verb: Callable[[Verb], None]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    steps: list[str] = []

    def main(_arguments: list[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("not reached")
        finally:
            steps.append("saved")

    install_verb(main)
    assert ceit_cli.main(["info"]) == 143
    assert steps == ["saved"]
    assert signal.getsignal(signal.SIGTERM) is before


LONG_WRITER = """
import sys, types, ceit_cli
module = types.ModuleType("ceit.cli.info")
module.main = lambda arguments: [print("line", number) for number in range(100_000)]
sys.modules["ceit.cli.info"] = module
sys.exit(ceit_cli.main(["info"]))
"""


def test_reader_that_leaves_early_is_no_complaint() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LONG_WRITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=600) == 1


@pytest.mark.parametrize("program", [LONG_WRITER, "import sys, ceit_cli; sys.exit(ceit_cli.main(['--help']))"])
def test_full_disk_behind_stdout_is_one_sentence(program: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, timeout=600, check=False
        )
    assert result.returncode == 1
    assert result.stderr == "error: no space left on the disk; free some, or choose another place for the output\n"


def test_python_dash_m_is_the_same_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ceit", "trian"], capture_output=True, text=True, timeout=6000, check=False
    )
    assert (result.returncode, result.stderr) == (2, "error: unknown verb 'trian'; did you mean 'train'?\n")

"""The computed parts of the pages are what the code computes, and the values in them are those that a run uses."""

import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from ceit.cli import reproduce
from ceit.cli.train import SWITCHES, parse
from ceit.model.config import CeiTConfig
from ceit.train.config import known_keys
from tools.pages import with_computed_parts

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "docs" / f"{name}.md" for name in ("scale", "results", "reproduce")),
    *sorted((ROOT / "docs" / "recipes").glob("*.md")),
]
BLOCK = re.compile(r"```.*?```", re.DOTALL)
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
SMALL_IMAGES = ROOT / "docs" / "decisions" / "small-images.md"
COMPUTED = [*READMES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "docs" / "speed.md", SMALL_IMAGES, *PAGES]
ALL = [*PAGES, ROOT / "docs" / "training.md"]
LINKING = [*READMES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", COMPUTED, ids=lambda page: page.name)
def test_the_page_holds_exactly_what_is_computed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the pages are made
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- computed: ") == text.count("<!-- end of computed part -->") > 0
    assert with_computed_parts(text) == text, "run: make results"


def test_a_part_that_nobody_computes_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown computed part 'recipies'; did you mean 'recipes'"):
        with_computed_parts("<!-- computed: recipies; do not edit -->\n<!-- end of computed part -->")


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """What a link may name within a page: its headings in small letters, without signs, spaces as dashes."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_command_is_one_that_the_parser_takes(page: Path) -> None:
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for words in re.findall(r"ceit train (--.*[^.])$", block.replace("\\\n", " "), re.MULTILINE):
            parse(shlex.split(words))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "reproduce.md"], ids=lambda page: page.name)
def test_every_study_that_a_command_names_exists(page: Path) -> None:
    commands = re.findall(r"(?:^|`)ceit reproduce ([a-z][^`\n]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) > 1
    for words in commands:
        reproduce.parse(shlex.split(words))


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_option_that_the_text_names_exists(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    of_others = {"multi_gpu", "nproc_per_node", "gpus_per_node", "cpus_per_task", "scale", "seeds", "dry_run"}
    of_others |= {"help", "help_all", "measures", "local_addr", "results"}
    known = {*known_keys(), *SWITCHES, *of_others, "recipe", "data", "output", "resume", "time_budget"}
    known |= {f"geometry.{field.name}" for field in fields(CeiTConfig)}
    named = {name.replace("-", "_") for name in re.findall(r"`[^`]*?--([a-z][\w.-]+)", text)}
    assert named <= known


def test_the_slurm_file_is_valid_and_queues_itself_again_until_the_run_is_done(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    script = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0]
    stand_ins = """
        scontrol() { if [ "$1" = requeue ]; then echo "requeue $2"; else echo node1; echo node2; fi; }
        srun() { echo "$@"; if [ -n "${ENDS:-}" ]; then mkdir -p "$OUTPUT"; touch "$OUTPUT/test.json"; fi; return 1; }
    """
    told = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[1-2]"}
    told |= {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "96"}

    def run(**more: str) -> list[str]:
        words = ["bash", "-c", stand_ins + script]
        return subprocess.run(words, env=told | more, capture_output=True, text=True, check=False).stdout.splitlines()

    command, again = run()
    assert command.startswith("--cpus-per-task=96 torchrun ")  # which srun does not take from sbatch
    assert "--rdzv-endpoint node1:29500 -m ceit train" in command
    parse(shlex.split(command.partition("ceit train ")[2]))
    assert again == "requeue 7"
    assert len(run(SLURM_RESTART_COUNT="20")) == 1
    assert len(run(ENDS="yes")) == 1

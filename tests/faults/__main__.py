"""The long part of these tests: ``make soak``. Many faults, drawn by chance, and a table of what became of them.

Needs Linux, where a user may have a small disk in memory of his own. Exit code 1 if anything was lost.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import ceit_cli
from ceit.atomic import write_text
from ceit.data.batches import workers
from ceit.inference.device import machine
from tests.faults.faults import FAULTS, Case, undisturbed
from tests.faults.journeys import HELPED, NAMES, journeys, serving

_IN_OWN_SPACE = "--in-a-space-of-its-own"
_DISK_MB = 64
COUNTS = {  # of trials; the two kinds of kills are those that count most
    "killed inside a write": 64,
    "killed at any moment": 153,
    "disk full": 48,
    "disk truly full": 64,
}
_OTHERS = 21
ONLY = {  # where it can happen
    "no memory in a step": ("train", "reproduce"),
    "data gone meanwhile": ("train", HELPED, "predict", "shard", "embed"),
    "a worker killed": (HELPED,),
    "a worker hangs": (HELPED,),
    "one of two processes killed": ("train",),
}
_COUNTED = ("killed inside a write", "disk full", "disk truly full")
_OFTEN = (*_COUNTED, "killed at any moment", "no memory in a step")
EXCEPT = {  # what the same code meets in shorter commands
    HELPED: (*_COUNTED, "two at once"),
    "reproduce": tuple(fault for fault in FAULTS if fault not in _OFTEN),
}


def trials(root: Path, faults: list[str], names: list[str], seed: int, count: int | None) -> list[dict[str, Any]]:
    """A row for every fault and journey."""
    known, rows = journeys(root), []
    with serving():
        quiet = {name: undisturbed(known[name], root) for name in names}
        for fault in faults:
            chance = random.Random(f"{seed} {fault}")
            suited = [name for name in names if name in ONLY.get(fault, names) and fault not in EXCEPT.get(name, ())]
            for name in suited:
                case = Case(known[name], quiet[name], root / "log", chance)
                number = -(-(count or COUNTS.get(fault, _OTHERS)) // len(suited))
                found = [FAULTS[fault](case) for _ in range(number)]
                wrong = [verdict.wrong for verdict in found if verdict.wrong]
                ended = Counter(verdict.ended for verdict in found)
                rows.append({"fault": fault, "command": name, "trials": number, "ended": dict(ended), "wrong": wrong})
                print(f"{fault:36} {name:32} {number:4} {dict(ended)}", *wrong[:3], sep="\n    ", flush=True)
    return rows


def main() -> None:
    """Asked for its options with --help."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="file for the table, as JSON")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--commands", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--trials", type=int, help="of each fault, instead of the usual numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(_IN_OWN_SPACE, action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    own_disk = "disk truly full" in asked.faults
    if own_disk and not asked.in_a_space_of_its_own:
        again = [sys.executable, "-m", "tests.faults", _IN_OWN_SPACE, *sys.argv[1:]]
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execvp("unshare", ["unshare", "--user", "--map-root-user", "--mount", *again])
    torch.set_num_threads(1)
    workers.HANGING_SECONDS = 10  # a command waits shorter than it would for images that do not come
    for verb in set(ceit_cli.VERBS) - {"list"}:
        importlib.import_module(f"ceit.cli.{verb}")
    root = Path(tempfile.mkdtemp(prefix="ceit-faults-"))
    try:
        out = root / "out"
        out.mkdir()
        if own_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none", out], check=True)
        os.environ["CEIT_DATA"] = str(out / "cache")
        rows = trials(root, asked.faults, asked.commands, asked.seed, asked.trials)
    finally:
        if own_disk:
            subprocess.run(["umount", root / "out"], check=False)
        shutil.rmtree(root)
    if asked.output:
        report = {"machine": machine(torch.device("cpu")), "seed": asked.seed, "rows": rows}
        write_text(asked.output, json.dumps(report, indent=1) + "\n")
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()

"""The long part of the fuzzing: python -m tests.fuzz --inputs 100000 --seed 1 --output studies/trust/fuzz.json.

A process of its own for each stretch of a target, so that one that ends there, or grows, is counted and named. Finished
stretches are kept in the output: the same command goes on where it was stopped. Another seed adds a round.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ceit.inference.device import machine
from tests.fuzz.mended import MENDED, READERS
from tests.fuzz.run import run_target
from tests.fuzz.targets import TARGETS

_ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_STRETCH = 5000
_MORE_MEMORY = 6 << 30
"""Of address space beside what a process has when it begins, so that no input takes the machine's."""


def main() -> None:
    """Run what is left of a round, or one stretch of it, and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("studies/trust/fuzz.json"))
    parser.add_argument("--coverage", type=int, metavar="N", help="measure it too, with about N inputs of each target")
    parser.add_argument("--only", nargs="*", help="targets, by name")
    parser.add_argument("--stretch", nargs=3, metavar=("TARGET", "FROM", "TO"), help="one, printed as JSON")
    options = parser.parse_args()
    if options.stretch:
        _one_stretch(options.seed, *options.stretch)
        return
    kept: dict[str, Any] = json.loads(options.output.read_bytes()) if options.output.exists() else {"rounds": {}}
    done = kept["rounds"].setdefault(f"seed {options.seed}", {"inputs": options.inputs, "targets": {}})["targets"]
    work = []
    for target in TARGETS:
        number = max(1, round(options.inputs * target.share / sum(one.share for one in TARGETS)))
        for start in range(0, number, _STRETCH):
            name = f"{start}-{min(number, start + _STRETCH)}"
            if name not in done.setdefault(target.name, {}) and target.name in (options.only or [target.name]):
                work.append((target.name, name))

    def run(item: tuple[str, str]) -> tuple[tuple[str, str], dict[str, Any]]:
        first, last = item[1].split("-")
        command = [sys.executable, "-m", "tests.fuzz", "--seed", str(options.seed), "--stretch", item[0], first, last]
        ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | _ALONE)
        lines = ended.stdout.splitlines()
        if ended.returncode or not lines:
            where = next((line for line in reversed(lines) if line.startswith("at ")), "before any")
            return item, {"ended": f"exit {ended.returncode} {where}: {ended.stderr[-1500:]}"}
        return item, json.loads(lines[-1])

    options.output.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.processes) as pool:
        for (name, stretch), counted in pool.map(run, work):
            done[name][stretch] = counted
            options.output.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"{name} {stretch}: {counted}", flush=True)
    if options.coverage:
        kept["coverage"] = _coverage(options.coverage)
    environment = machine(torch.device("cpu"))
    environment |= {name: version(name) for name in ("numpy", "pillow", "pyarrow", "safetensors")}
    kept |= {"targets": _rows(kept["rounds"]), "mended": MENDED, "machine": environment}
    options.output.write_text(json.dumps(kept, indent=1) + "\n")


def _rows(rounds: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each target, of all rounds together."""
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        found = [one for kept in rounds.values() for one in kept["targets"].get(target.name, {}).values()]
        counted = [one for one in found if "inputs" in one]
        sums = {key: sum(one[key] for one in counted) for key in ("inputs", "reached", "accepted", "refused")}
        faults = sum(len(numbers) for one in counted for numbers in one["faults"].values())
        rows.append(
            {"target": target.name, **sums, "faults": faults, "ended": len(found) - len(counted)}
            | {"cpu_seconds": round(sum(one["seconds"] for one in counted), 1)}
            | {"peak_mib": max((one["peak_bytes"] for one in counted), default=0) >> 20, "most_mib": target.most_mib}
        )
    return rows


def _coverage(inputs: int) -> dict[str, Any]:
    """Lines of the files that read which so many inputs of each target reach, in percent; in processes of their own."""
    with TemporaryDirectory() as name:
        file, python = Path(name) / "measured", [sys.executable, "-m", "coverage"]
        measured = [*python, "run", "--append", f"--data-file={file}", "--source=ceit", "--rcfile=/dev/null"]
        for target in TARGETS:
            words = ["--seed", "0", "--stretch", target.name, "0", str(max(5, inputs * target.share // 2000))]
            subprocess.run([*measured, "-m", "tests.fuzz", *words], check=True, capture_output=True)
        subprocess.run([*python, "json", f"--data-file={file}", "-o", f"{file}.json"], check=True, capture_output=True)
        files = json.loads(Path(f"{file}.json").read_bytes())["files"]
    named = ((path.rpartition("ceit/")[0], path, found["summary"]) for path, found in files.items())
    of = {path.removeprefix(before + "ceit/"): summary for before, path, summary in named}
    of = {name: of[name] for name in READERS}
    covered, lines = (sum(found[key] for found in of.values()) for key in ("covered_lines", "num_statements"))
    shares = {name: round(100 * found["covered_lines"] / found["num_statements"], 1) for name, found in of.items()}
    return {"inputs_a_target": inputs, "lines_percent": round(100 * covered / lines, 1), "files": shares}


def _one_stretch(seed: int, name: str, first: str, last: str) -> None:
    torch.set_num_threads(1)
    target = next(target for target in TARGETS if target.name == name)
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not what is counted
    target.seeds()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MORE_MEMORY, resource.RLIM_INFINITY))
    counted = run_target(target, seed, range(int(first), int(last)), lambda number: print(f"at {number}", file=out))
    print(json.dumps(asdict(counted)), file=out)


if __name__ == "__main__":
    main()

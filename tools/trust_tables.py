"""The tables of docs/trust.md, from the results under ``studies/trust``."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

TRUST = Path("studies/trust")
_ENDINGS = ("killed", "stopped", "one sentence", "unharmed", "badly")


def _read(name: str) -> Any:
    return json.loads((TRUST / f"{name}.json").read_text(encoding="utf-8"))


def faults_table() -> str:
    """What became of commands that met a fault; a row for each kind."""
    ended, wrong, trials = defaultdict[str, Counter[str]](Counter), Counter[str](), Counter[str]()
    for row in _read("faults")["rows"]:
        ended[row["fault"]].update(row["ended"])
        wrong[row["fault"]] += len(row["wrong"])
        trials[row["fault"]] += row["trials"]
    shown = [word for word in _ENDINGS if any(found[word] for found in ended.values())]
    lines = [f"| fault | trials | {' | '.join(shown)} | something lost |", f"|---|{'---:|' * (len(shown) + 2)}"]
    for fault, found in ended.items():
        cells = [trials[fault], *(found[word] for word in shown), wrong[fault]]
        lines.append(f"| {fault} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def fuzz_table() -> str:
    """What was read of damaged inputs; a row for each kind of reader."""
    found = _read("fuzz")
    lines = ["| what is read | inputs | reached the decoder | read | refused | faults mended |"]
    lines.append(f"|---|{'---:|' * 5}")
    counted = ("inputs", "reached", "accepted", "refused")
    rows = {row["target"]: [row[name] for name in counted] for row in found["targets"]}
    rows["all"] = [sum(row[name] for row in found["targets"]) for name in counted]
    mended = {name: len(sentences) for name, sentences in found["mended"].items()}
    mended["all"] = sum(mended.values())
    for name, counts in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {mended.get(name, 0)} |")
    return "\n".join(lines)


def mended_list() -> str:
    """The faults that fuzzing has found, each in a line."""
    return "\n".join(
        f"- {name}: {sentence}." for name, sentences in _read("fuzz")["mended"].items() for sentence in sentences
    )


def soak_table() -> str:
    """How memory, open files and pace stay over a long time."""
    found = _read("soak")
    lines = [
        "| of | done | memory, then | MiB a thousand (95 %) | in the last half | open files "
        "| pace, last tenth to first | CPU time each, last to first |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for unit in ("steps", "predictions", "requests"):
        row = found[unit]
        slope, low, high = (f"{value:+.2f}" for value in row["megabytes_a_thousand"])
        memory = f"{row['megabytes_when_warm']:.0f} MiB, {row['megabytes_at_the_end']:.0f} MiB"
        late = f"{row['megabytes_a_thousand_in_the_last_half'][0]:+.2f}"
        files = f"{row['open_files_when_warm']}, {row['open_files_at_the_end']}"
        pace = f"{row['last_pace_to_first']:.2f} | {row['last_cost_to_first']:.2f}"
        lines.append(f"| {unit} | {row[unit]:,} | {memory} | {slope} ({low} to {high}) | {late} | {files} | {pace} |")
    return "\n".join(lines)


def pythons_table() -> str:
    """Which Pythons and which oldest dependencies the tests ran with, and below it why a test failed."""
    table = ["| Python | dependencies | tests passed | failed |", "|---|---|---:|---:|"]
    remarks: list[str] = []
    rows = [(python, "newest", row) for python, row in _read("pythons").items()]
    rows += [(python, "oldest allowed", row) for python, row in _read("floors").items()]
    for python, which, row in rows:
        full = row.get("machine", {}).get("python", python)
        table.append(f"| {full} | {which} | {row.get('passed', '')} | {row.get('failed', '')} |")
        reasons: dict[str, list[str]] = {}
        for name, why in row.get("failures", {}).items():
            reasons.setdefault(why, []).append(f"`{name.split('::')[-1]}`")
        said = [row["seen"]] if "seen" in row else []
        said += [f"{', '.join(names)}: {why}" for why, names in reasons.items()]
        remarks += [f"- {full}, {which}: {words}." for words in said]
    return "\n".join([*table, "", *remarks])

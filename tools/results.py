"""The README's results table, made from the ``test.json`` of committed runs.

python -m tools.results README.md studies/demo
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from ceit.atomic import replace_files
from ceit.study.report import machine_words

BEGIN, END = "<!-- results: made by `make results`, do not edit -->", "<!-- end of results -->"
ORDER = ("cifar10", "fashion_mnist", "digits")  # other sets follow by name


def results_table(study: Path) -> str:
    """A Markdown table with a row per data set and model over all runs in ``study``.

    Raises: ValueError if there is no run, or if runs of one row differ in more than their seed.
    """
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(study.glob("*/test.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        report["config"] = {key: value for key, value in config.items() if key != "seed"}
        runs[report["data"], report["model"]].append(report)
    if not runs:
        raise ValueError(f"{study} holds no run with a test.json")
    lines = [
        "| data | model | parameters | epochs | seeds | test top-1, mean | worst | training, slowest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, model), reports in sorted(runs.items(), key=lambda item: (_rank(item[0][0]), item[0])):
        for key in ("epochs", "parameters", "images", "config"):
            if any(report[key] != reports[0][key] for report in reports):
                raise ValueError(f"the runs of {model} on {data} in {study} differ in {key}")
        if len({report["seed"] for report in reports}) != len(reports):
            raise ValueError(f"two runs of {model} on {data} in {study} have the same seed")
        accuracies = [report["top1_percent"] for report in reports]
        seconds = max(report["train_seconds"] for report in reports)
        lines.append(
            f"| {data} ({reports[0]['images']:,} test images) | `{model}` | {reports[0]['parameters'] / 1e6:.2f}M "
            f"| {reports[0]['epochs']} | {', '.join(str(report['seed']) for report in reports)} "
            f"| **{mean(accuracies):.2f} %** | {min(accuracies):.2f} % | {seconds / 60:.1f} min |"
        )
    machines = sorted(
        {
            f"{machine_words(report['machine'])}, {report['config']['precision']}"
            for reports in runs.values()
            for report in reports
        }
    )
    return "\n".join([*lines, "", f"Measured on: {'; '.join(machines)}."])


def with_table(text: str, table: str) -> str:
    """``text`` with what stands between the two marks replaced. Raises ValueError if a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text needs the marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _rank(data: str) -> int:
    return ORDER.index(data) if data in ORDER else len(ORDER)


if __name__ == "__main__":
    readme, study = map(Path, sys.argv[1:])
    replace_files({readme: with_table(readme.read_text(encoding="utf-8"), results_table(study)).encode()})

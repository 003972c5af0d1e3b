"""Show training runs side by side: their accuracy, and the options in which they differ.

What else lies beside them is left out, and named.

usage: ceit compare RUN ... [options]

examples:
  ceit compare runs/*
  ceit compare runs/photos runs/photos2 --plot accuracy.png
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ceit.cli._parser import JSON, Parser, adding_to, require_output
from ceit.cli._terminal import figures, print_whole
from ceit.json_file import as_written, is_number, parse_json, read_json
from ceit.paths import expanded, matching
from ceit.train.config import TrainConfig
from ceit.train.run_directory import MAY_CHANGE, lines_of, planned_epochs, saved_config

_WIDTH = 80  # from which on all numbers fit
_NO_OPTIONS = ("found", "mean", "std", "steps")


def main(arguments: list[str]) -> None:
    """Print what the runs found and the options in which they differ; draw their curves if asked.

    Raises: ValueError if no directory is a run, or with --plot for runs of which none has finished an epoch.
    """
    options = _parsed(arguments)
    paths = [expanded(path) for name in options.runs for path in matching(name)]
    runs = [read_run(run) for run in _runs_among(paths)]
    try:
        if options.json:
            print(json.dumps({"runs": runs, "different": differing_options(runs)}))
        else:
            print_tables(runs, Console(highlight=False))
    finally:
        if options.plot:
            from ceit.plots import draw_validation

            curves = [run["curve"] for run in runs]
            draw_validation(dict(zip(_names(runs), curves, strict=True)), options.plot)


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("runs", "run directory of ceit train", nargs="+", metavar="RUN")
    add("--plot", "draw validation accuracy over epochs, as .png or .svg", type=expanded, metavar="FILE.png")
    add("--json", JSON, action="store_true")
    options = parser.parse_args(arguments)
    if options.plot:
        require_output(parser, "--plot", options.plot, (".png", ".svg"), new=False)
    return options


def _runs_among(paths: Sequence[Path]) -> list[Path]:
    """The run directories; what else lies beside them, as where a wildcard named all, is told on stderr and left out.

    Raises: ValueError for a path that is not there, or if none is a run.
    """
    others = [path for path in paths if not (path / "config.yaml").is_file()]
    for path in others:
        if len(others) == len(paths) or not path.exists():
            _require_run(path)
    if others:
        print(f"left out, as they are no run directories: {', '.join(map(str, others))}", file=sys.stderr)
    return [path for path in paths if path not in others]


def read_run(run: Path) -> dict[str, Any]:
    """What a run directory tells: options, curve, and the test report if it is finished.

    Raises: ValueError if it is no run.
    """
    _require_run(run)
    test, report = run / "test.json", None
    if test.is_file():
        report = read_json(test)
        numbers = ("parameters", "top1_percent", "loss")
        if not isinstance(report, dict) or not all(is_number(report.get(name)) for name in numbers):
            raise ValueError(f"{test} is not the report of a run")
    with as_written(run, "put back the metrics.jsonl and test.json that it wrote"):
        return _told(run, _whole_lines(run / "metrics.jsonl"), report)


def _require_run(run: Path) -> None:
    """Raises: ValueError if it is no run, naming where runs lie below it, as those of a sweep or a study do."""
    if not (run / "config.yaml").is_file():
        below = next((path for depth in ("*", "*/*") for path in run.glob(f"{depth}/config.yaml")), None)
        fix = "" if below is None else f"; runs lie in {below.parent.parent / '*'}{os.sep}"
        raise ValueError(f"{run} is no run directory: it holds no config.yaml{fix}")


def _told(run: Path, lines: list[dict[str, Any]], report: dict[str, Any] | None) -> dict[str, Any]:
    epochs, options = [line for line in lines if line["event"] == "epoch"], saved_config(run)
    return {
        "run": str(run),
        "options": options,
        "epochs": planned_epochs(options, lines),
        "curve": [{"epoch": line["epoch"], "validation_top1_percent": _best(line)} for line in epochs],
        "train_seconds": float(epochs[-1]["elapsed_seconds"]) if epochs else 0.0,
        "parameters": report and report["parameters"],
        "best_validation_top1_percent": report and report["best"]["validation_top1_percent"],
        "test_top1_percent": report and report["top1_percent"],
        "test_loss": report and report["loss"],
    }


def _best(epoch: dict[str, Any]) -> float | None:
    return max((kind["top1_percent"] for kind in epoch["validation"].values() if kind is not None), default=None)


def differing_options(runs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The options that are not the same in all runs, dotted, with the value in each run.

    A run by an earlier version did as the defaults of later options do, but for those of the machine.
    """
    defaults = {key: value for key, value in TrainConfig().as_dict().items() if key not in MAY_CHANGE}
    defaults |= {"lr_base_size": None, "lr_scaling": "linear"}  # a run tells what they came to
    flat = [_flat(defaults) | _flat(run["options"]) for run in runs]
    names = dict.fromkeys(name for options in flat for name in options if name not in _NO_OPTIONS)
    values = {name: [options.get(name) for options in flat] for name in names}
    return {name: of_runs for name, of_runs in values.items() if any(value != of_runs[0] for value in of_runs)}


def _names(runs: list[dict[str, Any]]) -> list[str]:
    """The last parts of their paths, or the whole paths where those do not tell the runs apart."""
    names = [Path(run["run"]).resolve().name for run in runs]
    return names if len(set(names)) == len({run["run"] for run in runs}) else [run["run"] for run in runs]


def print_tables(runs: list[dict[str, Any]], console: Console) -> None:
    """A row for every run, then a row for every option that differs; a narrow terminal cuts no number."""
    show = console.print if console.width >= _WIDTH else partial(print_whole, console)
    names = _names(runs)
    table = figures(["run"], ["size", "epochs", "validation", "test top-1", "test loss", "minutes"])
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for name, run in zip(names, runs, strict=True):
        last = run["curve"][-1]["validation_top1_percent"] if run["curve"] else None
        validation = run["best_validation_top1_percent"] if run["test_loss"] is not None else last
        table.add_row(
            Text(name),
            "-" if run["parameters"] is None else f"{run['parameters'] / 1e6:.2f}M",
            f"{len(run['curve'])} of {run['epochs']}",
            "-" if validation is None else f"{validation:.2f} %",
            "-" if run["test_top1_percent"] is None else f"{run['test_top1_percent']:.2f} %",
            "-" if run["test_loss"] is None else f"{run['test_loss']:.4f}",
            f"{run['train_seconds'] / 60:.1f}",
        )
    show(table)
    options = differing_options(runs)
    if len({run["options"].get("found") for run in runs}) > 1:
        console.print("\nthe runs saw different images")
    if len(runs) > 1 and not options:
        console.print("\nno option differs")
    if options:
        table = figures(["option"], [])
        for name in names:
            table.add_column(Text(name), overflow="fold")
        for option, values in options.items():
            table.add_row(option, *("-" if value is None else Text(str(value)) for value in values))
        console.print()
        show(table)


def _whole_lines(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a log, but for a last one that a crash has cut in two."""
    lines, whole = lines_of(metrics), list[dict[str, Any]]()
    for number, line in enumerate(lines, start=1):
        try:
            whole.append(parse_json(f"{metrics}, line {number}", line))
        except ValueError:
            if number < len(lines):
                raise
    return whole


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

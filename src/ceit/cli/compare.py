"""``ceit compare``: training runs side by side."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.paths import expanded
from ceit.train.run_directory import lines_of, saved_config

_NO_OPTIONS = ("found", "img_size", "in_chans", "steps")


def main(arguments: list[str]) -> None:
    """Print what the runs found and the options in which they differ; draw their curves if asked.

    Raises: ValueError for a directory that is no run, or with --plot for runs of which none has finished an epoch.
    """
    parser = argparse.ArgumentParser(
        prog="ceit compare", description="Lay training runs side by side: results, and the options that differ."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=expanded, help="run directories of ceit train")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--plot", type=expanded, metavar="FILE.png", help="draw validation accuracy over epochs, or .svg"
    )
    options = parser.parse_args(arguments)
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        parser.error(f"--plot {options.plot} must end in .png or .svg")
    found = [read_run(run) for run in options.runs]
    if options.plot:
        from ceit.plots import draw_validation

        draw_validation({run["run"]: run["curve"] for run in found}, options.plot)
    if options.json:
        print(json.dumps({"runs": found, "different": different(found)}))
    else:
        print_tables(found, Console(highlight=False))


def read_run(run: Path) -> dict[str, Any]:
    """What a run directory tells: options, curve, and the test report if it is finished.

    Raises: ValueError if it is no run.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run directory: it holds no config.yaml")
    epochs = [line for line in _whole_lines(run / "metrics.jsonl") if line["event"] == "epoch"]
    curve = []
    for line in epochs:
        accuracies = [kind["top1_percent"] for kind in line["validation"].values() if kind is not None]
        curve.append({"epoch": line["epoch"], "validation_top1_percent": max(accuracies, default=None)})
    test = run / "test.json"
    report = json.loads(test.read_text(encoding="utf-8")) if test.is_file() else None
    if report is not None and not {"parameters", "best", "top1_percent", "loss"} <= report.keys():
        raise ValueError(f"{test} is not the report of a run")
    return {
        "run": str(run),
        "options": saved_config(run),
        "curve": curve,
        "train_seconds": epochs[-1]["elapsed_seconds"] if epochs else 0.0,
        "parameters": report and report["parameters"],
        "best_validation_top1_percent": report and report["best"]["validation_top1_percent"],
        "test_top1_percent": report and report["top1_percent"],
        "test_loss": report and report["loss"],
    }


def different(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The options that are not the same in all runs, dotted, with the value of each."""
    flat = [_flat(run["options"]) for run in found]
    keys = dict.fromkeys(key for options in flat for key in options if key not in _NO_OPTIONS)
    values = {key: [options.get(key) for options in flat] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def print_tables(found: list[dict[str, Any]], console: Console) -> None:
    """A row for every run, then a row for every option that differs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    names = _short([run["run"] for run in found])
    table.add_column("run", overflow="fold")
    for column in ("size", "epochs", "validation", "test top-1", "test loss", "minutes"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, run in zip(names, found, strict=True):
        last = run["curve"][-1]["validation_top1_percent"] if run["curve"] else None
        validation = run["best_validation_top1_percent"] if run["test_loss"] is not None else last
        table.add_row(
            Text(name),
            "-" if run["parameters"] is None else f"{run['parameters'] / 1e6:.2f}M",
            f"{len(run['curve'])} of {run['options']['epochs']}",
            _percent(validation),
            _percent(run["test_top1_percent"]),
            "-" if run["test_loss"] is None else f"{run['test_loss']:.4f}",
            f"{run['train_seconds'] / 60:.1f}",
        )
    console.print(table)
    options = different(found)
    if len(found) > 1 and not options:
        console.print("\nno option differs")
    if options:
        console.print()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("option", no_wrap=True)
        for name in names:
            table.add_column(Text(name), overflow="fold")
        for key, values in options.items():
            table.add_row(key, *("-" if value is None else Text(str(value)) for value in values))
        console.print(table)


def _whole_lines(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a log, but for a last one that a crash has cut in two."""
    lines = lines_of(metrics)
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{metrics}, line {number} is not JSON: {error}") from error
            lines = lines[:-1]
    return [json.loads(line) for line in lines]


def _short(runs: list[str]) -> list[str]:
    """The directories' own names, if they tell the runs apart."""
    own = [Path(run).resolve().name for run in runs]
    return own if len(set(own)) == len(set(runs)) else runs


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"

"""``ceit benchmark``: models side by side on this machine, in one interleaved run."""

import argparse
import importlib
import importlib.util
import json
from collections.abc import Iterator
from typing import Any, get_args

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.atomic import replace_files
from ceit.bench.arms import OPPONENTS, Arm, ModelSpec, require_known
from ceit.bench.backends import BACKENDS, PLAIN, PRECISIONS_OF, TRAINABLE
from ceit.bench.chart import draw_bars
from ceit.bench.measure import MEASURES, Settings, measure
from ceit.bench.processes import Memory
from ceit.data.threads import usable_cores
from ceit.paths import expanded

PACKAGE_OF = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


def main(arguments: list[str]) -> None:
    """Measure, print the tables, and write FILE.json after every round.

    Ends with exit code 1 if an arm could not be measured: its sentence stands in the table and in the file.
    Raises: ValueError for a model that is not known or a file that is not there.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    models = _models(parser, options)
    arms = _arms(parser, options, models)
    settings = _settings(parser, options)
    if options.chart is not None:
        importlib.import_module("matplotlib")  # or it would be missed when all is measured
    console, messages = Console(), Console(stderr=True, highlight=False)

    def save(result: dict[str, Any]) -> None:
        replace_files({options.output: (json.dumps(result, indent=1) + "\n").encode()})

    def say(text: str) -> None:
        messages.print(text, style="dim", soft_wrap=True)

    result = measure(arms, settings, say, save)
    print_result(result, console)
    if options.chart is not None:
        draw_bars(result, options.chart)
    failed = [row for row in result["arms"] if row["errors"]]
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(arms)} arms could not be measured, see the table")


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="ceit benchmark",
        description="Measure models side by side on this machine: interleaved rounds, each arm in its own process, "
        "medians with quartiles, and percent of the matrix products' peak measured in the same run.",
        epilog=f"precisions: {'; '.join(f'{name}: {_words(PRECISIONS_OF[name])}' for name in BACKENDS)}",
    )
    models = parser.add_argument_group("what to measure")
    models.add_argument(
        "--models", nargs="+", default=[], metavar="M", help="names of ceit and timm; NAME,FIELD=VALUE sets a field"
    )
    models.add_argument("--checkpoint", metavar="RUN|FILE", help="a trained model, measured too")
    models.add_argument(
        "--against", nargs="+", action="extend", default=[], metavar="FILE.py:factory", help="any module that it makes"
    )
    models.add_argument(
        "--against-backends",
        nargs="+",
        choices=BACKENDS,
        default=[PLAIN],
        metavar="B",
        help=f"of the modules from files; default: {PLAIN}, as they are",
    )
    models.add_argument("--opponents", action="store_true", help=f"adds {_words(OPPONENTS)}")
    models.add_argument(
        "--backends", nargs="+", choices=BACKENDS, metavar="B", help=f"of {_words(BACKENDS)}; default: all but {PLAIN}"
    )
    models.add_argument("--precisions", nargs="+", metavar="P", help="default: float32 bf16")
    models.add_argument("--img-size", type=int, nargs="+", metavar=("H", "W"), help="in pixels: a side, or two")
    models.add_argument(
        "--measures",
        nargs="+",
        choices=MEASURES,
        default=["inference"],
        metavar="M",
        help="inference (latency, throughput), train (a step), deployment (start-up, memory, size); default: inference",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--batch-sizes", nargs="+", type=_positive, default=[1, 8, 16, 64], metavar="N")
    how.add_argument("--train-batch-size", type=_positive, metavar="N", help="default: 16, of small images 128")
    how.add_argument("--rounds", type=_positive, default=5, metavar="N", help="default: %(default)s")
    how.add_argument("--seconds", type=float, default=1.0, metavar="S", help="least of a turn; default: %(default)s")
    how.add_argument("--threads", type=_positive, default=usable_cores(), metavar="N", help="default: all, %(default)s")
    how.add_argument(
        "--freed-memory",
        choices=get_args(Memory),
        metavar="M",
        help=f"in all processes: {', '.join(get_args(Memory))}; without it the package's backends keep it, and {PLAIN} "
        "leaves it to the allocator (default)",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output", type=expanded, required=True, metavar="FILE.json", help="everything, written each round"
    )
    results.add_argument("--chart", type=expanded, metavar="FILE.png", help="bars of images a second")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def _models(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[ModelSpec]:
    size = options.img_size
    if size is not None and (len(size) > 2 or min(size) < 1):
        parser.error(f"--img-size {' '.join(map(str, size))} must be one side or height and width, in pixels")
    img_size = None if size is None else size[0] if len(size) == 1 else tuple(size)
    checkpoints = [options.checkpoint] if options.checkpoint else []
    names = [*options.models, *(name for name in OPPONENTS if options.opponents and name not in options.models)]
    models = [ModelSpec(text, "factory", img_size) for text in options.against]
    models += [ModelSpec(text, "checkpoint", img_size) for text in checkpoints]
    models += [ModelSpec(text, "name", img_size) for text in names]
    if not models:
        parser.error("nothing to measure: give --models, --checkpoint, --against or --opponents")
    for model in models:
        require_known(model)
    return models


def _arms(parser: argparse.ArgumentParser, options: argparse.Namespace, models: list[ModelSpec]) -> list[Arm]:
    """Every model on every backend in every precision that the backend has, as far as they were asked for.

    A backend without any of the precisions, or a precision that no backend has, is wrong usage.
    """
    precisions = options.precisions or ["float32", "bf16"]
    backends = options.backends or [
        name
        for name in BACKENDS
        if name != PLAIN and (name not in PACKAGE_OF or importlib.util.find_spec(PACKAGE_OF[name]) is not None)
    ]
    allowed = {name: tuple(PRECISIONS_OF[name]) for name in backends}
    known = dict.fromkeys(precision for name in BACKENDS for precision in PRECISIONS_OF[name])
    for precision in precisions:
        if precision not in known:
            parser.error(f"--precisions {precision}: choose from {_words(known)}")
        if not any(precision in of_backend for of_backend in allowed.values()):
            able = [name for name in BACKENDS if precision in PRECISIONS_OF[name]]
            parser.error(f"--precisions {precision} is not to be had with {_words(backends)}: add {_words(able)}")
    if options.backends:
        for name, of_backend in allowed.items():
            if not set(precisions) & set(of_backend):
                parser.error(f"--backends {name} has none of {_words(precisions)}: it has {_words(of_backend)}")
    if set(options.measures) == {"train"} and not any(set(precisions) & set(TRAINABLE.get(b, ())) for b in backends):
        parser.error(f"--measures train needs a backend of {_words(TRAINABLE)} in float32 or bf16")
    return [
        Arm(model, name, precision)
        for model in models
        for name in (options.against_backends if model.kind == "factory" else backends)
        for precision in precisions
        if precision in PRECISIONS_OF[name]
    ]


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    if options.seconds <= 0:
        parser.error(f"--seconds {options.seconds} must be more than 0")
    return Settings(
        threads=options.threads,
        measures=tuple(name for name in MEASURES if name in options.measures),
        batch_sizes=tuple(sorted(set(options.batch_sizes))),
        train_batch_size=options.train_batch_size,
        rounds=options.rounds,
        turn_seconds=options.seconds,
        freed_memory=options.freed_memory,
    )


def print_result(result: dict[str, Any], console: Console) -> None:
    """The tables, one for each kind of figure; no number is cut, however narrow the terminal."""
    machine, settings = result["machine"], result["settings"]
    versions = {"torch": machine["torch"], **machine["packages"]}
    peaks = {name: gflops for name, gflops in result["best_peak_gflops"].items() if gflops}
    console.print(
        Text.assemble(
            "\n",
            (f"{settings['threads']} of {machine['cores']} cores, {machine['processor']}", "bold"),
            "\n",
            ", ".join(f"{name} {number}" for name, number in versions.items() if number),
        )
    )
    if peaks:
        console.print("peak of matrix products: " + ", ".join(f"{k} {v:,.0f} GFLOP/s" for k, v in peaks.items()))
    for table in _tables(result):
        table.width = console.measure(table, options=console.options.update(width=1000)).maximum
        console.print(table, crop=False)
    notes = f"x: times as fast as {result['baseline']}; medians of {settings['rounds']} interleaved rounds"
    console.print(Text(f"{notes}; of peak: of the products' in the arm's precision, int8 for int8", style="dim"))
    for row in result["arms"]:
        for error in row["errors"]:
            console.print(Text(f"{row['model']} {row['backend']} {row['precision']}: {error}", style="red"))


def _tables(result: dict[str, Any]) -> Iterator[Table]:
    rows = result["arms"]
    batches = sorted({batch for row in rows for batch, found in row["inference"].items() if _done(found)}, key=int)
    if batches:
        head = [f"{'batch ' if i == 0 else ''}{batch}" for i, batch in enumerate(batches)]
        yield _table(
            "Throughput, images/s", rows, [(h, _rate("inference", b)) for h, b in zip(head, batches, strict=True)]
        )
        columns = [
            (h, _field("inference", b, "percent_of_peak", "{:.0f}%")) for h, b in zip(head, batches, strict=True)
        ]
        yield _table("Of peak, for the multiply-accumulates executed", rows, columns)
        names = ("median", "p25", "p75", "p90", "p99")
        yield _table(f"Latency at batch {batches[0]}, ms", rows, [(name, _latency(batches[0], name)) for name in names])
    if any(_done(found) for row in rows for found in row["train"].values()):
        yield _table("Training step", rows, _TRAINING)
    if any(row["deployment"].get("start_seconds") for row in rows):
        memory = sorted({batch for row in rows for batch in row["deployment"].get("memory", {})}, key=int)
        columns = [("start, s", _start), ("files, MB", _size)]
        columns += [(f"{'MiB, batch ' if i == 0 else ''}{batch}", _memory(batch)) for i, batch in enumerate(memory)]
        yield _table("A fresh process: seconds to the first logits, files, memory at its highest", rows, columns)


def _table(title: str, rows: list[dict[str, Any]], columns: list[tuple[str, Any]]) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.show_edge = table.pad_edge = False
    table.add_column("", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    model = None
    for row in rows:
        cells = [cell(row) for _, cell in columns]
        if not any(cells):
            if not row["errors"] or not title.startswith("Throughput"):
                continue
            cells[0] = "failed"
        if row["model"] != model:
            model = row["model"]
            table.add_row(model, style="bold")
        table.add_row(f" {row['backend']} {row['precision']}", *(cell or "-" for cell in cells))
    return table


def _done(found: dict[str, Any]) -> bool:
    return "images_per_second" in found


def _rate(kind: str, batch: str) -> Any:
    def cell(row: dict[str, Any]) -> str:
        found = row[kind].get(batch, {})
        if not _done(found):
            return ""
        times = found["times_baseline"]
        return f"{_short(found['images_per_second'])}" + (f" {times['median']:.2f}x" if times else "")

    return cell


def _field(kind: str, batch: str, name: str, form: str) -> Any:
    def cell(row: dict[str, Any]) -> str:
        value = row[kind].get(batch, {}).get(name)
        return "" if value is None else form.format(value)

    return cell


def _latency(batch: str, name: str) -> Any:
    def cell(row: dict[str, Any]) -> str:
        value = row["inference"].get(batch, {}).get("milliseconds", {}).get(name)
        return "" if value is None else _short(value)

    return cell


def _of_step(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return next(((batch, found) for batch, found in row["train"].items() if _done(found)), ("", {}))


def _training_rate(row: dict[str, Any]) -> str:
    batch, _ = _of_step(row)
    return _rate("train", batch)(row)


def _training_peak(row: dict[str, Any]) -> str:
    value = _of_step(row)[1].get("percent_of_peak")
    return "" if value is None else f"{value:.0f}%"


def _training_memory(row: dict[str, Any]) -> str:
    value = _of_step(row)[1].get("peak_bytes")
    return "" if value is None else f"{value / 2**20:,.0f}"


_TRAINING = [
    ("batch", lambda row: _of_step(row)[0]),
    ("images/s", _training_rate),
    ("of peak", _training_peak),
    ("MiB", _training_memory),
]


def _start(row: dict[str, Any]) -> str:
    value = row["deployment"].get("median_start_seconds")
    return "" if value is None else f"{value:.2f}"


def _size(row: dict[str, Any]) -> str:
    value = row["deployment"].get("bytes")
    return "" if value is None else f"{value / 1e6:.1f}"


def _memory(batch: str) -> Any:
    def cell(row: dict[str, Any]) -> str:
        value = row["deployment"].get("memory", {}).get(batch, {}).get("peak_bytes")
        return "" if value is None else f"{value / 2**20:,.0f}"

    return cell


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _words(names: Any) -> str:
    return " ".join(names)

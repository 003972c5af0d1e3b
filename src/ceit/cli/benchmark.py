"""Measure how fast models are on this machine, side by side: latency, throughput, training, memory.

Every model takes its turn in every round, in a process of its own. The tables have medians, and percent of the peak of
matrix products that was measured in between.

usage: ceit benchmark --models NAME ... --output FILE.json [options]

examples:
  ceit benchmark --models ceit_tiny_patch16_224 --output speed.json
  ceit benchmark --checkpoint runs/photos --opponents --output speed.json
  ceit benchmark --measures loader --data photos --output reading.json
"""

import argparse
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.atomic import write_text
from ceit.bench.arms import OPPONENTS, Arm, ModelSpec, require_known
from ceit.bench.backends import BACKENDS, PLAIN, PRECISIONS_OF, TRAINABLE
from ceit.bench.chart import draw_bars, has_bars
from ceit.bench.loading import images_in, measure_loader
from ceit.bench.measure import MEASURES, Settings, measure
from ceit.bench.processes import Memory
from ceit.cli._parser import Parser, adding_to, positive, require_output
from ceit.cli._terminal import figures, print_whole
from ceit.data.sources.listing import LARGE_SIZE
from ceit.machine import usable_cores
from ceit.paths import expanded
from ceit.terminal import stderr_console

_LOADER = "loader"  # a measure that is no model's
_MOST_SECONDS = 600.0  # of a turn; a process that does not answer for twice as long is given up
_MODELS = ("models", "checkpoint", "against", "opponents")  # options that name some
_percent = "{:.0f}%".format
_PACKAGES = ("onnxruntime", "openvino")  # backends that are packages of the same name


class Column(NamedTuple):
    """A figure of every row of the result: its place in the row, keys with dots between them, and how it is written."""

    heading: str
    form: Callable[[Any], str]
    place: str

    def cell(self, row: dict[str, Any]) -> str:
        """The figure of a row; empty if the row has none."""
        value: Any = row
        for key in self.place.split("."):
            value = (value or {}).get(key)
        return "" if value is None else self.form(value)


def main(arguments: list[str]) -> None:
    """Measure, print the tables, and write FILE.json after every round.

    Ends with exit code 1 if an arm could not be measured: its sentence stands in the table and in the file.
    Raises: ValueError for a model that is not known or a file that is not there.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    reads_only = set(options.measures) == {_LOADER}
    if (_LOADER in options.measures) != (options.data is not None):
        parser.error(f"--measures {_LOADER} and --data FOLDER go together")
    if options.chart is not None and not {"inference", "train"} & set(options.measures):
        parser.error("--chart draws models: give --measures inference or train as well")
    if reads_only and (models := [name for name in _MODELS if getattr(options, name)]):
        fix = f"leave out --{models[0]}, or give --measures inference as well"
        parser.error(f"--measures {_LOADER} alone measures no model: {fix}")
    arms = [] if reads_only else _arms(parser, options, _models(parser, options))
    if not 0 < options.seconds <= _MOST_SECONDS:
        parser.error(f"--seconds {options.seconds} must be more than 0, and {_MOST_SECONDS} at most")
    settings = Settings(
        threads=options.threads,
        measures=tuple(name for name in MEASURES if name in options.measures),
        batch_sizes=tuple(sorted(set(options.batch_sizes))),
        train_batch_size=options.train_batch_size,
        rounds=options.rounds,
        turn_seconds=options.seconds,
        freed_memory=options.freed_memory,
    )
    require_output(parser, "--output", options.output, (".json",), new=False)
    if options.chart is not None:
        require_output(parser, "--chart", options.chart, (".png", ".svg"), new=False)
        importlib.import_module("matplotlib")  # or it would be missed when all is measured

    paths = None if options.data is None else images_in(options.data)

    def save(result: dict[str, Any]) -> None:
        is_complete = result["complete"] and (paths is None or "loader" in result)
        write_text(options.output, json.dumps(result | {"complete": is_complete}, indent=1) + "\n")

    say = partial(stderr_console().print, style="dim", highlight=False, markup=False, soft_wrap=True)
    result = measure(arms, settings, say, save)
    if paths is not None:
        say(f"reading {options.data}")
        result["loader"] = measure_loader(paths, _size(parser, options) or LARGE_SIZE, options.rounds)
        save(result)
    print_result(result, Console())
    failed = [row for row in result["arms"] if row["errors"]]
    if options.chart is not None and (has_bars(result) or not failed):
        draw_bars(result, options.chart)
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(arms)} arms could not be measured, see the table")


def make_parser() -> Parser:
    """The options of the command."""
    precisions = "".join(f"\n  {name:<13}{' '.join(PRECISIONS_OF[name])}" for name in BACKENDS)
    parser = Parser(__doc__, notes=f"backends, and the precisions that each has:{precisions}")
    add = adding_to(parser.add_argument_group("what is measured"))
    add(
        "--models",
        "models of ceit and timm; NAME,FIELD=VALUE sets a field",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
    )
    add("--checkpoint", "a trained model: a run directory or a file of weights", metavar="RUN|FILE")
    add("--opponents", f"for comparison, models of timm: {', '.join(OPPONENTS)}", action="store_true")
    text = "any module: what a function in a file makes"
    add("--against", text, nargs="+", action="extend", default=[], metavar="FILE.py:function")
    text = f"which kinds of figures: {', '.join(MEASURES)} (start-up, memory, size), {_LOADER} (reading --data)"
    add("--measures", text, nargs="+", choices=(*MEASURES, _LOADER), default=["inference"], metavar="KIND")
    add("--data", f"images to read, for --measures {_LOADER}, which needs no model", type=expanded, metavar="FOLDER")
    text = f"what computes the models; see below (default: all that are installed, but {PLAIN})"
    add("--backends", text, nargs="+", action="extend", choices=BACKENDS, metavar="NAME")
    text = "what computes the modules of --against"
    add("--against-backends", text, nargs="+", choices=BACKENDS, default=[PLAIN], metavar="NAME")
    add("--precisions", "number formats; see below (default: float32 bf16)", nargs="+", action="extend", metavar="NAME")
    add("--img-size", "a side of the images, or height and width", type=int, nargs="+", metavar="PX")
    add = adding_to(parser.add_argument_group("how it is measured"))
    add("--batch-sizes", "images per batch", nargs="+", type=positive, default=[1, 8, 16, 64], metavar="N")
    add("--train-batch-size", "images per training step (default: 16, small ones 128)", type=positive, metavar="N")
    add("--rounds", "turns of every model; more tell smaller differences", type=positive, default=5, metavar="N")
    add("--seconds", "how long a turn lasts, at least", type=float, default=1.0, metavar="S")
    add("--threads", "cores that compute one model", type=positive, default=usable_cores(), metavar="N")
    kinds = get_args(Memory)
    text = f"(default: the package's backends keep it, {PLAIN} leaves it to the allocator)"
    add("--freed-memory", f"what becomes of freed memory: {', '.join(kinds)} {text}", choices=kinds, metavar="HOW")
    add = adding_to(parser.add_argument_group("results"))
    add("--output", "all that was measured, after every round", type=expanded, required=True, metavar="FILE.json")
    add("--chart", "draw images per second as bars", type=expanded, metavar="FILE.png")
    return parser


def _size(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[int, int] | None:
    """Height and width that were asked for, if any were."""
    size = options.img_size
    if size is not None and (len(size) > 2 or min(size) < 1):
        parser.error(f"--img-size {' '.join(map(str, size))} must be one side or height and width, in pixels")
    return None if size is None else (size[0], size[-1])


def _models(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[ModelSpec]:
    size = _size(parser, options)
    img_size = None if size is None else size[0] if len(options.img_size) == 1 else size
    names = [*options.models, *(name for name in OPPONENTS if options.opponents and name not in options.models)]
    models = [ModelSpec(text, "factory", img_size) for text in options.against]
    models += [ModelSpec(options.checkpoint, "checkpoint", img_size)] if options.checkpoint else []
    models += [ModelSpec(text, "name", img_size) for text in names]
    if not models:
        parser.error("nothing to measure: give --models, --checkpoint, --against or --opponents")
    for model in models:
        require_known(model)
    return models


def _arms(parser: argparse.ArgumentParser, options: argparse.Namespace, models: list[ModelSpec]) -> list[Arm]:
    """Every model on every backend in every precision that the backend has, as far as they were asked for.

    A backend without any of the precisions, a precision that no backend has, or a model that no backend of its own can
    train, if that alone is measured, is wrong usage.
    """
    precisions = options.precisions or ["float32", "bf16"]
    installed = [name for name in BACKENDS if name not in _PACKAGES or importlib.util.find_spec(name) is not None]
    usual = options.backends or [name for name in installed if name != PLAIN]
    backends = [options.against_backends if model.kind == "factory" else usual for model in models]
    used = list(dict.fromkeys(chain.from_iterable(backends)))
    for precision in options.precisions or ():
        able = [name for name in BACKENDS if precision in PRECISIONS_OF[name]]
        if not able:
            known = dict.fromkeys(precision for name in BACKENDS for precision in PRECISIONS_OF[name])
            parser.error(f"--precisions {precision}: choose from {' '.join(known)}")
        if not set(able) & set(used):
            parser.error(f"--precisions {precision} is not to be had with {' '.join(used)}: add {' '.join(able)}")
    typed = [("--backends", name) for name in options.backends or ()]
    typed += [("--against-backends", name) for name in options.against_backends if options.against]
    for option, name in typed:
        if not set(precisions) & set(PRECISIONS_OF[name]):
            parser.error(f"{option} {name} has none of {' '.join(precisions)}: it has {' '.join(PRECISIONS_OF[name])}")
    trains_alone = set(options.measures) - {_LOADER} == {"train"}
    for model, names in zip(models, backends, strict=True):
        if trains_alone and not any(set(precisions) & set(TRAINABLE.get(name, ())) for name in names):
            option = "--against-backends" if model.kind == "factory" else "--backends"
            fix = f"--measures train needs a backend of {' '.join(TRAINABLE)} in float32 or bf16"
            parser.error(f"{option} {' '.join(names)}: {fix}")
    return [
        Arm(model, name, precision)
        for model, names in zip(models, backends, strict=True)
        for name in names
        for precision in precisions
        if precision in PRECISIONS_OF[name]
    ]


def print_result(result: dict[str, Any], console: Console) -> None:
    """The tables, one for each kind of figure; no number is cut, however narrow the terminal."""
    machine, settings = result["machine"], result["settings"]
    versions = {"torch": machine["torch"], **machine["packages"]}
    peaks = {name: gflops for name, gflops in result["best_peak_gflops"].items() if gflops}
    heading = Text(f"\n{settings['threads']} of {machine['cores']} cores, {machine['processor']}\n", "bold")
    installed = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    console.print(Text.assemble(heading, installed))
    if peaks:
        console.print("peak of matrix products: " + ", ".join(f"{k} {v:,.0f} GFLOP/s" for k, v in peaks.items()))
    for table in _tables(result):
        print_whole(console, table)
    if "loader" in result:
        print_whole(console, _loader_table(result["loader"]))
    if not result["arms"]:
        return
    notes = f"x: times as fast as {result['baseline']}; medians of {settings['rounds']} interleaved rounds"
    console.print(Text(f"{notes}; of peak: of the products' in the arm's precision, int8 for int8", style="dim"))
    for row in result["arms"]:
        for error in row["errors"]:
            console.print(Text(f"{row['model']} {row['backend']} {row['precision']}: {error}", style="red"))


def _tables(result: dict[str, Any]) -> Iterator[Table]:
    rows = result["arms"]
    batches = sorted({batch for row in rows for batch, found in row["inference"].items() if _rate(found)}, key=int)
    if batches:
        yield _table("Throughput, images/s", rows, _by_batch("batch", batches, _rate, "inference.*"))
        columns = _by_batch("batch", batches, _percent, "inference.*.percent_of_peak")
        yield _table("Of peak, for the multiply-accumulates executed", rows, columns)
        names, place = ("median", "p25", "p75", "p90", "p99"), f"inference.{batches[0]}.milliseconds"
        columns = [Column(name, _short, f"{place}.{name}") for name in names]
        yield _table(f"Latency at batch {batches[0]}, ms", rows, columns)
    trained = [row | {"step": _training_step(row)} for row in rows]
    if any(row["step"] for row in trained):
        columns = [
            Column("batch", str, "step.batch"),
            Column("images/s", _rate, "step"),
            Column("of peak", _percent, "step.percent_of_peak"),
            Column("MiB", _mebibytes, "step.peak_bytes"),
        ]
        yield _table("Training step", trained, columns)
    if any(row["deployment"].get("start_seconds") for row in rows):
        memory = sorted({batch for row in rows for batch in row["deployment"].get("memory", {})}, key=int)
        columns = [
            Column("start, s", "{:.2f}".format, "deployment.median_start_seconds"),
            Column("files, MB", lambda size: f"{size / 1e6:.1f}", "deployment.bytes"),
            *_by_batch("MiB, batch", memory, _mebibytes, "deployment.memory.*.peak_bytes"),
        ]
        yield _table("A fresh process: seconds to the first logits, files, memory at its highest", rows, columns)


def _loader_table(found: dict[str, Any]) -> Table:
    whole = found["whole"]
    title = f"Reading {found['images']} images to {'x'.join(map(str, found['img_size']))}"
    table = figures([""], ["core-ms", "images/s a core"], title)
    for stage, cost in found["stages"].items():
        table.add_row(stage, _short(cost["core_milliseconds"]), _short(cost["images_per_second_a_core"]))
    table.add_row(f"all, {whole['workers']} processes, images/s", "", _short(whole["images_per_second"]), style="bold")
    return table


def _by_batch(first: str, batches: list[str], form: Callable[[Any], str], place: str) -> list[Column]:
    """A column for every batch size, ``*`` in the place; the first one's heading says what the numbers are."""
    headings = [f"{first} {batches[0]}", *batches[1:]] if batches else []
    return [Column(name, form, place.replace("*", batch)) for name, batch in zip(headings, batches, strict=True)]


def _table(title: str, rows: list[dict[str, Any]], columns: list[Column]) -> Table:
    """A line for every arm that has one of the figures, below its model; failures are shown once, in the first."""
    table = figures([""], [column.heading for column in columns], title)
    model = None
    for row in rows:
        cells = [column.cell(row) for column in columns]
        if not any(cells):
            if not row["errors"] or not title.startswith("Throughput"):
                continue
            cells[0] = "failed"
        if row["model"] != model:
            model = row["model"]
            table.add_row(Text(model), style="bold")
        table.add_row(f" {row['backend']} {row['precision']}", *(cell or "-" for cell in cells))
    return table


def _training_step(row: dict[str, Any]) -> dict[str, Any]:
    """What was measured of the first batch size that could be trained with, if any could."""
    return next(({"batch": batch} | found for batch, found in row["train"].items() if _rate(found)), {})


def _rate(found: dict[str, Any]) -> str:
    """Images per second, and how many times as fast as the baseline; empty if it was not measured."""
    if "images_per_second" not in found:
        return ""
    times = found["times_baseline"]
    return f"{_short(found['images_per_second'])}" + (f" {times['median']:.2f}x" if times else "")


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

"""``ceit data``: bring a named set onto the disk, check any set, or write it as shards."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.atomic import replace_files, require_place
from ceit.data.audit.check import check
from ceit.data.audit.report import Copies, ImageName, Report
from ceit.data.sources.choose import describe, fetch, load_dataset
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.listing import LARGE_SIZE
from ceit.data.sources.published import PUBLISHED
from ceit.data.sources.shards.write import write_shards
from ceit.data.splits import ArraySplit, ImageDataset
from ceit.paths import expanded

_LISTED_CLASSES = 24
_LISTED_FINDINGS = 12
_BAR_CELLS = 16


def main(arguments: list[str]) -> None:
    """Runs ``ceit data fetch NAME``, ``ceit data check DATA`` or ``ceit data shard DATA OUT``."""
    chosen = _parser().parse_args(arguments)
    match chosen.verb:
        case "fetch":
            fetch_set(chosen.name)
        case "check":
            check_data(chosen.data, chosen.json, chosen.output)
        case "shard":
            shard_data(chosen.data, chosen.out, chosen.shard_megabytes, chosen.seed, chosen.skip_broken)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ceit data", description="Data sets: get them, check them, pack them.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fetch | check | shard")
    data = "a data set's name, a folder of class folders or of shards, a labels file: all that --data takes"

    fetching = verbs.add_parser("fetch", help="download a set once, check it and keep it in the cache")
    fetching.add_argument("name", metavar="NAME", help=", ".join([*SETS, *PUBLISHED]))

    text = "read every image of a set: broken files, copies within and across splits, empty classes, balance"
    checking = verbs.add_parser("check", help=text, description=f"{text}. The exit code is 1 if there are errors.")
    checking.add_argument("data", metavar="DATA", help=data)
    checking.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    checking.add_argument("--output", metavar="FILE.json", type=expanded, help="write the JSON document there, too")

    text = "write a set as WebDataset shards, which train and evaluate take as --data"
    sharding = verbs.add_parser("shard", help=text, description=f"{text}. An epoch of them is the same as of the set.")
    sharding.add_argument("data", metavar="DATA", help=data)
    sharding.add_argument("out", metavar="OUT", type=expanded, help="a new folder")
    sharding.add_argument(
        "--shard-megabytes", metavar="N", type=int, default=256, help="size of a shard, at most (default: 256)"
    )
    sharding.add_argument("--seed", type=int, default=0, help="cuts a set that comes unsplit (default: 0)")
    sharding.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be read")
    return parser


def fetch_set(name: str) -> None:
    """Fetches the set and prints what it is, where it lies and whose it is."""
    folder = fetch(name)
    ships = name in SETS and not SETS[name].sources
    print(describe(name))
    print(f"place      {'inside the package' if ships else folder}")


def shard_data(data: str, out: Path, megabytes: int, seed: int, skip_broken: bool) -> None:
    """Writes a set as shards and prints each, then what they hold.

    Raises: ValueError for data that are no data set, or an output that is not empty.
    """
    if megabytes < 1:
        raise ValueError(f"--shard-megabytes {megabytes} must be at least 1")
    dataset = _as_it_lies(data, seed, skip_broken)
    for line in (*dataset.remarks, *(f"skipped {line}" for line in dataset.skipped)):
        print(line, file=sys.stderr)
    index = write_shards(dataset, out, shard_bytes=megabytes * 2**20, say=print)
    counts = ", ".join(f"{count:,} {split}" for split, count in index.splits.items())
    size = sum(shard.bytes for shard in index.shards) / 2**20
    print(f"\n{out}: {counts} images of {len(index.class_names):,} classes")
    print(f"{len(index.shards):,} shards, {size:,.1f} MB; use them with --data {out}")


def _as_it_lies(data: str, seed: int, skip_broken: bool) -> ImageDataset:
    """The set with its files where it has files, even of small images, which would be read into memory and resized."""
    dataset = load_dataset(data, seed=seed, skip_broken=skip_broken)
    if not isinstance(dataset.train, ArraySplit):
        return dataset
    files = load_dataset(data, img_size=LARGE_SIZE, in_chans=dataset.in_chans, seed=seed, skip_broken=skip_broken)
    return replace(files, img_size=dataset.img_size, mean=dataset.mean, std=dataset.std)


def check_data(data: str, as_json: bool, output: Path | None) -> None:
    """Checks a set and prints the findings.

    Raises: ValueError, before reading, for an output that cannot be written; if it is no data set; and, after printing,
    if it has errors.
    """
    if output is not None:
        require_place(output)
    report = check(data)
    document = json.dumps(report.as_dict(), indent=None if as_json else 1)
    try:
        if output is not None:
            replace_files({output: document.encode()})
    finally:
        if as_json:
            print(document)
        else:
            print_report(report)
    if report.errors:
        raise ValueError(report.verdict)


def print_report(report: Report) -> None:
    """Prints the findings in one table, the classes in another, then what was found by name."""
    console = Console(highlight=False)
    total = f"{report.images:,} images that can be read, {len(report.counts):,} classes"
    console.print(Text.assemble((report.name, "bold"), f"  {total}"))
    for line in report.layout:
        console.print(Text(f"  {line}"), soft_wrap=True)
    for line in report.remarks:
        console.print(Text(f"! {line}", "yellow"), soft_wrap=True)
    if report.refusal:
        console.print(Text(f"✗ {report.refusal}", "bold red"), soft_wrap=True)
    console.print()
    for table in (_findings(report), _classes(report)):
        # A number is never cut, however narrow the terminal.
        table.width = console.measure(table, options=console.options.update(width=1000)).maximum
        console.print(table, crop=False)
        console.print()
    _print_named(console, "cannot be read", [_name(found) for found in report.unreadable])
    _print_named(console, "changed since they were written", [Text(found) for found in report.changed_shards])
    _print_named(console, "copies across splits", [_group(found) for found in report.leaks])
    _print_named(console, "copies within a split", [_group(group) for group in report.copies if not group.across])
    _print_named(console, "empty classes", [Text(found) for found in report.empty_classes])
    _print_named(console, "classes without training images", [Text(found) for found in report.untrained_classes])
    _print_named(console, "classes that a split lacks", [Text(found) for found in report.untested_classes])


def _findings(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="center")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")

    def add(what: str, count: int, remark: str = "", error: bool = False) -> None:
        bad = ("✗", "bold red") if error else ("!", "yellow")
        mark = bad if count else ("✓", "green")
        table.add_row(Text(*mark), what, Text(f"{count:,}", mark[1] if count else ""), remark)

    within = [group for group in report.copies if not group.across]
    add("images that cannot be read", len(report.unreadable), error=True)
    if report.changed_shards:
        add("shards changed since they were written", len(report.changed_shards), error=True)
    if len(report.splits) > 1:
        add("images copied across splits", len(report.leaks), _kinds(report.leaks), error=True)
    unsplit = "a chance cut may put them on both sides" if within and len(report.splits) == 1 else ""
    add("images copied within a split", len(within), "; ".join(filter(None, (_kinds(within), unsplit))))
    add("of all copies, in several classes", sum(group.of_several_classes for group in report.copies))
    add("empty classes", len(report.empty_classes), error=True)
    if not report.refusal:  # which may be that there is no part to train on
        add("classes without training images", len(report.untrained_classes), error=True)
    add("classes that a split lacks", len(report.untested_classes))
    add("blank images", len(report.blank))
    if report.dark:
        add("16-bit images that use only 12 bits", len(report.dark), "they look black: scale them, or declare 12 bits")
    table.add_row()
    if report.balance is not None:
        (most, many), (fewest, few) = report.balance
        remark = f"{many:,} of {most}, {few:,} of {fewest}" if many > few else f"{many:,} of every class"
        table.add_row("", "balance", f"{many / few:,.1f} : 1", remark)
    if report.smallest and report.largest:
        sizes = [f"{width} x {height}" for width, height in dict.fromkeys((report.smallest, report.largest))]
        table.add_row("", "size in pixels", sizes[0], f"to {sizes[1]}" if len(sizes) > 1 else "all of them")
    first, *others = [f"{count:,} {mode}" for mode, count in report.modes.items()] or ["none"]
    table.add_row("", "modes", first, ", ".join(others))
    return table


def _kinds(groups: list[Copies] | tuple[Copies, ...]) -> str:
    exact = sum(group.exact for group in groups)
    return f"{exact:,} exact, {len(groups) - exact:,} encoded or resized anew" if groups else ""


def _classes(report: Report) -> Table:
    """Images of every class; of very many classes the largest and the smallest."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("class", no_wrap=True, max_width=32)
    for split in report.splits:
        table.add_column(split, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    first = report.splits[0]
    names = list(report.counts)
    most = max((by_split[first] for by_split in report.counts.values()), default=0)
    if left_out := len(names) - _LISTED_CLASSES if len(names) > _LISTED_CLASSES else 0:
        names.sort(key=lambda name: -report.counts[name][first])
    for number, name in enumerate(names):
        if left_out and number == _LISTED_CLASSES // 2:
            table.add_row(Text(f"... {left_out:,} more; --json has all", "dim"))
        if not left_out or not _LISTED_CLASSES // 2 <= number < len(names) - _LISTED_CLASSES // 2:
            counts = report.counts[name].values()
            filled = round(_BAR_CELLS * report.counts[name][first] / most) if most else 0
            bar = Text.assemble(("█" * filled, "green"), ("░" * (_BAR_CELLS - filled), "dim"))
            table.add_row(Text(name), *(Text(f"{count:,}", "" if count else "bold red") for count in counts), bar)
    sums = [sum(by_split[split] for by_split in report.counts.values()) for split in report.splits]
    table.add_section()
    table.add_row(Text("all", "bold"), *(Text(f"{count:,}", "bold") for count in sums))
    return table


def _print_named(console: Console, title: str, lines: list[Text]) -> None:
    if not lines:
        return
    console.print(Text(title, "bold"))
    for line in lines[:_LISTED_FINDINGS]:
        console.print(Text.assemble("  ", line), soft_wrap=True)
    if (more := len(lines) - _LISTED_FINDINGS) > 0:
        console.print(Text(f"  ... {more:,} more; --json has all", "dim"))
    console.print()


def _name(image: ImageName) -> Text:
    place = f"{image.split}/{image.name}" if image.split else image.name
    return Text.assemble(place, (f"  {image.note}", "dim"))


def _group(group: Copies) -> Text:
    names = "  =  ".join(f"{image.split}/{image.name}" for image in group.images)
    kind = "same pixels" if group.exact else "encoded or resized anew"
    classes = ", ".join(dict.fromkeys(image.class_name for image in group.images))
    return Text.assemble(names, (f"  {kind}, {classes}", "yellow" if group.of_several_classes else "dim"))

"""Download data sets, check them, or pack them into a few large files.

usage: ceit data VERB ...

examples:
  ceit data fetch cifar10            download a known set once and keep it
  ceit data check photos/            find broken files, copies, empty classes
  ceit data shard photos/ shards/    pack a set into a few large files
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import getdoc

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ceit.atomic import replace_files
from ceit.cli._parser import JSON, WEIGHTS, Parser, adding_to, require_output
from ceit.cli._second_look import look, print_look
from ceit.cli._terminal import bar, print_whole, tell
from ceit.data.audit.check import check
from ceit.data.audit.report import Copies, ImageName, Report
from ceit.data.sources.choose import describe, fetch, load_dataset, place_of
from ceit.data.sources.hub import PREFIX
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.listing import LARGE_SIZE
from ceit.data.sources.published import PUBLISHED
from ceit.data.sources.shards.write import write_shards
from ceit.data.splits import ArraySplit, ImageDataset
from ceit.messages import plain
from ceit.paths import expanded

_DATA = "a set's name, a folder of class folders or of shards, a table of labels (.csv, .parquet), or hf:NAME"
_LISTED_CLASSES = 24
_LISTED_FINDINGS = 12
_BAR_CELLS = 16


def main(arguments: list[str]) -> None:
    """Runs the verb. Raises: ValueError for no data set, a wrong output, and, after printing, a set with errors."""
    verbs = {"fetch": _fetch, "check": _check, "shard": _shard}
    parser = Parser(__doc__)
    parser.add_argument("verb", metavar="VERB", choices=verbs, help="fetch, check or shard; each has a --help")
    verbs[parser.parse_args(arguments[:1]).verb](arguments[1:])


def _fetch(arguments: list[str]) -> None:
    """Download a known data set, check that it is the published one, and keep it.

    It is kept in $CEIT_DATA (default: ~/.cache/ceit). A set that is there is not downloaded again. Prints its licence
    and whom to cite.

    Its sources are tried in order: $CEIT_DATA_MIRROR, an address or a folder that has the files, where that is set;
    then its owner; then other copies, package managers last.

    usage: ceit data fetch NAME

    examples:
      ceit data fetch fashion_mnist
    """
    parser = Parser(getdoc(_fetch))
    free = [*SETS, *(name for name, published in PUBLISHED.items() if published.downloader)]
    asked = [name for name in PUBLISHED if name not in free]
    text = f"{', '.join(free)}; for {', '.join(asked)} it says where their owners offer them"
    parser.add_argument("name", metavar="NAME", help=text)
    name = parser.parse_args(arguments).name
    folder = fetch(name, say=partial(print, file=sys.stderr))
    ships = name in SETS and not SETS[name].sources
    print(describe(name))
    print(f"place      {'inside the package' if ships else folder}")


def _check(arguments: list[str]) -> None:
    """Read every image of a data set and report what is wrong with it.

    It finds broken files, copies within and across splits, and empty classes, and tells how balanced the classes are.
    With a trained model it also lists labels that look wrong, images unlike all classes, and the hardest classes.
    Nothing is changed. The exit code is 1 if there are errors; what a model says is none.

    usage: ceit data check DATA [options]

    examples:
      ceit data check photos/
      ceit data check photos/ --checkpoint runs/photos
      ceit data check photos/ --json
    """
    parser = Parser(getdoc(_check))
    add = adding_to(parser)
    add("data", _DATA, metavar="DATA")
    add("--checkpoint", f"ask a model about the labels: {WEIGHTS}", metavar="RUN|FILE", type=expanded)
    add("--json", JSON, action="store_true")
    add("--output", "write the JSON document to a new file, too", metavar="FILE.json", type=expanded)
    options = parser.parse_args(arguments)
    if options.output is not None:
        require_output(parser, "--output", options.output, (".json",))
    found, failure = None, ""
    if options.checkpoint is not None:
        try:
            found = look(options.checkpoint, options.data)
        except ValueError as error:  # which is no reason to keep back what the check of the files finds
            failure = f"the model could not be asked: {error}"
    report = check(options.data)
    said = report.as_dict() | ({} if found is None else {"second_look": found.as_dict()})
    document = json.dumps(said, indent=None if options.json else 1)
    try:
        if options.output is not None:
            replace_files({options.output: document.encode()})
    finally:
        if options.json:
            print(document)
        else:
            print_report(report)
            if found is not None and options.checkpoint is not None:
                print_look(found, options.checkpoint)
    if problems := "; ".join(filter(None, [report.verdict if report.errors else "", failure])):
        raise ValueError(problems)


def _shard(arguments: list[str]) -> None:
    """Write a data set as WebDataset shards: a few large tar files, which suit network drives.

    Train and evaluate take the folder as --data. An epoch of it is the same as of the set itself.

    usage: ceit data shard DATA OUT [options]

    examples:
      ceit data shard photos/ shards/
    """
    parser = Parser(getdoc(_shard))
    add = adding_to(parser)
    add("data", _DATA, metavar="DATA")
    add("out", "the folder to write; it must be new or empty", metavar="OUT", type=expanded)
    add("--shard-megabytes", "largest size of a shard", metavar="N", type=int, default=256)
    add("--seed", "how a set that comes unsplit is split", metavar="N", type=int, default=0)
    add("--skip-broken", "leave out images that cannot be read, and list them", action="store_true")
    options = parser.parse_args(arguments)
    folder = None if place_of(options.data) else expanded(options.data.removeprefix(PREFIX))
    if folder is not None and folder.is_dir() and options.out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{options.out} lies in {folder}, and would be taken for a part of it: name a folder beside it"
        )
    if options.shard_megabytes < 1:
        raise ValueError(f"--shard-megabytes {options.shard_megabytes} must be at least 1")
    dataset = _as_it_lies(options.data, options.seed, options.skip_broken)
    tell(*dataset.remarks, *(f"skipped {line}" for line in dataset.skipped))
    index = write_shards(dataset, options.out, shard_bytes=options.shard_megabytes * 10**6, say=print)
    counts = ", ".join(f"{count:,} {split}" for split, count in index.splits.items())
    size = sum(shard.bytes for shard in index.shards) / 1e6
    print(f"\n{options.out}: {counts} images of {len(index.class_names):,} classes")
    print(f"{len(index.shards):,} shards, {size:,.1f} MB; use them with --data {options.out}")


def _as_it_lies(data: str, seed: int, skip_broken: bool) -> ImageDataset:
    """The set with its files where it has files, even of small images, which would be read into memory and resized."""
    dataset = load_dataset(data, seed=seed, skip_broken=skip_broken)
    if not isinstance(dataset.train, ArraySplit):
        return dataset
    files = load_dataset(data, img_size=LARGE_SIZE, in_chans=dataset.in_chans, seed=seed, skip_broken=skip_broken)
    return replace(files, img_size=dataset.img_size, mean=dataset.mean, std=dataset.std)


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
        print_whole(console, table)
        console.print()
    lists = {
        "cannot be read": [_name(found) for found in report.unreadable],
        "one side all grey": [_name(found) for found in report.cut],
        "changed since they were written": list(map(Text, report.changed_shards)),
        "copies across splits": [_group(group) for group in report.leaks],
        "copies within a split": [_group(group) for group in report.copies if not group.across],
        "empty classes": list(map(Text, report.empty_classes)),
        "classes without training images": list(map(Text, report.untrained_classes)),
        "classes that a split lacks": list(map(Text, report.untested_classes)),
    }
    for title, lines in lists.items():
        if lines:
            console.print(Text(title, "bold"))
            for line in lines[:_LISTED_FINDINGS]:
                console.print(Text.assemble("  ", line), soft_wrap=True)
            if (more := len(lines) - _LISTED_FINDINGS) > 0:
                console.print(Text(f"  ... {more:,} more; --json has all", "dim"))
            console.print()


def _findings(report: Report) -> Table:
    columns = Column(justify="center"), Column(), Column(justify="right"), Column(style="dim")
    table = Table(*columns, box=None, show_header=False, pad_edge=False)

    def add(what: str, count: int, remark: str = "", error: bool = False) -> None:
        mark, style = ("✓", "green") if not count else ("✗", "bold red") if error else ("!", "yellow")
        table.add_row(Text(mark, style), what, Text(f"{count:,}", style if count else ""), Text(remark))

    within = [group for group in report.copies if not group.across]
    add("images that cannot be read", len(report.unreadable), error=True)
    if report.changed_shards:
        add("shards changed since they were written", len(report.changed_shards), error=True)
    if len(report.splits) > 1:
        add("images copied across splits", len(report.leaks), _kinds(report.leaks), error=True)
    unsplit = (
        "the cut keeps byte-for-byte copies together, others it may part" if within and len(report.splits) == 1 else ""
    )
    add("images copied within a split", len(within), "; ".join(filter(None, (_kinds(within), unsplit))))
    add("copies that lie in several classes", sum(group.of_several_classes for group in report.copies))
    add("empty classes", len(report.empty_classes), error=True)
    if not report.refusal:  # which may be that there is no part to train on
        add("classes without training images", len(report.untrained_classes), error=True)
    add("classes that a split lacks", len(report.untested_classes))
    add("blank images", len(report.blank))
    if report.dark:
        add("16-bit images that use only 12 bits", len(report.dark), "they look black: scale them, or declare 12 bits")
    if report.cut:
        add("images with one side all grey", len(report.cut), "probably cut short: look at them, copy them anew")
    table.add_row()
    if report.balance is not None:
        (most, many), (fewest, few) = report.balance
        remark = f"{many:,} of {most}, {few:,} of {fewest}" if many > few else f"{many:,} of every class"
        table.add_row("", "balance", f"{many / few:,.1f} : 1", Text(remark))
    if report.smallest and report.largest:
        sizes = [f"{width} x {height}" for width, height in dict.fromkeys((report.smallest, report.largest))]
        table.add_row("", "size in pixels", sizes[0], f"to {sizes[1]}" if len(sizes) > 1 else "all of them")
    first, *others = [f"{count:,} {mode}" for mode, count in report.modes.items()] or ["none"]
    table.add_row("", "modes", first, ", ".join(others))
    return table


def _kinds(groups: Sequence[Copies]) -> str:
    exact = sum(group.exact for group in groups)
    return f"{exact:,} exact, {len(groups) - exact:,} encoded or resized anew" if groups else ""


def _classes(report: Report) -> Table:
    """Images of every class; of very many classes the largest and the smallest."""
    first, names = report.splits[0], list(report.counts)
    splits = [Column(split, justify="right", no_wrap=True) for split in report.splits]
    columns = Column("class", overflow="fold", max_width=32), *splits, Column("", no_wrap=True)
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    most = max((by_split[first] for by_split in report.counts.values()), default=0)
    if left_out := len(names) - _LISTED_CLASSES if len(names) > _LISTED_CLASSES else 0:
        names.sort(key=lambda name: -report.counts[name][first])
    for number, name in enumerate(names):
        if left_out and number == _LISTED_CLASSES // 2:
            table.add_row(Text(f"... {left_out:,} more; --json has all", "dim"))
        if not left_out or not _LISTED_CLASSES // 2 <= number < len(names) - _LISTED_CLASSES // 2:
            counts = report.counts[name].values()
            share = bar(report.counts[name][first] / most if most else 0, _BAR_CELLS)
            table.add_row(Text(name), *(Text(f"{count:,}", "" if count else "bold red") for count in counts), share)
    sums = [sum(by_split[split] for by_split in report.counts.values()) for split in report.splits]
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in sums), style="bold")
    return table


def _name(image: ImageName) -> Text:
    place = f"{image.split}/{image.name}" if image.split else image.name
    return Text.assemble(plain(place), (f"  {image.note}", "dim"))


def _group(group: Copies) -> Text:
    names = "  =  ".join(plain(f"{image.split}/{image.name}") for image in group.images)
    kind = "same pixels" if group.exact else "encoded or resized anew"
    classes = ", ".join(dict.fromkeys(image.class_name for image in group.images))
    return Text.assemble(names, (f"  {kind}, {classes}", "yellow" if group.of_several_classes else "dim"))

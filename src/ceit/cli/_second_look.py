"""``ceit data check --checkpoint``: what a trained model says of the labels, in a terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ceit.cli._terminal import figures, print_whole
from ceit.data.record import ImageRecord
from ceit.evaluation.label_errors import SecondLook, Stranger, Suspect, second_look
from ceit.evaluation.run_images import images_for
from ceit.inference.exported import is_exported
from ceit.inference.prediction_file import printable
from ceit.inference.predictor import preprocessing_of
from ceit.terminal import stderr_console
from ceit.weights import load_checkpoint, training_of

_LISTED = 12
_LISTED_CLASSES = 24


def look(checkpoint: str | Path, data: str) -> SecondLook:
    """What the model in the checkpoint says of every image of the data that can be read.

    Raises: ValueError for an exported file, or classes that the model does not know.
    """
    if is_exported(checkpoint):
        raise ValueError(f"{checkpoint} is an exported file, which tells too little: name the run")
    model, training = load_checkpoint(checkpoint), training_of(checkpoint)
    found, training = images_for(model.config, preprocessing_of(model), training, data, skip_broken=True)
    same_set = found.is_fixed and training.get("data") == found.name
    columns = TextColumn("asking the model"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = stderr_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(map(len, found.parts.values())))
        return second_look(
            model,
            found,
            ImageRecord.of_run(str(checkpoint), training),
            training=training if same_set else None,
            progress=lambda done: progress.update(task, completed=done),
        )


def print_look(found: SecondLook, checkpoint: str | Path) -> None:
    """Print the labels that look wrong, the images unlike all classes, and the classes from the hardest on."""
    console = Console(highlight=False)
    console.print(Text.assemble("What ", (str(checkpoint), "bold"), f" says of {found.images:,} images"))
    if found.trained_on is None:
        console.print(Text("  whether it was trained on them is not known", "dim"))
    elif found.trained_on:
        hint = "their wrong labels it may have learnt: some are missed"
        console.print(Text(f"  it was trained on {found.trained_on:,} of them; {hint}", "dim"))
    lines = [
        Text.assemble(
            f"{_place(one)}  labelled {printable(one.label)} ",
            (f"({_percent(one.label_probability)})", "dim"),
            ", looks like ",
            (printable(one.answer), "yellow"),
            (f" ({_percent(one.answer_probability)})", "dim"),
        )
        for one in found.suspects
    ]
    _print_list(console, f"labels that look wrong: {len(found.suspects):,}", lines)
    if found.strangers is None:
        needs = "training did not learn it, which takes 20 validation images or more, and one of every class"
        console.print(Text(f"\nimages unlike all classes: not known to this model; {needs}", "dim"), soft_wrap=True)
    else:
        strange = [
            Text.assemble(f"{_place(one)}  {printable(one.label)}", (f"  familiarity {one.familiarity:.4f}", "dim"))
            for one in found.strangers
        ]
        _print_list(console, f"images unlike all classes: {len(found.strangers):,}", strange)
    table = figures(["class, the hardest first"], ["images", "answered as labelled", "look wrong"])
    table.columns[0].max_width, table.columns[0].no_wrap, table.columns[0].overflow = 32, False, "fold"
    for one in found.classes[:_LISTED_CLASSES]:
        table.add_row(Text(printable(one.label)), f"{one.images:,}", f"{100 * one.answered:.1f}%", f"{one.suspects:,}")
    console.print()
    print_whole(console, table)
    if (more := len(found.classes) - _LISTED_CLASSES) > 0:
        console.print(Text(f"... {more:,} more classes; --json has all", "dim"))


def _print_list(console: Console, title: str, lines: Sequence[Text]) -> None:
    console.print(Text(f"\n{title}", "bold"))
    for line in lines[:_LISTED]:
        console.print(Text.assemble("  ", line), soft_wrap=True)
    if (more := len(lines) - _LISTED) > 0:
        console.print(Text(f"  ... {more:,} more; --json has all", "dim"))


def _place(image: Suspect | Stranger) -> str:
    """Its path; a mere number with the part that it counts in."""
    return f"{image.split}/{image.path}" if image.path.isdecimal() else printable(image.path)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"

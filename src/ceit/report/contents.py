"""What stands on the page of a run: read from its directory, and measured anew on its held-out images.

Letters: n images, K classes.
"""

import importlib.util
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup

from ceit.data.batches.loader import make_loader
from ceit.data.held_out import VALIDATION, to_measure, with_labels_of
from ceit.data.record import ImageRecord
from ceit.data.sources.class_names import class_name
from ceit.data.splits import JoinedSplit, Split
from ceit.evaluation.answers import Answers
from ceit.evaluation.label_errors import ask, likely_label_errors
from ceit.evaluation.metrics import Evaluation
from ceit.evaluation.run_images import images_for
from ceit.evaluation.scores import Calibration, accuracy_interval, most_confused
from ceit.explain.capture import capture
from ceit.explain.maps import layer_weights
from ceit.inference.device import default_device
from ceit.inference.prediction_file import printable
from ceit.inference.predictor import Predictor, preprocessing_of
from ceit.json_file import as_written
from ceit.messages import Say, in_words
from ceit.model import CeiT
from ceit.model.complexity import complexity
from ceit.paths import last_part
from ceit.report.charts import Line, bar_chart, line_chart, reliability_chart
from ceit.report.pictures import sheet_picture, thumbnail
from ceit.train.model_card import FinishedRun, place_without_way, training, training_command
from ceit.train.run_directory import lines_of
from ceit.version import __version__
from ceit.weights import load_checkpoint

MOST_IMAGES = 10_000  # held-out ones that are asked about
GALLERY = 12
_SHEETS_OF_MISTAKES = _SHEETS_OF_OTHERS = 2
_MATRIX_CLASSES = 30
_CONFUSED_PAIRS = 8
_PROFILED = 256
_SPEED_BATCH, _SPEED_SECONDS = 16, 1.0
_SMALL_SIDE = 64  # pixels up to which a picture is shown with its pixels as they are


@dataclass
class Contents:
    """What ``page.html.j2`` takes, by the names that it has there."""

    title: str
    finished: str
    version: str = __version__
    rendering: str = "auto"
    cards: list[dict[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    per_class_caption: str = ""
    per_class_heads: Sequence[str] = ()
    per_class: list[list[str]] = field(default_factory=list)
    confusion: dict[str, Any] | None = None
    confused: str = ""
    reliability: dict[str, Any] | None = None
    galleries: list[dict[str, Any]] = field(default_factory=list)
    sheets: list[dict[str, str]] = field(default_factory=list)
    layers: dict[str, Any] | None = None
    costs: list[tuple[str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    commands: list[dict[str, str]] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)


class _Images(NamedTuple):
    """The names of the classes, and the images that a run did not learn from; None where validation has none."""

    names: Sequence[str]
    test: Split
    validation: Split | None


@dataclass(frozen=True)
class _HeldOut:
    """Images that a run did not learn from, and what its model says of them."""

    split: Split
    result: Evaluation
    answers: Answers


def contents_of(run: Path, data: str | None = None, say: Say = lambda message: None) -> Contents:
    """The page of the run in this directory.

    Its images are looked for where they were; ``data`` names another place. If they are gone or do not fit, the page
    has no pictures, and says so. Raises: ValueError if the run has not ended, or for ``data`` that do not fit.
    """
    model, found = load_checkpoint(run), FinishedRun.read(run)
    with as_written(run, "put back the config.yaml, metrics.jsonl, model.json and test.json that it wrote"):
        contents = _of_files(run, found, model, data)
        if not isinstance(found.description["training"], dict):
            raise ValueError("model.json tells nothing of the training")
    images = _images(run, found, model, data, contents.remarks, say)
    if images is None:
        with as_written(run / "test.json", "put back the one that it wrote"):
            _classes_of_report(contents, found.report)
        return contents
    names = images.names
    say("asking the model about its test images")
    test = _held_out(model, names, images.test)
    _classes(contents, test.result, test.answers)
    _reliability(contents, test.result)
    mistakes = _mistakes(test.answers)
    contents.galleries += _gallery_of_mistakes(model, names, test, mistakes)
    parts = [test] if images.validation is None else [_held_out(model, names, images.validation), test]
    contents.galleries += _gallery_of_labels(model, names, parts)
    if model.lca is not None:
        contents.layers = _layers(model, test.split)
    if importlib.util.find_spec("matplotlib") is None:
        contents.remarks.append('matplotlib is not installed, so there are no sheets: pip install "ceit-vision[viz]"')
    else:
        say("drawing why it answered so")
        contents.sheets = list(_sheets(model, names, test, mistakes))
    return contents


def _of_files(run: Path, found: FinishedRun, model: CeiT, data: str | None) -> Contents:
    """What the files of the run say, without its images."""
    report = found.report
    finished = report.get("finished", "")[:16].replace("T", " ")  # of a run by an earlier version it is not known
    contents = Contents(f"{report['model']} trained on {report['data']}", finished)
    contents.rendering = "pixelated" if max(model.config.image_hw) <= _SMALL_SIDE else "auto"
    contents.cards, contents.curves = list(_cards(found)), list(_curves(lines_of(run / "metrics.jsonl")))
    contents.facts = [_fact(line) for line in next(training(found)).splitlines()]
    options = found.options | {"data": place_without_way(str(found.options["data"]))}
    contents.options = [(name, _word(value)) for name, value in options.items()]
    contents.commands = list(_commands(run, found, data))
    contents.costs = list(_costs(run, model, report))
    return contents


def _cards(found: FinishedRun) -> Iterator[dict[str, str]]:
    report = found.report
    images, top1 = report["images"], report["top1_percent"]
    low, high = report.get("top1_interval_percent") or accuracy_interval(round(images * top1 / 100), images)
    yield _card("test accuracy (top-1)", f"{top1:.2f} %", f"95 % interval {low:.1f} to {high:.1f} %")
    yield _card("test images", f"{images:,}", f"of {len(report['per_class']):,} classes")
    if (macro := report.get("macro")) is not None:
        yield _card("F1, mean of classes", f"{macro['f1']:.3f}", f"recall {macro['recall']:.3f}")
    if (calibration := report.get("calibration")) is not None:
        before = report.get("uncalibrated")
        notes = [] if before is None else [f"{100 * before['ece']:.1f} before calibration"]
        notes += filter(None, [Calibration.from_json(calibration).of_chance()])
        yield _card("probabilities off by (ECE)", f"{100 * calibration['ece']:.1f} points", "; ".join(notes))
    yield _card("parameters", f"{report['parameters']:,}", report["model"])
    machine = report["machine"]
    device = machine["accelerator"] or f"{_counted(machine['threads'], 'thread')} of {machine['processor']}"
    length = _counted(report["epochs"], "epoch")
    yield _card("training", in_words(report["train_seconds"]), f"{length} on {device}")


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _card(name: str, value: str, note: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _curves(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Loss and accuracy over the epochs, and the learning rate over the steps, as far as they were recorded."""
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if record["event"] == "step"]
    epochs = [record for record in records if record["event"] == "epoch"]
    numbers = [epoch["epoch"] for epoch in epochs]
    losses = [Line("training", numbers, [_value(epoch.get("train_loss")) for epoch in epochs])]
    accuracy = [Line("training, varied images", numbers, [_value(e.get("train_top1_percent")) for e in epochs], "s1")]
    for kind, name, style in (("raw", "validation", "s2"), ("ema", "validation, averaged weights", "s3")):
        told = [(e["epoch"], e["validation"][kind]) for e in epochs if (e.get("validation") or {}).get(kind)]
        if told:
            where = [epoch for epoch, _ in told]
            losses.append(Line(name, where, [_value(one["loss"]) for _, one in told], style, dashed=True))
            accuracy.append(Line(name, where, [one["top1_percent"] for _, one in told], style, dashed=True))
    if epochs:
        yield {"svg": line_chart("loss by epoch", "epoch", "loss", losses), "caption": "Loss"}
        yield {
            "svg": line_chart("accuracy by epoch", "epoch", "top-1 in %", accuracy, most=100),
            "caption": "Accuracy",
        }
    if steps:
        rate = Line("learning rate", [s["step"] for s in steps], [_value(s.get("learning_rate")) for s in steps])
        yield {
            "svg": line_chart("learning rate by step", "step", "learning rate", [rate]),
            "caption": "Learning rate",
        }


def _value(number: float | None) -> float:
    return float("nan") if number is None else number


def _fact(line: str) -> tuple[str, str]:
    """A line of the model card's list, as name and value."""
    name, _, value = line.removeprefix("- ").partition(": ")
    return name, re.sub("^`([^`]*)`", r"\1", value)


def _word(value: Any) -> str:
    """An option's value; a path is told without the way to it, which is nobody's business."""
    value = _without_ways(value)
    return value if isinstance(value, str) else json.dumps(value)


def _without_ways(value: Any) -> Any:
    """The value with the last part alone of every absolute path in it."""
    if isinstance(value, dict):
        return {key: _without_ways(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(_without_ways, value))
    is_path = isinstance(value, str) and (Path(value).is_absolute() or PureWindowsPath(value).is_absolute())
    return last_part(value) if is_path else value


def _commands(run: Path, found: FinishedRun, data: str | None) -> Iterator[dict[str, str]]:
    """To be typed in the folder that holds the run and the data."""
    place = shlex.quote(run.resolve().name)
    data = shlex.quote(place_without_way(str(found.options["data"]) if data is None else data))
    yield {"title": "Train such a model again", "text": training_command(found.options)}
    yield {"title": "Measure it", "text": f"ceit evaluate --checkpoint {place} --data {data}"}
    yield {"title": "Use it", "text": f"ceit predict --checkpoint {place} photo.jpg"}
    yield {"title": "See why", "text": f"ceit explain --checkpoint {place} --output why/ photo.jpg"}


def _costs(run: Path, model: CeiT, report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    own, size = complexity(model.config), (run / "model.safetensors").stat().st_size
    yield "parameters", f"{report['parameters']:,}"
    yield "multiply-accumulates of an image", f"{own.live_macs:,}"
    stem = "I2T" if model.config.stem == "i2t" else "patch embedding"
    for name, prefix in ((stem, "patch_embed"), ("the blocks", "blocks"), ("LCA", "lca"), ("the head", "head")):
        if (part := own.part(prefix)).modules:
            told = f"{part.parameters:,} parameters, {100 * part.live_macs / own.live_macs:.1f} % of the work"
            yield f"of which {name}", told
    yield "file of weights", f"{size / 1e6:.2f} MB"
    predictor = Predictor.from_model(model, precision="auto")
    images = torch.zeros(_SPEED_BATCH, model.config.in_chans, *model.config.image_hw)
    predictor.network(images)
    began, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < _SPEED_SECONDS:
        predictor.network(images).cpu()
        done += _SPEED_BATCH
    place = str(predictor.device)
    if place == "cpu":
        place = _counted(torch.get_num_threads(), "thread")
    yield "speed where this page was made", f"{done / seconds:,.0f} images/s, {_SPEED_BATCH} at a time, {place}"


def _images(
    run: Path, found: FinishedRun, model: CeiT, data: str | None, remarks: list[str], say: Say
) -> _Images | None:
    """The images that the page shows; None if they are gone, or no longer those that the run was measured on.

    Why they are gone is said, but does not stand on the page: it names their place.
    """
    place = str(found.options["data"]) if data is None else data
    try:
        training, seen_by = found.description.get("training") or {}, preprocessing_of(model)
        labelled, said = images_for(model.config, seen_by, training, place, skip_broken=True)
        names = list(map(class_name, model.class_names or labelled.class_names))
        record = ImageRecord.of_run(str(run), said)
        measured = to_measure(labelled, record, said, None)
        test = with_labels_of(names, labelled, measured.split)
    except (ValueError, OSError) as error:
        reason = _without_advice(str(error))
        if data is not None:
            raise ValueError(reason) from error
        say(f"the images of the run cannot be shown: {reason}")
        remarks.append("This page has no pictures: the images are gone or have changed. Name them with --data.")
        return None
    if labelled.skipped:
        remarks.append(f"Images that cannot be read are left out: {len(labelled.skipped):,}.")
    shown = _evenly(test, "test", remarks)
    told = map(_without_advice, measured.remarks)
    remarks += [f"{remark[:1].upper()}{remark[1:]}." for remark in told]
    if len(test) != found.report["images"]:
        remarks.append(
            f"The accuracy above is that of {found.report['images']:,} images, measured when the run ended. Tables and "
            f"pictures are of the {len(test):,} images that are there now."
        )
    try:
        validation = with_labels_of(names, labelled, to_measure(labelled, record, said, VALIDATION).split)
    except ValueError:
        return _Images(names, shown, None)
    return _Images(names, shown, _evenly(validation, VALIDATION, remarks))


def _without_advice(sentence: str) -> str:
    """Without the option of ``ceit evaluate`` that it ends with, which a page has not."""
    return re.sub("[:;] (choose |or say )?--split .*", "", sentence)


def _evenly(split: Split, kind: str, remarks: list[str]) -> Split:
    """As many images as are asked about at most, evenly spread."""
    if (total := len(split)) <= MOST_IMAGES:
        return split
    remarks.append(f"Of the {total:,} {kind} images {MOST_IMAGES:,} are looked at here, evenly spread.")
    return split.subset(torch.linspace(0, total - 1, MOST_IMAGES).round().long())


def _held_out(model: CeiT, names: Sequence[str], split: Split) -> _HeldOut:
    result, answers, _ = ask(model, split, names, default_device())
    return _HeldOut(split, result, answers)


_HEADS = ("class", "images", "precision", "recall", "F1", "AUROC")


def _classes(contents: Contents, result: Evaluation, answers: Answers) -> None:
    contents.per_class_heads = _HEADS
    contents.per_class_caption = f"{result.images:,} test images. A click on a heading sorts."
    for entry, area in zip(result.per_class, answers.auroc(), strict=True):
        numbers = entry.precision, entry.recall, entry.f1, area
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        contents.per_class.append([entry.label, f"{entry.images:,}", *cells])
    if result.confusion is not None:
        _confusion(contents, [entry.label for entry in result.per_class], result.confusion)


def _classes_of_report(contents: Contents, report: Mapping[str, Any]) -> None:
    """As ``_classes``, from what was measured when the run ended; an earlier version told of the recall alone."""
    contents.per_class_heads = _HEADS[:-1]
    contents.per_class_caption = f"{report['images']:,} test images. A click on a heading sorts."
    for entry in report["per_class"]:
        recall = None if entry["top1_percent"] is None else entry["top1_percent"] / 100
        numbers = entry.get("precision"), recall, entry.get("f1")
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        contents.per_class.append([entry["label"], f"{entry['images']:,}", *cells])
    if report.get("confusion") is not None:
        _confusion(contents, [entry["label"] for entry in report["per_class"]], report["confusion"])


def _confusion(contents: Contents, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    told = [f"{names[true]} as {names[said]} ({n:,})" for true, said, n in most_confused(counts, _CONFUSED_PAIRS)]
    contents.confused = ", ".join(told)
    if len(names) > _MATRIX_CLASSES:
        return
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = sum(row) or 1
        cells = [{"images": f"{n:,}", "share": f"{n / total:.3f}"} for n in row]
        rows.append({"name": name, "cells": cells})
    contents.confusion = {"names": names, "rows": rows}


def _reliability(contents: Contents, result: Evaluation) -> None:
    def chart(kind: str, calibration: Calibration) -> dict[str, Any]:
        caption = f"{kind}: off by {100 * calibration.ece:.1f} points on average (ECE)."
        return {"svg": reliability_chart(f"reliability {kind}", calibration.reliability), "caption": caption}

    told = "Bars show how often answers of a probability were right; they should end at the dashed line."
    if result.uncalibrated is None:
        told += " This model has no temperature."
        charts = [chart("As the network answers", result.calibration)]
    else:
        told += f" Validation images gave the temperature {result.calibration.temperature:.3g}, which was applied."
        charts = [chart("Before calibration", result.uncalibrated), chart("After calibration", result.calibration)]
    contents.reliability = {"told": told, "charts": charts}


def _mistakes(answers: Answers) -> np.ndarray:
    """The images that are answered wrongly, the surest first."""
    said_n = answers.probabilities_nk.argmax(1)
    wrong = np.flatnonzero(said_n != answers.labels_n)
    return wrong[np.argsort(-answers.probabilities_nk[wrong, said_n[wrong]], kind="stable")]


def _gallery_of_mistakes(
    model: CeiT, names: Sequence[str], test: _HeldOut, mistakes: np.ndarray
) -> Iterator[dict[str, Any]]:
    if len(mistakes):
        told = f"{len(mistakes):,} of {test.result.images:,} test images are answered wrongly. These are the surest."
        shown = [_picture(model, names, test, index) for index in mistakes[:GALLERY].tolist()]
        yield {"title": "The surest mistakes", "told": told, "images": shown}


def _gallery_of_labels(model: CeiT, names: Sequence[str], parts: Sequence[_HeldOut]) -> Iterator[dict[str, Any]]:
    """Likely label errors among images that were not trained on."""
    probabilities_nk = np.concatenate([part.answers.probabilities_nk for part in parts])
    labels_n = np.concatenate([part.answers.labels_n for part in parts])
    suspects = likely_label_errors(probabilities_nk, labels_n)
    if count := len(suspects.images_m):
        kinds = "validation and test" if len(parts) > 1 else "test"
        told = (
            f"{count:,} of {len(labels_n):,} {kinds} images carry a label that the model finds unlikely. Some "
            "labels are wrong, some images are hard: look at them. ceit data check --checkpoint lists them all, those "
            "of training too."
        )
        split = parts[0].split if len(parts) == 1 else JoinedSplit.of([part.split for part in parts])
        answers = Answers(probabilities_nk, labels_n, np.zeros(len(labels_n)))
        joined = _HeldOut(split, parts[-1].result, answers)
        first = zip(suspects.images_m[:GALLERY].tolist(), suspects.classes_m[:GALLERY].tolist(), strict=True)
        shown = [_picture(model, names, joined, index, said) for index, said in first]
        yield {"title": "Labels that look wrong", "told": told, "images": shown}


def _picture(
    model: CeiT, names: Sequence[str], held_out: _HeldOut, index: int, looks_like: int | None = None
) -> dict[str, str]:
    """An image with its label and the answer, or another class that it looks like."""
    answers, split = held_out.answers, held_out.split
    row, label = answers.probabilities_nk[index], printable(names[int(answers.labels_n[index])])
    shown = int(row.argmax()) if looks_like is None else looks_like
    said, path = printable(names[shown]), printable(split.name(index))
    verb = "answered" if looks_like is None else "looks like"
    return {
        "source": thumbnail(split.read(index, model.config.in_chans)),
        "alt": f"{label}, taken for {said}",
        "first": f"labelled {label}, {verb}",
        "second": f"{said} {100 * row[shown]:.0f}\N{NO-BREAK SPACE}%",
        "path": "/".join(Path(path).parts[-2:]),
    }


def _sheets(model: CeiT, names: Sequence[str], test: _HeldOut, mistakes: np.ndarray) -> Iterator[dict[str, str]]:
    """Of the surest mistakes, and of right answers around the median probability."""
    answers, predictor = test.answers, Predictor.from_model(model)
    right = np.setdiff1d(np.arange(len(answers.labels_n)), mistakes)
    sure = answers.probabilities_nk[right].max(1)
    middling = right[np.argsort(np.abs(sure - np.median(sure)), kind="stable")] if len(right) else right
    for index in [*mistakes[:_SHEETS_OF_MISTAKES].tolist(), *middling[:_SHEETS_OF_OTHERS].tolist()]:
        label, said = names[int(answers.labels_n[index])], names[int(answers.probabilities_nk[index].argmax())]
        image, name = test.split.read(index, model.config.in_chans), Path(test.split.name(index)).name
        title = printable(f"{name}: labelled {label}, answered {said}")
        yield {"source": sheet_picture(predictor, image, title), "alt": title}


def _layers(model: CeiT, split: Split) -> dict[str, Any]:
    """What LCA takes from each block, as a mean over test images."""
    some = split.subset(torch.linspace(0, len(split) - 1, min(len(split), _PROFILED)).round().long())
    config, device = model.config, next(model.parameters()).device
    loader = make_loader(some, batch_size=64, img_size=config.image_hw, preprocessing=preprocessing_of(model))
    weights = []
    with torch.no_grad(), capture(model) as seen:
        for images, _ in loader.epoch(0):
            model(images.to(device, next(model.parameters()).dtype))
            weights.append(layer_weights(seen.attention()).float().cpu())
    means = torch.cat(weights).mean(0).tolist()
    chart: Markup = bar_chart("what LCA takes from each block", "block", "share", means)
    return {"svg": chart, "caption": f"The layer-wise class-token attention, mean over {len(some)} test images."}

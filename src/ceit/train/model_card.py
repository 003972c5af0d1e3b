"""The card of a trained model, in Markdown: what it is, how to use it, how good it is, how it was trained, its limits.

Everything on it is read from the directory of the run.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple, Self

from ceit.data.sources.choose import place_of
from ceit.evaluation.scores import Calibration
from ceit.json_file import read_json
from ceit.paths import last_part
from ceit.train.config import LOCAL_TEACHER, TrainConfig, known_keys
from ceit.train.recipe import flat_keys, recipe_config, recipe_names
from ceit.train.run_directory import MAY_CHANGE, saved_config

FILE = "README.md"
_CHANGES_THE_MODEL = {"data", "device_batch_size"}  # of what may change when a run goes on
_MANY_CLASSES = 20
_FEW_IMAGES = 500


class FinishedRun(NamedTuple):
    """What a run's directory says: its options, its report on the test split, and the description of its model."""

    options: dict[str, Any]
    report: dict[str, Any]
    description: dict[str, Any]

    @classmethod
    def read(cls, run: Path, options: Mapping[str, Any] | None = None) -> Self:
        """With the options of ``config.yaml``, unless they are given, and the epochs that it took: a time budget may
        have chosen others since. Raises: ValueError if the run has not ended."""
        if not (run / "test.json").is_file():
            raise ValueError(f"{run} holds no finished run: it has no test.json")
        report, description = (read_json(run / name) for name in ("test.json", "model.json"))
        options = dict(saved_config(run) if options is None else options)
        if options.get("early_stopping_epochs") is None:
            options["epochs"] = report["epochs"]
        return cls(options, report, description)


def model_card(found: FinishedRun) -> str:
    """The card that lies in the directory of the run."""
    parts = [
        f"# {found.report['model']} trained on {found.report['data']}",
        f"This folder holds an image classifier. {classes_told(found)}",
        "## Use it",
        "Install `ceit-vision`. Then, in this folder:",
        "```\nceit predict --checkpoint . photo.jpg\n```",
        "Or from Python:",
        '```python\nimport ceit\n\npredictor = ceit.Predictor.from_checkpoint(".")\n'
        'print(predictor.predict(["photo.jpg"])[0].predictions)\n```',
        "`model.safetensors` is enough for both: it holds the class names and how images are prepared, too.",
        "## How good it is",
        *accuracy(found),
        "## How it was trained",
        *training(found),
        "## Limits",
        "\n".join(limits(found)),
    ]
    return "\n\n".join(parts) + "\n"


def classes_told(found: FinishedRun) -> str:
    """A sentence that names the classes, or of very many the first."""
    names = found.description["class_names"]
    more = f" and {len(names) - _MANY_CLASSES:,} more, which `model.json` lists" if len(names) > _MANY_CLASSES else ""
    return f"It tells {len(names):,} classes apart: {', '.join(map(_code, names[:_MANY_CLASSES]))}{more}."


def accuracy(found: FinishedRun) -> Iterator[str]:
    """The figures of the report: of the test split, of validation, and of the classes that stand out."""
    report = found.report
    chosen, top1 = report["best"]["validation_top1_percent"], f"**{_percent(report['top1_percent'])}**"
    rows = [
        "| split | images | top-1 | top-5 | loss |",
        "|---|---|---|---|---|",
        f"| test | {report['images']:,} | {top1} | {_percent(report['top5_percent'])} | {report['loss']:.4f} |",
    ]
    if chosen is not None:
        rows.append(f"| validation | | {_percent(chosen)} | | |")
    yield "\n".join(rows)
    if chosen is not None:
        kept = f"epoch {report['best']['epoch']} of {report['epochs']}"
        last = found.options.get("select") == "last"
        yield (
            f"{f'The last epoch was kept, {kept}' if last else f'Validation chose {kept}'}. "
            "The test images were looked at once, at the end."
        )
    yield from calibration_told(report)
    for sentence in outstanding(report["per_class"]):
        yield f"{sentence} `test.json` has every class, and how often which is taken for which."
    if report["images"] < _FEW_IMAGES:
        yield f"These are few test images: each one is {100 / report['images']:.1f} points of the accuracy."


def calibration_told(report: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on how far its probabilities are off, with and without a temperature, if there is one."""
    if (before := report.get("uncalibrated")) is not None:  # not in the report of an earlier version
        now = report["calibration"]
        of_chance = Calibration.from_json(now).of_chance()
        yield (
            f"Its probabilities are off by {100 * now['ece']:.1f} points on average over the test images (ECE)"
            f"{f'; {of_chance}' if of_chance else ''}. "
            f"Without the temperature of {now['temperature']:.2f}, which validation images gave, they would be off by "
            f"{100 * before['ece']:.1f}."
        )


def outstanding(per_class: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A sentence on the class that is recognised best and the one that is recognised worst, if they differ."""
    measured = [entry for entry in per_class if entry["images"]]
    best, worst = (pick(measured, key=lambda entry: entry["top1_percent"]) for pick in (max, min))
    if best["top1_percent"] > worst["top1_percent"]:
        yield f"Recognised best: {_of_class(best)}. Recognised worst: {_of_class(worst)}."


def steps_of(found: FinishedRun) -> int:
    """Steps that were taken; the report of an earlier version does not tell, and only its options do."""
    return found.report.get("steps", found.options["steps"])


def is_cut_short(found: FinishedRun) -> bool:
    """Whether the last epoch is not a whole one; the report of an earlier version does not tell."""
    return bool(steps_of(found) % found.report.get("steps_per_epoch", 1))


def training(found: FinishedRun, *more: str) -> Iterator[str]:
    """A list of data, network, start, length, seed and machine; then the command that trains such a model again."""
    options, report, machine = found.options, found.report, found.report["machine"]
    start, (height, width) = options["initial_checkpoint"], options["img_size"]
    pixels = {1: "grey pixels", 3: "pixels in colour"}.get(options["in_chans"], "pixels")
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''} of {machine['processor']}"
    device = machine["accelerator"] or threads
    epochs = f"{report['epochs']} epoch{'' if report['epochs'] == 1 else 's'}"
    epochs, whole = (f"{epochs}, the last one cut short", ", in whole epochs") if is_cut_short(found) else (epochs, "")
    yield "\n".join(
        [
            f"- Data: {report['data']}. {options['found'].rpartition(' (')[0]}.",
            f"- Network: `{report['model']}`, {report['parameters']:,} parameters, for {height} x {width} {pixels}.",
            f"- Start: {'random weights' if start is None else f'the weights of {last_part(start)}'}.",
            f"- Length: {epochs}, {steps_of(found):,} steps of {options['global_batch_size']} images.",
            f"- Time: {report['train_seconds']:.0f} s on {device}, in {options['precision']}.",
            f"- Seed: {report['seed']}.",
            f"- Made with: ceit {machine['ceit']}, torch {machine['torch']}.",
            *more,
        ]
    )
    yield f"This command trains such a model again{whole}; `config.yaml` has every option:"
    yield f"```\n{training_command(options)}\n```"


def limits(found: FinishedRun) -> list[str]:
    """What to know before one relies on it, as a list."""
    height, width = found.options["img_size"]
    unless = ", unless `--unknown-below auto` asks whether it is one" if "familiarity" in found.description else ""
    return [
        f"- It answers with one of its classes, also for a picture of something else{unless}. A high probability does "
        "not show that it is right.",
        f"- It sees {height} x {width} pixels of a picture. Finer detail is lost.",
        "- The accuracy is that on pictures from the same source. On other pictures it may be lower: measure it with "
        "`ceit evaluate` on some of yours.",
    ]


def training_command(options: Mapping[str, Any]) -> str:
    """``ceit train`` with the recipe that has most of these options, and those that differ.

    Folders are named without the way to them.
    """
    wanted = _flat(TrainConfig().as_dict()) | _flat({key: options[key] for key in options if key in known_keys()})
    for file in ("initial_checkpoint", "distillation.checkpoint"):
        if wanted[file] is not None:
            wanted[file] = last_part(wanted[file])
    if (teacher := wanted["distillation.teacher"]) is not None and teacher.startswith(LOCAL_TEACHER):
        wanted["distillation.teacher"] = LOCAL_TEACHER + last_part(teacher.removeprefix(LOCAL_TEACHER))
    without_effect = {*MAY_CHANGE} - _CHANGES_THE_MODEL
    without_effect |= {"samples", "max_epochs"} if wanted["epochs"] is not None else set()
    without_effect |= {"validation_percent"} if options.get("unsplit") else set()
    if wanted["lr_base_size"] is None:  # what auto comes to where the batch is told
        wanted |= {"lr_base_size": "auto", "lr_scaling": "auto"}
    bases: dict[str | None, dict[str, Any]] = {None: _flat(TrainConfig().as_dict())} | {
        name: _flat(recipe_config(name).as_dict()) for name in recipe_names()
    }
    fitting = {name: base for name, base in bases.items() if base.keys() <= wanted.keys()}
    different = {
        name: {key: value for key, value in wanted.items() if base.get(key) != value and key not in without_effect}
        for name, base in fitting.items()
    }
    for changed in different.values():
        if "optimizer" in changed:  # a recipe's arguments are for its own
            changed |= {key: value for key, value in wanted.items() if key.startswith("optimizer_args.")}
    recipe = min(different, key=lambda name: len(different[name]))
    words = [] if recipe is None else [f"--recipe {recipe}"]
    words += [f"--data {shlex.quote(place_without_way(options['data']))}"]
    words += [f"--{key.replace('_', '-')} {shlex.quote(_word(key, value))}" for key, value in different[recipe].items()]
    return " \\\n    ".join(["ceit train", *words, "--output NEW_FOLDER"])


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with a dotted name for everything that has a name of its own on the command line."""
    flat: dict[str, Any] = {}
    for key, value in flat_keys(options).items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def place_without_way(data: str) -> str:
    """What the data are called: a name as it is; of a path the last part."""
    known = place_of(data)
    if known is not None:
        return known[0] if known[1] is None else f"{known[0]}:DIR"
    if not data.startswith("hf:"):
        return last_part(data)
    folder = data.removeprefix("hf:")
    is_whole = PurePath(folder).is_absolute() or PureWindowsPath(folder).is_absolute()
    return f"hf:{last_part(folder)}" if is_whole else data


def _word(key: str, value: Any) -> str:
    if key == "img_size" and isinstance(value, list) and value[0] == value[1]:
        value = value[0]  # both sides of a square
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _code(name: str) -> str:
    """A name that Markdown shows letter for letter."""
    return "`" + name.replace("`", "'") + "`"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _of_class(entry: dict[str, Any]) -> str:
    return f"{_code(entry['label'])}, {entry['top1_percent']:.1f} % of {entry['images']:,} images"

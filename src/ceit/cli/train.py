"""Train an image classifier.

usage: ceit train --data DATA --output DIR [--recipe NAME] [--OPTION VALUE ...]

examples:
  ceit train --data photos/ --output runs/photos
  ceit train --data photos/ --output runs/photos --resume auto
  ceit train --recipe mine.yaml --data cifar10 --output runs/mine --peak-lr 2e-3

Without --recipe, one is chosen that suits the images, the time and the machine, and is named. Your own recipe can hold
every option that has a default; the command line wins.
"""

import json
import os
import sys
import time
from argparse import SUPPRESS, ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ceit.cli._parser import Parser, adding_to
from ceit.cli._terminal import print_evaluation
from ceit.data.sources.choose import glance
from ceit.inference.device import default_device
from ceit.inference.memory import keep_freed_memory
from ceit.machine import usable_cores
from ceit.messages import Say, in_words, unknown
from ceit.model.variants import config_of
from ceit.options import dotted_options, fits, is_section, parts_of, require_types, wanted
from ceit.paths import expanded
from ceit.terminal import stderr_console
from ceit.train.choose_recipe import FINE_TUNING, Facts, choose_recipe, network_of
from ceit.train.config import SECTIONS, TrainConfig, config_from, known_keys
from ceit.train.images import kept_classes
from ceit.train.probe import RangeTest
from ceit.train.recipe import flat_keys, nested, read_recipe, recipe_names, seconds_of
from ceit.train.run import Result, find_learning_rate, train
from ceit.train.run_directory import RANGE_TEST, saved_config
from ceit.train.schema import descriptions, recipe_schema
from ceit.weights.stored import A_CHECKPOINT, is_here
from ceit.yaml_file import parse_yaml

PLACES = {
    "data": "Images to train on: a folder with one folder of images for each class, a CSV or Parquet file of labels, a "
    "folder of shards, hf:NAME, or a set by name, such as cifar10 or imagenet:DIR.",
    "output": "Folder for everything that the run writes. It must be new or empty, unless you resume.",
    "recipe": "Options to start from: a YAML file, none for the defaults, or one of these names. Without it, one is "
    "chosen that suits the data:",
    "resume": "Continue a stopped run. auto: from the newest checkpoint in --output. Or the path of a checkpoint; "
    "later ones are then dropped.",
    "time_budget": "Time for the whole command, such as 30m or 1.5h. The run takes as many steps as fit.",
}
"""Options of the command that are no options of a configuration."""
SWITCHES = {
    "fast_dev_run": "Try everything out: one epoch of two batches, with evaluation and saving.",
    "profile": "Also write where the time of a few steps goes, into profile/ in --output.",
    "lr_range_test": "Find a learning rate: take steps at rising rates and show what the loss does.",
    "print_config": "Print every option with its value, as a recipe.",
    "print_schema": "Print the JSON schema of recipes, for editors.",
    "help": "Print the options that matter first.",
    "help_all": "Print all options.",
}
"""What the command does beside training, or instead of it."""
FIRST = (*PLACES, "epochs", "model", "img_size", "peak_lr", "global_batch_size")
"""The options that ``--help`` shows."""
GROUPS = {
    "model": "model",
    "img_size": "data",
    "epochs": "length",
    "peak_lr": "learning rate and optimizer",
    "augmentation": "augmentation",
    "mixing": "Mixup and CutMix",
    "loss": "loss and regularisation",
    "ema": "averaged weights",
    "distillation": "teacher",
    "select": "choosing the best model",
    "device": "machine",
    "log_every_steps": "logging and checkpoints",
    "limit_batches": "trying a recipe out",
}
"""The groups of ``--help-all``, each with the field of ``TrainConfig`` that it begins with."""


def main(arguments: list[str]) -> None:
    """Parse, train, print the test report."""
    config, asked = parse(arguments)
    if asked.print_schema:
        print(json.dumps(recipe_schema(), indent=1))
        return
    if asked.print_config and not asked.data:
        print_config(config)
        return
    is_alone = int(os.environ.get("WORLD_SIZE") or 1) == 1
    is_main = is_alone or int(os.environ.get("RANK") or 0) == 0  # a launcher starts this command once for every process
    live = LiveProgress(stderr_console(quiet=not is_main))
    start = config.initial_checkpoint
    if start is not None and not asked.print_config and not asked.goes_on:  # what goes on has weights of its own
        require_start(start, None if "initial_checkpoint" in asked.typed else asked.recipe)
    if asked.recipe is None and not asked.goes_on:
        config, asked = parse(arguments, chosen_options(config, asked, live.say))
    elif asked.recipe == FINE_TUNING and start is not None and "model" not in asked.typed:
        network = asked.output if asked.goes_on and not is_here(start) else start
        config, asked = parse(arguments, network_of(network))
    if asked.print_config:
        print_config(config)
        return
    age_seconds = max(0.0, time.time() - psutil.Process().create_time())  # imports included
    budget_seconds = None if asked.time_budget is None else seconds_of(asked.time_budget) - age_seconds
    if asked.lr_range_test and asked.resume:
        raise ValueError("--lr-range-test starts from the initial weights: leave out --resume")
    if asked.lr_range_test and asked.profile:
        raise ValueError("--lr-range-test takes other steps than training: leave out --profile")
    keep_freed_memory()
    output = expanded(asked.output)
    if asked.lr_range_test:
        with live:
            found = find_learning_rate(config, asked.data, output, typed=asked.typed, say=live.say)
        if is_main:
            print_range_test(found, output)
        return
    with live:
        result = train(
            config,
            asked.data,
            output,
            resume=asked.resume,
            time_budget_seconds=budget_seconds,
            typed=asked.typed,
            say=live.say,
            show=live.show,
            profile=asked.profile,
        )
    if is_main:
        print_report(result)
        if asked.fast_dev_run:
            live.say(
                f"this was only a trial of two batches: for the real training name another --output, or remove {output}"
            )


def parse(arguments: list[str], chosen: Mapping[str, Any] | None = None) -> tuple[TrainConfig, Namespace]:
    """The configuration that recipe and command line give together, and the arguments that are not part of it.

    Of these, ``typed`` are the names of all options on the command line, and ``goes_on`` tells whether a resumed run
    takes recipe, data and options from its ``config.yaml``. ``chosen`` are options found for the data: those of a
    recipe where none is named, and what a recipe leaves to a checkpoint. Raises ValueError for unknown recipe keys.
    """
    typed = _typed(arguments)
    asked = Namespace(**dict.fromkeys(PLACES), **dict.fromkeys(SWITCHES, False), typed=set(typed), goes_on=False)
    for name in typed.keys() & vars(asked).keys():
        setattr(asked, name, typed.pop(name))
    options: dict[str, Any] = (read_recipe(asked.recipe) if asked.recipe else {}) | dict(chosen or {})
    if asked.help or asked.help_all:
        print_help(flat_keys(TrainConfig().as_dict()) | options, everything=asked.help_all)
        raise SystemExit(0)
    if asked.resume and asked.output and (expanded(asked.output) / "config.yaml").is_file():
        saved, asked.goes_on = saved_config(expanded(asked.output)), True
        asked.data = asked.data or saved["data"]
        if not asked.recipe:  # else the recipe must be the one that the run was started with, which is checked
            options = flat_keys({key: value for key, value in saved.items() if key in known_keys()})
    for name in ("data", "output"):
        if not getattr(asked, name) and not (asked.print_config or asked.print_schema):
            _wrong_usage(f"--{name} is missing")
    if asked.time_budget is not None:  # it replaces what a recipe says of the length
        for name in ("epochs", "samples", "max_epochs", "fast_dev_run", "lr_range_test"):
            if (typed | vars(asked)).get(name):
                _wrong_usage(f"--time-budget chooses the number of steps: leave out {_option(name)} or --time-budget")
    require_types(TrainConfig, nested(options))
    if "optimizer" in typed and typed["optimizer"] != options.get("optimizer"):
        options.pop("optimizer_args", None)  # they are for the recipe's own optimizer
    for name, value in typed.items():
        options |= flat_keys({name: value}) if name in SECTIONS else {name: value}
    if asked.recipe or not asked.goes_on:  # else the epochs are those that the run has begun with
        if "samples" in typed:
            options["epochs"] = typed.get("epochs")  # not what a recipe says of the length
        if (epochs := options.get("epochs")) is not None:
            for name in sorted(typed.keys() & {"samples", "max_epochs"}):
                fix = "leave it out, or set --epochs null"
                _wrong_usage(f"{_option(name)} has no effect beside epochs {epochs:g}: {fix}")
    if asked.fast_dev_run:
        options |= {"epochs": 1, "limit_batches": 2, "log_every_steps": 1}
        if options.get("freeze_epochs"):
            options["freeze_epochs"] = 0.5  # one step of the head alone, one of all
    return config_from(nested(options)), asked


def chosen_options(config: TrainConfig, asked: Namespace, say: Say) -> dict[str, Any]:
    """The options of the recipe that suits the data, which is said with the reason; ``config`` has those typed.

    Tuning begins with the checkpoint's own network, at its own size. Raises: ValueError as ``glance``, and for a model
    or a checkpoint that is not there.
    """
    seen, start, side = glance(asked.data, kept_classes(config)), config.initial_checkpoint, config.img_size
    if side is None and "model" in asked.typed:
        side = config_of(config.model, **config.geometry).img_size
    facts = Facts(
        images=seen.images,
        classes=seen.classes,
        side=seen.side,
        cores=usable_cores(),
        has_gpu=config.device != "cpu" and default_device().type != "cpu",
        budget_seconds=None if asked.time_budget is None else seconds_of(asked.time_budget),
        asked_side=max(side) if isinstance(side, tuple) else side,
        starts_trained=start is not None,
    )
    choice = choose_recipe(facts)
    say(choice.reason)
    options = read_recipe(choice.recipe)
    if start is not None and "model" not in asked.typed:
        options |= network_of(start)
    return options


def require_start(checkpoint: str, recipe: str | None) -> None:
    """Raises: FileNotFoundError if the weights to start from, typed or a recipe's, are not there."""
    if is_here(checkpoint):
        return
    if recipe is None:
        raise FileNotFoundError(f"--initial-checkpoint {checkpoint} is not here: name {A_CHECKPOINT}")
    start = f"recipe {recipe} starts from {checkpoint}, which is not here"
    raise FileNotFoundError(f"{start}: give --initial-checkpoint {A_CHECKPOINT}")


def _typed(arguments: list[str]) -> dict[str, Any]:
    """The options on the command line and their values, in the order in which they stand there."""
    words = ["--help" if word == "-h" else word for word in arguments]
    types = dict.fromkeys(PLACES, str) | dict.fromkeys(SWITCHES, bool) | dict(dotted_options(TrainConfig))
    names = [word[2:].partition("=")[0].replace("-", "_") for word in words]
    types |= {name: Any for name in names if name.startswith(("geometry.", "optimizer_args."))}
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=SUPPRESS)
    for name, hint in types.items():
        alone: dict[str, Any] = {"nargs": "?", "const": True} if bool in parts_of(hint) else {}
        read = partial(_value, dict if is_section(hint) else hint)
        parser.add_argument(_option(name), f"--{name}", dest=name, type=read, **alone)
    try:
        typed, strange = parser.parse_known_args(words)
    except ArgumentError as error:
        _wrong_usage(f"{str(error.argument_name).partition('/')[0]} {error.message}")
    if strange and strange[0].startswith("--"):
        _wrong_usage(unknown("option", strange[0].partition("=")[0], map(_option, types)))
    if strange:
        _wrong_usage(f"unrecognized arguments: {' '.join(strange)}")
    return vars(typed)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(hint: Any, text: str) -> Any:
    """What a word of the command line stands for. Raises ArgumentTypeError for one that its option does not take."""
    if text in ("null", "~") and fits(None, hint):
        return None
    if hint is not Any and fits(text, hint):
        return text
    names = hint is not Any and fits(["cat"], hint)  # each is what was typed: yes and 007 are names
    for written in (text, f"[{text}]"):  # a list may stand without its brackets
        with suppress(ValueError):
            value = parse_yaml("", written, as_written=names)
            if hint is Any and written == text and isinstance(value, str) and "," in value:
                continue  # not a text: 0.9,0.99
            if text and fits(value, hint):
                is_whole = type(value) is int and hint is not Any and fits(0.5, hint)  # 5 for a number is 5.0
                return float(value) if is_whole else value
    kind = "a list of names, such as '[cat, dog]'; quote one that has a colon" if names else wanted(hint)
    raise ArgumentTypeError(f"{text} must be {kind}")


def _wrong_usage(message: str) -> NoReturn:
    """One sentence on stderr, exit code 2."""
    print(f"error: {message}; see ceit train --help", file=sys.stderr)
    raise SystemExit(2)


def print_help(defaults: dict[str, Any], everything: bool) -> None:
    """What the options mean and their defaults, those of a recipe too: the ones that matter first, or all in groups."""
    texts = PLACES | SWITCHES | descriptions(TrainConfig)
    texts |= {f"{name}.{key}": text for name, of in SECTIONS.items() for key, text in descriptions(of).items()}
    texts["recipe"] += f" {', '.join(recipe_names())}."
    groups: dict[str, list[str]] = {"first options": [*FIRST]}
    title = ""
    for name in known_keys() if everything else ():
        title = GROUPS.get(name, title)
        if name not in FIRST and name not in SECTIONS:
            groups.setdefault(title, []).append(name)
    groups["beside or instead of training"] = [*SWITCHES] if everything else ["print_config", "help_all"]
    parser = Parser(__doc__)
    parser.conflict_handler = "resolve"  # all options include --help
    for title, names in groups.items():
        add = adding_to(parser.add_argument_group(title))
        for name in names:
            text = texts[name]
            if name in defaults:
                default = defaults[name] if isinstance(defaults[name], str) else json.dumps(defaults[name])
                text += f" (default: {default})"
            add(_option(name), text.replace("%", "%%"), action="store_true")
    parser.print_help()


def print_config(config: TrainConfig) -> None:
    """Every option as YAML, to be used as a recipe, and the learning rate, where they alone give it."""
    print(yaml.safe_dump(config.as_dict(), sort_keys=False), end="")
    if config.global_batch_size is not None:
        print(f"# {config.rate_in_words}")


def print_range_test(found: RangeTest, output: Path) -> None:
    """Every tenth rate with its loss, and the suggestion, or why there is none."""
    print("learning rate        loss")
    for rate, loss in list(zip(found.rates, found.losses, strict=True))[::10]:
        print(f"{rate:13.2e}  {loss:10.4f}")
    if found.suggested is None:
        print(f"no peak_lr is suggested: {found.why_none}")
    else:
        print(f"suggested peak_lr: {found.suggested:.1e}, which trains at a tenth of the rate of the lowest loss")
    print(f"every step: {output / RANGE_TEST}")


class LiveProgress(Progress):
    """A progress bar on a terminal; elsewhere one line per epoch."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("left"),
        )
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.add_task("train", total=None, epoch="", state="starting")
        self.speed = ""  # not known yet
        self.share_done = 0.0  # of the run's work, in which the steps of small images count less

    def say(self, message: str) -> None:
        """One message above the bar."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def show(self, state: dict[str, Any]) -> None:
        """The state after a step, or a line of metrics.jsonl."""
        if state.get("event") == "epoch":
            found = {kind: kept for kind, kept in state["validation"].items() if kept is not None}
            validation = ", ".join(f"{kind} {kept['top1_percent']:.2f} %" for kind, kept in found.items()) or "-"
            loss = "-" if state["train_loss"] is None else f"{state['train_loss']:.3f}"
            seconds = state["elapsed_seconds"]
            left = f", {in_words(seconds / self.share_done - seconds)} left" if self.share_done else ""
            times = f"{in_words(seconds)} gone{left}"
            self.say(f"epoch {state['epoch']:>3}: loss {loss}, validation top-1 {validation}, {times}")
        elif state.get("event") == "test":
            self.share_done = 0.0
        elif state.get("event") == "step":
            self.speed = f"  {state['images_per_second']:.0f} images/s"
        elif "total_steps" in state:
            accuracy = "" if state["top1_percent"] is None else f"  top-1 {state['top1_percent']:.1f} %"
            text = f"loss {state['loss']:.3f}{accuracy}{self.speed}"
            if self.tasks[self.task].finished and state["share_done"] < 1:  # another run of a sweep, or more steps
                self.reset(self.task)
            self.share_done = state["share_done"]
            self.update(self.task, total=1, completed=self.share_done, epoch=state["epoch"], state=text)


def print_report(result: Result) -> None:
    """Accuracy on the test split, as a whole and of every class, and where the model is."""
    print_evaluation({"data": result.dataset.name, "split": "test"}, result.test, all_in="test.json")
    percent = result.best["validation_top1_percent"]
    accuracy = "nothing measured" if percent is None else f"{percent:.2f} %"
    kept = f"{result.best['weights']} weights of epoch {result.best['epoch']}, {accuracy} on validation"
    print(f"kept: {kept}; training took {result.train_seconds:.0f} s")
    print(f"model: {result.output / 'model.safetensors'}", flush=True)

"""``ceit train``: a recipe and a data set to a trained model."""

import argparse
import json
import os
import re
import sys
import time
from argparse import ArgumentError
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import psutil
import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ceit.inference.memory import keep_freed_memory
from ceit.messages import unknown
from ceit.paths import expanded
from ceit.train.config import TrainConfig, config_from, known_keys
from ceit.train.probe import RangeTest
from ceit.train.recipe import as_written, read_recipe, recipe_names, seconds_of
from ceit.train.run import Result, find_learning_rate, train
from ceit.train.run_directory import saved_config
from ceit.train.schema import recipe_schema

SWITCHES = {
    "fast_dev_run": "try everything out: one epoch of two batches, with evaluation and saving",
    "lr_range_test": "instead of training, find a learning rate: steps at rising rates, and what the loss does",
    "print_config": "print every option with its value, as a recipe, and do nothing else",
    "print_schema": "print the JSON schema of recipes, for editors, and do nothing else",
}


def main(arguments: list[str]) -> None:
    """Parse, train, print the test report."""
    config, asked = parse(arguments)
    if asked.print_schema:
        print(json.dumps(recipe_schema(), indent=1))
        return
    if asked.print_config:
        print_config(config)
        return
    budget_seconds = None
    if asked.time_budget is not None:
        budget_seconds = seconds_of(asked.time_budget) - _age_seconds()
    keep_freed_memory()
    output = expanded(asked.output)
    is_main = int(os.environ.get("RANK", "0")) == 0  # a launcher starts this command once for every process
    console = Console(stderr=True, quiet=not is_main)
    if asked.lr_range_test and asked.resume:
        raise ValueError("--lr-range-test starts from the initial weights: leave out --resume")
    if asked.lr_range_test:
        with LiveProgress(console) as live:
            found = find_learning_rate(config, asked.data, output, say=live.say)
        if is_main:
            print_range_test(found, output)
        return
    with LiveProgress(console) as live:
        result = train(
            config,
            asked.data,
            output,
            resume=asked.resume,
            time_budget_seconds=budget_seconds,
            typed=asked.typed,
            say=live.say,
            show=live.show,
        )
    if is_main:
        print_report(result, Console())


def parse(arguments: list[str]) -> tuple[TrainConfig, Namespace]:
    """The configuration that recipe and command line give together, and the arguments that are not part of it.

    Of these, ``typed`` are the names of all options on the command line. A resumed run takes recipe, data and options
    from its ``config.yaml``. Raises ValueError for unknown recipe keys.
    """
    arguments = _spelt_out(arguments)
    parser = _parser()
    first, _ = _first_look().parse_known_args(arguments)
    defaults: dict[str, Any] = read_recipe(first.recipe) if first.recipe else {}
    saved = expanded(first.output or ".") / "config.yaml"
    if first.resume and first.output and saved.is_file():
        values = saved_config(saved.parent)
        parser.set_defaults(data=values.pop("data"))
        if not first.recipe:  # else the recipe must be the one that the run was started with, which is checked
            defaults = _flatten(values)
    parser.set_defaults(defaults)
    try:
        asked = parser.parse_args(arguments)
    except ArgumentError as error:
        _wrong_usage(str(error))
    for name in ("data", "output"):
        if not getattr(asked, name) and not (asked.print_config or asked.print_schema):
            _wrong_usage(f"--{name} is missing")
    values = asked.as_dict()
    asked.typed = {word[2:].partition("=")[0] for word in arguments if word.startswith("--")}
    if asked.time_budget is not None:
        _refuse_beside_time_budget(asked)
    if asked.fast_dev_run:
        values |= {"epochs": 1, "limit_batches": 2, "log_every_steps": 1}
    return config_from({key: values[key] for key in known_keys() if "." not in key}), asked


def _refuse_beside_time_budget(asked: Namespace) -> None:
    """Wrong usage, if an option was typed that also chooses the steps or lets nothing train; a recipe's is replaced."""
    names = ("epochs", "samples", "max_epochs", "fast_dev_run", "lr_range_test")
    if clashing := [name.replace("_", "-") for name in names if name in asked.typed and asked[name]]:
        _wrong_usage(f"--time-budget chooses the number of steps: leave out --{clashing[0]} or --time-budget")


def _age_seconds() -> float:
    """How long this process has been running, imports included."""
    return max(0.0, time.time() - psutil.Process().create_time())


def _wrong_usage(message: str) -> NoReturn:
    """One sentence on stderr, exit code 2; the parser's own message is many lines long."""
    message = " ".join(message.split())
    wrong_value = re.search(r'Parser key "([^"]+)".*Given value: (.*)', message)
    wrong_choice = re.search(r'Parser key "([^"]+)".*Expected a typing.Literal\[(.*?)\]. Got value: (.*)', message)
    wrong_type = re.search(r"Parser key \"([^\"]+)\".*Expected a <class '(\w+)'>. Got value: (.*)", message)
    unknown_option = re.search(r"unrecognized arguments: --([\w.]+)", message)
    if wrong_value:
        message = f"--{wrong_value[1]} does not take {wrong_value[2].strip()}"
    elif wrong_type:
        message = f"--{wrong_type[1]} {wrong_type[3].strip()} must be of type {wrong_type[2]}"
    elif wrong_choice:
        message = f"--{wrong_choice[1]} {wrong_choice[3].strip()} must be one of {wrong_choice[2].replace(chr(39), '')}"
    elif unknown_option:
        message = unknown("option", unknown_option[1], known_keys())
    print(f"error: {message}; see ceit train --help", file=sys.stderr)
    raise SystemExit(2)


def _first_look() -> argparse.ArgumentParser:
    """Only what decides the other options' defaults."""
    parser = argparse.ArgumentParser(prog="ceit train", add_help=False, allow_abbrev=False)
    for name in ("recipe", "output", "resume"):
        parser.add_argument(f"--{name}")
    return parser


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ceit train",
        usage="ceit train --data DATA --output DIR [--recipe NAME|FILE.yaml] [--resume auto] [--OPTION VALUE ...]",
        allow_abbrev=False,
        exit_on_error=False,
        description="Train a classifier from scratch on a named data set or a folder.",
    )
    parser.add_argument(
        "--recipe", type=str, help=f"overrides of the options below: {', '.join(recipe_names())}, or a YAML file"
    )
    parser.add_argument(
        "--data",
        type=str,
        help="a set by name, such as cifar10 or imagenet:DIR, hf:NAME, a CSV or Parquet file of labels, a folder of "
        "class folders, or a folder of shards",
    )
    parser.add_argument("--output", type=str, help="run directory; must be new or empty unless resuming")
    parser.add_argument(
        "--resume",
        type=str,
        help="auto (the newest checkpoint in --output), or a checkpoint's path; later checkpoints are then dropped",
    )
    parser.add_argument(
        "--time_budget",
        type=str,
        help="such as 30m, from start to end of the command: choose the steps that fit, whatever a recipe says",
    )
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name}", type=bool, default=False, help=text)
    parser.add_class_arguments(TrainConfig, None)
    return parser


def _spelt_out(arguments: list[str]) -> list[str]:
    """Option names with dashes as the fields they are, switches alone as ``--skip_broken=true``, and names of classes
    in quotes."""
    switches = {f"--{name}" for name in (*SWITCHES, *_yes_or_no())}
    spelt = []
    for argument, following in zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            if name in switches and not equals and (following is None or following.startswith("--")):
                equals, value = "=", "true"
            if name == "--classes" and equals:
                value = _quoted(value)
        elif spelt and spelt[-1] == "--classes":
            name, equals, value = _quoted(argument), "", ""
        spelt.append(name + equals + value)
    return spelt


def _yes_or_no(of: type = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of the options that are true or false."""
    for name, hint in get_type_hints(of).items():
        if hint is bool:
            yield prefix + name
        elif is_dataclass(hint) and isinstance(hint, type):
            yield from _yes_or_no(hint, f"{prefix}{name}.")


def _quoted(names: str) -> str:
    """A list of names as JSON, so that each is what was typed; anything else as it is, for the parser to refuse."""
    try:
        values = as_written(names)
    except yaml.YAMLError:
        return names
    if not isinstance(values, list):
        return names
    if not all(isinstance(value, str) for value in values):
        _wrong_usage(f"--classes {names} must be a list of names, such as '[cat, dog]'; quote one that has a colon")
    return json.dumps(values)


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """The sections of a saved configuration as dotted keys."""
    keys = set(known_keys())
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key not in keys:
            continue  # what the run found, which is no option
        section = isinstance(value, dict) and any(known.startswith(f"{key}.") for known in keys)
        flat |= {f"{key}.{name}": item for name, item in value.items()} if section else {key: value}
    return flat


def print_config(config: TrainConfig) -> None:
    """Every option as YAML, to be used as a recipe, and the learning rate that they give."""
    print(yaml.safe_dump(config.as_dict(), sort_keys=False), end="")
    if config.lr_base_size is not None:
        print(
            f"# learning rate after the warm-up: {config.peak_lr:g} * {config.global_batch_size} / "
            f"{config.lr_base_size} = {config.scaled_lr:g}"
        )


def print_range_test(found: RangeTest, output: Path) -> None:
    """Every tenth rate with its loss, and the suggestion."""
    print("learning rate        loss")
    for rate, loss in list(zip(found.rates, found.losses, strict=True))[::10]:
        print(f"{rate:13.2e}  {loss:10.4f}")
    print(f"suggested peak_lr: {found.suggested:.1e}, a tenth of the rate of the lowest loss")
    print(f"every step: {output / 'lr_range_test.json'}")


class LiveProgress:
    """A progress bar on a terminal; elsewhere one line per epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.images_per_second = 0.0
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("train", total=None, epoch="", state="starting")

    def __enter__(self) -> "LiveProgress":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def say(self, message: str) -> None:
        """One message above the bar."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def show(self, state: dict[str, Any]) -> None:
        """The state after a step, or a line of metrics.jsonl."""
        if state.get("event") == "epoch":
            validation = ", ".join(
                f"{kind} {found['top1_percent']:.2f} %"
                for kind, found in state["validation"].items()
                if found is not None
            )
            loss = "-" if state["train_loss"] is None else f"{state['train_loss']:.3f}"
            self.say(
                f"epoch {state['epoch']:>3}: loss {loss}, validation top-1 {validation or '-'}, "
                f"{state['elapsed_seconds']:.0f} s"
            )
        elif state.get("event") == "step":
            self.images_per_second = state["images_per_second"]
        elif "total_steps" in state:
            accuracy = "" if state["top1_percent"] is None else f"  top-1 {state['top1_percent']:.1f} %"
            text = f"loss {state['loss']:.3f}{accuracy}  {self.images_per_second:.0f} images/s"
            self.bar.update(
                self.task, total=state["total_steps"], completed=state["step"], epoch=state["epoch"], state=text
            )


def print_report(result: Result, console: Console) -> None:
    """Per-class and total accuracy on the test split."""
    test = result.test
    console.print(f"test split of {result.dataset.name}: {test.images} images", markup=False, highlight=False)
    table = Table()
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("top-1 %", justify="right")
    listed = test.listed()
    for row in listed:
        table.add_row(Text(row.label), str(row.images), "-" if row.top1_percent is None else f"{row.top1_percent:.2f}")
    table.add_section()
    table.add_row("all", str(test.images), f"{test.top1_percent:.2f}")
    console.print(table)
    if len(listed) < len(test.per_class):
        console.print(
            f"the {len(listed)} least recognised of {len(test.per_class)} classes; test.json has all", highlight=False
        )
    best = result.best
    percent = best["validation_top1_percent"]
    accuracy = "nothing measured" if percent is None else f"{percent:.2f} %"
    console.print(
        f"kept: {best['weights']} weights of epoch {best['epoch']}, {accuracy} on validation; "
        f"training took {result.train_seconds:.0f} s\n"
        f"model: {result.output / 'model.safetensors'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    sys.stdout.flush()

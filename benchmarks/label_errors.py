"""Does a model find wrong labels? ``python -m benchmarks.label_errors --work DIR --output FILE.json``.

Gives 2 % of the training images of CIFAR-10 another label, drawn at random, and trains on them: once on all images
("in sample": the model has been taught every wrong label), and once on each half, whose model then looks at the other
("out of sample"). The images are ranked by ``ceit.evaluation.label_errors``, and, as the opponent, by the loss of
their label alone. Precision and recall are of the planted errors: what CIFAR-10 itself has wrong counts as a false
alarm. A training that was stopped goes on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ceit.atomic import replace_files, write_text
from ceit.data.held_out import with_labels_of
from ceit.data.labelled import LabelledSet
from ceit.data.sources.choose import load_images
from ceit.data.splits import Split
from ceit.evaluation.label_errors import ask, likely_label_errors
from ceit.inference.device import default_device, machine
from ceit.model import CeiT
from ceit.train.config import config_from
from ceit.train.recipe import nested, read_recipe
from ceit.train.run import train
from ceit.weights import load_checkpoint

SHARE = 0.02
SHOWN = (100, 500, 1000)


def main() -> None:
    """Plant, train, rank, write the result and print it as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_errors", description="Wrong labels, planted.")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for images and runs")
    parser.add_argument("--data", default="cifar10", help="a set known by name; default: %(default)s")
    parser.add_argument("--recipe", default="demo", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the errors and of the trainings; default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    asked = parser.parse_args()
    result = measured(asked.work, asked.data, read_recipe(asked.recipe), asked.seed)
    result = {"recipe": asked.recipe, **result, "machine": machine(torch.device("cpu"))}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    Console().print(table(result))


def measured(work: Path, data: str, recipe: dict[str, Any], seed: int) -> dict[str, Any]:
    """Precision and recall of every ranking among the first of ``SHOWN``."""
    found = load_images(data)
    true_n = found.parts["train"].labels.numpy()
    labels_n = planted(true_n, len(found.class_names), seed)
    wrong_n, halves_n = labels_n != true_n, np.random.default_rng([seed, 1]).permutation(len(true_n)) % 2
    files = {part: write_images(work / part, split, len(found.statistics[0])) for part, split in found.parts.items()}
    everything = np.ones(len(true_n), bool)
    runs = {"all": everything, "half 0": halves_n == 0, "half 1": halves_n == 1}
    models = {}
    for name, chosen_n in runs.items():
        place = work / name.replace(" ", "_")
        write_table(place.with_suffix(".csv"), found, files, labels_n, chosen_n)
        config = config_from(nested(recipe | {"seed": seed}))
        result = train(config, str(place.with_suffix(".csv")), place, resume="auto", say=print)
        models[name] = load_checkpoint(result.output)
    planted_set = replace(found.parts["train"], labels=torch.from_numpy(labels_n))
    of_all = {name: probabilities(model, planted_set, found) for name, model in models.items()}
    outside = np.where((halves_n == 0)[:, None], of_all["half 1"], of_all["half 0"])
    rankings: dict[str, Any] = {}
    for kind, probabilities_nk in (("in sample", of_all["all"]), ("out of sample", outside)):
        ways = {
            "confident learning": likely_label_errors(probabilities_nk, labels_n).images_m,
            "loss alone": np.argsort(probabilities_nk[np.arange(len(labels_n)), labels_n], kind="stable"),
        }
        for way, ranking in ways.items():
            rankings[f"{kind}, {way}"] = {
                "listed": len(ranking),
                "precision": [round(float(wrong_n[ranking[:count]].mean()), 4) for count in SHOWN],
                "recall": [round(float(wrong_n[ranking[:count]].sum() / wrong_n.sum()), 4) for count in SHOWN],
            }
    return {"data": data, "images": len(true_n), "planted": int(wrong_n.sum()), "shown": SHOWN, "rankings": rankings}


def probabilities(model: CeiT, split: Split, found: LabelledSet) -> np.ndarray:
    """What the model says of every image, ``(n, K)``, with the classes in the order of the set: a table sorts them."""
    names = model.class_names or []
    numbered = with_labels_of(names, found, split)
    answers = ask(model, numbered, names, default_device())[1]
    return answers.probabilities_nk[:, [names.index(name) for name in found.class_names]]


def planted(true_n: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """The labels with ``SHARE`` of them replaced by another class, each with the same chance."""
    generator, labels_n = np.random.default_rng(seed), true_n.copy()
    chosen = generator.choice(len(true_n), round(SHARE * len(true_n)), replace=False)
    labels_n[chosen] = (true_n[chosen] + generator.integers(1, classes, len(chosen))) % classes
    return labels_n


def write_images(folder: Path, split: Split, in_chans: int) -> list[Path]:
    """A PNG file for each image, written unless all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:05}.png" for index in range(len(split))]
    if len(list(folder.iterdir())) < len(files):
        for index, file in enumerate(files):
            split.read(index, in_chans).save(file)
    return files


def write_table(
    file: Path, found: LabelledSet, files: dict[str, list[Path]], labels_n: np.ndarray, chosen_n: np.ndarray
) -> None:
    """A table of labels: the chosen training images with the labels given, and all test images with their own."""
    names, lines = found.class_names, ["path,label,split"]
    for index in np.flatnonzero(chosen_n):
        lines.append(f"{files['train'][index].absolute()},{names[labels_n[index]]},train")
    for path, label in zip(files["test"], found.parts["test"].labels.tolist(), strict=True):
        lines.append(f"{path.absolute()},{names[label]},test")
    write_text(file, "\n".join(lines) + "\n")


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    shown = Table(f"{result['planted']:,} planted errors", *(f"precision at {count:,}" for count in result["shown"]))
    for count in result["shown"]:
        shown.add_column(f"recall at {count:,}")
    for name, found in result["rankings"].items():
        shown.add_row(name, *(f"{100 * share:.1f} %" for key in ("precision", "recall") for share in found[key]))
    return shown


if __name__ == "__main__":
    main()

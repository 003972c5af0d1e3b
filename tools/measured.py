"""Tables of what the studies under ``studies/`` have measured, for the pages of ``docs``."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from ceit.plots import BLUE, ORANGE, label_epochs, new_figure
from ceit.shipped import shipped_description, shipped_names, weights_file

STUDIES = Path("studies")  # of the project's root, where the pages are made


def averages_table() -> str:
    """Validation accuracy of raw and averaged weights after each epoch, over the seeds of ``studies/ema``."""
    runs = [_epochs(folder) for folder in sorted((STUDIES / "ema").glob("seed*"))]
    if not runs:
        raise ValueError(f"{STUDIES / 'ema'} holds no run")
    rows = ["| epoch | raw, mean | EMA, mean | EMA - raw, each seed |", "|---|---|---|---|"]
    for lines in zip(*runs, strict=True):
        raw, ema = ([line["validation"][kind]["top1_percent"] for line in lines] for kind in ("raw", "ema"))
        gains = ", ".join(f"{b - a:+.2f}" for a, b in zip(raw, ema, strict=True))
        rows.append(f"| {lines[0]['epoch']} | {mean(raw):.2f} % | {mean(ema):.2f} % | {gains} |")
    return "\n".join(rows)


def shipped_table() -> str:
    """The weights that come with the package, each with its card."""
    rows = ["| name | trained on | size | test top-1 |", "|---|---|---|---|"]
    for name in shipped_names():
        trained, size = shipped_description(name)["training"], weights_file(name).stat().st_size / 1e6
        card = f"../src/ceit/pretrained/{name}.md"
        rows.append(
            f"| [`{name}`]({card}) | {trained['data']} | {size:.2f} MB | {trained['test_top1_percent']:.2f} % |"
        )
    return "\n".join(rows)


def calibration_table() -> str:
    """What the temperature of the weights that ship changes on test images: files of ``ceit evaluate --metrics``."""
    folder = STUDIES / "calibration"
    heads = ["weights", "test images", "temperature", "ECE without", "ECE with", "loss without", "loss with"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in shipped_names():
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        before, now = found["uncalibrated"], found["calibration"]
        if now["temperature"] != shipped_description(name)["temperature"]:
            raise ValueError(f"{folder / name}.json is of another temperature than {name} has: measure it again")
        words = [f"`{name}`", f"{found['images']:,}", f"{now['temperature']:.3f}"]
        words += [f"{100 * part['ece']:.2f} points" for part in (before, now)]
        words += [f"{part['loss']:.4f}" for part in (before, now)]
        rows.append(f"| {' | '.join(words)} |")
    return "\n".join(rows)


def outsiders_table() -> str:
    """How well models tell images of no known class: ``python -m benchmarks.outsiders``."""
    kinds = {"familiarity": "familiarity", "probability": "probability of the answer"}
    heads = ["model", "images", *(f"{kind}: {what}" for kind in kinds.values() for what in ("AUROC", "unknown"))]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    files = sorted((STUDIES / "outsiders").glob("*.json"))
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        scores, model = [result["scores"][kind] for kind in kinds], f"`{result['model']}`"
        for words, key in (("known test images", "known_rejected"), ("of them, wrong answers", "mistakes_rejected")):
            shares = [cell for score in scores for cell in ("", f"{100 * score[key]:.1f} %")]
            rows.append(f"| {' | '.join([model, words, *shares])} |")
            model = ""  # in the rows below its first one
        for name in scores[0]["outsiders"]:
            own = [score["outsiders"][name] for score in scores]
            cells = [cell for one in own for cell in (f"{one['auroc']:.3f}", f"{100 * one['rejected']:.1f} %")]
            rows.append(f"| {' | '.join(['', name, *cells])} |")
    if not files:
        raise ValueError(f"{STUDIES / 'outsiders'} holds no result")
    return "\n".join(rows)


def label_errors_table() -> str:
    """How many planted label errors are found: ``python -m benchmarks.label_errors``."""
    path = STUDIES / "label_errors" / "cifar10.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    heads = [f"{key} of the first {count:,}" for key in ("precision", "recall") for count in result["shown"]]
    rows = [f"| model, order | listed | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name, found in result["rankings"].items():
        shares = [f"{100 * share:.1f} %" for key in ("precision", "recall") for share in found[key]]
        rows.append(f"| {name} | {found['listed']:,} | {' | '.join(shares)} |")
    return "\n".join(rows)


def faithfulness_table(name: str) -> str:
    """How much an answer hangs on the patches that each map names: ``python -m benchmarks.faithfulness``."""
    result = json.loads((STUDIES / "explain" / f"{name}.json").read_text(encoding="utf-8"))
    heads = ["map", "deletion, area", "against random", "insertion, area", "against random"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for kind, found in result["maps"].items():
        words = [kind]
        for way in ("deletion", "insertion"):
            gain, low, high = found[way]["against_random"]
            against = "" if kind == "random" else f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"
            words += [f"{found[way]['area']:.3f}", against]
        rows.append(f"| {' | '.join(words)} |")
    rows.append(f"\n{result['model']}, the first {result['images']:,} test images of {result['data']}.")
    return "\n".join(rows)


def photo_recipes_table() -> str:
    """What the recipes for photos reach at their own length: ``python -m benchmarks.photo_recipes``."""
    path = STUDIES / "photo_recipes" / "recipes.json"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    rows = ["| recipe | seeds | epochs | test top-1, mean | worst | training, slowest |", "|---|---|---|---|---|---|"]
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        own = [cell for cell in cells if cell["arm"] == arm and cell["minutes"] is None and cell["epochs"] is None]
        if not own:
            continue
        top1 = [cell["top1_percent"] for cell in own]
        seeds, epochs = (", ".join(str(cell[key]) for cell in own) for key in ("seed", "epochs_trained"))
        minutes = max(cell["train_seconds"] for cell in own) / 60
        rows.append(f"| {arm} | {seeds} | {epochs} | {mean(top1):.2f} % | {min(top1):.2f} % | {minutes:.1f} min |")
    if len(rows) == 2:
        raise ValueError(f"{path} holds no recipe at its own length")
    return "\n".join(rows)


def fine_tuning_table() -> str:
    """Test accuracy of fine-tuned and of new weights after the same steps, for each seed of ``studies/fine_tuning``."""
    folder = STUDIES / "fine_tuning"
    rows = [
        "| seed | six classes, 32 px | four others, 48 px: fine-tuned | from scratch | gain |",
        "|---|---|---|---|---|",
    ]
    gains = []
    for path in sorted(folder.glob("pretrain_seed*")):
        seed = path.name.removeprefix("pretrain_seed")
        before, tuned, new = (
            json.loads((folder / f"{arm}_seed{seed}" / "test.json").read_text(encoding="utf-8"))["top1_percent"]
            for arm in ("pretrain", "finetuned", "scratch")
        )
        gains.append(tuned - new)
        rows.append(f"| {seed} | {before:.2f} % | **{tuned:.2f} %** | {new:.2f} % | {tuned - new:+.2f} |")
    if not gains:
        raise ValueError(f"{folder} holds no run")
    return "\n".join([*rows, f"| mean | | | | **{mean(gains):+.2f}** |"])


def class_token_table() -> str:
    """Test accuracy on CIFAR-10 with the class token as released and left alone, for each seed."""
    rows = ["| seed | as released | class token left alone | difference |", "|---|---|---|---|"]
    differences = []
    for run in sorted((STUDIES / "class_token").glob("seed*")):
        released, alone = (
            json.loads((folder / "test.json").read_text(encoding="utf-8"))["top1_percent"]
            for folder in (run.with_name(f"demo_{run.name}"), run)
        )
        differences.append(alone - released)
        rows.append(f"| {run.name.removeprefix('seed')} | {released:.2f} % | {alone:.2f} % | {differences[-1]:+.2f} |")
    if not differences:
        raise ValueError(f"{STUDIES / 'class_token'} holds no run")
    return "\n".join([*rows, f"| mean | | | {mean(differences):+.2f} |"])


def resume_table() -> str:
    """Stops and what differed afterwards, of every run of ``studies/resume``."""
    rows = [
        "| data | signal | stops | of them in a save | steps of the run | different at the end |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted((STUDIES / "resume").glob("*.json")):
        for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            stops = run["stops"]
            saves = sum(stop["half_written"] > 0 for stop in stops)
            different = "nothing" if not run["different"] else ", ".join(run["different"])
            rows.append(
                f"| {run['data']} | {run['signal']} | {len(stops)} | {saves} | {run['training_steps']} | {different} |"
            )
    if len(rows) == 2:
        raise ValueError(f"{STUDIES / 'resume'} holds no result")
    return "\n".join(rows)


def loading_table() -> str:
    """Training from JPEG files against the bound that reading and computing set, of ``studies/loading``."""
    found = json.loads((STUDIES / "loading" / "result.json").read_text(encoding="utf-8"))
    rows = [
        "| augmentation | reading, core-ms an image | a step, core-ms an image | bound, images/s | reached "
        "| of the bound | waiting for data |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["augmentations"].items():
        shares = [repeat["percent_of_bound"] for repeat in row["repeats"]]
        rows.append(
            f"| {name.replace('_', ' ')} | {1000 * row['read_core_seconds']:.1f} "
            f"| {1000 * row['step_core_seconds']:.0f} "
            f"| {row['bound_images_per_second']:.1f} | {row['images_per_second']:.1f} "
            f"| **{row['percent_of_bound']:.0f} %** ({min(shares):.0f} to {max(shares):.0f}) "
            f"| {row['data_wait_percent']:.1f} % |"
        )
    return "\n".join(rows)


def compute_table() -> str:
    """Accuracy at equal compute, and the sentences that follow: of ``python -m benchmarks.compute --report``."""
    _, _, table, sentences, *_ = (STUDIES / "compute" / "table.md").read_text(encoding="utf-8").split("\n\n")
    return f"{table}\n\n{sentences}"


def stages_table() -> str:
    """What the stages of reading cost before and after a change of the loader, of ``studies/loading/stages.json``."""
    found = json.loads((STUDIES / "loading" / "stages.json").read_text(encoding="utf-8"))["core_ms_an_image"]
    stages = {
        "decode": "decode",
        "crop_and_flip": "decode, random crop, flip",
        "full_recipe": "all of the ImageNet recipe's augmentation",
        "three_views": "the same, three views of each image",
        "in_a_process": "all of it, in a process that hands batches on",
    }
    rows = [f"| | {' | '.join(f'{size} px | times' for size in found)} |", "|---" * (1 + 2 * len(found)) + "|"]
    for stage, words in stages.items():
        cells = []
        for turns in (of_size[stage] for of_size in found.values()):
            before, after = turns["before"], turns["after"]
            digits = 1 if median(before) < 10 else 0
            ratio = median(new / old for old, new in zip(before, after, strict=True))
            cells += [f"{median(before):.{digits}f}, {median(after):.{digits}f}", f"{ratio:.2f}"]
        rows.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw() -> None:
    """The pictures of the studies."""
    draw_averages(sorted((STUDIES / "ema").glob("seed*")), STUDIES / "ema" / "curves.png")


def draw_averages(run_dirs: Sequence[Path], path: Path) -> Path:
    """Draws the validation accuracy by epoch of the weights and of their moving average: pale each run, and the mean.

    Raises: ValueError without a run, or for one that has no moving average.
    """
    runs = [_epochs(run) for run in run_dirs]
    if not runs or any(line["validation"]["ema"] is None for lines in runs for line in lines):
        raise ValueError(f"{len(runs)} runs are given: it takes one or more, all with a moving average of the weights")
    epochs = [line["epoch"] for line in runs[0]]
    with new_figure(path, 3.6) as figure:
        axes = figure.add_subplot()
        for kind, name, colour in (("raw", "weights", BLUE), ("ema", "their moving average", ORANGE)):
            percent = np.array([[line["validation"][kind]["top1_percent"] for line in lines] for lines in runs])
            axes.plot(epochs, percent.T, color=colour, linewidth=1.0, alpha=0.35)
            means = percent.mean(0)
            label = f"{name}, {means[-1]:.2f}% at the end"
            axes.plot(epochs, means, color=colour, marker="o", markersize=4, label=label)
        label_epochs(axes, f"Validation accuracy, top-1 in %, {len(runs)} seeds and their mean")
        axes.legend(loc="lower right", handlelength=1.2)
    return path


def _epochs(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "epoch"]


if __name__ == "__main__":
    draw()

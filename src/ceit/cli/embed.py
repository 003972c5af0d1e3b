"""Turn images into features: the numbers that the model's last layer sees. Similar images have similar features.

Write them to a file for other programs, find the images most like one, or near-duplicates. --probe tells what they
are worth: how well the classes of a data set are told apart by the nearest neighbours, and by logistic regression.

usage: ceit embed [PATH ...] [options]

examples:
  ceit embed --checkpoint runs/photos photos/ --output features.npz
  ceit embed --checkpoint runs/photos photos/ --near holiday.jpg
  ceit embed --checkpoint runs/photos photos/ --duplicates 0.99
  ceit embed --checkpoint runs/photos --probe digits
"""

import argparse
import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ceit.atomic import replace_files
from ceit.cli._parser import JSON, WEIGHTS, Parser, adding_to, positive, require_output
from ceit.cli._terminal import facts, tell
from ceit.cli.predict import FILES_FROM, images_of, paths_in
from ceit.data.held_out import to_probe
from ceit.data.image import or_reason
from ceit.data.record import ImageRecord
from ceit.data.reduced import evaluation_cover
from ceit.data.sources.choose import load_images
from ceit.data.sources.listing import size_to_read
from ceit.data.splits import Split
from ceit.evaluation.neighbours import alike, knn_answers, nearest, probe_answers
from ceit.inference.memory import keep_freed_memory
from ceit.inference.prediction_file import printable
from ceit.inference.predictor import Embedding, Predictor
from ceit.messages import listed
from ceit.paths import expanded
from ceit.shipped import DEFAULT
from ceit.terminal import stderr_console
from ceit.weights import training_of

FORMS = (".npz", ".parquet")
_NEAR = 5


def main(arguments: list[str]) -> None:
    """Compute the features, and write or compare them.

    Raises: ValueError if none of the paths holds an image, for an exported file or a file that is there already; and
    after all else, if some cannot be read and that was not accepted beforehand.
    """
    options = _parsed(arguments)
    keep_freed_memory()
    if options.checkpoint is None:
        options.checkpoint = DEFAULT
        tell(f"no --checkpoint: {DEFAULT} computes, a small model that comes with ceit")
    predictor = Predictor.from_checkpoint(
        options.checkpoint, precision=options.precision, device=options.device, features=True
    )
    if options.probe is not None:
        _print(_probed(predictor, options.checkpoint, options.probe, options.skip_broken), options.json)
        return
    paths = images_of([*options.paths, *paths_in(options.files_from)])
    near = [] if options.near is None else [options.near]
    reason = None if options.near is None else or_reason(predictor.pixels, options.near)
    if isinstance(reason, str):  # told before all others are computed
        raise ValueError(f"{options.near} cannot be read: {reason}")
    found = list(_tracked(predictor, [*paths, *near]))
    broken = [one for one in found if one.error is not None]
    read = [(path, one) for path, one in zip(paths, found, strict=False) if one.features is not None]
    if not read:
        raise ValueError(
            f"none of the {len(paths)} images can be read: {printable(str(broken[0].path))}: {broken[0].error}"
        )
    sentence = ""
    if broken:
        some = listed(printable(str(one.path)) for one in broken)
        sentence = f"{len(broken)} of {len(paths)} images cannot be read: {some}"
        if options.skip_broken:
            tell(sentence)
    names, features_nd = [path for path, _ in read], _stacked([one for _, one in read])
    if options.output is not None:
        _write(options.output, names, features_nd)
        tell(f"{options.output} has {features_nd.shape[1]} features of each of {len(names):,} images")
    if near:
        cosines, numbers = nearest(_stacked(found[-1:]), features_nd, options.top_k or _NEAR)
        rows = [(c, names[n]) for c, n in zip(cosines[0].tolist(), numbers[0].tolist(), strict=True)]
        _print_rows([{"path": name, "cosine": cosine} for cosine, name in rows], options.json)
    if options.duplicates is not None:
        pairs = [
            {"path": names[pair.first], "other": names[pair.second], "cosine": pair.cosine}
            for pair in alike(features_nd, options.duplicates)
        ]
        _print_rows(pairs, options.json)
        tell(f"{len(pairs):,} pairs of {len(names):,} images have a cosine of {options.duplicates:g} or more")
    if broken and not options.skip_broken:
        raise ValueError(f"{sentence}; all else was done, and --skip-broken makes this no error")


def _tracked(predictor: Predictor, images: Sequence[str]) -> Any:
    console = stderr_console()
    stream = predictor.embed_stream(images)
    return track(
        stream, "embedding", total=len(images), console=console, transient=True, disable=not console.is_terminal
    )


def _stacked(found: Sequence[Embedding]) -> Tensor:
    return torch.from_numpy(np.stack([one.features for one in found if one.features is not None]))


def _write(file: Path, names: Sequence[str], features_nd: Tensor) -> None:
    """As arrays ``paths`` and ``features``, or as two columns."""
    buffer = io.BytesIO()
    if file.suffix == ".npz":
        np.savez(buffer, paths=np.array(names), features=features_nd.numpy())
    else:
        import pyarrow
        from pyarrow import parquet

        texts = [name.encode(errors="replace").decode() for name in names]  # Parquet takes no other bytes
        columns = {"path": texts, "features": list(features_nd.numpy())}
        parquet.write_table(pyarrow.table(columns), buffer)
    replace_files({file: buffer.getvalue()})


def _probed(predictor: Predictor, checkpoint: str, data: str, skip_broken: bool) -> dict[str, Any]:
    """Accuracy on the test images of features whose classes training images tell."""
    size = size_to_read(predictor.image_hw, predictor.preprocessing)
    found = load_images(data, img_size=size, in_chans=predictor.in_chans, skip_broken=skip_broken)
    tell(*(f"skipped {file}" for file in found.skipped), *found.remarks)
    training = training_of(checkpoint)
    train, test = to_probe(found, ImageRecord.of_run(checkpoint, training), training)
    train_nd, test_md = (_of_split(predictor, split) for split in (train, test))
    classes = len(found.class_names)
    figures: dict[str, Any] = {"data": found.name, "classes": classes}
    figures |= {"training_images": len(train_nd), "test_images": len(test_md)}
    for name, answers in (("knn_top1_percent", knn_answers), ("linear_probe_top1_percent", probe_answers)):
        said = answers(train_nd, train.labels, test_md, classes)
        figures[name] = round(100 * (said == test.labels).double().mean().item(), 2)
    return figures


def _of_split(predictor: Predictor, split: Split) -> Tensor:
    cover = evaluation_cover(predictor.image_hw, predictor.preprocessing.crop)
    images = (split.read(index, predictor.in_chans, cover) for index in range(len(split)))
    found = list(predictor.embed_stream(images))
    if broken := [one.error for one in found if one.error is not None]:
        raise ValueError(f"{len(broken)} images cannot be read: {broken[0]}")
    return _stacked(found)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    rows = {
        "data": f"{found['data']}, {found['training_images']:,} training and {found['test_images']:,} test images",
        "20 nearest neighbours": f"{found['knn_top1_percent']:.2f}%",
        "logistic regression": f"{found['linear_probe_top1_percent']:.2f}%",
    }
    Console(highlight=False).print(facts(list(rows.items())))


def _print_rows(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(list(rows)))
        return
    for row in rows:
        print(f"{row['cosine']:.4f}  {'  '.join(printable(row[key]) for key in ('path', 'other') if key in row)}")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("paths", "image, or folder of images", metavar="PATH", nargs="*")
    add("--files-from", FILES_FROM, metavar="FILE")
    add("--checkpoint", f"the model: {WEIGHTS} (default: {DEFAULT})", metavar="RUN|FILE")
    add("--output", "write paths and features to FILE.npz or FILE.parquet", type=expanded, metavar="FILE")
    add("--near", "print the images most like this one", metavar="IMAGE")
    add("--top-k", f"with --near: print K of them (default: {_NEAR})", type=positive, metavar="K")
    text = "print all pairs of images whose features have a cosine of at least C; 0.99 finds copies, 0.95 look-alikes"
    add("--duplicates", text, type=float, metavar="C")
    add("--probe", "how well a data set's classes are told apart by its features", metavar="NAME|DIR")
    add("--json", JSON, action="store_true")
    add("--skip-broken", "exit with 0 even if some images cannot be read", action="store_true")
    add(
        "--precision",
        "number format; auto: bf16 or fp16 where the machine has it",
        default="float32",
        choices=("auto", "float32", "bf16", "fp16"),
    )
    add("--device", "where to compute: cpu, cuda, cuda:1, mps (default: a GPU, if there is one)", metavar="DEVICE")
    options = parser.parse_args(arguments)
    wanted = [options.output, options.near, options.duplicates, options.probe]
    if not any(one is not None for one in wanted):
        parser.error("say what is to be done: --output, --near, --duplicates or --probe")
    asked = options.paths or options.files_from
    if options.probe is None and not asked:
        parser.error("name images, or folders of them")
    if options.probe is not None and (asked or any(one is not None for one in wanted[:3])):
        parser.error("--probe takes a data set of its own: leave out paths, --output, --near and --duplicates")
    if options.top_k is not None and options.near is None:
        parser.error("--top-k says how many images --near prints: name one with --near, or leave it out")
    if options.json and all(one is None for one in wanted[1:]):
        parser.error(
            "--json prints an answer, and --output alone has none: add --near or --duplicates, or leave it out"
        )
    if options.json and options.near is not None and options.duplicates is not None:
        parser.error("--json prints one document: ask for --near or for --duplicates")
    if options.duplicates is not None and not -1 <= options.duplicates <= 1:
        parser.error(f"--duplicates {options.duplicates:g} must lie between -1 and 1")
    if (file := options.output) is not None:
        require_output(parser, "--output", file, FORMS)
        if file.suffix == ".parquet":
            importlib.import_module("pyarrow")  # or it would be missed when all is computed
    return options

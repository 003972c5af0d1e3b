"""Show why a model answers so: which parts of an image speak for a class, and which layers decided.

Each image gets one sheet, as a picture and as SVG: what the network saw, the maps, the probabilities. What each map
tells, and what it leaves out, stands in docs/explain.md.

usage: ceit explain --checkpoint RUN|FILE --output DIR PATH ... [options]

examples:
  ceit explain --checkpoint runs/photos --output why/ holiday.jpg
  ceit explain --checkpoint runs/photos --output why/ holiday.jpg --about dog
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path

from rich.progress import track

from ceit.cli._parser import JSON, RAW, WEIGHTS, Parser, adding_to, positive
from ceit.cli._terminal import tell
from ceit.cli.predict import images_of
from ceit.data.image import UnreadableImageError
from ceit.explain.explanation import Explanation, explain, require_explainable
from ceit.explain.sheet import draw_sheet
from ceit.inference.prediction_file import printable
from ceit.inference.predictor import Predictor
from ceit.messages import listed
from ceit.paths import expanded
from ceit.shipped import DEFAULT
from ceit.terminal import stderr_console

FORMS = (".png", ".svg")
_NAME_BYTES = 180  # of a sheet's name, to which endings come; file systems allow 255


def main(arguments: list[str]) -> None:
    """Write a sheet for every image, and print what it is based on.

    Raises: ValueError if none of the paths holds an image, for a class that is not the model's, an exported file or a
    sheet that is there already; and after the last image, if some could not be read.
    """
    options = _parsed(arguments)
    paths = images_of(options.paths)
    sheets = dict(zip(_names(paths), paths, strict=True))
    files = {name: [options.output / f"{name}.explained{form}" for form in FORMS] for name in sheets}
    if there := [file for own in files.values() for file in own if os.path.lexists(file)]:
        raise ValueError(f"already there: {listed(map(str, there))}; name another --output, or remove them")
    predictor = Predictor.from_checkpoint(options.checkpoint, device=options.device, calibrated=not options.raw)
    require_explainable(predictor, options.about)
    options.output.mkdir(parents=True, exist_ok=True)
    broken, found = list[str](), list[dict[str, object]]()
    console = stderr_console()
    for name, path in track(
        sheets.items(), "explaining", console=console, transient=True, disable=not console.is_terminal
    ):
        try:
            said = explain(predictor, path, options.about, options.top_k)
        except (UnreadableImageError, OSError) as error:
            tell(str(error))
            broken.append(path)
            continue
        draw_sheet(said, _title(path, said), files[name])
        if options.json:
            found.append({"path": path, "sheet": str(files[name][0]), **said.as_dict()})
        else:
            best = f"{said.answers[0].label} {100 * said.answers[0].probability:.1f}%"
            print(f"{printable(str(files[name][0]))}: {printable(path)}: {best}")
    if options.json:
        print(json.dumps(found))
    if broken:
        raise ValueError(f"{len(broken)} of {len(paths)} images cannot be read: {listed(map(printable, broken))}")


def _names(paths: Sequence[str]) -> Iterator[str]:
    """A name for each image's sheet: that of its file, with a number where several files have it, in any case."""
    taken = set[str]()
    for path in paths:
        stem = Path(path).stem
        if len(os.fsencode(stem)) > _NAME_BYTES:
            stem = os.fsencode(stem)[:_NAME_BYTES].decode(errors="ignore")
        name = next(
            name for name in chain([stem], (f"{stem}-{number}" for number in count(2))) if name.casefold() not in taken
        )
        taken.add(name.casefold())
        yield name


def _title(path: str, said: Explanation) -> str:
    best = said.answers[0]
    return f"{printable('/'.join(Path(path).parts[-2:]))}: {best.label}, {100 * best.probability:.1f}%"


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("paths", "image, or folder of images", metavar="PATH", nargs="+")
    add("--checkpoint", f"the model: {WEIGHTS} (default: {DEFAULT})", default=DEFAULT, metavar="RUN|FILE")
    add("--output", "folder for the sheets; none is written over", required=True, metavar="DIR", type=expanded)
    add("--about", "explain this class, not the one that is answered: why is it no dog?", metavar="CLASS")
    add("--top-k", "show the K most probable classes; a sheet has room for 20", type=positive, default=5, metavar="K")
    add("--device", "where to compute: cpu, cuda, cuda:1, mps (default: a GPU, if there is one)", metavar="DEVICE")
    add("--raw", RAW, action="store_true")
    add("--json", f"{JSON}, with the values of all maps", action="store_true")
    return parser.parse_args(arguments)

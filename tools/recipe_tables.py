"""The recipes as documents: where each value comes from, how a recipe is run, and what it should cost.

A recipe's header and the comment behind each of its lines are the only source; the pages are computed from them.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from ceit.data.sources.published import PUBLISHED
from ceit.messages import in_words
from ceit.model.config import CeiTConfig
from ceit.study.cluster import GPU_FLOPS, GPUS_OF_A_NODE, geometry_on, images_shown_on, training_flops_on
from ceit.train.choose_recipe import PHOTO_CORE_FLOPS, PHOTOS, READING_SECONDS
from ceit.train.cost import mean_macs
from ceit.train.recipe import recipe_config, recipe_names

CPU_FLOPS = 0.117e12
"""Operations a second of two CPU cores, as in the slowest committed run of the recipe demo on CIFAR-10."""

_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: (?P<value>[^#]*?))?(?: *# \[(?P<source>[^]]+)\] ?(?P<note>.*))?")
_HEADER = re.compile(r"# (Source|Run|Hardware|Time|Expected|Measured): +(.*(?:\n#  +.*)*)")


@dataclass(frozen=True)
class Line:
    """One option of a recipe as it is written: its dotted name, its value in YAML, and where the value comes from.

    Sources: P the paper, R the release, DeiT its published fine-tuning, second-hand what others report, ours the rest.
    """

    option: str
    value: str
    source: str
    note: str


@cache
def text_of(recipe: str) -> str:
    """The file of a recipe that comes with the package."""
    return files("ceit").joinpath("recipes", f"{recipe}.yaml").read_text(encoding="utf-8")


def header(recipe: str) -> dict[str, str]:
    """What a recipe's first lines say: Source, Run, Hardware, Time, Expected and Measured, each as one line."""
    return {name: re.sub(r"\n# +", " ", text) for name, text in _HEADER.findall(text_of(recipe))}


def lines(recipe: str) -> list[Line]:
    """The options of a recipe, in its order. Raises ValueError for a line that does not say where its value is from."""
    found, section = [], ""
    for text in text_of(recipe).splitlines():
        if text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None or (match["value"] and not match["source"]):
            raise ValueError(f"recipe {recipe}: the line {text!r} must be 'option: value  # [source] note'")
        if not match["value"]:
            section = match["key"]
            continue
        name = f"{section}.{match['key']}" if match["indent"] else match["key"]
        found.append(Line(name, match["value"], match["source"], match["note"]))
    return found


def data_of(recipe: str) -> str:
    """The data set that a recipe is for; of recipes for anybody's photos one of 3,680, to tell what they cost."""
    if recipe.startswith("imagenet_"):
        return "imagenet"
    if recipe.startswith("photos_"):
        return "pets"
    return recipe.removeprefix("transfer_") if recipe.startswith("transfer_") else "cifar10"


def geometry_of(recipe: str) -> CeiTConfig:
    """The network that a recipe trains on its data."""
    return geometry_on(recipe_config(recipe), data_of(recipe))


def images_shown(recipe: str) -> int:
    """Images that a recipe trains on in all its epochs, repeats counted, those cut off for validation not."""
    return images_shown_on(recipe_config(recipe), data_of(recipe))


def macs_of(recipe: str) -> float:
    """MACs of one image forward, the mean over all steps, without the dead rows where the recipe skips them."""
    return mean_macs(recipe_config(recipe), geometry_of(recipe))


def training_flops(recipe: str) -> int:
    """As ``training_flops_on``, of a recipe on its data."""
    return training_flops_on(recipe_config(recipe), data_of(recipe))


def time_estimate(recipe: str) -> str:
    """The words behind ``Time:`` in a recipe's header."""
    flops = training_flops(recipe)
    if _is_for_cores(recipe):
        return f"estimated {_time_on_cores(recipe)} ({_quantity(flops)})"
    return f"estimated {in_words(flops / GPU_FLOPS)} on one GPU at {GPU_FLOPS / 1e12:.0f} TFLOP/s ({_quantity(flops)})"


def overview_table() -> str:
    """A row for every recipe."""
    rows = [
        "| recipe | model | data | epochs | estimated time | expected | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in sorted(recipe_names(), key=_order):
        config, head = recipe_config(recipe), header(recipe)
        epochs = config.epochs or f"{config.samples:,} images"
        link = f"[`{recipe}`]({page_of(recipe)}#{recipe})"
        rows.append(
            f"| {link} | `{config.model}` | {_place_of(recipe)} | {epochs} | {_time_column(recipe)} "
            f"| {head['Expected']} | {head['Measured']} |"
        )
    return "\n".join(rows)


def section(recipe: str) -> str:
    """Commands, cost and accuracy of one recipe."""
    head, data = header(recipe), _place_of(recipe)
    place = f"{data}:DIR" if data in PUBLISHED else data
    words = f"train --recipe {recipe} --data {place} --output runs/{recipe}"
    start = recipe_config(recipe).initial_checkpoint
    if start is not None:
        words += f" \\\n    --initial_checkpoint {start}"
    node = f"torchrun --nproc-per-node {GPUS_OF_A_NODE}"
    first = ", smaller images at first" if recipe_config(recipe).small_images.scale < 1 else ""
    macs = f"{macs_of(recipe) / 1e9:.3f} G MACs (attention products included{first})"
    factors = f"6 x {macs} x {images_shown(recipe) / 1e6:,.1f} M images"
    return f"""\
- Cost: {factors} = {_quantity(training_flops(recipe))}, estimated {_time_column(recipe)}
- Hardware: {head["Hardware"]}
- Expected: {head["Expected"]}
- Measured: {head["Measured"]}

```
# one GPU, or none
ceit {words}
# one node of eight GPUs
{node} -m ceit {words}
# four such nodes: on each of them, HOST being the first
{node} --nnodes 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m ceit {words}
```"""


def options_table(*recipes: str) -> str:
    """What recipes set, option by option; where they differ, each with its own value."""
    by_recipe = {recipe: {line.option: line for line in lines(recipe)} for recipe in recipes}
    options = list(dict.fromkeys(option for found in by_recipe.values() for option in found))
    rows = ["| option | value | from | note |", "|---|---|---|---|"]
    for option in options:
        groups: dict[Line | None, list[str]] = {}
        for recipe, found in by_recipe.items():
            groups.setdefault(found.get(option), []).append(recipe)
        for line, users in groups.items():
            if line is not None:
                who = "" if len(groups) == 1 else f" ({', '.join(users)})"
                rows.append(f"| `{option}`{who} | `{line.value}` | {line.source} | {line.note} |")
    return "\n".join(rows)


def page_of(recipe: str) -> str:
    """The page under docs/recipes that tells of a recipe."""
    if recipe.startswith("imagenet_"):
        return "imagenet-384.md" if recipe.endswith("_384") else "imagenet.md"
    if recipe.startswith("photos_"):
        return "photos.md"
    return "transfer.md" if recipe.startswith("transfer_") else "from-scratch.md"


def resolved(option: str, recipe: str) -> Any:
    """The value of a dotted option in the resolved recipe, as YAML writes it."""
    value: Any = recipe_config(recipe).as_dict()
    for name in option.split("."):
        value = value[name]
    return value


def written(value: str) -> Any:
    """A documented value as YAML reads it."""
    return yaml.safe_load(value)


def _order(recipe: str) -> tuple[int, str]:
    return ("from-scratch.md", "photos.md", "imagenet.md", "imagenet-384.md", "transfer.md").index(
        page_of(recipe)
    ), recipe


def _place_of(recipe: str) -> str:
    """What pages say a recipe trains on."""
    return "photos/" if recipe.startswith("photos_") else data_of(recipe)


def _is_for_cores(recipe: str) -> bool:
    """Whether its network is small enough to be trained without a GPU."""
    return geometry_of(recipe).embed_dim < 192


def _time_on_cores(recipe: str) -> str:
    """Arithmetic, and of photos reading as well."""
    seconds = training_flops(recipe) / CPU_FLOPS
    if recipe in PHOTOS.values():
        reading = (recipe_config(recipe).samples or 0) * READING_SECONDS / 2
        seconds = training_flops(recipe) / (2 * PHOTO_CORE_FLOPS) + reading
    return f"{in_words(seconds)} on two CPU cores"


def _time_column(recipe: str) -> str:
    flops = training_flops(recipe)
    if _is_for_cores(recipe):
        return _time_on_cores(recipe)
    one, eight = flops / GPU_FLOPS, flops / GPU_FLOPS / GPUS_OF_A_NODE
    return f"{in_words(one)} on one GPU, {in_words(eight)} on {GPUS_OF_A_NODE}"


def _quantity(flops: float) -> str:
    size, unit = (1e18, "EFLOP") if flops >= 1e17 else (1e15, "PFLOP")
    return f"{flops / size:.2g} {unit}" if flops < 100 * size else f"{flops / size:.0f} {unit}"

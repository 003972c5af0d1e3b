"""Which recipe suits what lies there, and why, in plain words: the images, the time and the machine decide."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from ceit.messages import in_words
from ceit.model.variants import config_of
from ceit.paths import expanded
from ceit.train.cost import mean_macs
from ceit.train.recipe import recipe_config
from ceit.weights import load_checkpoint
from ceit.weights.geometry import nearest_model

SMALL_IMAGES = ("demo", "small_30min", "small_90min")
"""Recipes for small images, each trained for longer than the one before."""
FINE_TUNING = "photos_finetune"
PHOTOS = {64: "photos_64", 128: "photos_128", 224: "photos_224"}
"""Image size in pixels to the recipe that trains from scratch at it."""
SMALL_SIDE = 40  # pixels: up to it, images are small ones
MANY_PHOTOS = 2_000  # to train on, below which 224 px are hardly worth their time from scratch
FEW_A_CLASS = 50  # images, below which little can be expected from scratch
PATIENCE_SECONDS = 2_100  # of somebody who trains on a CPU and says nothing of time: half an hour, or a little more
FEWEST_EPOCHS = 30  # of a small set that a time budget must allow, or half of what the recipe shows of a large one

READING_SECONDS = 0.003
"""Of a core, to read and vary a photo."""
PHOTO_CORE_FLOPS = 0.04e12
"""That a CPU core sustains with the recipes for photos. Both were fitted to docs/photos.md, to within 7 %."""
_CORE_FLOPS = 0.055e12  # with those for small images
_GPU_FLOPS = 2e12  # that a GPU sustains with networks as small as these: one H100 did


@dataclass(frozen=True)
class Facts:
    """What the choice depends on: of the set, of the machine, and what was asked for.

    ``side`` is the usual shorter side of the images in pixels; ``asked_side`` the one that the network is to see, if
    ``--img-size`` or ``--model`` says so. ``starts_trained`` tells that there are weights to begin with.
    """

    images: int
    classes: int
    side: int
    cores: int
    has_gpu: bool = False
    budget_seconds: float | None = None
    asked_side: int | None = None
    starts_trained: bool = False


class Choice(NamedTuple):
    """A recipe by name, and two or three sentences that say why."""

    recipe: str
    reason: str


def choose_recipe(facts: Facts) -> Choice:
    """The recipe for these facts: of photos the largest that the images have, are many enough for, and time allows."""
    recipe, because = _recipe(facts)
    cores = f"{facts.cores} CPU core{'' if facts.cores == 1 else 's'}"
    where = "a GPU" if facts.has_gpu else cores
    limit = "" if facts.budget_seconds is None else f", the run {in_words(facts.budget_seconds)}"
    found = f"about {facts.images:,} images of {facts.classes:,} classes to train on, with {facts.side:,} pixels on the"
    sentences = [f"Found {found} shorter side; the machine has {where}{limit}.", f"The recipe is {recipe}: {because}."]
    if not facts.starts_trained and facts.images < FEW_A_CLASS * facts.classes:
        few = f"{facts.images // facts.classes} images a class are few to learn from nothing"
        sentences.append(f"{few}: more photos help most, or trained weights (--initial-checkpoint).")
    return Choice(recipe, " ".join(sentences))


def _recipe(facts: Facts) -> tuple[str, str]:
    if facts.starts_trained:
        return FINE_TUNING, "the weights have learnt before, so a few epochs at a low rate suit them"
    if (side := facts.asked_side) is not None:
        if side <= SMALL_SIDE:
            return _for_small_images(facts, f"it is made for small images, and {side} pixels were asked for")
        size = next((size for size in PHOTOS if side <= 1.25 * size), max(PHOTOS))
        return PHOTOS[size], f"its size is the nearest to the {side} pixels that were asked for"
    if facts.side <= SMALL_SIDE:
        return _for_small_images(facts, "it is made for small images")
    smallest, *larger = PHOTOS
    chosen, because = smallest, ""
    for size in larger:
        name = PHOTOS[size]
        if size > 1.25 * facts.side:
            return PHOTOS[chosen], f"the images show no more detail than {chosen} pixels hold"
        if size == max(PHOTOS) and facts.images < MANY_PHOTOS:
            because = f"{name} sees more detail, but wants {MANY_PHOTOS:,} images or more to learn it from"
            break
        if (seconds := _seconds(name, facts)) > _limit_seconds(facts):
            takes = "takes about" if facts.budget_seconds is None else "needs at least"
            because = f"{name} sees more detail, but {takes} {in_words(seconds)} here; --recipe {name} chooses it"
            break
        chosen = size
    if facts.budget_seconds is not None and (least := _seconds(PHOTOS[smallest], facts)) > facts.budget_seconds:
        because = f"it is the quickest, but to learn much even it needs at least {in_words(least)} here"
    return PHOTOS[chosen], because or f"the images are large and many enough for {chosen} pixels, and there is time"


def _for_small_images(facts: Facts, because: str) -> tuple[str, str]:
    """The quickest recipe, or the largest that a time budget or a GPU has the time for."""
    quickest, *larger = SMALL_IMAGES
    if facts.budget_seconds is None and not facts.has_gpu:
        return quickest, because
    chosen = next((name for name in reversed(larger) if _seconds(name, facts) <= _limit_seconds(facts)), quickest)
    return chosen, because if chosen == quickest else f"{because}, and there is time for more than {quickest} does"


def _limit_seconds(facts: Facts) -> float:
    if facts.budget_seconds is not None:
        return facts.budget_seconds
    return float("inf") if facts.has_gpu else PATIENCE_SECONDS


def _seconds(recipe: str, facts: Facts) -> float:
    """What a recipe takes here, as far as a formula can tell: at its own length, or the least that makes sense."""
    config = recipe_config(recipe)
    images = config.epochs_for(facts.images) * facts.images
    if facts.budget_seconds is not None:
        images = min(images // 2, FEWEST_EPOCHS * facts.images)
    network = config_of(config.model, **config.geometry, num_classes=facts.classes)
    are_photos = recipe in PHOTOS.values()
    flops = _GPU_FLOPS if facts.has_gpu else facts.cores * (PHOTO_CORE_FLOPS if are_photos else _CORE_FLOPS)
    reading = READING_SECONDS / facts.cores if are_photos else 0.0
    return images * (6 * mean_macs(config, network) / flops + reading)


def network_of(checkpoint: str) -> dict[str, Any]:
    """The options that make a checkpoint's own network, at its own size. Raises: ValueError as ``load_checkpoint``."""
    network = load_checkpoint(expanded(checkpoint)).config
    model, geometry = nearest_model(network)
    return {"model": model, "geometry": geometry, "img_size": network.img_size}

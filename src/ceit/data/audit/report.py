"""What a check of a data set found; ``ceit.data.audit.check`` does the looking.

Errors spoil training or its figures: images that cannot be read, shards that changed, classes without an image or
without one to train on, leakage, which is copies of an image in two splits, and what training refuses. All else is for
people to know.
"""

from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple


class ImageName(NamedTuple):
    """An image as a report names it: its file within the split, or its key; ``note`` is why it is named."""

    split: str
    name: str
    class_name: str
    note: str = ""


@dataclass(frozen=True)
class Copies:
    """Images that are copies of each other: ``exact`` with the same pixels, else encoded or resized anew."""

    exact: bool
    images: tuple[ImageName, ...]

    @property
    def across(self) -> bool:
        """Whether they are in more than one split."""
        return len({image.split for image in self.images}) > 1

    @property
    def of_several_classes(self) -> bool:
        """Whether one of them must be labelled wrongly."""
        return len({image.class_name for image in self.images}) > 1


@dataclass(frozen=True)
class Report:
    """What a check found. ``counts`` are readable images by class and split, ``modes`` Pillow's modes."""

    name: str
    splits: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    unreadable: tuple[ImageName, ...]
    changed_shards: tuple[str, ...]
    copies: tuple[Copies, ...]
    blank: tuple[ImageName, ...]
    dark: tuple[ImageName, ...]  # they use 12 bits of 16 or fewer, undeclared, so that they look black
    cut: tuple[ImageName, ...]  # one side is grey, as of a JPEG that was cut short and given an end
    modes: dict[str, int]
    smallest: tuple[int, int] | None  # width and height of the image of fewest pixels
    largest: tuple[int, int] | None  # and of most
    layout: tuple[str, ...] = ()  # how a folder was understood: a line for each split
    remarks: tuple[str, ...] = ()  # what was left out or passed over before any image was read
    refusal: str = ""
    """Why training would not take what can be read, in its own words; empty if it would, or an error above says it."""

    @property
    def images(self) -> int:
        """How many could be read."""
        return sum(sum(by_split.values()) for by_split in self.counts.values())

    @property
    def leaks(self) -> tuple[Copies, ...]:
        """The copies across splits."""
        return tuple(group for group in self.copies if group.across)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Classes without a readable image in any split."""
        return tuple(name for name, by_split in self.counts.items() if not any(by_split.values()))

    @property
    def untrained_classes(self) -> tuple[str, ...]:
        """Classes that have images, but none to train on."""
        counts, first = self.counts.items(), self.splits[0]
        return tuple(name for name, by_split in counts if any(by_split.values()) and not by_split[first])

    @property
    def untested_classes(self) -> tuple[str, ...]:
        """Classes to train on that another split lacks."""
        counts, first = self.counts.items(), self.splits[0]
        return tuple(name for name, by_split in counts if by_split[first] and not all(by_split.values()))

    @property
    def balance(self) -> tuple[tuple[str, int], tuple[str, int]] | None:
        """The classes of most and of fewest images to train on, among those that have any."""
        sizes = [(name, by_split[self.splits[0]]) for name, by_split in self.counts.items() if by_split[self.splits[0]]]
        return (max(sizes, key=itemgetter(1)), min(sizes, key=itemgetter(1))) if sizes else None

    @property
    def errors(self) -> tuple[str, ...]:
        """Each kind of error there is, counted in words, and why training would refuse the set."""
        return (*self._counted, self.refusal) if self.refusal else self._counted

    @property
    def verdict(self) -> str:
        """The errors in one sentence."""
        *some, last = self._counted or [""]
        counted = f"{self.name} has {', '.join(some)}{' and ' if some else ''}{last}" if last else ""
        return "; ".join(filter(None, [counted, self.refusal]))

    @property
    def _counted(self) -> tuple[str, ...]:
        kinds = (
            (self.unreadable, "unreadable image", "unreadable images"),
            (self.changed_shards, "changed shard", "changed shards"),
            (self.leaks, "image copied across splits", "images copied across splits"),
            (self.empty_classes, "empty class", "empty classes"),
            (self.untrained_classes, "class without training images", "classes without training images"),
        )
        return tuple(f"{len(found):,} {one if len(found) == 1 else many}" for found, one, many in kinds if found)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        balance = self.balance
        return {
            "name": self.name,
            "layout": list(self.layout),
            "remarks": list(self.remarks),
            "images": self.images,
            "errors": list(self.errors),
            "splits": list(self.splits),
            "class_counts": self.counts,
            "largest_class": balance and {"class": balance[0][0], "images": balance[0][1]},
            "smallest_class": balance and {"class": balance[1][0], "images": balance[1][1]},
            "imbalance": balance and balance[0][1] / balance[1][1],
            "empty_classes": list(self.empty_classes),
            "classes_without_training_images": list(self.untrained_classes),
            "classes_missing_in_a_split": list(self.untested_classes),
            "unreadable": [image._asdict() for image in self.unreadable],
            "changed_shards": list(self.changed_shards),
            "copies": [
                {
                    "kind": "exact" if group.exact else "encoded anew",
                    "across_splits": group.across,
                    "several_classes": group.of_several_classes,
                    "images": [image._asdict() for image in group.images],
                }
                for group in self.copies
            ],
            "blank": [image._asdict() for image in self.blank],
            "dark": [image._asdict() for image in self.dark],
            "cut": [image._asdict() for image in self.cut],
            "modes": self.modes,
            "smallest_image": self.smallest and {"width": self.smallest[0], "height": self.smallest[1]},
            "largest_image": self.largest and {"width": self.largest[0], "height": self.largest[1]},
        }

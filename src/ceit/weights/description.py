"""What a checkpoint says about its network beside the weights, as JSON: geometry, class names, preprocessing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from ceit.json_file import is_number, json_text
from ceit.messages import require_plain
from ceit.model import CeiTConfig

FORMAT = "ceit"
FORMAT_VERSION = 1
_TYPES: dict[str, tuple[type, str]] = {
    "model": (str, "a text"),
    "class_names": (list, "a list of texts"),
    "preprocessing": (dict, "mean, std, crop and interpolation"),
    "training": (dict, "an object"),
}
_HOTTEST = 1e9  # temperature, at which all classes are as likely
_OPTIONAL = ("temperature", "familiarity")  # what only trained networks with validation images have


@dataclass(frozen=True)
class Description:
    """The content of the JSON file beside a checkpoint's tensors.

    ``class_names`` are in the order of the logits. ``preprocessing`` has ``mean`` and ``std`` per channel (of pixels
    in 0..1), ``crop`` and ``interpolation``. ``training`` is free. ``temperature`` divides the logits before the
    softmax; None leaves them. ``familiarity`` is as ``Familiarity.from_dict`` takes it. Raises: ValueError if the class
    names do not match the head, a preprocessing that lacks something, or for a temperature that is no positive number.
    """

    config: CeiTConfig
    model: str | None = None
    class_names: Sequence[str] | None = None
    preprocessing: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    temperature: float | None = None
    familiarity: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.config.num_classes:
            raise ValueError(
                f"{len(self.class_names)} class names do not match a head of {self.config.num_classes} classes"
            )
        require_plain("class", self.class_names or ())
        if self.preprocessing is not None:
            _require_whole(self.preprocessing)
        if (given := self.temperature) is not None and (not is_number(given) or not 0 < given <= _HOTTEST):
            raise ValueError(f"temperature {given!r} must be a number greater than 0, and at most {_HOTTEST:g}")

    def require_channels(self) -> None:
        """Raises: ValueError for a preprocessing of other channels; an earlier version has saved such ones."""
        channels, of = self.config.in_chans, self.preprocessing or {}
        if any(len(of[key]) != channels for key in ("mean", "std") if key in of):
            values = f"mean {of['mean']} and std {of['std']}"
            raise ValueError(f"{values} of the preprocessing do not fit a network of {channels} channels")

    def to_json(self, fingerprint: str) -> str:
        """``fingerprint`` ties the text to the tensors that it was saved with."""
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "config": asdict(self.config),
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": self.preprocessing,
            "training": self.training,
            **{key: value for key in _OPTIONAL if (value := getattr(self, key)) is not None},
            "fingerprint": fingerprint,
        }
        return json_text(body, indent=2) + "\n"

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises: ValueError for a newer format or a field that makes no sense."""
        version = body.get("format_version")
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"format version {version!r} must be a whole number from 1 on")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"format version {version} is newer than {FORMAT_VERSION}, the newest that this ceit reads; upgrade it"
            )
        try:
            config = CeiTConfig(**body["config"])
            for key, (of, words) in _TYPES.items():
                if not isinstance(value := body[key], of | None):
                    raise ValueError(f"{key} {value!r} must be {words}")
            if strange := [name for name in body["class_names"] or () if not isinstance(name, str)]:
                raise ValueError(f"class name {strange[0]!r} must be a text")
            said = (body[key] for key in _TYPES)
            return cls(config, *said, **{key: body.get(key) for key in _OPTIONAL})
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"the description of the network is damaged ({error})") from error


def _require_whole(preprocessing: Mapping[str, Any]) -> None:
    """Raises: ValueError if something is missing, or of another kind."""
    for key in ("mean", "std", "crop", "interpolation"):
        if key not in preprocessing:
            raise ValueError(f"the preprocessing lacks {key}: it needs mean, std, crop and interpolation")
    lists = [preprocessing["mean"], preprocessing["std"]]
    if not all(isinstance(one, list) and all(map(is_number, one)) for one in lists):
        raise ValueError(f"mean and std {lists} of the preprocessing must be lists of numbers")
    if not is_number(preprocessing["crop"]) or not isinstance(preprocessing["interpolation"], str):
        raise ValueError(f"the preprocessing {preprocessing} must hold a number as crop, and an interpolation")

"""What a checkpoint says about its network beside the weights, as JSON: geometry, class names, preprocessing."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from ceit.model import CeiTConfig

FORMAT = "ceit"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Description:
    """The content of the JSON file beside a checkpoint's tensors.

    ``class_names`` are in the order of the logits. ``preprocessing`` has ``mean`` and ``std`` per channel (of pixels
    in 0..1), ``crop`` and ``interpolation``. ``training`` is free. Raises: ValueError if the class names do not match
    the head.
    """

    config: CeiTConfig
    model: str | None = None
    class_names: Sequence[str] | None = None
    preprocessing: dict[str, Any] | None = None
    training: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.config.num_classes:
            raise ValueError(
                f"{len(self.class_names)} class names do not match a head of {self.config.num_classes} classes"
            )

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
            "fingerprint": fingerprint,
        }
        return json.dumps(body, indent=2, ensure_ascii=False) + "\n"

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
            return cls(config, *(body[key] for key in ("model", "class_names", "preprocessing", "training")))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the description of the network is damaged ({error})") from error

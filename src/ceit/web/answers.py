"""From the bytes of an image to what is said and shown of it, by one model or by several. Knows nothing of the web."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from threading import Lock
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from ceit.data.sources.walk import printable
from ceit.explain.explanation import Explanation, PatchMap, explain, require_explainable
from ceit.inference.predictor import Prediction, Predictor, familiarity_of
from ceit.messages import is_lack_of_memory
from ceit.model import CeiT

TOP_K = 5
_SIDE = 256  # pixels of a picture on the page, or a little less: whole pixels of what the network sees
_AMOUNTS = ((0, 34, 78), (124, 123, 120), (254, 232, 56))  # dark blue over grey to yellow, as of cividis
_AGAINST_AND_FOR = ((179, 88, 6), (247, 247, 247), (84, 39, 136))  # orange over white to purple, as of PuOr
_STRENGTH = 0.6  # of the map on the grey image
_ONE_AT_A_TIME = Lock()  # explaining watches the layers of a network, which others must not use meanwhile


@dataclass(frozen=True)
class Shown:
    """A model on the page, under the name that the user gave. ``remarks`` say what it cannot do."""

    name: str
    predictor: Predictor
    remarks: tuple[str, ...] = ()

    @property
    def explains(self) -> bool:
        """Whether its layers can be watched."""
        return isinstance(self.predictor.model, CeiT)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "classes": list(self.predictor.class_names),
            "image_hw": list(self.predictor.image_hw),
            "tells_unknown": self.predictor.unknown_below is not None,
            "explains": self.explains,
            "remarks": list(self.remarks),
        }


class Panel(NamedTuple):
    """A picture on the page: its address, what it shows, and what its colours mean."""

    address: str
    title: str
    colours: str = ""


def shown(name: str, device: str | None, calibrated: bool, unknown_below: float) -> Shown:
    """The model of a run, a file or a shipped name, computed as ``ceit predict`` does it.

    It tells unknown images if it can; if not, a remark says why. Raises: as ``Predictor.from_checkpoint``.
    """
    predictor = Predictor.from_checkpoint(name, device=device, precision="auto", calibrated=calibrated)
    model, remarks = predictor.model, _reasons(predictor)
    try:
        familiarity_of(model, unknown_below)
    except ValueError as error:
        return Shown(printable(name), predictor, (str(error), *remarks))
    judging = Predictor.from_model(
        model, device=device, precision="auto", calibrated=calibrated, unknown_below=unknown_below
    )
    return Shown(printable(name), judging, remarks)


def answer(model: Shown, image: bytes, top_k: int = TOP_K) -> Prediction:
    """What the model says, or why it cannot, as an ``error``."""
    with _ONE_AT_A_TIME:
        try:
            return model.predictor.predict(image, top_k=top_k)[0]
        except (ValueError, MemoryError, RuntimeError) as error:  # damaged weights answer with what is no number
            return Prediction(None, error=_reason(error))


def answers_html(models: Sequence[Shown], image: bytes) -> str:
    """The answers of all models as a part of the page; every name in it is escaped."""
    cards: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    for model in models:
        said = answer(model, image)
        if said.error is not None:
            errors[model.name] = said.error
            continue
        card: dict[str, Any] = {"name": model.name, "said": said, "panels": [], "weights": [], "unexplained": None}
        if model.explains:
            try:
                with _ONE_AT_A_TIME:
                    found = explain(model.predictor, image)
                card |= {"panels": _panels(found), "weights": _layer_weights(found)}
            except (ValueError, MemoryError, RuntimeError) as error:
                card["unexplained"] = _reason(error)
        cards.append(card)
    alike = len(models) == 1 or (len(errors) == len(models) and len({*errors.values()}) == 1)
    sentences = errors.values() if alike else [f"{name}: {sentence}" for name, sentence in errors.items()]
    return _render(cards=cards, error="; ".join(dict.fromkeys(sentences)) or None)


def error_html(sentence: str) -> str:
    """Why there is no answer, as a part of the page."""
    return _render(error=sentence)


def remarks_html(models: Sequence[Shown]) -> str:
    """What the models cannot do, once for the page."""
    return _render(remarks=[(model.name, remark) for model in models for remark in model.remarks])


def _reasons(predictor: Predictor) -> tuple[str, ...]:
    """Why the model cannot be explained: nothing if it can."""
    try:
        require_explainable(predictor, None)
    except ValueError as error:
        return (str(error),)
    return ()


def _reason(error: Exception) -> str:
    """Why the network failed."""
    return "this machine has too little memory for it" if is_lack_of_memory(error) else str(error)


def _render(**parts: Any) -> str:
    template = files("ceit.web").joinpath("answers.html.j2").read_text(encoding="utf-8")
    strict = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return strict.from_string(template).render({"error": None, "cards": [], "remarks": [], **parts})


def _panels(found: Explanation) -> list[Panel]:
    """What the network saw, then each map on it."""
    panels = [Panel(_address(found.pixels_hwc), "what the network sees")]
    for entry in found.maps:
        least, most = ("against (orange)", "for (purple)") if entry.signed else ("little (blue)", "much (yellow)")
        panels.append(Panel(_address(_laid_on(found.pixels_hwc, entry)), entry.title, f"{least} to {most}"))
    return panels


def _layer_weights(found: Explanation) -> list[float]:
    """LCA's weight of each block, the mean over its heads, in percent."""
    return [] if found.layer_weights_kl is None else [100 * w for w in found.layer_weights_kl.mean(0).tolist()]


def _laid_on(pixels_hwc: np.ndarray, entry: PatchMap) -> np.ndarray:
    """The map in colours on the image in grey, uint8 ``(H, W, 3)``."""
    largest = float(np.abs(entry.values_hw).max()) or 1.0
    shares_hw = (entry.values_hw / largest + 1) / 2 if entry.signed else entry.values_hw / largest
    anchors = np.array(_AGAINST_AND_FOR if entry.signed else _AMOUNTS, dtype=np.float64)
    colours = [np.interp(shares_hw, (0, 0.5, 1), anchors[:, channel]) for channel in range(3)]
    small = Image.fromarray(np.stack(colours, axis=-1).round().astype(np.uint8))
    height, width = pixels_hwc.shape[:2]
    colours_hwc = np.asarray(small.resize((width, height), Image.Resampling.NEAREST), dtype=np.float64)
    grey_hwc = pixels_hwc.mean(axis=2, keepdims=True)
    return (_STRENGTH * colours_hwc + (1 - _STRENGTH) * grey_hwc).round().astype(np.uint8)


def _address(pixels_hwc: np.ndarray) -> str:
    """The pixels as a ``data:`` address, each of a small image as a square."""
    image, file = Image.fromarray(pixels_hwc.squeeze()), io.BytesIO()
    times = max(1, _SIDE // max(image.size))
    image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"

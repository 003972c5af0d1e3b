"""Everything that is said of one image: the answers, a map for each question, and which layers decided.

Letters: ``H W`` pixels or patches, ``K`` heads, ``L`` encoder blocks.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ceit.data.sources.class_names import class_name
from ceit.explain.capture import capture
from ceit.explain.maps import contributions, grad_cam, last_attention, rollout
from ceit.inference.predictor import ImageInput, Predictor, Score, require_numbers
from ceit.messages import unknown
from ceit.model import CeiT


@dataclass(frozen=True)
class PatchMap:
    """A number for each patch, ``(H, W)``; of ``signed`` ones 0 is neutral, the others are not negative.

    ``about`` is the class that it speaks of; empty if it speaks of none.
    """

    kind: str
    values_hw: np.ndarray
    signed: bool = False
    about: str = ""

    @property
    def title(self) -> str:
        """The kind, and the class if it speaks of one."""
        return f"{self.kind} {self.about}".rstrip()


@dataclass(frozen=True)
class Explanation:
    """Of one image, in the order of the network's answers.

    ``pixels_hwc`` is what the network saw, ``about`` the class that the maps speak of, ``maps`` are one to four. Of a
    network with LCA ``layer_weights_kl`` are each head's weights of the blocks, and of one that classifies a class
    token ``block_maps_lhw`` its attention in every block, mean over heads.
    """

    pixels_hwc: np.ndarray
    answers: tuple[Score, ...]
    about: Score
    maps: tuple[PatchMap, ...]
    layer_weights_kl: np.ndarray | None
    block_maps_lhw: np.ndarray | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with four digits."""
        weights = self.layer_weights_kl
        return {
            "predictions": [score._asdict() for score in self.answers],
            "about": self.about._asdict(),
            "maps": {entry.title: _rounded(entry.values_hw) for entry in self.maps},
            "layer_weights": None if weights is None else _rounded(weights.mean(0)),
            "layer_weights_by_head": None if weights is None else _rounded(weights),
        }


@torch.inference_mode(False)  # in which Grad-CAM could have no gradient
def explain(predictor: Predictor, image: ImageInput, about: str | None = None, top_k: int = 5) -> Explanation:
    """Why the network answers so, or why it does not answer ``about``, another of its classes.

    Of several classes of that name it is the most probable. A copy of the network computes, as eager torch in float32,
    on the predictor's device. Raises: ValueError for an exported file, whose layers cannot be watched, or an unknown
    class; UnreadableImageError or OSError for an image.
    """
    require_explainable(predictor, about)
    model, names = predictor.model, predictor.class_names
    assert isinstance(model, CeiT)
    model = copy.deepcopy(model).to(predictor.device, torch.float32).eval()
    pixels_hwc = predictor.pixels(image)
    images = predictor.preprocessing.normalise(pixels_hwc[None]).permute(0, 3, 1, 2).to(predictor.device)
    with torch.no_grad(), capture(model) as seen:
        logits_1k = model(images)
    probabilities_k = (logits_1k[0].float() / predictor.temperature).softmax(0)
    require_numbers(probabilities_k)
    order = probabilities_k.argsort(descending=True).tolist()
    number = next(i for i in order if about is None or class_name(names[i]) == class_name(about))
    rival = next((i for i in order if i != number), None)
    scores = {i: Score(names[i], probabilities_k[i].item()) for i in order}
    answers = tuple(scores[i] for i in order[:top_k])
    attention = seen.attention()

    def called(number: int) -> str:
        """The class's name, and its number where another class has the same name."""
        return f"{names[number]} (class {number})" if names.count(names[number]) > 1 else names[number]

    def numbers(number: int) -> torch.Tensor:
        return torch.tensor([number], device=images.device)

    maps: list[PatchMap] = []

    def add(kind: str, map_1hw: torch.Tensor, signed: bool = False, about: str = "") -> None:
        maps.append(PatchMap(kind, map_1hw[0].float().cpu().numpy(), signed, about))

    classifies_patches = model.config.global_pool != "token"
    if classifies_patches:
        for one in (number, rival):
            if one is not None:
                add("for and against", contributions(model, images, numbers(one)), signed=True, about=called(one))
    if len(model.blocks) > model.config.has_dead_rows:
        add("Grad-CAM of", grad_cam(model, images, numbers(number)), about=called(number))
    if classifies_patches and model.lca is None:
        return Explanation(pixels_hwc, answers, scores[number], tuple(maps), None, None)
    if model.lca is not None:
        add("attention, all layers", rollout(attention))
    if not classifies_patches:
        add("attention, last layer", last_attention(attention))
    rows_lt = attention.class_rows_blkt[0].mean(dim=1)
    weights = attention.layer_weights_bkl
    return Explanation(
        pixels_hwc,
        answers,
        scores[number],
        tuple(maps),
        None if weights is None else weights[0].cpu().numpy(),
        rows_lt[:, 1:].unflatten(1, attention.grid).cpu().numpy(),
    )


def require_explainable(predictor: Predictor, about: str | None) -> None:
    """Raises: ValueError for an exported file, or for a class that the network does not know."""
    if not isinstance(predictor.model, CeiT):
        raise ValueError("an exported file does not show its layers: name the checkpoint that it was made of")
    if about is not None and class_name(about) not in map(class_name, predictor.class_names):
        raise ValueError(unknown("class", about, predictor.class_names))


def _rounded(values: np.ndarray) -> Any:
    """Nested lists of numbers with four digits each: maps of single patches may be small."""
    if values.ndim:
        return [_rounded(part) for part in values]
    return float(f"{float(values):.4g}")

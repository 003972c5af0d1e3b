"""The computed parts of documentation pages, written in place.

python -m ceit.study.pages docs/*.md docs/recipes/*.md

A page marks such a part with two comments; the first names what is computed, and may give it words:
``<!-- computed: NAME WORDS; do not edit -->`` and ``<!-- end of computed part -->``.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from ceit.model.names import unknown
from ceit.study import measured, overview, recipes, scale, speed
from ceit.weights.atomic import replace_files

PARTS: dict[str, Callable[..., str]] = {
    "recipe": recipes.section,
    "options": recipes.options_table,
    "recipes": recipes.overview_table,
    "all-reduce": scale.all_reduce_table,
    "batch-norm": scale.batch_norm_table,
    "reading": scale.reading_table,
    "averages": measured.averages_table,
    "fine-tuning": measured.fine_tuning_table,
    "class-token": measured.class_token_table,
    "resume": measured.resume_table,
    "loading": measured.loading_table,
    "studies": overview.overview_table,
    "study": overview.study_tables,
    "evidence": overview.evidence,
    "devices": overview.devices_table,
    "locality": overview.locality,
    "complexity": overview.complexity_table,
    "speed-summary": speed.summary_table,
    "throughput": speed.throughput_table,
    "latency": speed.latency_table,
    "training-speed": speed.training_table,
    "deployment": speed.deployment_table,
    "gemm-peak": speed.peak_table,
    "scaling": speed.scaling_table,
    "agreement": speed.agreement_table,
    "streaming": speed.streaming_table,
    "gpu": speed.gpu_table,
}
"""Name of a computed part to the function that makes it, which takes the mark's further words."""

_MARKED = re.compile(
    r"(?P<begin><!-- computed: (?P<name>[\w-]+)(?P<words>(?: \w+)*); do not edit -->\n)"
    r".*?(?P<end><!-- end of computed part -->)",
    re.DOTALL,
)


def with_computed_parts(text: str) -> str:
    """``text`` with every marked part made anew. Raises ValueError for a mark that names nothing in ``PARTS``."""

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in PARTS:
            raise ValueError(unknown("computed part", name, PARTS))
        return f"{match['begin']}{PARTS[name](*match['words'].split())}\n{match['end']}"

    return _MARKED.sub(made, text)


if __name__ == "__main__":
    pages = [Path(argument) for argument in sys.argv[1:]]
    replace_files({page: with_computed_parts(page.read_text(encoding="utf-8")).encode() for page in pages})

"""The computed parts of documentation pages, written in place.

python -m tools.pages docs/*.md docs/recipes/*.md

A page marks such a part with two comments; the first names what is computed, and may give it words:
``<!-- computed: NAME WORDS; do not edit -->`` and ``<!-- end of computed part -->``.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from ceit.atomic import replace_files
from ceit.messages import unknown
from tools import (
    distributed_cost,
    limits_table,
    measured,
    overview,
    recipe_tables,
    screening,
    speed_tables,
    trust_tables,
)
from tools.map import rooms_table

PARTS: dict[str, Callable[..., str]] = {
    "rooms": rooms_table,
    "limits": limits_table.limits_table,
    "faults": trust_tables.faults_table,
    "fuzz": trust_tables.fuzz_table,
    "mended": trust_tables.mended_list,
    "soak": trust_tables.soak_table,
    "pythons": trust_tables.pythons_table,
    "recipe": recipe_tables.section,
    "options": recipe_tables.options_table,
    "recipes": recipe_tables.overview_table,
    "all-reduce": distributed_cost.all_reduce_table,
    "batch-norm": distributed_cost.batch_norm_table,
    "reading": distributed_cost.reading_table,
    "photo-recipes": measured.photo_recipes_table,
    "shipped": measured.shipped_table,
    "calibration": measured.calibration_table,
    "outsiders": measured.outsiders_table,
    "label-errors": measured.label_errors_table,
    "faithfulness": measured.faithfulness_table,
    "averages": measured.averages_table,
    "fine-tuning": measured.fine_tuning_table,
    "class-token": measured.class_token_table,
    "resume": measured.resume_table,
    "loading": measured.loading_table,
    "stages": measured.stages_table,
    "compute": measured.compute_table,
    "screening": screening.screening_table,
    "studies": overview.overview_table,
    "study": overview.study_tables,
    "evidence": overview.evidence,
    "devices": overview.devices_table,
    "locality": overview.locality,
    "complexity": overview.complexity_table,
    "speed-summary": speed_tables.summary_table,
    "throughput": speed_tables.throughput_table,
    "latency": speed_tables.latency_table,
    "training-speed": speed_tables.training_table,
    "deployment": speed_tables.deployment_table,
    "gemm-peak": speed_tables.peak_table,
    "scaling": speed_tables.scaling_table,
    "agreement": speed_tables.agreement_table,
    "predict-files": speed_tables.predict_files_table,
    "streaming": speed_tables.streaming_table,
    "gpu": speed_tables.gpu_table,
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

"""The studies on the pages of ``docs``: which there are, how far they are, what they found.

``python -m tools.overview studies`` writes the tables and figures of those in ``studies`` beside their cells.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from ceit.model.complexity import complexity
from ceit.model.variants import config_of
from ceit.study import report
from ceit.study.cells import Record, path_of, read_record, unpack
from ceit.study.locality import token_distances
from ceit.study.plan import FAMILIES, Study, load_study, scales, study_names
from ceit.study.significance import LEVEL, Comparison, compare, paired_t

STUDIES = Path("studies")  # of the project's root, where the pages are made
OF_THE_RUN = ("arm", "seed", "data", "options")


def overview_table() -> str:
    """A row for every study and scale: what of the paper it stands for, and how many cells are finished."""
    rows = ["| study | of the paper | scale | cells | finished | command |", "|---|---|---|---|---|---|"]
    for name in study_names():
        study = load_study(name)
        for scale in study.scales:
            rates: dict[str, float] = dict.fromkeys(FAMILIES, 1e-3)
            cells = study.cells(scales()[scale], rates)
            total, finished = len(cells), sum(path_of(STUDIES, cell).is_file() for cell in cells)
            command = f"ceit reproduce {name} --scale {scale}"
            status = {0: "not run", total: "all"}.get(finished, str(finished))
            rows.append(f"| {study.title} | {study.paper} | {scale} | {total} | {status} | `{command}` |")
    rows.append("| [Complexity](#complexity) | the complexity analysis | - | - | all | `ceit info MODEL` |")
    rows.append(
        "| [Shift and distance](#shift-consistency-and-attention-distance) | the claim of locality and long range "
        "| cifar10 | those of From DeiT to CeiT | as far as these | `ceit reproduce modules --scale cifar10` |"
    )
    return "\n".join(rows)


def study_tables(name: str, scale: str) -> str:
    """The tables of a study at a scale, and the command that makes them."""
    study, command = load_study(name), f"`ceit reproduce {name} --scale {scale}`"
    records = report.records_of(STUDIES, study, scale)
    if not records:
        return f"*Not run yet: {command}*"
    return f"{report.tables(study, scale, records)}\n\n{command}"


def evidence(scale: str, *names: str) -> str:
    """What was compared with what in several studies, as far as it was measured."""
    studies = [load_study(name) for name in names]
    found = [(study, report.records_of(STUDIES, study, scale)) for study in studies]
    return evidence_table(found)


def evidence_table(found: list[tuple[Study, dict[str, list[Record]]]]) -> str:
    """A row for every pair that the studies compare and that has been measured: both accuracies, seeds, test."""
    heads = ["", "test top-1", "against", "gain, points", "seeds", "largest p", "p over seeds", ""]
    rows = []
    for study, records in found:
        for one, other in study.compare:
            pairs, compared = report.pairs_of(records, one, other), report.comparison_of(records, one, other)
            if compared is None:
                continue
            first, second = ([cell["test"]["top1_percent"] for cell in cells] for cells in zip(*pairs, strict=True))
            words = [one, report.with_spread(first), f"{other}, {report.with_spread(second)}"]
            words += [f"**{mean(compared.gains):+.2f}**", str(len(pairs)), report.p_value(max(compared.p_values))]
            words += [report.p_value(compared.p_of_seeds), report.verdict_of(records, one, other, compared)]
            rows.append(words)
    explained = f"Over the seeds that both have; ±: their standard deviation. {report.TEST_IN_WORDS}"
    return f"{report.markdown(heads, rows)}\n\n{explained}"


def devices_table() -> str:
    """Cells that were trained on two devices: the twins under ``studies/devices`` beside those of the studies.

    Raises: ValueError for fewer than two, or a twin that is not the same run on another device.
    """
    rows = ["| study | cell | test top-1 | on another device | difference, points | p |", "|---|---|---|---|---|---|"]
    found: list[Comparison] = []
    machines: set[str] = set()
    for path in sorted((STUDIES / "devices").glob("*/*/*.json")):
        partner = STUDIES / path.relative_to(STUDIES / "devices")
        if not partner.is_file():
            raise ValueError(f"{path} has no cell beside it: {partner} is missing")
        twin, one = read_record(path), read_record(partner)
        if any(twin[key] != one[key] for key in OF_THE_RUN) or report.device_of(twin) == report.device_of(one):
            raise ValueError(f"{path} is not the run of {partner} on another device")
        found.append(compare([unpack(twin)], [unpack(one)]))
        machines.add(f"{report.machine_of(one)}, and {report.machine_of(twin)}")
        accuracies = " | ".join(f"{cell['test']['top1_percent']:.2f} %" for cell in (one, twin))
        rows.append(
            f"| {load_study(one['study']).title} | {one['arm']}, seed {one['seed']} | {accuracies} "
            f"| {found[-1].gains[0]:+.2f} | {report.p_value(found[-1].p_values[0])} |"
        )
    if len(found) < 2:
        raise ValueError(f"{STUDIES / 'devices'} holds no two cells to compare")
    gains = [pair.gains[0] for pair in found]
    told_apart = sum(pair.p_values[0] < LEVEL for pair in found)
    rows.append(f"| mean of {len(gains)}, ± standard deviation | | | | **{mean(gains):+.2f}** ± {stdev(gains):.2f} | |")
    tests = (
        f"p: McNemar's exact test over the test images, < {LEVEL:g} in {told_apart} of {len(gains)}. "
        f"Paired t-test over the cells: p = {report.p_value(paired_t(gains))}. "
        f"Measured on {'; '.join(sorted(machines))}."
    )
    return "\n".join([*rows, "", tests])


def locality(name: str, scale: str) -> str:
    """Shift consistency and attention distance of a study's arms."""
    study, command = load_study(name), f"`ceit reproduce {name} --scale {scale}`"
    records = report.records_of(STUDIES, study, scale)
    return locality_table(study, scale, records) if records else f"*Not run yet: {command}*"


def locality_table(study: Study, scale: str, records: dict[str, list[Record]]) -> str:
    """Shift consistency and attention distance of every arm, over the seeds; then what even attention has."""
    shifts = list(next(iter(records.values()))[0]["locality"]["shift_consistency_percent"]) if records else []
    heads = ["", "seeds", *(f"{pixels} px" for pixels in shifts), "attention distance by block, tokens"]
    rows = []
    for arm in study.arms_at(scales()[scale]):
        cells = [cell["locality"] for cell in records.get(arm.name, [])]
        if not cells:
            continue
        same = [
            report.with_spread([cell["shift_consistency_percent"][pixels] for cell in cells], 1) for pixels in shifts
        ]
        distances = zip(*(cell["attention_distance"] for cell in cells), strict=True)
        by_block = ", ".join(report.with_spread(list(values), unit="") for values in distances)
        rows.append([arm.name, str(len(cells)), *same, by_block])
    model = scales()[scale].options.get("model")
    if model is not None:
        even = token_distances(config_of(model).grid).mean().item()
        rows.append(["*the same attention to every patch*", "", *("" for _ in shifts), f"{even:.2f}"])
    return f"{report.markdown(heads, rows)}\n\n±: standard deviation over the seeds."


def complexity_table() -> str:
    """Multiply-accumulates in closed form beside measured time, CeiT and DeiT, of ``studies/bench/scaling.json``."""
    found = json.loads((STUDIES / "bench" / "scaling.json").read_text(encoding="utf-8"))
    times = {
        (point["model"], tuple(point["image_hw"])): point["seconds"] / point["batch"]
        for point in found["points"]["tokens"]
    }
    rows = [
        "| image | tokens | CeiT-T, G MACs | DeiT-T, G MACs | ratio | CeiT-T, ms | DeiT-T, ms | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in sorted({hw for _, hw in times}):
        ceit = complexity(config_of("ceit_tiny_patch16_224", img_size=size)).live_macs  # inference leaves the rest out
        deit = complexity(
            config_of("ceit_tiny_patch16_224", img_size=size, stem="patch", feed_forward="mlp", lca=False)
        ).macs
        ours, theirs = (1000 * times[f"{family}_tiny_patch16_224", size] for family in ("ceit", "deit"))
        rows.append(
            f"| {size[0]} x {size[1]} | {size[0] * size[1] // 256:,} | {ceit / 1e9:.3f} | {deit / 1e9:.3f} "
            f"| {ceit / deit:.2f} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |"
        )
    return "\n".join(rows)


def write_reports(root: Path) -> list[Path]:
    """The tables and figures of every study of the package that has finished cells, at every scale."""
    asked = [(study, scale) for study in map(load_study, study_names()) for scale in study.scales]
    return [
        path
        for study, scale in asked
        if report.records_of(root, study, scale)
        for path in report.write_report(root, study, scale)
    ]


if __name__ == "__main__":
    write_reports(Path(sys.argv[1]))

"""Tables of what ``ceit benchmark`` and the programs of ``benchmarks`` have measured, for README and the pages of docs.

Each takes the name of a file under ``studies/bench``; where that is not measured yet, the table is a line that says so.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path("studies") / "bench"  # of the project's root, where the pages are made

Result = dict[str, Any]


def _of_file(make: Callable[[Result], Iterable[str]]) -> Callable[[str], str]:
    def table(name: str) -> str:
        path = FOLDER / f"{name}.json"
        if not path.is_file():
            return f"*Not measured yet: `{path.as_posix()}` is made by the command that stands above.*"
        result = json.loads(path.read_text(encoding="utf-8"))
        if not result.get("complete", True):  # other programs than `ceit benchmark` write none that is not
            raise ValueError(f"{path} was interrupted: measure it again")
        for row in result.get("arms", []):
            if row.get("errors"):
                raise ValueError(f"{path}: {row['model']} failed: {row['errors'][0]}")
        return "\n".join(make(result))

    table.__doc__ = make.__doc__
    return table


@_of_file
def summary_table(result: Result) -> Iterable[str]:
    """For README: every model's fastest path at the least batch and at 16, against the plain opponent."""
    batches = _batches(result)
    chosen = list(dict.fromkeys((batches[0], _most(batches))))
    units = ["ms" if batch == "1" else "images/s" for batch in chosen]
    heads = [f"fastest at batch {batch} | {unit} | times plain" for batch, unit in zip(chosen, units, strict=True)]
    yield f"| model | {' | '.join(heads)} | of peak |"
    yield f"|---|{'---|---|---|' * len(chosen)}---|"
    for model in dict.fromkeys(row["model"] for row in result["arms"]):
        best = [_fastest([row for row in result["arms"] if row["model"] == model], batch) for batch in chosen]
        if None in best:
            continue
        cells = [f"`{model}`"]
        for row, batch, unit in zip(best, chosen, units, strict=True):
            found = row["inference"][batch]
            rate = f"{found['milliseconds']['median']:.1f}" if unit == "ms" else _rate(found["images_per_second"])
            cells += [f"{row['backend']} {row['precision']}", rate, f"**{_times(found)}**"]
        yield f"| {' | '.join(cells)} | {_percent(best[-1]['inference'][chosen[-1]]['percent_of_peak'])} |"
    yield from _footnote(result)


@_of_file
def throughput_table(result: Result) -> Iterable[str]:
    """Images a second of every arm at every batch size, with how many times the baseline, and percent of peak."""
    batches = _batches(result)
    yield f"| model | path | {' | '.join(f'batch {batch}' for batch in batches)} | of peak at {_most(batches)} |"
    yield f"|---|---|{'---|' * len(batches)}---|"
    for row in result["arms"]:
        cells = [_throughput(row["inference"].get(batch, {})) for batch in batches]
        share = _percent(row["inference"].get(_most(batches), {}).get("percent_of_peak"))
        yield f"| `{row['model']}` | {row['backend']} {row['precision']} | {' | '.join(cells)} | {share} |"
    yield from _footnote(result)


@_of_file
def latency_table(result: Result) -> Iterable[str]:
    """Milliseconds at the least batch: median, p90, p99, and how many times as fast as the baseline."""
    batch = _batches(result)[0]
    yield "| model | path | median, ms | p90 | p99 | times as fast | calls |"
    yield "|---|---|---|---|---|---|---|"
    for row in result["arms"]:
        found = row["inference"].get(batch, {})
        if "milliseconds" not in found:
            continue
        figures = " | ".join(f"{found['milliseconds'][name]:.2f}" for name in ("median", "p90", "p99"))
        calls = sum(len(calls) for calls in found["seconds"])
        yield f"| `{row['model']}` | {row['backend']} {row['precision']} | {figures} | {_times(found)} | {calls} |"


@_of_file
def training_table(result: Result) -> Iterable[str]:
    """Images a second of a training step."""
    yield "| model | path | batch | images/s | times as fast | of peak | memory, MiB |"
    yield "|---|---|---|---|---|---|---|"
    for row in result["arms"]:
        for batch, found in row["train"].items():
            if "images_per_second" in found:
                memory = f"{found['peak_bytes'] / 2**20:,.0f}" if found.get("peak_bytes") else "-"
                yield (
                    f"| `{row['model']}` | {row['backend']} {row['precision']} | {batch} "
                    f"| {_rate(found['images_per_second'])} | {_times(found)} | {_percent(found['percent_of_peak'])} "
                    f"| {memory} |"
                )
    yield from _footnote(result)


@_of_file
def deployment_table(result: Result) -> Iterable[str]:
    """What a fresh process needs: seconds to the first logits, files, memory at its highest."""
    batches = sorted({batch for row in result["arms"] for batch in row["deployment"].get("memory", {})}, key=int)
    memory = " | ".join(f"MiB at batch {batch}" for batch in batches)
    yield f"| model | path | start, s | files, MB | {memory} |"
    yield f"|---|---|---|---|{'---|' * len(batches)}"
    for row in result["arms"]:
        found = row["deployment"]
        if "median_start_seconds" not in found:
            continue
        peaks = [found["memory"].get(batch, {}).get("peak_bytes") for batch in batches]
        cells = " | ".join("-" if peak is None else f"{peak / 2**20:,.0f}" for peak in peaks)
        start, size = found["median_start_seconds"], found["bytes"] / 1e6
        yield f"| `{row['model']}` | {row['backend']} {row['precision']} | {start:.2f} | {size:.1f} | {cells} |"


@_of_file
def peak_table(result: Result) -> Iterable[str]:
    """The fastest product of each library and precision."""
    yield "| product | precision | best size | GFLOP/s |"
    yield "|---|---|---|---|"
    timed = [row for row in result["peak"] if row["gflops"]]
    for name, precision in dict.fromkeys((row["product"], row["precision"]) for row in timed):
        own = [row for row in timed if (row["product"], row["precision"]) == (name, precision)]
        best = max(own, key=lambda row: row["gflops"])
        top = best["gflops"] == result["best_peak_gflops"][precision]
        figure = f"**{best['gflops']:,.0f}**" if top else f"{best['gflops']:,.0f}"
        yield f"| {name} | {precision} | {best['size']} | {figure} |"


@_of_file
def scaling_table(result: Result) -> Iterable[str]:
    """The fitted exponents."""
    yield "| over | model | time grows with the power | r2 | memory grows with the power | r2 |"
    yield "|---|---|---|---|---|---|"
    for variable, models in result["fits"].items():
        for model, fits in models.items():
            cells = [
                f"{fits[name]['exponent']:.2f} | {fits[name]['r2']:.3f}" if name in fits else "- | -"
                for name in ("seconds", "bytes")
            ]
            yield f"| {variable} | `{model}` | {' | '.join(cells)} |"


@_of_file
def agreement_table(result: Result) -> Iterable[str]:
    """What each path's arithmetic costs in accuracy, and the size of its file."""
    yield (
        f"| path | top-1 of {result['images']:,} images | lost, points | same answer | logits off by at most "
        "| file, MB | of float32's |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in result["rows"]:
        if row["error"]:
            continue
        share = row.get("file_percent_of_float32")
        yield (
            f"| {row['backend']} {row['precision']} | {row['top1_percent']:.2f} % | {row['accuracy_loss_points']:+.2f} "
            f"| {row['agreement_percent']:.2f} % | {row['largest_logit_error']:.2g} | {row['file_bytes'] / 1e6:.2f} "
            f"| {'-' if share is None else f'{share:.0f} %'} |"
        )
    yield ""
    yield (
        f"{result['data']}; eager float32, nothing folded: {result['top1_percent']:.2f} %; int8 calibrated on "
        f"{result['calibration_images']} training images."
    )


@_of_file
def streaming_table(result: Result) -> Iterable[str]:
    """How near ``ceit predict`` comes to what the cores allow, and its memory early and late."""
    yield "| images/s | at most | of that | reading, core-ms | computing, core-ms | MiB early | MiB late |"
    yield "|---|---|---|---|---|---|---|"
    read, compute = 1000 * result["read_core_seconds"], 1000 * result["compute_core_seconds"]
    yield (
        f"| {_rate(result['images_per_second'])} | {_rate(result['bound_images_per_second'])} "
        f"| {result['percent_of_bound']:.0f} % | {read:.1f} | {compute:.1f} "
        f"| {result['rss_early_mib']:,.0f} | {result['rss_late_mib']:,.0f} |"
    )
    yield ""
    yield (
        f"{result['images']:,} JPEGs of {result['file_bytes_median'] / 1000:.0f} kB, {result['distinct_images']} "
        f"of them distinct; {result['model'] or result['checkpoint']}, {result['precision']}; with the start of the "
        f"process; median of {len(result['repeats'])}; core-ms are of an image; {result['machine']['cores']} cores of "
        f"{result['machine']['processor']}."
    )


@_of_file
def predict_files_table(result: Result) -> Iterable[str]:
    """Files a second of the whole command ``ceit predict``, by the way it computes; the first run apart."""
    yield "| files | computes | files/s, median | times as it was | seconds | first run, seconds |"
    yield "|---|---|---|---|---|---|"
    for row in result["rows"]:
        was = next(other for other in result["rows"] if other["side"] == row["side"] and "as it was" in other["arm"])
        yield (
            f"| {result['files']:,} JPEGs of {row['side']} px | {row['arm']} | {_rate(row['files_per_second'])} "
            f"| {row['files_per_second'] / was['files_per_second']:.2f}x "
            f"| {median(row['seconds']):.1f} | {row['first_seconds']:.1f} |"
        )
    yield ""
    machine = result["machine"]
    yield (
        f"{result['model']}; medians of {result['rounds']} interleaved rounds after a first one; "
        f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}."
    )


@_of_file
def gpu_table(result: Result) -> Iterable[str]:
    """Training and inference of every model on a GPU: images and operations a second, of peak, memory of a batch."""
    yield "| model | | images/s, median | by round | TFLOP/s | of peak | memory of a batch, GB |"
    yield "|---|---|---|---|---|---|---|"
    for row in result["arms"]:
        memory = f"{row['batch_bytes'] / 1e9:.1f}" if "batch_bytes" in row else "-"
        slowest, fastest = (_rate(result["batch_size"] / pick(row["seconds"])) for pick in (max, min))
        yield (
            f"| `{row['model']}` | {row['kind']} | {_rate(row['images_per_second'])} | {slowest} to {fastest} "
            f"| {row['tflops']:.1f} | {_percent(row['percent_of_peak'])} | {memory} |"
        )
    machine, peak = result["machine"], result["peak"]
    devices = " beside ".join(filter(None, (machine["accelerator"], machine["processor"])))
    rounds = result.get("rounds", len(peak["seconds"]))  # the peak has a turn in every round of every part
    yield ""
    yield (
        f"{devices}, torch {machine['torch']}, bf16, batches of "
        f"{result['batch_size']}, medians of {rounds} interleaved rounds. Peak: a product of "
        f"{peak['size']} x {peak['size']} matrices in the same rounds, {peak['tflops']:.0f} TFLOP/s."
    )


def _batches(result: Result) -> list[str]:
    found = {batch for row in result["arms"] for batch, timing in row["inference"].items() if timing["seconds"]}
    return sorted(found, key=int)


def _most(batches: list[str]) -> str:
    return min(batches, key=lambda batch: abs(int(batch) - 16))


def _fastest(rows: list[Result], batch: str) -> Any:
    able = [row for row in rows if "images_per_second" in row["inference"].get(batch, {})]
    return max(able, key=lambda row: row["inference"][batch]["images_per_second"], default=None)


def _throughput(found: Result) -> str:
    return f"{_rate(found['images_per_second'])}, {_times(found)}" if "images_per_second" in found else "-"


def _times(found: Result) -> str:
    times = found["times_baseline"]
    return "-" if times is None else f"{times['median']:.2f}x"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def _footnote(result: Result) -> Iterable[str]:
    machine, settings = result["machine"], result["settings"]
    peaks = ", ".join(f"{name} {value:,.0f}" for name, value in result["best_peak_gflops"].items() if value)
    yield ""
    yield (
        f"Times: how many times as fast as {result['baseline']}. Peak: the fastest matrix products of the same run, in "
        f"GFLOP/s: {peaks}. "
        f"{settings['threads']} threads of {machine['processor']}, torch {machine['torch']}, medians of "
        f"{settings['rounds']} interleaved rounds."
    )

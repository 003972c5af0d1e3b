"""Is a run that is killed again and again the run that was never touched? Kills, resumes and compares, bit by bit.

``python -m benchmarks.resume --data cifar10 --output studies/resume/cifar10.json``: a small network with Mixup, CutMix,
RandAugment, random erasing, repeated augmentation, drop path, an average of the weights and two worker processes.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from ceit.atomic import write_text
from ceit.inference.device import machine
from ceit.train.checkpoint import checkpoints_in
from ceit.train.run_directory import lines_of

TIMES = ("elapsed_seconds", "images_per_second", "data_wait_percent", "tflops", "peak_memory_bytes")
OPTIONS = {
    "model": "ceit_pico_patch4_32",
    "geometry.drop_path_rate": "0.1",
    "epochs": "4",
    "limit_batches": "50",
    "global_batch_size": "32",
    "augmentation.rand_augment": "rand-m9-mstd0.5-inc1",
    "augmentation.random_erasing": "0.25",
    "augmentation.repeats": "3",
    "mixing.mixup_alpha": "0.8",
    "mixing.cutmix_alpha": "1.0",
    "ema.decay": "0.98",
    "precision": "float32",
    "workers": "2",
    "log_every_steps": "1",
    "checkpoint_every_steps": "4",
}
Moment = Literal["before the first checkpoint", "in a step", "in a save"]


def study(data: str, options: dict[str, str], moments: list[Moment], number: signal.Signals) -> dict[str, Any]:
    """One run left alone and one that gets ``number`` at each of the moments and is resumed; what differs at the end.

    Raises: RuntimeError if a run fails by itself, or ends before every moment has come.
    """
    with TemporaryDirectory() as folder:
        alone, disturbed = Path(folder) / "alone", Path(folder) / "disturbed"
        _finish(_start(data, alone, options))
        stops = []
        for index, moment in enumerate(moments):
            process = _start(data, disturbed, options)
            _wait_for(moment, process, disturbed, random.Random(index))
            process.send_signal(number)
            process.communicate()
            stops.append(_traces(moment, disturbed))
        _finish(_start(data, disturbed, options))
        return {
            "data": data,
            "signal": number.name,
            "options": options,
            "stops": stops,
            "training_steps": _steps_done(alone),
            "lines_compared": len(_metrics(alone)),
            "different": _differences(alone, disturbed),
        }


def _start(data: str, output: Path, options: dict[str, str]) -> subprocess.Popen[bytes]:
    given = [word for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "ceit", "train", "--recipe", "none", "--resume", "auto"]
    command += ["--data", data, "--output", str(output)]
    same_threads = {"OMP_NUM_THREADS": f"{torch.get_num_threads()}"} | os.environ
    return subprocess.Popen([*command, *given], env=same_threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, messages = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}: {messages.decode()}")


def _wait_for(moment: Moment, process: subprocess.Popen[bytes], output: Path, chance: random.Random) -> None:
    """Until the run is where it is to be stopped: behind the newest checkpoint by a random time, or in a save."""
    before = _steps_done(output)
    seconds = chance.uniform(0, 0.3)
    while process.poll() is None:
        done = _steps_done(output)
        if moment == "in a save" and done > before and _unfinished(output):
            return
        if moment == "before the first checkpoint" and done >= 1:
            return
        if moment == "in a step" and done > before + 4:
            time.sleep(seconds)
            return
    _, messages = process.communicate()
    raise RuntimeError(f"the run ended before it could be stopped {moment}: {messages.decode()}")


def _steps_done(output: Path) -> int:
    return sum('"event": "step"' in line for line in lines_of(output / "metrics.jsonl"))


def _unfinished(output: Path) -> list[str]:
    folder = output / "checkpoints"
    return [name for name in os.listdir(folder) if name.endswith(".tmp")] if folder.is_dir() else []


def _traces(moment: Moment, output: Path) -> dict[str, Any]:
    """What a stop left behind: the last step in the log, the newest whole checkpoint, and half-written files."""
    whole = checkpoints_in(output / "checkpoints")
    return {
        "moment": moment,
        "steps_logged": _steps_done(output),
        "newest_checkpoint": whole[-1].name if whole else None,
        "half_written": len(_unfinished(output)),
    }


def _metrics(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in lines_of(output / "metrics.jsonl")]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def _differences(alone: Path, disturbed: Path) -> list[str]:
    """Names of what is not the same to the last bit: tensors of the kept model and of the newest full state, metrics.

    Raises: RuntimeError if there is nothing to compare.
    """
    different = []
    for name in ("model.safetensors", f"checkpoints/{checkpoints_in(alone / 'checkpoints')[-1].name}"):
        ours, theirs = load_file(alone / name), load_file(disturbed / name)
        if not ours:
            raise RuntimeError(f"{name} holds nothing")
        different += [f"{name}: {key}" for key in sorted(ours.keys() ^ theirs.keys())]
        different += [f"{name}: {key}" for key in ours if key in theirs and not torch.equal(ours[key], theirs[key])]
    ours, theirs = _metrics(alone), _metrics(disturbed)
    if len(ours) != len(theirs):
        different.append(f"metrics.jsonl: {len(ours)} lines and {len(theirs)}")
    return different + [
        f"metrics.jsonl: line {n}" for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b
    ]


def main() -> None:
    """Twenty kills and five terminations; the result as JSON, exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    later: list[Moment] = ["in a step", "in a step", "in a save"] * 7
    kills: list[Moment] = ["before the first checkpoint", *later[:19]]
    terminations: list[Moment] = ["in a step"] * 5
    results = [
        study(asked.data, OPTIONS, moments, number)
        for moments, number in ((kills, signal.SIGKILL), (terminations, signal.SIGTERM))
    ]
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(torch.device("cpu")), "runs": results}
    write_text(asked.output, json.dumps(report, indent=1) + "\n")
    for result in results:
        print(f"{result['signal']}: {len(result['stops'])} stops, {len(result['different'])} differences")
    sys.exit(any(result["different"] for result in results))


if __name__ == "__main__":
    main()

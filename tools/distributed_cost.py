"""What limits training on many devices, on paper: bytes moved, operations done, images read.

Letters: p processes, b images that each of them computes a step. Everything follows from ``ceit.model.complexity``;
the rates of machines are assumptions, and the tables say so.
"""

from dataclasses import dataclass

from ceit.model.complexity import complexity
from ceit.model.variants import config_of
from ceit.study.cluster import BYTES_OF_A_JPEG, GPU_FLOPS

MODELS = {
    "T": "ceit_tiny_patch16_224",
    "S": "ceit_small_patch16_224",
    "B": "ceit_base_patch16_224",
    "T 384": "ceit_tiny_patch16_384",
    "S 384": "ceit_small_patch16_384",
}
BYTES_OF_A_GRADIENT = 4  # float32, whatever autocast computes in
GLOBAL_BATCH = 1024
LINKS = {"NVLink, 200 GB/s": 200e9, "InfiniBand, 25 GB/s": 25e9, "10 GbE, 1.25 GB/s": 1.25e9}
"""Bytes a second that a process sends to its neighbour in the ring: assumptions."""


@dataclass(frozen=True)
class Step:
    """One optimizer step of one process, on paper."""

    bytes_moved: float
    flops: float

    def seconds_moving(self, bytes_per_second: float) -> float:
        """Time of the all-reduce over a link."""
        return self.bytes_moved / bytes_per_second

    def seconds_computing(self, flops_per_second: float = GPU_FLOPS) -> float:
        """Time of forward and backward."""
        return self.flops / flops_per_second


def step(model: str, processes: int, images: int) -> Step:
    """A step of ``model`` (a registered name) in ``processes`` processes with ``images`` images each.

    A ring all-reduce sends ``2 (p - 1) / p`` of the gradients' bytes from every process: all but its own share once to
    be summed, once to be spread. Forward and backward take ``3 * 2 * MACs`` operations an image.
    """
    cost = complexity(config_of(model))
    bytes_moved = 2 * (processes - 1) / processes * cost.parameters * BYTES_OF_A_GRADIENT
    return Step(bytes_moved, 3 * 2 * cost.macs * images)


def all_reduce_table(*processes: str) -> str:
    """Bytes against operations for every model and number of processes, at a global batch of 1024."""
    rows = [
        f"| model | p | images each | sent a step | computed a step | at {GPU_FLOPS / 1e12:.0f} TFLOP/s | "
        + " | ".join(LINKS)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(LINKS),
    ]
    for short, model in MODELS.items():
        for count in map(int, processes):
            one = step(model, count, GLOBAL_BATCH // count)
            moving = [one.seconds_moving(rate) for rate in LINKS.values()]
            shares = [f"{_milliseconds(time)}, {_percent(time / one.seconds_computing())}" for time in moving]
            rows.append(
                f"| {short} | {count} | {GLOBAL_BATCH // count} | {one.bytes_moved / 1e6:.1f} MB "
                f"| {one.flops / 1e12:.2f} TFLOP | {_milliseconds(one.seconds_computing())} | {' | '.join(shares)} |"
            )
    return "\n".join(rows)


def batch_norm_table(*processes: str) -> str:
    """Values that a BatchNorm statistic is taken from: in I2T's map, and per patch grid in LeFF."""
    rows = [
        "| p | images each | values a channel, LeFF at 224 px | LeFF at 384 px | 64 tokens at 32 px |",
        "|---|---|---|---|---|",
    ]
    for count in map(int, processes):
        images = GLOBAL_BATCH // count
        tokens = [config_of(name).grid for name in (MODELS["T"], MODELS["T 384"], "ceit_nano_patch4_32")]
        values = " | ".join(f"{images * height * width:,}" for height, width in tokens)
        rows.append(f"| {count} | {images} | {values} |")
    return "\n".join(rows)


def reading_table() -> str:
    """Images and bytes a second that keep one GPU busy."""
    rows = [
        f"| model | images/s of a GPU at {GPU_FLOPS / 1e12:.0f} TFLOP/s | read a second | a node of 8 |",
        "|---|---|---|---|",
    ]
    for short, model in MODELS.items():
        images_per_second = GPU_FLOPS / (3 * 2 * complexity(config_of(model)).macs)
        rate = images_per_second * BYTES_OF_A_JPEG
        rows.append(f"| {short} | {images_per_second:,.0f} | {rate / 1e6:,.0f} MB | {8 * rate / 1e9:.2f} GB |")
    return "\n".join(rows)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"

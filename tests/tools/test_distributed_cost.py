"""Bytes and operations of a step on many devices, against counts that know nothing of the formula."""

from ceit.model import CeiT, config_of
from tools.distributed_cost import MODELS, step


def test_a_simulated_ring_sends_as_many_bytes_as_the_formula_says() -> None:
    processes, model = 4, "ceit_tiny_patch16_224"
    parameters = sum(p.numel() for p in CeiT(config_of(model)).parameters())
    chunk, sent = parameters / processes, [0.0] * processes
    for _phase in ("sum", "spread"):
        for _round in range(processes - 1):  # each sends one chunk to its neighbour
            sent = [total + chunk * 4 for total in sent]
    assert sent == [step(model, processes, 1).bytes_moved] * processes


def test_one_process_sends_nothing() -> None:
    assert step("ceit_tiny_patch16_224", 1, 256).bytes_moved == 0


def test_operations_follow_the_images_and_bytes_do_not() -> None:
    for model in MODELS.values():
        few, many = step(model, 8, 16), step(model, 8, 128)
        assert (many.flops, many.bytes_moved) == (8 * few.flops, few.bytes_moved)

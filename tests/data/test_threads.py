"""Many images read at once, in order; what nobody asks for any more is not read."""

import time

from ceit.data.threads import BLOCK_IMAGES, read_all


def test_m5_who_stops_asking_does_not_wait_for_what_is_queued() -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    answers = read_all(read, range(BLOCK_IMAGES), "reading")
    assert next(iter(answers)) == (0, 0)
    del answers  # as an error does in the loop that asks
    assert len(begun) < BLOCK_IMAGES / 2

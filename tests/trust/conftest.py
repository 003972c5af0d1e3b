"""What a call took: the peak of the process's memory, and processor time."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MOST_MEGABYTES, MOST_SECONDS = 100, 5


def _peak_megabytes() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


@pytest.fixture
def refused() -> Callable[[Callable[[], object]], str]:
    """The one sentence with which a call is refused, without more memory or time than a small file is worth."""

    def sentence_of(call: Callable[[], object]) -> str:
        forget = Path("/proc/self/clear_refs")
        if forget.exists():
            forget.write_text("5")  # the peak begins anew
        before, began = _peak_megabytes(), time.process_time()
        with pytest.raises((ValueError, OSError)) as refusal:
            call()
        assert _peak_megabytes() - before < MOST_MEGABYTES
        assert time.process_time() - began < MOST_SECONDS
        sentence = str(refusal.value)
        assert sentence
        assert sentence.isprintable()
        assert len(sentence) < 2000
        return sentence

    return sentence_of

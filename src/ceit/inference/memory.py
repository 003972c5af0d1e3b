"""Memory of a process that computes on the CPU."""

import ctypes
import os
import sys

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 2**31 - 4096, 2**30
_MMAP_BYTES_BEFORE_2_35 = 2**25  # glibc's limit until then


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees, and take it in huge pages.

    Every step allocates and frees the same large tensors. glibc gives such memory back to the kernel each time, which
    then clears it anew, page by page, and that shows in the time of a step. Process-wide, so for commands to call and
    not for the library; without effect where the C library is not glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large allocation
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_MMAP_THRESHOLD, _MMAP_BYTES):
            libc.mallopt(_MMAP_THRESHOLD, _MMAP_BYTES_BEFORE_2_35)
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)

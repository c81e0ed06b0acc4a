"""Memory of the CPU: freed blocks kept for the next picture or step."""

from __future__ import annotations

import ctypes
import sys


def keep_memory() -> None:
    """Let the C library keep freed memory instead of giving it back to the system, where it is GNU's.

    Else every map above 32 MB is made of new pages each time, which the system clears first: a third of a training step
    at 512x512, and of the head's inference. It holds for the whole process, whose memory stays as large as it was.
    """
    if sys.platform == "linux":
        adjust = getattr(ctypes.CDLL(None), "mallopt", None)
        if adjust is not None:
            adjust(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
            adjust(-1, -1)  # M_TRIM_THRESHOLD: the heap stays as large as it was

"""Freed memory is kept."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from ssrseg.cpu.allocation import keep_memory
{keep}
def use():
    maps = [torch.zeros(32, 1024, 1024) for _ in range(20)]  # 2.7 GB
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's C library")
def test_a_second_step_is_given_no_new_pages() -> None:
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)])) for keep in ("keep_memory()", "")
    )
    assert kept < given_back / 2

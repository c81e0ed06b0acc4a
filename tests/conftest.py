"""Options of the test suite."""

import os
import sys
from pathlib import Path

import pytest

# Containers set it, and each process that a test starts would compile torch anew, which takes longer than the test.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import torch  # noqa: E402

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def pytest_addoption(parser):
    """`pytest tests/test_parity.py --fixtures DIR`: the folder of parity fixtures, with its `manifest.json`.

    pytest has an option of that name, which lists its own kind of fixtures and stays available as `--funcargs`.
    It is parsed once before this file is read, so DIR follows after a space, and a test file must be named too.
    """
    listing = parser.optparser._option_string_actions.pop("--fixtures")
    listing.option_strings.remove("--fixtures")
    parser.addoption("--write-docs", action="store_true", help="write the real messages into docs/guards.md")
    parser.addoption("--fixtures", type=Path, default=REFERENCE / "fixtures", help="folder of parity fixtures")


def pytest_configure():
    """One thread: the tensors are tiny, and two threads that share busy cores wait for each other."""
    torch.set_num_threads(1)
    # Autograd counts the devices at its first backward pass: those of `fake_cuda` must be known by then.
    if hasattr(torch._C, "_ensureCUDADeviceGuardSet"):  # not in torch 2.6
        torch._C._ensureCUDADeviceGuardSet()


@pytest.fixture(autouse=True, scope="session")
def _files_in_memory_are_enough():
    """No file is waited for until the disk has it: only a power loss would tell, and each of thousands takes ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory):
    """Class statistics that runs share lie in a folder of the test session, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield

"""Mistakes that are the user's to mend, and errors of libraries that a user can do something about."""

from __future__ import annotations

import re

OUT_OF_MEMORY = (
    "out of memory|can.t allocate memory|cannot allocate memory|unable to allocate|failed to allocate|"
    "not enough memory|insufficient memory|bad_alloc|bad allocation|alloc_failed"
)
REMEDIES = {
    "no kernel image|not compatible with the current pytorch": "This build of torch is not made for this GPU: install "
    "one that is (https://pytorch.org), or use the CPU: --device cpu, in a training train.accelerator=cpu.",
    "no cuda gpus|not compiled with cuda|no nvidia driver|driver .*(too old|insufficient)|cuda unknown error": "See "
    "nvidia-smi: driver and torch must be for the same CUDA. For the CPU: --device cpu, in a training "
    "train.accelerator=cpu.",
    r"nccl (error|warn)|nccl\w*error|worknccl": "NCCL_DEBUG=INFO says more. Every process needs a GPU of its own, and "
    "several machines a network that NCCL_SOCKET_IFNAME names.",
    "deterministic (implementation|algorithm)": "Leave train.deterministic out: torch cannot do this operation so "
    "(docs/reproducibility.md).",
    "too many open files|items of ancdata": "Allow more (ulimit -n 4096), or set loader.workers lower.",
    "(out of|open|allocate) shared memory|bus error": "Workers hand over batches in /dev/shm, which is too small: "
    "docker run --shm-size=8g, or loader.workers=0.",
    r"dataloader worker \(pid": "Most often memory runs out: set loader.workers lower; 0 loads in the main process.",
    "backendcompilerfailed|inductorerror|compileerror|outofresources": "Go on without compilation: "
    "train.compile=off, --engine torch.",
    r"cuda error(?!: device-side assert)|\bhip error|cu(dnn|blas|solver|fft|sparse)\w*[ _](error|status)": "It may "
    "be of an earlier operation, which CUDA_LAUNCH_BLOCKING=1 names. nvidia-smi and the system's log say whether the "
    "card is at fault. A training goes on with --resume.",
    "not (currently )?(implemented|supported) (for|on) (the )?mps|mps (backend|framework)": "PYTORCH_ENABLE_"
    "MPS_FALLBACK=1 lets the CPU do what MPS cannot. For the CPU alone: --device cpu, in a training "
    "train.accelerator=cpu.",
}
"""What to do, by the library's words, the more special before the general.

They are words of a limit or a failure, not a library's name alone: a fault of the program that names it keeps its
traceback.
"""


class UserError(Exception):
    """What was found, what was expected, where, and what to do.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class OutOfMemory(UserError):
    """A step of a training did not fit into the memory."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or a library says that memory has run out."""
    return isinstance(error, MemoryError) or re.search(OUT_OF_MEMORY, str(error), re.IGNORECASE) is not None


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, else the name of the error."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "its content is of no known image format"  # Pillow's own words name a buffer
    if type(error).__name__ == "DecompressionBombError":
        found, limit = re.findall(r"\d+", str(error))[:2]
        return (
            f"its {found} pixels exceed the limit of {limit}. If it is not a small file that unpacks without end, set "
            f"loader.max_pixels={found}, to predict or evaluate inference.max_pixels={found} (--mode slide needs less "
            "memory), or cut it into pieces"
        )
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def remedy(error: BaseException) -> str | None:
    """Say what to do about an error of a library; nothing where none is known."""
    text = f"{type(error).__name__}: {error}"
    return next((advice for words, advice in REMEDIES.items() if re.search(words, text, re.IGNORECASE)), None)

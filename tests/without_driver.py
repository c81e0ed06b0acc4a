"""What torch and Fabric ask a driver of CUDA, answered without one."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from lightning_fabric.accelerators import cuda as fabric_cuda
from torch import Tensor

from ssrseg.models import segmenter


def missing() -> str:
    """Why this torch cannot do it; empty if it can."""
    if sys.platform != "linux":
        return f"the table of CUDA's hooks is only known on Linux, this is {sys.platform}"
    return "" if torch.backends.cuda.is_built() else "this torch is built without CUDA"


@contextlib.contextmanager
def without_driver(
    note: Callable[[str, str], None], step: Callable[[], int], pinned: dict[int, Tensor]
) -> Iterator[None]:
    """Let torch believe in one device; all is undone at the end, but for a device guard that does nothing.

    `note` is told of synchronisations, with kind and what; an event that was recorded in an earlier `step` has arrived.
    `pinned` gets the tensors in page-locked memory, by their place.
    """
    future = torch.__future__
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_context())
        for owner, names in _answers(note, step, pinned).items():
            for name, value in names.items():
                stack.enter_context(mock.patch.object(owner, name, value))
        stack.callback(future.set_swap_module_params_on_conversion, future.get_swap_module_params_on_conversion())
        future.set_swap_module_params_on_conversion(True)  # parameters stay the objects that they are
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="cuda")` is a copy that is seen
        torch._C._ensureCUDADeviceGuardSet()
        yield


def _answers(
    note: Callable[[str, str], None], step: Callable[[], int], pinned: dict[int, Tensor]
) -> dict[Any, dict[str, Any]]:
    class CudaEvent:
        """Arrives with the next step."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.step = 0

        def record(self, *args: Any) -> None:
            self.step = step()

        def synchronize(self) -> None:
            if self.step == step():
                note("synchronize", "an event of this step")

    def pin(tensor: Tensor, *args: Any) -> Tensor:
        copied = tensor.clone()
        pinned[copied.untyped_storage().data_ptr()] = copied
        return copied

    def gives(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    properties = SimpleNamespace(name="fake", major=9, minor=0, total_memory=2**36, multi_processor_count=132)
    cuda = dict.fromkeys(
        ("_lazy_init", "set_device", "empty_cache", "manual_seed", "manual_seed_all", "set_rng_state"), gives(None)
    )
    cuda |= {"is_available": gives(True), "is_bf16_supported": gives(True), "device_count": gives(1)}
    cuda |= {"current_device": gives(0), "get_device_name": gives("fake"), "max_memory_allocated": gives(0)}
    cuda |= {"get_device_capability": gives((9, 0)), "get_device_properties": gives(properties), "Event": CudaEvent}
    cuda["synchronize"] = lambda *args: note("synchronize", "the device")
    cuda["get_rng_state"] = lambda *args: torch.zeros(16, dtype=torch.uint8)

    def save(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:  # safetensors wants to know their places
        return safetensors.torch.save({name: value.cpu() for name, value in state.items()}, metadata)

    return {
        torch.cuda: cuda,
        torch.accelerator: {"is_available": gives(True)},
        Tensor: {"pin_memory": pin},
        segmenter: {"save": save},
        fabric_cuda: {"_check_cuda_matmul_precision": gives(None)},
    }


@contextlib.contextmanager
def _no_context() -> Iterator[None]:
    """Let CUDA's hooks say that no device has a context, whatever the driver: else autograd refuses to start.

    The hooks are a C++ object, whose table of virtual functions gets a copy with one other entry.
    """
    torch_folder = Path(torch.__file__).parent
    declared = (torch_folder / "include/ATen/detail/AcceleratorHooksInterface.h").read_text()
    names = re.findall(r"virtual\s[^;{(]*?(~?\w+)\(", declared)
    slot, header = names.index("hasPrimaryContext") + 1, 2  # the destructor takes two entries
    hooks_of = ctypes.CDLL(str(torch_folder / "lib" / "libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
    hooks_of.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p.from_address(hooks_of())
    before = pointer.value
    assert before is not None
    entries = (ctypes.c_void_p * 82).from_address(before - header * ctypes.sizeof(ctypes.c_void_p))
    copied = (ctypes.c_void_p * 82)(*entries)
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: False)
    copied[header + slot] = ctypes.cast(answer, ctypes.c_void_p).value
    pointer.value = ctypes.addressof(copied) + header * ctypes.sizeof(ctypes.c_void_p)
    try:
        yield
    finally:
        pointer.value = before

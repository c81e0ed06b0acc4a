r"""Run CUDA code on a machine without a GPU: tensors on "cuda" have no data, tensors on the CPU are real.

    with fake_cuda() as gpu:
        train(settings, out)  # with train.accelerator=cuda: the very code that runs on a GPU
    print(*gpu.events, sep="\n")

A dispatch mode lets operations on CPU tensors alone run as they are, so generators, the loader and files work. What
has a tensor on "cuda" among its arguments runs on the meta device, where shapes and types are computed, once for each
kind of arguments. Two things are found that way: a CPU tensor among those on "cuda" is an error, as on a GPU; and what
makes the host wait is an `Event`: a copy between host and device that blocks, a read of a value, a shape that depends
on values, a synchronisation. Training, evaluation, pictures, checkpoints, resuming and `Predictor` run unchanged.

It does not see:
- results: every value that is copied or read from the device is zero (a score of such a run means nothing), so what
  depends on them, such as a loss that is not finite, does not happen;
- waits within kernels, cuDNN, the memory allocator or NCCL; nor several processes, streams, and CUDA graphs;
- `torch.compile`, which does nothing under a dispatch mode: the eager code is what runs;
- threads other than autograd's in which tensors are moved to the device (`predict` runs its network in one).
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ssrseg
from without_driver import without_driver

Spec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides, type."""
DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
SHAPED_BY_VALUES: dict[Any, Callable[..., Tensor]] = {  # as large as they can become
    aten.nonzero: lambda x: x.new_empty(x.numel(), x.dim(), dtype=torch.int64),
    aten.masked_select: lambda x, mask: x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel()),
    aten.bincount: lambda x, weights=None, minlength=0: x.new_empty(max(1, minlength), dtype=torch.int64),
}
IN_PLACE = {aten.fill_diagonal_: 0, aten._fused_sgd_: None}
"""What those return that have no rule on the meta device, as in `KNOWN`; they change no shape."""


@dataclass(frozen=True)
class Event:
    """Something that crosses between host and device."""

    step: int
    """Of `fit`, from 1; 0 outside of it."""
    kind: str
    """`send` and `fetch` do not make the host wait; `blocking send`, `pageable send`, `blocking fetch`, `read`, `shape`
    and `synchronize` do."""
    what: str
    where: tuple[str, ...]
    """The package's lines, innermost first: `adapt/views.py:85 __call__`."""

    @property
    def waits(self) -> bool:
        return self.kind not in ("send", "fetch")

    def __str__(self) -> str:
        return f"step {self.step}: {self.kind} of {self.what} at {' < '.join(self.where[:6]) or 'no line of ssrseg'}"


class OnGpu(Tensor):
    """A tensor on "cuda" without data."""

    spec: Spec
    gpu: FakeCuda
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, spec: Spec, gpu: FakeCuda) -> OnGpu:
        shape, stride, dtype = spec
        with torch.inference_mode(False):  # or it could not become a view of a parameter
            self: OnGpu = Tensor._make_wrapper_subclass(cls, shape, strides=stride, dtype=dtype, device=DEVICE)
        self.spec, self.gpu = spec, gpu
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reached in threads that the mode was not entered in."""
        gpu = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, OnGpu)).gpu
        return gpu.__torch_dispatch__(func, types, args, kwargs)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)


class FakeCuda(TorchDispatchMode):
    """Writes down what crosses between host and device; see `fake_cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.pinned: dict[int, Tensor] = {}  # by their place; kept, so that no other tensor gets it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        device = device if device is None else torch.device(device).type
        if OnGpu not in types and device != "cuda":
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and func._can_decompose():  # elsewhere autograd has done so
            with self:
                return func.decompose(*args, **kwargs)
        packet = func.overloadpacket
        if packet in READS:
            self.note("read", "a value")
            return torch.zeros((), dtype=args[0].dtype).item()
        if packet is aten._to_copy and (device == "cpu" or not isinstance(args[0], OnGpu)):
            return self._moved(args[0], device, kwargs)
        if packet is aten.copy_ and not (isinstance(args[0], OnGpu) and isinstance(args[1], OnGpu)):
            return self._overwritten(*args, **kwargs)
        if packet in INDEXING:
            args = (args[0], self._indices(packet, args), *args[2:])
        if packet is aten.where and any(isinstance(x, Tensor) and not isinstance(x, OnGpu) for x in args):
            self.note("blocking send", "a number")
        return self._computed(func, args, {**kwargs, "device": "meta"} if device else kwargs, device == "cpu")

    def _computed(self, func: Any, args: Any, kwargs: Any, on_host: bool) -> Any:
        """Find the shapes and types of an operation's results, on the meta device when it is new."""
        given: list[OnGpu] = []
        key = func, _key(args, given, func), _key(kwargs, given, func)
        if func.overloadpacket in SHAPED_BY_VALUES:
            self.note("shape", func.overloadpacket.__name__)
        if key not in KNOWN:
            KNOWN[key] = _on_meta(func, args, kwargs)

        def made(spec: Any) -> Any:
            if isinstance(spec, list):
                return [made(each) for each in spec]
            if isinstance(spec, int):
                return given[spec]
            if spec is None:
                return None
            return torch.zeros(spec[0], dtype=spec[2]) if on_host else OnGpu(spec, self)

        return made(KNOWN[key])

    def _moved(self, x: Tensor, device: str | None, kwargs: dict[str, Any]) -> Tensor:
        """`Tensor.to` another device."""
        dtype = kwargs.get("dtype") or x.dtype
        if not isinstance(x, OnGpu):
            self._sent(x, kwargs.get("non_blocking", False) and dtype == x.dtype)
            return OnGpu(_spec(aten._to_copy.default(x, **{**kwargs, "device": "meta"})), self)
        self.note("fetch" if kwargs.get("non_blocking") else "blocking fetch", f"{tuple(x.shape)}")
        return torch.zeros(x.shape, dtype=dtype)

    def _overwritten(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """`Tensor.copy_` between devices."""
        if isinstance(to, OnGpu):
            self._sent(source, non_blocking and source.dtype == to.dtype)
            return to
        self.note("fetch" if non_blocking else "blocking fetch", f"{tuple(source.shape)}")
        return to.zero_()

    def _sent(self, x: Tensor, non_blocking: bool) -> None:
        pinned = x.untyped_storage().data_ptr() in self.pinned
        kind = "blocking send" if not non_blocking else "send" if pinned else "pageable send"
        self.note(kind, f"{tuple(x.shape)}")

    def _indices(self, packet: Any, args: Any) -> list[Tensor | None]:
        """Note what indices make the host wait; those by a mask become numbers of all its places."""
        found: list[Tensor | None] = []
        fills = packet is not aten.index and args[2].numel() == 1  # then torch fills by the mask
        for index in args[1]:
            if isinstance(index, OnGpu) and index.dtype == torch.bool and not fills:
                self.note("shape", "an index by a mask")
                found += [OnGpu(((index.numel(),), (1,), torch.int64), self)] * index.ndim
                continue
            if index is not None and not isinstance(index, OnGpu):
                self.note("blocking send", f"an index {tuple(index.shape)}")
                index = OnGpu(_spec(index), self)
            found.append(index)
        return found

    def note(self, kind: str, what: str) -> None:
        """Write an event down."""
        step, where = self.place()
        self.events.append(Event(step, kind, what, where))

    def place(self) -> tuple[int, tuple[str, ...]]:
        """The step of `fit`, and the package's lines that led here; in a thread of autograd, also those that wait."""
        step, where = self._lines(sys._getframe())
        main = threading.main_thread().ident
        if main is None or main == threading.get_ident():
            return step, where
        step, before = self._lines(sys._current_frames()[main])
        return step, where + before

    def _lines(self, frame: FrameType | None) -> tuple[int, tuple[str, ...]]:
        step, where = 0, list[str]()
        while frame is not None:
            name = frame.f_code.co_name
            if (file := _own(frame.f_code.co_filename)) is not None:
                where.append(f"{file}:{frame.f_lineno} {name}")
                step = frame.f_locals.get("step", -1) + 1 if name == "fit" else step
            frame = frame.f_back
        return step, tuple(where)


KNOWN: dict[Any, Any] = {}
"""Results of operations: the number of the tensor given that is returned, or a `Spec`; lists of them."""


@functools.cache
def _own(file: str) -> str | None:
    """A file's path within the package or the tests; `None` for the others and for those that fake the device."""
    roots = Path(ssrseg.__file__).parent, Path(__file__).parent
    root = next((root for root in roots if Path(file).is_relative_to(root)), None)
    fakes = Path(file).stem in ("fake_cuda", "without_driver")
    return None if root is None or fakes else Path(file).relative_to(root).as_posix()


def _spec(x: Tensor) -> Spec:
    return tuple(x.shape), x.stride(), x.dtype


def _key(x: Any, given: list[OnGpu], func: Any) -> Any:
    """What the results' shapes depend on; tensors on the device are collected. Raises `RuntimeError` for another's."""
    if isinstance(x, OnGpu):
        given.append(x)
        return x.spec
    if isinstance(x, Tensor):
        if x.ndim:
            raise RuntimeError(f"{func}: a tensor {tuple(x.shape)} on the CPU is among those on cuda:0")
        return x.dtype  # a number, which a kernel takes as its argument
    if isinstance(x, (list, tuple)):
        return tuple([_key(part, given, func) for part in x])
    if isinstance(x, dict):
        return tuple([(name, _key(value, given, func)) for name, value in x.items()])
    if type(x) is Generator and x.device.type == "cpu":
        raise RuntimeError(f"{func}: the generator is on the CPU, the tensors are on cuda:0")
    return float if isinstance(x, float) else (type(x), x)


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    places: dict[int, int] = {}
    kept: list[Tensor] = []

    def bare(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return type(x)(map(bare, x)) if type(x) in (list, tuple) else x
        meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        if isinstance(x, OnGpu):
            places[id(meta)] = len(places)
            kept.append(meta)
        return meta

    def described(x: Any) -> Any:
        if isinstance(x, Tensor):
            return places.get(id(x), _spec(x))
        return [described(part) for part in x] if isinstance(x, list | tuple) else x

    args, kwargs = bare(tuple(args)), {name: bare(value) for name, value in kwargs.items()}
    if func.overloadpacket in IN_PLACE:
        return IN_PLACE[func.overloadpacket]
    return described(SHAPED_BY_VALUES.get(func.overloadpacket, func)(*args, **kwargs))


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Let torch have a CUDA device without data; all is undone at the end."""
    gpu = FakeCuda()
    with without_driver(gpu.note, lambda: gpu.place()[0], gpu.pinned), gpu:
        yield gpu

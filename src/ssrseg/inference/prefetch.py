"""Work that goes on beside the network's: reading what comes next, writing what is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T], count: int = 2) -> Iterator[T]:
    """The items in their order, up to `count` of them made in advance by one thread; errors come in their turn."""
    source = iter(items)
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Any]] = deque(reader.submit(next, source, _END) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(reader.submit(next, source, _END))
                yield item
        finally:
            for future in waiting:
                future.cancel()


class Behind:
    """One thread that does what it is given, in order; at most `count` jobs wait, and leaving waits for all of them."""

    def __init__(self, count: int = 2) -> None:
        self._count, self._waiting = count, deque[Future[Any]]()
        self._writer = ThreadPoolExecutor(1)

    def do(self, job: Callable[[], object]) -> None:
        """Take a job; raises what an earlier one raised."""
        if len(self._waiting) >= self._count:
            self._waiting.popleft().result()
        self._waiting.append(self._writer.submit(job))

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()

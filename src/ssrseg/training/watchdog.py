"""Ends a run of several processes when one of them is dead or stands still, and says which.

torch's collectives wait for a lost process until they time out, and then do not name it. Here every process keeps a
connection to the first one and reports where it is; a thread on each side reads them. Whatever kills a process closes
its connection, so its end is known at once; one that stands still is known by its place in the code.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_fabric import Fabric

from ssrseg.training.loop import Observer, StepResult

BEAT = 1.0
"""Seconds between two reports."""
GRACE = 1.0
"""Seconds that a process has to leave by itself once the run is over."""

PACKAGE, STANDARD = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib")


@dataclass
class Seen:
    """What is known of a process."""

    report: Mapping[str, Any]
    heard: float
    moved: float

    def __str__(self) -> str:
        return name_of(self.report)

    def hear(self, report: Mapping[str, Any], now: float) -> None:
        """Take in a report."""
        still = report["step"] == self.report["step"] and report["stack"] == self.report["stack"]
        self.moved, self.heard, self.report = self.moved if still else now, now, report


def name_of(report: Mapping[str, Any]) -> str:
    """`process 1 (pid 4711 on node-3)`."""
    return f"process {report['rank']} (pid {report['pid']} on {report['host']})"


def judge(processes: list[Seen], patience: float, now: float) -> tuple[list[Seen], str]:
    """The processes that hold up a run, and what to say of them; none while all is well.

    A process holds the others up when it is silent, or when all stand still: then it is the one that has done the
    fewest steps and does not wait in a collective.
    """
    if silent := [seen for seen in processes if now - seen.heard > patience]:
        return silent, f"has not been heard of for {patience:.0f} s: its machine is lost, or it is stopped"
    if not all(now - seen.moved > patience for seen in processes):
        return [], ""
    fewest = min(seen.report["step"] for seen in processes)
    last = [seen for seen in processes if seen.report["step"] == fewest]
    guilty = [seen for seen in last if not seen.report["waits"]] or last
    places = ", ".join(sorted({seen.report["place"] for seen in guilty}))
    return guilty, f"stands still after step {fewest}, for more than {patience:.0f} s (train.timeout_minutes): {places}"


def is_own(file: str) -> bool:
    """Whether a source file is this package's or the user's: neither Python's nor another library's."""
    return file.startswith(PACKAGE) or not ("site-packages" in file or file.startswith((STANDARD, "<")))


class Watchdog(Observer):
    """Watches the processes while it is entered; nothing happens in a run of one process.

    Args:
        fabric: launched.
        patience: seconds without a sign of life, or of movement, that are allowed.
    """

    def __init__(self, fabric: Fabric, patience: float) -> None:
        self._fabric, self._patience = fabric, patience
        self._main = threading.get_ident()
        self._step = 0
        self._links: dict[Connection, int] = {}  # the first process's to all others; each other's to the first
        self._sending, self._over = threading.Lock(), threading.Event()

    def stepped(self, result: StepResult) -> None:
        """Note how far this process is."""
        self._step = result.step

    def __enter__(self) -> Watchdog:
        if self._fabric.world_size == 1:
            return self
        first, key = self._fabric.is_global_zero, secrets.token_bytes(32)
        alone = self._fabric.world_size == getattr(self._fabric.strategy, "num_processes", 0)
        host = "127.0.0.1" if alone else os.environ["MASTER_ADDR"]
        listener = None
        if first:
            listener = Listener(("127.0.0.1" if alone else "", 0), backlog=self._fabric.world_size, authkey=key)
        port, key = self._fabric.broadcast((listener.address[1] if listener else 0, key))
        if listener is not None:
            threading.Thread(target=self._watch, args=(listener,), daemon=True).start()
        else:
            self._links[Client((host, port), authkey=key)] = 0
            threading.Thread(target=self._report, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fabric.world_size == 1:
            return
        if error is None:
            self._fabric.barrier()
        elif isinstance(error, RuntimeError):
            # Mostly because another process is gone, of which the threads then know more.
            time.sleep(3 * GRACE)
        self._over.set()
        if error is None:
            self._tell({"done": True})
        elif isinstance(error, Exception):
            self._tell({"end": f"{name_of(self._here())} failed with {type(error).__name__}: {error}"})
        else:  # interrupted, as the others may be
            self._tell({"left": f"{name_of(self._here())} was interrupted ({type(error).__name__})"})

    def _here(self) -> dict[str, Any]:
        """The report of this process: who it is, how far, and where in the code."""
        stack = list(traceback.walk_stack(sys._current_frames()[self._main]))  # innermost first
        inner = [frame.f_code.co_filename for frame, _ in stack[:3]]
        frame, line = next((place for place in stack if is_own(place[0].f_code.co_filename)), stack[0])
        return {
            "rank": self._fabric.global_rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._step,
            "place": f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}",
            "stack": " ".join(f"{frame.f_code.co_filename}:{line}" for frame, line in stack),
            "waits": any("torch/distributed/" in file or "torch/autograd/" in file for file in inner),
        }

    def _tell(self, words: Mapping[str, Any]) -> None:
        """To everyone that this process is connected to."""
        for link in list(self._links):
            with self._sending, contextlib.suppress(OSError):
                link.send_bytes(json.dumps(words).encode())

    def _watch(self, listener: Listener) -> None:
        """The first process's thread: hears all others."""
        processes = {0: Seen(self._here(), time.monotonic(), time.monotonic())}
        for _ in range(1, self._fabric.world_size):
            link = listener.accept()
            report = json.loads(link.recv_bytes())
            self._links[link] = report["rank"]
            processes[report["rank"]] = Seen(report, time.monotonic(), time.monotonic())
        while self._links and not self._over.is_set():
            ready = wait(list(self._links), timeout=BEAT)
            for link in [link for link in self._links if link in ready]:
                self._hear(link, processes[self._links[link]])
            processes[0].hear(self._here(), time.monotonic())
            self._tell({})
            guilty, what = judge(list(processes.values()), self._patience, time.monotonic())
            if guilty:
                self._end(f"{' and '.join(map(str, guilty))} {what}", guilty)

    def _hear(self, link: Connection, seen: Seen) -> None:
        try:
            words = json.loads(link.recv_bytes())
        except (EOFError, OSError):
            step = max(self._step, seen.report["step"])
            self._end(f"{seen} has died around step {step}: it was killed, by hand or for its memory")
            return
        if "step" in words:
            seen.hear(words, time.monotonic())
            return
        del self._links[link]
        seen.heard = float("inf")
        if "end" in words:
            self._end(words["end"])
        elif "left" in words and not self._over.wait(self._patience):
            self._end(words["left"])

    def _report(self) -> None:
        """Every other process's thread: reports to the first, and hears whether the run is over."""
        [link], heard = self._links, time.monotonic()
        while not self._over.is_set():
            self._tell(self._here())
            try:
                while link.poll(BEAT):
                    words, heard = json.loads(link.recv_bytes()), time.monotonic()
                    if "done" in words:
                        return
                    if "end" in words or ("left" in words and not self._over.wait(self._patience)):
                        self._leave(words.get("end") or words["left"])
            except (EOFError, OSError):
                self._leave("process 0 has died: it was killed, by hand or for its memory")
            if time.monotonic() - heard > self._patience:
                self._leave(f"process 0 has not been heard of for {self._patience:.0f} s")

    def _end(self, verdict: str, still: list[Seen] | None = None) -> None:
        """Tell all, and end what cannot end itself."""
        self._tell({"end": verdict})
        self._say(verdict)
        for seen in still or []:
            if seen.report["host"] == socket.gethostname() and seen.report["pid"] != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(seen.report["pid"], signal.SIGKILL)
        self._exit()

    def _leave(self, verdict: str) -> None:
        self._say(verdict)
        self._exit()

    def _say(self, verdict: str) -> None:
        if not self._over.is_set():
            sys.stderr.write(f"error: {verdict}. Process {self._fabric.global_rank} ends with it.\n")
            sys.stderr.flush()

    def _exit(self) -> None:
        # Not an exception: the main thread may wait in a collective, where none can reach it.
        if not self._over.wait(GRACE):
            os._exit(1)

"""Heartbeats: if a rank dies or hangs, the run ends on all ranks with a message that names it.

Every rank writes a heartbeat to the process group's store every few seconds, from a thread. Rank 0 monitors all other
ranks, and they monitor rank 0. A collective by itself would block until its timeout, or fail without naming the rank.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from torch.distributed import PrefixStore, TCPStore

from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.process_group import World

FAILED = 1
"""Exit code of a process that ends because another rank failed."""
ADVICE = "checkpoints written before are intact: fix the cause and run the same command again"
STORE_LOST = "rank 0 is gone, and with it the process group's store"


class LostRankError(RuntimeError):
    """Another rank died, hangs or failed: names the rank, the host and the remedy."""


class Heartbeat:
    """While entered, a thread sends this rank's heartbeats and monitors others. It ends the process if a monitored rank
    sends none for `timeout` seconds. After a failed collective, `diagnose` needs only a few heartbeats.
    """

    def __init__(self, world: World, timeout: float, on_lost: Callable[[], None] = lambda: None) -> None:
        """`on_lost` is called before this process ends because of another rank, perhaps from the thread."""
        self.world, self.timeout, self.on_lost = world, timeout, on_lost
        self.interval = min(2.0, timeout / 8)
        self.step = 0
        """Last step that this rank finished; other ranks name it in their messages."""
        self.beats = 0
        self._stop = threading.Event()
        self._last_beats: dict[int, tuple[int, float]] = {}
        """By rank: number of its newest heartbeat, and the local time at which it was first read."""
        self._connection: PrefixStore | None = None
        self._reason: str | None = None
        """Why the run ends; the same on all ranks."""
        self._diagnosing = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        if self.world.size > 1:
            self._connection = self._connect()
            self._beat()
            self.world.barrier()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(self.interval)
        if error is not None and not isinstance(error, LostRankError):
            self._put("left", f"{type(error).__name__}: {error}")

    def diagnose(self, error: BaseException) -> LostRankError:
        """Find out why a collective failed: waits a few heartbeats to see which rank is silent, has left, or makes no
        progress. All ranks report the reason of the first rank that found one.
        """
        self._diagnosing = True
        self.on_lost()
        try:
            self._put("failed", str(self.step))
            for rank in range(self.world.size):
                self._seconds_since_beat(rank)
            for _ in range(16):
                time.sleep(self.interval / 4)
                self._read_reason()
                if self._reason is not None:
                    break
            else:
                self._publish(self._lost_ranks() or f"a collective failed: {str(error).strip().splitlines()[0]}")
        except RuntimeError:
            self._reason = self._reason or STORE_LOST
        return LostRankError(f"{self._reason}; {ADVICE}")

    def _lost_ranks(self) -> str | None:
        """After a failed collective: the ranks that left, else those that send no heartbeat, else those that hang."""
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        left = [
            f"{self._name(rank)} ended with {self._get('left', rank)}" for rank in others if self._get("left", rank)
        ]
        silent = [
            f"{self._name(rank)} sends no heartbeat"
            for rank in others
            if self._seconds_since_beat(rank) > 2.5 * self.interval
        ]
        stuck = [
            f"{self._name(rank)} is alive but makes no progress" for rank in others if self._get("failed", rank) is None
        ]
        return " and ".join(left or silent or stuck) or None

    def _publish(self, reason: str) -> None:
        """Set the reason on all ranks, unless one is set already. Rank 0 keeps the store alive while they read it."""
        self._reason = self._store.compare_set("reason", "", reason).decode()
        if self.world.is_main:
            time.sleep(2 * self.interval)

    def _read_reason(self) -> None:
        if self._reason is None and self._store.check(["reason"]):
            self._reason = self._store.get("reason").decode()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self._beat()
                self._read_reason()
                silent = [rank for rank in self._monitored() if self._seconds_since_beat(rank) > self.timeout]
                if silent and self._reason is None and not self._diagnosing:
                    self._publish(f"{self._name(silent[0])} sent no heartbeat for {self.timeout:g} s")
            except RuntimeError:
                if self._stop.wait(self.timeout):
                    return
                self._reason = self._reason or STORE_LOST
            if self._reason is not None and not self._diagnosing:
                # Exit at once: the main thread may block in a collective. Files are written atomically.
                print(f"error: {self._reason}; {ADVICE}", file=sys.stderr, flush=True)
                self.on_lost()
                os._exit(FAILED)

    def _monitored(self) -> range:
        return range(1, self.world.size) if self.world.is_main else range(1)

    def _beat(self) -> None:
        self.beats += 1
        record = {"beat": self.beats, "step": self.step, "host": host_name(), "pid": os.getpid()}
        self._put("alive", json.dumps(record))
        for rank in self._monitored():
            self._seconds_since_beat(rank)

    def _seconds_since_beat(self, rank: int) -> float:
        """Seconds since this process first read the newest heartbeat of a rank."""
        record = self._get("alive", rank)
        beat = 0 if record is None else int(json.loads(record)["beat"])
        last, when = self._last_beats.get(rank, (-1, 0.0))
        if beat != last:
            self._last_beats[rank] = last, when = beat, time.monotonic()
        return time.monotonic() - when

    def _name(self, rank: int) -> str:
        record = self._get("alive", rank)
        if record is None:
            return f"rank {rank}"
        values = json.loads(record)
        return f"rank {rank} (host {values['host']}, process {values['pid']}, after step {values['step']})"

    @property
    def _store(self) -> PrefixStore:
        assert self._connection is not None
        return self._connection

    def _put(self, kind: str, text: str) -> None:
        self._store.set(f"{kind}-{self.world.rank}", text)

    def _get(self, kind: str, rank: int) -> str | None:
        key = f"{kind}-{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _connect(self) -> PrefixStore:
        """A separate connection to the store of the process group; a collective."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=max(5.0, self.timeout))
        run_id = self.world.from_main(lambda: uuid.uuid4().hex)  # one server may serve several runs
        return PrefixStore(f"pfcluster-heartbeat-{run_id}", TCPStore(host, port, is_master=False, timeout=timeout))

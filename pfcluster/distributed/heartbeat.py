"""A dead or stuck rank ends the run on all ranks, by its name.

Every rank tells the process group's store every few seconds that it lives, from a thread of its own, and watches rank
0, which watches all. A collective alone would wait in vain, or fail without saying for whom.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from datetime import timedelta
from types import TracebackType

from torch.distributed import PrefixStore, TCPStore

from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.process_group import World

FAILED = 1
"""Exit code of a process that ends because another rank did."""
ADVICE = "checkpoints from before are whole: mend it and give the same command"


class LostRankError(RuntimeError):
    """Another rank is gone, stuck or failed: says which, where, and what to do."""


class Heartbeat:
    """While entered, this rank beats and watches. `timeout` seconds without a beat end the process; after a collective
    failed, a few beats are enough to know whose silence it was.
    """

    def __init__(self, world: World, timeout: float) -> None:
        self.world, self.timeout = world, timeout
        self.interval = min(2.0, timeout / 8)
        self.step = 0
        """Last step that this rank finished, for the others' messages."""
        self.beats = 0
        self._stop = threading.Event()
        self._seen: dict[int, tuple[int, float]] = {}
        self._connection: PrefixStore | None = None
        self._verdict: str | None = None
        self._blaming = False
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

    def blame(self, error: BaseException) -> LostRankError:
        """Why a collective failed here. Waits a few beats to see which rank is silent, left or does not move; all ranks
        get the answer of the first that has one.
        """
        self._blaming = True
        try:
            self._put("failed", str(self.step))
            for rank in range(self.world.size):
                self._silence(rank)
            for _ in range(16):
                time.sleep(self.interval / 4)
                if self._verdict is None and self._store.check(["verdict"]):
                    self._verdict = self._store.get("verdict").decode()
                if self._verdict is not None:
                    break
            else:
                self._conclude(self._suspicion() or f"a collective failed: {str(error).strip().splitlines()[0]}")
        except RuntimeError:
            self._verdict = self._verdict or "rank 0 is gone, the others' store with it"
        return LostRankError(f"{self._verdict}; {ADVICE}")

    def _suspicion(self) -> str | None:
        """What can be seen of the others after a collective failed: who left, else who is gone, else who is stuck."""
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        gone = [
            f"{self._name(rank)} gives no sign of life" for rank in others if self._silence(rank) > 2.5 * self.interval
        ]
        left = [
            f"{self._name(rank)} ended with {self._get('left', rank)}" for rank in others if self._get("left", rank)
        ]
        stuck = [
            f"{self._name(rank)} lives and does not move on" for rank in others if self._get("failed", rank) is None
        ]
        return " and ".join(left or gone or stuck) or None

    def _conclude(self, words: str) -> None:
        """Tell all ranks, unless one has already told something; rank 0 keeps the store alive while they read."""
        self._verdict = self._store.compare_set("verdict", "", words).decode()
        if self.world.is_main:
            time.sleep(2 * self.interval)

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self._beat()
                if self._store.check(["verdict"]):
                    self._verdict = self._store.get("verdict").decode()
                silent = [rank for rank in self._watched() if self._silence(rank) > self.timeout]
                if silent and self._verdict is None and not self._blaming:
                    self._conclude(f"{self._name(silent[0])} gave no sign of life for {self.timeout:g} s")
            except RuntimeError:
                if self._stop.wait(self.timeout):
                    return
                self._verdict = self._verdict or "rank 0 is gone, the others' store with it"
            if self._verdict is not None and not self._blaming:
                # At once: the main thread may wait in a collective for ever. Nothing on the disk is half written.
                print(f"error: {self._verdict}; {ADVICE}", file=sys.stderr, flush=True)
                os._exit(FAILED)

    def _watched(self) -> range:
        return range(1, self.world.size) if self.world.is_main else range(1)

    def _beat(self) -> None:
        self.beats += 1
        record = {"beat": self.beats, "step": self.step, "host": host_name(), "pid": os.getpid()}
        self._put("alive", json.dumps(record))
        for rank in self._watched():
            self._silence(rank)

    def _silence(self, rank: int) -> float:
        """Seconds since a rank's last beat was first seen here."""
        record = self._get("alive", rank)
        beat = 0 if record is None else int(json.loads(record)["beat"])
        last, when = self._seen.get(rank, (-1, 0.0))
        if beat != last:
            self._seen[rank] = last, when = beat, time.monotonic()
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
        """A connection of our own to the server that the process group was made through."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=max(5.0, self.timeout))
        own = self.world.from_main(lambda: uuid.uuid4().hex)  # a server may see several runs
        return PrefixStore(f"pfcluster-heartbeat-{own}", TCPStore(host, port, is_master=False, timeout=limit))

"""Worker processes that make shards. Each runs one thread, ignores Ctrl-C and SIGTERM, and ends when its parent does.

Workers are spawned, one pipe each: the parent hands out one shard at a time and hears of every window of photos.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any

from pfcluster.data.build.plan import BuildError, PlannedShard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pfcluster.data.build.make_shard import ShardMaker

SHIELDED = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Worker:
    process: Any
    pipe: connection.Connection
    shard: PlannedShard | None = None


def run_workers(
    make_maker: Callable[[], ShardMaker],
    shards: Sequence[PlannedShard],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Make all shards. `make_maker` is called once in each worker; it must be picklable.

    Raises BuildError where a shard cannot be made or a worker dies; no worker outlives this call.
    """
    waiting = deque(shards)
    crew: list[_Worker] = []
    try:
        for _ in range(min(workers, len(shards))):
            crew.append(_start(make_maker))
            _hand_out(crew[-1], waiting)
        while busy := [worker for worker in crew if worker.shard]:
            for ready in connection.wait([worker.pipe for worker in busy]):
                worker = next(one for one in busy if one.pipe is ready)
                _listen(worker, waiting, advance)
    finally:
        for worker in crew:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _start(make_maker: Callable[[], ShardMaker]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    resource_tracker.ensure_running()  # it unblocks signals when it starts
    with _signals_blocked():  # a child inherits this, so that it is shielded from its first instruction on
        process = context.Process(target=_work, args=(make_maker, theirs), daemon=True)
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_out(worker: _Worker, waiting: deque[PlannedShard]) -> None:
    worker.shard = waiting.popleft() if waiting else None
    if worker.shard:
        try:
            worker.pipe.send(worker.shard)
        except OSError as error:
            raise _death(worker) from error


def _listen(worker: _Worker, waiting: deque[PlannedShard], advance: Callable[[int], None]) -> None:
    try:
        kind, value = worker.pipe.recv()
    except (EOFError, OSError) as error:
        raise _death(worker) from error
    if kind == "photos":
        advance(value)
    elif kind == "done":
        _hand_out(worker, waiting)
    else:
        raise BuildError(value)


def _death(worker: _Worker) -> BuildError:
    worker.process.join(timeout=5)
    name = worker.shard.name if worker.shard else "a shard"
    return BuildError(
        f"a worker ended while making {name} (exit code {worker.process.exitcode}; -9 often means too little memory)."
        " Finished shards are kept: run the same command again, with fewer workers if need be"
    )


def _work(make_maker: Callable[[], ShardMaker], pipe: connection.Connection) -> None:
    """The worker's life: make shard after shard, until it is killed or its parent has gone."""
    for number in SHIELDED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        maker = make_maker()
        while True:
            shard = pipe.recv()
            maker.make(shard, lambda photos: pipe.send(("photos", photos)))
            pipe.send(("done", shard.name))
    except (EOFError, BrokenPipeError):
        return
    except BuildError as error:
        pipe.send(("error", str(error)))
    except ImportError as error:
        pipe.send(("error", f"{error}; install the project's dependencies, or use --align none if it is a detector's"))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        pipe.send(("error", f"cannot write{where}: {error.strerror or error}; finished shards are kept"))


def _end_with_parent() -> None:
    """End this process at once when the one that started it ends, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)

"""Worker processes that make shards. Each is single-threaded, ignores SIGINT and SIGTERM, and exits with its parent.

Workers are spawned processes with a pipe each: the parent sends one shard at a time and receives progress messages.
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

from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.plan import PlannedShard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pfcluster.data.build.make_shard import ShardMaker

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    """Make all shards. `make_maker` is called once in each worker and must be picklable.

    Raises BuildError if a shard cannot be made or a worker dies. All workers have ended when this returns.
    """
    queue = deque(shards)
    pool: list[_Worker] = []
    try:
        for _ in range(min(workers, len(shards))):
            pool.append(_start(make_maker))
            _send_next(pool[-1], queue)
        while busy := [worker for worker in pool if worker.shard]:
            for ready in connection.wait([worker.pipe for worker in busy]):
                worker = next(one for one in busy if one.pipe is ready)
                _receive(worker, queue, advance)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _start(make_maker: Callable[[], ShardMaker]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    resource_tracker.ensure_running()  # starting it unblocks signals
    with _signals_blocked():  # inherited, so that the child ignores signals from its start
        process = context.Process(target=_work, args=(make_maker, child_end), daemon=True)
        process.start()
    child_end.close()
    return _Worker(process, parent_end)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send_next(worker: _Worker, queue: deque[PlannedShard]) -> None:
    worker.shard = queue.popleft() if queue else None
    if worker.shard:
        try:
            worker.pipe.send(worker.shard)
        except OSError as error:
            raise _worker_died(worker) from error


def _receive(worker: _Worker, queue: deque[PlannedShard], advance: Callable[[int], None]) -> None:
    try:
        kind, value = worker.pipe.recv()
    except (EOFError, OSError) as error:
        raise _worker_died(worker) from error
    if kind == "photos":
        advance(value)
    elif kind == "done":
        _send_next(worker, queue)
    else:
        raise BuildError(value)


def _worker_died(worker: _Worker) -> BuildError:
    worker.process.join(timeout=5)
    name = worker.shard.name if worker.shard else "a shard"
    return BuildError(
        f"a worker died while making {name} (exit code {worker.process.exitcode}; -9 often means out of memory)."
        " Finished shards are kept: run the same command again, with fewer workers if need be"
    )


def _work(make_maker: Callable[[], ShardMaker], pipe: connection.Connection) -> None:
    """Main loop of a worker: make shards until it is killed or its parent exits."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
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
        hint = "install the project's dependencies, or use --align none if only the detector needs it"
        pipe.send(("error", f"{error}; {hint}"))
    except RuntimeError as error:  # of torch: of the detector's device, or for want of memory
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        hint = "run the same command again, with fewer workers if memory ran out, or with --device cpu if a GPU fails"
        pipe.send(("error", f"a worker failed ({reason}); finished shards are kept: {hint}"))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        pipe.send(("error", f"cannot write{where}: {error.strerror or error}; finished shards are kept"))


def _exit_with_parent() -> None:
    """Exit when the parent process ends for any reason."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)

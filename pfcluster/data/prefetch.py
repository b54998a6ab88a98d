"""Batches prepared ahead: while a step computes, the next one is read, cropped, drawn, copied and augmented."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from pfcluster.config import RunConfig
from pfcluster.data.batch import Batch, HostBatch, draw_host_batch, move_to_device
from pfcluster.data.sampler import read_ahead
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World

S = TypeVar("S")
T = TypeVar("T")


def micro_batches(
    read: Callable[[int], RawBatch], config: RunConfig, steps: range, world: World
) -> Iterator[list[Batch]]:
    """The micro-batches of each step in order. `read` returns this rank's samples of a step.

    `data.workers` threads read, crop and draw ahead. On CUDA they also pin the batch, and one more thread copies and
    augments one batch ahead on a stream of its own, so the device holds two batches. On a CPU, where that would only
    compete with the step, and without workers the caller's thread does the rest.
    """
    workers = config.data.workers
    if world.device.type == "cuda" and workers > 0:
        return _ahead_on_cuda(read, config, steps, world)
    hosts = read_ahead(lambda step: draw_host_batch(read(step), config, step, world), steps, workers)
    return (move_to_device(host, config, world) for host in hosts)


def _ahead_on_cuda(
    read: Callable[[int], RawBatch], config: RunConfig, steps: range, world: World
) -> Iterator[list[Batch]]:
    device = world.device
    training, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(training)  # images in device memory were written there

    def load(step: int) -> HostBatch:
        with torch.cuda.device(device), torch.cuda.stream(side):  # images in device memory are selected there
            return draw_host_batch(read(step), config, step, world).pinned()

    def prepare(host: HostBatch) -> tuple[list[Batch], torch.cuda.Event]:
        with torch.cuda.device(device), torch.cuda.stream(side):
            batches = move_to_device(host, config, world)
            return batches, side.record_event()

    for batches, copied in run_ahead(read_ahead(load, steps, config.data.workers), prepare):
        training.wait_event(copied)
        for batch in batches:
            for tensor in batch.tensors():
                tensor.record_stream(training)  # its memory is not reused before the step has read it
        yield batches


def run_ahead(items: Generator[S, None, None], prepare: Callable[[S], T]) -> Iterator[T]:
    """Yield `prepare(item)` for each item in order, computed one ahead by a thread: the next one begins when the caller
    takes the one before. Errors are raised where the item is due. Closing this closes `items`.
    """
    ready: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    slot, closing = threading.Semaphore(1), threading.Event()

    def work() -> None:
        try:
            for item in items:
                slot.acquire()
                if closing.is_set():
                    break
                ready.put(("item", prepare(item)))
            ready.put(("end", None))
        except BaseException as error:  # raised in the caller's thread
            ready.put(("error", error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            slot.release()
            yield value
            value = None  # the caller may free the batch while the next one is awaited
    finally:
        closing.set()
        slot.release()
        thread.join()

"""Processes that share work on a CPU: where the user asks for several, and nowhere else."""

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Report = Callable[[int], object]  # told how much of the work was done
EVERY = 0.2  # seconds between two looks at what was done
FORKING = "This process .* is multi-threaded"  # torch's threads, which the copies do not use

_count: ContextVar[int] = ContextVar("processes", default=1)
_work: dict[str, Any] = {}  # of the pool in use: its processes are copies of this one, so nothing is sent to them


@contextmanager
def processes(count: int) -> Iterator[None]:
    """Inside, collecting, losses and draws of the text are shared by `count` processes.

    For small models on a CPU: there, one thread per process is faster than many threads in one. The processes are
    copies of this one (fork) that share the weights' memory; each takes memory of its own for activations. Torch's
    threads are divided among them. Once CUDA is in use, all work stays in this process.

    Args:
        count: Number of processes; 1 changes nothing.

    Raises:
        ValueError: A number below 1, or several processes on a system other than Linux.
    """
    if count < 1 or (count > 1 and sys.platform != "linux"):
        raise ValueError(f"processes={count}: expected 1 or more, and 1 on a system other than Linux ({sys.platform}).")
    threads, token = torch.get_num_threads(), _count.set(count)
    torch.set_num_threads(max(1, threads // count))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _count.reset(token)


def shares(items: Sequence[Item]) -> list[Sequence[Item]]:
    """The items, dealt out in turn to as many shares as there are processes."""
    count = 1 if torch.cuda.is_initialized() else min(_count.get(), len(items))
    return [items[first::count] for first in range(count)] if count > 1 else [items]


def mapped(function: Callable[[Item, Report], Result], items: Sequence[Item], report: Report) -> list[Result]:
    """The function of each item, in order; the processes take the items as they come.

    Args:
        function: Of an item and of `report`. What it changes in memory is lost where there are several processes.
        items: Arguments.
        report: Told how much was done.

    Raises:
        concurrent.futures.process.BrokenProcessPool: A process was killed, for example as memory ran out. Errors of
            the function are raised as they are.
    """
    count = len(shares(items))
    if count == 1:
        return [function(item, report) for item in items]
    context = multiprocessing.get_context("fork")
    _work.update(function=function, items=items, done=context.SimpleQueue(), threads=torch.get_num_threads())
    _work["stopped"] = context.Event()
    running: list[Future[Any]] = []
    pool = ProcessPoolExecutor(count, context, _alone)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", FORKING, DeprecationWarning)
            running = [pool.submit(_one, place) for place in range(len(items))]
        left = set(running)
        while left:
            done, left = wait(left, EVERY)
            _drained(_work["done"], report)
            for each in done:
                each.result()  # raises what a process raised
        return [each.result() for each in running]
    finally:
        _work["stopped"].set()
        while wait(running, EVERY).not_done:  # after an error: the others end at their next report
            _drained(_work["done"], int)
        pool.shutdown()
        _work.clear()


def _drained(queue: Any, report: Report) -> None:
    while not queue.empty():
        report(queue.get())


def _alone() -> None:
    _count.set(1)
    torch.set_num_threads(_work["threads"])


def _one(place: int) -> Any:
    return None if _work["stopped"].is_set() else _work["function"](_work["items"][place], _told)


def _told(done: int) -> None:
    if _work["stopped"].is_set():
        raise InterruptedError("another process failed")
    _work["done"].put(done)

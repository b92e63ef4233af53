"""What torch takes of a machine that others use too: processors, and memory that it keeps.

Floor 0; called by the package itself.
"""

import ctypes
import os
import platform
import time
from collections.abc import Collection
from pathlib import Path

import joblib
import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them, in glibc's malloc.h
STATISTICS = Path("/proc/stat")  # "cpu7", then what that processor did so far, in ticks


def settle() -> int:
    """Give torch the processors that are free, at least one; return how many.

    Threads spin while they wait for each other: beside four busy processes on two cores, two of
    them take five times the time that is due (``benchmarks/busy.py``). More than affinity and
    control groups allow are never taken. What the reader has chosen stays: OMP_NUM_THREADS, or
    fewer by torch.set_num_threads. Introduced in *How to use this book*.
    """
    now = torch.get_num_threads()
    if now == 1 or "OMP_NUM_THREADS" in os.environ:
        return now
    free = max(1, round(len(_processors()) - busy()))
    threads = min(now, free, joblib.cpu_count())
    torch.set_num_threads(threads)
    return threads


def busy(seconds: float = 0.1) -> float:
    """Return how many processors others keep busy, of those that this process may run on.

    For so many seconds this process sleeps. Where Linux does not count, the load of the last
    minute; where nobody does, 0. Introduced in *How to use this book*.
    """
    try:
        before = _ticks()
        time.sleep(seconds)
        busy, total = (now - then for now, then in zip(_ticks(), before, strict=True))
        return len(_processors()) * busy / total
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _processors() -> Collection[int]:
    """Return the numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _ticks() -> tuple[int, int]:
    """Return the ticks in which our processors worked, and all of theirs."""
    mine = {f"cpu{number}" for number in _processors()}
    worked, total = 0, 0
    for line in STATISTICS.read_text("ascii").splitlines():
        name, *numbers = line.split()
        if name in mine:
            spent = [int(number) for number in numbers[:8]]  # what follows is counted already
            total += sum(spent)
            worked += sum(spent) - spent[3] - spent[4]  # idle, and waiting for a disk
    return worked, total


def keep_memory() -> None:
    """Let glibc keep up to 1 GB of freed memory, which torch is about to ask for again.

    Else it gives a large tensor's memory back at once, and every page of the next one has to be
    fetched from the system: ten stacked networks took 46 ms a round instead of 34. Introduced in
    *How to use this book*.
    """
    if platform.libc_ver()[0] == "glibc":
        malloc = ctypes.CDLL(None)
        malloc.mallopt(TRIM_THRESHOLD, 2**30)
        malloc.mallopt(MMAP_THRESHOLD, 2**25)

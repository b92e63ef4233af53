"""What torch takes of a machine that others use too: processors, and memory that it keeps.

Floor 0; called by the package itself.
"""

import ctypes
import os
import platform
from pathlib import Path

import joblib
import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them, in glibc's malloc.h
PRESSURE = ("/sys/fs/cgroup/cpu.pressure", "/proc/pressure/cpu")  # of the container, of all
PRESSED = 20.0  # per cent of the last ten seconds in which something waited for a processor


def settle() -> int:
    """Give torch the processors that this process may use, or one if others want them too.

    Return their number. Threads spin while they wait for each other: beside four busy processes on
    two cores, two of them take six times the time that is due, and one takes what is due
    (``benchmarks/busy.py``). What the reader has chosen stays: OMP_NUM_THREADS, or fewer by
    torch.set_num_threads. Introduced in *How to use this book*.
    """
    now = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return now
    threads = min(now, 1 if is_busy() else joblib.cpu_count())  # which knows affinity and quotas
    if threads < now:
        torch.set_num_threads(threads)
    return threads


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


def is_busy() -> bool:
    """Return whether processes wait for the processors, as Linux measures it (pressure stall).

    Elsewhere: whether more want to run than there are. Introduced in *How to use this book*.
    """
    for place in PRESSURE:
        try:  # some avg10=1.23 avg60=…
            return float(Path(place).read_text("ascii").split("avg10=")[1].split()[0]) > PRESSED
        except (OSError, IndexError, ValueError):
            continue
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > joblib.cpu_count() + 0.5

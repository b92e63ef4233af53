"""What the package takes of the machine when it is imported."""

import importlib
import os
import platform

import joblib
import pytest
import torch

import minimax
from minimax import machine


@pytest.fixture
def two_threads(monkeypatch):
    """A process with two threads, of which OMP_NUM_THREADS says nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("processors", "others", "allowed", "threads"),
    [(2, 0.1, 2, 2), (2, 1.0, 2, 1), (2, 2.0, 2, 1), (8, 6.9, 8, 1), (64, 3.0, 1, 1)],
)
def test_threads_follow_what_is_free(
    two_threads, monkeypatch, processors, others, allowed, threads
):
    monkeypatch.setattr(machine, "busy", lambda: others)
    monkeypatch.setattr(machine, "_processors", lambda: range(processors))
    monkeypatch.setattr(joblib, "cpu_count", lambda: allowed)
    assert machine.settle() == torch.get_num_threads() == threads


def test_the_package_settles_when_it_is_imported(monkeypatch):
    called = []
    monkeypatch.setattr(machine, "settle", lambda: called.append("processors"))
    monkeypatch.setattr(machine, "keep_memory", lambda: called.append("memory"))
    importlib.reload(minimax)
    assert called == ["processors", "memory"]


def test_what_the_reader_has_set_stays(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(machine, "busy", lambda: 64.0)
    assert machine.settle() == torch.get_num_threads() == 2


def test_others_are_counted_from_what_our_processors_did(tmp_path, monkeypatch):
    """Those of others may be idle, or busy: they are none of ours."""
    place = tmp_path / "stat"
    monkeypatch.setattr(machine, "STATISTICS", place)
    monkeypatch.setattr(machine, "_processors", lambda: {1, 10})
    whole, other = "cpu  {0} 0 0 0 0 0 0 0 0 0\n", "cpu0 {0} 0 0 0 0 0 0 0 0 0\n"
    place.write_text((whole + other).format(1) + EARLIER, "utf-8")
    later = (whole + other).format(9_999) + LATER  # of 40 ticks of ours, 18 + 1 + 1 were work
    monkeypatch.setattr(machine.time, "sleep", lambda _: place.write_text(later, "utf-8"))
    assert machine.busy() == 2 * 20 / 40


EARLIER = "cpu1  100 0 50 900 7 0 3 0 0 0\ncpu10 5 0 0 5 0 0 0 0 0 0\nintr 7\n"
LATER = "cpu1  108 0 51 909 8 0 3 1 0 0\ncpu10 15 0 0 15 0 0 0 0 0 0\nintr 9\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has it")
def test_ours_are_those_of_the_affinity(python):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from minimax import machine; print(len(machine._processors()))"
    assert python(code).stdout == "1\n"


@pytest.mark.parametrize("text", [None, "nothing\n", "cpu0 0 0 0 0 0 0 0 0\n", "cpu0 a b\n"])
def test_where_nobody_counts_the_load_does(tmp_path, monkeypatch, text):
    place = tmp_path / "stat"
    if text:
        place.write_text(text, "utf-8")
    monkeypatch.setattr(machine, "STATISTICS", place)
    monkeypatch.setattr(machine, "_processors", lambda: {0})
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    assert machine.busy() == 1.5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_that_was_freed_is_kept(python):
    """Pages that have to be fetched anew, for tensors of the sizes that were just freed."""
    code = (
        "import resource, torch\n"
        "{}\n"
        "def use(): return [torch.ones(1_000_000) for _ in range(8)]\n"
        "use(), use()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): use()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    plain, kept = (int(python(code.format(line)).stdout) for line in ("", "import minimax"))
    assert kept < plain / 100

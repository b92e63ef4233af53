"""What the package takes of the machine when it is imported."""

import platform

import joblib
import pytest
import torch

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
    ("busy", "processors", "threads"),
    [(False, 8, 2), (False, 2, 2), (False, 1, 1), (True, 8, 1)],
)
def test_threads_follow_what_is_free(two_threads, monkeypatch, busy, processors, threads):
    monkeypatch.setattr(machine, "is_busy", lambda: busy)
    monkeypatch.setattr(joblib, "cpu_count", lambda: processors)
    assert machine.settle() == torch.get_num_threads() == threads


def test_what_the_reader_has_set_stays(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(machine, "is_busy", lambda: True)
    assert machine.settle() == torch.get_num_threads() == 2


@pytest.mark.parametrize(("waited", "busy"), [("3.27", False), ("64.10", True)])
def test_pressure_on_the_processors_is_read(tmp_path, monkeypatch, waited, busy):
    place = tmp_path / "cpu.pressure"
    place.write_text(
        f"some avg10={waited} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00\n", "utf-8"
    )
    monkeypatch.setattr(machine, "PRESSURE", (str(tmp_path / "absent"), str(place)))
    assert machine.is_busy() == busy


@pytest.mark.parametrize(("load", "busy"), [(2.1, False), (5.0, True)])
def test_where_pressure_is_not_measured_the_load_counts(monkeypatch, load, busy):
    monkeypatch.setattr(machine, "PRESSURE", ())
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert machine.is_busy() == busy


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

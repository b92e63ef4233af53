"""The table of mode collapse: its cells, alone, killed, and on a cluster."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch

from conftest import ROOT
from minimax.collapse import METHODS, Cell, networks, play_cell
from minimax.reproduce import record_cells

SHORT = {"rounds": 20, "size": 16, "hidden": 8}


def weights(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_plays_every_table(method):
    for table, modes in (("ring", 8), ("grid", 25), ("high_dimensional", 10)):
        scores, history = play_cell(Cell(table, method, pack=2), copies=2, **SHORT)
        assert len(scores) == 2 and all(0 <= one.modes <= modes for one in scores)
        assert all(torch.isfinite(loss).all() for loss in history.losses.values())


def test_the_networks_of_the_paper_have_their_size():
    D, G, _ = networks(Cell("ring", "gan", 1, "paper"))
    packed, _, _ = networks(Cell("ring", "gan", 3, "paper"))
    assert weights(G) == 484_802
    assert weights(D) == 405_201
    assert weights(packed) == 405_201 + 2 * 2_000


def test_the_width_of_the_layers_is_the_one_asked_for():
    _, narrow, _ = networks(Cell("ring", "gan"), hidden=8)
    assert narrow[0].out_features == 8
    _, wide, _ = networks(Cell("high_dimensional", "gan"))
    assert wide[0].out_features == 1024  # noise in 700 directions has to get through


def test_a_cell_that_does_not_exist_is_refused_by_name():
    for cell, name in [
        (Cell("rings", "gan"), "table is 'rings'"),
        (Cell("ring", "vegan"), "method is 'vegan'"),
        (Cell("ring", "gan", 0), "pack is 0"),
        (Cell("ring", "gan", 1, "huge"), "scale is 'huge'"),
    ]:
        with pytest.raises(ValueError, match=name):
            play_cell(cell)


def test_a_recorded_cell_is_not_played_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # no checkpoints of other versions
    cell = Cell("ring", "gan")
    record_cells([cell], 2, tmp_path, **SHORT)
    path = tmp_path / f"{cell.name}.json"
    record = json.loads(path.read_text())
    assert {"date", "commit", "device", "torch", "seconds"} <= set(record)
    assert record["seeds"] == [0, 1] and len(record["measured"]["quality"]) == 2
    assert record["settings"]["rounds"] == 20
    before = path.stat().st_mtime_ns
    record_cells([cell], 2, tmp_path, **SHORT)
    assert path.stat().st_mtime_ns == before


def started(folder, *arguments):
    """Start the command line in a process whose checkpoints and records go to ``folder``."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "minimax.reproduce", "mode_collapse", "--table", "ring"]
    command += ["--scale", "quick", "--copies", "2", "--out", str(folder), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(folder)})


def wait_for(condition, process):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_cell_goes_on_to_the_same_numbers(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    game = ("--method", "gan", "--rounds", "2500")
    process = started(killed, *game)
    wait_for(lambda: list(killed.rglob("*.safetensors")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("*.json"))
    records = []
    for folder in (killed, whole):
        assert started(folder, *game).wait() == 0
        (path,) = folder.glob("*.json")
        records.append(json.loads(path.read_text()))
    assert records[0]["measured"] == records[1]["measured"]


def test_a_cluster_plays_all_cells_though_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options, local_directory=tmp_path) as cluster:
        process = started(tmp_path, "--rounds", "200", "--cluster", cluster.scheduler_address)
        wait_for(lambda: list(tmp_path.glob("*.json")), process)
        victim = next(iter(cluster.workers.values()))
        os.kill(victim.pid, signal.SIGKILL)
        assert process.wait(timeout=280) == 0
    assert {path.stem for path in tmp_path.glob("*.json")} == {
        Cell("ring", method).name for method in METHODS
    }

"""Checkpoints: a game that was killed ends as one that was not; bad files are named and passed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT

GAME = """
import sys, time, torch
from torch import nn
from minimax.gans import non_saturating
from minimax.game import minibatches, play
from minimax.networks import mlp
from safetensors.torch import save_file

folder, copies, pause, rounds = sys.argv[1], int(sys.argv[2]) or None, float(sys.argv[3]), 40
torch.manual_seed(0)
D, G = mlp(2, 16, 1), mlp(3, 16, 2)
G.insert(1, nn.BatchNorm1d(16)).append(nn.Dropout(0.2))
draw = minibatches(torch.randn(500, 2), size=32, noise=3)

def batches(generator):
    time.sleep(pause)
    return draw(generator)

history = play(
    non_saturating(D, G, lr=1e-3, average=0.9, schedule=lambda t: 1 - t), batches, rounds=rounds,
    copies=copies, seed=1, watch={"sample": lambda: G(torch.zeros(2, 3))}, every=7,
    checkpoint=None if folder == "none" else folder, checkpoint_every=5,
)
result = {f"loss {k}": v for k, v in history.losses.items()} | history.watched
result |= {f"{i} {k}": v for i, m in enumerate((D, G)) for k, v in m.state_dict().items()}
result["average"] = history.each(lambda: G[0].weight, averaged=True)
save_file({k: v.contiguous().clone() for k, v in result.items()}, sys.argv[4])
print(history.rounds)
"""


def start(folder, copies, result, pause=0.0):
    command = [sys.executable, "-c", GAME, str(folder), str(copies), str(pause), str(result)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def kept(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".json")


@pytest.mark.parametrize("copies", [0, 3])
def test_a_killed_game_ends_with_the_same_bits(tmp_path, copies):
    folder = tmp_path / "kept"
    finish(start("none", copies, tmp_path / "whole"))
    process = start(folder, copies, tmp_path / "killed", pause=0.02)
    waited = time.monotonic() + 100
    while not (folder / "round-00000010.json").exists() and time.monotonic() < waited:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    out, _ = finish(start(folder, copies, tmp_path / "resumed"))
    assert out.strip() == "[0, 7, 14, 21, 28, 35, 40]"
    whole, resumed = load_file(tmp_path / "whole"), load_file(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder / "kept", 0, folder / "result"))
    return folder


def copy_of(whole, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    for path in (whole / "kept").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_two_checkpoints_are_kept_and_nothing_else(whole):
    names = sorted(path.name for path in (whole / "kept").iterdir())
    rounds = ("round-00000035", "round-00000040")
    assert names == [r + e for r in rounds for e in (".json", ".safetensors")]


@pytest.mark.parametrize("damage", ["tensors", "json", "missing", "bit"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(whole, tmp_path, damage):
    folder = copy_of(whole, tmp_path)
    tensors = folder / "round-00000040.safetensors"
    record = folder / "round-00000040.json"
    if damage == "missing":
        tensors.unlink()
    elif damage == "bit":
        data = bytearray(tensors.read_bytes())
        data[-5] ^= 1
        tensors.write_bytes(data)
    else:
        path = tensors if damage == "tensors" else record
        path.write_bytes(path.read_bytes()[:-100])
    _, err = finish(start(folder, 0, tmp_path / "result"))
    assert "round-00000040.json is refused" in err
    assert kept(folder) == ["round-00000035.json", "round-00000040.json"]
    again, expected = load_file(tmp_path / "result"), load_file(whole / "result")
    assert all(torch.equal(value, again[name]) for name, value in expected.items())


def test_a_foreign_checkpoint_is_named_and_the_one_before_it_is_used(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    path = folder / "round-00000040.json"
    record = json.loads(path.read_text())
    record["game"]["players"][1]["lr"] = 0.5
    path.write_text(json.dumps(record))
    _, err = finish(start(folder, 0, tmp_path / "result"))
    assert "belongs to another game: players 2 lr is 0.5 there and 0.001 here" in err
    again, expected = load_file(tmp_path / "result"), load_file(whole / "result")
    assert all(torch.equal(value, again[name]) for name, value in expected.items())


def test_a_folder_of_another_game_is_left_alone(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    process = start(folder, 2, tmp_path / "result")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "name another folder" in err
    assert "copies is None there and 2 here" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_finished_game_is_not_played_again(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    finish(start(folder, 0, tmp_path / "result"))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

"""Checkpoints: a game that was killed ends as one that was not; bad files are named and passed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from conftest import ROOT
from minimax.game import Player, checkpoints, minibatches, play
from minimax.networks import mlp

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
    names = sorted(path.name for path in (whole / "kept").iterdir() if path.name != ".lock")
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
    record = json.loads(path.read_text("utf-8"))
    record["game"]["players"][1]["options"]["lr"] = 0.5
    path.write_text(json.dumps(record), "utf-8")
    _, err = finish(start(folder, 0, tmp_path / "result"))
    assert "belongs to another game: players 2 options lr is 0.5 there and 0.001 here" in err
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


X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def short(folder, rounds=20, size=32, x=X, net=None, batches=None, options=None, **changes):
    """A game small enough to be played in this process; returns its end weights."""
    torch.manual_seed(0)
    net = net or mlp(2, 8, 2)

    def the_loss(x, y):
        return cross_entropy(net(x), y)

    decay = partial(torch.optim.AdamW, weight_decay=changes.pop("weight_decay", 0.0))
    player = Player(net, the_loss, **({"optimiser": decay} | changes))
    batches = batches or minibatches(x, Y, size=size)
    options = {"checkpoint_every": 5, "seed": 0} | (options or {})
    play([player], batches, rounds=rounds, checkpoint=folder, **options)
    return torch.cat([weight.detach().flatten() for weight in net.parameters()])


def rounds_in(folder):
    return [int(name.removeprefix("round-").removesuffix(".json")) for name in kept(folder)]


def damage(folder):
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"damaged")


def test_new_checkpoints_survive_beside_damaged_ones(tmp_path):
    short(tmp_path, rounds=40)
    damage(tmp_path)
    with pytest.warns(UserWarning, match="is refused: its tensors are damaged"):
        expected = short(tmp_path, rounds=20)
    assert {15, 20} <= set(rounds_in(tmp_path))
    with pytest.warns(UserWarning, match="round-00000040.json is refused"):
        again = short(tmp_path, rounds=20)
    assert torch.equal(again, expected)


def test_a_checkpoint_that_was_damaged_and_is_written_again_counts(tmp_path):
    short(tmp_path, rounds=10)
    damage(tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        expected = short(tmp_path, rounds=10)
    assert torch.equal(short(tmp_path, rounds=10), expected)
    assert rounds_in(tmp_path) == [5, 10]


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_that_can_not_be_made_is_refused_before_the_first_round(tmp_path, inside):
    file = tmp_path / "game.pt"
    file.write_text("x", "utf-8")

    def never(generator):
        raise AssertionError("a round was played")

    with pytest.raises(ValueError, match=r"checkpoint is .* a folder that can be written"):
        short(file / "in it" if inside else file, batches=never)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 4}, r"batches is giving shapes \[\[4, 2\], \[4\]\].* giving \[\[32, 2\]"),
        ({"weight_decay": 0.5}, "options weight_decay is 0.0 there and 0.5 here"),
        ({"optimiser": torch.optim.Adam}, "optimiser is 'AdamW' there and 'Adam' here"),
        ({"schedule": lambda share: 0.1}, "another game: "),
        ({"lr": 0.5}, "options lr is 0.001 there and 0.5 here"),
        ({"betas": (0.5, 0.9)}, "options betas 1 is 0.9 there and 0.5 here"),
        ({"turns": 2}, "turns is 1 there and 2 here"),
        ({"clip": 1.0}, "clip is None there and 1.0 here"),
        ({"average": 0.5}, "average is None there and 0.5 here"),
        ({"net": nn.Sequential(nn.BatchNorm1d(2), mlp(2, 8, 2))}, "another game: "),
        ({"options": {"key": "other data"}}, "key is None there and 'other data' here"),
        ({"net": mlp(2, 8, 2).double(), "x": X.double()}, "another game: "),
        ({"options": {"seed": 1}}, "seed is 0 there and 1 here"),
        ({"options": {"copies": 2}}, "copies is None there and 2 here"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_another_game_is_refused_by_what_differs(tmp_path, change, named):
    short(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=named):
        short(tmp_path, rounds=40, **change)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_finished_game_of_another_batch_size_is_refused(tmp_path):
    short(tmp_path)
    with pytest.raises(ValueError, match=r"batches is giving shapes \[\[4, 2\], \[4\]\]"):
        short(tmp_path, size=4)


def test_another_schedule_is_another_game(tmp_path):
    short(tmp_path, schedule=lambda share: 1.0)
    with (
        pytest.warns(UserWarning, match="is refused"),
        pytest.raises(ValueError, match=r"schedule 1 is 1\.0 there and 0\.5 here"),
    ):
        short(tmp_path, schedule=lambda share: 0.5)


def test_a_checkpoint_without_its_checksum_is_damaged(tmp_path):
    expected = short(tmp_path / "whole", rounds=20)
    short(tmp_path / "other", rounds=20)
    newest = max((tmp_path / "other").glob("round-*.json"))
    content = json.loads(newest.read_text("utf-8"))
    del content["sha256"]
    newest.write_text(json.dumps(content), "utf-8")
    with pytest.warns(UserWarning, match="its tensors are damaged or cut short"):
        assert torch.equal(short(tmp_path / "other", rounds=20), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schedule": lambda share: None}, "schedule is None; it has to be"),
        ({"options": {"key": torch.ones(3)}}, "key is .*; it has to be a text, or None"),
        ({"options": {"seed": 2**64}}, "seed is 18446744073709551616; it has to be below"),
        ({"name": "D/2"}, "name is 'D/2'; it has to be without"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused_by_name(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        short(tmp_path, **change)


@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_more_rounds_may_be_played_unless_a_schedule_hangs_on_them(tmp_path):
    whole = short(tmp_path / "whole", rounds=30)
    short(tmp_path / "parts", rounds=20)
    assert torch.equal(short(tmp_path / "parts", rounds=30), whole)
    fading = {"schedule": lambda share: 1 - share}
    short(tmp_path / "fading", rounds=20, **fading)
    with pytest.raises(ValueError, match="rounds is 20 there and 30 here"):
        short(tmp_path / "fading", rounds=30, **fading)


def test_a_batch_is_drawn_once_when_a_game_goes_on(tmp_path):
    draw, drawn = minibatches(X, Y, size=32), []

    def counting(generator):
        drawn.append(draw(generator))
        return drawn[-1]

    short(tmp_path, rounds=20, batches=counting)
    short(tmp_path, rounds=30, batches=counting)
    assert len(drawn) == 30
    in_one, drawn[:] = list(drawn), []
    short(tmp_path / "whole", rounds=30, batches=counting)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(in_one, drawn, strict=True))


def test_a_checkpoint_of_another_kind_of_device_is_taken_up(tmp_path):
    """On a GPU the generators' state has another length."""
    expected = short(tmp_path, rounds=20)
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path) | {"random/batches": torch.zeros(1, 16, dtype=torch.uint8)}
        save_file(tensors, path)
        record = path.with_suffix(".json")
        content = json.loads(record.read_text("utf-8"))
        content["sha256"] = checkpoints.hashlib.sha256(path.read_bytes()).hexdigest()
        record.write_text(json.dumps(content), "utf-8")
    assert torch.equal(short(tmp_path, rounds=20), expected)  # finished: no round is played
    on = [short(tmp_path, rounds=24, options={"checkpoint_every": 100}) for _ in range(1)]
    assert torch.isfinite(on[0]).all() and not torch.equal(on[0], expected)


@pytest.mark.parametrize("kind", [".safetensors", ".json"])
def test_a_full_disk_leaves_nothing_half_written_and_the_game_goes_on(tmp_path, monkeypatch, kind):
    expected = short(tmp_path / "whole")
    write = checkpoints.write_whole

    def full(path, data):
        if path.suffix == kind and "00000010" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoints, "write_whole", full)
    with pytest.warns(UserWarning, match=r"round-00000010.json could not be written .*No space"):
        assert torch.equal(short(tmp_path / "full"), expected)
    names = {path.stem for path in (tmp_path / "full").iterdir() if path.name != ".lock"}
    assert names == {"round-00000015", "round-00000020"}


def test_a_second_game_in_the_same_folder_gets_one_sentence(tmp_path):
    draw, met = minibatches(X, Y, size=32), []

    def meanwhile(generator):
        if not met:
            met.append("once")
            with pytest.raises(ValueError, match="a folder that no other running game uses"):
                short(tmp_path)
        return draw(generator)

    short(tmp_path, batches=meanwhile)
    assert met == ["once"]
    short(tmp_path)  # free again


def test_a_checkpoint_that_somebody_removed_stops_nothing(tmp_path):
    draw, calls = minibatches(X, Y, size=32), [0]

    def removing(generator):
        calls[0] += 1
        for path in tmp_path.glob("round-*") if calls[0] == 12 else ():
            path.unlink()
        return draw(generator)

    short(tmp_path, batches=removing)
    assert rounds_in(tmp_path) == [15, 20]


@pytest.mark.filterwarnings("ignore:The checkpoint")
@pytest.mark.parametrize("copies", [None, 2])
def test_a_refused_folder_leaves_the_networks_alone(tmp_path, copies):
    short(tmp_path, rounds=10)
    torch.manual_seed(3)
    net = mlp(2, 8, 2)
    before = torch.cat([weight.detach().flatten() for weight in net.parameters()]).clone()
    for change in ({"lr": 0.5}, {"size": 4} if copies is None else {"lr": 0.25}):
        with pytest.raises(ValueError, match="name another folder"):
            short(tmp_path, rounds=20, net=net, options={"copies": copies}, **change)
        assert torch.equal(
            torch.cat([weight.detach().flatten() for weight in net.parameters()]), before
        )


def test_batches_that_look_at_the_network_see_the_weights_of_the_checkpoint(tmp_path):
    def game(folder, rounds):
        torch.manual_seed(0)
        net = mlp(2, 8, 2)

        def hardest(generator):
            rows = torch.randint(200, (64,), generator=generator)
            with torch.no_grad():
                cost = cross_entropy(net(X[rows]), Y[rows], reduction="none")
            rows = rows[cost.argsort()[-16:]]
            return X[rows], Y[rows]

        return short(folder, rounds=rounds, net=net, batches=hardest)

    game(tmp_path / "parts", 20)
    assert torch.equal(game(tmp_path / "parts", 30), game(tmp_path / "whole", 30))


@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_a_checkpoint_of_another_game_is_never_overwritten(tmp_path):
    short(tmp_path / "other", rounds=10, lr=0.5)
    short(tmp_path / "own", rounds=5)
    for path in (tmp_path / "other").glob("round-00000010*"):
        (tmp_path / "own" / path.name).write_bytes(path.read_bytes())
    foreign = (tmp_path / "own/round-00000010.json").read_bytes()
    with pytest.warns(UserWarning, match=r"round-00000010.json belongs to another game"):
        short(tmp_path / "own", rounds=15)
    assert (tmp_path / "own/round-00000010.json").read_bytes() == foreign
    assert rounds_in(tmp_path / "own") == [5, 10, 15]


@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_checkpoints_of_an_older_format_are_left_alone(tmp_path):
    short(tmp_path, rounds=10)
    for path in tmp_path.glob("*.json"):
        old = path.read_text("utf-8").replace(checkpoints.FORMAT, "minimax game 1")
        path.write_text(old, "utf-8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="its format is 'minimax game 1'"):
        short(tmp_path, rounds=10)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_run_left_half_written_is_swept(tmp_path):
    (tmp_path / "round-00000005.safetensors.0123abcd.partial").write_bytes(b"half")
    short(tmp_path, rounds=5)
    assert not list(tmp_path.glob("*.partial"))


def test_a_schedule_is_never_asked_about_the_end_of_the_game(tmp_path):
    short(tmp_path, schedule=lambda share: 0.1 / (1 - share))


@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_schedules_that_differ_between_tenths_are_told_apart(tmp_path):
    early, late = ({"schedule": lambda share, t=t: float(share < t)} for t in (0.51, 0.59))
    short(tmp_path, rounds=40, **early)
    with pytest.raises(ValueError, match="schedule"):
        short(tmp_path, rounds=40, **late)
